"""BigEarthNet's nomenclatures, 43, 19 and 5 classes, from CORINE Land Cover codes.

The tables are in `classes/bigearthnet.toml`. N patches, K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.class_lists import class_shares, read_table
from terralign.errors import DataError, nearest

NumClasses = Literal[43, 19, 5]

MIN_PRESENCE = 0.01
"""A class is a label of a patch where it covers at least this share of its pixels: 144 pixels, or
1.4 ha, of a 120x120 patch. Less is as likely an error of registration as it is visible."""

ANY_PRESENCE = 0.0
"""As `min_presence`: one pixel is enough. The labels of BigEarthNet v2 were made so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Nomenclature:
    """`names`: the K official class names; `class_names`: the same as used in prompts.

    `class_of_code`: CORINE level-3 code -> class index, None where this nomenclature dropped it.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    class_of_code: dict[int, int | None]


@cache
def nomenclature(num_classes: NumClasses) -> Nomenclature:
    """The nomenclature of 43, 19 or 5 classes, in the order of their CORINE codes."""
    table: dict[str, Any] = read_table("bigearthnet")
    level_3 = {int(code): name for code, name in table["level_3"].items()}
    if num_classes == 43:
        name_of_code = level_3
    elif num_classes == 19:
        name_of_code = {int(code): name for code, name in table["merged"].items()}
    else:
        name_of_code = {code: table["level_1"][str(code // 100)] for code in level_3}
    prompts = table["prompts_level_1" if num_classes == 5 else "prompts"]
    names = tuple(dict.fromkeys(name_of_code[code] for code in sorted(name_of_code)))
    assert len(names) == num_classes
    return Nomenclature(
        names=names,
        class_names=tuple(prompts[name] for name in names),
        class_of_code={
            code: names.index(name_of_code[code]) if code in name_of_code else None
            for code in level_3
        },
    )


def labels_from_pixels(
    codes: NDArray[np.integer[Any]], num_classes: NumClasses, min_presence: float = MIN_PRESENCE
) -> NDArray[np.bool_]:
    """Multi-hot labels (N, K) of CORINE level-3 codes (N, H, W).

    A class is present where its codes together cover `min_presence` of the patch or more, and at
    least one pixel. Codes that the nomenclature dropped, glaciers (335) and unclassified pixels
    give no label, so a row may be all False: it stays, as a sample in which every class is absent.
    """
    ignored = dict.fromkeys(read_table("bigearthnet")["ignored_codes"])
    class_of_code = {**ignored, **nomenclature(num_classes).class_of_code}
    scheme = "CORINE level-3 code; expected codes such as 111 or 312"
    shares = [class_shares(one, class_of_code, num_classes, scheme=scheme) for one in codes]
    covered = np.array(shares).reshape(len(codes), num_classes)
    return np.asarray((covered > 0) & (covered >= min_presence))


def labels_from_names(
    names: Sequence[Sequence[str]], num_classes: NumClasses, *, origins: Sequence[object]
) -> NDArray[np.bool_]:
    """Multi-hot labels (N, K) from lists of 43-class names, as BigEarthNet v1's JSON has them.

    A class that the nomenclature dropped gives no label, so a row may be all False. `origins`:
    where each list comes from, for the error about a name outside the nomenclature.
    """
    known, finest = nomenclature(num_classes), nomenclature(43)
    class_of_name = {
        finest.names[index]: known.class_of_code[code]
        for code, index in finest.class_of_code.items()
        if index is not None
    }
    values = np.zeros((len(names), num_classes), dtype=bool)
    for row, labels in enumerate(names):
        for label in labels:
            if label not in class_of_name:
                raise DataError(
                    f"{origins[row]}: {label!r} is no class of BigEarthNet v1 (43 CORINE names); "
                    f"{nearest(label, class_of_name)}"
                )
            target = class_of_name[label]
            if target is not None:
                values[row, target] = True
    return values
