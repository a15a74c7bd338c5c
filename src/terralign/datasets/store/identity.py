"""What a packing is of, its data and its settings, and whether another one is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from terralign.datasets.sample import SampleSet
from terralign.datasets.store.files import FORMAT, VERSION
from terralign.files import hash_json


def hash_samples(samples: SampleSet) -> str:
    """Name of all that a store keeps of a split: its fingerprint, and what its samples carry.

    A fingerprint stands for samples and pixels. Classes may be renamed, labels corrected and
    prompts rewritten while those stay.
    """
    labels = samples.labels
    return hash_json(
        {
            "fingerprint": samples.fingerprint,
            "labels": labels
            and [
                list(labels.class_names),
                labels.class_list,
                labels.multi_label,
                hashlib.sha256(labels.values.tobytes()).hexdigest(),
            ],
            "captions": samples.captions,
            "prompts": samples.prompts,
        }
    )


def identity_of(splits: Mapping[str, SampleSet], packing: Mapping[str, Any]) -> dict[str, Any]:
    """What a packing is of, as plain JSON values; `packing`: its settings."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "source": {split: hash_samples(samples) for split, samples in splits.items()},
        "packing": dict(packing),
    }


def difference(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """What differs between two identities, in words; None where one can go on with the other.

    Whether damaged samples are left out makes no difference to shards in which none are.
    """
    for part in ("source", "packing"):
        for key in {**kept.get(part, {}), **wanted[part]}:
            one, other = kept.get(part, {}).get(key), wanted[part].get(key)
            if one != other and key != "skip_damaged":
                what = f"split {key!r}" if part == "source" else key
                return (
                    f"other data or settings ({what}: {json.dumps(one)}, not {json.dumps(other)})"
                )
    same = all(kept.get(key, wanted[key]) == wanted[key] for key in ("format", "version"))
    return None if same else "another version of the format"
