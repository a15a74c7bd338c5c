"""`embed_scenes` on Ray: one actor per GPU or core, each of which calls it for one scene at a time.

A thin driver: the folder of parts is the state, as without Ray, so that a cluster can be stopped
and the same call made again. All machines must see the scenes and the folder by the same paths.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralign.encoders.vectors import Fault, as_fault
from terralign.errors import DataError, first_line
from terralign.progress import Progress

if TYPE_CHECKING:
    from terralign.encoders.space import EmbeddingSpace
    from terralign.index.embed import EmbeddedScenes, Listed

logger = logging.getLogger(__name__)


class Embedder:
    """What an actor holds: the space, on its device."""

    def __init__(self, space: EmbeddingSpace, device: str) -> None:
        from terralign.compute import set_threads

        set_threads(1)
        self.space = space.to(device)

    def embed(self, scene: Any, out: Path, options: Mapping[str, Any]) -> EmbeddedScenes:
        """The parts of one scene."""
        from terralign.index.embed import embed_scenes

        return embed_scenes(self.space, [scene], out, **options)


def embed_by_actors(
    space: EmbeddingSpace,
    scenes: Sequence[Listed],
    out: Path,
    options: Mapping[str, Any],
    *,
    num_workers: int | None = None,
) -> EmbeddedScenes:
    """Embed scenes by `num_workers` actors; left out, one per GPU of the cluster, else per core.

    A running cluster is used where `ray.init` finds one (`RAY_ADDRESS`). An actor that dies gives
    its scene back as a fault; run the same again to embed it. `DataError` without Ray.
    """
    from terralign.index.embed import EmbeddedScenes

    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise DataError(
            "engine 'ray' needs Ray (pip install 'terralign[ray]'); leave out the engine to embed "
            "in this process, or share the scenes between processes (part=, --part)"
        ) from error
    if num_workers is not None and num_workers < 1:
        raise DataError(f"num_workers must be 1 or more, not {num_workers}")
    outcomes: dict[int, EmbeddedScenes | Fault] = {}
    waiting: list[tuple[int, Path | Any]] = []
    for number, one in enumerate(scenes):
        if isinstance(one, Fault):
            outcomes[number] = one
        else:
            waiting.append((number, one))
    if not ray.is_initialized():
        ray.init()
    resources = ray.cluster_resources()
    num_gpus, num_cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    device, count = ("cuda", num_gpus) if num_gpus else ("cpu", num_cores)
    count = max(1, min(num_workers or count, len(waiting)))
    kind = ray.remote(Embedder).options(num_cpus=1, num_gpus=1 if num_gpus else 0)
    shared = ray.put(space)
    idle = [kind.remote(shared, device) for _ in range(count)] if waiting else []
    logger.info("embedding %d scenes by %d actors on %s", len(waiting), count, device)
    at_work: dict[Any, tuple[Any, int, Any]] = {}
    with Progress("embed scenes", total=len(waiting), unit="scene") as progress:
        while waiting or at_work:
            while waiting and idle:
                actor, (number, one) = idle.pop(), waiting.pop(0)
                at_work[actor.embed.remote(one, out, dict(options))] = (actor, number, one)
            if not at_work:  # every actor died
                for number, one in waiting:
                    outcomes[number] = _fault(one, "all actors died")
                break
            [ready], _ = ray.wait(list(at_work), num_returns=1)
            actor, number, one = at_work.pop(ready)
            try:
                outcomes[number] = ray.get(ready)
                idle.append(actor)
            except Exception as error:
                outcomes[number] = _fault(one, first_line(error))
                if not _is_dead(ray, error):
                    idle.append(actor)
            progress.advance()
    found = [outcomes[number] for number in sorted(outcomes)]
    return EmbeddedScenes(
        folder=out,
        scenes=tuple(one for each in found if not isinstance(each, Fault) for one in each.scenes),
        faults=tuple(
            one for each in found for one in ([each] if isinstance(each, Fault) else each.faults)
        ),
    )


def _is_dead(ray: Any, error: Exception) -> bool:
    return isinstance(error, ray.exceptions.RayActorError)


def _fault(one: Any, reason: str) -> Fault:
    path = str(getattr(one, "path", one))
    return as_fault(path, DataError(f"the actor that embedded it failed ({reason})"))
