"""Strangers' text towers and tokenizers: no code of theirs is run, no file elsewhere is read."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from terralign.encoders.clip.hub import Hub
from terralign.encoders.clip.load import ClipModel, load_clip, new_clip, save_clip
from terralign.encoders.clip.text_tower import (
    TEXT_CONFIG_NAME,
    clean_text_config,
    load_tokenizer,
    save_tokenizer,
)
from terralign.errors import ModelError
from tiny_hub import MODEL_CFGS, TEXT_CONFIGS, serve, write_hub

EVIL = 'import pathlib\npathlib.Path(__file__).with_name("ran").touch()\n'
TEXTS = ["a forest", "the river"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(params=["roberta", "nllb-siglip"])
def saved(
    request: pytest.FixtureRequest, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ClipModel, Path]:
    """A CLIP whose text tower is one of transformers, and the folder it was saved in."""
    serve(hub, monkeypatch)
    preprocess_cfg = {"mean": [0.5] * 3, "std": [0.5] * 3}
    clip = new_clip(MODEL_CFGS[request.param], preprocess_cfg, seed=0)
    (tmp_path / "m").mkdir()
    save_clip(clip, tmp_path / "m")
    serve(None, monkeypatch)
    return clip, tmp_path / "m"


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_code_beside_a_model_is_never_run(
    saved: tuple[ClipModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, folder = saved
    (folder / "evil.py").write_text(EVIL)
    code = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]}
    change(
        folder / TEXT_CONFIG_NAME,
        auto_map=code,
        attn_implementation="someone/kernels",
        _attn_implementation="someone/kernels",
        quantization_config={"quant_method": "gptq"},
    )
    change(folder / "tokenizer_config.json", auto_map=code)
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": code}))

    def ask(*_: Any) -> str:
        raise AssertionError("asked whether a stranger's code may run")

    monkeypatch.setattr("builtins.input", ask)
    loaded = load_clip(str(folder))
    assert not (folder / "ran").exists()
    assert loaded.anchor_id() == clip.anchor_id()
    assert torch.equal(loaded.tokenizer(TEXTS), clip.tokenizer(TEXTS))


def test_only_numbers_and_known_words_of_a_configuration_are_kept() -> None:
    config = {
        "model_type": "roberta",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "is_decoder": False,
        "classifier_dropout": None,
        "_name_or_path": "/somewhere",
        "torch_dtype": "float16",
        "attn_implementation": "someone/kernels",
        "auto_map": {"AutoModel": "evil.M"},
        "id2label": {"0": "a"},
    }
    assert list(clean_text_config(config, "m")) == list(config)[:5]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is not supported, only bert"),
        ({"model_type": ["bert"]}, "is not supported, only bert"),
        ({"num_hidden_layers": 10**9, "encoder_layers": 10**9}, "_layers' of 1,000,000,000 layers"),
        ({"num_hidden_layers": 1.5, "encoder_layers": 1.5}, "_layers is 1.5, expected a whole"),
        ({"hidden_act": 3}, "hidden_act of its text tower is 3, expected a word"),
        ({"hidden_act": "exec", "activation_function": "exec"}, "cannot build"),
        ({"vocab_size": 10**7}, "does not fit"),
        (
            {"max_position_embeddings": 10**7},
            "beside its weights, have .* numbers|text.transformer.embeddings.position_embeddings",
        ),
    ],
)
def test_a_hostile_text_configuration_is_refused_without_taking_memory(
    saved: tuple[ClipModel, Path], changes: dict[str, Any], said: str
) -> None:
    _, folder = saved
    change(folder / TEXT_CONFIG_NAME, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=said) as told:
        load_clip(str(folder))
    assert "\n" not in str(told.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_hub_text_tower_of_an_unknown_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "someone" / "roberta").mkdir(parents=True)
    config = {**TEXT_CONFIGS["roberta"], "model_type": "evil", "auto_map": {"AutoModel": "evil.M"}}
    (tmp_path / "someone" / "roberta" / "config.json").write_text(json.dumps(config))
    serve(tmp_path, monkeypatch)
    with pytest.raises(ModelError, match="model_type 'evil' is not supported"):
        new_clip(MODEL_CFGS["roberta"], {"mean": [0.5] * 3, "std": [0.5] * 3}, seed=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer_class": "AutoModel"}, "'AutoModel' is not a tokenizer of transformers"),
        ({"tokenizer_class": "os.TokenizerFast"}, "is not a tokenizer of transformers"),
        ({"tokenizer_class": ["BertTokenizer"]}, "is not a tokenizer of transformers"),
    ],
)
def test_a_tokenizer_that_names_something_else_is_refused(
    hub: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    for path in (hub / "someone" / "bert").glob("tokenizer*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(tmp_path / "tokenizer_config.json", **changes)
    with pytest.raises(ModelError, match=f"cannot load the tokenizer of m: .*{said}"):
        load_tokenizer({"hf_tokenizer_name": "someone/bert"}, folder=tmp_path, hub=Hub(), what="m")


def test_a_tokenizer_takes_no_file_from_elsewhere(tmp_path: Path) -> None:
    """Without the folder's own vocabulary being overridden by one that its settings point to."""
    (tmp_path / "m").mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "m" / "vocab.txt").write_text("\n".join([*words, "forest", "river"]))
    (tmp_path / "secret.txt").write_text("\n".join([*words, "a", "the", "forest", "river"]))
    (tmp_path / "m" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "vocab_file": str(tmp_path / "secret.txt")})
    )
    text_cfg = {"hf_tokenizer_name": "someone/bert", "context_length": 4}
    tokenizer = load_tokenizer(text_cfg, folder=tmp_path / "m", hub=Hub(), what="m")
    assert tokenizer(["forest river"]).tolist() == [[2, 5, 6, 3]]


def test_a_tokenizer_told_by_the_model_beside_it_loads_and_saves_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old hub folders have a vocabulary and a `config.json`, and nothing that names a class."""
    old = tmp_path / "hub" / "someone" / "old"
    old.mkdir(parents=True)
    (old / "config.json").write_text('{"model_type": "bert", "auto_map": {"AutoConfig": "e.C"}}')
    (old / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nforest\nriver")
    serve(tmp_path / "hub", monkeypatch)
    text_cfg = {"hf_tokenizer_name": "someone/old", "context_length": 5}
    tokenizer = load_tokenizer(text_cfg, folder=None, hub=Hub(), what="m")
    assert tokenizer(["river"]).tolist() == [[2, 6, 3, 0, 0]]
    written = save_tokenizer(tokenizer, tmp_path / "saved")
    text = "".join((tmp_path / "saved" / name).read_text() for name in written)
    assert "/" not in text.replace("</", "").replace("[/", "")
    again = load_tokenizer(text_cfg, folder=tmp_path / "saved", hub=Hub(), what="m")
    assert again(["river"]).tolist() == [[2, 6, 3, 0, 0]]
