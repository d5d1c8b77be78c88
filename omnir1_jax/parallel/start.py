"""Several processes as one run: who they are, and how they end when one of them is lost."""

import contextlib
import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Iterator

import jax

from omnir1_jax.errors import AGAIN, InputError

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
        if not host or not port.isdigit():
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
def ends_alone() -> Iterator[None]:
    """An error within ends this process at once, where its peers may be the reason or wait for it.

    An ordinary exit would wait for all of them to come to the end too. Where the first process is lost, JAX itself
    ends the others, with a line of its own; a dump of every thread would only hide it.
    """
    if jax.process_count() > 1:
        faulthandler.disable()
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1 or (isinstance(error, SystemExit) and not error.code):
            raise
        bad, text = isinstance(error, InputError), " ".join(str(error).split())[:400] or type(error).__name__
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in text:
            text = f"lost the others, or one of them failed; the same command resumes ({text})"
        elif not bad:
            traceback.print_exc()
        which = f"process {jax.process_index()} of {jax.process_count()}"
        print(f"error: {which}: {text}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2 if bad else 1)
