"""The teacher's stored views."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fakes import Counted
from terralign.datasets.sample import optical_layout
from terralign.datasets.synthetic import SyntheticSet, open_synthetic_scenes
from terralign.encoders.clip.load import ClipModel
from terralign.errors import StorageError, TrainingError
from terralign.preprocess import ViewSpec, draw_views
from terralign.train import teacher
from terralign.train.teacher import (
    ViewPlan,
    stored_views,
    teacher_features,
    teacher_pictures,
    views_stage,
)

PLAN = ViewPlan(spec=ViewSpec(crop_scale=(0.5, 1.0)), num_views=2, seed=4)


def _pictures(
    clip: ClipModel,
    samples: SyntheticSet,
    view: int,
    indices: NDArray[np.int64],
    plan: ViewPlan = PLAN,
) -> torch.Tensor:
    """What the teacher sees of a view, live."""
    layout = optical_layout(samples)
    raw = torch.from_numpy(samples.read(indices)[layout.sensor.name])
    views = draw_views(plan.spec, seed=plan.seed, view=view, indices=indices)
    return teacher_pictures(clip, raw, layout, views)


def _name(clip: ClipModel, samples: SyntheticSet, plan: ViewPlan) -> str:
    return views_stage(clip, samples, plan, Path()).identity


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_stored_views_are_those_of_the_live_teacher(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    views = stored_views(tiny_clip, scenes, PLAN, tmp_path, batch_size=16)
    assert views.shape == (2, 40, 32)
    assert views.dtype == np.float16
    indices = np.array([39, 0, 17, 5], dtype=np.int64)
    for view in range(2):
        live = teacher_features(tiny_clip, _pictures(tiny_clip, scenes, view, indices)).numpy()
        np.testing.assert_allclose(views[view, indices], live, rtol=2e-3, atol=2e-3)
    assert not np.allclose(views[0], views[1], atol=1e-2)


def test_views_are_named_by_the_hash_of_what_they_depend_on(
    tiny_clip: ClipModel, norm_clip: ClipModel, scenes: SyntheticSet, scenes_val: SyntheticSet
) -> None:
    def plan(**change: Any) -> ViewPlan:
        values = {"spec": PLAN.spec, "num_views": PLAN.num_views, "seed": PLAN.seed}
        return ViewPlan(**{**values, **change})

    names = {
        _name(tiny_clip, scenes, PLAN),
        _name(norm_clip, scenes, PLAN),
        _name(tiny_clip, scenes_val, PLAN),
        _name(tiny_clip, scenes, plan(seed=5)),
        _name(tiny_clip, scenes, plan(num_views=3)),
        _name(tiny_clip, scenes, plan(spec=ViewSpec(flips=False))),
    }
    assert len(names) == 6
    assert _name(tiny_clip, scenes, plan()) in names


def test_stored_views_are_not_computed_again(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    first = stored_views(tiny_clip, scenes, PLAN, tmp_path)
    counted = Counted(scenes)
    again = stored_views(tiny_clip, counted, PLAN, tmp_path)
    assert counted.calls == 0
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(first, again)
    name = _name(tiny_clip, scenes, PLAN)
    assert _files(tmp_path) == [f"views-{name}.json", f"views-{name}.npy"]


@pytest.mark.parametrize("fail_after", [1, 2, 4])
def test_an_interrupted_computation_goes_on(
    tiny_clip: ClipModel,
    scenes: SyntheticSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail_after: int,
) -> None:
    monkeypatch.setattr(teacher, "SECONDS_BETWEEN_FLUSHES", -1.0)
    whole = stored_views(tiny_clip, scenes, PLAN, tmp_path / "whole", batch_size=16)
    broken = Counted(scenes, fail_after=fail_after)
    with pytest.raises(OSError, match="cable pulled"):
        stored_views(tiny_clip, broken, PLAN, tmp_path / "b", batch_size=16)  # type: ignore[arg-type]
    counted = Counted(scenes)
    resumed = stored_views(tiny_clip, counted, PLAN, tmp_path / "b", batch_size=16)  # type: ignore[arg-type]
    np.testing.assert_array_equal(resumed, whole)
    assert counted.calls == 6 - fail_after
    assert _files(tmp_path / "b") == _files(tmp_path / "whole")


@pytest.mark.parametrize("moment", ["before the last rename", "before the checksum"])
def test_a_kill_at_the_very_end_costs_no_view(
    tiny_clip: ClipModel,
    scenes: SyntheticSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    monkeypatch.setattr(teacher, "SECONDS_BETWEEN_FLUSHES", -1.0)

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    name = "hash_file" if moment == "before the checksum" else "os.replace"
    with monkeypatch.context() as patched:
        patched.setattr(f"terralign.train.teacher.{name}", killed)
        if name == "os.replace":  # only the last of them, not those of the notes on the way
            patched.setattr("terralign.train.teacher.write_json", _write)
        with pytest.raises(KeyboardInterrupt):
            stored_views(tiny_clip, scenes, PLAN, tmp_path, batch_size=16)
    counted = Counted(scenes)
    found = stored_views(tiny_clip, counted, PLAN, tmp_path, batch_size=16)  # type: ignore[arg-type]
    assert counted.calls == 0
    expected = stored_views(tiny_clip, scenes, PLAN, tmp_path / "whole", batch_size=16)
    np.testing.assert_array_equal(found, expected)
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [
        ".json",
        ".npy",
    ]


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def test_a_disk_that_cannot_promise_the_room_is_told(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the promise, writing to the memory map would end in a bus error."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(teacher.os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match="No space left on device"):
        stored_views(tiny_clip, scenes, PLAN, tmp_path)
    assert list(tmp_path.glob("*.npy")) == []


def test_damaged_views_are_refused(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    stored_views(tiny_clip, scenes, PLAN, tmp_path)
    path = next(tmp_path.glob("*.npy"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(StorageError, match=r"is damaged; delete it and views-\w+\.json"):
        stored_views(tiny_clip, scenes, PLAN, tmp_path)
    os.truncate(path, 100)
    with pytest.raises(StorageError, match="is damaged"):
        stored_views(tiny_clip, scenes, PLAN, tmp_path)


def test_embeddings_that_do_not_fit_float16_are_refused(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    state = {key: value.clone() for key, value in tiny_clip.visual.state_dict().items()}
    state["proj"] *= 1e6
    with pytest.raises(TrainingError, match="do not fit float16; use live_teacher = true"):
        stored_views(tiny_clip.with_visual(state, source="large"), scenes, PLAN, tmp_path)


def test_a_disk_without_the_room_is_told_before_the_work(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    counted = Counted(scenes)
    with pytest.raises(StorageError, match="free some space"):
        stored_views(tiny_clip, counted, PLAN, tmp_path)
    assert counted.calls == 0


def test_the_teacher_of_radar_looks_at_the_paired_optical_chip(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    """The pictures come from the composite whatever sensor the student takes."""
    plain = ViewPlan(spec=ViewSpec(flips=False, turns=False), num_views=1, seed=0)
    indices = np.arange(3, dtype=np.int64)
    pictures = _pictures(tiny_clip, scenes, 0, indices, plain)
    dn = scenes.read(indices)["sentinel2-l2a"].astype(np.float32)
    bands = scenes.layouts["sentinel2-l2a"].bands
    red = torch.from_numpy(dn[:, bands.index("B04")] / 2000).clamp(0, 1)
    mean, std = tiny_clip.input_spec.mean[0], tiny_clip.input_spec.std[0]
    torch.testing.assert_close(pictures[:, 0], (red - mean) / std, rtol=1e-4, atol=1e-4)


def test_the_teacher_computes_in_float32_within_a_bfloat16_run(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    pictures = _pictures(tiny_clip, scenes, 0, np.arange(4, dtype=np.int64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = teacher_features(tiny_clip, pictures)
    assert torch.equal(inside, teacher_features(tiny_clip, pictures))


def test_epochs_take_the_views_in_turn() -> None:
    assert [PLAN.stored(view) for view in range(5)] == [0, 1, 0, 1, 0]


def test_multi_label_sets_share_no_name_with_single_label_ones(tiny_clip: ClipModel) -> None:
    single = open_synthetic_scenes("val", num_samples=4)
    several = open_synthetic_scenes("val", num_samples=4, multi_label=True)
    assert _name(tiny_clip, single, PLAN) != _name(tiny_clip, several, PLAN)
