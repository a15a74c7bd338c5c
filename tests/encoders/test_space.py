"""Embedding spaces: saved whole or not at all, loaded as they were, nothing guessed."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fakes import input_spec
from terralign.encoders import space as space_module
from terralign.encoders.clip.load import ClipModel, save_clip
from terralign.encoders.sensor import SensorTower, TowerConfig, inflate
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet
from terralign.errors import (
    DataError,
    ModelError,
    RecipeError,
    SensorError,
    SpaceMismatchError,
    StorageError,
    TerralignError,
)
from terralign.sensors import SENSORS, Sensor, parse_sensor

L2A = SENSORS["sentinel2-l2a"]
BANDS = ("B02", "B03", "B04", "B08")
PROMPTS = PromptSet(name="mine", templates=("{} from above",))


def new_tower(
    clip: ClipModel, name: str = "s2", sensor: Sensor = L2A, bands: tuple[str, ...] = BANDS
) -> SensorTower:
    config = TowerConfig(
        name=name,
        backbone="inflate",
        embed_dim=clip.dim,
        input=input_spec(sensor.name, bands, (0.0, 0.5), mean=0.4, std=0.2),
    )
    composite = sensor.composites[0] if sensor.composites else None
    return inflate(config, clip, composite, others="mean")


@pytest.fixture
def space(tiny_clip: ClipModel) -> EmbeddingSpace:
    made = EmbeddingSpace(tiny_clip, prompts=PROMPTS, provenance={"recipe": "test"})
    made.add(new_tower(tiny_clip))
    return made


@pytest.fixture
def pixels() -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(1, 4000, (3, 4, 32, 32)).astype(np.uint16)


def encode(space: EmbeddingSpace, pixels: Any, **more: Any) -> torch.Tensor:
    return space.encode_image(pixels, L2A.name, BANDS, units="dn", dn_offset=0, **more)


# Saving and loading


def test_a_saved_space_gives_the_same_vectors_bit_for_bit(
    space: EmbeddingSpace,
    pixels: NDArray[np.uint16],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space.save(tmp_path / "model")

    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("a space loads without a network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    loaded = EmbeddingSpace.load(tmp_path / "model")
    assert loaded.space_id == space.space_id
    assert loaded.tower_names == (RGB, "s2")
    assert loaded.tower_id("s2") == space.tower_id("s2")
    assert loaded.input_spec("s2") == space.input_spec("s2")
    assert (loaded.prompts, loaded.provenance) == (PROMPTS, {"recipe": "test"})
    for tower in space.tower_names:
        assert torch.equal(encode(loaded, pixels, tower=tower), encode(space, pixels, tower=tower))
    assert torch.equal(loaded.encode_text(["a lake"]), space.encode_text(["a lake"]))
    assert not any(one.training for one in (loaded.clip.model, loaded.towers["s2"]))


def test_an_open_clip_folder_is_a_space_of_text_and_rgb(
    tiny_clip: ClipModel, space: EmbeddingSpace, tmp_path: Path
) -> None:
    save_clip(tiny_clip, tmp_path)
    plain = EmbeddingSpace.load(tmp_path)
    assert plain.tower_names == (RGB,)
    assert plain.space_id == space.space_id


def test_adding_a_tower_keeps_the_space_and_retraining_changes_the_tower(
    space: EmbeddingSpace, tiny_clip: ClipModel
) -> None:
    anchor, first = space.space_id, space.tower_id("s2")
    space.add(new_tower(tiny_clip, "visible", bands=BANDS[:3]))
    assert (space.clip.anchor_id(), space.tower_id("s2")) == (anchor, first)
    assert space.tower_id(RGB) == anchor
    retrained = new_tower(tiny_clip)
    with torch.no_grad():
        next(retrained.parameters()).add_(0.01)
    space.add(retrained)
    assert space.tower_id("s2") != first
    assert space.clip.anchor_id() == anchor


def test_a_tower_that_does_not_belong_is_refused(
    space: EmbeddingSpace, tiny_clip: ClipModel
) -> None:
    tower = new_tower(tiny_clip)
    tower.config = tower.config.model_copy(update={"embed_dim": 16})
    with pytest.raises(SpaceMismatchError, match="embeds into 16 dimensions, the space has 32"):
        space.add(tower)
    with pytest.raises(ModelError, match="give a new tower another name"):
        space.add(new_tower(tiny_clip, RGB))
    with pytest.raises(ModelError, match="has no tower 's1'; known: rgb, s2"):
        space.input_spec("s1")


def _change_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "name", ["open_clip_model.safetensors", "open_clip_config.json", "towers/s2.safetensors"]
)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_change_byte, "was changed or truncated"),
        (_truncate, "was changed or truncated"),
        (Path.unlink, "lacks .*copy the whole folder again"),
    ],
)
def test_a_damaged_space_is_refused(
    space: EmbeddingSpace, tmp_path: Path, name: str, damage: Callable[[Path], None], said: str
) -> None:
    space.save(tmp_path / "model")
    damage(tmp_path / "model" / name)
    with pytest.raises(ModelError, match=said) as told:
        EmbeddingSpace.load(tmp_path / "model")
    assert name.split("/")[-1] in str(told.value)


def _edit(values: Any, *keys: Any, to: Any) -> None:
    for key in keys[:-1]:
        values = values[key]
    values[keys[-1]] = to


@pytest.mark.parametrize(
    ("keys", "to", "said"),
    [
        (("format",), 2, "has space format 2; this terralign reads 1"),
        (("files", "../outside"), {"sha256": "", "bytes": 1}, "points outside the space"),
        (("files", "/etc/passwd"), {"sha256": "", "bytes": 1}, "points outside the space"),
        (("files", "a/../../b"), {"sha256": "", "bytes": 1}, "points outside the space"),
        (("files",), {}, "has no weights listed"),
        (("files",), [], "is not a space"),
        (("files",), None, "is not a space"),
        (("towers",), None, "is not a space"),
        (("towers", 0, "name"), "../s2", "is not a space"),
        (("towers", 0, "surprise"), 1, "is not a space"),
        (("towers", 0, "input", "mean"), [0.4, 0.4, 0.4, 0.41], "tower 's2' is not"),
        (("towers", 0, "input", "bands"), ["B04", "B03", "B02", "B08"], "tower 's2' is not"),
        (("towers", 0, "backbone"), "resnet10t", "does not fit its architecture"),
        (("space_id",), "0" * 16, "are not those of space 0000"),
        (("provenance",), "text", "is not a space"),
    ],
)
def test_a_space_file_that_was_tampered_with_is_refused(
    space: EmbeddingSpace, tmp_path: Path, keys: tuple[Any, ...], to: Any, said: str
) -> None:
    path = space.save(tmp_path / "model") / "space.json"
    values = json.loads(path.read_text())
    _edit(values, *keys, to=to)
    path.write_text(json.dumps(values))
    with pytest.raises(TerralignError, match=said) as told:
        EmbeddingSpace.load(tmp_path / "model")
    assert "\n" not in str(told.value)


def test_an_existing_folder_is_refused(space: EmbeddingSpace, tmp_path: Path) -> None:
    space.save(tmp_path / "model")
    with pytest.raises(StorageError, match="exists; choose another folder or pass overwrite"):
        space.save(tmp_path / "model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match="exists"):
        space.save(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_overwriting_replaces_the_old_space(
    space: EmbeddingSpace, tiny_clip: ClipModel, tmp_path: Path
) -> None:
    space.save(tmp_path / "model")
    EmbeddingSpace(tiny_clip).save(tmp_path / "model", overwrite=True)
    assert EmbeddingSpace.load(tmp_path / "model").tower_names == (RGB,)
    assert not (tmp_path / "model" / "towers").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_nothing_and_the_old_space_intact(
    space: EmbeddingSpace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
) -> None:
    space.save(tmp_path / "model")

    def fail(*_: Any, **__: Any) -> None:
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr(space_module, "write_state_dict", fail)  # after the CLIP was written
        expected = StorageError if isinstance(fault, OSError) else KeyboardInterrupt
        with pytest.raises(expected):
            space.save(tmp_path / "other")
        with pytest.raises(expected):
            space.save(tmp_path / "model", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert EmbeddingSpace.load(tmp_path / "model").space_id == space.space_id


def test_a_save_that_cannot_be_put_in_place_puts_the_old_space_back(
    space: EmbeddingSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space.save(tmp_path / "model")
    replace = space_module.os.replace

    def fail_on_the_new_one(source: Any, target: Any) -> None:
        if str(source).endswith(".partial") and Path(source).is_dir():
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(space_module.os, "replace", fail_on_the_new_one)
    with pytest.raises(StorageError, match="Input/output error"):
        space.save(tmp_path / "model", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert EmbeddingSpace.load(tmp_path / "model").tower_names == (RGB, "s2")


def test_a_user_defined_sensor_travels_with_its_tower(
    space: EmbeddingSpace, tiny_clip: ClipModel, tmp_path: Path
) -> None:
    values = {
        "name": "drone",
        "bands": [{"name": "nir", "center_nm": 840.0}, {"name": "swir", "center_nm": 1600.0}],
        "unit": "reflectance",
        "dn_scale": 1e-3,
    }
    space.add(
        new_tower(tiny_clip, "drone", parse_sensor(values), ("nir", "swir")), [parse_sensor(values)]
    )
    space.save(tmp_path / "model")
    loaded = EmbeddingSpace.load(tmp_path / "model")
    numbers = np.random.default_rng(1).integers(0, 500, (2, 2, 32, 32)).astype(np.int16)
    vectors = loaded.encode_image(numbers, "drone", units="dn")
    assert torch.equal(vectors, space.encode_image(numbers, "drone", units="dn"))
    with pytest.raises(SensorError, match="unknown sensor 'drome'; did you mean 'drone'"):
        loaded.encode_image(numbers, "drome", units="dn")


@pytest.mark.parametrize("kind", ["space", "open_clip"])
def test_loading_leaves_torch_and_logging_as_they_were(
    space: EmbeddingSpace, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    if kind == "space":
        space.save(tmp_path / "model")
    else:
        save_clip(space.clip, tmp_path / "model")
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        loaded = EmbeddingSpace.load(tmp_path / "model")
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_default_device() == torch.device("meta")
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(3), expected)
    assert logging.getLogger().handlers == []
    assert loaded.space_id == space.space_id
    modules = [loaded.clip.model, *loaded.towers.values()]
    kinds = {value.dtype for module in modules for value in module.parameters()}
    assert kinds == {torch.float32}


@pytest.mark.parametrize("device", ["meta", "gpu", None, torch.float16])
def test_a_device_that_cannot_compute_is_refused(space: EmbeddingSpace, device: Any) -> None:
    with pytest.raises(RecipeError, match=r"cannot compute on device .*; try cpu, cuda or cuda:1"):
        space.to(device)
    assert space.device == torch.device("cpu")
    assert space.to(torch.device("cpu")) is space


# Encoding


def test_vectors_are_normalised_and_do_not_depend_on_the_batch_size(
    space: EmbeddingSpace, pixels: NDArray[np.uint16]
) -> None:
    vectors = encode(space, pixels)
    assert (vectors.shape, vectors.dtype) == ((3, 32), torch.float32)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(encode(space, pixels, batch_size=2), vectors)
    raw = encode(space, pixels, normalize=False)
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=1), vectors)


def test_one_chip_tensors_and_odd_arrays_are_taken(
    space: EmbeddingSpace, pixels: NDArray[np.uint16]
) -> None:
    vectors = encode(space, pixels)
    torch.testing.assert_close(encode(space, pixels[0]), vectors[:1])
    torch.testing.assert_close(encode(space, torch.from_numpy(pixels)), vectors)
    read_only = pixels.copy()
    read_only.flags.writeable = False
    torch.testing.assert_close(encode(space, read_only), vectors)
    flipped = np.ascontiguousarray(pixels[..., ::-1])[..., ::-1]
    torch.testing.assert_close(encode(space, flipped), vectors)
    assert encode(space, pixels[:0]).shape == (0, 32)


def test_arrays_of_other_libraries_are_taken(
    space: EmbeddingSpace, pixels: NDArray[np.uint16]
) -> None:
    class DataArray:  # as xarray's, zarr's and dask's
        dtype, ndim, shape = pixels.dtype, pixels.ndim, pixels.shape

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
            return pixels

        def __iter__(self) -> Any:
            raise AssertionError("it is one array, not a list of some")

    torch.testing.assert_close(encode(space, DataArray()), encode(space, pixels))
    declared: Any = {"sensor": L2A, "bands": BANDS, "dn_offset": 0}
    assert space.embed(DataArray(), **declared).keys == ("0", "1", "2")
    assert space.embed([DataArray(), pixels[0]], **declared).keys == ("0-0", "0-1", "0-2", "1")


@pytest.mark.parametrize("number", [0, -1, 2.5, "8", None, True])
def test_what_is_no_count_is_refused(
    space: EmbeddingSpace, pixels: NDArray[np.uint16], number: Any
) -> None:
    message = "must be a whole number, 1 or more, not"
    with pytest.raises(DataError, match=f"batch_size {message}"):
        encode(space, pixels, batch_size=number)
    vectors = space.embed(pixels, sensor=L2A, bands=BANDS, dn_offset=0)
    with pytest.raises(DataError, match=f"k {message}"):
        space.search(vectors, "a lake", k=number)
    assert len(encode(space, pixels, batch_size=np.int64(2))) == 3


def test_an_open_file_is_refused_by_its_kind(space: EmbeddingSpace, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\nlines of a file are no inputs")
    with (
        open(tmp_path / "a.png", "rb") as opened,
        pytest.raises(DataError, match="cannot embed a BufferedReader; give a path"),
    ):
        space.embed(opened)


def test_band_order_and_spelling_do_not_matter(
    space: EmbeddingSpace, pixels: NDArray[np.uint16]
) -> None:
    shuffled = space.encode_image(
        pixels[:, [3, 1, 0, 2]], L2A.name, ["nir", "B3", "b02", "red"], units="dn", dn_offset=0
    )
    torch.testing.assert_close(shuffled, encode(space, pixels))


def test_dn_and_physical_units_agree(space: EmbeddingSpace, pixels: NDArray[np.uint16]) -> None:
    shifted = space.encode_image(pixels + 1000, L2A.name, BANDS, units="dn", dn_offset=-1000)
    physical = space.encode_image(pixels * 1e-4, L2A.name, BANDS, units="physical")
    torch.testing.assert_close(shifted, encode(space, pixels), atol=1e-5, rtol=0)
    torch.testing.assert_close(physical, encode(space, pixels), atol=1e-5, rtol=0)


def test_nothing_about_the_pixels_is_guessed(
    space: EmbeddingSpace, pixels: NDArray[np.uint16]
) -> None:
    with pytest.raises(SensorError, match=r"need their sensor; only a Chip knows"):
        space.encode_image(pixels)
    with pytest.raises(DataError, match="Declare units='dn' or units='physical'"):
        space.encode_image(pixels / 10_000, L2A.name, BANDS)
    with pytest.raises(SensorError, match="units must be"):
        space.encode_image(pixels, L2A.name, BANDS, units="DN")  # type: ignore[arg-type]
    with pytest.raises(SensorError, match="DN of 'sentinel2-l2a' need dn_offset"):
        space.encode_image(pixels, L2A.name, BANDS, units="dn")
    with pytest.raises(SensorError, match="dn_offset has no effect on physical"):
        space.encode_image(pixels, L2A.name, BANDS, units="physical", dn_offset=-1000)
    with pytest.raises(SensorError, match="pixels have 4 channels, but 12 bands"):
        space.encode_image(pixels, L2A.name, units="physical")
    with pytest.raises(SensorError, match="unknown band 'B99'"):
        space.encode_image(pixels, L2A.name, ["B99", *BANDS[1:]], units="physical")
    with pytest.raises(DataError, match=r"expected \(C, H, W\) for one chip"):
        encode(space, pixels[0, 0])
    with pytest.raises(SensorError, match="unknown composite 'nice'"):
        encode(space, pixels, composite="nice")


def test_the_tower_of_the_sensor_is_the_default_and_rgb_the_fallback(
    space: EmbeddingSpace, pixels: NDArray[np.uint16]
) -> None:
    assert torch.equal(encode(space, pixels), encode(space, pixels, tower="s2"))
    assert not torch.allclose(encode(space, pixels), encode(space, pixels, tower=RGB))
    without_nir = space.encode_image(pixels[:, :3], L2A.name, BANDS[:3], units="dn", dn_offset=0)
    assert torch.equal(without_nir, encode(space, pixels, tower=RGB))
    with pytest.raises(SensorError, match="makes no RGB"):
        space.encode_image(np.full((1, 2, 32, 32), -9.0), "sentinel1-grd", units="physical")
    with pytest.raises(SensorError, match="tower takes sentinel2-l2a"):
        space.encode_image(
            np.full((1, 2, 32, 32), -9.0), "sentinel1-grd", units="physical", tower="s2"
        )


def test_the_composite_can_be_chosen(space: EmbeddingSpace, pixels: NDArray[np.uint16]) -> None:
    default = encode(space, pixels, tower=RGB)
    eurosat = encode(space, pixels, tower=RGB, composite="eurosat")
    assert not torch.allclose(default, eurosat)
    levels = (pixels[:, [2, 1, 0]] / 2750).clip(0, 1)
    by_hand = space.encode_image(levels, "rgb", units="physical")
    torch.testing.assert_close(eurosat, by_hand, atol=1e-5, rtol=0)


def test_texts_come_in_any_iterable(space: EmbeddingSpace) -> None:
    expected = space.encode_text(["a lake", "a field"])
    names = ("a lake", "a field")
    for texts in (np.array(names), names, dict.fromkeys(names)):
        assert torch.equal(space.encode_text(texts), expected)
        assert torch.equal(space.encode_text(iter(texts)), expected)
    for nothing in ([], None, 3, [None]):
        with pytest.raises(RecipeError, match="list of at least one string"):
            space.encode_text(nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", [None, 3, b"starter"])
def test_what_names_no_model_is_refused(source: Any) -> None:
    with pytest.raises(ModelError, match="not the name or folder of a model"):
        EmbeddingSpace.load(source)


def test_one_text_is_a_list_of_one(space: EmbeddingSpace) -> None:
    assert torch.equal(space.encode_text("a lake"), space.encode_text(["a lake"]))


# Classifying


def test_zero_shot_weights_belong_to_their_caller(space: EmbeddingSpace) -> None:
    with torch.inference_mode():
        first = space.zero_shot_weights(["a lake", "a field"])
        kept = first.clone()
        first.zero_()
    again = space.zero_shot_weights(["a lake", "a field"])
    assert torch.equal(again, kept)
    assert not again.is_inference()
    again.zero_()
    assert torch.equal(space.zero_shot_weights(["a lake", "a field"]), kept)


def test_probabilities_are_the_softmax_of_scaled_cosines(
    space: EmbeddingSpace, pixels: NDArray[np.uint16]
) -> None:
    labels = ["forest", "river", "sea"]
    how: dict[str, Any] = {"sensor": L2A.name, "bands": BANDS, "units": "dn", "dn_offset": 0}
    found = space.classify(pixels, labels, **how)
    probabilities = torch.from_numpy(np.asarray(found))
    assert probabilities.shape == (3, 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))
    cosines = encode(space, pixels) @ space.encode_text([f"{one} from above" for one in labels]).T
    expected = (space.clip.logit_scale * cosines).softmax(1)
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)
    other = space.classify(pixels, labels, prompts="photo", **how)
    assert not np.allclose(other, found)


# What has no data, or is no number, is not passed over


def test_the_mask_of_a_masked_array_counts(
    space: EmbeddingSpace, pixels: NDArray[np.uint16]
) -> None:
    mask = np.zeros(pixels.shape, dtype=bool)
    mask[:, :, :16] = True
    holed = np.where(mask, np.nan, pixels)
    masked = encode(space, np.ma.masked_array(pixels, mask=mask))
    torch.testing.assert_close(masked, encode(space, holed))
    assert not torch.allclose(masked, encode(space, pixels), atol=1e-3)


def test_masked_whole_numbers_are_dn_as_others_are(
    space: EmbeddingSpace, pixels: NDArray[np.uint16]
) -> None:
    masked = np.ma.masked_array(pixels, mask=np.broadcast_to(np.arange(32) < 8, pixels.shape))
    found = space.embed(masked, sensor=L2A, bands=BANDS, dn_offset=0.0)
    expected = space.embed(masked.filled(0), sensor=L2A, bands=BANDS, dn_offset=0.0)
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-6)


def test_a_chip_without_a_valid_pixel_is_refused(
    space: EmbeddingSpace, pixels: NDArray[np.uint16]
) -> None:
    pixels[1] = 0
    with pytest.raises(DataError, match="chip 1 has no valid pixel"):
        encode(space, pixels)
    pixels[1] = 500
    pixels[2, 0] = 0  # B02, without which no pixel of a composite is whole
    assert encode(space, pixels, tower="s2").shape == (3, space.dim)
    with pytest.raises(DataError, match="chip 2 has no valid pixel"):
        encode(space, pixels, tower=RGB)


def test_arrays_of_any_byte_order_are_the_same(
    space: EmbeddingSpace, pixels: NDArray[np.uint16]
) -> None:
    torch.testing.assert_close(encode(space, pixels.astype(">u2")), encode(space, pixels))


@pytest.mark.parametrize("dtype", [bool, np.complex64, object])
def test_what_is_no_number_is_refused(
    space: EmbeddingSpace, pixels: NDArray[np.uint16], dtype: Any
) -> None:
    with pytest.raises(DataError, match="expected whole or floating-point numbers"):
        encode(space, pixels.astype(dtype))


def test_lists_are_refused(space: EmbeddingSpace, pixels: NDArray[np.uint16]) -> None:
    with pytest.raises(DataError, match="cannot embed a list"):
        encode(space, pixels.tolist())


def test_one_chip_of_other_numbers_in_a_batch_is_refused(
    space: EmbeddingSpace, pixels: NDArray[np.uint16]
) -> None:
    mixed = pixels.astype(np.float32)
    mixed[1] /= 10_000
    with pytest.raises(DataError, match="chip 1: fractions"):
        encode(space, mixed)


def test_labels_of_classify_are_checked(
    space: EmbeddingSpace, pixels: NDArray[np.uint16], caplog: pytest.LogCaptureFixture
) -> None:
    def classify(labels: Any) -> NDArray[np.float32]:
        found = space.classify(
            pixels, labels, sensor=L2A.name, bands=BANDS, units="dn", dn_offset=0
        )
        return np.asarray(found)

    for labels, reason in (
        (["forest", "river", "forest"], "'forest' is given more than once"),
        (["forest", "forest "], "is given more than once"),
        ([1, 2], "label 1 is no text"),
        ("forest,river", "one text"),
        (["forest"], "at least two"),
    ):
        with pytest.raises(DataError, match=reason):
            classify(labels)
    assert not caplog.records
    assert classify(name for name in ("forest", "river")).shape == (3, 2)
    classify(["River", "river"])
    assert "the same text but for case and spaces" in caplog.text
