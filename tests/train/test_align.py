"""Stage 2: a student learns to embed as its teacher does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fakes import Changed, assert_resumes_exactly, metrics_of
from terralign.compute import computing
from terralign.datasets.synthetic import SyntheticSet
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import hash_state
from terralign.encoders.sensor import SensorTower
from terralign.encoders.zeroshot import PromptSet, zero_shot_weights
from terralign.errors import RecipeError
from terralign.preprocess import Spectral, ViewSpec
from terralign.train import align as module
from terralign.train.align import (
    AlignmentSource,
    AlignSettings,
    align,
    align_depends,
)
from terralign.train.checkpoints import read_metrics
from terralign.train.settings import DEFAULT_LOSSES
from terralign.train.student import StudentSettings, new_student
from terralign.train.student_validation import student_features, validation_value
from terralign.train.teacher import teacher_features

PLAIN = PromptSet(name="plain", templates=("{}",))
QUICK = AlignSettings(epochs=2, batch_size=8, lr=1e-3, losses={"mse_normalised": 1.0})
NUM_STEPS = 10
S2, S1 = "sentinel2-l2a", "sentinel1-grd"


def _value(clip: ClipModel, student: SensorTower, source: AlignmentSource) -> float:
    return validation_value(clip, student, source.samples, source.prompts, source.class_names)


def _student(
    clip: ClipModel, samples: SyntheticSet, sensor: str = S2, **settings: Any
) -> SensorTower:
    return new_student("student", clip, StudentSettings(**settings), [sensor], [samples], seed=0)[0]


def _labelled(samples: SyntheticSet) -> AlignmentSource:
    return AlignmentSource(samples=samples, prompts=PLAIN, class_names=samples.labels.class_names)


def _cosine_to_teacher(clip: ClipModel, student: SensorTower, samples: SyntheticSet) -> float:
    student.eval()
    return _value(clip, student, AlignmentSource(samples=samples))


@pytest.mark.parametrize(
    ("sensor", "options"),
    [
        (S2, {"bands": ("B05", "B08", "B11", "B12")}),
        (S1, {}),
        (S1, {"backbone": "test_convnext3"}),
    ],
)
def test_a_student_comes_closer_to_its_teacher(
    tiny_clip: ClipModel,
    scenes: SyntheticSet,
    tmp_path: Path,
    sensor: str,
    options: dict[str, Any],
) -> None:
    """Radar too, whose teacher sees the paired optical chip."""
    student = _student(tiny_clip, scenes, sensor, **options)
    before = _cosine_to_teacher(tiny_clip, student, scenes)
    anchor = tiny_clip.anchor_id()
    align(tiny_clip, student, [AlignmentSource(samples=scenes)], QUICK, tmp_path)
    after = _cosine_to_teacher(tiny_clip, student, scenes)
    assert 1 - after < 0.8 * (1 - before)
    assert tiny_clip.anchor_id() == anchor


@pytest.mark.parametrize("live", [False, True])
def test_teacher_and_student_see_the_same_ground(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path, live: bool
) -> None:
    """A student that starts as its teacher has nothing to learn, whatever the views."""
    settings = QUICK.model_copy(
        update={
            "lr": 1e-12,
            "weight_decay": 0.0,
            "epochs": 3,
            "num_views": 3,
            "views": ViewSpec(crop_scale=(0.3, 0.8), crop_ratio=(0.7, 1.4)),
            "live_teacher": live,
        }
    )
    student = _student(tiny_clip, scenes)
    align(tiny_clip, student, [AlignmentSource(samples=scenes)], settings, tmp_path)
    assert max(row["loss"] for row in metrics_of(tmp_path)) < 1e-4


@pytest.mark.parametrize("num_views", [1, 2])
def test_each_epoch_sees_its_view(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path, num_views: int
) -> None:
    """With a student that stands still, an epoch costs the same exactly where its view is."""
    settings = QUICK.model_copy(
        update={"lr": 1e-12, "weight_decay": 0.0, "epochs": 3, "num_views": num_views}
    )
    student = _student(tiny_clip, scenes, bands=("B08", "B11"))
    align(tiny_clip, student, [AlignmentSource(samples=scenes)], settings, tmp_path)
    losses = [row["loss"] for row in metrics_of(tmp_path)]
    first, second, third = (np.mean(losses[start : start + 5]) for start in (0, 5, 10))
    assert third == pytest.approx(first, rel=1e-4)
    assert (second == pytest.approx(first, rel=1e-4)) == (num_views == 1)


def test_batches_of_several_data_sets_are_named_in_the_log(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"losses": None, "epochs": 1})
    sources = [AlignmentSource(samples=scenes), _labelled(scenes)]
    align(tiny_clip, _student(tiny_clip, scenes), sources, settings, tmp_path / "two")
    rows = metrics_of(tmp_path / "two")
    name = scenes.name
    assert {row["source"] for row in rows} == {f"{name}, with labels", f"{name}, without labels"}
    assert all(("label" in row) == row["source"].endswith("with labels") for row in rows)
    align(tiny_clip, _student(tiny_clip, scenes), sources[:1], settings, tmp_path / "one")
    assert not any("source" in row for row in metrics_of(tmp_path / "one"))


def test_without_labels_there_is_no_label_term(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"losses": None, "epochs": 1})
    for name, source in (("free", AlignmentSource(samples=scenes)), ("with", _labelled(scenes))):
        align(tiny_clip, _student(tiny_clip, scenes), [source], settings, tmp_path / name)
    free, labelled = metrics_of(tmp_path / "free")[0], metrics_of(tmp_path / "with")[0]
    assert "label" not in free
    assert free["loss"] == pytest.approx(free["mse_normalised"], rel=1e-4)
    expected = sum(weight * labelled[name] for name, weight in DEFAULT_LOSSES.items())
    assert labelled["loss"] == pytest.approx(expected, rel=1e-4)


def test_labels_alone_need_no_teacher(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its embeddings nor its pictures are made, and the tower learns the labels."""
    made = []
    for place in ("teacher", "align"):
        name = f"terralign.train.{place}.teacher_pictures"
        monkeypatch.setattr(name, lambda *given: made.append(given))
    settings = QUICK.model_copy(update={"losses": {"label": 1.0}, "num_views": 1000})
    align(tiny_clip, _student(tiny_clip, scenes), [_labelled(scenes)], settings, tmp_path)
    rows = metrics_of(tmp_path)
    assert not made
    assert not list(tmp_path.glob("views-*"))
    assert rows[-1]["label"] < rows[0]["label"]
    assert all(row["cpu_seconds"] > 0 for row in read_metrics(tmp_path / "metrics.jsonl"))


def test_labels_never_reach_a_label_free_student(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    trained = []
    for name, samples in (("has", scenes), ("none", Changed(scenes, labels=None))):
        student = _student(tiny_clip, scenes)
        source = AlignmentSource(samples=samples)
        align(tiny_clip, student, [source], QUICK, tmp_path / name)
        trained.append(student.tower_id())
    assert trained[0] == trained[1]


def test_of_two_sources_only_the_labelled_one_has_a_label_term(
    tiny_clip: ClipModel, scenes: SyntheticSet, scenes_val: SyntheticSet, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"losses": {"cosine": 1.0, "label": 0.5}, "epochs": 1})
    sources = [AlignmentSource(samples=scenes), _labelled(scenes_val)]
    align(tiny_clip, _student(tiny_clip, scenes), sources, settings, tmp_path)
    rows = metrics_of(tmp_path)
    assert len(rows) == 5 + 3
    assert sum("label" in row for row in rows) == 3


@pytest.mark.parametrize(
    ("step", "live"), [(0, False), (4, False), (7, False), (NUM_STEPS - 1, False), (7, True)]
)
def test_resuming_is_exact(
    tiny_clip: ClipModel,
    scenes: SyntheticSet,
    tmp_path: Path,
    step: int,
    live: bool,
) -> None:
    """With stochastic depth, spectral augmentation, calibration and several views."""
    settings = QUICK.model_copy(
        update={
            "losses": {"mse": 1.0, "label": 0.1},
            "num_views": 2,
            "spectral": Spectral(band_dropout=0.2, gain=0.1),
            "live_teacher": live,
        }
    )

    def run(folder: Path) -> str:
        student = _student(tiny_clip, scenes, backbone="test_vit", drop_path=0.5)
        align(tiny_clip, student, [_labelled(scenes)], settings, folder)
        return hash_state(student.state_dict())

    assert_resumes_exactly(run, tmp_path, step, message=f"after step {step + 1} of {NUM_STEPS}")


def test_stored_views_and_live_teacher_train_alike(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"num_views": 2})
    losses = []
    for live in (False, True):
        student = _student(tiny_clip, scenes, bands=("B08", "B11"))
        changed = settings.model_copy(update={"live_teacher": live})
        folder = tmp_path / str(live)
        align(tiny_clip, student, [AlignmentSource(samples=scenes)], changed, folder)
        losses.append([row["loss"] for row in metrics_of(folder)])
        assert bool(list(folder.glob("views-*.npy"))) != live
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_students_of_the_same_data_share_their_teachers_views(
    tiny_clip: ClipModel,
    scenes: SyntheticSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def counted(clip: ClipModel, pictures: torch.Tensor) -> torch.Tensor:
        calls.append(len(pictures))
        return teacher_features(clip, pictures)

    monkeypatch.setattr("terralign.train.teacher.teacher_features", counted)
    for name, sensor in (("one", S2), ("two", S1)):
        align(
            tiny_clip, _student(tiny_clip, scenes, sensor), [AlignmentSource(samples=scenes)],
            QUICK, tmp_path / name, views_folder=tmp_path / "views",
        )  # fmt: skip
    assert sum(calls) == len(scenes)
    assert len(list((tmp_path / "views").glob("*.npy"))) == 1


@pytest.mark.parametrize("parts", [3, 4])
def test_accumulation_gives_the_same_student(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path, parts: int
) -> None:
    settings = QUICK.model_copy(
        update={"losses": {"cosine": 1.0, "label": 0.1}, "lr": 1e-4, "epochs": 1}
    )
    students = []
    for accumulate in (1, parts):
        student = _student(tiny_clip, scenes)
        changed = settings.model_copy(update={"accumulate": accumulate})
        align(tiny_clip, student, [_labelled(scenes)], changed, tmp_path / str(accumulate))
        students.append(student.state_dict())
    for key, value in students[0].items():
        torch.testing.assert_close(students[1][key], value, rtol=1e-3, atol=1e-4)


def test_every_feature_loss_trains(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    names = {"mse": 1.0, "mse_normalised": 1.0, "cosine": 1.0, "infonce": 0.1, "kl": 0.1}
    settings = QUICK.model_copy(update={"losses": names, "epochs": 1, "precision": "bf16"})
    anchors = zero_shot_weights(tiny_clip, ["forest", "water", "town"], PLAIN)
    student = _student(tiny_clip, scenes)
    before = student.tower_id()
    source = AlignmentSource(samples=scenes)
    align(tiny_clip, student, [source], settings, tmp_path, anchors=anchors)
    row = metrics_of(tmp_path)[0]
    assert row["loss"] == pytest.approx(sum(w * row[n] for n, w in names.items()), rel=1e-4)
    assert student.tower_id() != before


def test_the_best_student_on_validation_is_kept(
    tiny_clip: ClipModel, scenes: SyntheticSet, scenes_val: SyntheticSet, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"keep": "best", "validate_every": 2, "lr": 0.02})
    student = _student(tiny_clip, scenes)
    validation = AlignmentSource(samples=scenes_val)
    found = align(
        tiny_clip, student, [AlignmentSource(samples=scenes)], settings, tmp_path,
        validation=validation,
    )  # fmt: skip
    values = [row["validation"] for row in metrics_of(tmp_path) if "validation" in row]
    assert len(values) == 5
    assert found.best == pytest.approx(max(values), rel=1e-5)
    student.eval()
    assert _value(tiny_clip, student, validation) == pytest.approx(found.best, rel=1e-5)


def test_validation_with_labels_is_accuracy(tiny_clip: ClipModel, scenes_val: SyntheticSet) -> None:
    student = _student(tiny_clip, scenes_val).eval()
    features = F.normalize(student_features(student, scenes_val, batch_size=7), dim=-1)
    weights = zero_shot_weights(tiny_clip, scenes_val.labels.class_names, PLAIN)
    right = (features @ weights.T).argmax(-1).numpy() == scenes_val.labels.values
    value = _value(tiny_clip, student, _labelled(scenes_val))
    assert value == pytest.approx(float(np.mean(right)))


def test_student_features_do_not_depend_on_the_batch(
    tiny_clip: ClipModel, scenes_val: SyntheticSet
) -> None:
    student = _student(tiny_clip, scenes_val, S1).eval()
    small = student_features(student, scenes_val, batch_size=5)
    whole = student_features(student, scenes_val, batch_size=100)
    torch.testing.assert_close(small, whole, rtol=1e-4, atol=1e-5)


def test_each_repeat_of_a_sample_is_another_view(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In geometry modulo the stored views, in the bands' augmentation without end."""
    drawn: dict[str, dict[int, list[int]]] = {"draw_views": {}, "augment_spectral": {}}

    def watch(name: str) -> None:
        plain = getattr(module, name)

        def watched(*args: Any, view: int, indices: Any, **options: Any) -> Any:
            for index in indices.tolist():
                drawn[name].setdefault(index, []).append(view)
            return plain(*args, view=view, indices=indices, **options)

        monkeypatch.setattr(module, name, watched)

    for name in drawn:
        watch(name)
    settings = QUICK.model_copy(update={"num_views": 3, "spectral": Spectral(gain=0.1)})
    source = AlignmentSource(samples=scenes, repeats=2)
    align(tiny_clip, _student(tiny_clip, scenes), [source], settings, tmp_path)
    assert set(drawn["draw_views"]) == set(range(len(scenes)))
    for views in drawn["draw_views"].values():
        assert sorted(views) == [0, 0, 1, 2]
    for views in drawn["augment_spectral"].values():
        assert sorted(views) == [0, 1, 2, 3]


def test_calibration_starts_from_what_the_student_gives(
    tiny_clip: ClipModel,
    many_labels: SyntheticSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the mean cosine of the source's first batch, as stage 1's, and not at a fixed one."""
    begun: list[tuple[float, float]] = []
    plain = module.label_loss

    def watched(features: Any, weights: Any, labels: Any, *, calibration: Any, **more: Any) -> Any:
        if not begun:
            near = F.normalize(features.detach(), dim=-1) @ weights.T
            scale = float(calibration.log_scale.detach().exp())
            odds = float(calibration.bias.detach()) + scale * float(near.mean())
            begun.append((odds, float(near.mean())))
        return plain(features, weights, labels, calibration=calibration, **more)

    monkeypatch.setattr(module, "label_loss", watched)
    student = _student(tiny_clip, many_labels, backbone="test_vit")
    settings = QUICK.model_copy(update={"losses": {"cosine": 1.0, "label": 0.1}})
    align(tiny_clip, student, [_labelled(many_labels)], settings, tmp_path)
    ((odds, mean_cosine),) = begun
    assert abs(mean_cosine - 0.2) > 0.05
    base_rate = float(np.mean(many_labels.labels.values))
    assert odds == pytest.approx(np.log(base_rate / (1 - base_rate)), abs=1e-3)


def test_frozen_parameters_stay_bit_for_bit(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    """As MoCo-v3's position embeddings, which only training could move."""
    student = _student(tiny_clip, scenes, backbone="test_vit")
    before = {key: value.clone() for key, value in student.state_dict().items()}
    settings = QUICK.model_copy(
        update={"frozen": ("backbone.pos_embed",), "weight_decay": 0.5, "decay": "all"}
    )
    align(tiny_clip, student, [AlignmentSource(samples=scenes)], settings, tmp_path)
    after = student.state_dict()
    assert torch.equal(after["backbone.pos_embed"], before["backbone.pos_embed"])
    assert not torch.equal(after["backbone.cls_token"], before["backbone.cls_token"])


# Settings


def test_losses_by_name() -> None:
    assert AlignSettings(losses="paper").weights(labelled=True) == {"mse": 1.0, "label": 0.05}
    assert AlignSettings(losses="paper").weights(labelled=False) == {"mse": 1.0}
    assert AlignSettings().weights(labelled=True) == DEFAULT_LOSSES
    assert "label" not in AlignSettings().weights(labelled=False)
    with pytest.raises(ValueError, match="unknown loss 'infonse'; did you mean 'infonce'"):
        AlignSettings(losses={"infonse": 1.0})
    with pytest.raises(ValueError, match="leave it out instead"):
        AlignSettings(losses={"mse": 0.0})
    with pytest.raises(RecipeError, match="no loss is left"):
        AlignSettings(losses={}).weights(labelled=True)


@pytest.mark.parametrize(
    ("change", "labelled", "said"),
    [
        ({"losses": {"mse": 1.0, "label": 1.0}}, False, "no data set is used with its labels"),
        ({"losses": {"mse": 1.0}}, True, "labels = true has no effect"),
        ({"label_loss": "cross_entropy"}, False, "label_loss has no effect"),
        ({"losses": {"label": 1.0}}, None, "only a label term, and .* is used without labels"),
        ({"losses": {"label": 1.0}, "live_teacher": True}, True, "live_teacher has no effect"),
        ({"losses": {"infonce": 1.0}, "accumulate": 2}, False, "set accumulate = 1"),
        ({"losses": {"kl": 1.0}}, False, "the kl loss needs anchors"),
        ({"trainable": ("backbone.layer9.*",)}, False, "matches no parameter"),
        ({"frozen": ("backbone.layer9.*",)}, False, "frozen pattern .* matches no parameter"),
        ({"frozen": ("*",)}, False, "leave no parameter to train"),
        ({"warmup_steps": NUM_STEPS}, False, "has only 10 steps"),
        ({"keep": "best"}, False, "needs validation data"),
        ({"losses": None, "label_loss": "bce"}, True, "'bce' does not fit synthetic-scenes"),
    ],
)
def test_settings_without_effect_are_refused(
    tiny_clip: ClipModel,
    scenes: SyntheticSet,
    tmp_path: Path,
    change: dict[str, Any],
    labelled: bool | None,
    said: str,
) -> None:
    """`labelled` None: one source with labels and one without."""
    plain = AlignmentSource(samples=scenes)
    sources = [_labelled(scenes) if labelled else plain]
    if labelled is None:
        sources = [_labelled(scenes), plain]
    student = _student(tiny_clip, scenes)
    with pytest.raises(RecipeError, match=said):
        align(tiny_clip, student, sources, QUICK.model_copy(update=change), tmp_path)


def test_validation_data_need_something_to_choose(
    tiny_clip: ClipModel, scenes: SyntheticSet, scenes_val: SyntheticSet, tmp_path: Path
) -> None:
    source = AlignmentSource(samples=scenes)
    with pytest.raises(RecipeError, match='no effect with keep = "last"'):
        align(
            tiny_clip, _student(tiny_clip, scenes), [source], QUICK, tmp_path,
            validation=AlignmentSource(samples=scenes_val),
        )  # fmt: skip


def test_a_student_is_not_kept_by_its_training_data(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"keep": "best", "validate_every": 2})
    source = AlignmentSource(samples=scenes)
    student = _student(tiny_clip, scenes)
    with pytest.raises(RecipeError, match=r"40 of the 40 samples .*the best step is chosen"):
        align(tiny_clip, student, [source], settings, tmp_path, validation=source)
    assert list(tmp_path.iterdir()) == []
    align(
        tiny_clip, student, [source], settings, tmp_path,
        validation=source, allow_shared_samples=True,
    )  # fmt: skip


def test_another_student_in_the_same_folder_is_refused(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    source = AlignmentSource(samples=scenes)
    align(tiny_clip, _student(tiny_clip, scenes), [source], QUICK, tmp_path)
    other = _student(tiny_clip, scenes, bands=("B08", "B11"))
    with pytest.raises(RecipeError, match="of other settings or data"):
        align(tiny_clip, other, [source], QUICK, tmp_path)


def test_a_tower_depends_on_labels_and_on_how_its_teacher_computes(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    """By these the towers of several runs are kept in one cache."""
    student = _student(tiny_clip, scenes)
    shuffled = np.roll(scenes.labels.values, 1, axis=0)
    others = Changed(scenes, labels=replace(scenes.labels, values=shuffled))

    def depends(source: AlignmentSource, settings: AlignSettings = QUICK) -> dict[str, Any]:
        return align_depends(tiny_clip, student, [source], settings, None, None, seed=0)

    settings = QUICK.model_copy(update={"losses": {"mse": 1.0, "label": 0.05}})
    labelled = [depends(_labelled(samples), settings) for samples in (scenes, others)]
    assert labelled[0] != labelled[1]
    plain = [depends(AlignmentSource(samples=samples)) for samples in (scenes, others)]
    assert plain[0] == plain[1]
    with computing(inference="bf16", deterministic=False):
        assert depends(AlignmentSource(samples=scenes)) != plain[0]
