"""Copies weights/ and data/ of a bucket's folder to this disk: `copy_inputs.py gs://BUCKET/FOLDER DIRECTORY`.

A file gets its name when it is complete, and existing files are not copied again, so that an interrupted copy resumes.
Needs only fsspec.
Exit status: 0 copied; 2 permanent failure (no such folder, no permission, no space); 42 try again.
"""

import errno
import itertools
import pathlib
import shutil
import sys

import fsspec

INVALID, TRANSIENT = 2, 42
SPARE = 2 * 10**9  # bytes that stay free for compiled programs and logs
BATCH = 256  # files copied concurrently
PART = ".omnir1-part"  # suffix of a file that is being copied


class Refused(Exception):
    """Why a copy cannot be done."""


def missing(files: fsspec.AbstractFileSystem, folder: str, target: pathlib.Path) -> dict[str, tuple[pathlib.Path, int]]:
    """The files to copy: remote name -> (local path, bytes).

    Raises:
      Refused: a local file of the same name has another size, so it is not a copy.
    """
    wanted = {}
    for name, entry in files.find(folder, detail=True).items():
        path = target / name[len(folder) :].lstrip("/")
        if not path.exists():
            wanted[name] = (path, entry["size"])
        elif path.stat().st_size != entry["size"]:
            raise Refused(f"{path} is there already and differs from {name}; move it to another place")
    return wanted


def copy(url: str, target: pathlib.Path) -> None:
    """Copies what is missing.

    Raises:
      Refused: no such folder, too little space, or a file in the way.
    """
    files, folder = fsspec.core.url_to_fs(url.rstrip("/"))
    if not files.isdir(folder):
        raise Refused(f"{url} is not a folder there")
    wanted = missing(files, folder, target)
    size, free = sum(size for _, size in wanted.values()), shutil.disk_usage(target).free
    if size + SPARE > free:
        raise Refused(
            f"{url} has {size / 1e9:.1f} GB to copy and the disk of {target} has {free / 1e9:.1f} GB free; ask for a "
            "larger disk (tpu_vm.sh --boot-disk or --data-disk, xpk.sh cluster --disk-size), or copy less"
        )
    names = iter(wanted)
    while batch := list(itertools.islice(names, BATCH)):
        paths = [wanted[name][0] for name in batch]
        parts = [path.with_name(path.name + PART) for path in paths]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        files.get(batch, [str(part) for part in parts])
        for part, path in zip(parts, paths, strict=True):
            part.rename(path)


def lasting(error: Exception) -> bool:
    """Whether the error is permanent, so that retrying the copy does not help."""
    if isinstance(error, Refused | FileNotFoundError | PermissionError):
        return True
    if getattr(error, "code", None) in (401, 403, 404):  # of a bucket's HTTP interface
        return True
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)


def main(url: str, target: str) -> int:
    try:
        copy(url, pathlib.Path(target))
    except Exception as error:  # of any storage client: reported as one line and an exit status
        text = " ".join(str(error).split())[:300]
        reason = text if isinstance(error, Refused) else f"could not copy {url} ({type(error).__name__}: {text})"
        print(f"--inputs: {reason}", file=sys.stderr)
        return INVALID if lasting(error) else TRANSIENT
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
