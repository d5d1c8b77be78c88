"""The identity of an evaluation: all values its rows depend on, and how two evaluations differ, by their flags.

Not included: --out, --checkpoint as a path (its weights are), and the sections `IDLE` of the config. --batch_size is:
sums in a batch of another size round differently, so that rows would not be those of one evaluation to the bit.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from omnir1_jax.config import settings
from omnir1_jax.inference import host
from omnir1_jax.inference.load import Systems
from omnir1_jax.inference.samples import Benchmark
from omnir1_jax.inference.tasks import Options
from omnir1_jax.parallel import batch_parts
from omnir1_jax.reporting.example import finite

# Settings that change no answer. Of `data`, the task's own entry is included separately.
IDLE = ("name", "log", "checkpoint", "loader", "optimizer", "grpo", "reward", "steps", "data", "sft", "masks")
# Options that change only what is computed from the lines: another choice reads the same evaluation again.
RESCORED = ("scoring",)
TRAINING = ("sampling", "grpo", "reward", "group", "bonus_range", "updates", "score_chunk",
            "score_lengths", "lora", "keep")  # fmt: skip
MAX_NAMED = 3  # differences in one message
# Values that are digests: description of what differs.
DIGESTS = {
    "weights": "other weights (--checkpoint, --system2)",
    "boxes": "other boxes in the file of --boxes",
    "masks": "other masks in the file of --masks",
    "segmenter": "another content of --config.step.segmenter",
    "tokenizer": "another tokenizer",
    "grounder": "another content of --system2",
    "own_task": "another content of the task's file",
    "noise": "draws of an earlier version of omnir1_jax, at --temperature above 0",
    "prompts.system": "another text of --config.prompts.system",
    "prompts.template": "another text of the task's prompt (--prompt, --config.prompts)",
    "prompts.grounding": "another text of --config.prompts.grounding",
    "dataset.items": "other items in the dataset (--root)",
}
FLAGS = ("config", "temperature", "clips")  # sections and values with the names of flags
# Levels below a section where a key that only one side has is ignored: an older or newer version wrote it.
OPEN_LEVELS = {"options": 1, "config": 2, "step": 1, "example": 1, "decode": 1}


class Difference(NamedTuple):
    """One value in which two evaluations differ; `path`: its keys."""

    path: tuple[str, ...]
    old: Any
    new: Any


def padded_batch_size(mesh: Mesh | None, batch_size: int) -> int:
    """Rows of a batch: `batch_size` rounded up to a multiple of the devices that a batch is sharded over."""
    parts = 1 if mesh is None else batch_parts(mesh)
    return -(-max(batch_size, 1) // parts) * parts


def identity(systems: Systems, benchmark: Benchmark, options: Options, weights: str) -> dict[str, Any]:
    """The values that an evaluation's rows depend on, JSON-ready.

    Args:
      weights: `load.fingerprint` of the systems.
    """
    example, step = benchmark.example, systems.step
    prompts = {"system": example.system, "template": example.template, "grounding": example.grounding}
    budgets = {name: list(vars(getattr(example, name)).values()) for name in ("policy_budget", "sharp_budget")}
    plain = {
        "options": {key: value for key, value in vars(options).items() if key not in RESCORED}
        | {"batch_size": padded_batch_size(systems.mesh, options.batch_size)},
        "task": [benchmark.name, example.frames, example.audio_seconds],
        "weights": weights,
        "boxes": None if benchmark.boxes is None else _sha256(repr(sorted(benchmark.boxes.items()))),
        "temperature": step.sampling.temperature,
        "noise": "by item" if step.sampling.temperature else None,
        "sampling": vars(step.sampling),
        "step": {key: _plain(value) for key, value in vars(step).items() if key not in TRAINING},
        "prompts": {name: _digest(text) for name, text in prompts.items()},
        "example": budgets
        | {name: getattr(example, name) for name in ("text_tokens", "frames", "audio_seconds", "max_aspect")},
        "decode": dataclasses.asdict(benchmark.decode),
        "own_task": host.digest(benchmark.source),
        "dataset": {"options": benchmark.dataset, "items": _items(benchmark)},
        "tokenizer": _arrays_digest((systems.frozen.vocab, systems.frozen.bpe)),
        "masks": _file_digest(options.masks),
        "grounder": host.digest(options.system2),
        "segmenter": host.digest(systems.config.step.segmenter),
        "config": {key: value for key, value in settings.plain(systems.config).items() if key not in IDLE},
    }
    return json.loads(json.dumps(finite(settings.plain(plain))))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Where two identities differ, in the order of `new`. Sections that `old` lacks are skipped, except `noise`."""
    return [
        difference
        for key in new
        if key in old or key == "noise"
        for difference in _differences((key,), old.get(key), new[key], OPEN_LEVELS.get(key, 0))
    ]


def describe(differing: list[Difference]) -> str:
    """Differences as the end of "DIRECTORY holds an evaluation with ..."."""
    named = [_describe(difference) for difference in differing[:MAX_NAMED]]
    unnamed = len(differing) - len(named)
    return ", and ".join(named) + (f", and {unnamed} more differences" if unnamed else "")


def _differences(path: tuple[str, ...], old: Any, new: Any, open_levels: int) -> Iterator[Difference]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in new if key in old] if open_levels else list(new | old)
        for key in keys:
            yield from _differences((*path, key), old.get(key), new.get(key), max(open_levels - 1, 0))
    elif old != new:
        yield Difference(path, old, new)


def _describe(difference: Difference) -> str:
    path, old, new = ".".join(difference.path), json.dumps(difference.old), json.dumps(difference.new)
    if path in DIGESTS:
        return DIGESTS[path]
    section, _, key = path.partition(".")
    name = f"--{key}" if section in ("options", "sampling") else f"--{path}" if section in FLAGS else path
    return f"{name} {old}, this one has {new}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return dict(value._asdict()) if hasattr(value, "_asdict") else value


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(text: str) -> str:
    return _sha256(text)[:16]


def _file_digest(path: str) -> str | None:
    """Digest of an existing file."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() if pathlib.Path(path).is_file() else None


def _items(benchmark: Benchmark) -> list[Any]:
    """How many items the dataset has, and a digest of their ids where the reader lists them."""
    ids = getattr(benchmark.reader, "ids", None)
    return [len(benchmark.reader), None if ids is None else _digest("\n".join(ids))]


def _arrays_digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
