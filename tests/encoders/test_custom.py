"""A custom encoder: built by its user, saved with its weights, loaded again by a function."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from terralign.chips import make_layout
from terralign.cli.info import about
from terralign.datasets.synthetic import SyntheticSet, open_synthetic_scenes
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.custom import make_encoder, measure_width
from terralign.encoders.sensor import SensorTower
from terralign.encoders.space import EmbeddingSpace, load
from terralign.errors import DataError, ModelError, SpaceMismatchError
from terralign.runs.recipe import AlignRecipe
from terralign.sensors import SENSORS
from terralign.train.student import StudentSettings, new_student

S2 = SENSORS["sentinel2-l2a"]


class Net(nn.Module):
    """A small encoder of `features` features; `act` and `kernel` make others of it."""

    def __init__(self, features: int = 24, act: type[nn.Module] = nn.ReLU, kernel: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(12, 8, kernel, stride=4, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(8)
        self.act = act()
        self.last = nn.Linear(8, features)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.last(self.act(self.norm(self.first(pixels))).mean((2, 3)))
        return features


@pytest.fixture(scope="module")
def scenes() -> SyntheticSet:
    return open_synthetic_scenes("train", num_samples=12)


def custom_tower(
    clip: ClipModel, scenes: SyntheticSet, encoder: Any = None, **settings: Any
) -> SensorTower:
    encoder = encoder or Net()
    student = StudentSettings(backbone="custom", **settings)
    return new_student("mine", clip, student, [S2], [scenes], seed=0, encoder=encoder)[0]


@pytest.fixture
def saved(tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    space = EmbeddingSpace(tiny_clip)
    space.add(custom_tower(tiny_clip, scenes))
    return space.save(tmp_path / "space")


def embed(space: EmbeddingSpace, scenes: SyntheticSet) -> Tensor:
    pixels = torch.from_numpy(scenes.read(np.arange(4))[S2.name])
    layout = make_layout(S2, S2.band_names, units="dn", dn_offset=0.0)
    return space.encode_layout(pixels, layout, tower="mine")


@pytest.mark.parametrize("features", [24, 32])
def test_features_of_another_number_than_d_are_projected(
    tiny_clip: ClipModel, scenes: SyntheticSet, features: int
) -> None:
    tower = custom_tower(tiny_clip, scenes, Net(features))
    assert tower.config.width == (None if features == tiny_clip.dim else features)
    assert isinstance(tower.projection, nn.Identity) == (features == tiny_clip.dim)
    size = tiny_clip.input_spec.size
    assert tower(torch.zeros(3, 12, size, size)).shape == (3, tiny_clip.dim)
    again = custom_tower(tiny_clip, scenes, tower.backbone)
    assert again.tower_id() == tower.tower_id()


def test_a_users_module_is_copied(tiny_clip: ClipModel, scenes: SyntheticSet) -> None:
    module = Net()
    tower = custom_tower(tiny_clip, scenes, module)
    assert tower.backbone is not module
    with torch.no_grad():
        tower.backbone.last.weight.zero_()  # type: ignore[union-attr,operator]
    assert bool(module.last.weight.any())


@pytest.mark.parametrize("encoder", [Net, lambda: Net(), Net()])
def test_a_space_is_loaded_with_the_encoder_that_it_was_made_with(
    saved: Path, tiny_clip: ClipModel, scenes: SyntheticSet, encoder: Any
) -> None:
    torch.manual_seed(1)
    before = EmbeddingSpace(tiny_clip)
    before.add(custom_tower(tiny_clip, scenes))
    space = load(saved, encoders={"mine": encoder})
    assert space.tower_id("mine") == before.tower_id("mine")
    assert torch.equal(embed(space, scenes), embed(before, scenes))
    again = load(
        space.save(saved.parent / "again"), encoders={"mine": Net}
    )  # a loaded one is saved and loaded again
    assert again.tower_id("mine") == space.tower_id("mine")


def test_without_its_encoder_the_error_says_what_it_was(saved: Path) -> None:
    with pytest.raises(
        ModelError,
        match=r"tower 'mine' of .* was made with a custom encoder \(Net, 12 bands B01.*32 px\); "
        r"pass encoders=\{'mine': function that builds it\} to load it, or skip_custom=True",
    ):
        load(saved)
    space = load(saved, skip_custom=True)
    assert space.tower_names == ("rgb",)
    assert [one.name for one in space.skipped] == ["mine"]


def test_info_lists_a_tower_whose_encoder_is_not_there(saved: Path) -> None:
    entry = about(str(saved))["towers"]["mine"]
    assert entry["custom encoder"].startswith("Net, 12 bands B01, ")
    assert entry["sensors"] == [S2.name]


WRONG: list[tuple[Any, str]] = [
    (lambda: Net(25), "gives 25 features, the saved encoder .* gave 24"),
    (lambda: Net(kernel=5), r"is not the encoder that was saved \(Net.*backbone\.first\.weight"),
    (lambda: nn.Sequential(Net()), "is not the encoder that was saved .*missing keys"),
    (lambda: Net(act=nn.SiLU), "takes the saved weights but does not compute what the saved"),
    (lambda: nn.Linear(3, 4), "fails on pixels of shape .*; it must take"),
    (lambda: 1 / 0, r"cannot be built by calling it without arguments \(ZeroDivisionError"),
    (lambda: "net", "gave a str, not an nn.Module"),
    ("Net", "is a str; give an nn.Module, or a function that builds it"),
]


@pytest.mark.parametrize(("encoder", "message"), WRONG)
def test_a_wrong_encoder_is_refused(saved: Path, encoder: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        load(saved, encoders={"mine": encoder})
    assert "encoders['mine']" in str(error.value)


def test_encoders_are_only_for_custom_towers(saved: Path, tiny_clip: ClipModel) -> None:
    with pytest.raises(ModelError, match=r"encoders names 'min'; .* has custom encoders for"):
        load(saved, encoders={"min": Net})
    plain = EmbeddingSpace(tiny_clip).save(saved.parent / "plain")
    with pytest.raises(ModelError, match="no tower with a custom encoder"):
        load(plain, encoders={"mine": Net})


def test_one_encoder_instead_of_a_mapping_is_refused(saved: Path) -> None:
    for encoder, word in ((Net, "Net"), (Net(), "my_module"), (lambda: Net(), "my_module")):
        message = (
            rf"encoders is a mapping from tower name to encoder: encoders=\{{'mine': {word}\}}"
        )
        with pytest.raises(ModelError, match=message):
            load(saved, encoders=encoder)  # type: ignore[arg-type]


def test_a_tower_is_shown_in_one_line(tiny_clip: ClipModel, scenes: SyntheticSet) -> None:
    tower = custom_tower(tiny_clip, scenes, bands=("B02", "B03", "B04"), encoder=Three())
    assert repr(tower) == (
        "SensorTower('mine': Three; sentinel2-l2a; 3 bands B02 B03 B04; 32 px; "
        f"id {tower.tower_id()})"
    )
    with torch.device("meta"):
        tower = tower.to_empty(device="meta")
    assert repr(tower).endswith("32 px)")


class Three(nn.Module):
    """The means of three bands."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3)) * self.scale


def test_of_two_towers_for_one_sensor_the_first_is_used_and_named(
    tiny_clip: ClipModel, scenes: SyntheticSet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    space = EmbeddingSpace(tiny_clip)
    layout = make_layout(S2, S2.band_names, units="dn", dn_offset=0.0)
    for name in ("one", "two"):
        student = StudentSettings(backbone="custom")
        space.add(new_student(name, tiny_clip, student, [S2], [scenes], seed=0, encoder=Net())[0])
        assert [space.tower_for(layout) for _ in range(2)] == ["one", "one"]
    said = [text for text in caplog.messages if "is used" in text]
    assert said == [
        "the towers one, two take sentinel2-l2a; one, the first, is used (tower= names another)"
    ]


def test_nothing_is_imported_by_the_name_in_the_file(saved: Path) -> None:
    path = saved / "space.json"
    values = json.loads(path.read_text())
    values["towers"][0]["encoder"] = "os.system"
    path.write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"custom encoder \(os\.system, 12 bands"):
        load(saved)
    with pytest.raises(ModelError, match=r"is not .* as space.json says"):
        load(saved, encoders={"mine": Net})


BAD: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda pixels: pixels, r"gives \(2, 12, 8, 8\) of torch.float32"),
    (lambda pixels: pixels.mean((0, 2, 3)), r"gives \(12,\)"),
    (lambda pixels: {"features": pixels}, "gives a dict, not a tensor"),
    (lambda pixels: pixels.mean((2, 3)).half(), r"gives \(2, 12\) of torch\.float16"),
    (lambda pixels: pixels.mean((2, 3)).double(), r"gives \(2, 12\) of torch\.float64"),
    (lambda pixels: pixels.mean((2, 3))[:2], r"gives \(2, 12\) .* for pixels of shape \(3, 12,"),
    (lambda pixels: pixels.mean((2, 3))[:, :0], r"gives \(2, 0\), no feature"),
    (lambda pixels: pixels.mean((2, 3)).long(), r"gives \(2, 12\) of torch\.int64"),
    (lambda pixels: pixels.reshape(7), r"fails on .* \(2, 12, 8, 8\) in eval mode \(Runtime"),
]


@pytest.mark.parametrize(("forward", "message"), BAD)
def test_an_encoder_gives_one_vector_per_sample(
    forward: Callable[[Tensor], Any], message: str
) -> None:
    module = nn.Module()
    module.forward = forward  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=f"encoder Mine {message}") as error:
        measure_width(module, num_bands=12, size=8, what="encoder Mine")
    assert "it must take (B, 12, 8, 8) float32 and give (B, features) float32" in str(error.value)


class Head(nn.Module):
    """The bands' means and a linear layer, and what `change` makes of them."""

    def __init__(self, change: Callable[[Head, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 6)
        self.change = change
        self.num_calls = 0

    def forward(self, pixels: Tensor) -> Any:
        return self.change(self, pixels, self.last(self.norm(pixels.mean((2, 3)))))


def fail(*_: Any) -> None:
    raise KeyError("one line\nand another")


def count(head: Head, _: Tensor, found: Tensor) -> Tensor:
    head.num_calls += 1
    return found * head.num_calls


UNFIT: list[tuple[Callable[[Head, Tensor, Tensor], Any], str]] = [
    (lambda head, _, out: (out, out) if head.training else out, "gives a tuple, .* in train mode"),
    (lambda head, _, out: out[:, : 4 if head.training else 6], "gives 4 features .* but 6 before"),
    (lambda head, _, out: fail() if head.training else out, r"in train mode \(KeyError: .one line"),
    (lambda _, pixels, out: pixels.mul_(2).mean() + out, "changes its input in place"),
    (lambda _, pixels, out: torch.relu_(pixels).mean() + out, "changes its input in place"),
    (lambda _, pixels, out: out * torch.rand(()), "other features for the same pixels each time"),
    (count, "other features for the same pixels each time"),
    (lambda *given: given[-1].detach(), "cannot be trained: no gradient reaches any"),
    (lambda _, pixels, out: torch.tensor(out.tolist()), "cannot be trained: no gradient reaches"),
    (lambda _, pixels, out: out.exp_().mul_(out), "fails in the backward pass"),
]


@pytest.mark.parametrize(("change", "message"), UNFIT)
def test_an_encoder_that_training_would_stumble_over_is_refused(
    change: Callable[[Head, Tensor, Tensor], Any], message: str
) -> None:
    with pytest.raises(ModelError, match=f"^encoder Head .*{message}") as error:
        measure_width(Head(change), num_bands=4, size=8, what="encoder Head")
    assert "\n" not in str(error.value)


def test_an_encoder_that_is_only_loaded_need_not_be_trainable() -> None:
    loaded = Head(lambda head, _, out: fail() if head.training else out.detach())
    assert measure_width(loaded, num_bands=4, size=8, what="encoder", trained=False) == 6


def test_one_output_for_all_pixels_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    constant = Head(lambda head, _, out: out * 0 + head.last.bias)
    assert measure_width(constant, num_bands=4, size=8, what="encoder Head") == 6
    assert "encoder Head gives the same features for different pixels" in caplog.text
    caplog.clear()
    measure_width(Head(lambda *given: given[-1]), num_bands=4, size=8, what="encoder Head")
    assert not caplog.text


def test_lazy_layers_are_made_as_they_are_tried() -> None:
    module = nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.Identity().eval())
    assert measure_width(module, num_bands=3, size=4, what="encoder") == 5
    assert module[1].weight.shape == (5, 48)
    assert [one.training for one in module] == [True, True, False]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", [torch.nn.utils.parametrizations.weight_norm, torch.jit.script])
def test_layers_with_computed_weights_and_scripted_ones_are_taken(wrap: Any) -> None:
    module = nn.Sequential(wrap(nn.Conv2d(4, 5, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for encoder in (module, lambda: module):
        made = make_encoder(encoder, what="encoder")
        assert measure_width(made, num_bands=4, size=8, what="encoder") == 5


def test_gradients_from_before_are_not_taken_for_new_ones() -> None:
    module = Head(lambda *given: given[-1].detach())
    module.last.weight.grad = torch.ones(6, 4)
    with pytest.raises(ModelError, match="cannot be trained"):
        measure_width(module, num_bands=4, size=8, what="encoder")


class Locked(Net):
    """A module that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_a_module_that_cannot_be_copied_is_built_by_a_function() -> None:
    with pytest.raises(ModelError, match=r"^encoder cannot be copied \(TypeError.*give a function"):
        make_encoder(Locked(), what="encoder")
    assert_left_as_it_is(make_encoder(Locked, what="encoder"))


def test_whole_numbers_cannot_be_trained() -> None:
    module = Head(lambda *given: given[-1])
    module.table = nn.Parameter(torch.arange(3), requires_grad=False)
    with pytest.raises(ModelError, match=r"cannot be trained: its parameter table is torch\.int64"):
        measure_width(module, num_bands=4, size=8, what="encoder Head")


def test_trying_an_encoder_leaves_its_mode_and_statistics() -> None:
    assert_left_as_it_is(make_encoder(Net, what="encoder"))


def assert_left_as_it_is(module: nn.Module) -> None:
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = torch.get_rng_state()
    for training in (True, False):
        module.train(training)
        module.first.requires_grad_(training)  # type: ignore[union-attr,operator]
        assert measure_width(module, num_bands=12, size=8, what="encoder") == 24
        assert all(one.training == training for one in module.modules())
        assert all(one.grad is None for one in module.parameters())
        assert module.first.weight.requires_grad == training  # type: ignore[union-attr]
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_space_takes_no_tower_of_another_space_or_with_broken_weights(
    tiny_clip: ClipModel, norm_clip: ClipModel, scenes: SyntheticSet
) -> None:
    tower = custom_tower(tiny_clip, scenes)
    with pytest.raises(SpaceMismatchError, match=r"'mine' was aligned to .*align it again"):
        EmbeddingSpace(norm_clip).add(tower)
    with torch.no_grad():
        tower.backbone.last.bias[0] = torch.nan  # type: ignore[index,union-attr]
    with pytest.raises(ModelError, match=r"'mine': backbone\.last\.bias holds numbers"):
        EmbeddingSpace(tiny_clip).add(tower)


def test_a_recipe_cannot_hold_a_custom_encoder() -> None:
    with pytest.raises(ValueError, match=r"given in Python \(terralign\.align\)"):
        AlignRecipe(
            name="mine", sensors=(S2.name,), data=({"data": "x"},), student={"backbone": "custom"}
        )
    with pytest.raises(ValueError, match="leave out initial and drop_path"):
        StudentSettings(backbone="custom", drop_path=0.1)


@pytest.mark.parametrize("kind", [np.float64, torch.float64, torch.bfloat16])
def test_undeclared_fractions_are_named_by_their_own_type(tiny_clip: ClipModel, kind: Any) -> None:
    shape = (1, 12, 8, 8)
    pixels = np.zeros(shape, kind) if kind is np.float64 else torch.zeros(shape, dtype=kind)
    name = "bfloat16" if kind == torch.bfloat16 else "float64"
    with pytest.raises(DataError, match=f"pixels are {name}: digital numbers or reflectance"):
        EmbeddingSpace(tiny_clip).encode_image(pixels, sensor=S2.name)
