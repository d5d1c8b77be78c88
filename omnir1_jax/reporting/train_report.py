"""The page of a training run, made from the files of its work directory: `report.html`, and what `serve` shows."""

import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from omnir1_jax.errors import InputError
from omnir1_jax.files import regular_file
from omnir1_jax.reporting import charts, html, rollouts_html
from omnir1_jax.reporting import names as metric_names
from omnir1_jax.reporting.html import Html, tag
from omnir1_jax.reporting.log import METRICS, PICTURES, clock
from omnir1_jax.reporting.rollouts_html import Query
from omnir1_jax.reporting.run_files import Group, RunFiles

REPORT = "report.html"
IMAGE_BYTES = 3_300_000  # of all pictures together, as base64
ROLLOUT_BYTES = 1_200_000  # of the rollouts in a report
CONFIG_CHARACTERS = 40_000
PROMPTS, PICTURED_PROMPTS = 24, 6  # prompts in a report, and how many of them have pictures
# The order in which groups of curves are shown, these open; others follow by name.
GROUPS = ("validate", "reward", "learn", "completion")
RATE = "learn/learning_rate"


def write_report(workdir: epath.PathLike) -> epath.Path:
    """Writes `report.html` into a run's work directory and returns its path.

    Reads `metrics.jsonl`, and if they exist `config.json`, `summary.json`, `rollouts.jsonl` and `pictures/`.

    Raises:
      InputError: no step has been logged, or a file was not written by the log.
    """
    run = RunFiles(workdir)
    metrics = run.folder / METRICS
    if not metrics.exists():
        raise InputError(f"{metrics} is missing: no step of a run has been logged in this folder")
    run.refresh()
    if not run.steps:
        raise InputError(f"{metrics} is empty: no step of the run has been logged yet")
    rollouts = _rollouts(run)
    script = rollouts_html.FILTER if rollouts else ""
    html.write(run.folder / REPORT, html.page(f"{title(run)} training report", *parts(run, rollouts), script=script))
    return run.folder / REPORT


def title(run: RunFiles) -> str:
    """The run's name."""
    return str(run.config.get("name") or run.folder.name or "run")


def parts(run: RunFiles, rollouts: Sequence[Html]) -> list[Html]:
    """The parts of the page of a run with at least one step, each with an id.

    Args:
      rollouts: content under their heading; empty if there are none.
    """
    count = sum("seconds" in row for row in run.steps)
    summary = f"Training report: {count} step{'s' * (count != 1)} logged."
    contents = {
        "status": [tag("p", summary, class_="soft"), html.tiles(_headline(run.steps, run.config))],
        "summary": _summary(run.summary),
        "curves": _curves(run.steps),
        "rollouts": [html.heading("Rollouts"), *rollouts] if rollouts else [],
        "failures": _failures(run.steps),
    }
    if run.config:
        config_text = html.clipped(json.dumps(run.config, indent=2, ensure_ascii=False), CONFIG_CHARACTERS)
        settings = html.details("Every setting of the run", tag("pre", config_text))
        contents["configuration"] = [html.heading("Configuration"), settings]
    sections = [tag("section", html.join(content), id=f"part-{name}") for name, content in contents.items() if content]
    return [tag("h1", title(run)), *sections]


def _rollouts(run: RunFiles) -> list[Html]:
    """A selection of prompts over the run that keeps the report small."""
    bytes_left = IMAGE_BYTES

    def picture(step: int, name: str, caption: str) -> Html | None:
        nonlocal bytes_left
        path = run.folder / PICTURES / str(step) / name
        small = shrink(regular_file.read_bytes(path), str(path))
        if (size := len(small) * 4 // 3) > bytes_left:
            return None
        bytes_left -= size
        return html.picture(small, caption, caption)

    pairs, size = [], 0
    for group in choose(run):
        rendered = rollouts_html.group(run, group, Query(), picture)
        size += len(rendered.encode())
        if pairs and size > ROLLOUT_BYTES + IMAGE_BYTES - bytes_left:
            break
        pairs.append((group, rendered))
    pairs.sort(key=lambda pair: -pair[0].step)
    groups = [group for group, _ in pairs]
    total = sum(len(group.rewards) for group in run.groups)
    summary = (
        f"{len(groups)} of the {len(run.groups)} prompts, {sum(len(g.rewards) for g in groups)} of the {total} rollouts"
    )
    rest_note = " The others are left out here; python -m omnir1_jax.serve --run DIRECTORY shows all of them."
    note = tag("p", f"{summary}.{rest_note * (len(groups) < len(run.groups))}", class_="soft")
    return (
        [note, rollouts_html.form(Query(), groups), tag("div", *(rendered for _, rendered in pairs))] if pairs else []
    )


def choose(run: RunFiles) -> list[Group]:
    """The prompts of a report, the most important first: the last with pictures, the last, some over the entire run."""
    pictured = itertools.islice((group for group in reversed(run.groups) if run.pictures(group)), PICTURED_PROMPTS)
    even = np.linspace(len(run.groups) - 1, 0, PROMPTS).round().astype(int) if run.groups else ()
    chosen = [*pictured, *(run.groups[index] for index in even)]
    return list({id(group): group for group in chosen}.values())[:PROMPTS]


def _headline(steps: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[tuple[str, object]]:
    tasks, steps = [row.get(metric_names.TASK) for row in steps], [metric_names.without_task(row) for row in steps]
    seconds = [row["seconds"] for row in steps if isinstance(row.get("seconds"), (int, float))]
    rows: list[tuple[str, object]] = []
    if config.get("objective"):
        rows.append(("objective", str(config["objective"])))
    total = config.get("steps")
    rows.append(("steps", f"{steps[-1]['step']} of {total}" if isinstance(total, int) else str(steps[-1]["step"])))
    if schedule := _learning_rate(config):
        rows.append(("learning rate", schedule))
    rates = [row[RATE] for row in steps if row.get(RATE) is not None]
    if rates:
        rows.append(("learning rate, at the last step", f"{rates[-1]:.3g}"))
    if seconds:
        seconds_left = (total - steps[-1]["step"]) * statistics.median(seconds) if isinstance(total, int) else 0
        rows += [("time left", clock(seconds_left))] if seconds_left > 0 else []
        rows.append(("time in steps", clock(sum(seconds))))
        rows.append(("seconds a step, median", f"{statistics.median(seconds):.3g}"))
    several = len({*tasks} - {None}) > 1  # their rewards and failures have different scales
    failed = lambda row: [row[name] or 0 for name in row if name.startswith("failure/")]
    steps = [row | {"failures": sum(failed(row))} if failed(row) else row for row in steps]
    labels = {"reward/total": "reward", "learn/loss": "loss", "loss": "loss", "failures": "failures a step"}
    for metric, label in labels.items():
        for task in dict.fromkeys(tasks):
            task_rows = [row for row, name in zip(steps, tasks) if name == task]
            values = [row[metric] for row in task_rows if isinstance(row.get(metric), (int, float))]
            if values:
                part = max(1, len(values) // 20)
                first, last = statistics.fmean(values[:part]), statistics.fmean(values[-part:])
                note = f" (means of {part} steps)" if part > 1 else ""
                rows.append((f"{label}{f' of {task}' * several}, first to last", f"{first:.4g} → {last:.4g}{note}"))
    rows.append(("numbers that were not finite", str(sum(value is None for row in steps for value in row.values()))))
    skipped = [row["learn/skipped"] for row in steps if isinstance(row.get("learn/skipped"), (int, float))]
    if skipped:
        rows.append(("updates skipped", f"{skipped[-1]:.0f}"))
    return rows


def _learning_rate(config: Mapping[str, Any]) -> str:
    """The peak learning rate and its schedule as text."""
    optimizer = config.get("optimizer")
    if not isinstance(optimizer, Mapping) or not isinstance(optimizer.get("learning_rate"), (int, float)):
        return ""
    parts = [f"{optimizer['learning_rate']:g}, {optimizer.get('schedule', '')}"]
    if optimizer.get("schedule") != "constant":
        parts.append(f"to {optimizer['learning_rate'] * optimizer.get('final_share', 0):g}")
    if optimizer.get("warmup_steps"):
        parts.append(f"after {optimizer['warmup_steps']} updates of warm-up")
    return " ".join(parts)


def _summary(summary: Mapping[str, Any]) -> list[Html]:
    """The summary; parts with the same names (before and after) side by side; a long list opens on a click."""
    numbers = lambda value: (
        isinstance(value, Mapping) and not any(isinstance(v, (Mapping, list)) for v in value.values())
    )
    flat_parts = {key: value for key, value in summary.items() if numbers(value)}
    shares_keys = lambda first, second: (
        first is not second and 2 * len(first.keys() & second.keys()) > max(len(first), len(second))
    )
    comparable = {
        key: value
        for key, value in flat_parts.items()
        if any(shares_keys(value, second) for second in flat_parts.values())
    }
    tables = []
    leaves = flatten_dict({key: value for key, value in summary.items() if key not in comparable}, sep=" / ")
    flat = [(name, _leaf(value)) for name, value in leaves.items()][:200]
    if flat:
        tables.append(html.table((), flat))
    if comparable:
        names = list(dict.fromkeys(name for part in comparable.values() for name in part))
        rows = [(name, *(part.get(name) for part in comparable.values())) for name in names]
        table = html.table(("", *comparable), rows)
        tables.append(table if len(rows) <= 12 else html.details(", ".join(comparable), table))
    return [html.heading("Summary"), *tables] if tables else []


def _leaf(value: Any) -> Any:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
    return html.clipped(text, 400) if isinstance(text, str) else text


def _curves(steps: Sequence[Mapping[str, Any]]) -> list[Html]:
    """One small chart per metric, grouped by prefix."""
    series: dict[str, tuple[list[float], list[float | None]]] = defaultdict(lambda: ([], []))
    for row in steps:
        for key, value in row.items():
            if key != "step" and not key.startswith("failure/") and (value is None or isinstance(value, (int, float))):
                series[key][0].append(row["step"])
                series[key][1].append(value)
    groups: dict[str, list[str]] = defaultdict(list)
    for key in series:
        groups[key.split("/")[0] if "/" in key else "run"].append(key)
    order = [name for name in GROUPS if name in groups] + sorted(groups.keys() - set(GROUPS))
    out = [html.heading("Curves"), tag("p", "Over steps. Pale: each step; strong: the moving mean.", class_="soft")]
    for group in order:
        names = sorted(groups[group], key=lambda key: not key.endswith("/total"))  # totals first
        curves = [charts.curve(key, *series[key]) for key in names]
        out.append(html.details(tag("b", group), tag("div", *curves, class_="grid"), is_open=group in GROUPS))
    return out


def shrink(data: bytes, name: str) -> bytes:
    """A PNG as JPEG, a fifth of the size for video frames; small images are kept unchanged.

    Raises:
      InputError: the data is not a picture.
    """
    if len(data) < 60_000:
        return data
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"{name} is not a picture that can be read; move it elsewhere")
    for quality in (85, 70, 50):
        small = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(small) < 500_000:
            break
    return min(small, data, key=len)


def _failures(steps: Sequence[Mapping[str, Any]]) -> list[Html]:
    kinds = list(dict.fromkeys(key for row in steps for key in row if key.startswith("failure/")))
    rows = []
    for kind in kinds:
        counts = [row[kind] or 0.0 for row in steps if kind in row]
        part = max(1, len(counts) // 10)
        mean = statistics.fmean
        rows.append((kind.removeprefix("failure/"), sum(counts), mean(counts[:part]), mean(counts[-part:])))
    table_rows = sorted((row for row in rows if row[1]), key=lambda row: -row[1])
    never = [row[0] for row in rows if not row[1]]
    if not rows:
        return []
    out = [html.heading("Failures")]
    if table_rows:
        out.append(html.table(("kind", "in all", "a step, first tenth", "a step, last tenth"), table_rows))
    if never:
        out.append(tag("p", f"Never: {', '.join(never)}.", class_="soft"))
    return out
