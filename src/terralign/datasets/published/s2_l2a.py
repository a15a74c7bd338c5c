"""Sentinel-2 L2A patches without labels, in one array file of development.

N patches, C bands, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

from terralign.chips import make_layout
from terralign.datasets.array_set import ArraySet
from terralign.datasets.published.arrays import choose_rows, make_array_set, read_array
from terralign.sensors import SENSORS

S2_L2A_BANDS = (
    *("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08"),
    *("B8A", "B09", "B11", "B12"),
)
"""Band order of `s2_l2a/patches.npz`: B8A comes before B09."""

S2_L2A_PERIOD = 10
S2_L2A_SPLITS: dict[str, tuple[int, ...]] = {
    "train": tuple(range(9)),
    "val": (9,),
}
"""Every tenth patch is validation."""


def open_s2_l2a(data_root: Path, split: str) -> ArraySet:
    """`data_root/s2_l2a/patches.npz`: Sentinel-2 L2A patches, 12 bands, without labels.

    Their DN carry no offset: over water and shade they come down to 1 in nearly every band, where
    with ESA's offset of 1000 they could not.
    """
    path = data_root / "s2_l2a" / "patches.npz"
    pixels = read_array(path, "pixels", shape=(None, len(S2_L2A_BANDS), None, None), kind="u")
    sensor = SENSORS["sentinel2-l2a"]
    layout = make_layout(sensor, S2_L2A_BANDS, units="dn", dn_offset=0.0, composite="paper-l2a")
    return make_array_set(
        name="s2-l2a",
        split=split,
        arrays={sensor.name: pixels},
        layouts={sensor.name: layout},
        rows=choose_rows("s2-l2a", split, len(pixels), S2_L2A_SPLITS, S2_L2A_PERIOD),
        source=path,
    )
