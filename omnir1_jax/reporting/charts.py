"""Curves and bars as SVG in the page: a few kilobytes each, whatever the number of points."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from omnir1_jax.reporting.html import Html, tag, text
from omnir1_jax.tasks.description import Number

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 8, 22
POINTS = 300  # maximum points of a curve
SMOOTH_FROM = 30  # steps from which a curve is drawn with its moving mean


def thin(
    x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"], points: int = POINTS
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """At most `points` points that keep every extreme: the lowest and the highest of each stretch, in order."""
    if len(x) <= points:
        return x, y
    keep = []
    for indices in np.array_split(np.arange(len(x)), points // 2):
        finite = indices[np.isfinite(y[indices])]
        keep += sorted({finite[np.argmin(y[finite])], finite[np.argmax(y[finite])]}) if len(finite) else [indices[0]]
    return x[keep], y[keep]


def smooth(y: Float[np.ndarray, "n"], window: int) -> Float[np.ndarray, "n"]:
    """Centred moving mean of the finite values; the window shrinks at the ends."""
    is_finite = np.isfinite(y)
    total = np.cumsum(np.concatenate([[0.0], np.where(is_finite, y, 0.0)]))
    count = np.cumsum(np.concatenate([[0], is_finite]))
    indices = np.arange(len(y))
    low, high = np.maximum(indices - window // 2, 0), np.minimum(indices + window // 2 + 1, len(y))
    seen = count[high] - count[low]
    return np.where(seen > 0, (total[high] - total[low]) / np.maximum(seen, 1), np.nan)


def ticks(low: Number, high: Number, count: int = 4, least: Number = 0.0) -> list[float]:
    """Round numbers within a range, `least` or more apart."""
    raw = max((high - low) / count, least)
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: Float[np.ndarray, "n"]) -> tuple[float, float]:
    """The range of an axis: never empty, in float64 so that differences of extremes stay finite."""
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or max(abs(low) * 0.1, 0.5)
    return low - margin, high + margin


def curve(
    title: str, x: Sequence[Number], y: Sequence[Number | None], width: int = WIDTH, height: int = HEIGHT
) -> Html:
    """One curve over the steps. None stands for a non-finite number: a gap, and a mark at the bottom."""
    steps = np.array(x, np.float64)
    values = np.clip(np.array([math.nan if v is None else v for v in y], np.float64), -1e30, 1e30)
    is_finite = np.isfinite(values)
    bad_count = int((~is_finite).sum())
    caption = f"{title}: " + (f"last {values[is_finite][-1]:.4g}" if is_finite.any() else "never finite")
    caption += f", {bad_count} not finite" if bad_count else ""
    parts: list[Html] = []
    if len(steps):
        span = (steps[0], steps[-1]) if steps[-1] > steps[0] else (steps[0] - 1.0, steps[0] + 1.0)
        reach = _range(values[is_finite]) if is_finite.any() else (0.0, 1.0)
        px = lambda v: LEFT + (v - span[0]) / (span[1] - span[0]) * (width - LEFT - RIGHT)
        py = lambda v: height - BOTTOM - (v - reach[0]) / (reach[1] - reach[0]) * (height - TOP - BOTTOM)
        parts += _axes(ticks(*span, least=1.0), ticks(*reach), px, py, width, height)
        if len(steps) >= SMOOTH_FROM:
            parts.append(_path(*thin(steps, values), px, py, "raw"))
            parts.append(_path(*thin(steps, smooth(values, max(len(steps) // 20, 5)), POINTS // 2), px, py, "curve"))
        else:
            parts.append(_path(steps, values, px, py, "curve"))
            dots = zip(px(steps[is_finite]), py(values[is_finite]))
            parts += [Html(f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>') for a, b in dots]
        marks = sorted({round(px(a)) for a in steps[~is_finite]})
        base = height - BOTTOM
        parts += [Html(f'<line class="bad" x1="{a}" x2="{a}" y1="{base}" y2="{base - 7}"/>') for a in marks]
    return _figure(caption, parts, width, height)


def histogram(title: str, values: Sequence[Number], low: Number, high: Number, bins: int = 20) -> Html:
    """Histogram between two ends; values beyond count in the outermost bins."""
    finite = np.array([v for v in values if math.isfinite(v)], np.float64)
    counts, edges = np.histogram(np.clip(finite, low, high), bins=bins, range=(low, high))
    width, height = 2 * WIDTH, HEIGHT
    top = max(int(counts.max()), 1)
    px = lambda v: LEFT + (v - low) / (high - low) * (width - LEFT - RIGHT)
    py = lambda v: height - BOTTOM - v / (1.05 * top) * (height - TOP - BOTTOM)
    parts = _axes(ticks(low, high, 10), ticks(0.0, 1.05 * top, least=1.0), px, py, width, height)
    for count, a, b in zip(counts, edges[:-1], edges[1:]):
        tooltip = text(f"{a:.3g} to {b:.3g}: {count}")
        box = f'x="{px(a) + 1:.1f}" width="{px(b) - px(a) - 2:.1f}" y="{py(count):.1f}"'
        parts.append(Html(f'<rect class="bar" {box} height="{py(0) - py(count):.1f}"><title>{tooltip}</title></rect>'))
    mean = f", mean {finite.mean():.4g}" if len(finite) else ""
    return _figure(f"{title}: {len(finite)} values{mean}", parts, width, height)


def _figure(caption: str, parts: list[Html], width: int, height: int) -> Html:
    drawing = "".join(parts)
    # A wide chart is not blown up beyond its size; small ones fill their column.
    wide = f' style="max-width:{width}px"' if width > WIDTH else ""
    svg = Html(f'<svg{wide} viewBox="0 0 {width} {height}" role="img" aria-label="{text(caption)}">{drawing}</svg>')
    return tag("figure", tag("figcaption", caption), svg)


def _axes(columns: list[float], rows: list[float], px, py, width: int, height: int) -> list[Html]:
    out = []
    for value in rows:
        y = f"{py(value):.1f}"
        out.append(Html(f'<line class="axis" x1="{LEFT}" x2="{width - RIGHT}" y1="{y}" y2="{y}"/>'))
        out.append(Html(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{short(value)}</text>'))
    for value in columns:
        x = px(value)
        anchor = "end" if x > width - 2 * RIGHT else "middle"  # the last one would be clipped at the edge
        x = min(x, width - 1) if anchor == "end" else x
        out.append(Html(f'<text x="{x:.1f}" y="{height - 5}" text-anchor="{anchor}">{short(value)}</text>'))
    return out


def short(value: Number) -> str:
    """A tick's label."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.2g}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    return f"{value:.6g}"


def _path(x, y, px, py, kind: str) -> Html:
    """A line with gaps where y is not finite."""
    commands, pen = [], False
    for a, b in zip(x, y):
        if math.isfinite(b):
            commands.append(f"{'L' if pen else 'M'}{px(a):.1f} {py(b):.1f}")
        pen = math.isfinite(b)
    return Html(f'<path class="{kind}" d="{"".join(commands)}"/>')
