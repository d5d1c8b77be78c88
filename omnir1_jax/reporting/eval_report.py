"""`report.html` of an evaluation: the scores, their distribution, and the best, median and worst clips."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from omnir1_jax.errors import InputError
from omnir1_jax.reporting import charts, html
from omnir1_jax.reporting.html import Html, tag
from omnir1_jax.reporting.train_report import IMAGE_BYTES, shrink
from omnir1_jax.tasks.description import Number

SHOWN_ROWS = 500


class Row(NamedTuple):
    """One sample of an evaluation.

    j, f: region similarity and contour accuracy in [0, 1]; None where the sample could not be scored. failures: names
    of what went wrong. picture: a PNG. note: a line to stand under the query, such as the plan.
    """

    sample_id: str
    query: str
    j: float | None
    f: float | None
    failures: tuple[str, ...] = ()
    picture: bytes | None = None
    note: str = ""

    @property
    def mean(self) -> float | None:
        """J&F."""
        return None if self.j is None or self.f is None else (self.j + self.f) / 2


def chosen(scores: Sequence[Number | None], count: int = 3) -> dict[str, list[int]]:
    """Samples to draw: indices of the best, median and worst by J&F, without repetition."""
    ranked = sorted((i for i, score in enumerate(scores) if score is not None), key=lambda i: (-scores[i], i))
    count = min(count, math.ceil(len(ranked) / 3))
    best, worst = ranked[:count], ranked[len(ranked) - count :] if len(ranked) > count else []
    between = ranked[len(best) : len(ranked) - len(worst)]
    start = max((len(between) - count) // 2, 0)
    return {"best": best, "median": between[start : start + count], "worst": worst[::-1]}


def write_eval_report(
    target: epath.PathLike,
    title: str,
    rows: Sequence[Row],
    results: Sequence[Mapping[str, Any]] = (),
    settings: Mapping[str, Any] | None = None,
    count: int = 3,
) -> epath.Path:
    """Writes the page and returns its path.

    Args:
      target: file to write.
      rows: every sample; only those that `chosen` names need a picture.
      results: the table at the top, one mapping per line (a method or a baseline), with equal keys.
      settings: shown unchanged: checkpoint, benchmark, split, seconds.
    """
    if not rows:
        raise InputError(f"{target}: an evaluation without a sample has no report")
    sections: list[object] = [tag("h1", title), tag("p", f"Evaluation report: {len(rows)} samples.", class_="soft")]
    if results:
        header = list(dict.fromkeys(key for entry in results for key in entry))
        sections.append(html.table(header, [[entry.get(key) for key in header] for entry in results]))
    if settings:
        sections += [html.heading("Settings"), html.table((), [(key, value) for key, value in settings.items()])]
    scores = [row.mean for row in rows]
    scored = [score for score in scores if score is not None]
    if scored:
        sections += [
            html.heading("Distribution of J&F"),
            charts.histogram("J&F of each sample, in percent", [100 * score for score in scored], 0.0, 100.0),
            html.table(("", "mean", "lowest", "quarter", "median", "three quarters", "highest"), _spread(rows)),
        ]
    sections += _clips(rows, chosen(scores, count))
    sections += _failures(rows)
    sections += _samples(rows)
    path = epath.Path(target)
    html.write(path, html.page(title, *sections))
    return path


def _spread(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    out = []
    for name, values in (
        ("J", [row.j for row in rows]),
        ("F", [row.f for row in rows]),
        ("J&F", [row.mean for row in rows]),
    ):
        percentages = 100 * np.array([value for value in values if value is not None], np.float64)
        if len(percentages):
            out.append(
                (name, float(percentages.mean()), *(float(v) for v in np.percentile(percentages, [0, 25, 50, 75, 100])))
            )
    return out


def _percent(value: float | None) -> str:
    return "not scored" if value is None else f"{100 * value:.1f}"


def _clips(rows: Sequence[Row], picked: Mapping[str, Sequence[int]]) -> list[Html]:
    out, bytes_left = [], IMAGE_BYTES
    for kind, indices in picked.items():
        if indices:
            out.append(html.heading(f"{kind.capitalize()} clips"))
        for i in indices:
            row = rows[i]
            out.append(tag("h3", html.clipped(row.query, 400)))
            caption = f"{row.sample_id} · J&F {_percent(row.mean)}, J {_percent(row.j)}, F {_percent(row.f)}"
            out.append(tag("p", " · ".join([caption, *row.failures]), class_="soft"))
            if row.note:
                out.append(tag("pre", html.clipped(row.note, 2000)))
            if row.picture:
                small = shrink(row.picture, f"the picture of {row.sample_id}")
                bytes_left -= len(small) * 4 // 3
                if bytes_left >= 0:
                    out.append(html.picture(small, f"Clip {row.sample_id}"))
    return out


def _failures(rows: Sequence[Row]) -> list[Html]:
    kinds = Counter(kind for row in rows for kind in row.failures)
    failed = sum(bool(row.failures) for row in rows)
    summary = f"{failed} of {len(rows)} samples failed in some way."
    out = [html.heading("Failures"), tag("p", summary, class_="soft")]
    if kinds:
        score = lambda kind: [100 * row.mean for row in rows if kind in row.failures and row.mean is not None]
        mean = lambda values: float(np.mean(values)) if values else None
        table_rows = [(kind, count, 100 * count / len(rows), mean(score(kind))) for kind, count in kinds.most_common()]
        out.append(html.table(("kind", "times", "per 100 samples", "their mean J&F"), table_rows))
    return out


def _samples(rows: Sequence[Row]) -> list[Html]:
    """Every sample, or the first of very many, behind a click."""
    percent = lambda value: None if value is None else 100 * value
    table_rows = [
        (row.sample_id, html.clipped(row.query, 200), *map(percent, (row.mean, row.j, row.f)), ", ".join(row.failures))
        for row in rows[:SHOWN_ROWS]
    ]
    summary = f"All {len(rows)}" if len(rows) <= SHOWN_ROWS else f"The first {SHOWN_ROWS} of {len(rows)}"
    table = html.table(("sample", "query", "J&F", "J", "F", "failures"), table_rows)
    return [html.heading("Samples"), html.details(summary, table)]
