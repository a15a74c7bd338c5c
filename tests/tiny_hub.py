"""A hub of tiny text towers and tokenizers of transformers, made on the spot; and tiny CLIPs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from open_clip import hf_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast

from terralign.encoders.clip.weights import write_state_dict

_ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 60,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
TEXT_CONFIGS: dict[str, dict[str, Any]] = {
    "roberta": {**_ENCODER, "hidden_act": "relu", "layer_norm_eps": 1e-3},
    "xlm-roberta": _ENCODER,
    "bert": _ENCODER,
    "mt5": {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 1,
        "num_heads": 2,
        "vocab_size": 60,
        "pad_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
    },
    "m2m_100": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "vocab_size": 60,
        "max_position_embeddings": 40,
        "pad_token_id": 1,
        "scale_embedding": True,
        "is_encoder_decoder": True,
    },
}
"""`config.json` of a tiny tower of each kind that open_clip takes, by its model_type."""

WORDS = ["a", "the", "of", "by", "photo", "satellite", "image", "forest", "river", "city"]

VISION = {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
POOLED = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
DECODER = {"context_length": 16, "vocab_size": 60, "width": 32, "heads": 2, "layers": 1}


def _hf_text(kind: str, **changes: Any) -> dict[str, Any]:
    name = f"someone/{kind}"
    return {"hf_model_name": name, "hf_tokenizer_name": name, "context_length": 12, **changes}


MODEL_CFGS: dict[str, dict[str, Any]] = {
    "coca": {
        "embed_dim": 32,
        "vision_cfg": {**VISION, **POOLED},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": DECODER,
        "custom_text": True,
    },
    "coca-roberta": {
        "embed_dim": 32,
        "vision_cfg": {**VISION, **POOLED},
        "text_cfg": _hf_text("roberta", hf_proj_type="linear", output_tokens=True),
        "multimodal_cfg": DECODER,
        "custom_text": True,
    },
    "roberta": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": VISION,
        "text_cfg": _hf_text("roberta", hf_pooler_type="mean_pooler"),
    },
    "xlm-roberta": {
        "embed_dim": 32,
        "vision_cfg": VISION,
        "text_cfg": _hf_text("xlm-roberta", hf_pooler_type="mean_pooler"),
    },
    "bert": {
        "embed_dim": 32,
        "vision_cfg": VISION,
        "text_cfg": _hf_text("bert", hf_pooler_type="cls_pooler"),
    },
    "mt5": {
        "embed_dim": 32,
        "vision_cfg": VISION,
        "text_cfg": _hf_text("mt5", hf_pooler_type="mean_pooler"),
    },
    "nllb-siglip": {
        "embed_dim": 64,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "test_vit",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "none",
        },
        "text_cfg": _hf_text("m2m_100", hf_proj_type="linear", hf_pooler_type="cls_pooler"),
    },
    "siglip": {
        "embed_dim": 64,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "test_vit",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            **TEXT,
            "vocab_size": 60,
            "hf_tokenizer_name": "someone/bert",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    },
    "clipa": {
        "embed_dim": 32,
        "vision_cfg": {**VISION, "no_ln_pre": True, "pool_type": "avg"},
        "text_cfg": {
            **TEXT,
            "vocab_size": 60,
            "hf_tokenizer_name": "someone/bert",
            "tokenizer_kwargs": {"strip_sep_token": True},
            "pool_type": "last",
            "no_causal_mask": True,
        },
    },
    "mobileclip": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 64,
            "timm_model_name": "test_byobnet",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": TEXT,
    },
    "eva": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "eva02_tiny_patch14_224",
            "timm_model_pretrained": False,
            "timm_pool": "token",
            "timm_proj": "linear",
        },
        "text_cfg": TEXT,
    },
}
"""A tiny model_cfg of each kind that open_clip builds."""


def write_hub(folder: Path) -> Path:
    """`folder/someone/KIND` with `config.json` and a tokenizer, as files of a hub lie."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    for kind, config in TEXT_CONFIGS.items():
        target = folder / "someone" / kind
        target.mkdir(parents=True)
        noise = {"architectures": ["Anything"], "torch_dtype": "float16", "id2label": {"0": "a"}}
        (target / "config.json").write_text(json.dumps({"model_type": kind, **config, **noise}))
        inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        PreTrainedTokenizerFast(
            tokenizer_object=inner,
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            unk_token="<unk>",
            cls_token="<s>",
            sep_token="</s>",
        ).save_pretrained(target)
    return folder


def serve(folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answer for the hub from `folder` (None: no network); the list of the names asked for.

    open_clip itself, the oracle, goes on finding the towers of `folder` by their names.
    """
    asked: list[str] = []

    def download(name: str, **_: Any) -> str:
        asked.append(name)
        if folder is None or not (folder / name).is_dir():
            raise OSError(f"the hub has no {name}")
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    if folder is not None:

        class Configs:
            @staticmethod
            def from_pretrained(name: str) -> Any:
                path = folder / name / "config.json"
                if not path.is_file():
                    return AutoConfig.from_pretrained(name)
                config = AutoConfig.from_pretrained(path.parent)
                config.dtype = "float32"
                return config

        monkeypatch.setattr(hf_model, "AutoConfig", Configs)
    return asked


def write_reference(folder: Path, kind: str, hub: Path) -> Any:
    """A folder of open_clip's own, random weights of `kind`, and open_clip's model from it."""
    cfg = json.loads(json.dumps(MODEL_CFGS[kind]))
    folder.mkdir()
    name = cfg["text_cfg"].get("hf_tokenizer_name")
    for path in (hub / name).glob("tokenizer*.json") if name else ():
        (folder / path.name).write_bytes(path.read_bytes())
    preprocess_cfg = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2]}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess_cfg})
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        random = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
        for weight in random.parameters():  # some start at zero, where a mistake would not show
            left_over = ~(weight.data.abs() < 100)  # open_clip leaves some of CoCa's unset
            weight.data[left_over] = 0
            weight.data.add_(0.02 * torch.randn_like(weight))
    write_state_dict(folder / "open_clip_model.safetensors", random.state_dict())
    return open_clip.create_model(f"local-dir:{folder}").eval()
