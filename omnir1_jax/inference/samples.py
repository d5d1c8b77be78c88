"""Host side of an evaluation: every item of a reader as arrays of static shape, in batches that never change.

A batch always has the same items, so that an evaluation that was killed and resumed computes the same numbers. Long
or short, a batch's clips are padded to one of a few lengths.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from omnir1_jax import tasks
from omnir1_jax.data import canvas as detail_data
from omnir1_jax.data import frame_sampling, media
from omnir1_jax.data.clips import DecodeConfig, DecodedClip, decode
from omnir1_jax.data.refs import BadSample, ClipRef, Reader
from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file, regular_file
from omnir1_jax.tasks.examples import Arrays, ExampleConfig

MAX_COORDINATE = 1e6  # largest coordinate of a box in a file, in pixels
SOUNDS = ("own", "muted", "swapped")
Boxes = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """How the items of one benchmark become prompts.

    Attributes:
      name: name of the benchmark. root: directory of the dataset, if it is on disk.
      objects: slots for objects; true boxes beyond them (the smallest) are left out.
      side: side of the segmenter's frames; 0 where nothing is segmented.
      sound: "own"; "muted": silence; "swapped": that of another clip.
      boxes: boxes of another System 2 by sample id and frame of the video, instead of the true ones.
      dataset: options that the reader was opened with, by name.
      query_bytes: room for the query, where it is System 2's description too; 0: it is not.
      source: where a user-defined task comes from, module:object or file.py:object.
    """

    name: str
    task: tasks.Task
    reader: Reader = dataclasses.field(repr=False)
    example: ExampleConfig = dataclasses.field(repr=False)
    decode: DecodeConfig
    objects: int = 8
    side: int = 0
    seed: int = 0
    sound: str = "own"
    root: str = ""
    boxes: Mapping[str, Mapping[int, Boxes]] | None = dataclasses.field(default=None, repr=False)
    dataset: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    source: str = ""
    query_bytes: int = 0


class Sample(NamedTuple):
    """One item, read. `fault` says why there are no arrays.

    Attributes:
      clip: every frame, stretched to the segmenter's square; None where nothing is segmented.
      size: height and width of the frames.
    """

    position: int
    sample_id: str
    ref: ClipRef | None
    arrays: Arrays | None
    clip: UInt8[np.ndarray, "t side side 3"] | None
    size: tuple[int, int] | None
    fault: str | None


class Batch(NamedTuple):
    """Samples with their arrays; rows of unreadable samples and padding rows repeat another's arrays.

    Attributes:
      arrays: None where no sample could be read.
      clips: clips padded at their ends. frame_valid: which of their frames are real.
    """

    samples: tuple[Sample, ...]
    arrays: Arrays | None
    clips: UInt8[np.ndarray, "b t side side 3"] | None
    frame_valid: np.ndarray | None


def arrays_of(clip: DecodedClip, benchmark: Benchmark) -> Arrays:
    """The inputs of both systems for a clip, and its ground truth."""
    task, config = benchmark.task, benchmark.example
    arrays = {**task.prompt(clip, config), **task.frames(clip, config)}
    return {**arrays, **_frames(clip, benchmark)} if task.grounds else arrays


def _frames(clip: DecodedClip, benchmark: Benchmark) -> Arrays:
    """Which frames of the video were seen, and the true boxes in them."""
    frames, count = benchmark.example.frames, len(clip.frames)
    index = np.zeros(frames, np.int32)
    index[:count] = clip.frame_indices
    return {
        **(_words(clip.ref.query, benchmark.query_bytes) if benchmark.query_bytes else {}),
        "frame_index": index,
        "frame_valid": np.arange(frames) < count,
        "boxes": _boxes(clip, benchmark, frames),
        "original": np.array(clip.size[::-1], np.int32),
    }


def _words(query: str, room: int) -> Arrays:
    raw = query.encode()
    if len(raw) > room:
        raise InputError(f"a query of {len(raw)} bytes does not fit step.description_bytes = {room}")
    padded = np.zeros(room, np.uint8)
    padded[: len(raw)] = np.frombuffer(raw, np.uint8)
    return {"words/bytes": padded, "words/length": np.int32(len(raw)), "words/truncated": np.bool_(False)}


def _boxes(clip: DecodedClip, benchmark: Benchmark, frames: int) -> Float[np.ndarray, "n t 4"]:
    """True boxes in the seen frames, or those of another System 2."""
    out = np.full((benchmark.objects, frames, 4), detail_data.ABSENT, np.float32)
    if benchmark.boxes is not None:
        listed_boxes = benchmark.boxes.get(clip.ref.sample_id, {})
        for t, frame in enumerate(clip.frame_indices):
            for slot, box in enumerate(listed_boxes.get(int(frame), ())[: benchmark.objects]):
                out[slot, t] = box
    elif clip.masks is not None and len(clip.masks):
        areas = np.count_nonzero(clip.masks, axis=(1, 2, 3))
        largest = np.sort(np.argsort(-areas, kind="stable")[: benchmark.objects])
        boxes = detail_data.boxes(clip.masks[largest])
        out[: len(largest), : boxes.shape[1]] = boxes
    return out


def read_boxes(path: str) -> dict[str, dict[int, Boxes]]:
    """Boxes of another System 2: lines {"sample_id": ..., "boxes": {"<frame of the video>": [[x0, y0, x1, y1], ...]}}.

    Raises:
      InputError: naming the line.
    """
    form = '{"sample_id": ..., "boxes": {"3": [[x0, y0, x1, y1]]}}'
    return {
        sample_id: {_frame(frame, location): _frame_boxes(value, location) for frame, value in boxes.items()}
        for location, sample_id, boxes in by_sample(path, "--boxes", "boxes", dict, form)
    }


def by_sample(path: str, flag: str, key: str, kind: type, form: str) -> Iterator[tuple[str, str, Any]]:
    """Lines {"sample_id": text, key: value of a kind} as (location, sample id, value).

    Raises:
      InputError: a line of another form.
    """
    for location, line in json_file.lines(regular_file.read_bytes(path, flag), f"{flag}: {path}"):
        sample_id, value = (line.get("sample_id"), line.get(key)) if isinstance(line, dict) else (None, None)
        if not isinstance(sample_id, str) or not isinstance(value, kind):
            raise InputError(f"{location}: expected {form}")
        yield location, sample_id, value


def _frame(key: str, location: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        raise InputError(f"{location}: {key[:40]!r} is not the number of a frame")
    return int(key)


def _frame_boxes(boxes: Any, location: str) -> Boxes:
    for box in boxes if isinstance(boxes, list) else [boxes]:
        numbers = isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in box)
        if not numbers or not all(abs(x) < MAX_COORDINATE for x in box):
            raise InputError(f"{location}: a frame's boxes must be a list of [x0, y0, x1, y1], found {str(box)[:60]!r}")
    return tuple(tuple(float(np.float32(x)) for x in box) for box in boxes)


def read(benchmark: Benchmark, position: int) -> Sample:
    """Reads one item. `fault` says why, if it cannot be read."""
    ref, name = None, f"{benchmark.reader.name}/{benchmark.reader.split}#{position}"
    try:
        ref = benchmark.reader[position]
        name = ref.sample_id
        clip = decode(ref, benchmark.decode, frame_sampling.generator(benchmark.seed, 0, position))
        clip = _with_sound(clip, benchmark, position)
        arrays = arrays_of(clip, benchmark)
        arrays["number"] = np.int32(position)
        all_frames = None
        if benchmark.side:
            positions = range(media.frame_count(ref.frames, name))
            all_frames = media.load_frames(ref.frames, positions, size=(benchmark.side, benchmark.side), sample_id=name)
        return Sample(position, name, ref, arrays, all_frames, clip.size, None)
    except BadSample as error:
        return Sample(position, name, ref, None, None, None, error.reason)
    except InputError as error:  # a query or clip larger than its shapes
        return Sample(position, name, ref, None, None, None, str(error))


def _with_sound(clip: DecodedClip, benchmark: Benchmark, position: int) -> DecodedClip:
    if benchmark.sound == "own" or clip.audio is None:
        return clip
    if benchmark.sound == "muted":
        return dataclasses.replace(clip, audio=np.zeros_like(clip.audio))
    groups = benchmark.reader.clips()
    clip_group = next(i for i, group in enumerate(groups) if position in group)
    other = groups[(clip_group + 1) % len(groups)][0]
    other_audio = decode(
        benchmark.reader[other], benchmark.decode, frame_sampling.generator(benchmark.seed, 0, other)
    ).audio
    if other_audio is None or len(groups) < 2:
        raise BadSample(clip.ref.sample_id, "no other clip's sound to take")
    return dataclasses.replace(clip, audio=other_audio)


def length(frames: int) -> int:
    """The padded length of a clip: 1, 2, 3, 4, 6, 8, 12, 16, 24, ..., so that few programs serve all lengths."""
    if frames < 1:
        raise InputError(f"a clip of {frames} frames")
    power = 1
    while True:
        for size in (power, power + power // 2):
            if size >= frames:
                return size
        power *= 2


def collate(samples: Sequence[Sample], batch_size: int) -> Batch:
    """A batch of `batch_size` rows."""
    readable = [sample for sample in samples if sample.arrays is not None]
    if not readable:
        return Batch(tuple(samples), None, None, None)
    rows = [sample if sample.arrays is not None else readable[0] for sample in samples]
    rows += [readable[0]] * (batch_size - len(rows))
    arrays = {key: np.stack([row.arrays[key] for row in rows]) for key in readable[0].arrays}
    if readable[0].clip is None:
        return Batch(tuple(samples), arrays, None, None)
    counts = [len(row.clip) for row in rows]
    clips = np.zeros((batch_size, length(max(counts)), *readable[0].clip.shape[1:]), np.uint8)
    for out, row in zip(clips, rows):
        out[: len(row.clip)] = row.clip
    return Batch(tuple(samples), arrays, clips, np.arange(clips.shape[1]) < np.array(counts)[:, None])


def batches(benchmark: Benchmark, groups: Iterable[Sequence[int]], batch_size: int, threads: int) -> Iterator[Batch]:
    """The batches of `groups` of positions in order, read ahead by threads."""
    groups = [tuple(group) for group in groups]
    ready = ahead(
        functools.partial(read, benchmark), [p for group in groups for p in group], max(threads, 1), 2 * batch_size
    )
    for group in groups:
        yield collate([next(ready) for _ in group], batch_size)


def ahead(function: Callable[[Any], Any], items: Sequence[Any], threads: int, depth: int) -> Iterator[Any]:
    """`map(function, items)` by threads, at most `depth` items ahead of the consumer."""
    waiting: collections.deque[futures.Future] = collections.deque()
    with futures.ThreadPoolExecutor(threads, "read-ahead") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
