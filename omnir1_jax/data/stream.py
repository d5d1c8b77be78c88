"""Iterating a pipeline: exact state, the count of bad samples and when to stop for them, prefetch to the device."""

import functools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from omnir1_jax.data import pipeline
from omnir1_jax.data.batching import Batch, Fault
from omnir1_jax.data.pipeline import Family, PipelineConfig
from omnir1_jax.data.resting import Resting, Visit
from omnir1_jax.errors import InputError, printable

_VERSION = 1
_NAMED = 5
_HALT_S = 30.0
_COUNTS = ("samples", "bad", "dropped", "without_sound")


class Stream:
    """Batches of a pipeline with a JSON-able state.

    `counts`: samples tried, bad, dropped, without sound, since the very first batch (also across a resume).
    `get_state()` belongs to the batch returned last; a stream set to it resumes with the next one.
    """

    def __init__(
        self,
        dataset: Callable[[Mapping[str, Any]], grain.MapDataset],
        config: PipelineConfig,
        identity: Mapping[str, Any],
    ):
        """Args: dataset: function from resting items to the dataset, see `pipeline.training_dataset`."""
        self._dataset, self._config, self._identity = dataset, config, dict(identity)
        self.resting = Resting(config.rest_after) if config.rest_after else None
        self._iterator: grain.DatasetIterator | None = None
        self._next = 0
        self.counts = dict.fromkeys(_COUNTS, 0)
        self._last_bad: list[Fault] = []

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._make()
        while self._rests_anew(batch):
            self._end()  # batches made ahead may contain items that rest from here on
            batch = self._make()
        batch = batch._replace(step=self._next)
        self._next += 1
        self._count(batch)
        return batch

    def _make(self) -> Batch:
        if self._iterator is None:
            sets = {} if self.resting is None else self.resting.sets()
            self._iterator = pipeline.iterate(self._dataset(sets), self._next, self._config)
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise RuntimeError(
                f"{error} Exit code -9 is the system short of memory, -7 /dev/shm full: use fewer workers or smaller "
                "batches, or give the container more shared memory (--shm-size)."
            ) from error

    def _rests_anew(self, batch: Batch) -> bool:
        """Whether the next batch is the first of an epoch in which something rests."""
        if self.resting is None:
            return False
        epochs = pipeline.reach(self._identity["families"], batch)
        return any([self.resting.decide(batch.family, epoch, self._next) for epoch in epochs])

    def report(self, batch: Batch, flat: Sequence[bool]) -> None:
        """Reports the outcome of a batch; called for every batch in order if `config.rest_after` is set.

        Args:
          flat: for each row of this host, whether all its completions got the same reward.
        """
        rows = np.array([(draw.clip, draw.epoch, bad) for draw, bad in zip(batch.draws, flat, strict=True)], np.int32)
        if jax.process_count() > 1:
            rows = multihost_utils.process_allgather(rows, tiled=True)
        visits = [Visit(int(item), int(epoch), bool(bad)) for item, epoch, bad in np.unique(rows, axis=0)]
        self.resting.report(batch.step, batch.family, visits)

    def _count(self, batch: Batch) -> None:
        bad = [f for f in batch.faults if f.kind == "bad"]
        for f in bad:
            logging.warning("bad sample %s: %s", printable(f.sample_id), f.reason)
        self.counts["samples"] += batch.tried
        self.counts["bad"] += len(bad)
        self.counts["dropped"] += len(batch.faults) - len(bad)
        self.counts["without_sound"] += batch.without_sound
        self._last_bad = [*self._last_bad, *bad][-_NAMED:]
        samples, share = self.counts["samples"], self._config.max_bad_share
        if samples >= self._config.min_samples and self.counts["bad"] > share * samples:
            named = "; ".join(f"{f.sample_id}: {f.reason}" for f in self._last_bad)
            raise InputError(
                f"data: {self.counts['bad']} of {samples} samples are bad, more than max_bad_share = {share:g} allows. "
                f"The last: {named}"
            )

    def get_state(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "next_batch": self._next,
            "counts": dict(self.counts),
            "last_bad": [list(f) for f in self._last_bad],
            "stream": self._identity,
        } | ({} if self.resting is None else {"resting": self.resting.state()})

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Raises InputError where the state was saved by another stream, naming what differs."""
        if state.get("version") != _VERSION:
            raise InputError(f"data: a saved stream of version {state.get('version')}; this one reads {_VERSION}")
        for key, value in self._identity.items():
            if state["stream"].get(key) != value:
                raise InputError(f"data: the saved stream had {key} = {state['stream'].get(key)}, this one has {value}")
        self.close()
        self._next = int(state["next_batch"])
        self.counts = {key: int(state["counts"][key]) for key in _COUNTS}
        self._last_bad = [Fault(*f) for f in state["last_bad"]]
        if self.resting is not None:
            # A run that begins to rest counts from here on.
            self.resting.set_state(state.get("resting", {"reported": self._next}))

    def close(self) -> None:
        """Ends workers and threads. Iterating again starts them anew, at the next batch."""
        self._end()

    def _end(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def training_stream(families: Sequence[Family], config: PipelineConfig) -> Stream:
    """The endless mixture (see pipeline.training_dataset)."""
    pipeline.training_dataset(families, config)  # errors in the settings show now
    dataset = functools.partial(pipeline.training_dataset, families, config)
    return Stream(dataset, config, pipeline.fingerprint(families, config))


def put(batch: Batch, sharding: jax.sharding.Sharding | None = None) -> Batch:
    """The batch with its arrays on the device, or over the devices of `sharding` (each host gives its own samples)."""
    if sharding is None:
        return batch._replace(arrays=jax.device_put(dict(batch.arrays)))
    to_device = lambda x: jax.make_array_from_process_local_data(sharding, x)
    return batch._replace(arrays={key: to_device(value) for key, value in batch.arrays.items()})


@runtime_checkable
class Stateful(Protocol):
    """What a Prefetch wraps: a Stream or another Prefetch."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Prefetch:
    """Runs a stream ahead in a thread and puts its batches on the device: with depth 2 the next batch is there while
    this one is computed on. With depth 0 each batch is made when it is asked for.

    State is that of the batch handed out last. An error of the stream surfaces at the batch it belongs to. A stream
    that gives nothing for `warn_s` seconds is reported, one that gives nothing for `stop_s` raises TimeoutError.
    """

    def __init__(
        self,
        stream: Stateful,
        sharding: jax.sharding.Sharding | None = None,
        depth: int = 2,
        warn_s: float = 60.0,
        stop_s: float = 1800.0,
    ):
        self._stream, self._sharding, self._depth = stream, sharding, depth
        self._warn_s, self._stop_s = warn_s, stop_s
        self._state = stream.get_state()
        self._ended: Exception | None = None
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def _start(self) -> None:
        self._queue: queue.Queue = queue.Queue(maxsize=self._depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_fill, args=(self._stream, self._queue, self._stop, self._ready), name="data-prefetch", daemon=True
        )
        self._thread.start()

    def _ready(self, batch: Batch) -> Batch:
        return put(batch, self._sharding)

    def __next__(self) -> Batch:
        if self._ended is not None:
            raise self._ended
        if not self._depth:
            batch = self._ready(next(self._stream))
            self._state = self._stream.get_state()
            return batch
        if self._thread is None:
            self._start()
        waited = 0.0
        while True:
            step = min(self._warn_s, self._stop_s - waited)
            try:
                batch, state, error = self._queue.get(timeout=step)
                break
            except queue.Empty:
                waited += step
                if waited >= self._stop_s:
                    self._ended = TimeoutError(
                        f"data: no batch for {waited:g} s; a worker hangs, or the dataset's disk does not answer"
                    )
                    raise self._ended from None
                logging.warning("data: waiting for the next batch for %g s", waited)
        if error is not None:
            self._ended = error
            raise error
        self._state = state
        return batch

    def report(self, batch: Batch, flat: Sequence[bool]) -> None:
        """As `Stream.report`."""
        self._stream.report(batch, flat)  # type: ignore[attr-defined]  # a Stream's, where groups rest

    def get_state(self) -> dict[str, Any]:
        resting = getattr(self._stream, "resting", None)  # which goes by what was reported, not by what is made
        return self._state if resting is None else self._state | {"resting": resting.state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._halt()
        self._stream.set_state(state)
        self._state, self._ended = self._stream.get_state(), None

    def close(self) -> None:
        self._halt()
        self._stream.close()

    def _halt(self) -> None:
        if self._thread is None:
            return
        self._stop.set()
        resting = getattr(self._stream, "resting", None)
        if resting is not None:
            resting.close()
        self._thread.join(_HALT_S)
        if resting is not None:
            resting.open()
        if self._thread.is_alive():
            # A daemon: it cannot keep the program from ending, and its queue is no longer read.
            logging.warning("data: the prefetch thread did not end within %g s; left behind", _HALT_S)
        self._thread = None


def _fill(stream: Stateful, out: queue.Queue, stop: threading.Event, ready: Callable[[Batch], Batch]) -> None:
    while not stop.is_set():
        try:
            item = (ready(next(stream)), stream.get_state(), None)
        except Exception as error:  # handed to the consumer, which raises it
            item = (None, None, error)
        while not stop.is_set():
            try:
                out.put(item, timeout=0.1)
                break
            except queue.Full:
                continue
        if item[2] is not None:
            return
