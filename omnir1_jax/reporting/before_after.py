"""Before and after training on the same held-out clips: what was thought, where it looked, what was segmented."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from omnir1_jax.data import audio, media
from omnir1_jax.data.refs import ClipRef
from omnir1_jax.data.synthetic import encode
from omnir1_jax.reporting import draw, html, pictures
from omnir1_jax.reporting.example import Example
from omnir1_jax.reporting.html import Html, tag

KINDS = {"sound": "sound", "video": "order or motion", "image": "looks"}  # by what a query takes to understand
SIDES = ("cold start", "trained")
KEYFRAME_SIZE, TILE_SIZE = (480, 360), (216, 162)  # maximum width and height, twice what a page shows
TILES = 8  # frames whose masks are shown
WAVE = 240  # columns of a drawn sound
COLOURS = {"predicted": draw.PREDICTED, "true": draw.TRUTH, "chosen": draw.KEYFRAME}  # as in the pictures
STYLE = """
.legend span { margin-right: 18px; white-space: nowrap; }
.legend .mark { display: inline-block; width: 13px; height: 13px; border-radius: 3px; vertical-align: -2px; }
.timeline { display: grid; grid-template-columns: max-content 1fr; gap: 3px 12px; align-items: center;
  max-width: 760px; margin: 0 0 16px; font-size: 13px; }
.track { position: relative; height: 15px; background: var(--tint); border-radius: 3px; }
.track .mark { position: absolute; top: 0; bottom: 0; border-radius: 2px; }
.wave { height: 38px; }
.wave svg { height: 100%; fill: var(--soft); }
.mark.heard { background: var(--curve); }
.mark.missed { border: 2px solid; background: none; }
.ticks { position: relative; height: 18px; color: var(--soft); font-size: 12px; }
.ticks span { position: absolute; border-left: 1px solid var(--soft); padding-left: 3px; line-height: 14px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 6px 32px; margin: 0 0 36px; }
.pair > * { min-width: 0; overflow-wrap: anywhere; }
.pair figure { margin: 0 0 8px; }
.thought { margin: 0 0 6px; }
.strip { display: grid; grid-template-columns: repeat(4, 1fr); gap: 4px; }
.pair .strip figure { margin: 0; }
.strip img, .pair figure img { width: 100%; border: 0; }
@media (max-width: 600px) { .pair { column-gap: 12px; font-size: 13px; } .strip { grid-template-columns: 1fr 1fr; }
  .timeline { column-gap: 8px; font-size: 12px; } }
""" + "".join(f".mark.{name} {{ background: rgb{c}; border-color: rgb{c}; }}\n" for name, c in COLOURS.items())


class Side(NamedTuple):
    """An answer about a clip, with its clip and masks, and its J&F in percent."""

    example: Example
    score: float


class Pair(NamedTuple):
    """One held-out item before and after. `ref`: of the synthetic world. `kind`: of KINDS."""

    ref: ClipRef
    kind: str
    before: Side
    after: Side

    @property
    def gain(self) -> float:
        return self.after.score - self.before.score


class Comparison(NamedTuple):
    """One task before and after.

    Attributes:
      title: what the task is called on the page.
      gains: differences in J&F of all items, in percent, by kind of query.
      most: of each kind the item with the largest gain.
      least: the item that fell most, if any fell.
    """

    title: str
    gains: Mapping[str, Sequence[float]]
    most: Sequence[Pair]
    least: Pair | None


def sections(comparisons: Sequence[Comparison], run: str) -> list[Html]:
    """The part of the page with the clips; empty without a comparison.

    Args:
      run: name of the trained run.
    """
    if not comparisons:
        return []
    intro = (
        f"Held-out clips, answered by the cold start and by run {run}; System 2 is the same. Of each kind of query this "
        "is the clip whose J&F rose most, so look at the table too: in how many clips it rose, and in how many it fell."
    )
    out = [html.heading("Before and after"), tag("p", intro), _shares(comparisons), _legend()]
    for comparison in comparisons:
        for pair in comparison.most:
            change = "the largest rise" if pair.gain > 0 else "none rose; this one fell least"
            count = len(comparison.gains[pair.kind])
            out += _clip(pair, f"{comparison.title} by {KINDS[pair.kind]}", f"{change} of {count}")
    for comparison in comparisons:
        if comparison.least is not None:
            clip = _clip(comparison.least, f"{comparison.title} by {KINDS[comparison.least.kind]}", "the largest fall")
            out.append(html.details(f"{comparison.title}: the clip that fell most", *clip))
    return out


def thought(completion: str) -> str | None:
    """What a completion thinks; None without a thought that ends."""
    match = re.search(r"<think>(.*?)</think>", completion, re.DOTALL)
    return None if match is None else match[1].strip()


def _shares(comparisons: Sequence[Comparison]) -> Html:
    share = lambda flags: f"{100 * np.mean(flags):.0f} %"
    rows = []
    for comparison in comparisons:
        for kind, values in comparison.gains.items():
            gains = np.array(values)
            name = f"{comparison.title} by {KINDS[kind]}"
            rows.append((name, len(gains), share(gains > 0), share(gains < 0), share(gains == 0), float(gains.mean())))
    return html.table(("queries", "clips", "rose", "fell", "as before", "mean change of J&F"), rows)


def _legend() -> Html:
    entries = {"predicted": "predicted mask and box", "true": "true mask", "chosen": "frame shown to System 2"}
    items = [tag("span", tag("i", class_=f"mark {name}"), f" {label}") for name, label in entries.items()]
    return tag("p", *items, class_="soft legend")


def _clip(pair: Pair, task: str, change: str) -> list[Html]:
    sides = dict(zip(SIDES, (pair.before, pair.after)))
    visible = pair.before.example.clip.truth.any(axis=(1, 2))
    scores = f"J&F {pair.before.score:.1f} → {pair.after.score:.1f}, {change}"
    facts = f"{task} · {scores} · meant is the {_meant(pair.ref)} · {pair.ref.sample_id}"
    columns = [_side(name, side, visible) for name, side in sides.items()]
    cells = [cell for row in zip(*columns) for cell in row]  # row by row, so that equal parts are level
    return [
        tag("h3", f"“{pair.ref.query}”"),
        tag("p", facts, class_="soft"),
        _timeline(pair.ref, sides, visible),
        tag("div", *cells, class_="pair"),
    ]


def _meant(ref: ClipRef) -> str:
    """The looks of the shapes that a query means."""
    shapes = ref.extra["obj_id"] if "obj_id" in ref.extra else [ref.extra["fid"] - 1] * (not ref.extra["null"])
    return " and the ".join(ref.extra["looks"][n] for n in shapes) or "shape that is not there"


def _timeline(ref: ClipRef, sides: Mapping[str, Side], visible: Bool[np.ndarray, "t"]) -> Html:
    """The clip's sound, who is heard when, when the target is visible, and the frames that each side chose."""
    fps = media.frame_rate(ref.frames, ref.sample_id) or 1.0
    seconds, rows = len(visible) / fps, []
    if ref.audio is not None:
        rows.append(("sound", _wave(audio.load_audio(ref.audio, sample_id=ref.sample_id))))
        for look, tone, span in zip(*(ref.extra[key] for key in ("looks", "tones", "sounds"))):
            if span is not None:
                label = f"from {span[0]:g} to {span[1]:g} s"
                rows.append((f"{look}, {tone} tone", _track(seconds, [(span[0], span[1], "heard")], label)))
    frames = np.flatnonzero(visible).tolist()
    spans = [(t / fps, (t + 1) / fps, "true") for t in frames]
    rows.append(("target visible", _track(seconds, spans, f"in frames {', '.join(map(str, frames)) or 'none'}")))
    for name, side in sides.items():
        chosen = [keyframe.frame for keyframe in side.example.keyframes]
        spans = [(t / fps, (t + 1) / fps, "chosen" if visible[t] else "chosen missed") for t in chosen]
        rows.append((f"{name} looks", _track(seconds, spans, f"at frames {', '.join(map(str, chosen)) or 'none'}")))
    step = max(1, round(seconds / 8))
    ticks = [tag("span", f"{t} s", style=f"left:{100 * t / seconds:.2f}%") for t in range(0, int(seconds), step)]
    cells = [cell for name, track in rows for cell in (tag("span", name), track)]
    return tag("div", *cells, tag("span"), tag("div", *ticks, class_="ticks"), class_="timeline")


def _track(seconds: float, spans: Sequence[tuple[float, float, str]], label: str) -> Html:
    """Marks along the clip: from, to (both in seconds) and class of each."""
    place = lambda start, end: f"left:{100 * start / seconds:.2f}%;width:{100 * (end - start) / seconds:.2f}%"
    marks = [tag("i", class_=f"mark {kind}", style=place(start, end)) for start, end, kind in spans]
    return tag("div", *marks, class_="track", role="img", **{"aria-label": label})


def _wave(samples: Float[np.ndarray, "n"]) -> Html:
    """Lowest and highest sample of each column, as one outline."""
    columns = np.array_split(samples / max(float(np.abs(samples).max()), 1e-6), WAVE)
    top = [f"{x} {-part.max():.2f}" for x, part in enumerate(columns)]
    bottom = [f"{x} {-part.min():.2f}" for x, part in enumerate(columns)]
    path = Html(f'<path d="M{"L".join([*top, *reversed(bottom)])}Z"/>')
    view = f'viewBox="0 -1.05 {WAVE - 1} 2.1" preserveAspectRatio="none"'
    return tag("div", Html(f'<svg {view} role="img" aria-label="the sound\'s wave">{path}</svg>'), class_="track wave")


def _side(name: str, side: Side, visible: Bool[np.ndarray, "t"]) -> list[Html]:
    """Heading, thought, chosen frames, strip."""
    example = side.example
    thinks = thought(example.completion)
    words = f"no thought can be read: {example.completion}" if thinks is None else thinks or "(nothing)"
    chosen = [_keyframe(name, example, number, bool(visible[k.frame])) for number, k in enumerate(example.keyframes)]
    frames = np.unique(np.linspace(0, len(visible) - 1, TILES).round().astype(int)).tolist()
    return [
        tag("h4", f"{name} ", tag("span", f"J&F {side.score:.1f}", class_="chip")),
        tag("p", html.clipped(words, 600), class_="thought"),
        tag("div", *(chosen or [tag("p", "No plan could be read: no frame is shown to System 2.", class_="bad")])),
        tag("div", *(_tile(name, example, t, bool(visible[t])) for t in frames), class_="strip"),
    ]


def _keyframe(name: str, example: Example, number: int, visible: bool) -> Html:
    clip, keyframe = example.clip, example.keyframes[number]
    image = pictures.sized(clip, keyframe.frame, *KEYFRAME_SIZE)
    for box in keyframe.boxes:
        image = draw.boxed(image, box, clip.size, draw.PREDICTED, 3)
    boxes = f"{len(keyframe.boxes)} boxes" if len(keyframe.boxes) > 1 else "a box" if keyframe.boxes else "no box"
    seen = "visible" if visible else "not visible"
    caption = f"frame {keyframe.frame}: System 2 looks for “{keyframe.description}” and finds {boxes}; target {seen}"
    return html.picture(encode.jpeg(draw.framed(image, draw.KEYFRAME, 5)), f"{name}, {caption}", caption)


def _tile(name: str, example: Example, t: int, visible: bool) -> Html:
    image = pictures.sized(example.clip, t, *TILE_SIZE)
    if t in [keyframe.frame for keyframe in example.keyframes]:
        image = draw.framed(image, draw.KEYFRAME, 5)
    mask = "predicted mask" if example.clip.predicted[t].any() else "no predicted mask"
    alt = f"{name}, frame {t}: {mask}, target {'visible' if visible else 'not visible'}"
    return html.picture(encode.jpeg(image), alt, str(t))
