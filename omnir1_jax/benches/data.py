"""Samples a second of the input pipeline, and where the time of a sample goes.

Synthetic trees in the layouts of ReVOS and Ref-AVS at their usual size (480x854; quick: small), batches as training
takes them: 16 to 24 frames on a 1024x1024 canvas, masks at 256x256, ten seconds of sound. Throughput with no workers,
with threads and with worker processes; the breakdown is of one process, in milliseconds a sample. An H.264 film of the
same frames is read whole and in 24 frames of its length, in milliseconds per frame of the film, by one thread.
"""

import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import cv2
import numpy as np

from omnir1_jax.data import audio, batching, canvas, clips, masks, media, paths, pipeline, refavs, revos, stream
from omnir1_jax.data.preprocess.mel import log_mel
from omnir1_jax.data.refs import VideoFile
from omnir1_jax.data.synthetic import encode, writers
from omnir1_jax.data.synthetic.scenes import make_clip
from omnir1_jax.data.synthetic.world import WorldConfig

BATCH = 2


def _families(root: pathlib.Path, quick: bool) -> dict[str, pipeline.Family]:
    size, clip_count, frames = ((96, 128), 3, 20) if quick else ((480, 854), 6, 40)
    world = WorldConfig(height=size[0], width=size[1], frames=frames)
    writers.revos(root / "revos", world, clip_count, 0)
    writers.refavs(root / "refavs", world, clip_count, 0)
    canvas = {"canvas": (96, 96), "mask_size": (48, 48)} if quick else {}
    vos = pipeline.Family(
        "vos",
        (revos.open(str(root / "revos")),),
        BATCH,
        clips.DecodeConfig(),
        functools.partial(canvas.element, config=canvas.DetailConfig(**canvas)),
    )
    avs = pipeline.Family(
        "refavs",
        (refavs.open(str(root / "refavs")),),
        BATCH,
        clips.DecodeConfig(frames=10, sampling="uniform", objects=1, sound="required"),
        functools.partial(canvas.element, config=canvas.DetailConfig(10, 1, **canvas)),
        one_per_clip=False,
    )
    return {"vos": vos, "refavs": avs}


def _rate(family: pipeline.Family, batches: int, clock: Callable[[], float] = time.perf_counter, **how: int) -> float:
    """Samples a second of `clock`, buffers empty at the start; starting workers is not counted."""
    config = pipeline.PipelineConfig(shard_index=0, shard_count=1, **how)
    source = stream.training_stream([family], config)
    # Taken without a pause, so that nothing made before the clock starts is still waiting in a buffer.
    for _ in range(2 + 3 * how.get("workers", 0) + 2 * how.get("threads", 0)):
        next(source)
    start = clock()
    for _ in range(batches):
        next(source)
    seconds = clock() - start
    source.close()
    return batches * family.batch_size / seconds


class _Clock:
    def __init__(self):
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, name: str, function: Callable, *args):
        start = time.perf_counter()
        value = function(*args)
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return value


def _breakdown(family: pipeline.Family, samples: int) -> dict[str, float]:
    """Milliseconds a sample of each stage, medians, one process and one thread."""
    clock, config = _Clock(), family.transform.keywords["config"]
    dataset = pipeline.training_dataset([family], pipeline.PipelineConfig(shard_index=0, shard_count=1))
    reader = family.readers[0]
    position = {sample_id: p for p, sample_id in enumerate(reader.ids)}
    found = []
    while len(found) < samples:
        batch = dataset[len(found)]
        for sample_id, index in zip(batch.sample_ids, batch.arrays["frame_index"]):
            found.append((sample_id, [int(t) for t in index[index >= 0]]))
    for sample_id, indices in found[:samples]:
        ref = clock("reader", reader.__getitem__, position[sample_id])
        read = lambda ref=ref, indices=indices: [paths.read_bytes(ref.frames.paths[t]) for t in sorted(set(indices))]
        blobs = clock("read", read)
        frames = clock("decode", lambda blobs=blobs: [media.decode_image(b, "frame") for b in blobs])
        clock("resize", lambda frames=frames: [media.resize(f, config.canvas) for f in frames])
        mask = clock("mask_decode", masks.decode_masks, ref.masks, indices)
        mask = mask[: config.objects]
        if ref.audio is not None:
            wave = clock("audio", audio.load_audio, ref.audio)
            clock("mel", lambda wave=wave: log_mel(wave, sample_rate=audio.SAMPLE_RATE))
        clip = clips.DecodedClip(
            ref, np.array(indices), np.stack([frames[0]] * len(indices)), frames[0].shape[:2], mask, None, False, None
        )
        arrays = clock("element", canvas.element, clip, config)
        item = batching.Item(None, sample_id, "", {}, arrays, (), False)
        clock("batch", batching.collate, family.name, [item])
    medians = {name: 1e3 * statistics.median(values) for name, values in clock.seconds.items()}
    # An element is the resizing and what is made of the masks.
    medians["boxes_areas_masks"] = max(medians.pop("element") - medians["resize"], 0.0)
    return medians


def _film(root: pathlib.Path, quick: bool, repeats: int) -> dict[str, float]:
    """Milliseconds per frame of a film: all its frames, and 24 spread over it, each with the film opened anew."""
    world = WorldConfig(height=96, width=128, frames=20) if quick else WorldConfig(height=480, width=854, frames=240)
    (root / "film.mp4").write_bytes(encode.mp4(make_clip(world, 0).frames, 30))
    source, count = VideoFile(str(root / "film.mp4")), world.frames
    figures = {}
    for name, indices in (("all", range(count)), ("sparse", np.linspace(0, count - 1, min(24, count), dtype=int))):
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            media.load_frames(source, indices)
            seconds.append(time.perf_counter() - start)
        figures[f"film_ms_per_frame.{name}"] = 1e3 * min(seconds) / count
    return figures


def run(quick: bool) -> dict:
    """Figures by name: samples a second for each way of running, the shares of a sample's time."""
    batches, samples, repeats = (10, 4, 1) if quick else (6, 12, 3)
    figures: dict[str, float] = {}
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with tempfile.TemporaryDirectory() as root:
            figures |= _film(pathlib.Path(root), quick, repeats)
            for name, family in _families(pathlib.Path(root), quick).items():
                for label, how in (
                    ("one_process", {}),
                    ("two_threads", {"threads": 2}),
                    ("two_workers", {"workers": 2}),
                ):
                    rates = [_rate(family, batches, **how) for _ in range(repeats)]
                    figures[f"{name}_samples_per_s.{label}"] = statistics.median(rates)
                # Seconds of processor time: what a core gives, whatever else the machine is doing.
                rates = [_rate(family, batches, time.process_time) for _ in range(repeats)]
                figures[f"{name}_samples_per_core_s"] = statistics.median(rates)
                figures[f"{name}_speedup_of_workers"] = (
                    figures[f"{name}_samples_per_s.two_workers"] / figures[f"{name}_samples_per_s.one_process"]
                )
                parts = _breakdown(family, samples)
                total = sum(parts.values())
                for part, ms in parts.items():
                    figures[f"{name}_ms.{part}"] = ms
                    figures[f"{name}_share.{part}"] = ms / total
    finally:
        cv2.setNumThreads(threads)
    return figures
