"""Turns a pickled mask file into JSON: `python -m omnir1_jax.data.unpickle_masks mask_dict.pkl mask_dict.json`.

Copies of Ref-DAVIS17 come with their masks as a pickle, and a pickle can run any code when it is loaded. No reader
loads one. This command, which you run on a file that you trust, loads with containers, numbers, texts and numpy arrays
of whole numbers alone; a file that asks for anything else is refused.

The file is a dict of annotation ids, each with a list of one mask per frame: run lengths {"size", "counts"}, an array
of height and width, or None.
"""

import collections
import json
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app
from etils import epath

from omnir1_jax import cli
from omnir1_jax.data import rle
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders, regular_file

_NUMPY = ("numpy.core", "numpy._core")  # older and newer numpy write other names


def _dtype(name: str, *args: Any) -> np.dtype:
    dtype = np.dtype(name, *args)
    if dtype.kind not in "biu":
        raise pickle.UnpicklingError(f"an array of {dtype}")
    return dtype


def _text_to_bytes(text: str, encoding: str) -> bytes:
    """How pickles of Python 2's protocol hold bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
    return text.encode("latin1")


_CORE = np._core  # type: ignore[attr-defined]
_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _text_to_bytes,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    **{(f"{core}.multiarray", "_reconstruct"): _CORE.multiarray._reconstruct for core in _NUMPY},
    **{(f"{core}.multiarray", "scalar"): _CORE.multiarray.scalar for core in _NUMPY},
    **{(f"{core}.numeric", "_frombuffer"): _CORE.numeric._frombuffer for core in _NUMPY},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to another file")


def convert(source: epath.PathLike, target: epath.PathLike) -> int:
    """Writes the masks of the pickle `source` to the JSON file `target`; returns how many annotations it has.

    Raises:
      InputError: `target` exists; `source` holds something else than masks, or asks for more than they need.
    """
    if folders.exists(epath.Path(target), "target"):
        raise InputError(f"{target} exists already; name another file")
    try:
        with regular_file.require(source).open("rb") as file:
            masks = _Unpickler(file).load()
    except (OSError, MemoryError) as error:
        raise InputError(f"{source} cannot be read ({error})") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{source} is not a pickle of masks ({error}); nothing of it was used") from error
    if not isinstance(masks, dict) or not all(isinstance(track, list) for track in masks.values()):
        raise InputError(f"{source} is not a pickle of masks: expected a dict of annotation ids, each with a list")
    out = {}
    for key, track in masks.items():
        out[str(key)] = [_run_lengths(mask, f"{source}['{key}'][{t}]") for t, mask in enumerate(track)]
    with cli.atomic_path(target) as scratch:
        scratch.write_text(json.dumps(out))
    return len(out)


def _run_lengths(mask: Any, location: str) -> dict[str, Any] | None:
    if mask is None:
        return None
    try:
        if isinstance(mask, np.ndarray):
            if mask.ndim != 2:
                raise ValueError(f"an array of {mask.ndim} dimensions is not a mask")
            return rle.encode(mask > 0)
        size, counts = (mask[key] for key in ("size", "counts"))
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        lengths = {"size": [int(n) for n in size], "counts": list(map(int, text)) if isinstance(text, list) else text}
        rle.decode(lengths)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{location}: expected run lengths or an array of height and width ({error})") from error
    return lengths


def main(argv: Sequence[str]) -> None:
    if len(argv) != 3:
        raise app.UsageError("name the pickle and the JSON file to write")
    print(f"{argv[2]}: masks of {convert(*argv[1:])} annotations")


if __name__ == "__main__":
    cli.run(main)
