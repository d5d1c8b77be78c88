"""System 2 on the host during an evaluation: it sees the keyframes, or the whole video, at the video's own size."""

import hashlib
import importlib
import operator
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from omnir1_jax.config import lookup
from omnir1_jax.data import canvas as detail_data
from omnir1_jax.data import media, rle
from omnir1_jax.errors import InputError
from omnir1_jax.inference.answer import Answers, Prompts
from omnir1_jax.inference.samples import Sample, by_sample, length
from omnir1_jax.systems.grounders import GROUNDERS, HostGrounder
from omnir1_jax.systems.segmenters import HostSegmenter
from omnir1_jax.tasks.description import text


def digest(system2: str) -> str | None:
    """A digest of a user-defined System 2: of the files of its directory, or of its module's source.

    None for a System 2 of this package, and for a module without a file.
    """
    if not lookup.is_path(system2):
        return None
    name, _, settings = system2.partition(":")
    if name in GROUNDERS:
        folder = pathlib.Path(settings.rpartition("@")[0] or settings)
        files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    else:
        module = system2.rpartition(":")[0]
        source = module if module.endswith(".py") else getattr(importlib.import_module(module), "__file__", None)
        files = [pathlib.Path(source)] if source else []
    total = hashlib.blake2b(digest_size=8)
    for path in files:
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "blake2b").digest())
    return total.hexdigest() if files else None


def prompts(ground: HostGrounder, answers: Answers, samples: Sequence[Sample], objects: int) -> Prompts:
    """The segmenter's prompts from the grounder's boxes. `answers` is on the host.

    Raises:
      InputError: the grounder's answer has another form.
    """
    blank = answers.prompts
    out = Prompts(np.array(blank.boxes), np.array(blank.used), np.asarray(blank.frames))
    for row, sample in enumerate(samples):
        slots, numbers, descriptions = _requests(answers, row)
        if sample.fault is not None or not len(slots):
            continue
        frames = media.load_frames(sample.ref.frames, numbers, sample_id=sample.sample_id)
        out.boxes[row, slots], out.used[row, slots] = ground(frames, descriptions, objects)
    return out


class FileMasks:
    """Masks of another System 2 by sample id, read from a file instead of made by a segmenter.

    Args:
      path: lines {"sample_id": ..., "masks": [run lengths or null, ...]}, COCO's, one entry per frame of the video.

    Raises:
      InputError: naming the line.
    """

    host = True

    def __init__(self, path: str):
        form = '{"sample_id": ..., "masks": [{"size": ..., "counts": ...}, null]}'
        lines = by_sample(path, "--masks", "masks", list, form)
        self._path, self._masks = path, {sample_id: masks for _, sample_id, masks in lines}

    def load(self, config: Any) -> None:
        """Nothing to load: the masks are in the file."""

    def from_text(self, *_: Any) -> Any:
        """Not possible: a file has no masks of rollouts."""
        raise InputError("--masks: a file of masks serves evaluations alone")

    def of(self, sample: Sample) -> Bool[np.ndarray, "t h w"]:
        """Masks of every frame of an item; empty where the file has none."""
        out, masks = np.zeros((len(sample.clip), *sample.size), bool), self._masks.get(sample.sample_id)
        if masks is None:
            return out
        if len(masks) != len(out):
            counts = f"{len(masks)} masks, its video {len(out)} frames"
            raise InputError(f"--masks: {self._path}: {sample.sample_id} has {counts}")
        for frame, mask in zip(out, masks):
            try:
                frame[:] = frame if mask is None else rle.decode(mask)
            except ValueError as error:
                raise InputError(f"--masks: {self._path}: {sample.sample_id}: {error}") from error
        return out


def masks(
    segmenter: HostSegmenter | FileMasks, answers: Answers, samples: Sequence[Sample], canvas: tuple[int, int]
) -> tuple[Bool[np.ndarray, "b t height width"], Prompts]:
    """Masks made without boxes, top left on a canvas (height, width), and the boxes around them."""
    blank, longest = answers.prompts, length(max(len(sample.clip) for sample in samples if sample.clip is not None))
    out = np.zeros((len(blank.frames), longest, *canvas), bool)
    boxes = Prompts(np.array(blank.boxes), np.array(blank.used), np.asarray(blank.frames))
    for row, sample in enumerate(samples):
        if sample.fault is not None:
            continue
        slots, numbers, descriptions = _requests(answers, row)
        if isinstance(segmenter, FileMasks):
            union = segmenter.of(sample)
        elif not len(slots):
            continue
        else:
            positions = range(len(sample.clip))
            frames = media.load_frames(sample.ref.frames, positions, sample_id=sample.sample_id)
            union = segmenter(frames, descriptions, numbers).any(axis=0)
        t, height, width = union.shape
        out[row, :t, :height, :width] = union
        boxes.boxes[row, slots, 0] = detail_data.boxes(union[None, numbers])[0]
        boxes.used[row, slots, 0] = union[numbers].any(axis=(1, 2))
    return out, boxes


def _requests(answers: Answers, row: int) -> tuple[np.ndarray, list[int], list[str]]:
    """Slots, frames of the video and descriptions of an item's keyframes."""
    slots = np.flatnonzero(answers.chosen.valid[row])
    item = jax.tree.map(operator.itemgetter(row), answers)
    numbers = [int(item.prompts.frames[k]) for k in slots]
    return slots, numbers, [text(item.reading.requests.description, (0, int(k))) for k in slots]
