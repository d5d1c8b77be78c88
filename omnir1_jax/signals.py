"""A stop that a person or a scheduler asks for (SIGTERM, SIGINT): the loop reads it after a step, saves and ends."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import jax
from absl import logging
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def stop_flag() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the step that says whether to stop after it. Call it once after every step.

    A second signal ends the process at once with status 128 + its number, also while a device computes.
    With several processes a SIGTERM to any of them stops all after the same step (JAX's preemption service, which
    takes the signal itself).
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = threading.Event()
    # Python runs handlers only between instructions of the main thread, which may sit in a long computation. What is
    # written to the wake-up socket reaches a thread at once.
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    thread = threading.Thread(target=_listen, args=(receiver, asked), name="signals", daemon=True)
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        sender.close()
        thread.join()
        receiver.close()


def _listen(receiver: socket.socket, asked: threading.Event) -> None:
    while number := receiver.recv(1):
        if number[0] not in _SIGNALS:
            continue
        if asked.is_set():
            os._exit(128 + number[0])
        logging.warning("%s: saves after this step and ends; once more ends at once", signal.Signals(number[0]).name)
        asked.set()
