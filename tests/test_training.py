"""`align`, `patch` and `evaluate` on samples in hand."""

from __future__ import annotations

import inspect
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import terralign as ta
from terralign.cli import main
from terralign.datasets.sample import SampleSet
from terralign.datasets.samples import Samples
from terralign.datasets.store.writing import pack
from terralign.datasets.synthetic import open_synthetic_photos, open_synthetic_scenes
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import (
    DataError,
    ModelError,
    RecipeError,
    SpaceMismatchError,
    StorageError,
)
from terralign.evaluation.result import Evaluation
from terralign.sensors import Band, Composite, Sensor
from terralign.train.align import AlignmentSource, AlignSettings
from terralign.train.align import align as stage
from terralign.train.patch import PatchSettings
from terralign.train.student import StudentSettings, new_student
from terralign.training import align, evaluate, patch

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 8}
S2 = "sentinel2-l2a"

PLANET = Sensor(
    name="planet",
    bands=(
        Band(name="B", center_nm=490, gsd_m=3),
        Band(name="G", center_nm=565, gsd_m=3),
        Band(name="R", center_nm=665, gsd_m=3),
        Band(name="NIR", center_nm=865, gsd_m=3),
    ),
    unit="reflectance",
    dn_scale=1e-4,
    composites=(Composite(name="true-colour", bands=("R", "G", "B"), stretch=0.3),),
)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def space(tiny_clip: ClipModel) -> EmbeddingSpace:
    return EmbeddingSpace(tiny_clip)


@pytest.fixture(scope="module")
def scenes() -> SampleSet:
    return open_synthetic_scenes("train", num_samples=24)[:]


@pytest.fixture(scope="module")
def planet() -> Samples:
    """Twenty chips of a four-band sensor that is not built in."""
    pixels = np.random.default_rng(0).integers(200, 3000, (20, 4, 16, 16), np.uint16)
    return Samples.from_arrays(
        pixels, sensor=PLANET, labels=["field", "lake"] * 10, name="planet", prompts=["{}"]
    )


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, 3, stride=4)
        self.last = nn.Linear(6, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.last(self.first(pixels).relu().mean((2, 3)))
        return features


# Align


@pytest.mark.parametrize("encoder", [None, "test_convnext3", Net(), Net])
def test_a_tower_of_ones_own_sensor_is_aligned_added_saved_and_loaded(
    space: EmbeddingSpace, planet: Samples, tmp_path: Path, encoder: Any
) -> None:
    tower = align(space, planet, name="mine", encoder=encoder, **QUICK)
    assert tower.config.input.sensors == ("planet",)
    assert not any(value.requires_grad for value in tower.parameters())
    space.add(tower)
    custom = {} if encoder is None or isinstance(encoder, str) else {"encoders": {"mine": Net}}
    again = ta.load(space.save(tmp_path / "space"), **custom)
    assert again.tower_id("mine") == tower.tower_id()
    pixels = planet.read(np.arange(2))["planet"]
    one, other = (s.embed(pixels, sensor="planet", units="dn") for s in (space, again))
    assert np.array_equal(one.vectors, other.vectors)


def test_align_is_what_a_recipes_stage_computes(
    space: EmbeddingSpace, scenes: SampleSet, tmp_path: Path
) -> None:
    ours = align(space, scenes, name="s2", sensors=S2, labels=False, lr=1e-3, seed=3, **QUICK)
    tower, _ = new_student("s2", space.clip, StudentSettings(), [S2], [scenes], seed=3)
    settings = AlignSettings(lr=1e-3, **QUICK)
    stage(space.clip, tower, [AlignmentSource(samples=scenes)], settings, tmp_path, seed=3)
    assert ours.tower_id() == tower.tower_id()


def test_labels_are_used_where_there_are_some_unless_refused(
    space: EmbeddingSpace, planet: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    towers = {
        labels: align(space, planet, name="mine", labels=labels, **QUICK)
        for labels in (None, True, False)
    }
    assert "align: uses the labels of planet (labels=False: none)" in caplog.text
    assert towers[None].tower_id() == towers[True].tower_id() != towers[False].tower_id()
    features = align(space, planet, name="mine", losses={"mse_normalised": 1.0}, **QUICK)
    assert features.tower_id() == towers[False].tower_id()
    bare = Samples.from_arrays(planet.read(np.arange(4))["planet"], sensor=PLANET)
    with pytest.raises(DataError, match="has no labels"):
        align(space, bare, name="mine", labels=True)
    mixed = align(space, [planet, bare], name="mine", **QUICK)
    assert mixed.tower_id() != towers[None].tower_id()


def test_a_call_with_a_folder_is_finished_by_the_next_one(
    space: EmbeddingSpace, planet: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = align(space, planet, name="mine", folder=tmp_path, **QUICK)
    monkeypatch.setattr("terralign.train.align.fit", None)  # nothing is trained
    again = align(space, planet, name="mine", folder=str(tmp_path), **QUICK)
    assert again.tower_id() == tower.tower_id()
    with pytest.raises(RecipeError, match="holds a tower of other settings, data or weights"):
        align(space, planet, name="mine", folder=tmp_path, **QUICK, seed=1)


@pytest.mark.parametrize(
    "content", ["[]", "{}", "3", "null", '{"identity": 3}', '["identity"]', "{"]
)
def test_a_damaged_record_of_a_finished_tower_is_named(
    space: EmbeddingSpace, planet: Samples, tmp_path: Path, content: str
) -> None:
    (tmp_path / "tower.safetensors").touch()
    (tmp_path / "tower.json").write_text(content)
    with pytest.raises(StorageError, match=r"tower\.json is (damaged|not valid JSON).*") as error:
        align(space, planet, name="mine", folder=tmp_path, **QUICK)
    assert "\n" not in str(error.value)
    (tmp_path / "tower.json").unlink()
    align(space, planet, name="mine", folder=tmp_path, **QUICK)


def test_damaged_weights_of_a_finished_tower_are_named(
    space: EmbeddingSpace, planet: Samples, tmp_path: Path
) -> None:
    align(space, planet, name="mine", folder=tmp_path, **QUICK)
    weights = tmp_path / "tower.safetensors"
    whole = weights.read_bytes()
    for content, said in ((b"", "not a whole safetensors"), (whole[:-9], "not a whole safetens")):
        weights.write_bytes(content)
        with pytest.raises(ModelError, match=said):
            align(space, planet, name="mine", folder=tmp_path, **QUICK)
    save_file({"other": torch.zeros(2)}, weights)
    with pytest.raises(ModelError, match=r"tower\.safetensors") as error:
        align(space, planet, name="mine", folder=tmp_path, **QUICK)
    assert "\n" not in str(error.value)


def test_validation_keeps_the_best_step(space: EmbeddingSpace, planet: Samples) -> None:
    train, held = planet.split_off(0.3)
    tower = align(space, train, name="mine", validation=held, **{**QUICK, "epochs": 3})
    assert tower.space_id == space.space_id
    with pytest.raises(RecipeError, match="chosen on samples that are trained on"):
        align(space, planet, name="mine", validation=held, **QUICK)
    align(space, planet, name="mine", validation=held, allow_shared_samples=True, **QUICK)


def test_numbered_keys_of_other_arrays_are_not_warned_of(
    space: EmbeddingSpace, planet: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    others = np.random.default_rng(1).integers(200, 3000, (6, 4, 16, 16), np.uint16)
    held = Samples.from_arrays(others, sensor=PLANET, name="planet")
    assert set(held.keys) < set(planet.keys)
    align(space, planet, name="mine", validation=held, **QUICK)
    assert "keys in common" not in caplog.text


def test_sensors_of_paired_data_are_named(space: EmbeddingSpace) -> None:
    pixels = np.random.default_rng(0).integers(200, 3000, (8, 12, 16, 16), np.uint16)
    radar = np.random.default_rng(1).normal(-14, 3, (8, 2, 16, 16)).astype(np.float32)
    pairs = Samples.from_arrays({S2: pixels, "sentinel1-grd": radar}, dn_offset={S2: 0})
    with pytest.raises(RecipeError, match=r"has sentinel2-l2a and sentinel1-grd; name .*sensors="):
        align(space, pairs, name="radar")
    tower = align(space, pairs, name="radar", sensors="sentinel1-grd", bands=["vh"], **QUICK)
    assert tower.config.input.bands == ("VH",)
    pictures = Samples.from_arrays(np.zeros((8, 3, 16, 16), np.uint8), sensor="rgb")
    with pytest.raises(RecipeError, match="RGB pictures alone"):
        align(space, pictures, name="mine")


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"epoch": 3}, r"align\(\) has no setting 'epoch'; did you mean 'epochs'\?"),
    ({"encodr": "x"}, "did you mean 'encoder'"),
    ({"epochs": 0}, "align: epochs: .*greater than or equal to 1"),
    ({"losses": {"mes": 1}}, "unknown loss 'mes'; did you mean 'mse'"),
    ({"drop_path": 0.1}, "drop_path has no effect on an inflated tower"),
    ({"encoder": Net, "initial": "x.pt"}, "leave out initial and drop_path"),
    ({"encoder": "custom"}, "give the module, or a function that builds it"),
    ({"keep": "best"}, "needs validation data"),
    ({"name": "My Tower"}, "small letters, digits and hyphens"),
    ({"name": "rgb"}, "and not rgb or text"),
    ({"bands": "NIR"}, "is one text"),
    ({"prompts": ["no place"]}, r"every template needs one \{\}, 'no place' has not"),
    ({"prompts": 3}, "prompts = 3; give the name of a prompt set"),
    ({"prompts": ["{}", None]}, "the template None is not text"),
    ({"seed": "x"}, r"seed = 'x'; expected a whole number from 0 to 2\*\*63 - 1"),
    ({"seed": -1}, "seed = -1; expected"),
    ({"seed": 2**70}, "seed = 1180591620717411303424; expected"),
    ({"seed": True}, "seed = True; expected"),
    ({"seed": 1.5}, r"seed = 1\.5; expected"),
    ({"name": 3}, "name = 3; expected small letters"),
    ({"sensors": 3}, "sensors = 3; expected a sensor or a list of them"),
    ({"sensors": [3]}, r"sensors = \[3\]; expected a sensor or a list"),
    ({"sensors": [None]}, r"sensors = \[None\]; expected a sensor or a list"),
    ({"validation": []}, "validation is 0 sample sets; give one"),
    ({"sensors": []}, r"sensors = \[\]; expected a sensor or a list"),
    ({"bands": 3}, "bands = 3; give a list of names"),
    ({"labels": "yes"}, "labels = 'yes'; expected True, False or None"),
    ({"device": 3}, "device = 3; expected a text such as 'cpu'"),
    ({"folder": 3}, "folder = 3; expected the path of a folder"),
    ({"losses": 3}, "align: losses: Input should be a valid dictionary"),
    ({"losses": {"kl": 1.0}, "labels": False}, "the kl loss needs class names"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_mistakes_of_align_are_named(
    space: EmbeddingSpace, planet: Samples, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        align(space, planet, **{"name": "mine", **given})


def test_training_leaves_torchs_settings_as_they_were(
    space: EmbeddingSpace, planet: Samples
) -> None:
    def trained() -> torch.Tensor:
        torch.manual_seed(1)
        tower = align(space, planet, name="mine", encoder=Net, **QUICK)
        return tower.state_dict()["projection.weight"]

    usual = trained()
    patch(space, planet, alphas=(1.0,), **QUICK)
    found = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(found, torch.rand(3))
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(trained(), usual)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_seed_of_numpy_is_a_seed(space: EmbeddingSpace, planet: Samples) -> None:
    one, other = (
        align(space, planet, name="mine", seed=seed, **QUICK) for seed in (3, np.int64(3))
    )
    assert one.tower_id() == other.tower_id()


def test_what_is_no_sample_set_is_refused(space: EmbeddingSpace, planet: Samples) -> None:
    for wrong in ("folder", [planet, 3], np.zeros((2, 3, 8, 8))):
        with pytest.raises(DataError, match="data are Samples, or a list of them, not"):
            align(space, wrong, name="mine")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="measures one sample set, not 2"):
        evaluate(space, [planet, planet])  # type: ignore[arg-type]


def test_help_shows_every_setting_with_its_default() -> None:
    shown = inspect.signature(align).parameters
    fields = {**AlignSettings.model_fields, **StudentSettings.model_fields}
    for name in fields.keys() - {"backbone"}:
        assert shown[name].kind == inspect.Parameter.KEYWORD_ONLY
        assert f"    {name} = " in (align.__doc__ or "") or name == "bands"
    assert shown["batch_size"].default == 128
    assert shown["lr"].annotation is float
    assert "settings" not in shown
    assert PatchSettings.model_fields.keys() <= inspect.signature(patch).parameters.keys()


def test_a_tower_keeps_how_its_training_went(
    space: EmbeddingSpace, planet: Samples, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings: dict[str, Any] = {"epochs": 10, "batch_size": 8, "lr": 1e-2, "seed": 3}
    work, net = tmp_path / "work", Net()
    tower = align(space, planet, name="mine", encoder=net, labels=False, folder=work, **settings)
    trained = tower.trained
    assert trained is not None
    assert (trained.data, trained.num_samples, trained.num_steps) == (("planet",), 20, 30)
    assert (trained.encoder, trained.losses) == ("Net", {"mse_normalised": 1.0})
    assert (trained.epochs, trained.batch_size, trained.lr, trained.seed) == (10, 8, 1e-2, 3)
    losses = [
        json.loads(line)["loss"] for line in (work / "metrics.jsonl").read_text().splitlines()
    ]
    assert trained.first_loss == pytest.approx(np.mean(losses[:3]), rel=1e-3)
    assert trained.last_loss == pytest.approx(np.mean(losses[-3:]), rel=1e-3)
    own, teacher = (space.embed(planet, tower=one).vectors for one in (add(space, tower), "rgb"))
    assert trained.cosine == pytest.approx((own * teacher).sum(1).mean(), abs=1e-3)
    assert f"align mine: {trained}" in caplog.messages
    assert str(trained).startswith("30 steps over 20 samples, loss ")
    assert "only" not in caplog.text
    again = align(space, planet, name="mine", encoder=net, labels=False, folder=work, **settings)
    assert again.trained == trained


def add(space: EmbeddingSpace, tower: Any) -> str:
    space.add(tower)
    return str(tower.config.name)


def test_a_saved_space_lists_how_its_towers_were_trained(
    space: EmbeddingSpace, planet: Samples, tmp_path: Path
) -> None:
    tower = align(space, planet, name="mine", **QUICK)
    before = tower.tower_id()
    space.add(tower)
    noted = space.provenance["towers"]
    folder = space.save(tmp_path / "space")
    again = ta.load(folder)
    assert again.provenance["towers"] == json.loads(json.dumps(noted))
    assert again.towers["mine"].trained == tower.trained
    assert again.tower_id("mine") == before
    shown = CliRunner().invoke(main, ["info", str(folder)]).stdout
    assert "num_steps    3" in shown
    tower.trained = None  # it is replaced by one of which nothing is known
    again.add(tower)
    assert "towers" not in again.provenance
    assert set(noted) == {"mine"}


def test_few_steps_are_warned_of(
    space: EmbeddingSpace, planet: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    align(space, planet, name="mine")
    assert (
        "align mine: only 1 step: 20 samples, batch_size 128, epochs 1; raise epochs or lower "
        "batch_size"
    ) in caplog.messages
    patch(space, planet, alphas=[1.0], epochs=2, batch_size=8)
    assert "patch: only 4 steps: 16 samples, batch_size 8, epochs 2; raise" in caplog.text


class NormNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(pixels))


def test_frozen_batch_norms_without_statistics_are_warned_of(
    space: EmbeddingSpace, planet: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    used = NormNet().train()
    used(torch.randn(8, 4, 16, 16))
    for encoder in (used, Net, None):
        align(space, planet, name="mine", encoder=encoder, **QUICK)
    align(space, planet, name="mine", encoder=NormNet, batch_norm="train", **QUICK)
    assert "batch norms" not in caplog.text
    for encoder in (NormNet, "resnet18"):
        caplog.clear()
        align(space, planet, name="mine", encoder=encoder, **QUICK)
        assert 'set batch_norm = "train"' in caplog.text


def test_a_model_that_is_not_loaded_is_refused(planet: Samples) -> None:
    message = r"space is a text; write ta\.load\('runs/mine'\) first"
    with pytest.raises(ModelError, match=message):
        align("runs/mine", planet, name="mine")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=message):
        patch("runs/mine", planet)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=message):
        evaluate("runs/mine", planet)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="space is a Net, not an EmbeddingSpace"):
        align(Net(), planet, name="mine")  # type: ignore[arg-type]


# Patch


@pytest.fixture(scope="module")
def photos() -> SampleSet:
    return open_synthetic_photos("val", num_samples=12)[:]


def test_a_patched_space_tells_its_alpha_and_curve(
    space: EmbeddingSpace, scenes: SampleSet, photos: SampleSet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = space.space_id
    space.add(align(space, scenes, name="s2", sensors=[S2], **QUICK))
    patched = patch(space, scenes, supported=photos, alphas=[0.5, 1.0], lr=1e-3, **QUICK)
    assert space.space_id == before
    assert [point["alpha"] for point in patched.provenance["curve"]] == [0.0, 0.5, 1.0]
    assert patched.provenance["alpha"] in (0.0, 0.5, 1.0)
    assert patched.provenance["base_id"] == before
    alpha = patched.provenance["alpha"]
    assert patched.source.endswith(
        f", patched (alpha {alpha:g})" if alpha else "unchanged (alpha 0)"
    )
    assert patched.source.startswith(space.source)
    assert (patched.provenance["num_samples"], patched.provenance["num_steps"]) == (19, 3)
    assert (
        f"patch: 3 steps over 19 samples, loss {patched.provenance['first_loss']:.3g}"
        in caplog.text
    )
    assert "patch: 5 of 24 samples of synthetic-scenes are held out" in caplog.text
    assert "the towers s2 belong to the RGB tower of the space that was patched" in caplog.text
    assert patched.tower_names == ("rgb",)
    if patched.space_id != before:
        with pytest.raises(SpaceMismatchError, match="align it again"):
            patched.add(space.towers["s2"])


def test_held_out_samples_are_never_trained_on(
    space: EmbeddingSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 3, 32, 32), np.uint8)
    pixels[10:] = pixels[:10]  # every picture twice
    data = Samples.from_arrays(pixels, sensor="rgb", labels=["a", "b"] * 10, prompts=["{}"])
    seen: dict[str, list[Any]] = {}

    def look(clip: Any, tasks: Any, settings: Any, folder: Any, **given: Any) -> None:
        seen["training"] = [task.samples for task in tasks]
        seen["judging"] = [task.samples for task in given["validation"]]
        raise KeyboardInterrupt

    monkeypatch.setattr("terralign.train.patch.patch", look)
    with pytest.raises(KeyboardInterrupt):
        patch(space, data)
    trained = {one["rgb"].tobytes() for one in seen["training"][0]}
    judged = {one["rgb"].tobytes() for one in seen["judging"][0]}
    assert judged
    assert not trained & judged


def test_mistakes_of_patch_are_named(
    space: EmbeddingSpace, scenes: SampleSet, planet: Samples
) -> None:
    with pytest.raises(RecipeError, match="no setting 'alpha'; did you mean 'alphas'"):
        patch(space, scenes, alpha=0.5)
    with pytest.raises(RecipeError, match="preserve_on is 2 sample sets; give one"):
        patch(space, scenes, preserve_on=[scenes, scenes])  # type: ignore[arg-type]
    for wrong in ("x", -1, 2**70, None):
        with pytest.raises(RecipeError, match=r"seed = .*; expected a whole number"):
            patch(space, scenes, seed=wrong)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="2 validation sets for 1 sets of data"):
        patch(space, scenes, validation=[scenes, scenes])
    with pytest.raises(DataError, match="has no labels"):
        patch(space, Samples.from_arrays(planet.read(np.arange(4))["planet"], sensor=PLANET))


# Evaluate


def test_evaluate_is_the_function_whatever_was_imported_before() -> None:
    code = (
        "import terralign as ta, terralign.evaluation.metrics\n"
        "ta.align\nprint(callable(ta.evaluate), ta.evaluate.__name__)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "evaluate"]


def test_evaluate_is_what_the_command_prints(space: EmbeddingSpace, tmp_path: Path) -> None:
    folder = space.save(tmp_path / "space")
    pack({"val": open_synthetic_scenes("val", num_samples=24)}, tmp_path / "data")
    for options, keywords in (
        ([], {}),
        (["--tower", "rgb", "--prompts", "plain"], {"tower": "rgb", "prompts": "plain"}),
        (["--query", "text"], {"query": "text"}),
        (["--composite", "eurosat"], {"composite": "eurosat"}),
    ):
        arguments = [str(folder), "--data", str(tmp_path / "data"), "--split", "val", "--json"]
        printed = CliRunner().invoke(main, ["evaluate", *arguments, *options])
        assert printed.exit_code == 0, printed.output
        data = Samples.open(tmp_path / "data", split="val")
        found = evaluate(space, data, **keywords)  # type: ignore[arg-type]
        assert json.loads(json.dumps(found.to_json())) == json.loads(printed.stdout)


def test_an_evaluation_is_shown_as_a_table(space: EmbeddingSpace, planet: Samples) -> None:
    found = evaluate(space, planet, class_names=["a field", "a lake"])
    assert isinstance(found, Evaluation)
    lines = repr(found).splitlines()
    assert lines[0] == (
        "planet all, zero-shot, the RGB tower on the true-colour composite of planet, "
        "prompts planet (1 template)"
    )
    assert lines[1].split() == ["metric", "value", "interval", "chance", "samples"]
    top1 = next(one for one in found.result.metrics if one.name == "top1")
    assert lines[2].split()[:2] == ["top1", f"{100 * top1.value:.2f}"]
    assert lines[2].endswith(f"n = {len(planet)}")
    assert "<td>top1</td>" in found._repr_html_()


def test_pictures_are_measured_at_the_towers_size(space: EmbeddingSpace) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 3, 50, 70), np.uint8)
    data = Samples.from_arrays(pixels, sensor="rgb", labels=["a", "b"] * 3, prompts=["{}"])
    size = space.input_spec().size
    small = Samples(data.at_size(size))
    assert small[0]["rgb"].shape == (3, size, size)
    assert evaluate(space, data).to_json() == evaluate(space, small).to_json()
    assert evaluate(space, data[:4]).to_json() == evaluate(space, small[:4]).to_json()


def test_mistakes_of_evaluate_are_named(space: EmbeddingSpace, planet: Samples) -> None:
    with pytest.raises(RecipeError, match="tower is for classification"):
        evaluate(space, planet, tower="rgb", query="text")
    with pytest.raises(RecipeError, match="class_names is for classification"):
        evaluate(space, planet, class_names=["a", "b"], task="retrieval")
    with pytest.raises(RecipeError, match="task = 'zeroshot'; expected"):
        evaluate(space, planet, task="zeroshot")  # type: ignore[arg-type]
