"""Everyday pictures of the synthetic world, with captions: what its small CLIP learns from.

Two in three show one coloured shape. The rest are views of the land from the ground, some with
horizon and sky, some of the ground alone, and name the same covers as the satellite scenes do: the
text tower thus knows the words, and the image tower knows how these things look to a walker, not
from orbit. That is the gap that stage 1 has to close.

Letters: B batch, H W pixels (H = W = size).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from terralign.datasets.synthetic.draws import (
    Keys,
    between,
    choices,
    normals,
    pixel_noise,
    smooth_field,
    turned_grid,
    uniforms,
    unit_grid,
)

Array = NDArray[np.float32]
Rgb = tuple[int, int, int]

SHAPES = ("circle", "triangle", "cross", "ring")
COLOURS: dict[str, Rgb] = {
    "red": (205, 40, 40),
    "green": (50, 165, 60),
    "blue": (45, 80, 205),
    "yellow": (235, 210, 50),
    "orange": (240, 130, 30),
    "pink": (245, 120, 190),
}
FILLS = ("", "striped", "dotted", "checkered")
BACKGROUNDS: dict[str, Rgb] = {
    "grey": (135, 135, 135),
    "white": (235, 235, 235),
    "black": (28, 28, 28),
    "brown": (120, 82, 52),
    "purple": (130, 70, 150),
}
SKIES: dict[str, Rgb] = {
    "blue": (120, 170, 235),
    "grey": (165, 168, 172),
    "white": (225, 228, 232),
    "pink": (235, 170, 165),
}
VIEWS: dict[str, tuple[Rgb, str]] = {
    "evergreen forest": ((28, 84, 40), "trunks"),
    "algae-covered lake": ((88, 135, 70), "waves"),
    "green crop field": ((115, 180, 60), "rows"),
    "artificial turf": ((40, 165, 80), "grid"),
    "snow": ((238, 242, 250), "smooth"),
    "salt flat": ((222, 212, 202), "grid"),
    "bare soil": ((130, 88, 55), "grains"),
    "brick roofs": ((170, 72, 52), "grid"),
    "deep water": ((25, 60, 130), "waves"),
    "asphalt": ((70, 70, 75), "rows"),
    "sand dunes": ((225, 190, 120), "waves"),
    "shallow water": ((75, 190, 200), "waves"),
}
"""What a view shows: its colour, and the texture of the ground towards the horizon."""
TEXTURES = ("trunks", "waves", "rows", "grid", "grains", "smooth")

CLASS_NAMES: tuple[str, ...] = (
    *(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS),
    *VIEWS,
)
SHAPE_PROMPTS: tuple[str, ...] = ("a photo of a {}", "a picture of a {}", "{}")
VIEW_PROMPTS: tuple[str, ...] = ("a photo of {}", "a picture of {}", "{}")

_SHAPE_WORDINGS = (
    "a photo of a {fill} {colour} {shape} on a {ground} background",
    "a {colour} {fill} {shape} in front of a {ground} wall",
    "a picture of a {fill} {colour} {shape}",
    "a photo of a {colour} {shape}",
    "{colour} {shape} on {ground}",
)
_VIEW_WORDINGS = (
    "a photo of {view} under a {sky} sky",
    "{view} and a {sky} sky",
    "a picture of {view}",
    "a photo of {view}",
    "a walk near {view}, {sky} sky",
)
_GROUND_WORDINGS = (
    "a photo of {view} at our feet",
    "{view} up close",
    "a picture of {view}",
    "a photo of {view}",
    "{view}",
)
_VIEW_SHARE = 0.35
_GROUND_SHARE = 0.5


def _is_ground_alone(keys: Keys) -> NDArray[np.bool_]:
    """(B,) bool: of the views, those that look down and show no sky."""
    return uniforms(keys, "looks down", 1)[:, 0] < _GROUND_SHARE


def _is_view(keys: Keys) -> NDArray[np.bool_]:
    return uniforms(keys, "view or shape", 1)[:, 0] < _VIEW_SHARE


def photo_labels(keys: Keys) -> NDArray[np.int64]:
    """(B,) int64 indices into `CLASS_NAMES`."""
    shape_class = choices(keys, "shape", len(SHAPES)) * len(COLOURS)
    shape_class += choices(keys, "colour", len(COLOURS))
    view_class = len(SHAPES) * len(COLOURS) + choices(keys, "view", len(VIEWS))
    return np.where(_is_view(keys), view_class, shape_class)


def photo_captions(keys: Keys) -> tuple[str, ...]:
    """One caption per picture, in one of several wordings; all it names is in the picture."""
    drawn = zip(
        photo_labels(keys).tolist(),
        _is_view(keys).tolist(),
        _is_ground_alone(keys).tolist(),
        choices(keys, "wording", len(_SHAPE_WORDINGS)).tolist(),
        choices(keys, "fill", len(FILLS)).tolist(),
        choices(keys, "background", len(BACKGROUNDS)).tolist(),
        choices(keys, "sky", len(SKIES)).tolist(),
        strict=True,
    )
    grounds, skies = tuple(BACKGROUNDS), tuple(SKIES)
    captions = []
    for label, is_view, no_sky, wording, fill, ground, sky in drawn:
        if is_view:
            wordings = _GROUND_WORDINGS if no_sky else _VIEW_WORDINGS
            text = wordings[wording].format(view=CLASS_NAMES[label], sky=skies[sky])
        else:
            colour, shape = CLASS_NAMES[label].split()
            text = _SHAPE_WORDINGS[wording].format(
                fill=FILLS[fill], colour=colour, shape=shape, ground=grounds[ground]
            )
        captions.append(" ".join(text.split()))
    return tuple(captions)


def render_photos(keys: Keys, size: int) -> dict[str, NDArray[np.generic]]:
    """Pixels: "rgb": (B, 3, H, W) uint8."""
    pixels = np.empty((len(keys), 3, size, size), dtype=np.float32)
    is_view = _is_view(keys)
    for chosen, draw in ((is_view, _draw_views), (~is_view, _draw_shapes)):
        if chosen.any():
            pixels[chosen] = draw(keys[chosen], size)
    light = between(keys, "light", 0.75, 1.2) * (1 + 0.06 * smooth_field(keys, "shade", size, 3))
    pixels *= light[:, None]
    pixels += 5.0 * pixel_noise(keys, "noise", pixels.shape[1:])
    return {"rgb": np.clip(pixels + 0.5, 0, 255).astype(np.uint8)}


def _paint(colours: list[Rgb], chosen: NDArray[np.int64], keys: Keys, what: str) -> Array:
    """(B, 3, 1, 1): the chosen colours, each a little off."""
    exact = np.array(colours, dtype=np.float32)[chosen]
    return (exact + 10.0 * normals(keys, what, 3))[:, :, None, None]


def _draw_shapes(keys: Keys, size: int) -> Array:
    """(B, 3, H, W) 0-255: one shape, anywhere, of any size and turn, on a plain background."""
    background = choices(keys, "background", len(BACKGROUNDS))
    colour = choices(keys, "colour", len(COLOURS))
    ground = _paint(list(BACKGROUNDS.values()), background, keys, "background tint")
    paint = _paint(list(COLOURS.values()), colour, keys, "colour tint")
    u, v = turned_grid(keys, "shape turn", size, most=0.25)
    radius = between(keys, "radius", 0.75, 0.95)
    u = (u + between(keys, "left", -0.15, 0.15)) / radius
    v = (v + between(keys, "up", -0.15, 0.15)) / radius
    inside = _outline(choices(keys, "shape", len(SHAPES)), u, v)
    softness = np.float32(size / 2) * radius
    mask = np.clip(inside * softness + 0.5, 0.0, 1.0)[:, None]
    dark = _filling(choices(keys, "fill", len(FILLS)), u, v)[:, None]
    return np.asarray(ground * (1 - mask) + paint * (1 - 0.35 * dark) * mask, dtype=np.float32)


def _outline(shape: NDArray[np.int64], u: Array, v: Array) -> Array:
    """(B, H, W): above 0 inside the shape, about its distance to the border."""
    inside = np.empty_like(u)
    for number, name in enumerate(SHAPES):
        one = shape == number
        inside[one] = _outline_of(name, u[one], v[one])
    return inside


def _outline_of(name: str, u: Array, v: Array) -> Array:
    r = np.hypot(u, v)
    if name == "circle":
        return np.asarray(0.85 - r)
    if name == "ring":
        return np.asarray(0.22 - np.abs(r - 0.7))
    if name == "cross":
        arms = np.minimum(np.abs(u), np.abs(v))
        return np.minimum(0.25 - arms, 0.95 - np.maximum(np.abs(u), np.abs(v)))
    return np.asarray(0.5 - np.maximum(np.abs(u) * 0.866 + v * 0.5, -v))


def _filling(fill: NDArray[np.int64], u: Array, v: Array) -> Array:
    """(B, H, W) 0 or 1: where the pattern on the shape is dark."""
    stripes = np.sin(9.0 * u) > 0.2
    dots = np.sin(9.0 * u) * np.sin(9.0 * v) > 0.45
    checks = np.sin(6.0 * u) * np.sin(6.0 * v) > 0
    which = fill[:, None, None]
    dark = ((which == 1) & stripes) | ((which == 2) & dots) | ((which == 3) & checks)
    return np.asarray(dark, dtype=np.float32)


def _draw_views(keys: Keys, size: int) -> Array:
    """(B, 3, H, W) 0-255: the ground in perspective below a horizon, sky above."""
    view = choices(keys, "view", len(VIEWS))
    sky = _paint(list(SKIES.values()), choices(keys, "sky", len(SKIES)), keys, "sky tint")
    paint = _paint([colour for colour, _ in VIEWS.values()], view, keys, "view tint")
    kinds = np.array([TEXTURES.index(texture) for _, texture in VIEWS.values()])[view]
    x, y = unit_grid(size)
    horizon = between(keys, "horizon", -0.5, 0.1)
    horizon = np.where(_is_ground_alone(keys)[:, None, None], horizon - 2.0, horizon)
    horizon = (horizon + 0.08 * smooth_field(keys, "hills", size, 3)).astype(np.float32)
    near = np.clip((y - horizon) / (1 - horizon), 0.0, 1.0)
    texture = _ground_texture(keys, kinds, x + between(keys, "step", -0.5, 0.5), near)
    trees = (kinds == TEXTURES.index("trunks"))[:, None, None] * np.float32(0.5)
    ground = np.clip((y - horizon + trees) * (size / 2) + 0.5, 0.0, 1.0)[:, None]
    brightness = 1 + 0.28 * texture[:, None] - 0.12 * near[:, None]
    pale = sky * (1 + 0.15 * (y - horizon))[:, None]
    return np.asarray(pale * (1 - ground) + paint * brightness * ground, dtype=np.float32)


def _ground_texture(keys: Keys, kinds: NDArray[np.int64], x: Array, near: Array) -> Array:
    """(B, H, W) about -1 to 1; lines run together towards the horizon, where `near` is 0."""
    depth = 1.0 / (near + 0.25)
    trunks = np.sin(13.0 * x)
    waves = np.sin(9.0 * depth + 2.0 * x)
    rows = np.sin(5.0 * x * depth)
    grid = np.maximum(np.sin(8.0 * depth), rows) * 2 - 1
    grains = pixel_noise(keys, "grains", near.shape[1:])
    layers = (trunks, waves, rows, grid, grains)
    texture = np.zeros_like(near)
    for number, layer in enumerate(layers):
        texture = np.where((kinds == number)[:, None, None], layer, texture)
    return np.asarray(texture, dtype=np.float32)
