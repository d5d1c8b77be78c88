"""Scenes from a seed: which shapes there are, where they go, how they change and when they sound.

A scene is plain numbers, drawn with PCG64 and rounded to a grid, so a seed gives the same scene on any platform.
Nothing is drawn here (`render`), and nothing is said about it (`expressions`).
"""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from omnir1_jax.errors import InputError

KINDS = ("circle", "square", "triangle", "star", "diamond", "cross", "ring")
COLOURS = {
    "red": (214, 34, 40),
    "green": (44, 160, 54),
    "blue": (36, 70, 214),
    "yellow": (246, 222, 48),
    "purple": (138, 50, 176),
    "orange": (244, 128, 22),
    "cyan": (70, 208, 220),
}
TONES = {"low": 220.0, "middle": 550.0, "high": 1320.0}  # Hz
VOICES = {colour: list(TONES)[n % len(TONES)] for n, colour in enumerate(COLOURS)}  # if each colour has its own tone
SPECK = 2.5  # radius in pixels of a shape that is still a speck
GRID = 64  # positions and radii are multiples of 1/64 pixel


@dataclass(frozen=True)
class WorldConfig:
    """How hard the world is. Pairs are (minimum, maximum), both inclusive."""

    height: int = 96
    width: int = 128
    frames: int = 12
    fps: float = 2.0
    colours: tuple[str, ...] = tuple(COLOURS)
    kinds: tuple[str, ...] = KINDS
    objects: tuple[int, int] = (2, 3)  # shapes that differ from each other in colour and kind
    distractors: tuple[int, int] = (0, 1)  # further shapes that share the colour or the kind of one of these
    twins: float = 0.2  # how often a distractor shares both, so that only behaviour tells them apart
    occlusion: float = 0.3  # how often a shape's way leads across another's
    radius: tuple[float, float] = (0.13, 0.2)  # of the shorter side of the frame
    motion: float = 0.65  # how often a shape moves
    growth: float = 0.35  # how often it grows or shrinks
    presence: float = 0.45  # how often it enters late or leaves early
    sounding: tuple[int, int] = (1, 2)  # how many shapes sound, at most 3
    recording: tuple[int, float] = (10, 1.0)  # frames and frames per second with sound; files have ten of both
    voices: bool = False  # whether each colour has a tone of its own, so that one can hear which shape sounds
    rims: bool = True  # whether a shape has a white rim while it sounds, so that one can see which shape sounds
    stay: tuple[float, float] = (1.0, 1.0)  # share of the clip for which a shape is there; `presence` if that is 1
    specks: float = 0.0  # how often a shape grows out of a speck instead of sliding in; with `stay`
    shadow: float = 0.0  # how often a shape is without its colour for half of the time that it is there
    relations: bool = False  # whether sentences name order and sound by way of another shape

    def __post_init__(self):
        for name, least in (("height", 32), ("width", 32), ("frames", 1)):
            if getattr(self, name) < least:
                raise InputError(f"synthetic.{name} is at least {least}, not {getattr(self, name)}")
        for name in ("objects", "distractors", "radius", "sounding", "stay"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise InputError(f"synthetic.{name} is (least, most), not {(low, high)}")
        for name in ("twins", "occlusion", "motion", "growth", "presence", "specks", "shadow"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"synthetic.{name} is a share from 0 to 1, not {getattr(self, name)}")
        for name, known in (("colours", tuple(COLOURS)), ("kinds", KINDS)):
            if len(getattr(self, name)) < 2 or not set(getattr(self, name)) <= set(known):
                raise InputError(f"synthetic.{name} are at least two of {', '.join(known)}, not {getattr(self, name)}")
        most = min(len(self.colours), len(self.kinds))
        if self.objects[0] < 1 or self.objects[1] > most or self.sounding[1] > len(TONES):
            raise InputError(f"synthetic: 1 to {most} objects, at most {len(TONES)} of them sounding")
        if not self.fps > 0:
            raise InputError(f"synthetic.fps is positive, not {self.fps}")
        if not (self.rims or self.voices):
            raise InputError("synthetic.rims: without them shapes need voices, or nothing tells which one sounds")
        if self.stay[1] > 1:
            raise InputError(f"synthetic.stay is a share of the clip, not {self.stay}")

    @property
    def seconds(self) -> float:
        return self.frames / self.fps

    @property
    def brief(self) -> bool:
        """Whether shapes are there for a part of the clip only."""
        return self.stay != (1.0, 1.0)

    def recorded(self) -> "WorldConfig":
        """The world of a recording, of which one sees the first frame: its shapes are there from the start, and lit."""
        frames, fps = self.recording
        return replace(self, frames=frames, fps=fps, stay=(1.0, 1.0), specks=0.0, shadow=0.0)


PRESETS = {
    "easy": WorldConfig(objects=(1, 2), distractors=(0, 0), occlusion=0.0, radius=(0.17, 0.25), sounding=(1, 1)),
    "default": WorldConfig(),
    "hard": WorldConfig(frames=24, objects=(3, 4), distractors=(1, 3), twins=0.4, occlusion=0.7, radius=(0.09, 0.16)),
    # For models of a million parameters: few pixels, large shapes unlike each other, much coming and going.
    "toy": WorldConfig(
        height=64,
        width=96,
        frames=8,
        distractors=(0, 0),
        twins=0.0,
        occlusion=0.4,
        radius=(0.17, 0.25),
        growth=0.4,
        presence=0.6,
        recording=(8, 2.0),
        voices=True,
    ),
    # No frame shows everything: shapes come and go among others like them, and which is meant is seen or heard in time.
    "fleeting": WorldConfig(
        height=64,
        width=96,
        frames=16,
        colours=("red", "green", "blue", "yellow", "purple"),
        kinds=("square", "triangle", "cross", "ring"),
        objects=(3, 4),
        distractors=(2, 2),
        twins=0.25,
        occlusion=0.3,
        radius=(0.14, 0.21),
        growth=0.2,
        presence=0.5,
        sounding=(2, 3),
        recording=(8, 2.0),
        voices=True,
        rims=False,
        stay=(0.35, 0.65),
        specks=0.4,
        shadow=0.15,
        relations=True,
    ),
}


@dataclass(frozen=True)
class Shape:
    """One object. Frames are counted from 0; lengths are pixels; intervals are half-open."""

    kind: str
    colour: str
    striped: bool
    present: tuple[int, int]  # frames in which it is within the picture, if nothing hides it
    way: tuple[tuple[float, float, float], ...]  # (frame, x, y) of its centre, straight lines between
    radius: tuple[float, float]  # at the first and at the last frame it is present
    tone: str | None = None
    sounds: tuple[int, int] | None = None  # frames during which the tone is on
    speck: int = 0  # frames after its coming in which it is a speck
    shadow: tuple[int, int] = (0, 0)  # frames in which it has no colour

    def at(self, frame: int) -> tuple[float, float, float]:
        """(x, y, radius) at a frame, on the grid."""
        return self._course[min(frame, self.present[1])]

    @functools.cached_property
    def _course(self) -> tuple[tuple[float, float, float], ...]:
        """`at` of every frame until it is gone; of scenes in the making it is asked for again and again."""
        frames = np.arange(self.present[1] + 1)
        times, xs, ys = zip(*self.way)
        first, last = self.present[0], max(self.present[0] + 1, self.present[1] - 1)
        size = np.interp(frames, (first, last), self.radius)
        if self.speck:
            begin, end = first + self.speck - 1, first + self.speck + 1
            size = np.array([np.interp(t, (begin, end), (SPECK, full)) for t, full in zip(frames, size)])
        on_grid = (np.rint(v * GRID) / GRID for v in (np.interp(frames, times, xs), np.interp(frames, times, ys), size))
        return tuple(zip(*(v.tolist() for v in on_grid)))


@dataclass(frozen=True)
class Scene:
    """Shapes from the farthest to the nearest: a later one hides an earlier one."""

    config: WorldConfig
    seed: int
    shapes: tuple[Shape, ...]
    background: int  # seed of its texture


def draw_scene(config: WorldConfig, seed: int, attempt: int) -> Scene | None:
    """One try at a scene; None if its sounds do not fit one after another. `scenes.make_scene` judges the rest."""
    rng = np.random.Generator(np.random.PCG64([seed, attempt]))
    scene = Scene(config, seed, _draw_shapes(config, rng), int(rng.integers(2**31)))
    return _give_tones(scene, rng)


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _chance(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


def _looks(config: WorldConfig, rng: np.random.Generator) -> list[tuple[str, str]]:
    """(colour, kind) of every shape, in random order."""
    count = int(rng.integers(config.objects[0], config.objects[1] + 1))
    colours = [config.colours[i] for i in rng.permutation(len(config.colours))[:count]]
    kinds = [config.kinds[i] for i in rng.permutation(len(config.kinds))[:count]]
    looks = list(zip(colours, kinds))
    for _ in range(int(rng.integers(config.distractors[0], config.distractors[1] + 1))):
        colour, kind = _pick(rng, looks[:count])
        if not _chance(rng, config.twins):
            same_colour = _chance(rng, 0.5)
            colour = colour if same_colour else _pick(rng, [c for c in config.colours if c != colour])
            kind = _pick(rng, [k for k in config.kinds if k != kind]) if same_colour else kind
        looks.append((colour, kind))
    return [looks[i] for i in rng.permutation(len(looks))]


def _draw_shapes(config: WorldConfig, rng: np.random.Generator) -> tuple[Shape, ...]:
    shapes: list[Shape] = []
    for colour, kind in _looks(config, rng):
        low, high = (share * min(config.height, config.width) for share in config.radius)
        size = low + (high - low) * rng.random()
        radius = (size, size)
        present = _stay(config, rng) if config.brief else None
        speck = present is not None and present[0] > 0 and _chance(rng, config.specks)
        speck = min(3, (present[1] - present[0]) // 2) if speck else 0
        if config.frames > 3 and _chance(rng, config.growth) and not speck:
            radius = (0.7 * size, 1.4 * size) if _chance(rng, 0.5) else (1.4 * size, 0.7 * size)
        striped = _chance(rng, 0.3)
        present = present or _presence(config, rng)
        shadow = (0, 0)
        if config.shadow and _chance(rng, config.shadow):
            half = (present[1] - present[0]) // 2
            start = present[0] + int(rng.integers(half + 1))
            shadow = (start, start + half)
        cross = bool(shapes) and _chance(rng, config.occlusion)
        candidates = []
        for _ in range(12):
            course = _draw_way(config, rng, present, max(radius), bool(speck))
            shape = Shape(kind, colour, striped, present, course, radius, speck=speck, shadow=shadow)
            candidates.append((_crossing(shape, shapes, cross), len(candidates), shape))
        shapes.append(min(candidates)[2])
    return tuple(shapes)


def _presence(config: WorldConfig, rng: np.random.Generator) -> tuple[int, int]:
    total = config.frames
    if total < 8 or not _chance(rng, config.presence):
        return (0, total)
    moment = int(rng.integers(total // 4, total - total // 3 + 1))
    return (moment, total) if _chance(rng, 0.6) else (0, moment)


def _stay(config: WorldConfig, rng: np.random.Generator) -> tuple[int, int]:
    """A part of the clip, one in two at its start or its end; whole seconds, as answers tell them."""
    second = max(1, round(config.fps))
    total = config.frames // second
    low, high = (max(1, round(share * total)) for share in config.stay)
    length = min(int(rng.integers(low, high + 1)), total)
    first = int(rng.integers(total - length + 1))
    if _chance(rng, 0.5):
        first = _pick(rng, (0, total - length))
    return first * second, config.frames if first + length == total else (first + length) * second


def _draw_way(
    config: WorldConfig, rng: np.random.Generator, present: tuple[int, int], radius: float, grown: bool = False
):
    """A way within the frame, with a slide in from outside where it enters, and out where it leaves.

    `grown`: a shape that enters as a speck, in its place.
    """
    first, last = present
    slide = 1 if config.brief else max(1, config.frames // 8)
    start = end = _spot(config, rng, radius)
    if last - first > 2 * slide and _chance(rng, config.motion):
        for _ in range(8):
            end = _spot(config, rng, radius)
            if math.dist(start, end) >= 0.35 * config.width:
                break
    if config.brief:
        course = [(first, *start)]
        if first > 0 and not grown:
            course = [(first - 1, *_outside(config, start, radius)), (first + slide, *start)]
        course += [(last - 1, *end)]
        if last < config.frames:
            course[-1:] = [(last - 1 - slide, *end), (last, *_outside(config, end, radius))]
    elif first > 0:
        course = [(first - 1, *_outside(config, start, radius)), (first + slide, *start), (last - 1, *end)]
    elif last < config.frames:
        course = [(first, *start), (last - 1 - slide, *end), (last, *_outside(config, end, radius))]
    else:
        course = [(first, *start), (last - 1, *end)]
    return tuple((float(t), *(round(v * GRID) / GRID for v in point)) for t, *point in course)


def _spot(config: WorldConfig, rng: np.random.Generator, radius: float) -> tuple[float, float]:
    """A place where a shape of this radius is wholly within the frame, as far as it fits."""
    margins = (min(radius, config.width / 2), min(radius, config.height / 2))
    x, y = (m + (length - 2 * m) * rng.random() for m, length in zip(margins, (config.width, config.height)))
    return x, y


def _outside(config: WorldConfig, point: tuple[float, float], radius: float) -> tuple[float, float]:
    """A place just beyond the nearest edge, so that the slide is short and plain."""
    x, y = point
    width, height = config.width, config.height
    beyond = {x: (-radius, y), width - x: (width + radius, y), y: (x, -radius), height - y: (x, height + radius)}
    return beyond[min(beyond)]


def _crossing(shape: Shape, others: list[Shape], is_crossing: bool) -> int:
    """How far the way is from what is wanted: to cross another for a while, or to stay clear of all. 0 is best."""
    frames = range(*shape.present)
    touching = 0
    for other in others:
        for t in frames:
            if other.present[0] <= t < other.present[1]:
                (x, y, r), (u, v, s) = shape.at(t), other.at(t)
                touching += math.dist((x, y), (u, v)) < (0.7 if is_crossing else 1.05) * (r + s)
    if not is_crossing:
        return touching
    return abs(touching - max(1, len(frames) // 4))


def _give_tones(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """Tones for some shapes, one at a time; None if they do not fit one after another."""
    config = scene.config
    max_count = min(config.sounding[1], len(scene.shapes))
    count = int(rng.integers(min(config.sounding[0], max_count), max_count + 1))
    if count == 0:
        return scene
    order = [int(i) for i in rng.permutation(len(scene.shapes))[:count]]
    names = {1: [_pick(rng, list(TONES))], 2: ["low", "high"], 3: list(TONES)}[count]
    names = [names[i] for i in rng.permutation(count)]
    if config.voices:
        names = [VOICES[scene.shapes[i].colour] for i in order]
    shapes, used_spans = list(scene.shapes), []
    for index, tone in zip(order, names):
        first, last = shapes[index].present
        length = max(1, min(last - first, config.frames // (count + 1)))
        length = int(rng.integers(max(1, length // 2), length + 1))
        fits = [
            (t, t + length)
            for t in range(first, last - length + 1)
            if all(t + length <= a or b <= t for a, b in used_spans)
        ]
        if not config.rims:
            fits = [span for span in fits if _plain_who(shapes, index, tone, span)]
        if not fits and config.rims:
            return None
        if not fits:
            continue  # it stays silent: with its voice one could not hear who sounds
        used_spans.append(_pick(rng, fits))
        shapes[index] = replace(shapes[index], tone=tone, sounds=used_spans[-1])
    return replace(scene, shapes=tuple(shapes)) if used_spans else None


def _plain_who(shapes: list[Shape], index: int, tone: str, span: tuple[int, int]) -> bool:
    """Whether ears tell who sounds: no other shape has this voice and is there then, or sounds with it ever."""
    others = [shape for n, shape in enumerate(shapes) if n != index and VOICES[shape.colour] == tone]
    return all(s.tone is None and (s.present[1] <= span[0] or span[1] <= s.present[0]) for s in others)
