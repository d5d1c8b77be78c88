"""`report.html` of a training run: made from the files of its work directory, at any time of the run."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from etils import epath

from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file, regular_file
from omnir1_jax.reporting import charts, html, lines
from omnir1_jax.reporting import names as metric_names
from omnir1_jax.reporting.html import Html, tag
from omnir1_jax.reporting.log import METRICS, PICTURES, ROLLOUTS, clock

REPORT = "report.html"
TAIL_BYTES = 4 << 20  # of the rollouts, enough for the last steps
IMAGE_BYTES = 3_300_000  # of all pictures together, in base64
COMPLETIONS, CHARACTERS, CONFIG_CHARACTERS = 12, 4000, 40_000
PICTURES_SHOWN = 8
# The order in which groups of curves are shown; others follow by name.
GROUPS = ("validate", "reward", "learn", "completion")


def write_report(workdir: epath.PathLike) -> epath.Path:
    """Writes `report.html` into a run's work directory and returns its path.

    Reads `metrics.jsonl`, and where they are `config.json`, `summary.json`, `rollouts.jsonl` and `pictures/`.

    Raises:
      InputError: no step has been logged, or a file is not what the log writes.
    """
    folder = epath.Path(workdir)
    if not (folder / METRICS).exists():
        raise InputError(f"{folder / METRICS} is missing: no step of a run has been logged in this folder")
    steps = list(lines.read_metrics(regular_file.read_bytes(folder / METRICS), str(folder / METRICS)))
    if not steps:
        raise InputError(f"{folder / METRICS} is empty: no step of the run has been logged yet")
    config, summary = _json(folder / "config.json"), _json(folder / "summary.json")
    name = str(config.get("name") or folder.name or "run")
    sections = [
        tag("h1", name),
        tag("p", f"Training report: {len(steps)} step{'s' * (len(steps) > 1)} logged.", class_="soft"),
        html.table((), _headline(steps, config)),
        *_summary(summary),
        *_curves(steps),
        *_clips(folder / PICTURES),
        *_failures(steps),
        *_completions(_tail(folder / ROLLOUTS)),
    ]
    if config:
        shown = html.clipped(json.dumps(config, indent=2, ensure_ascii=False), CONFIG_CHARACTERS)
        sections += [html.heading("Configuration"), html.details("Every setting of the run", tag("pre", shown))]
    html.write(folder / REPORT, html.page(f"{name} training report", *sections))
    return folder / REPORT


def _json(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    return json_file.read_object(path)


def _headline(steps: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[tuple[str, object]]:
    steps = [metric_names.without_task(row) for row in steps]
    seconds = [row["seconds"] for row in steps if isinstance(row.get("seconds"), (int, float))]
    rows: list[tuple[str, object]] = []
    if config.get("objective"):
        rows.append(("objective", str(config["objective"])))
    asked = config.get("steps")
    rows.append(("steps", f"{steps[-1]['step']} of {asked}" if isinstance(asked, int) else str(steps[-1]["step"])))
    if rate := _learning_rate(config):
        rows.append(("learning rate", rate))
    if seconds:
        rows.append(("time in steps", clock(sum(seconds))))
        rows.append(("seconds a step, median", f"{statistics.median(seconds):.3g}"))
    for metric, said in (("reward/total", "reward"), ("learn/loss", "loss"), ("loss", "loss")):
        known = [row[metric] for row in steps if isinstance(row.get(metric), (int, float))]
        if known:
            part = max(1, len(known) // 20)
            first, last = statistics.fmean(known[:part]), statistics.fmean(known[-part:])
            over = f" (means of {part} steps)" if part > 1 else ""
            rows.append((f"{said}, first to last", f"{first:.4g} → {last:.4g}{over}"))
    broken = sum(value is None for row in steps for value in row.values())
    rows.append(("numbers that were not finite", str(broken)))
    skipped = [row["learn/skipped"] for row in steps if isinstance(row.get("learn/skipped"), (int, float))]
    if skipped:
        rows.append(("updates skipped", f"{skipped[-1]:.0f}"))
    failed = [float(sum(row[key] or 0 for key in row if key.startswith("failure/"))) for row in steps]
    if any("failure/" in key for row in steps for key in row):
        part = max(1, len(failed) // 20)
        first, last = statistics.fmean(failed[:part]), statistics.fmean(failed[-part:])
        rows.append(("failures a step, first to last", f"{first:.4g} → {last:.4g}"))
    return rows


def _learning_rate(config: Mapping[str, Any]) -> str:
    """The peak with its schedule, in words."""
    own = config.get("optimizer")
    if not isinstance(own, Mapping) or not isinstance(own.get("learning_rate"), (int, float)):
        return ""
    parts = [f"{own['learning_rate']:g}, {own.get('schedule', '')}"]
    if own.get("schedule") != "constant":
        parts.append(f"to {own.get('final_share', 0):g} of it")
    if own.get("warmup_steps"):
        parts.append(f"after {own['warmup_steps']} updates of warm-up")
    return " ".join(parts)


def _summary(summary: Mapping[str, Any]) -> list[Html]:
    """Parts with the same names, as before and after, stand side by side; a long list opens on a click."""
    numbers = lambda value: (
        isinstance(value, Mapping) and not any(isinstance(v, (Mapping, list)) for v in value.values())
    )
    beside = {key: value for key, value in summary.items() if numbers(value)}
    if len(beside) < 2 or not set.intersection(*(set(value) for value in beside.values())):
        beside = {}
    tables = []
    flat = [(name, value) for name, value in _flat({k: v for k, v in summary.items() if k not in beside})][:200]
    if flat:
        tables.append(html.table((), flat))
    if beside:
        names = list(dict.fromkeys(name for part in beside.values() for name in part))
        rows = [(name, *(part.get(name) for part in beside.values())) for name in names]
        table = html.table(("", *beside), rows)
        tables.append(table if len(rows) <= 12 else html.details(", ".join(beside), table))
    return [html.heading("Summary"), *tables] if tables else []


def _flat(tree: Any, name: str = "") -> Any:
    """Leaves of a tree by path."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{name} / {key}" if name else str(key))
    elif isinstance(tree, list):
        yield name, html.clipped(json.dumps(tree, ensure_ascii=False), 400)
    else:
        yield name, html.clipped(tree, 400) if isinstance(tree, str) else tree


def _curves(steps: Sequence[Mapping[str, Any]]) -> list[Html]:
    """One small chart a metric, those of the same prefix together."""
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
        names = sorted(groups[group], key=lambda key: not key.endswith("/total"))  # what matters most comes first
        drawn = [charts.curve(key, *series[key]) for key in names]
        out += [tag("h3", group), tag("div", *drawn, class_="grid")]
    return out


def _clips(folder: epath.Path) -> list[Html]:
    """The last pictures that were made, as many as the page has room for."""
    if not folder.exists():
        return []
    made = sorted((entry for entry in folder.iterdir() if entry.name.isdecimal()), key=lambda e: -int(e.name))
    shown, room = [], IMAGE_BYTES
    for step in made:
        for path in sorted(step.glob("*.png")):
            small = shrink(regular_file.read_bytes(path), str(path))
            room -= len(small) * 4 // 3
            if room < 0 or len(shown) == PICTURES_SHOWN:
                return _with_title(shown)
            shown.append(html.picture(small, f"Clip of step {step.name}", f"step {step.name}, {path.stem}"))
    return _with_title(shown)


def _with_title(shown: list[Html]) -> list[Html]:
    return [html.heading("Clips"), *shown] if shown else []


def shrink(data: bytes, name: str) -> bytes:
    """A PNG as JPEG, in which frames of a film take a fifth of the room; small ones stay as they are.

    Raises:
      InputError: the data is no picture.
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
    met = sorted((row for row in rows if row[1]), key=lambda row: -row[1])
    never = [row[0] for row in rows if not row[1]]
    if not rows:
        return []
    out = [html.heading("Failures")]
    if met:
        out.append(html.table(("kind", "in all", "a step, first tenth", "a step, last tenth"), met))
    if never:
        out.append(tag("p", f"Never: {', '.join(never)}.", class_="soft"))
    return out


def _tail(path: epath.Path) -> list[dict[str, Any]]:
    """The last lines of a file of any size."""
    if not path.exists():
        return []
    with regular_file.require(path).open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        data = file.read()
    if size > TAIL_BYTES:
        data = data[data.find(b"\n") + 1 :]
    rows = list(lines.read(data, str(path)))
    for row in rows:
        keyframes, failures, rewards = (row.get(key) or kind() for key, kind in _ROLLOUT.items())
        good = isinstance(keyframes, list) and all(isinstance(keyframe, dict) for keyframe in keyframes)
        good = good and isinstance(failures, list) and isinstance(rewards, dict)
        if not good or not all(value is None or type(value) in (int, float) for value in rewards.values()):
            step = json_file.describe(row["step"])
            raise InputError(f"{path}: a rollout of step {step} has no lists of keyframes and failures, or no rewards")
    return rows


_ROLLOUT = {"keyframes": list, "failures": list, "rewards": dict}


def _completions(rollouts: Sequence[Mapping[str, Any]]) -> list[Html]:
    """Of the last step: best to worst, evenly chosen."""
    if not rollouts:
        return []
    last = [row for row in rollouts if row.get("step") == rollouts[-1].get("step")]
    value = lambda row: row.get("reward") if isinstance(row.get("reward"), (int, float)) else -math.inf
    ranked = sorted(last, key=value, reverse=True)
    chosen = ranked
    if len(ranked) > COMPLETIONS:
        chosen = [ranked[i] for i in np.linspace(0, len(ranked) - 1, COMPLETIONS).round().astype(int)]
    said = f"{len(chosen)} of the {len(ranked)} of step {last[-1].get('step')}, best first."
    return [
        html.heading("Completions"),
        tag("p", said, class_="soft"),
        *(completion(row, i < 2) for i, row in enumerate(chosen)),
    ]


def completion(row: Mapping[str, Any], shown: bool = False) -> Html:
    """One line of `rollouts.jsonl` to read."""
    reward = row.get("reward")
    head = tag("b", html.clipped(str(row.get("query", "")), 200) or "(no query)")
    facts = [str(row.get("sample_id", ""))]
    facts += [f"reward {reward:.4g}"] if isinstance(reward, (int, float)) else []
    facts += [str(kind) for kind in row.get("failures") or ()]
    parts = [tag("pre", html.clipped(str(row.get("completion", "")), CHARACTERS))]
    if row.get("answer") is not None:
        parts.append(tag("p", f"Read as: {html.clipped(str(row['answer']), 400)}"))
    if row.get("gold") is not None:
        parts.append(tag("p", f"Right: {html.clipped(str(row['gold']), 400)}"))
    looked = [
        (k.get("frame"), html.clipped(str(k.get("description", "")), 300), html.clipped(str(k.get("answer", "")), 600))
        for k in row.get("keyframes") or ()
    ]
    if looked:
        parts.append(html.table(("frame", "description", "System 2's answer"), looked))
    terms = row.get("rewards") or {}
    if terms:
        listed = ", ".join(f"{name} {value:.3g}" if value is not None else name for name, value in terms.items())
        parts.append(tag("p", listed, class_="soft"))
    return html.details(html.join([head, tag("span", " · ".join(facts), class_="soft")], " "), *parts, shown=shown)
