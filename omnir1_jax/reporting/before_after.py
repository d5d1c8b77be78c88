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
from omnir1_jax.tasks.description import Keyframe

KINDS = {"sound": "sound", "video": "order or motion", "image": "looks"}  # by what a query takes to understand
SIDES = ("cold start", "trained")
KEYFRAME_SIZE, TILE_SIZE = (480, 360), (216, 162)  # maximum width and height, twice what a page shows
LINE = 3  # width of outlines
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
.track .mark.missed { background: none; border-width: 2px; }
.wave { height: 38px; }
.wave svg { height: 100%; fill: var(--soft); }
.mark.heard { background: var(--curve); }
.ticks { position: relative; height: 18px; color: var(--soft); font-size: 12px; }
.ticks span { position: absolute; border-left: 1px solid var(--soft); padding-left: 3px; line-height: 14px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 6px 32px; margin: 0 0 36px; }
.pair > * { min-width: 0; overflow-wrap: anywhere; }
.pair figure { margin: 0 0 8px; }
.thought { margin: 0 0 6px; }
.frames { display: flex; flex-wrap: wrap; gap: 4px 12px; }
.frames figure { flex: 1 1 150px; max-width: 400px; }
.strip { display: grid; grid-template-columns: repeat(4, 1fr); gap: 4px; }
.pair .strip figure { margin: 0; }
.pair img { width: 100%; border: 0; }
td { overflow-wrap: break-word; }
@media (max-width: 600px) { .pair { column-gap: 12px; font-size: 13px; } .strip { grid-template-columns: 1fr 1fr; }
  .timeline { column-gap: 8px; font-size: 12px; } }
""" + "".join(f".mark.{name} {{ background: rgb{c}; border: 0 solid rgb{c}; }}\n" for name, c in COLOURS.items())


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
        f"Held-out clips, answered by the cold start and by run {run}; System 2 is the same. Shown is, of each kind of "
        "query, the clip whose J&F rose most. The table says in how many it rose and in how many it fell."
    )
    out = [html.heading("Before and after"), tag("p", intro), _shares(comparisons), _legend()]
    for comparison in comparisons:
        for pair in comparison.most:
            change = "the largest rise" if pair.gain > 0 else "none rose" + "; this one fell least" * (pair.gain < 0)
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
    rows = []
    for comparison in comparisons:
        for kind, values in comparison.gains.items():
            gains = np.array(values)
            shares = (f"{100 * np.mean(flags):.0f}\u00a0%" for flags in (gains > 0, gains < 0))
            rows.append((f"{comparison.title} by {KINDS[kind]}", len(gains), *shares))
    # A mean of clips would be another number than the table's of sounding shapes.
    caption = "Clips by the change of their J&F. In this section it is DAVIS's; sounding shapes' tables have Ref-AVS's."
    return html.table(("queries", "clips", "rose", "fell"), rows, caption)


def _legend() -> Html:
    entries = {"predicted": "predicted mask and box", "true": "true mask", "chosen": "frame shown to System 2"}
    items = [tag("span", tag("i", class_=f"mark {name}"), f" {label}") for name, label in entries.items()]
    return tag("p", *items, class_="soft legend")


def _clip(pair: Pair, task: str, change: str) -> list[Html]:
    sides = dict(zip(SIDES, (pair.before, pair.after)))
    visible = pair.before.example.clip.truth.any(axis=(1, 2))
    scores = f"J&F {pair.before.score:.1f} → {pair.after.score:.1f}, {change}"
    facts = f"{task} · {scores} · meant is the {_meant(pair.ref)} · {pair.ref.sample_id}"
    columns = [_side(name, side, visible, _fps(pair.ref)) for name, side in sides.items()]
    cells = [cell for row in zip(*columns) for cell in row]  # row by row, so that equal parts are level
    return [
        tag("h3", f"“{pair.ref.query}”"),
        tag("p", facts, class_="soft"),
        _timeline(pair.ref, sides, visible),
        tag("div", *cells, class_="pair"),
    ]


def _fps(ref: ClipRef) -> float:
    return media.frame_rate(ref.frames, ref.sample_id) or 1.0


def _meant(ref: ClipRef) -> str:
    """The looks of the shapes that a query means."""
    shapes = ref.extra["obj_id"] if "obj_id" in ref.extra else [ref.extra["fid"] - 1] * (not ref.extra["null"])
    return " and the ".join(ref.extra["looks"][n] for n in shapes) or "shape that is not there"


def _timeline(ref: ClipRef, sides: Mapping[str, Side], visible: Bool[np.ndarray, "t"]) -> Html:
    """The clip's sound, who is heard when, when the target is visible, and the frames that each side chose."""
    fps = _fps(ref)
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
    step = max(1, round(seconds / 4))
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


def _side(name: str, side: Side, visible: Bool[np.ndarray, "t"], fps: float) -> list[Html]:
    """Heading, thought, chosen frames, strip."""
    example = side.example
    thinks = thought(example.completion)
    words = f"no thought can be read: {example.completion}" if thinks is None else thinks or "(nothing)"
    chosen = [_keyframe(name, example, keyframe, bool(visible[keyframe.frame]), fps) for keyframe in example.keyframes]
    frames = np.unique(np.linspace(0, len(visible) - 1, TILES).round().astype(int)).tolist()
    return [
        tag("h4", f"{name} ", tag("span", f"J&F {side.score:.1f}", class_="chip")),
        tag("p", tag("span", "thinks ", class_="soft"), html.clipped(words, 600), class_="thought"),
        tag("div", *(chosen or [tag("p", "No plan can be read: no frame is shown.", class_="bad")]), class_="frames"),
        tag("div", *(_tile(name, example, t, bool(visible[t]), fps) for t in frames), class_="strip"),
    ]


def _keyframe(name: str, example: Example, keyframe: Keyframe, visible: bool, fps: float) -> Html:
    image = _marked(example, keyframe.frame, *KEYFRAME_SIZE)
    for box in keyframe.boxes:
        image = draw.boxed(image, box, example.clip.size, draw.PREDICTED, 3)
    count = len(keyframe.boxes)
    boxes = f"{count or 'no'} box{'es' * (count != 1)}"
    target = f"the target is {'' if visible else 'not '}visible"
    caption = (
        f"at {keyframe.frame / fps:g} s: System 2 is asked for “{keyframe.description}” and draws {boxes}; {target}"
    )
    return html.picture(encode.jpeg(image), f"{name}, {caption}", caption)


def _tile(name: str, example: Example, t: int, visible: bool, fps: float) -> Html:
    mask = "a mask" if example.clip.predicted[t].any() else "no mask"
    alt = f"{name}, at {t / fps:g} s: {mask} is predicted, the target is {'' if visible else 'not '}visible"
    return html.picture(encode.jpeg(_marked(example, t, *TILE_SIZE)), alt, f"{t / fps:g} s")


def _marked(example: Example, t: int, width: int, height: int) -> pictures.Image:
    """A frame with the predicted mask filled and the outlines of both, the true one above; framed if it was chosen."""
    clip = example.clip
    scale = min(width / clip.size[0], height / clip.size[1])
    image = draw.fit(clip.frames[t], round(scale * clip.size[0]), round(scale * clip.size[1]))
    image = draw.outlined(draw.filled(image, clip.predicted[t]), clip.predicted[t], draw.PREDICTED, LINE)
    image = draw.outlined(image, clip.truth[t], draw.TRUTH, LINE)
    chosen = t in [keyframe.frame for keyframe in example.keyframes]
    return draw.framed(image, draw.KEYFRAME, 2 * LINE) if chosen else image
