"""Which bands pictures for people are made of: true colour, false colour, radar."""

from __future__ import annotations

from terralign.chips import PixelLayout

NEAR_INFRARED_NM = (760.0, 900.0)
NEAR_INFRARED_CENTER_NM = 842.0


def view_bands(layout: PixelLayout) -> tuple[str, ...]:
    """The bands that pictures of a layout show, each once."""
    composite = layout.composite or next(iter(layout.sensor.composites), None)
    if composite is not None and set(composite.bands) <= set(layout.bands):
        infrared = near_infrared(layout)
        return tuple(dict.fromkeys((*composite.bands, *filter(None, (infrared,)))))
    return tuple(name for name in ("VV", "VH") if name in layout.bands) or layout.bands


def near_infrared(layout: PixelLayout) -> str | None:
    """The band of the layout that is nearest to the middle of the near infrared, if any."""
    low, high = NEAR_INFRARED_NM
    known = {band.name: band.center_nm for band in layout.sensor.bands}
    centers = {name: known[name] for name in layout.bands}
    inside = {name: nm for name, nm in centers.items() if nm is not None and low <= nm <= high}
    if not inside:
        return None
    return min(inside, key=lambda name: abs(inside[name] - NEAR_INFRARED_CENTER_NM))
