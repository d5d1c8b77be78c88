"""The pipeline on synthetic trees in the real layouts, with worker processes, and its way to the devices."""

import functools
import json
import threading
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from omnir1_jax.data import canvas, clips, masks, media, pipeline, refavs, revos, stream
from omnir1_jax.data.synthetic import writers
from omnir1_jax.data.synthetic.world import WorldConfig
from omnir1_jax.errors import InputError

WORLD = WorldConfig(height=32, width=48, frames=20)
CANVAS = {"canvas": (32, 48), "mask_size": (32, 48)}


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    writers.revos(root / "revos", WORLD, 5, 0)
    writers.refavs(root / "refavs", WORLD, 5, 0)
    # One clip of each is damaged, so that replacing a sample is part of every comparison.
    frame = sorted((root / "revos/JPEGImages/synthetic/train/clip_00001").glob("*.jpg"))[0]
    frame.write_bytes(frame.read_bytes()[:300])
    sound = sorted(root.glob("refavs/media/*/audio.wav"))[0]
    sound.write_bytes(sound.read_bytes()[:1000])
    vos = pipeline.Family(
        "vos",
        (revos.open(str(root / "revos")),),
        2,
        clips.DecodeConfig(),
        functools.partial(canvas.element, config=canvas.DetailConfig(**CANVAS)),
        weight=2.0,
    )
    avs = pipeline.Family(
        "refavs",
        (refavs.open(str(root / "refavs")),),
        2,
        clips.DecodeConfig(frames=10, sampling="uniform", objects=1, sound="required"),
        functools.partial(heard, config=canvas.DetailConfig(frames=10, objects=1, **CANVAS)),
        one_per_clip=False,
    )
    return [vos, avs]


def heard(clip, config):
    """The arrays of a clip and its sound, of ten seconds."""
    sound = np.zeros(160_000, np.float32)
    sound[: len(clip.audio)] = clip.audio[: len(sound)]
    return {**canvas.element(clip, config), "audio": sound}


def config(**changes):
    settings = {"shard_index": 0, "shard_count": 1, "threads": 0, "max_bad_share": 0.9, **changes}
    return pipeline.PipelineConfig(**settings)


def fingerprint(batch):
    return batch._replace(arrays={key: np.asarray(value).tobytes() for key, value in batch.arrays.items()})


@pytest.fixture(scope="module")
def reference(families):
    """Batches of one process, and the state before each."""
    source = stream.training_stream(families, config())
    states, batches = [], []
    for _ in range(16):
        states.append(json.dumps(source.get_state()))
        batches.append(fingerprint(next(source)))
    assert source.counts["bad"] > 0
    return states, batches


def test_batches_hold_what_the_readers_say(families):
    source = stream.training_stream(families, config())
    by_id = {r.ids[p]: r[p] for f in families for r in f.readers for p in range(len(r))}
    kinds = set()
    for _ in range(9):
        batch = next(source)
        kinds.add(batch.family)
        for i, sample_id in enumerate(batch.sample_ids):
            ref, arrays = by_id[sample_id], {k: v[i] for k, v in batch.arrays.items()}
            assert batch.queries[i] == ref.query
            valid = arrays["frame_valid"]
            indices = [int(t) for t in arrays["frame_index"][valid]]
            np.testing.assert_array_equal(arrays["frames"][valid], media.load_frames(ref.frames, indices))
            truth = masks.decode_masks(ref.masks, indices)
            n = int(arrays["object_valid"].sum())
            assert n == min(len(truth), 3)
            got = arrays["masks"][:n][:, valid]
            if n == len(truth):
                np.testing.assert_array_equal(got, truth)
            np.testing.assert_array_equal(got.sum((2, 3)), arrays["areas"][:n][:, valid])
            if batch.family == "refavs":
                assert len(arrays["audio"]) == 160_000 and np.abs(arrays["audio"]).max() > 0.01
                assert len(indices) == 10
            else:
                assert 16 <= len(indices) <= 24
    assert kinds == {"vos", "refavs"}


@pytest.mark.parametrize("workers, points", [(2, (0, 7)), (3, (4,))])
def test_workers_change_nothing(families, reference, workers, points):
    states, batches = reference
    source = stream.training_stream(families, config(workers=workers))
    for point in points:
        source.set_state(json.loads(states[point]))
        for k in range(point, point + 5):
            assert json.dumps(source.get_state()) == states[k]
            assert fingerprint(next(source)) == batches[k]
    source.close()


def test_an_error_in_a_worker_surfaces(families):
    def fail(clip):
        raise ArithmeticError(f"no way through {clip.ref.dataset}")

    source = stream.training_stream([replace(families[0], transform=fail)], config(workers=1))
    with pytest.raises(ArithmeticError, match="no way through revos"):
        next(source)
    source.close()


def test_a_worker_that_dies_is_reported(families):
    def die(clip):
        import os

        os._exit(7)

    source = stream.training_stream([replace(families[0], transform=die)], config(workers=1))
    with pytest.raises(RuntimeError, match=r"exit code 7.*use fewer workers"):
        next(source)
    source.close()


def test_prefetch_shards_over_devices_and_keeps_the_state(families, reference):
    states, batches = reference
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    ahead = stream.Prefetch(stream.training_stream(families, config()), sharding)
    for k in range(6):
        assert json.dumps(ahead.get_state()) == states[k]
        if k == 2:
            # The thread has run ahead by now: the state is nevertheless that of the batch handed out.
            deadline = time.monotonic() + 20
            while not ahead._queue.full() and time.monotonic() < deadline:
                time.sleep(0.01)
        batch = next(ahead)
        assert all(isinstance(x, jax.Array) and x.sharding == sharding for x in batch.arrays.values())
        assert fingerprint(batch) == batches[k]
    ahead.set_state(json.loads(states[3]))
    assert [fingerprint(next(ahead)) for _ in range(3)] == batches[3:6]
    ahead.close()
    alone = stream.Prefetch(stream.training_stream(families, config()))
    assert fingerprint(next(alone)) == batches[0]
    alone.close()


class Slow:
    """A stream of three batches that hangs on request and then fails."""

    def __init__(self, batches):
        self.batches, self.position, self.go = batches, 0, threading.Event()

    def __next__(self):
        if self.position == len(self.batches):
            self.go.wait(30)
            raise InputError("the disk is gone")
        self.position += 1
        return self.batches[self.position - 1]

    def get_state(self):
        return {"next_batch": self.position}

    def set_state(self, state):
        self.position = state["next_batch"]

    def close(self):
        self.go.set()


def test_prefetch_reports_a_hang_and_an_error_in_its_place(families, caplog):
    source = stream.training_stream(families[:1], config())
    three = [next(source) for _ in range(3)]
    slow = Slow(three)
    ahead = stream.Prefetch(slow, warn_s=0.05, stop_s=0.2)
    assert [next(ahead).sample_ids for _ in range(3)] == [b.sample_ids for b in three]
    with pytest.raises(TimeoutError, match=r"no batch for 0\.2 s"):
        next(ahead)
    assert any("waiting for the next batch for 0.05 s" in r.getMessage() for r in caplog.records)
    slow.close()
    ahead.close()

    slow = Slow(three)
    slow.go.set()
    ahead = stream.Prefetch(slow, depth=5)
    seen = 0
    with pytest.raises(InputError, match="the disk is gone"):
        for _ in ahead:
            seen += 1
    assert seen == 3 and ahead.get_state() == {"next_batch": 3}
    with pytest.raises(InputError, match="the disk is gone"):
        next(ahead)
    ahead.close()
