"""Predicted masks on disk, `<root>/<video>/<expression>/<frame>.png`: what the benchmarks' scripts and servers read."""

import zipfile
from collections.abc import Sequence

import cv2
import numpy as np
from etils import epath
from jaxtyping import Shaped, UInt8

from omnir1_jax import cli
from omnir1_jax.data import masks, paths
from omnir1_jax.errors import InputError

# What the Ref-YouTube-VOS server wants above the videos; MeViS' wants the videos themselves.
REFYTVOS_PREFIX = "Annotations"
_STAMP = (1980, 1, 1, 0, 0, 0)


def folder(root: str, video: str, expression: str) -> epath.Path:
    """Where one expression's masks are; names that would leave `root` are refused with InputError."""
    return epath.Path(paths.inside(root, f"{video}/{expression}", "prediction"))


def write(root: str, video: str, expression: str, names: Sequence[str], predicted: Shaped[np.ndarray, "t h w"]) -> None:
    """Writes one expression's masks as PNGs of 0 and 255; the folder appears whole or not at all."""
    if len(names) != len(predicted):
        raise InputError(f"{video}/{expression}: {len(predicted)} masks for {len(names)} frames")
    with cli.atomic_path(folder(root, video, expression)) as scratch:
        scratch.mkdir(parents=True)
        for name, mask in zip(names, predicted):
            encoded = cv2.imencode(".png", np.where(mask > 0, np.uint8(255), np.uint8(0)))[1]
            (scratch / f"{name}.png").write_bytes(encoded.tobytes())


def read(root: str, video: str, expression: str, names: Sequence[str]) -> UInt8[np.ndarray, "t h w"] | None:
    """One expression's masks as they are on disk (gray values), or None where the whole folder is missing.

    Raises InputError, naming the file, for a frame that is missing, unreadable or of another size.
    """
    where = folder(root, video, expression)
    if not where.exists():
        return None
    out: list[np.ndarray] = []
    for name in names:
        path = where / f"{name}.png"
        try:
            frame = masks.decode_label_map(path.read_bytes())
        except FileNotFoundError as error:
            raise InputError(f"{path} is missing; write one PNG a frame, or leave out the whole folder") from error
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        if out and frame.shape != out[0].shape:
            raise InputError(f"{path}: {frame.shape} in a clip whose other masks are {out[0].shape}")
        out.append(frame)
    return np.stack(out) if out else None


def write_zip(root: str, target: str, prefix: str = "") -> int:
    """Packs a prediction tree for a benchmark's server, `prefix` above the videos; returns the number of PNGs.

    Entries are sorted and carry one fixed time, so equal predictions give equal archives.
    """
    base = epath.Path(root)
    found: list[str] = []

    def walk(above: epath.Path, below: str) -> None:
        for path in sorted(above.iterdir(), key=lambda p: p.name):
            if path.is_dir():
                walk(path, f"{below}{path.name}/")
            elif path.name.endswith(".png"):
                found.append(f"{below}{path.name}")

    if not base.is_dir():
        raise InputError(f"{root} is not a directory of predictions")
    walk(base, "")
    if not found:
        raise InputError(f"{root} holds no PNG; expected <video>/<expression>/<frame>.png")
    lead = f"{prefix}/" if prefix else ""
    with cli.atomic_path(target) as scratch, scratch.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name in found:
            # PNGs are compressed already.
            archive.writestr(zipfile.ZipInfo(lead + name, _STAMP), (base / name).read_bytes())
    return len(found)
