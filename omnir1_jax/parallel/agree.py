"""Processes of one run agree before they compute, and exit together.

Both use the key-value store of the service that joined the processes: it needs no device, so a process that waits for
a device still learns of the others' failures. Without joined processes everything here does nothing.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn, Protocol

import jax
from jax._src import distributed

from omnir1_jax.errors import AGAIN, Ending, InputError, Interrupted

_FAILED, _GONE = "omnir1/failed", "omnir1/gone"
_LEAVING = threading.Lock()  # taken once: a process exits for one reason
# Seconds: between two polls for failures of the others; that process 0, which holds the store, waits until all know;
# that a file of another machine may take to become visible.
POLL, LINGER, SEEN = 1.0, 10.0, 20.0


class Store(Protocol):
    """What jax.distributed's client offers."""

    def key_value_set(self, key: str, value: str) -> None: ...

    def key_value_try_get(self, key: str) -> str: ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...

    def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None: ...


class Peers(NamedTuple):
    """The processes of a run, this one being `index` of `count`."""

    store: Store
    index: int
    count: int

    def __str__(self) -> str:
        return f"process {self.index} of {self.count}"


def joined() -> Peers | None:
    """The processes of the run; None if there is only one."""
    state = distributed.global_state
    if state.client is None or state.num_processes == 1:
        return None
    return Peers(state.client, state.process_id, state.num_processes)


def same(peers: Peers | None, stage: str, facts: Callable[[], Mapping[str, Any]], seconds: float = 60.0) -> None:
    """Returns in every process once all have the same facts.

    Args:
      stage: name of this comparison, used once in a run.
      facts: function that gives JSON-able values by dotted name, in the order in which they are compared.
      seconds: timeout for all processes to arrive.

    Raises:
      InputError: this process differs from process 0, with the first name and both values.
      Interrupted: another process did not arrive.
    """
    if peers is None:
        return
    local_facts = json.loads(json.dumps(facts()))
    key = f"omnir1/{stage}"
    with _in_time(peers, stage, seconds):
        if peers.index == 0:
            peers.store.key_value_set(key, json.dumps(local_facts))
        else:
            first = json.loads(peers.store.blocking_key_value_get(key, int(1000 * seconds)))
            if mismatch := difference(first, local_facts):
                raise InputError(
                    f"{peers} differs from process 0: {mismatch}; start every process with the same command, package "
                    "and data"
                )
        peers.store.wait_at_barrier(f"{key}/all", int(1000 * seconds))


def one_folder(peers: Peers | None, name: str, read: Callable[[], str | None], seconds: float = 60.0) -> None:
    """Returns in every process once all see what process 0 sees.

    Args:
      name: flag and path of the folder, for messages.
      read: function that gives what process 0 just wrote in the folder, or None.

    Raises:
      InputError: this process does not see it.
      Interrupted: another process did not arrive.
    """
    if peers is None:
        return
    key = "omnir1/folder"
    with _in_time(peers, "folder", seconds):
        if peers.index == 0:
            peers.store.key_value_set(key, read() or "")
        else:
            expected, deadline = peers.store.blocking_key_value_get(key, int(1000 * seconds)), time.monotonic() + SEEN
            while read() != expected:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"{peers} does not see what process 0 writes: {name} has to be one folder for all, on a disk "
                        "that they share or on gs://"
                    )
                time.sleep(0.2)
        peers.store.wait_at_barrier(f"{key}/all", int(1000 * (seconds + SEEN)))


def difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first fact in which the two differ, as "name old -> new"."""
    text = lambda facts, name: json.dumps(facts[name], ensure_ascii=False)[:80] if name in facts else "not set"
    for name in [*first, *(name for name in other if name not in first)]:
        if name not in first or name not in other or first[name] != other[name]:
            return f"{name} {text(first, name)} -> {text(other, name)}"
    return None


@contextlib.contextmanager
def _in_time(peers: Peers, stage: str, seconds: float) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise Interrupted(
            f"{peers}: not all processes came to compare their {stage} within {seconds:g} s; run the same command again"
        ) from error


@contextlib.contextmanager
def watched(peers: Peers) -> Iterator[None]:
    """During the body, a failure of another process ends this one with the same line and status, even if it waits."""
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(peers, ended), name="peers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(peers: Peers, ended: threading.Event) -> None:
    while not ended.wait(POLL):
        if end := failure(peers):
            leave(peers, end)


def failure(peers: Peers) -> Ending | None:
    """The ending of the run if a process has failed, else None."""
    try:
        return Ending(*json.loads(peers.store.key_value_try_get(_FAILED)))
    except jax.errors.JaxRuntimeError:  # no failure; or the store is gone with process 0, and JAX ends this process
        return None


def fail(peers: Peers, end: Ending) -> Ending:
    """Publishes how this process ends; returns how the run ends, which the first failure decides."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was first, or the store is gone
        peers.store.key_value_set(_FAILED, json.dumps(end))
    return failure(peers) or end


def leave(peers: Peers, end: Ending) -> NoReturn:
    """Prints the line and exits immediately: an ordinary exit would wait for the other processes."""
    with _LEAVING:
        print(f"error: {end.text}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the store is gone: nobody waits
            peers.store.key_value_set(f"{_GONE}/{peers.index}", "")
            if peers.index == 0:
                _linger(peers)
        os._exit(end.status)


def _linger(peers: Peers) -> None:
    deadline = time.monotonic() + LINGER
    for index in range(1, peers.count):
        remaining = max(deadline - time.monotonic(), 0.001)
        peers.store.blocking_key_value_get(f"{_GONE}/{index}", int(1000 * remaining))


def is_lost(error: BaseException) -> bool:
    """Whether the error means that the processes of a run no longer reach each other."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)


def lost(error: BaseException) -> Ending:
    """The ending of a run whose processes no longer reach each other."""
    text = " ".join(str(error).split())[:300]
    return Ending(AGAIN, f"lost another process; run the same command again to resume ({text})")
