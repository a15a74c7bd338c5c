"""An alpha per group of layers, its search, and the pictures the search waits with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from terralign.encoders.clip.load import ClipModel, new_clip
from terralign.encoders.clip.weights import StateDict
from terralign.errors import DataError, ModelError, RecipeError
from terralign.train.finetune import PatchingTask
from terralign.train.interpolate import interpolate
from terralign.train.layer_alphas import (
    group_names,
    interpolate_layers,
    layer_groups,
    search_layer_alphas,
)
from terralign.train.ready_tasks import ReadyTasks
from terralign.train.sweep import SweepMemory, choose_alpha, sweep


def _moved(clip: ClipModel) -> StateDict:
    generator = torch.Generator().manual_seed(1)
    return {
        key: value + 0.1 * torch.randn(value.shape, generator=generator)
        if value.is_floating_point() and "running" not in key
        else value.clone()
        for key, value in clip.visual.state_dict().items()
    }


# Groups


def test_groups_of_open_clips_vit(tiny_clip: ClipModel) -> None:
    groups = layer_groups(tiny_clip.visual.state_dict(), 2)
    assert group_names(groups) == ("stem", "blocks-1", "blocks-2", "projection")
    assert groups["conv1.weight"] == groups["positional_embedding"] == "stem"
    assert groups["transformer.resblocks.0.mlp.c_fc.bias"] == "blocks-1"
    assert groups["transformer.resblocks.1.attn.in_proj_weight"] == "blocks-2"
    assert groups["ln_post.bias"] == groups["proj"] == "projection"
    assert groups.keys() == tiny_clip.visual.state_dict().keys()


def test_groups_of_open_clips_resnet(norm_clip: ClipModel) -> None:
    groups = layer_groups(norm_clip.visual.state_dict(), 4)
    assert groups["bn3.running_var"] == "stem"
    for number in (1, 2, 3, 4):
        assert groups[f"layer{number}.0.downsample.0.weight"] == f"blocks-{number}"
    assert groups["attnpool.c_proj.weight"] == "projection"


@pytest.mark.parametrize(
    ("timm_name", "expected"),
    [
        (
            "tf_efficientnet_lite0",
            {"conv_stem.weight": "stem", "bn1.running_mean": "stem", "bn2.bias": "projection",
             "blocks.0.0.conv_dw.weight": "blocks-1", "blocks.6.0.bn3.weight": "blocks-2"},
        ),
        (
            "vit_tiny_patch16_224",
            {"patch_embed.proj.weight": "stem", "cls_token": "stem", "norm.weight": "projection",
             "blocks.5.mlp.fc1.weight": "blocks-1", "blocks.6.mlp.fc1.weight": "blocks-2"},
        ),
        (
            "convnext_atto",
            {"stem.0.weight": "stem", "stages.1.downsample.0.weight": "blocks-1",
             "stages.3.blocks.1.norm.weight": "blocks-2", "head.norm.weight": "projection"},
        ),
        (
            "resnet10t",
            {"conv1.0.weight": "stem", "layer1.0.conv1.weight": "blocks-1",
             "layer4.0.downsample.1.weight": "blocks-2"},
        ),
    ],
)  # fmt: skip
def test_groups_of_timm_towers(
    tiny_clip_config: dict[str, Any], timm_name: str, expected: dict[str, str]
) -> None:
    vision = {"timm_model_name": timm_name, "timm_pool": "", "timm_proj": "linear"}
    vision |= {"image_size": 224 if "vit" in timm_name else 32}
    vision |= {"timm_pool": "token" if "vit" in timm_name else "avg"}
    clip = new_clip(
        {**tiny_clip_config, "vision_cfg": vision}, {"mean": [0.5] * 3, "std": [0.5] * 3}, seed=0
    )
    groups = layer_groups(clip.visual.state_dict(), 2)
    assert groups["head.proj.weight"] == "projection"
    assert {name: groups[f"trunk.{name}"] for name in expected} == expected


def test_the_parts_have_as_equal_a_number_of_blocks_as_possible() -> None:
    names = [f"transformer.resblocks.{number}.ln_1.weight" for number in range(12)]
    parts = list(layer_groups(names, 5).values())
    assert [parts.count(f"blocks-{number}") for number in range(1, 6)] == [3, 3, 2, 2, 2]
    assert parts == sorted(parts)  # block 10 comes after block 9, not after block 1


def test_names_and_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"trunk\.mystery\.weight is in no group"):
        layer_groups(["trunk.blocks.0.x", "trunk.mystery.weight"], 1)
    for number in (0, 3):
        with pytest.raises(RecipeError, match="the tower has 2 blocks; choose 1 to 2"):
            layer_groups(["trunk.blocks.0.x", "trunk.blocks.1.x"], number)


# Interpolation


def test_each_group_goes_its_own_way(norm_clip: ClipModel) -> None:
    theta_0, theta_1 = norm_clip.visual.state_dict(), _moved(norm_clip)
    groups = layer_groups(theta_0, 2)
    alphas = {"stem": 0.0, "blocks-1": 0.25, "blocks-2": 1.0, "projection": 0.5}
    mixed = interpolate_layers(theta_0, theta_1, groups, alphas)
    assert list(mixed) == list(theta_0)
    for name, value in mixed.items():
        whole = interpolate(theta_0, theta_1, alphas[groups[name]])
        assert torch.equal(value, whole[name])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_one_alpha_for_all_groups_is_plain_interpolation(
    tiny_clip: ClipModel, alpha: float
) -> None:
    theta_0, theta_1 = tiny_clip.visual.state_dict(), _moved(tiny_clip)
    groups = layer_groups(theta_0, 1)
    mixed = interpolate_layers(theta_0, theta_1, groups, dict.fromkeys(group_names(groups), alpha))
    plain = interpolate(theta_0, theta_1, alpha)
    assert all(torch.equal(mixed[name], plain[name]) for name in plain)


def test_every_name_and_group_needs_its_alpha() -> None:
    theta: dict[str, Tensor] = {"proj": torch.zeros(1), "conv1.weight": torch.zeros(1)}
    groups = {"proj": "projection", "conv1.weight": "stem"}
    with pytest.raises(RecipeError, match="'stem' has none"):
        interpolate_layers(theta, theta, groups, {"projection": 1.0})
    with pytest.raises(RecipeError, match="'blocks-1' is no group"):
        interpolate_layers(theta, theta, groups, {"stem": 0, "projection": 1.0, "blocks-1": 0.5})
    with pytest.raises(ModelError, match=r"conv1\.weight is in only one"):
        interpolate_layers(theta, theta, {"proj": "projection"}, {"projection": 1.0})
    with pytest.raises(ModelError, match="theta_0 only"):
        interpolate_layers(theta, {"proj": torch.zeros(1)}, groups, {})


# Ready pictures


class _Counted:
    """A set that counts how often each sample is read."""

    def __init__(self, samples: Any) -> None:
        self._samples = samples
        self.reads = np.zeros(len(samples), dtype=np.int64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._samples, name)

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        np.add.at(self.reads, indices, 1)
        found: dict[str, NDArray[np.generic]] = self._samples.read(indices)
        return found


def _counted(task: PatchingTask) -> tuple[PatchingTask, _Counted]:
    samples = _Counted(task.samples)
    task = PatchingTask(samples=samples, prompts=task.prompts, class_names=task.class_names)  # type: ignore[arg-type]
    return task, samples


def test_ready_tasks_measure_what_the_sweep_does(
    tiny_clip: ClipModel,
    validation: PatchingTask,
    many_label_task: PatchingTask,
    supported: PatchingTask,
    tmp_path: Path,
) -> None:
    theta = _moved(tiny_clip)
    (point,) = sweep(
        tiny_clip, lambda alpha: theta, [1.0],
        validation=[validation, many_label_task], supported=[supported], batch_size=7,
    )  # fmt: skip
    counted, samples = _counted(validation)
    with ReadyTasks(
        tiny_clip, patching=[counted, many_label_task], supported=[supported], folder=tmp_path,
        batch_size=7, limit_bytes=2 * 7 * 3 * 32 * 32 * 4,
    ) as tasks:  # fmt: skip
        for _ in range(2):
            assert tasks.measure(theta) == (point.patching, point.supported)
        other = tasks.measure(tiny_clip.visual.state_dict())
        assert other != (point.patching, point.supported)
    np.testing.assert_array_equal(samples.reads, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_task_without_samples_is_refused(
    tiny_clip: ClipModel, validation: PatchingTask, tmp_path: Path
) -> None:
    counted, samples = _counted(validation)
    samples.__class__ = type("_Empty", (_Counted,), {"__len__": lambda self: 0})
    with pytest.raises(DataError, match="has no samples"):
        ReadyTasks(tiny_clip, patching=[counted], supported=[], folder=tmp_path)


# The search


class _World:
    """Tasks without pictures: figures as functions of the alphas."""

    def __init__(self, patching: Any, supported: Any) -> None:
        self._patching, self._supported = patching, supported
        self.num_measured = 0

    def measure(self, alphas: Any) -> tuple[dict[str, float], dict[str, float]]:
        self.num_measured += 1
        return {"p": self._patching(**alphas)}, {"s": self._supported(**alphas)}


def _search(world: _World, memory: SweepMemory | None = None, **options: Any) -> Any:
    return search_layer_alphas(
        lambda alphas: alphas,  # type: ignore[arg-type, return-value]
        ("stem", "head"), (0.5, 1.0), world,  # type: ignore[arg-type]
        memory=memory, **{"max_supported_drop": 0.01, **options},
    )  # fmt: skip


def test_the_search_finds_what_one_alpha_cannot() -> None:
    """The stem costs the supported task, the head costs nothing."""
    world = _World(
        lambda stem, head: 0.5 + 0.1 * stem + 0.2 * head, lambda stem, head: 0.6 - 0.02 * stem
    )
    found = _search(world)
    assert found.best_single.alphas == {"stem": 0.5, "head": 0.5}
    assert found.best.alphas == {"stem": 0.5, "head": 1.0}
    assert "75.00 %, with one alpha 65.00 %, at alpha 0 50.00 %" in found.reason
    assert "1.00 points" in found.reason


def test_the_bound_holds_for_the_search() -> None:
    world = _World(lambda stem, head: stem + head, lambda stem, head: 0.6 - 0.02 * (stem + head))
    found = _search(world)
    assert found.best.alphas == {"stem": 0.5, "head": 0.0}
    assert found.best_single.alphas == {"stem": 0.0, "head": 0.0}  # 0.5 for both is too much
    assert _search(world, max_supported_drop=0.0).best.alphas == {"stem": 0.0, "head": 0.0}


def test_no_point_is_measured_twice() -> None:
    world = _World(lambda stem, head: stem - head, lambda stem, head: 0.5)
    found = _search(world, max_passes=5)
    assert found.best.alphas == {"stem": 1.0, "head": 0.0}
    assert world.num_measured == len(found.points) <= 9


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    memory = SweepMemory(path=tmp_path / "search.json", identity="same")

    class _Broken(_World):
        def measure(self, alphas: Any) -> tuple[dict[str, float], dict[str, float]]:
            if self.num_measured == 4:
                raise OSError("cable pulled")
            return super().measure(alphas)

    def patching(stem: float, head: float) -> float:
        return 0.3 * stem + 0.1 * head

    def supported(stem: float, head: float) -> float:
        return 0.5 - 0.02 * head

    with pytest.raises(OSError, match="cable pulled"):
        _search(_Broken(patching, supported), memory)
    rest = _World(patching, supported)
    found = _search(rest, memory)
    whole = _World(patching, supported)
    assert found == _search(whole)
    assert rest.num_measured == whole.num_measured - 4


def test_the_search_starts_where_the_choice_of_one_alpha_ends(
    tiny_clip: ClipModel, validation: PatchingTask, supported: PatchingTask
) -> None:
    """On pictures: the best single alpha is `choose_alpha`'s, and the best is no worse."""
    theta_0, theta_1 = tiny_clip.visual.state_dict(), _moved(tiny_clip)
    groups = layer_groups(theta_0, 2)
    grid = (0.0, 0.5, 1.0)
    points = sweep(
        tiny_clip, lambda alpha: interpolate(theta_0, theta_1, alpha), grid,
        validation=[validation], supported=[supported],
    )  # fmt: skip
    chosen = choose_alpha(points, max_supported_drop=0.05)
    with ReadyTasks(tiny_clip, patching=[validation], supported=[supported]) as tasks:
        found = search_layer_alphas(
            lambda alphas: interpolate_layers(theta_0, theta_1, groups, alphas),
            group_names(groups), grid, tasks, max_supported_drop=0.05, max_passes=1,
        )  # fmt: skip
    assert set(found.best_single.alphas.values()) == {chosen.alpha}
    assert found.best.mean_patching >= found.best_single.mean_patching
    (before,), (after,) = points[0].supported.values(), found.best.supported.values()
    assert before - after <= 0.05 + 1e-9
