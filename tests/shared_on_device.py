"""What ranks share on a device, each a process of its own: `test_nccl.py` starts them.

    python tests/shared_on_device.py FOLDER DEVICE SIZE [rank]

One rank alone shares too, by the same library (NCCL on CUDA devices), where it otherwise would not.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from terralign import ranks
from terralign.compute import choose_device
from terralign.datasets.synthetic import open_synthetic_scenes
from terralign.encoders.clip.load import new_clip
from terralign.encoders.zeroshot import PromptSet
from terralign.launch import launch
from terralign.train.align import AlignmentSource, AlignSettings, align
from terralign.train.student import StudentSettings, new_student

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 1},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@contextmanager
def _joined(device: str, size: int) -> Iterator[None]:
    """As `ranks.joined`, and by one rank too."""
    if size > 1:
        with ranks.joined(device):
            yield
        return
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, 1, is_master=True)
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    ranks._world = ranks._World(0, 1, dist.PrefixStore("terralign", store))
    try:
        yield
    finally:
        ranks._world = None
        dist.destroy_process_group()


def _shared(device: str) -> dict[str, Any]:
    """Each way of sharing, of numbers that depend on the rank."""
    rank, size = ranks.rank(), ranks.world_size()
    own = torch.arange(5.0, device=device) + rank
    whole = torch.arange(7.0, device=device)[:, None] * torch.ones(3, device=device)
    rows = whole[rank::size].clone().requires_grad_()
    gathered = ranks.gather_rows(rows, 7)
    (gathered * whole).sum().backward()
    first = torch.full((4,), float(rank), device=device)
    ranks.take_first([first])

    def work(pieces: Sequence[int]) -> Generator[ranks.Found, None, None]:
        for piece in pieces:
            yield (torch.full((2,), float(piece), device=device).cpu(),)

    assert rows.grad is not None
    return {
        "sum": ranks.sum_parts([own.clone()], in_order=False).tolist(),
        "in_order": ranks.sum_parts([own, own * 2], in_order=True).tolist(),
        "rows": gathered[:, 0].tolist(),
        "gradient": (rows.grad[:, 0] * len(rows) / 7).tolist(),
        "first": first.tolist(),
        "greatest": ranks.greatest(rank, -rank),
        "gathered": ranks.gather(rank),
        "shared": [int(one[0]) for (one,) in ranks.share_out(range(5), work)],
    }


def _trained(device: str, folder: Path) -> list[float]:
    """The losses of a few steps of stage 2, by InfoNCE and labels."""
    clip = new_clip(ARCHITECTURE, {"mean": [0.5] * 3, "std": [0.25] * 3}, seed=0)
    clip.model.to(device)
    samples = open_synthetic_scenes("train", num_samples=32)
    student, _ = new_student("s2", clip, StudentSettings(), ["sentinel2-l2a"], [samples], seed=0)
    source = AlignmentSource(
        samples=samples, prompts=PromptSet(name="plain", templates=("{}",)),
        class_names=samples.labels.class_names,
    )  # fmt: skip
    losses = {"infonce": 1.0, "label": 1.0}
    settings = AlignSettings(epochs=2, batch_size=8, lr=1e-3, losses=losses)
    align(clip, student.to(device), [source], settings, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


def main() -> None:
    folder, device, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if size > 1 and sys.argv[4:] != ["rank"]:
        sys.exit(launch([sys.executable, *sys.argv, "rank"], size))
    torch.set_num_threads(1)
    with _joined(device, size):
        found = {**_shared(choose_device(device)), "backend": dist.get_backend()}
        found["losses"] = _trained(choose_device(device), folder / "together")
        (folder / f"{ranks.rank()}.json").write_text(json.dumps(found))
    if ranks.place().rank == 0:
        alone = _trained(choose_device(device), folder / "alone")
        (folder / "alone.json").write_text(json.dumps(alone))


if __name__ == "__main__":
    main()
