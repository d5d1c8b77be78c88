"""One process at a time in a folder: a lock that no killed process leaves behind.

On a local disk the lock is `flock` on the file `.omnir1.lock`: the kernel releases it when the process ends, however it
ends. Where that does not exist (gs://, some network disks) the same file is a lease: its holder rewrites it every few
seconds, and it is taken over once it has not changed for longer than `Lease.seconds`, so that no two clocks are
compared.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from etils import epath

from omnir1_jax.errors import InputError

LOCK = ".omnir1.lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_HELD: set[str] = set()  # locks of this process, which may nest them


class Lease(NamedTuple):
    """Times of a lease, in seconds.

    Attributes:
      seconds: age without renewal at which a holder counts as dead.
      beat: time between two renewals.
      settle: time between writing a new lease and reading it back, longer than another process needs between seeing
        the lease free and writing its own. The last writer gets it.
    """

    seconds: float = 40.0  # the other processes of a run wait for the first one for 60
    beat: float = 8.0
    settle: float = 3.0


LEASE = Lease()


class _Busy(Exception):
    """Another process holds the lock; the message describes it."""


@contextlib.contextmanager
def lock(folder: epath.PathLike, flag: str, *, lease: Lease | None = None, force_lease: bool = False) -> Iterator[None]:
    """Holds the lock of an existing folder. A lock that this process holds already is nested.

    Args:
      flag: name of the folder in messages, such as "--out".
      lease: times of a lease; None takes `LEASE`.
      force_lease: use a lease on a local disk too; for tests.

    Raises:
      InputError: another process holds it (its host and process are named), or the lock's file cannot be written.
    """
    path = epath.Path(folder) / LOCK
    key = str(path)
    if key in _HELD:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            local = "://" not in key and not force_lease
            if not (local and stack.enter_context(_flock(path))):
                stack.enter_context(_leased(path, flag, lease or LEASE))
        except _Busy as error:
            raise InputError(
                f"{flag}: {folder} is in use by {error}; wait until it ends, or name another folder"
            ) from None
        except OSError as error:
            raise InputError(f"{flag}: cannot lock {path}: {error.strerror or error}") from error
        _HELD.add(key)
        stack.callback(_HELD.discard, key)
        yield


@contextlib.contextmanager
def _flock(path: epath.Path) -> Iterator[bool]:
    """Holds the lock and yields whether the disk supports it. The file is removed with the lock."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            content = _parse(os.pread(file, 4096, 0), path)
            if not _try_flock(file, content):
                yield False
                return
            # Its last holder may have removed it between the opening and the lock.
            if not _same_file(file, path):
                continue
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(_me()).encode(), 0)
            try:
                yield True
            finally:
                if _same_file(file, path):
                    os.unlink(path)
            return
        finally:
            os.close(file)


def _try_flock(file: int, content: dict[str, Any]) -> bool:
    """Takes the lock and returns whether the disk supports it. Raises _Busy if another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _Busy(_describe(content)) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _same_file(file: int, path: epath.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _leased(path: epath.Path, flag: str, lease: Lease) -> Iterator[None]:
    me = _me() | {"lease": uuid.uuid4().hex}
    _await_free(path, flag, lease)
    _write(path, me)
    time.sleep(lease.settle)
    holder = _read(path)
    if holder is None or holder.get("lease") != me["lease"]:
        raise _Busy(_describe(holder))
    ended = threading.Event()
    renew = functools.partial(_renew, path, me, lease, ended, _end_process)
    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        holder = _read(path)
        if holder is not None and holder.get("lease") == me["lease"]:
            path.unlink(missing_ok=True)


def _await_free(path: epath.Path, flag: str, lease: Lease) -> None:
    """Returns when the lease is free; watches a holder that may be dead for the duration of a lease."""
    holder = _read(path)
    if holder is None or _is_gone(holder):
        return
    print(
        f"{flag}: {path.parent} was last used by {_describe(holder)}; watching for {lease.seconds:.0f} s whether it "
        "still is",
        file=sys.stderr,
    )
    end = time.monotonic() + lease.seconds
    while time.monotonic() < end:
        time.sleep(min(lease.beat, 1.0))
        now = _read(path)
        if now is None:
            return
        if now != holder:
            raise _Busy(_describe(now))


def _renew(
    path: epath.Path, me: dict[str, Any], lease: Lease, ended: threading.Event, on_lost: Callable[[str], None]
) -> None:
    beat = 0
    while not ended.wait(lease.beat):
        try:
            holder = _read(path)
            if holder is None or holder.get("lease") != me["lease"]:
                on_lost(f"{path.parent}: its lock was taken over by {_describe(holder)}")
                return
            beat += 1
            _write(path, me | {"beat": beat})
        except OSError as error:  # retried: the next read shows whether another process has taken over
            print(f"{path}: not renewed ({error})", file=sys.stderr)


def _end_process(reason: str) -> None:
    """Ends this process, which failed to renew its lease: two writers would corrupt the folder."""
    print(f"error: {reason}, since this process did not renew it in time", file=sys.stderr, flush=True)
    os._exit(2)


def _me() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "process": _identity(os.getpid()),
    }


def _identity(pid: int) -> str | None:
    """An identifier unique to the process, also after a reboot; None if there is no such process."""
    proc = pathlib.Path("/proc")
    try:
        ticks = (proc / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[19]
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(proc / 'self/ns/pid')} {ticks}"
    except (OSError, IndexError):
        return None


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine (and of this container) that has ended."""
    own_identity, holder_identity = _identity(os.getpid()), holder.get("process")
    if not own_identity or not isinstance(holder_identity, str) or holder.get("host") != socket.gethostname():
        return False
    same_machine = own_identity.rsplit(" ", 1)[0] == holder_identity.rsplit(" ", 1)[0]
    return same_machine and _identity(holder["pid"]) != holder_identity


def _write(path: epath.Path, holder: dict[str, Any]) -> None:
    if "://" in str(path):
        path.write_text(json.dumps(holder))
        return
    scratch = path.with_name(f"{path.name}.{holder['lease']}")
    scratch.write_text(json.dumps(holder))
    scratch.replace(path)


def _read(path: epath.Path) -> dict[str, Any] | None:
    try:
        return _parse(path.read_bytes(), path)
    except FileNotFoundError:
        return None


def _parse(content: bytes, path: epath.Path) -> dict[str, Any]:
    """The content of the lock file, {} just after it was created. Raises OSError for a file that is not our lock."""
    if not content:
        return {}
    try:
        holder = json.loads(content)
        if isinstance(holder, dict) and isinstance(holder.get("host"), str) and isinstance(holder.get("pid"), int):
            return holder
    except (ValueError, RecursionError):
        pass
    raise OSError(errno.EEXIST, "a file of that name is there which is not a lock; move it elsewhere", str(path))


def _describe(holder: dict[str, Any] | None) -> str:
    if not holder:
        return "another process"
    return f"process {holder['pid']} on host {holder['host']} (since {holder.get('started', 'unknown')})"
