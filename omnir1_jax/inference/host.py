"""System 2 outside of the graph: the door for models of any framework, as a plain function on the host.

`--system2 NAME:SETTINGS` takes the maker `GROUNDERS[NAME]` and calls it with SETTINGS; any other `MODULE:FUNCTION` is a
function of the user's own. Either way a grounder is `ground(frames, descriptions) -> boxes`:

  frames: the keyframes of one video at its own size, RGB [n h w 3].
  descriptions: one for each.
  boxes: for each frame rows (x0, y0, x1, y1) in its pixels, the surest first, or none. Box i of all keyframes is taken
    for object i of the answer, and the answer is all objects together.
"""

import functools
import hashlib
import importlib
import operator
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from omnir1_jax.data import media
from omnir1_jax.errors import InputError
from omnir1_jax.inference import records
from omnir1_jax.inference.answer import Found, Prompts
from omnir1_jax.inference.samples import Sample

Ground = Callable[[UInt8[np.ndarray, "n h w 3"], Sequence[str]], Sequence[Any]]


def _grounding_dino(settings: str) -> Ground:
    from omnir1_jax.inference import grounding_dino  # optional: needs torch

    return grounding_dino.load(settings)


GROUNDERS: dict[str, Callable[[str], Ground]] = {"grounding_dino": _grounding_dino}


def named(system2: str) -> bool:
    """Whether a choice of System 2 is one of this door."""
    return ":" in system2


@functools.lru_cache(maxsize=1)
def load(system2: str) -> Ground:
    """The grounder of NAME:SETTINGS or MODULE:FUNCTION.

    Raises:
      InputError: there is no such thing, or it cannot be loaded.
    """
    name, _, rest = system2.partition(":")
    if name in GROUNDERS:
        return GROUNDERS[name](rest)
    try:
        found = getattr(importlib.import_module(name), rest)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(f"{known}:..." for known in GROUNDERS)
        raise InputError(f"--system2: {system2} is neither {known} nor a function MODULE:FUNCTION ({error})") from error
    if not callable(found):
        raise InputError(f"--system2: {system2} is no function")
    return found


def digest(system2: str) -> str | None:
    """A digest of what a grounder on the host is made of: the files of its directory, or the source of its module.

    None for a System 2 in the graph, and for a module without a file.
    """
    if not named(system2):
        return None
    name, _, rest = system2.partition(":")
    if name in GROUNDERS:
        folder = pathlib.Path(rest.rpartition("@")[0] or rest)
        files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    else:
        source = getattr(importlib.import_module(name), "__file__", None)
        files = [pathlib.Path(source)] if source else []
    total = hashlib.blake2b(digest_size=8)
    for path in files:
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "blake2b").digest())
    return total.hexdigest() if files else None


def check(system2: str) -> Ground | None:
    """The grounder of `load`; None for "self", which is in the graph.

    Raises:
      InputError: something else.
    """
    if system2 == "self":
        return None
    if not named(system2):
        raise InputError(f"--system2: {system2!r} is neither self nor NAME:SETTINGS nor MODULE:FUNCTION")
    return load(system2)


def prompts(ground: Ground, found: Found, samples: Sequence[Sample], family: str, objects: int) -> Prompts:
    """What the segmenter is given of the grounder's boxes. `found` is on the host.

    Raises:
      InputError: the grounder's answer is not of the form that this door takes.
    """
    blank = found.prompts
    out = Prompts(np.array(blank.boxes), np.array(blank.used), np.asarray(blank.frames))
    for row, sample in enumerate(samples):
        slots = np.flatnonzero(found.chosen.valid[row])
        if sample.fault is not None or not len(slots):
            continue
        mine = jax.tree.map(operator.itemgetter(row), found)
        descriptions = [records.description(mine, family, int(k)) for k in slots]
        numbers = [int(mine.prompts.frames[k]) for k in slots]
        frames = media.load_frames(sample.ref.frames, numbers, sample_id=sample.sample_id)
        said = list(ground(frames, descriptions))
        if len(said) != len(slots):
            raise InputError(f"--system2: it gave boxes for {len(said)} of {len(slots)} frames; one list a frame")
        for k, boxes in zip(slots, said):
            try:
                rows = np.asarray(boxes, np.float32).reshape(-1, 4)[:objects]
            except (TypeError, ValueError) as error:
                raise InputError(f"--system2: it gave {boxes!r}; rows of (x0, y0, x1, y1) are wanted") from error
            out.boxes[row, k, : len(rows)] = rows
            out.used[row, k, : len(rows)] = np.isfinite(rows).all(axis=1)
    return Prompts(np.where(out.used[..., None], out.boxes, 0), out.used, out.frames)
