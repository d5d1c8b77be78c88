"""Predicted masks on disk as `<root>/<video>/<expression>/<frame>.png`, the format of the benchmarks."""

import zipfile
from collections.abc import Collection, Sequence

import cv2
import numpy as np
from etils import epath
from jaxtyping import Shaped, UInt8

from omnir1_jax import cli, errors
from omnir1_jax.data import masks, paths
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders

# The folder above the videos that the Ref-YouTube-VOS server requires; MeViS' server requires none.
REFYTVOS_PREFIX = "Annotations"
_STAMP = (1980, 1, 1, 0, 0, 0)


def folder(root: str, video: str, expression: str) -> epath.Path:
    """The folder of one expression's masks; InputError for names that would leave `root`."""
    return epath.Path(paths.inside(root, f"{video}/{expression}", "prediction"))


def write(
    root: str,
    video: str,
    expression: str,
    names: Sequence[str],
    predicted: Shaped[np.ndarray, "t h w"],
    *,
    rewrite: bool = False,
) -> None:
    """Writes one expression's masks as PNGs of 0 and 255; the folder appears atomically.

    Args:
      rewrite: replace the frames of an existing folder, which the caller wrote or began to write.

    Raises:
      InputError: existing files were not written by the caller, or one frame's mask is missing.
    """
    if len(names) != len(predicted):
        raise InputError(f"{video}/{expression}: {len(predicted)} masks for {len(names)} frames")
    target = folder(root, video, expression)
    scratch = target.with_name(f".{target.name}{folders.PART}")
    for above in [target, *target.parents[: len(target.relative_to(root).parts)]]:
        if folders.is_link(above):
            raise InputError(f"{above} is a symbolic link, not written by this command; move it elsewhere")
    for path in (scratch, target):
        if folders.is_link(path) or path.exists():
            if not rewrite:
                raise InputError(f"{path} was not written by this command; move it elsewhere")
            _remove(path, names)
    scratch.mkdir(parents=True)
    try:
        with errors.named(target, scratch):
            for name, mask in zip(names, predicted):
                encoded = cv2.imencode(".png", np.where(mask > 0, np.uint8(255), np.uint8(0)))[1]
                (scratch / f"{name}.png").write_bytes(encoded.tobytes())
        scratch.rename(target)
    except BaseException:
        _remove(scratch, names)
        raise


def _remove(path: epath.Path, names: Sequence[str]) -> None:
    """Removes a folder of the frames `names`; InputError, and no change, if it holds anything else."""
    expected = {f"{name}.png" for name in names}
    unexpected = (
        sorted(folders.entries(path) - expected) if path.is_dir() and not folders.is_link(path) else [path.name]
    )
    if unexpected:
        raise InputError(f"{path} holds {folders.some(unexpected)}, not written by this command; move that elsewhere")
    for name in expected:
        (path / name).unlink(missing_ok=True)
    path.rmdir()


def read(root: str, video: str, expression: str, names: Sequence[str]) -> UInt8[np.ndarray, "t h w"] | None:
    """One expression's masks as on disk (gray values), or None if the folder is missing.

    Raises InputError, naming the file, for a frame that is missing, unreadable or of another size.
    """
    directory = folder(root, video, expression)
    if not directory.exists():
        return None
    out: list[np.ndarray] = []
    for name in names:
        path = directory / f"{name}.png"
        try:
            frame = masks.decode_label_map(paths.read_bytes(str(path)))
        except FileNotFoundError as error:
            raise InputError(f"{path} is missing; write one PNG per frame, or omit the folder") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: {error}") from error
        if out and frame.shape != out[0].shape:
            raise InputError(f"{path}: {frame.shape} in a clip whose other masks are {out[0].shape}")
        out.append(frame)
    return np.stack(out) if out else None


def write_zip(root: str, target: str, prefix: str = "", items: Collection[tuple[str, str]] | None = None) -> int:
    """Packs a prediction tree for a benchmark's server, `prefix` above the videos; returns the number of PNGs.

    With `items`, pairs of video and expression, only these are packed. Entries are sorted and have one
    fixed time, so equal predictions give equal archives.
    """
    base = epath.Path(root)
    pngs: list[str] = []
    chosen = None if items is None else {f"{video}/{expression}/" for video, expression in items}

    def walk(above: epath.Path, below: str) -> None:
        for path in sorted(above.iterdir(), key=lambda p: p.name):
            if path.is_dir():
                walk(path, f"{below}{path.name}/")
            elif path.name.endswith(".png") and path.name[0] != "." and (chosen is None or below in chosen):
                pngs.append(f"{below}{path.name}")

    if not base.is_dir():
        raise InputError(f"{root} is not a directory of predictions")
    walk(base, "")
    if not pngs:
        raise InputError(f"{root} holds no PNG; expected <video>/<expression>/<frame>.png")
    top = f"{prefix}/" if prefix else ""
    with cli.atomic_path(target) as scratch, scratch.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name in pngs:
            # PNGs are compressed already.
            archive.writestr(zipfile.ZipInfo(top + name, _STAMP), (base / name).read_bytes())
    return len(pngs)
