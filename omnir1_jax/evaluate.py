"""The paper's inference: `python -m omnir1_jax.evaluate --checkpoint K --benchmark NAME --root DIR --out DIR`.

System 1 sees up to 24 frames and plans, System 2 finds boxes in the keyframes, SAM 2.1 follows them through every
frame. OUT gets `results.jsonl` (one line per item: its plan and scores), `predictions/` (the benchmark's PNG tree),
`results.json`, `report.html`, and an archive where a server keeps the ground truth. If interrupted, rerun the command
to resume. With several keyframe rules or tasks each has its own directory below OUT.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags, logging
from flax.traverse_util import flatten_dict

from omnir1_jax import cli
from omnir1_jax.build.run import keep_compiled
from omnir1_jax.config import settings
from omnir1_jax.files import folders
from omnir1_jax.inference import from_checkpoint, load, store, tasks
from omnir1_jax.inference.answer import DESCRIPTIONS, KEYFRAMES
from omnir1_jax.inference.benchmark import evaluate
from omnir1_jax.inference.samples import SOUNDS
from omnir1_jax.inference.store import RESULTS
from omnir1_jax.inference.tasks import Options


def rows(table: Mapping[str, Any]) -> list[tuple[str, float]]:
    """A nested table as (name, number) rows."""
    flat = flatten_dict(table, sep=" / ")
    return [(name, float(x)) for name, x in flat.items() if isinstance(x, int | float) and not isinstance(x, bool)]


def show(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All results side by side, one column each."""
    columns = {label or "result": dict(rows(result["table"])) for label, result in results.items()}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    text = lambda value: "" if value is None or math.isnan(value) else f"{value:.2f}"
    lines = [["", *columns]] + [[name, *(text(column.get(name)) for column in columns.values())] for name in names]
    lines.append(["items", *(str(result["items"]) for result in results.values())])
    lines.append(["unreadable", *(str(len(result["bad"])) for result in results.values())])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    first, others = widths[0], widths[1:]
    table_lines = [
        line[0].ljust(first) + "".join(f"  {cell.rjust(width)}" for cell, width in zip(line[1:], others))
        for line in lines
    ]
    return "\n".join(table_lines + remarks(results))


def remarks(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Notes on omissions of a benchmark, and the paper's columns by the scoring that is not shown."""
    lines = []
    for label, result in results.items():
        prefix = f"{label}: " if label else ""
        lines += [f"{prefix}{note}" for note in result.get("notes", ())]
        if other := result.get("other_scoring"):
            values = ", ".join(f"{name} {value:.2f}" for name, value in other["paper"].items())
            lines.append(f"{prefix}scoring {other['scoring']}: {values}")
    return lines


_CONFIG = settings.define()
_CHECKPOINT = cli.flag.string(
    "checkpoint", None, "Work directory of a run, directory of weights, or toy for the weights that the config names."
)
_BENCHMARK = cli.flag.enum(
    "benchmark",
    None,
    [*tasks.BENCHMARKS, tasks.SYNTHETIC],
    "What to evaluate on; synthetic: the config's own tasks, held out.",
)
_STEP = cli.flag.string("step", "", "Which checkpoint of a run: best (of those validated), last, or its number.")
_OUT = cli.flag.string("out", None, "Directory of the results; an unfinished evaluation there is resumed.")
_ROOT = cli.flag.string("root", "", "Directory of the dataset, or its id in the hub's cache; the config's if empty.")
_SPLIT = cli.flag.string("split", "", "Split; the benchmark's usual one by default.")
_TASKS = cli.flag.list("tasks", [], "Tasks of the config that are held out (synthetic); all by default.")
_LIMIT = cli.flag.integer("limit", 0, "Maximum items, the first ones; 0: all.", lower_bound=0)
_KEYFRAMES = cli.flag.list("keyframes", ["plan"], f"One or several of {', '.join(KEYFRAMES)}.")
_DESCRIPTION = cli.flag.enum(
    "description", "plan", DESCRIPTIONS, "What System 2 is asked for: the plan's words or the query's own."
)
_SYSTEM2 = cli.flag.string(
    "system2",
    "self",
    "Who finds boxes: self (the checkpoint), frozen (the weights before it), oracle (the ground truth), file (--boxes "
    "or --masks), grounding_dino:DIRECTORY, or a grounder of your own, MODULE:OBJECT or FILE.py:OBJECT.",
)
_BOXES = cli.flag.string("boxes", "", "With --system2=file: boxes by sample and frame that another model found.")
_MASKS = cli.flag.string("masks", "", "With --system2=file: masks by sample and frame that another model made of text.")
_BATCH_SIZE = cli.flag.integer("batch_size", 4, "Items per batch, over all devices.", lower_bound=1)
_FRAMES = cli.flag.integer("frames", 0, "Frames System 1 sees; 0: as in training.", lower_bound=0)
_SAMPLING = cli.flag.enum("sampling", "", ["", "uniform", "video"], "Over the whole clip, or 2 a second.")
_OBJECTS = cli.flag.integer("objects", 8, "Maximum objects of an answer.", lower_bound=1)
_HOLE_AREA = cli.flag.integer("hole_area", 0, "Fill holes of masks up to this many of the segmenter's pixels.")
_SOUND = cli.flag.enum("sound", "own", SOUNDS, "Whose sound a clip has.")
_SCORING = cli.flag.enum(
    "scoring",
    "clean",
    ["clean", "official"],
    "Which numbers the table shows; official: as the benchmark's published script counts. results.json has both.",
)
_SEED = cli.flag.integer("seed", 0, "Of sampling, random keyframes and prompts' examples.")
_TEMPERATURE = cli.flag.float("temperature", 0.0, "Of System 1; 0 is greedy.", lower_bound=0.0)
_MAX_TOKENS = cli.flag.integer("max_tokens", 0, "Of System 1's answer; 0: the config's.", lower_bound=0)
_TOKENS = cli.flag.integer("tokens", 0, "Maximum visual tokens of a frame for System 1, as 128 or 256.", lower_bound=0)
_PROMPT = cli.flag.enum("prompt", "", ["", "thinking", "direct"], "Prompt of questions; the config's by default.")
_AUDIO_SECONDS = cli.flag.float("audio_seconds", -1.0, "Sound heard with questions; -1: the benchmark's usual length.")


def options() -> Options:
    """Each option from the flag of its name."""
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Options)}
    return Options(**values | {"tasks": tuple(_TASKS.value), "keyframes": (_KEYFRAMES.value or [""])[0]})


def main(_) -> None:
    cli.need(checkpoint=_CHECKPOINT, benchmark=_BENCHMARK, out=_OUT)
    logging.set_verbosity(logging.ERROR)  # bad items are named in results.json
    out = pathlib.Path(_OUT.value)
    store.check_folder(_OUT.value)
    inputs = from_checkpoint.inputs(_CHECKPOINT.value, _CONFIG.value)
    inputs |= {"--root": _ROOT.value, "--boxes": _BOXES.value, "--masks": _MASKS.value}
    folders.check_disjoint(out, store.FLAG, inputs)
    with folders.hold(out, store.KIND, store.FLAG, adopt=store.adopt):
        keep_compiled(folders.begin(out, store.CACHE, store.FLAG))
        systems = load.load_systems(
            _CHECKPOINT.value,
            _CONFIG.value,
            _SYSTEM2.value,
            temperature=_TEMPERATURE.value,
            max_tokens=_MAX_TOKENS.value,
            step=_STEP.value,
        )
        results = evaluate(systems, options(), out, tuple(_KEYFRAMES.value))
    print(show(results))
    print(f"{out}: {RESULTS}, report.html")


if __name__ == "__main__":
    cli.run(main, settings.parse)
