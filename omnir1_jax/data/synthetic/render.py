"""From a scene to pixels: frames and exact masks.

A pixel belongs to the nearest shape that covers its centre; nothing is blended, so masks are exact by construction.
Only additions, products and comparisons of numbers on a coarse grid decide, so every platform draws the same.
"""

import functools
import math

import numpy as np
from jaxtyping import Bool, UInt8

from omnir1_jax.data.synthetic.world import COLOURS, Scene, Shape

EDGE = 0.84  # beyond this share of its size a shape's rim begins
SHADOW = (42, 42, 48)  # what is left of any colour
LOUD_EDGE = 0.66  # of a shape that sounds: its rim is broad and white
LOUD_RING_EDGE = 0.82  # a ring has to keep some of its colour


def _corners(count: int, radii: tuple[float, ...], turn: float) -> tuple[tuple[float, float], ...]:
    angles = [2 * math.pi * (i / count) + turn for i in range(count)]
    return tuple(
        (round(radii[i % len(radii)] * math.cos(a), 4), round(radii[i % len(radii)] * math.sin(a), 4))
        for i, a in enumerate(angles)
    )


UP = -math.pi / 2
POLYGONS = {
    "square": ((-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)),
    "triangle": ((0.0, -1.0), (0.98, 0.8), (-0.98, 0.8)),
    "star": _corners(10, (1.05, 0.45), UP),
    "diamond": ((0.0, -1.1), (0.72, 0.0), (0.0, 1.1), (-0.72, 0.0)),
    "cross": tuple(
        zip(
            (-0.34, 0.34, 0.34, 1.0, 1.0, 0.34, 0.34, -0.34, -0.34, -1.0, -1.0, -0.34),
            (-1.0, -1.0, -0.34, -0.34, 0.34, 0.34, 1.0, 1.0, 0.34, 0.34, -0.34, -0.34),
        )
    ),
}
REACH = 1.15  # no shape of size 1 is farther out than this


def covers(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points (u right, v down), in units of the shape's radius, lie within it."""
    if kind in ("circle", "ring"):
        square = u * u + v * v
        return (square <= 1.0) & (square >= 0.3 if kind == "ring" else True)
    inside = np.zeros(np.broadcast(u, v).shape, bool)
    corners = POLYGONS[kind]
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
        if y0 != y1:
            inside ^= ((y0 > v) != (y1 > v)) & (u < (x1 - x0) * (v - y0) / (y1 - y0) + x0)
    return inside


def _window(shape: Shape, frame: int, height: int, width: int):
    """Rows and columns the shape may cover at a frame, and their places in units of its radius; None if off frame."""
    if not shape.present[0] <= frame < shape.present[1]:
        return None
    x, y, r = shape.at(frame)
    top, bottom = max(0, math.floor(y - REACH * r)), min(height, math.ceil(y + REACH * r))
    left, right = max(0, math.floor(x - REACH * r)), min(width, math.ceil(x + REACH * r))
    if top >= bottom or left >= right:
        return None
    u = ((np.arange(left, right) + 0.5) - x) / r
    v = ((np.arange(top, bottom) + 0.5) - y) / r
    return (slice(top, bottom), slice(left, right)), u[None, :], v[:, None]


def whole_masks(scene: Scene) -> Bool[np.ndarray, "objects time height width"]:
    """What each shape would cover if nothing were before it."""
    config = scene.config
    out = np.zeros((len(scene.shapes), config.frames, config.height, config.width), bool)
    for n, shape in enumerate(scene.shapes):
        for t in range(config.frames):
            if (window := _window(shape, t, config.height, config.width)) is not None:
                pixels, u, v = window
                out[n, t][pixels] = covers(shape.kind, u, v)
    return out


def visible_masks(
    full_masks: Bool[np.ndarray, "objects time height width"],
) -> Bool[np.ndarray, "objects time height width"]:
    """What is seen of each shape: later shapes hide earlier ones."""
    hidden = np.zeros(full_masks.shape[1:], bool)
    out = np.empty_like(full_masks)
    for n in range(len(full_masks) - 1, -1, -1):
        out[n] = full_masks[n] & ~hidden
        hidden |= full_masks[n]
    return out


def frames(scene: Scene) -> UInt8[np.ndarray, "time height width 3"]:
    """The clip, RGB."""
    config = scene.config
    out = np.repeat(background(config.height, config.width, scene.background)[None], config.frames, axis=0)
    for t in range(config.frames):
        for shape in scene.shapes:
            if (window := _window(shape, t, config.height, config.width)) is None:
                continue
            pixels, u, v = window
            mask = covers(shape.kind, u, v)
            out[t][pixels][mask] = _paint(shape, t, u, v, config.rims)[mask]
    return out


def _paint(shape: Shape, frame: int, u: np.ndarray, v: np.ndarray, rims: bool) -> np.ndarray:
    """The shape's own look: its colour, stripes if it has them, a dark rim; with `rims` a broad white one for sound."""
    dark = shape.shadow[0] <= frame < shape.shadow[1]
    colour = np.asarray(SHADOW if dark else COLOURS[shape.colour], np.int32)
    percent = np.full(np.broadcast(u, v).shape, 100, np.int32)
    if shape.striped:
        percent[np.broadcast_to(np.floor((u + v) * 3) % 2 == 1, percent.shape)] = 62
    loud = rims and shape.sounds is not None and shape.sounds[0] <= frame < shape.sounds[1]
    edge = EDGE if not loud else LOUD_RING_EDGE if shape.kind == "ring" else LOUD_EDGE
    rim = ~covers(shape.kind, u / edge, v / edge)
    percent[rim] = 55
    painted = colour * percent[..., None] // 100
    if loud:
        painted[rim] = 255
    return painted.astype(np.uint8)


@functools.lru_cache(maxsize=64)
def background(height: int, width: int, seed: int) -> UInt8[np.ndarray, "height width 3"]:
    """A still, dull texture: two colours without much hue, mixed by smooth noise, stripes, checks or a slope."""
    rng = np.random.Generator(np.random.PCG64(seed))
    gray = rng.integers(70, 150, size=2)
    colours = np.clip(gray[:, None] + rng.integers(-18, 19, size=(2, 3)), 0, 255)
    pattern = int(rng.integers(4))
    period = int(rng.integers(max(4, height // 12), max(5, height // 4)))
    slant = int(rng.integers(-2, 3))
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    noise = _noise(rng, height, width)
    mix = {
        0: noise,
        1: np.where((2 * columns + slant * rows) // period % 2 == 0, 60, 200) + noise // 5,
        2: np.where((columns // period + rows // period) % 2 == 0, 70, 190) + noise // 5,
        3: (rows * 160 // height + columns * 60 // width) + noise // 4,
    }[pattern]
    mix = np.clip(mix, 0, 255)[..., None]
    image = (colours[0] * (255 - mix) + colours[1] * mix) // 255 + rng.integers(-5, 6, size=(height, width, 1))
    image = np.clip(image, 0, 255).astype(np.uint8)
    image.setflags(write=False)
    return image


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth noise in 0..255, whole numbers: two coarse lattices, interpolated."""
    total = np.zeros((height, width), np.int64)
    for cells, weight in ((4, 2), (11, 1)):
        lattice = rng.integers(0, 256, size=(cells + 2, cells + 2))
        row, column = (np.arange(n) * cells * 256 // n for n in (height, width))
        i, f = row // 256, (row % 256)[:, None]
        j, g = column // 256, (column % 256)[None, :]
        top = lattice[i][:, j] * (256 - g) + lattice[i][:, j + 1] * g
        bottom = lattice[i + 1][:, j] * (256 - g) + lattice[i + 1][:, j + 1] * g
        total += weight * ((top * (256 - f) + bottom * f) // 65536)
    return total // 3
