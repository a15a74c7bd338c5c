"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests run in two processes

if TYPE_CHECKING:
    from fake_world import FakeWorld
    from terralign.encoders.clip.load import ClipModel
    from terralign.encoders.space import EmbeddingSpace


@pytest.fixture(autouse=True)
def logger_as_it_was() -> Iterator[None]:
    """Put back what the command line changes of the logger, which tests read by `caplog`."""
    logger = logging.getLogger("terralign")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def warned_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is warned of or logged once in a process is so once in each test."""
    for name, module in list(sys.modules.items()):
        if name.startswith("terralign.scenes."):
            for once in {"_warned", "_logged"} & vars(module).keys():
                monkeypatch.setattr(module, once, set())


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real pixels that `TERRALIGN_DATA` names; skips where it is missing."""
    folder = os.environ.get("TERRALIGN_DATA")
    if not folder:
        pytest.skip("TERRALIGN_DATA is not set: no real data to test on")
    path = Path(folder)
    if not path.is_dir():
        pytest.skip(f"TERRALIGN_DATA names {folder}, which does not exist")
    return path


@pytest.fixture(scope="session")
def tiny_clip_config() -> dict[str, Any]:
    """open_clip's model_cfg of a CLIP that runs in a millisecond: D = 32, pictures of 32 pixels."""
    return {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": 64,
            "head_width": 32,
            "layers": 2,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }


@pytest.fixture(scope="session")
def tiny_clip(tiny_clip_config: dict[str, Any]) -> ClipModel:
    """A CLIP with random weights and a ViT image tower; shared, so no test may change it."""
    from terralign.encoders.clip.load import new_clip

    preprocess_cfg = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    return new_clip(tiny_clip_config, preprocess_cfg, seed=0)


@pytest.fixture(scope="module")
def model(tiny_clip: ClipModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a space with a Sentinel-2 tower, of random weights."""
    from imagery import space_of

    return space_of(tiny_clip).save(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def space(model: Path) -> EmbeddingSpace:
    """The space of `model`."""
    from terralign.encoders.space import EmbeddingSpace

    return EmbeddingSpace.load(model)


@pytest.fixture(scope="module")
def tiny_starter(tiny_clip: ClipModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of what the name `starter` means in these tests: the space of `model`, and a base
    of another RGB tower."""
    from imagery import space_of
    from terralign.encoders import sources
    from terralign.encoders.compact import save_compact
    from terralign.encoders.space import EmbeddingSpace

    state = {key: value * 1.01 for key, value in tiny_clip.visual.state_dict().items()}
    base = EmbeddingSpace(tiny_clip.with_visual(state, source="base"))
    folder = tmp_path_factory.mktemp("models") / "starter"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "STARTER", save_compact(space_of(tiny_clip), folder, base=base))
        yield folder


@pytest.fixture(scope="session")
def norm_clip(tiny_clip_config: dict[str, Any]) -> ClipModel:
    """The same with a small ResNet, which has batch norms, as its image tower; shared."""
    from terralign.encoders.clip.load import new_clip

    vision_cfg = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
    preprocess_cfg = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    return new_clip({**tiny_clip_config, "vision_cfg": vision_cfg}, preprocess_cfg, seed=0)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small run, complete; shared, so no test may change it."""
    from small_run import small_recipe
    from terralign.runs.run import run_recipe

    folder = tmp_path_factory.mktemp("runs") / "small"
    run_recipe(small_recipe(), folder, device="cpu")
    return folder


@pytest.fixture
def figures_undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are saved as blank pictures: drawing them is half of the time of a small run."""
    from matplotlib.figure import Figure
    from PIL import Image

    def save_blank(figure: Figure, out: Any, **options: Any) -> None:
        Image.new("RGB", (8, 8)).save(out, format="PNG")

    monkeypatch.setattr(Figure, "savefig", save_blank)


@pytest.fixture(scope="session")
def fake_world(tmp_path_factory: pytest.TempPathFactory) -> FakeWorld:
    """A data root in official layouts; data sets are written when a test first adds them."""
    from fake_world import FakeWorld

    return FakeWorld(tmp_path_factory.mktemp("world"))
