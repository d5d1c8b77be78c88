"""Report of the toy: tables, curves of the runs, and the page that shows both after clips before and after."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath

from omnir1_jax.cli import atomic_path
from omnir1_jax.files import regular_file
from omnir1_jax.reporting import before_after, charts, html, lines, names
from omnir1_jax.reporting.before_after import Comparison
from omnir1_jax.reporting.html import tag
from omnir1_jax.reporting.log import METRICS
from omnir1_jax.reporting.train_report import shrink

Table = tuple[str, tuple[str, ...], list[tuple[Any, ...]]]  # caption, header, rows
BASELINES = {"uniform": "uniform frames", "random": "random frames", "first": "the first frame"}
TITLES = {
    **{"all": "RK + RA + RG", "rk_ra": "RK + RA", "rk_rg": "RK + RG", "rk": "RK"},
    "sft": "SFT on plans of the ground truth",
}
KINDS = {kind: f"by {name}" for kind, name in reversed(before_after.KINDS.items())}
REWARDS = (
    "reward", "J&F", "true boxes in its frames", "by sound", "sounding shapes", "box IoU, sampled, %",
    "flat groups, last fifth, %", "seeds",
)  # fmt: skip
SOUNDS = {"own": "own sound", "muted": "muted", "swapped": "another clip's"}
CURVES = {
    "reward, segmentation clips": (True, "reward/total"),
    "J of sampled answers": (True, "reward/segmentation"),
    "box IoU, clips with sound": (False, "reward/accuracy"),
}


def spread(values: Sequence[float]) -> str:
    """Mean and sample deviation."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def tables(results: Mapping[str, Any]) -> list[Table]:
    """The measured tables; those of the main reward, then the comparison of rewards if there is one.

    What an older version did not measure is left out.
    """
    cold, runs = results["before"], results["runs"]
    main = [run for run in runs.values() if run["reward"] == "all"]
    clips = f"{results['clips']} held-out clips"
    seeds = f"{results['steps']} steps, {len(main)} seeds" if len(main) != 1 else f"{results['steps']} steps"
    out: list[Table] = []
    if main:
        out.append((f"Segmentation, {clips}, {seeds}", ("", "J&F"), _segmentation(cold["vos"], main)))
        labels = [f"plan/{kind}" for kind in KINDS]
        if all(label in cold["vos"] for label in labels):
            rows = _before_after(cold, main, "vos", labels)
            out.append((f"Segmentation, {clips}, its own plan", ("J&F of queries", *KINDS.values()), rows))
        names = ("J&F", *SOUNDS.values())
        out.append((f"Sounding shapes, {clips}", names, _before_after(cold, main, "refavs", tuple(SOUNDS))))
        heard = ("plan/sound", "vos_muted/sound", "vos_swapped/sound")
        if all(label in cold["vos"] for label in heard):
            out.append((f"Segmentation by sound, {clips}", names, _before_after(cold, main, "vos", heard)))
        rows = []
        for name in main[0]["learnt"]:
            ends = [[run["learnt"][name][end] for run in main if name in run["learnt"]] for end in ("first", "last")]
            rows.append((name, *(f"{statistics.fmean(values):.3f}" for values in ends)))
        out.append(("Sampled answers while training", ("", "first fifth", "last fifth"), rows))
    if len({run["reward"] for run in runs.values()}) > 1:
        out.append(("Rewards", REWARDS, _rewards(cold, runs)))
    return out


def _segmentation(cold: Mapping[str, float], main: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The cold start and what is chosen blindly, what was learnt, and what true boxes make of either."""
    trained = lambda label: [run["vos"][label] for run in main]
    rows = [("cold start, its own plan", f"{cold['plan']:.1f}")]
    rows += [(f"its description in {label}", f"{cold[rule]:.1f}") for rule, label in BASELINES.items()]
    blind = {label: cold.get(f"query_{rule}") for rule, label in BASELINES.items()}
    rows += [(f"the query's words in {label}", f"{value:.1f}") for label, value in blind.items() if value is not None]
    rows += [("trained, its own plan", spread(trained("plan")))]
    gains = [plan - cold["plan"] for plan in trained("plan")]
    rows += [("gain over the cold start", spread(gains))]
    if "boxes_best" in cold:
        rows += [("its description in uniform frames", spread(trained("uniform")))]
        rows += [("true boxes in the cold start's frames", f"{cold['boxes_plan']:.1f}")]
        rows += [("true boxes in uniform frames", f"{cold['boxes_uniform']:.1f}")]
        rows += [("true boxes in the trained plan's frames", spread(trained("boxes_plan")))]
        rows += [("true boxes in the best frames: the ceiling", f"{cold['boxes_best']:.1f}")]
        room = cold["boxes_best"] - cold["plan"]
        rows += [("share of what is between cold start and ceiling, %", spread([100 * gain / room for gain in gains]))]
    return rows


def _before_after(
    cold: Mapping[str, Mapping[str, float]], main: Sequence[Mapping[str, Any]], task: str, labels: Sequence[str]
) -> list[tuple[str, ...]]:
    """A row of the cold start, and one of the runs."""
    return [
        ("cold start", *(f"{cold[task][label]:.1f}" for label in labels)),
        ("trained", *(spread([run[task][label] for run in main]) for label in labels)),
    ]


def _rewards(cold: Mapping[str, Mapping[str, float]], runs: Mapping[str, Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """A row of each reward, after the cold start's; what a run did not measure is blank."""
    labels = (("vos", "plan"), ("vos", "boxes_plan"), ("vos", "plan/sound"), ("refavs", "own"))
    scored = lambda runs: [[run[task][label] for run in runs if label in run[task]] for task, label in labels]
    ends = lambda runs, name: [100 * run["learnt"][name]["last"] for run in runs if name in run["learnt"]]
    texts = lambda columns: [spread(values) if values else "" for values in columns]
    rows: list[tuple[Any, ...]] = [("none: the cold start", *texts(scored([cold])), "", "", "")]
    for reward, title in TITLES.items():
        if chosen := [run for run in runs.values() if run["reward"] == reward]:
            sampled = [ends(chosen, name) for name in ("vos box IoU", "vos flat groups")]
            rows.append((title, *texts([*scored(chosen), *sampled]), len(chosen)))
    return rows


def markdown(tables: Sequence[Table]) -> str:
    """The tables as text."""
    parts = []
    for caption, header, rows in tables:
        table = [header, ["---"] * len(header), *rows]
        parts.append(f"{caption}\n\n" + "\n".join("| " + " | ".join(map(str, row)) + " |" for row in table) + "\n")
    return "\n".join(parts)


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], target: epath.Path) -> None:
    """One panel per metric with a line for each run, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(12, 3.4), layout="constrained")
        for column, (title, (segmented, key)) in enumerate(CURVES.items(), 1):
            axes = figure.add_subplot(1, len(CURVES), column, title=title, xlabel="step")
            for number, (name, rows) in enumerate(runs.items()):
                of_task = [names.without_task(row) for row in rows if (names.task_of(row) == "vos") == segmented]
                logged = [row for row in of_task if row.get(key) is not None]
                steps, values = (np.array([row[field] for row in logged], np.float64) for field in ("step", key))
                if not values.any():  # not measured, as the run's reward had no use for it
                    continue
                axes.plot(steps, charts.smooth(values, max(len(values) // 8, 3)), color=f"C{number}", label=name)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
        FigureCanvasAgg(figure)
        with atomic_path(target) as scratch, scratch.open("wb") as file:
            figure.savefig(file, format="png", dpi=110)


def write(out: epath.PathLike, results: Mapping[str, Any], comparisons: Sequence[Comparison] = ()) -> str:
    """Writes `table.md`, `curves.png` and `report.html` from a summary and the runs beside it; the tables as text.

    Args:
      comparisons: of the first run with the cold start.
    """
    out = epath.Path(out)
    measured = tables(results)
    runs = {}
    for name in results["runs"]:
        path = out / "runs" / name / METRICS
        runs[name] = list(lines.read_metrics(regular_file.read_bytes(path), str(path)))
    text = markdown(measured)
    with atomic_path(out / "table.md") as scratch:
        scratch.write_text(text)
    curves(runs, out / "curves.png")
    folders = sorted((out / "runs" / next(iter(runs)) / "pictures").glob("*"), key=lambda path: int(path.name))
    pictures = []
    for folder in folders[-2:]:  # one of each family
        for path in sorted(folder.glob("*.png")):
            label = f"step {folder.name}, {path.stem}"
            pictures.append(html.picture(shrink(path.read_bytes(), str(path)), "A clip", label))
    total = sum(results["seconds"].values())
    sections = [
        tag("h1", "Omni-R1 at toy size"),
        tag("p", f"System 1 trained by GRPO in the synthetic world, {total / 60:.0f} minutes in all.", class_="soft"),
        *before_after.sections(comparisons, next(iter(results["runs"]))),
        html.heading("What was learnt"),
        *(html.table(header, rows, caption) for caption, header, rows in measured),
        html.picture((out / "curves.png").read_bytes(), "Curves of the runs"),
        *([html.heading("Clips after training"), *pictures] if pictures else []),
        html.heading("Seconds"),
        html.table((), list(results["seconds"].items())),
    ]
    html.write(out / "report.html", html.page("Omni-R1 at toy size", *sections, style=before_after.STYLE))
    return text
