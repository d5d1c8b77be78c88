"""The safetensors format, read and written one tensor at a time through any path that epath can open.

The layout is eight bytes (length of the header, little-endian), the header in JSON (`name -> dtype, shape,
data_offsets`), then the tensors' bytes. The public library either maps whole files or wants all tensors of a file
at once; here host memory holds one tensor, and `gs://` works.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file, regular_file
from omnir1_jax.models import transpose

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000  # the public library's limit


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """The location of a tensor: bytes `start` to `end` of `file`. `dtype` is the format's name for it."""

    file: epath.Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: epath.PathLike) -> dict[str, TensorInfo]:
    """The tensors of one file, by name.

    Raises:
      InputError: the file is missing, truncated, or its header is not one of safetensors.
    """
    path = epath.Path(path)
    regular_file.require(path)
    total = path.stat().length
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or length > min(total - 8, MAX_HEADER_BYTES):
            raise InputError(f"{path}: not a safetensors file, or truncated inside the header; fetch it again")
        raw = file.read(length)
    try:
        header = json_file.parse_object(raw, "the header")
    except InputError as error:
        raise InputError(f"{path}: the safetensors header is corrupt ({error}); fetch the file again") from error
    header.pop("__metadata__", None)
    return {name: _entry(path, name, entry, 8 + length, total) for name, entry in header.items()}


def _entry(path: epath.Path, name: str, entry: object, base: int, total: int) -> TensorInfo:
    """One header entry, checked against the size of the file."""
    dtype, shape, offsets = (entry.get(key) if isinstance(entry, dict) else None for key in _ENTRY_KEYS)
    if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise InputError(f"{path}: the header entry of {name!r} is corrupt; fetch the file again")
    start, end = base + offsets[0], base + offsets[1]
    if end > total:
        raise InputError(f"{path}: truncated, {name!r} ends at byte {end} of {total}; fetch the file again")
    if dtype in DTYPES and end - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise InputError(f"{path}: {name!r} has {end - start} bytes, not what {dtype} {shape} needs; fetch it again")
    return TensorInfo(path, dtype, tuple(shape), start, end)


_ENTRY_KEYS = ("dtype", "shape", "data_offsets")


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def dtype_of(info: TensorInfo) -> np.dtype:
    """The tensor's dtype.

    Raises:
      InputError: it is not one of `DTYPES`.
    """
    if info.dtype not in DTYPES:
        raise InputError(f"{info.file}: dtype {info.dtype} is not supported; convert the file to F32 or BF16")
    return DTYPES[info.dtype]


def read_tensor(info: TensorInfo) -> np.ndarray:
    """Reads one tensor into fresh host memory.

    Raises:
      InputError: the file ends before the tensor does, or its dtype is not one of `DTYPES`.
    """
    dtype = dtype_of(info)
    data = np.empty(info.end - info.start, np.uint8)
    with info.file.open("rb") as file:
        file.seek(info.start)
        view, offset = memoryview(data), 0
        while offset < len(view):
            piece = view[offset : offset + (1 << 24)]
            count = file.readinto(piece) if hasattr(file, "readinto") else _read_into(file, piece)
            if not count:
                raise InputError(f"{info.file}: truncated at byte {info.start + offset}; fetch the file again")
            offset += count
    return data.view(dtype).reshape(info.shape)


def _read_into(file: Any, target: memoryview) -> int:
    """`readinto` of a file that has only `read`, as TensorFlow's."""
    block = file.read(len(target))
    target[: len(block)] = block
    return len(block)


# Of each floating type: an unsigned type of its width, and the bits of the exponent, all set where it is not finite.
_EXPONENTS = {
    np.dtype(np.float64): (np.uint64, 0x7FF0 << 48),
    np.dtype(np.float32): (np.uint32, 0x7F80 << 16),
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(jnp.bfloat16): (np.uint16, 0x7F80),
}
_BLOCK = 1 << 18  # elements looked at a time: they stay in the processor's cache


def not_finite(tensor: np.ndarray) -> int:
    """How many values of a tensor as `read_tensor` gives it are infinite or not a number."""
    if tensor.dtype not in _EXPONENTS:
        return 0
    unsigned, exponent = _EXPONENTS[tensor.dtype]
    bits, exponent = tensor.reshape(-1).view(unsigned), unsigned(exponent)
    count = 0
    for start in range(0, bits.size, _BLOCK):
        masked = bits[start : start + _BLOCK] & exponent
        if masked.max() == exponent:
            count += int((masked == exponent).sum())
    return count


def index(path: epath.PathLike) -> dict[str, TensorInfo]:
    """All tensors of a checkpoint, by name: a `.safetensors` file, or a directory with one or with an index.

    Raises:
      InputError: nothing there, a corrupt index, a shard that is missing, outside the directory or without a tensor
        that the index promises, or a corrupt header.
    """
    path = epath.Path(path)
    if path.exists() and not path.is_dir():
        return read_header(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such checkpoint directory")
    listing = path / "model.safetensors.index.json"
    if not listing.exists():
        if not (path / "model.safetensors").exists():
            raise InputError(f"{path}: holds neither model.safetensors nor model.safetensors.index.json")
        return read_header(path / "model.safetensors")
    shards = json_file.read_object(listing).get("weight_map")
    if not isinstance(shards, dict):
        raise InputError(f"{listing}: not an index of safetensors shards, it has no weight_map of a file per tensor")
    for file in shards.values():
        if not isinstance(file, str) or file != epath.Path(file).name or file in ("", ".", "..") or "\0" in file:
            raise InputError(f"{listing}: names {json_file.describe(file)}, which is not a file of this directory")
    files = sorted(set(shards.values()))
    for file in files:
        if not (path / file).is_file():
            raise InputError(f"{listing}: the shard {file} is missing; fetch it")
    headers = {file: read_header(path / file) for file in files}
    absent = [name for name, file in shards.items() if name not in headers[file]]
    if absent:
        raise InputError(f"{listing}: {shards[absent[0]]} does not hold {absent[0]!r}, which the index promises")
    return {name: headers[file][name] for name, file in shards.items()}


def write_file(
    path: epath.PathLike,
    tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    values: Iterable[np.ndarray],
) -> None:
    """Writes one file, streamed.

    Args:
      path: overwritten in place; callers give a scratch path that is renamed afterwards.
      tensors: dtype and shape of each tensor, in file order.
      values: the tensors in the same order.
    """
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with epath.Path(path).open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        values = iter(values)
        for name, (dtype, shape) in tensors.items():
            value = next(values)
            if value.dtype != dtype or value.shape != tuple(shape):
                raise ValueError(f"{name}: {value.dtype} {value.shape}, announced as {dtype} {shape}")
            file.write(transpose.contiguous(value).reshape(-1).view(np.uint8).data)
            del value  # the next one may be made in its place
