"""Several processes as one run: who they are, and how they end when one of them is lost."""

import contextlib
import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Iterator

import jax

from omnir1_jax import errors
from omnir1_jax.errors import AGAIN, DONE, Ending, InputError
from omnir1_jax.parallel import agree

AUTO = "auto"
# A lost process is missed after HEARTBEAT seconds; its peers end then. One that ends waits for the others for SHUTDOWN.
HEARTBEAT, SHUTDOWN = 30, 60


def start(coordinator: str = "", processes: int = 0, process: int = -1, *, wait: int = 300) -> None:
    """Joins the processes of a run into one. Before anything that asks for devices.

    Args:
      coordinator: "auto" on TPU pods, GKE, Slurm and MPI, where JAX finds the others; "HOST:PORT" of process 0 for
        plain processes; "" for a run of one process.
      processes, process: how many there are and which this is, with HOST:PORT only.
      wait: seconds for all to come; then the process ends with status 42.

    Raises:
      InputError: arguments that do not go together, or nothing found to join.
    """
    if coordinator in ("", AUTO):
        if processes or process != -1:
            raise InputError("--coordinator: HOST:PORT of process 0 has to go with --processes and --process")
        if not coordinator:
            return
        own = {}
    else:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise InputError(f"--coordinator: {coordinator!r} is neither HOST:PORT nor {AUTO!r}")
        if processes < 1:
            raise InputError("--processes: has to say how many processes --coordinator joins")
        if not 0 <= process < processes:
            raise InputError(f"--process: {process} is not one of 0 to {processes - 1}, a number of each process's own")
        own = dict(coordinator_address=coordinator, num_processes=processes, process_id=process)
    # JAX ends a process that waited in vain, with a dump and not with a line: ours comes before.
    late = threading.Timer(wait, _give_up, (coordinator, wait))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **own,
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
        late.cancel()


def _give_up(coordinator: str, wait: int) -> None:
    where = "" if coordinator == AUTO else f" to {coordinator}"
    print(
        f"error: --coordinator: not all of the processes came{where} within {wait} s; start every one of them, and see "
        "that they reach each other",
        file=sys.stderr,
        flush=True,
    )
    os._exit(AGAIN)


def check() -> None:
    """InputError where the devices are of several processes that were never joined."""
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise InputError(f"--coordinator: these devices belong to {jax.process_count()} processes; set it to {AUTO!r}")


@contextlib.contextmanager
def ends_together() -> Iterator[None]:
    """An error within ends all processes of the run at once, with one line and one status.

    An ordinary exit would wait for the others, who may wait for this one. Where process 0 is lost, JAX itself ends the
    others (SIGABRT), with lines of its own; a dump of every thread would only hide them.
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
    named = end.text.startswith(str(peers))
    return end if named else end._replace(text=f"{peers}: {end.text}")
