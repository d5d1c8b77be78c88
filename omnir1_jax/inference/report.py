"""`report.html` of an evaluation: a few clips are read again and drawn with their predictions."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omnir1_jax.data import media
from omnir1_jax.data.masks import decode_masks
from omnir1_jax.data.refs import BadSample, ClipRef
from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import predictions
from omnir1_jax.files import folders
from omnir1_jax.inference import scores, store
from omnir1_jax.inference.samples import Benchmark
from omnir1_jax.inference.store import FLAG, LINES, PREDICTIONS, REPORT
from omnir1_jax.reporting import eval_report, pictures
from omnir1_jax.reporting.eval_report import Row
from omnir1_jax.reporting.example import Example
from omnir1_jax.tasks.description import Clip, Keyframe

MOST_PIXELS = 640 * 480  # maximum pixels of a frame in a picture
MOST_FRAMES = 64


def write(folder: pathlib.Path, benchmark: Benchmark, results: Mapping[str, Any]) -> None:
    """The page beside `results.json`."""
    lines = sorted(store.read_lines(folder / LINES).values(), key=lambda line: line["position"])
    rows = [_row(line) for line in lines]
    picked = {i for chosen in eval_report.chosen([row.mean for row in rows]).values() for i in chosen}
    for i in picked:
        drawn = _picture(folder, benchmark, lines[i])
        rows[i] = rows[i]._replace(picture=drawn)
    about = {key: str(value) for key, value in results.items() if isinstance(value, str | int)}
    title = f"{results['benchmark']} {results['split']}: {benchmark.name}"
    page = pathlib.Path(folders.begin(folder, REPORT, FLAG))
    eval_report.write_eval_report(page, title, rows, _tables(results["table"]), about)


def _tables(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A table of tables as lines, plain numbers as one line."""
    nested = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    flat = {key: value for key, value in table.items() if key not in nested}
    return ([flat] if flat else []) + [
        {"": key, **{name: x for name, x in value.items() if not isinstance(x, Mapping)}}
        for key, value in nested.items()
    ]


def _row(line: Mapping[str, Any]) -> Row:
    j, f = ((line.get("scores") or {}).get(name) for name in "JF")
    note = line["completion"] if not line["fault"] else f"not readable: {line['fault']}"
    return Row(line["sample_id"], line["query"], j, f, tuple(line["failures"]), None, note)


def _picture(folder: pathlib.Path, benchmark: Benchmark, line: Mapping[str, Any]) -> bytes | None:
    """The clip with its masks; None where it cannot be read (the page says why)."""
    if line["fault"] or not line["predicted"]:
        return None
    try:
        drawn = example(folder, benchmark.reader[line["position"]], benchmark.task.name, line)
    except BadSample:
        return None
    return pictures.png(pictures.draw(drawn))


def example(folder: pathlib.Path, ref: ClipRef, family: str, line: Mapping[str, Any]) -> Example:
    """A line of an evaluation with its clip, read again, and the masks that were predicted.

    Args:
      folder: the evaluation's directory.
      family: of the task.
      line: one with a prediction.

    Raises:
      BadSample: the clip cannot be read any more.
      InputError: its prediction is missing or damaged.
    """
    count = media.frame_count(ref.frames, ref.sample_id)
    shown_frames = _shown(count, [keyframe["frame"] for keyframe in line["keyframes"]])
    frames = media.load_frames(ref.frames, shown_frames, size=media.within(MOST_PIXELS), sample_id=ref.sample_id)
    truth = None if ref.masks is None else decode_masks(ref.masks, shown_frames, ref.sample_id)
    names, where = scores.names(ref, count), scores.png_folder(ref)
    predicted = predictions.read(str(folder / PREDICTIONS), *where, [names[t] for t in shown_frames])
    if predicted is None:
        raise InputError(f"{predictions.folder(str(folder / PREDICTIONS), *where)} is missing; name another directory")
    position_of = {frame: i for i, frame in enumerate(shown_frames)}
    keyframes = tuple(
        Keyframe(
            position_of[entry["frame"]],
            entry["description"],
            entry["answer"],
            tuple(tuple(box) for box in entry["boxes"]),
        )
        for entry in line["keyframes"]
    )
    size = predicted.shape[2], predicted.shape[1]
    clip = Clip(frames, size, None if truth is None else truth.any(0), predicted > 0, numbers=tuple(shown_frames))
    return Example(
        line["sample_id"],
        line["query"],
        line["completion"],
        family,
        keyframes=keyframes,
        answer=line.get("answer"),
        failures=tuple(line["failures"]),
        clip=clip,
    )


def _shown(count: int, keyframes: Sequence[int]) -> list[int]:
    """All frames, or so many spread over a long video and the keyframes."""
    if count <= MOST_FRAMES:
        return list(range(count))
    spread = np.linspace(0, count - 1, MOST_FRAMES).round().astype(int).tolist()
    return sorted({*spread, *keyframes})
