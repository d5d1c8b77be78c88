"""Stop signals from a person, a terminal or a scheduler: training saves and exits, other commands exit."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import logging

from omnir1_jax.errors import Interrupted


def _numbers() -> set[signal.Signals]:
    """The signals to handle. SIGHUP, sent when the terminal closes, is left out if ignored (nohup)."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return {signal.SIGTERM, signal.SIGINT} | (set() if ignored else {signal.SIGHUP})


@contextlib.contextmanager
def stop_flag() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the step that returns whether to stop after it. Call it once after every step.

    A second signal ends the process immediately with status 128 + its number, even while a device computes.
    With several processes a signal to any of them stops all after the same step (JAX's preemption service, which
    takes SIGTERM itself).
    """
    import jax  # here, because commands that do not use it import this module too
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        with _caught(_numbers() - {signal.SIGTERM}, _ignore, lambda _: os.kill(os.getpid(), signal.SIGTERM)):
            yield multihost_utils.reached_preemption_sync_point
        return
    stop_requested = threading.Event()

    def request_stop(number: signal.Signals) -> None:
        logging.warning("%s: saves after this step and exits; send it again to exit immediately", number.name)
        stop_requested.set()

    with _caught(_numbers(), _ignore, request_stop):
        yield lambda step: stop_requested.is_set()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turns a signal into Interrupted, so that scratch files and locks are removed; a second one ends the process."""
    with _caught(_numbers(), _raise, lambda _: None):
        yield


@contextlib.contextmanager
def _caught(
    numbers: set[signal.Signals], handler: Callable, notify: Callable[[signal.Signals], None]
) -> Iterator[None]:
    """Handles signals during the body.

    Args:
      handler: the Python handler, which runs between instructions of the main thread, so possibly late.
      notify: function called immediately at the first signal, on a thread. The second signal ends the process.
    """
    # A byte written to the wake-up socket reaches the thread immediately.
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    thread = threading.Thread(target=_listen, args=(receiver, numbers, notify), name="signals", daemon=True)
    handlers = {number: signal.signal(number, handler) for number in numbers}
    wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, old_handler in handlers.items():
            signal.signal(number, old_handler)
        sender.close()
        thread.join()
        receiver.close()


def _listen(receiver: socket.socket, numbers: set[signal.Signals], notify: Callable[[signal.Signals], None]) -> None:
    first = True
    while number := receiver.recv(1):
        if number[0] not in numbers:
            continue
        if not first:
            os._exit(128 + number[0])
        first = False
        notify(signal.Signals(number[0]))


def _ignore(*_: object) -> None:
    """A handler, so that the signal reaches the wake-up socket."""


def _raise(number: int, _: object) -> NoReturn:
    raise Interrupted(f"interrupted by {signal.Signals(number).name}; run the same command again to resume")
