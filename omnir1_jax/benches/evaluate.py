"""Clips per minute of a complete evaluation of video segmentation: this package against the usual way in PyTorch.

The toy's weights (configs/toy.py, so run it from a checkout) on held-out clips of the synthetic world: frames decoded,
System 1 greedy, System 2 on the keyframes, SAM 2 over every frame, masks lifted, written as PNGs and scored. The other
side is `usual_pipeline`: transformers' models of the same files, batched, with one torch thread or one per core,
whichever is faster. The results of both sides are compared before anything is timed.
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from omnir1_jax.benches.timing import fewest_seconds, median_seconds
from omnir1_jax.cli import atomic_path
from omnir1_jax.data.reader import in_memory
from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import predictions
from omnir1_jax.inference import from_checkpoint, load, scores, tasks
from omnir1_jax.inference import run as runs
from omnir1_jax.inference.samples import Benchmark
from omnir1_jax.inference.tasks import Options

CLIPS, BATCH = 48, 8
QUICK_CLIPS = 8


def run(quick: bool) -> dict:
    """Clips per minute on both sides, their ratio, and the share of items on which they agree."""
    import torch

    from omnir1_jax.benches import usual_pipeline

    count, repeats = (QUICK_CLIPS, 1) if quick else (CLIPS, 3)
    options = Options(tasks.SYNTHETIC, tasks=("vos",), limit=count, batch_size=BATCH)
    systems = load.load_systems(from_checkpoint.TOY)
    (benchmark,) = tasks.benchmarks(systems, options)
    benchmark = _in_memory(benchmark, options)
    config = systems.config
    sampling = systems.models.grounder.sampling
    usual = usual_pipeline.load(
        config.thinker.path, config.sam2.path, systems.tokenizer, benchmark, systems.step, sampling
    )
    with tempfile.TemporaryDirectory() as scratch:
        folders = iter(pathlib.Path(scratch, str(n)) for n in range(100))

        def ours() -> pathlib.Path:
            out = next(folders)
            runs.evaluate(systems, benchmark, options, out, quiet=True)
            return out

        def theirs() -> pathlib.Path:
            out = next(folders)
            _evaluate(usual, usual_pipeline.answer, benchmark, count, out)
            return out

        figures = _agreement(benchmark, ours(), theirs())  # compiled, and warm
        fewest_seconds(theirs)
        jax_seconds, torch_seconds = median_seconds([ours, theirs], repeats)
    return figures | {
        "clips": count,
        "devices": jax.device_count(),
        "clips_a_minute": 60 * count / jax_seconds,
        "clips_a_minute_torch": 60 * count / torch_seconds,
        "torch_threads": torch.get_num_threads(),
        "times_faster": torch_seconds / jax_seconds,
    }


def _in_memory(benchmark: Benchmark, options: Options) -> Benchmark:
    if not benchmark.task.plans:
        raise InputError(f"evaluate: {benchmark.name} is not video segmentation")
    reader = benchmark.reader  # in memory: drawing the synthetic world is not part of an evaluation
    refs = [reader[position] for position in tasks.positions(benchmark, options)]
    return dataclasses.replace(benchmark, reader=in_memory(reader.name, reader.split, refs))


def _evaluate(usual: Any, answer: Callable[..., Any], benchmark: Benchmark, count: int, out: pathlib.Path) -> None:
    """The other side's evaluation, which writes the same files."""
    lines = []
    for start in range(0, count, BATCH):
        positions = range(start, min(start + BATCH, count))
        for position, answered in zip(positions, answer(usual, positions)):
            ref = benchmark.reader[position]
            names = scores.names(ref, len(answered.masks))
            predictions.write(str(out / "predictions"), *scores.png_folder(ref), names, answered.masks)
            score = scores.score(ref, answered.masks)
            lines.append({"position": position, "completion": answered.completion, "scores": score})
    with atomic_path(out / "results.jsonl") as scratch:
        scratch.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _agreement(benchmark: Benchmark, ours: pathlib.Path, theirs: pathlib.Path) -> dict[str, float]:
    """Share of equal answers, mean IoU of one side's masks with the other's, and both sides' J and F."""
    our_lines, their_lines = (
        {line["position"]: line for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
        for out in (ours, theirs)
    )
    equal, overlap = [], []
    for position in range(len(benchmark.reader)):
        equal.append(our_lines[position]["completion"] == their_lines[position]["completion"])
        ref = benchmark.reader[position]
        names = scores.names(ref, len(ref.frames))
        item = *scores.png_folder(ref), names
        a, b = (predictions.read(str(out / "predictions"), *item) > 0 for out in (ours, theirs))
        overlap.append((a & b).sum() / (a | b).sum() if (a | b).any() else 1.0)
    means = {
        f"{name}{side}": 100 * float(np.mean([line["scores"][name] for line in lines.values()]))
        for side, lines in (("", our_lines), ("_torch", their_lines))
        for name in ("J", "F")
    }
    return {"equal_answers": float(np.mean(equal)), "mask_iou": float(np.mean(overlap)), **means}
