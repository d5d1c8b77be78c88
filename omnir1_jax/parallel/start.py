"""Joins several processes into one run, and ends all of them when one is lost."""

import contextlib
import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import jax

from omnir1_jax import cli, errors
from omnir1_jax.errors import AGAIN, DONE, Ending, InputError
from omnir1_jax.parallel import agree

AUTO = "auto"
# Seconds without a heartbeat after which a process counts as lost, and that an exit waits for the other processes.
HEARTBEAT, SHUTDOWN = 30, 60


def flags() -> Callable[[], None]:
    """Defines the flags of a command that may be several processes; gives what joins them as the flags say."""
    coordinator = cli.flag.string(
        "coordinator",
        "",
        "Joins the processes of one run: 'auto' on TPU pods, GKE, Slurm and MPI; elsewhere HOST:PORT of process 0, "
        "with --processes and --process.",
    )
    processes = cli.flag.integer("processes", 0, "How many processes the run has, with --coordinator=HOST:PORT.")
    process = cli.flag.integer("process", -1, "Which of them this is, from 0, with --coordinator=HOST:PORT.")
    return lambda: start(coordinator.value, processes.value, process.value)


def start(coordinator: str = "", processes: int = 0, process: int = -1, *, wait: int = 300) -> None:
    """Joins the processes of a run. Call it before anything that asks for devices.

    Args:
      coordinator: "auto" on TPU pods, GKE, Slurm and MPI, where JAX finds the others; "HOST:PORT" of process 0 for
        plain processes; "" for a run of one process.
      processes, process: how many there are and which this is, with HOST:PORT only.
      wait: timeout in seconds for all processes to arrive; then this one exits with status 42.

    Raises:
      InputError: arguments that do not go together, or nothing found to join.
    """
    if coordinator in ("", AUTO):
        if processes or process != -1:
            raise InputError("--coordinator: HOST:PORT of process 0 has to go with --processes and --process")
        if not coordinator:
            return
        options = {}
    else:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise InputError(f"--coordinator: {coordinator!r} is neither HOST:PORT nor {AUTO!r}")
        if processes < 1:
            raise InputError("--processes: has to say how many processes --coordinator joins")
        if not 0 <= process < processes:
            raise InputError(f"--process: {process} is not one of 0 to {processes - 1}, a number of each process's own")
        options = dict(coordinator_address=coordinator, num_processes=processes, process_id=process)
    # JAX ends a process whose wait times out with a dump and not with a line: our timer fires before.
    timer = threading.Timer(wait, _give_up, (coordinator, wait))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=wait + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    except ValueError as error:
        raise InputError(
            "--coordinator: no TPU pod, GKE, Slurm or MPI job is found here; give HOST:PORT of process 0 with "
            f"--processes and --process ({error})"
        ) from error
    finally:
        timer.cancel()


def _give_up(coordinator: str, wait: int) -> None:
    peer = "" if coordinator == AUTO else f" to {coordinator}"
    print(
        f"error: --coordinator: not all of the processes came{peer} within {wait} s; start every one of them, and see "
        "that they reach each other",
        file=sys.stderr,
        flush=True,
    )
    os._exit(AGAIN)


def check() -> None:
    """InputError if the devices belong to several processes that were never joined."""
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise InputError(f"--coordinator: these devices belong to {jax.process_count()} processes; set it to {AUTO!r}")


@contextlib.contextmanager
def ends_together() -> Iterator[None]:
    """On error, exits all processes of the run without the distributed shutdown barrier, with one line and one status.

    An ordinary exit would wait for the others, which may wait for this one. If process 0 is lost, JAX itself ends the
    others (SIGABRT) with its own lines; a dump of every thread would hide them.
    """
    peers = agree.joined()
    if peers is None:
        yield
        return
    faulthandler.disable()
    with agree.watched(peers):
        try:
            yield
        except BaseException as error:
            if isinstance(error, SystemExit) and error.code in (None, DONE, AGAIN):
                raise
            agree.leave(peers, agree.fail(peers, _ending(error, peers)))


def _ending(error: BaseException, peers: agree.Peers) -> Ending:
    end = errors.ending(error)
    if end is None and agree.is_lost(error):
        end = agree.lost(error)
    if end is None:
        traceback.print_exc()
        end = Ending(1, errors.printable(" ".join(str(error).split())[:400]) or type(error).__name__)
    has_name = end.text.startswith(str(peers))
    return end if has_name else end._replace(text=f"{peers}: {end.text}")
