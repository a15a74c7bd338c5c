"""Weights from strangers: read without executing anything, refused in one line, named by hash."""

from __future__ import annotations

import argparse
import copy
import io
import logging
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from terralign.encoders.clip import weights
from terralign.encoders.clip.weights import (
    check_shapes,
    fit_names,
    fit_scalars,
    hash_module,
    hash_state,
    load_weights,
    read_checkpoint,
    read_shapes,
    read_state_dict,
    write_state_dict,
)
from terralign.errors import ModelError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor(1.5)}


class Bomb:
    """Whoever unpickles it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("written", ["torch archive", "protocol 2", "protocol 4"])
def test_a_pickle_bomb_is_refused_and_never_executed(tmp_path: Path, written: str) -> None:
    path, trace = tmp_path / "bomb.pt", tmp_path / "executed"
    bomb = {"state_dict": STATE, "extra": Bomb(trace)}
    if written == "torch archive":
        torch.save(bomb, path)
    else:
        path.write_bytes(pickle.dumps(bomb, protocol=int(written[-1])))
    with pytest.raises(ModelError, match=r"could run code\. Ask its author") as told:
        read_state_dict(path)
    assert "\n" not in str(told.value)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))  # noqa: S301  (the bomb is a live one)
    assert trace.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"hello, this is text", b"<html>404</html>", b"", b"\x80", b"PK"]
)
def test_a_file_that_is_no_checkpoint_is_told_in_one_line(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"a\{suffix}") as told:
        read_state_dict(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0.2, 0.9, 0.999])
def test_a_truncated_file_is_told_in_one_line(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"a{suffix}"
    state = {"a": torch.rand(100, 100), "b": torch.rand(10)}
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ModelError, match="is not a whole") as told:
        read_state_dict(path)
    assert "\n" not in str(told.value)


def test_a_safetensors_header_that_promises_more_than_there_is_takes_no_memory(
    tmp_path: Path,
) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"0000")
    for read in (read_state_dict, read_shapes):
        with pytest.raises(ModelError, match="is not a whole safetensors file"):
            read(path)


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    plain = io.BytesIO()
    torch.save({"a": torch.zeros(1_000_000)}, plain)
    path = tmp_path / "packed.pt"
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for one in source.infolist():
            packed.writestr(one.filename, source.read(one))
    assert path.stat().st_size < 100_000
    with pytest.raises(ModelError, match="unpacks to more than its own size"):
        read_checkpoint(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: OrderedDict(state),
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"module." + key: value for key, value in state.items()},
        lambda state: {"state_dict": {"module." + key: value for key, value in state.items()}},
        lambda state: {"_orig_mod." + key: value for key, value in state.items()},
        lambda state: {"module._orig_mod." + key: value for key, value in state.items()},
        lambda state: {"_orig_mod.module." + key: value for key, value in state.items()},
        lambda state: {"_forward_module." + key: value for key, value in state.items()},
        lambda state: {key.replace("a.", "a._orig_mod."): value for key, value in state.items()},
        lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"model_state_dict": state, "loss": 0.5},
    ],
)
def test_the_usual_wrappings_of_a_state_dict_are_taken_off(tmp_path: Path, wrap: object) -> None:
    torch.save(wrap(STATE), tmp_path / "a.pt")  # type: ignore[operator]
    loaded = read_state_dict(tmp_path / "a.pt")
    assert loaded.keys() == STATE.keys()
    assert all(torch.equal(loaded[key], STATE[key]) for key in STATE)


def test_a_module_prefix_on_some_keys_only_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "a.pt")
    assert read_state_dict(tmp_path / "a.pt").keys() == {"module.a", "b"}


def test_a_checkpoint_with_training_arguments_loads(tmp_path: Path) -> None:
    args = argparse.Namespace(lr=1e-4, name="run")
    torch.save({"state_dict": STATE, "args": args}, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt")["args"] == args
    assert read_state_dict(tmp_path / "a.pt").keys() == STATE.keys()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds no state dict but list"),
        ({}, "holds no state dict"),
        ({"a": 1}, "'a' is not a tensor"),
        ({0: torch.zeros(1)}, "0 is not a tensor|is no state dict: 0"),
    ],
)
def test_what_is_no_state_dict_is_told(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=said):
        read_state_dict(tmp_path / "a.pt")


def test_written_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    base = torch.rand(4, 4)
    state = {"a": base.T, "tied": base, "half": base.half(), "count": torch.tensor(3)}
    write_state_dict(tmp_path / "a.safetensors", state)
    (tmp_path / "plain").touch()  # who may read it is up to the user's umask, as of any file
    modes = {path.stat().st_mode for path in (tmp_path / "plain", tmp_path / "a.safetensors")}
    assert len(modes) == 1
    loaded = read_state_dict(tmp_path / "a.safetensors")
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key], value)
    assert read_shapes(tmp_path / "a.safetensors") == {
        "a": (4, 4),
        "tied": (4, 4),
        "half": (4, 4),
        "count": (),
    }


def test_the_hash_is_that_of_the_values_whatever_the_precision_on_disk() -> None:
    half = {key: value.half() for key, value in STATE.items()}
    loaded = {key: value.float() for key, value in half.items()}
    assert hash_state(half) == hash_state(loaded)
    backwards = dict(reversed(list(STATE.items())))
    assert hash_state(backwards) == hash_state(STATE)
    strided = {**STATE, "a.weight": STATE["a.weight"].T.contiguous().T}
    assert hash_state(strided) == hash_state(STATE)


@pytest.mark.parametrize(
    "change",
    [
        {"a.bias": torch.tensor(1.5000001)},
        {"a.bias": torch.tensor([1.5])},
        {"a.weight": STATE["a.weight"].flip(0)},
        {"a.weight": STATE["a.weight"].reshape(3, 2)},
        {"b": torch.zeros(0)},
        {"count": torch.tensor(1)},
    ],
)
def test_the_hash_differs_on_any_change(change: dict[str, torch.Tensor]) -> None:
    assert hash_state({**STATE, **change}) != hash_state(STATE)
    assert hash_state(STATE, extra="x") != hash_state(STATE)


def test_shapes_that_do_not_fit_are_named() -> None:
    expected = {"a": (2, 3), "b": (1,)}
    check_shapes(expected, {"b": (1,), "a": (2, 3)}, what="x")
    with pytest.raises(ModelError, match=r"x does not fit .*1 missing keys \(such as b\), 0 unexp"):
        check_shapes(expected, {"a": (2, 3)}, what="x")
    with pytest.raises(ModelError, match=r"0 missing keys, 1 unexpected \(such as c\)"):
        check_shapes(expected, {**expected, "c": (1,)}, what="x")
    with pytest.raises(ModelError, match=r"a is \(3, 2\), expected \(2, 3\)"):
        check_shapes(expected, {**expected, "a": (3, 2)}, what="x")


def test_a_module_is_hashed_once_and_again_after_any_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed = []
    real = weights.hash_state

    def counted(state: dict[str, torch.Tensor], *, extra: str = "") -> str:
        hashed.append(sorted(state))
        return real(state, extra=extra)

    monkeypatch.setattr(weights, "hash_state", counted)
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    first = hash_module(module)
    assert first == real(module.state_dict())
    assert hash_module(module) == first
    assert len(hashed) == 1
    other = hash_module(module, extra="x", without="1.")
    assert other == real({k: v for k, v in module.state_dict().items() if k[0] == "0"}, extra="x")
    assert hashed[-1] == ["0.bias", "0.weight"]

    names = [first]

    def changed() -> None:
        names.append(hash_module(module))
        assert names[-1] == real(module.state_dict())
        assert len(set(names)) == len(names)

    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(torch.randn(4, 2)).sum().backward()  # moves the running statistics
    changed()
    optimizer.step()
    changed()
    module.load_state_dict({key: value * 2 for key, value in module.state_dict().items()})
    changed()
    module[0].weight = torch.nn.Parameter(torch.zeros(2, 2))
    changed()
    assert hash_module(copy.deepcopy(module)) == names[-1]


EXPECTED = {"visual.a.weight": (2, 3), "visual.b": (1,), "text.c": (4,), "logit_scale": ()}


def state_of(names: Iterable[str]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(EXPECTED[name]) for name in names}


@pytest.mark.parametrize("prefix", ["model.", "clip.", "model.model.", "ema.", "a.b.c.", "visual."])
def test_a_prefix_that_all_names_share_is_removed_and_logged(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    state = {prefix + key: value for key, value in state_of(EXPECTED).items()}
    found = fit_names(state, EXPECTED, what="x")
    assert found.keys() == EXPECTED.keys()
    assert all(found[key] is state[prefix + key] for key in found)
    assert f"such as {prefix}visual.a.weight to visual.a.weight" in caplog.text


def test_a_state_that_fits_or_not_otherwise_is_left_alone() -> None:
    state = state_of(EXPECTED)
    assert fit_names(state, EXPECTED, what="x") is state
    part = {"model." + key: value for key, value in list(state.items())[1:]}
    assert fit_names(part, EXPECTED, what="x") is part


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            [*("model." + key for key in EXPECTED), "loss.w"],
            r"prefix 'model.'; without it 0 keys are missing, and 1 are unexpected \(such as loss",
        ),
        (
            ["model." + key for key in list(EXPECTED)[1:]],
            r"prefix 'model.'; without it 1 keys are missing \(such as visual.a.weight\)",
        ),
        (["visual.a.weight", "visual.b"], "holds the image tower of its architecture alone"),
        (["a.weight", "b"], "holds the image tower of its architecture alone"),
        (["text.c", "logit_scale"], "holds the text tower of its architecture alone"),
        (
            ["base.visual.attn.lora_A.weight", "base.visual.attn.lora_B.weight"],
            r"holds an adapter \(LoRA",
        ),
        (
            ["vision_model.embeddings.class_embedding", "text_model.encoder.layers.0.x"],
            "layout of Hugging Face's transformers",
        ),
        (["patch_embed.proj.weight", "blocks.0.norm1.weight"], "is an image encoder of timm"),
        (["conv1.weight", "fc.bias"], r"4 missing keys \(such as logit_scale\), 2 unexpected"),
    ],
)
def test_weights_of_something_else_are_named_as_what_they_are(given: list[str], said: str) -> None:
    with pytest.raises(ModelError, match=rf"x (does not fit its architecture|{said}).*") as fault:
        check_shapes(EXPECTED, dict.fromkeys(given, (1,)), what="x")
    assert re.search(said, str(fault.value))


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int8), "whole numbers .torch.int8."),
        (torch.tensor([[1, 2, 3], [4, float("nan"), 6]]), "not finite"),
        (torch.full((2, 3), float("inf"), dtype=torch.float16), "not finite"),
    ],
)
def test_quantised_and_diverged_weights_are_refused(weight: torch.Tensor, reason: str) -> None:
    module = torch.nn.Linear(3, 2)
    state = {"weight": weight, "bias": torch.zeros(2)}
    with pytest.raises(ModelError, match=f"^a.pt: weight holds .*{reason}"):
        load_weights(module, state, what="a.pt")
    load_weights(module, {**state, "weight": torch.ones(2, 3, dtype=torch.bfloat16)}, what="a.pt")
    assert module.weight.eq(1).all()


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema"])
def test_averaged_weights_beside_those_that_are_used_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    path = tmp_path / "a.pt"
    torch.save({"state_dict": STATE, key: {"a": torch.zeros(1)}, "schema": 1}, path)
    assert read_state_dict(path).keys() == STATE.keys()
    assert f"holds 'state_dict' and {key!r}; 'state_dict' is used" in caplog.text


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_of_weights_is_read_by_its_content(tmp_path: Path, suffix: str) -> None:
    torch.save(STATE, tmp_path / f"pickled{suffix}")
    save_file(STATE, tmp_path / f"plain{suffix}")
    for name in ("pickled", "plain"):
        state = read_state_dict(tmp_path / f"{name}{suffix}")
        assert all(torch.equal(state[key], value) for key, value in STATE.items())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        ("\n<!DOCTYPE html><html>Not found</html>", "is a web page"),
    ],
)
def test_what_lies_in_the_place_of_weights_is_named(
    tmp_path: Path, content: str, said: str
) -> None:
    for path in (tmp_path / "w.pt", tmp_path / "w.safetensors"):
        path.write_text(content)
        with pytest.raises(ModelError, match=said):
            read_state_dict(path)
    with pytest.raises(ModelError, match=said):
        read_shapes(path)


def test_averaged_weights_alone_are_named(tmp_path: Path) -> None:
    torch.save({"state_dict_ema": STATE, "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="tensors lie under 'state_dict_ema'"):
        read_state_dict(tmp_path / "w.pt")


def test_text_before_the_names_of_the_text_tower_is_fitted() -> None:
    plain = {
        name: torch.zeros(1)
        for name in ("visual.proj", "logit_scale", "token_embedding.weight", "ln_final.bias")
    }
    custom = {
        f"text.{key}" if key.startswith(("token", "ln")) else key: value
        for key, value in plain.items()
    }
    for given, wanted in ((custom, plain), (plain, custom)):
        for prefix in ("", "model."):
            prefixed = {prefix + key: value for key, value in given.items()}
            expected = {key: tuple(value.shape) for key, value in wanted.items()}
            assert fit_names(prefixed, expected, what="w").keys() == wanted.keys()


def test_single_numbers_take_the_expected_shape() -> None:
    state = {"logit_scale": torch.tensor([2.5]), "bias": torch.ones(3), "other": torch.ones(1)}
    fitted = fit_scalars(state, {"logit_scale": (), "bias": (1, 3)})
    assert {key: tuple(one.shape) for key, one in fitted.items()} == {
        "logit_scale": (), "bias": (3,), "other": (1,),
    }  # fmt: skip
    assert float(fitted["logit_scale"]) == 2.5
