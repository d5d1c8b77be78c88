"""Ownership of output folders: no file of the user is removed or overwritten, and one process writes at a time.

A command writes only into a path that does not exist, an empty folder, or a folder with its own mark: the file
`.omnir1.json`, with the kind of the folder, an id, and the names in it that the command wrote. Only these are ever
replaced or removed. In a command:

    check(path, kind, flag)                       changes nothing; called before anything is loaded
    with hold(path, kind, flag) as mark:          a folder that is filled over time (a run, an evaluation): locked,
        with file(path, "summary.json", flag):    marked; a file in it, listed before it is first written
        path = begin(path, "results.jsonl", flag) ... or one that is appended to, or a folder in it
        with replace(path / "weights", "weights", flag, owner=mark.id) as scratch:
    with replace(path, kind, flag) as scratch:    a folder that appears atomically

Scratch names end in `.omnir1.part` and `.omnir1.old`; what a killed command left under these names is removed by
the next command with the same target; other names are kept. A target or a listed name must not be a link.
"""

import contextlib
import json
import os
import pathlib
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from omnir1_jax import cli, errors
from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file, locks

MARK, VERSION = ".omnir1.json", 1
PART, OLD = ".omnir1.part", ".omnir1.old"
_OURS = re.compile(rf"{re.escape(MARK)}|{re.escape(locks.LOCK)}|\.{re.escape(MARK)}\.[0-9]+\.[0-9a-f]+\.part")

# The names in a folder that an older version without marks wrote there; None: it is not such a folder.
Adopt = Callable[[epath.Path], Sequence[str] | None]


class Mark(NamedTuple):
    """The owner of a folder.

    Attributes:
      kind: the command, or what it makes: "train", "evaluate", "weights".
      id: identifier of a folder that is created once; folders inside it carry the same one.
      names: paths below the folder that were written there; folders end in "/".
    """

    kind: str
    id: str
    names: tuple[str, ...] = ()


def check(
    path: epath.PathLike,
    kind: str,
    flag: str,
    *,
    names: Sequence[str] = (),
    owner: str = "",
    adopt: Adopt | None = None,
) -> Mark | None:
    """Whether a command may write the folder `path`. Changes nothing.

    Args:
      flag: names the path in messages, such as "--out".
      names: names that the command will write in it; in a folder with a mark, existing ones must be listed.
      owner: required id of the mark, for a folder inside another one.
      adopt: function that recognises a folder of an older version.

    Returns:
      The mark; None if there is none yet (the folder is missing, empty, or adopted by `claim`).

    Raises:
      InputError: names the path and what is there.
    """
    path = epath.Path(path)
    if is_link(path):
        raise InputError(f"{flag}: {path} is a symbolic link; name the folder itself, or a new one")
    if not exists(path, flag):
        return None
    if not path.is_dir():
        raise InputError(f"{flag}: {path} is a file; name a folder")
    mark = read(path)
    if mark is None:
        foreign = sorted(entry.name for entry in path.iterdir() if not _OURS.fullmatch(entry.name))
        if foreign and (adopt is None or adopt(path) is None):
            advice = "move that elsewhere" if owner else "name a new or an empty folder"
            raise InputError(f"{flag}: {path} holds {some(foreign)}, not written by this command; {advice}")
        return None
    if mark.kind != kind:
        raise InputError(f"{flag}: {path} is a folder of kind {mark.kind}, not {kind}; name another folder")
    if owner and mark.id != owner:
        raise InputError(f"{flag}: {path} is a copy that belongs to another folder; move it elsewhere")
    for name in names:
        _refuse_unlisted(path, mark, name, flag)
    return mark


def claim(
    path: epath.PathLike,
    kind: str,
    flag: str,
    *,
    names: Sequence[str] = (),
    owner: str = "",
    adopt: Adopt | None = None,
) -> Mark:
    """Creates and marks the folder unless it has a mark; arguments and errors as in `check`."""
    path = epath.Path(path)
    if mark := check(path, kind, flag, names=names, owner=owner, adopt=adopt):
        return mark
    adopted = adopt(path) if adopt is not None and path.exists() else None
    mark = Mark(kind, owner or uuid.uuid4().hex, tuple(adopted or ()))
    _make(path, flag)
    write(path, mark)
    return mark


@contextlib.contextmanager
def hold(
    path: epath.PathLike,
    kind: str,
    flag: str,
    *,
    names: Sequence[str] = (),
    owner: str = "",
    adopt: Adopt | None = None,
) -> Iterator[Mark]:
    """Locks and claims a folder that is filled over time; called by one process of a run.

    On exit it removes the folder if it created it and nothing was written.

    Raises:
      InputError: as `check`; or another process holds the folder, which is named with its host.
    """
    path = epath.Path(path)
    check(path, kind, flag, names=names, owner=owner, adopt=adopt)
    fresh = not path.exists()
    _make(path, flag)
    with contextlib.ExitStack() as stack:
        if fresh:
            stack.callback(_remove_unused, path)
        stack.enter_context(locks.lock(path, flag))
        yield claim(path, kind, flag, names=names, owner=owner, adopt=adopt)


def begin(folder: epath.PathLike, name: str, flag: str) -> epath.Path:
    """Lists `name` as written by the command and returns its path. Call it before the first write.

    Raises:
      InputError: an entry of that name exists that is not listed, or is a link.
    """
    folder = epath.Path(folder)
    mark = _marked(folder, flag)
    _refuse_unlisted(folder, mark, name, flag)
    if name not in mark.names:
        write(folder, mark._replace(names=(*mark.names, name)))
    return folder / name


def forget(folder: epath.PathLike, name: str, flag: str) -> None:
    """Removes `name` from the listing of the folder."""
    mark = _marked(epath.Path(folder), flag)
    if name in mark.names:
        write(folder, mark._replace(names=tuple(other for other in mark.names if other != name)))


@contextlib.contextmanager
def file(folder: epath.PathLike, name: str, flag: str) -> Iterator[epath.Path]:
    """Writes a file of a claimed folder atomically: yields the scratch path to write (see `begin`)."""
    with cli.atomic_path(begin(folder, name, flag)) as scratch:
        yield scratch


@contextlib.contextmanager
def replace(target: epath.PathLike, kind: str, flag: str, *, owner: str = "") -> Iterator[epath.Path]:
    """Writes a folder atomically: yields the existing scratch folder to fill.

    On a clean exit everything in it is listed in its mark and it is renamed to `target`; an earlier folder of the same
    kind there is removed. If the body raises, or is killed, the earlier folder stays.

    Args:
      owner: id of the folder that contains `target` and owns it.

    Raises:
      InputError: `target` is not such a folder, or has unlisted entries; another process is writing it.
    """
    target = epath.Path(target)
    check_replaceable(target, kind, flag, owner=owner)
    scratch, old = (target.with_name(f".{target.name}{suffix}") for suffix in (PART, OLD))
    check(scratch, kind, flag)
    check_replaceable(old, kind, flag)
    _make(scratch, flag)
    with contextlib.ExitStack() as stack:
        flocked = stack.enter_context(locks.lock(scratch, flag))
        mark = Mark(kind, owner or uuid.uuid4().hex)
        try:
            _clear(scratch)
            write(scratch, mark)
            if old.exists() and not target.exists():
                old.rename(target)  # killed between the two renames below
            with errors.named(target, scratch):
                yield scratch
            write(scratch, mark._replace(names=tuple(sorted(entries(scratch)))))
            check_replaceable(target, kind, flag, owner=owner)
        except BaseException:
            _discard(scratch)
            raise
        if not flocked:
            stack.close()  # a lease cannot be renewed while its folder moves
        if old.exists():
            remove(old)
        if target.exists() and read(target) is not None:
            target.rename(old)
        _rename(scratch, target)
        (target / locks.LOCK).unlink(missing_ok=True)
        if old.exists():
            remove(old)


@contextlib.contextmanager
def reserve(target: epath.PathLike, kind: str, flag: str) -> Iterator[None]:
    """Holds the lock of `replace` during a long computation before the target is written.

    Raises:
      InputError: as `replace`, before the body runs.
    """
    target = epath.Path(target)
    check_replaceable(target, kind, flag)
    scratch = target.with_name(f".{target.name}{PART}")
    check(scratch, kind, flag)
    _make(scratch, flag)
    with locks.lock(scratch, flag):
        try:
            write(scratch, Mark(kind, uuid.uuid4().hex))
            yield
        finally:
            if scratch.exists():  # not renamed to the target
                _discard(scratch)


def check_replaceable(target: epath.PathLike, kind: str, flag: str, *, owner: str = "") -> None:
    """InputError where `replace` would refuse `target`. Changes nothing."""
    if "://" not in str(target) and pathlib.Path(target).resolve() in (cwd := pathlib.Path.cwd(), *cwd.parents):
        raise InputError(f"{flag}: {target} is or holds the working directory; name a folder in it")
    if check(target, kind, flag, owner=owner) is not None and (foreign_names := foreign(target)):
        raise InputError(
            f"{flag}: {target} holds {some(foreign_names)}, not written by this command; move that elsewhere"
        )


def remove(folder: epath.PathLike) -> list[str]:
    """Removes a folder whose mark lists all its content; otherwise removes nothing and returns the unlisted names."""
    folder = epath.Path(folder)
    mark = read(folder) or Mark("", "")
    if foreign_names := foreign(folder):
        return foreign_names
    names = sorted(mark.names, key=lambda name: name.count("/"), reverse=True)
    for name in names:
        if not name.endswith("/"):
            (folder / name).unlink(missing_ok=True)
    for name in names:
        if name.endswith("/"):
            _rmdir(folder / name)
    if not foreign(folder):
        (folder / MARK).unlink(missing_ok=True)
        _rmdir(folder)
    return []


def foreign(folder: epath.PathLike) -> list[str]:
    """Names in a marked folder that its mark does not list."""
    mark = read(epath.Path(folder))
    return sorted(entries(folder) - set(mark.names if mark else ()))


def entries(folder: epath.PathLike) -> set[str]:
    """Paths of everything in a folder except marks: folders end in "/", entries of other kinds in "@"."""
    folder = epath.Path(folder)
    if "://" not in str(folder):
        return set(_local_entries(os.fspath(folder), ""))
    names: set[str] = set()
    base = None
    for root, folders, files in folder.walk():
        base = str(root) if base is None else base
        above = str(root)[len(base) :].strip("/")
        prefix = above and f"{above}/"
        names |= {f"{prefix}{name}/" for name in folders if name} | {f"{prefix}{name}" for name in files if name}
    return {name for name in names if not _OURS.fullmatch(name)}


def check_disjoint(out: epath.PathLike, flag: str, inputs: Mapping[str, epath.PathLike]) -> None:
    """InputError if `out` is an input folder, contains one, or is inside one.

    Args:
      inputs: paths by the flag or setting that names them; empty ones are skipped.
    """
    target = _resolved(out)
    for name, path in inputs.items():
        if not str(path):
            continue
        source = _resolved(path)
        if target == source or source in target.parents or target in source.parents:
            relation = "is" if target == source else "is in" if source in target.parents else "contains"
            raise InputError(f"{flag}: {out} {relation} the input {path} ({name}); name a folder apart from it")


def read(folder: epath.PathLike) -> Mark | None:
    """The mark of a folder; None where it has none. InputError: one that is damaged, or of a later version."""
    path = epath.Path(folder) / MARK
    if not path.exists() and not is_link(path):
        return None
    damaged = InputError(f"{path}: damaged, so that it does not tell whose the folder is; name another folder")
    if is_link(path):
        raise damaged
    value = json_file.read_object(path)
    kind, version, identity, names = (value.get(key) for key in ("kind", "version", "id", "names"))
    if isinstance(version, int) and version > VERSION:
        raise InputError(f"{path}: written by a later version of omnir1_jax; use that one, or name another folder")
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not (isinstance(kind, str) and isinstance(identity, str) and identity and texts and version == VERSION):
        raise damaged
    if any(pathlib.PurePosixPath(name).is_absolute() or ".." in pathlib.PurePosixPath(name).parts for name in names):
        raise damaged
    return Mark(kind, identity, tuple(names))


def write(folder: epath.PathLike, mark: Mark) -> None:
    """Writes the mark of a folder that the command owns."""
    value = {"kind": mark.kind, "version": VERSION, "id": mark.id, "names": list(mark.names)}
    with cli.atomic_path(epath.Path(folder) / MARK) as scratch, scratch.open("w") as output:
        output.write(json.dumps(value) + "\n")
        if "://" not in str(folder):  # a mark truncated by a power loss would lock the user out
            output.flush()
            os.fsync(output.fileno())


def some(names: Sequence[str], limit: int = 3) -> str:
    """The first of some names, for a message."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _marked(folder: epath.Path, flag: str) -> Mark:
    mark = read(folder)
    if mark is None:
        raise InputError(f"{flag}: {folder} has lost its mark {MARK}; name another folder")
    return mark


def _refuse_unlisted(folder: epath.Path, mark: Mark, name: str, flag: str) -> None:
    path = folder / name
    if is_link(path):
        raise InputError(f"{flag}: {path} is a symbolic link, not written by this command; move it elsewhere")
    if name not in mark.names and path.exists():
        raise InputError(f"{flag}: {path} was not written by this command; move it elsewhere")


def exists(path: epath.Path, flag: str) -> bool:
    """Whether the path exists; InputError if it cannot exist."""
    if "://" in str(path):
        return path.exists()
    try:
        os.lstat(path)
        return True
    except FileNotFoundError:
        return False
    except NotADirectoryError as error:
        above = next(parent for parent in path.absolute().parents if parent.exists())
        raise InputError(f"{flag}: {path} cannot be made, since {above} is a file; name another folder") from error
    except (OSError, ValueError) as error:  # a name too long, a null character, no permission
        raise InputError(f"{flag}: {path} cannot be a folder ({error})") from error


def _clear(scratch: epath.Path) -> None:
    """Empties a scratch folder (with our suffix and lock) except for its mark and lock."""
    for entry in list(scratch.iterdir()):
        if entry.name in (MARK, locks.LOCK):
            continue
        if entry.is_dir() and not is_link(entry):
            entry.rmtree()
        else:
            entry.unlink()


def _discard(scratch: epath.Path) -> None:
    _clear(scratch)
    (scratch / MARK).unlink(missing_ok=True)
    (scratch / locks.LOCK).unlink(missing_ok=True)
    _rmdir(scratch)


def _rename(source: epath.Path, target: epath.Path) -> None:
    """Renames a folder to a path that does not exist or is an empty folder."""
    if "://" in str(target):
        source.rename(target)
    else:
        os.rename(source, target)


def _make(path: epath.Path, flag: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag}: cannot make {path}: {error.strerror or error}") from error


def _remove_unused(path: epath.Path) -> None:
    if path.exists() and not entries(path):
        (path / MARK).unlink(missing_ok=True)
        _rmdir(path)


def _rmdir(path: epath.Path) -> None:
    """Removes a folder if it is empty."""
    with contextlib.suppress(OSError):
        path.rmdir()


def _local_entries(folder: str, above: str) -> Iterator[str]:
    with os.scandir(folder) as scan:
        for entry in scan:
            name = above + entry.name
            if not above and _OURS.fullmatch(name):
                continue
            if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
                yield f"{name}@"
            elif entry.is_file():
                yield name
            else:
                yield f"{name}/"
                yield from _local_entries(entry.path, f"{name}/")


def is_link(path: epath.Path) -> bool:
    return "://" not in str(path) and os.path.islink(path)


def _resolved(path: epath.PathLike) -> pathlib.PurePath:
    text = os.fspath(path)
    return pathlib.PurePosixPath(os.path.normpath(text)) if "://" in text else pathlib.Path(text).resolve()
