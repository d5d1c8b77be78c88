"""What is true of a scene, for a person who watches it: who can be seen when, who moves, grows, hides, sounds.

Every judgement has a margin; what falls between yes and no is None, and nothing is ever said about it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool

from omnir1_jax.data.synthetic import render
from omnir1_jax.data.synthetic.world import Scene, Shape

Truth = bool | None  # None: too close to call

CLEAR_AREA = 12  # pixels, minimum area of a recognisable shape
CLEAR_SHARE = 0.6  # of the shape, not hidden and not beyond the frame's edge
STRIPES_RADIUS = 8.0  # pixels, minimum radius at which stripes can be recognised
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class ShapeFacts:
    shape: Shape
    extent: tuple[int, int]  # width and height of the frame
    seen: tuple[bool, ...]  # per frame: enough of it is seen to follow it
    clear: tuple[bool, ...]  # and it is lit, so that it can be recognised
    places: tuple[tuple[float, float], ...]  # centre in every frame it is present
    radii: tuple[float, ...]  # likewise
    striped: Truth
    grows: Truth
    shrinks: Truth
    still: Truth
    direction: str | None  # of DIRECTIONS, if it goes one way
    enters: bool  # comes in after the first frame
    leaves: bool  # is gone before the last frame
    behind: dict[int, Truth]  # other shape -> passes behind it

    @property
    def first(self) -> int:
        return self.shape.present[0]

    @property
    def last(self) -> int:
        return self.shape.present[1] - 1

    @property
    def speed(self) -> float:
        """Pixels per frame, mean over its presence."""
        steps = [math.dist(a, b) for a, b in pairwise(self.places)]
        return sum(steps) / max(1, len(steps))


def observe(
    scene: Scene, whole_masks: Bool[np.ndarray, "objects time height width"] | None = None
) -> tuple[ShapeFacts, ...]:
    """Facts of every shape, in the scene's order. `whole_masks`: `render.whole_masks(scene)` if at hand."""
    whole_masks = render.whole_masks(scene) if whole_masks is None else whole_masks
    seen = render.visible_masks(whole_masks)
    areas = whole_masks.sum((2, 3))
    seen_areas = seen.sum((2, 3))
    covered_shares = _covered_shares(whole_masks, areas)
    return tuple(_observe_shape(scene, n, seen_areas[n], covered_shares[n]) for n in range(len(scene.shapes)))


def _observe_shape(scene: Scene, n: int, seen_area: np.ndarray, covered_shares: np.ndarray) -> ShapeFacts:
    config, shape = scene.config, scene.shapes[n]
    course = [shape.at(t) for t in range(*shape.present)]
    places, radii = tuple((x, y) for x, y, _ in course), tuple(r for _, _, r in course)
    seen = []
    for t in range(config.frames):
        full_area = _full_area(shape.kind, shape.at(t)[2])
        seen.append(bool(seen_area[t] >= max(CLEAR_AREA, CLEAR_SHARE * full_area)))
    dark = range(*shape.shadow)
    clear = [yes and t not in dark for t, yes in enumerate(seen)]
    ratio = radii[-1] / radii[0]
    moved = sum(math.dist(a, b) for a, b in pairwise(places))
    behind = {m: _behind(covered_shares[m], clear) for m in range(n + 1, len(scene.shapes))}
    return ShapeFacts(
        shape=shape,
        extent=(config.width, config.height),
        seen=tuple(seen),
        clear=tuple(clear),
        places=places,
        radii=radii,
        striped=shape.striped if min(radii) >= STRIPES_RADIUS else None,
        grows=_above(ratio, 1.5, 1.1),
        shrinks=_above(1 / ratio, 1.5, 1.1),
        still=None if 0 < moved < 0.2 * config.width else moved == 0,
        direction=_direction(places, config.width, config.height),
        enters=shape.present[0] > 0,
        leaves=shape.present[1] < config.frames,
        behind=behind,
    )


def _above(value: float, yes: float, no: float) -> Truth:
    return True if value >= yes else False if value <= no else None


def _behind(share: np.ndarray, clear: Sequence[bool]) -> Truth:
    """Hidden for a quarter at some moment, yet clearly seen at another."""
    worst = share.max(initial=0.0)
    if worst >= 0.25:
        return True if any(clear) else None
    return False if worst <= 0.02 else None


def _direction(places: Sequence[tuple[float, float]], width: int, height: int) -> str | None:
    (x0, y0), (x1, y1) = places[0], places[-1]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(places)]
    for name, (dx, dy) in DIRECTIONS.items():
        along, across = (x1 - x0) * dx + (y1 - y0) * dy, abs((x1 - x0) * dy) + abs((y1 - y0) * dx)
        enough = 0.25 * (width if dx else height)
        if along >= enough and along >= 2 * across and all(u * dx + v * dy >= 0 for u, v in steps):
            return name
    return None


def _covered_shares(whole_masks: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """[n, m, t]: what share of shape n the nearer shape m covers in frame t."""
    count, total = len(whole_masks), whole_masks.shape[1]
    out = np.zeros((count, count, total))
    for n in range(count):
        for m in range(n + 1, count):
            overlap = (whole_masks[n] & whole_masks[m]).sum((1, 2))
            out[n, m] = overlap / np.maximum(areas[n], 1)
    return out


def _full_area(kind: str, radius: float) -> float:
    """Area in pixels of a whole shape of this radius."""
    if kind in ("circle", "ring"):
        return math.pi * radius**2 * (0.7 if kind == "ring" else 1.0)
    corners = render.POLYGONS[kind]
    doubled = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]))
    return abs(doubled) / 2 * radius**2


def all_seen(facts: Sequence[ShapeFacts]) -> bool:
    """Whether every shape can be recognised in a sixth of the frames, at its coming and going, and while it sounds."""
    for fact in facts:
        first, end = fact.shape.present
        first += fact.shape.speck
        soon = max(2, len(fact.clear) // 6)
        if sum(fact.clear) < max(1, len(fact.clear) // 6):
            return False
        if fact.enters and not any(fact.seen[first : first + soon]):
            return False
        if fact.leaves and not any(fact.seen[max(0, end - 1 - soon) : end]):
            return False
        sounds = fact.shape.sounds
        if sounds is not None and 2 * sum(fact.seen[slice(*sounds)]) < sounds[1] - sounds[0]:
            return False
    return True
