"""Hugging Face checkpoints to parameter trees and back, streamed.

A table of `Leaf` maps tensors on disk to parameters. Host memory stays near one parameter: a stacked parameter is
filled layer by layer and put on the devices before the next one is read.
"""

import dataclasses
import fnmatch
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.errors import FlaxError
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from omnir1_jax.errors import InputError, first_line
from omnir1_jax.files import folders
from omnir1_jax.models import quantise, safetensors_file, transpose
from omnir1_jax.models.safetensors_file import TensorInfo

LISTED = 8  # names of each kind in an error
WEIGHTS = "weights"  # kind recorded in the mark of a written directory
MAX_SHARD_BYTES = 5_000_000_000


@dataclasses.dataclass(frozen=True)
class Layout:
    """A named pair of inverse rearrangements.

    Attributes:
      to_params: torch tensor and the parameter's shape (without the layer axis) -> parameter, a view.
      to_torch: parameter (without the layer axis) -> torch tensor, a view.
    """

    name: str
    to_params: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape on disk of a parameter of shape `shape`."""
        return self.to_torch(np.broadcast_to(np.float32(0), shape)).shape  # strides are 0: costs no memory


# torch -> flax
SAME = Layout("same", lambda x, shape: x, lambda p: p)
TRANSPOSED = Layout("transposed", lambda x, shape: x.T, lambda p: p.T)  # [out, in] -> [in, out]
HEADS_OUT = Layout(  # [heads * head_dim, in] -> [in, heads, head_dim]
    "heads_out",
    lambda x, shape: x.reshape(*shape[1:], shape[0]).transpose(2, 0, 1),
    lambda p: p.reshape(p.shape[0], -1).T,
)
HEADS_IN = Layout(  # [out, heads * head_dim] -> [heads, head_dim, out]
    "heads_in",
    lambda x, shape: x.reshape(shape[-1], *shape[:-1]).transpose(1, 2, 0),
    lambda p: p.reshape(-1, p.shape[-1]).T,
)
FLAT = Layout("flat", lambda x, shape: x.reshape(shape), lambda p: p.reshape(-1))  # [heads * dim] -> [heads, dim]
CONV1D = Layout("conv1d", lambda x, shape: x.transpose(2, 1, 0), lambda p: p.transpose(2, 1, 0))  # [o,i,k] -> [k,i,o]
CONV2D = Layout(  # [o, i, h, w] -> [h, w, i, o]
    "conv2d", lambda x, shape: x.transpose(2, 3, 1, 0), lambda p: p.transpose(3, 2, 0, 1)
)
CONV_TRANSPOSE2D = Layout(  # [i, o, h, w] -> [h, w, i, o], both spatial axes flipped
    "conv_transpose2d",
    lambda x, shape: x.transpose(2, 3, 0, 1)[::-1, ::-1],
    lambda p: p[::-1, ::-1].transpose(2, 3, 0, 1),
)
OUT_LAST = Layout(  # [o, ...] -> [..., o]: a patch embedding whose input keeps torch's order
    "out_last", lambda x, shape: np.moveaxis(x, 0, -1), lambda p: np.moveaxis(p, -1, 0)
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One tensor on disk and the parameter, or layer of a stacked parameter, that it is.

    Two leaves may share `path` and `layer` when a checkpoint stores the same values twice: both are required, must
    be equal, and both are written.

    Attributes:
      name: name on disk, without any prefix.
      path: path in the tree of parameters.
      layer: index on the parameter's leading axis; None if it is not stacked.
      layout: rearrangement between the two.
    """

    name: str
    path: tuple[str, ...]
    layer: int | None = None
    layout: Layout = SAME


def by_parameter(leaves: Sequence[Leaf], shapes: Mapping[tuple[str, ...], Any]) -> dict[tuple[str, ...], list[Leaf]]:
    """Leaves grouped by parameter.

    Raises:
      ValueError: a mistake in the table: it does not cover exactly the parameters and layers of `shapes`.
    """
    groups: dict[tuple[str, ...], list[Leaf]] = {}
    for leaf in leaves:
        groups.setdefault(leaf.path, []).append(leaf)
    if groups.keys() != shapes.keys():
        mismatched = sorted("/".join(path) for path in groups.keys() ^ shapes.keys())
        raise ValueError(f"the table of leaves and the parameters differ in {', '.join(mismatched)}")
    for path, group in groups.items():
        layers = {leaf.layer for leaf in group}
        if layers != {None} and layers != set(range(shapes[path].shape[0])):
            raise ValueError(f"the table of leaves does not cover the layers of {'/'.join(path)}")
    return groups


def leaf_shape(leaf: Leaf, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape on disk of a leaf of a parameter of shape `shape`."""
    return leaf.layout.torch_shape(shape if leaf.layer is None else shape[1:])


def abstract(build: Callable[[Any], Any], config: Any, path: epath.PathLike) -> Any:
    """`build(config)`: the shapes of a model's parameters, traced and not allocated.

    Raises:
      InputError: sizes of `path/config.json` that do not fit together, whichever error tracing raised.
    """
    try:
        return build(config)
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError, FlaxError) as error:
        raise InputError(
            f"{epath.Path(path) / 'config.json'}: its sizes do not fit together ({first_line(error)})"
        ) from error


def load_params(
    path: epath.PathLike,
    leaves: Sequence[Leaf],
    shapes: Any,
    *,
    dtype: DTypeLike | None = None,
    shardings: Any = None,
    prefixes: Sequence[str] = ("",),
    ignore: Sequence[str] = (),
    form: quantise.Format | None = None,
) -> Any:
    """Reads a checkpoint into a tree of arrays.

    Args:
      path: a `.safetensors` file, or a directory with `model.safetensors` or its sharded index.
      leaves: the table; together they fill every parameter of `shapes`.
      shapes: nested dicts of `jax.ShapeDtypeStruct` (or anything with `shape`).
      dtype: of all parameters; None keeps the file's.
      shardings: tree of shardings like the result; None puts everything on the default device.
      prefixes: what the names on disk may begin with; the one that finds most of the table is taken.
      ignore: glob patterns of names on disk that are not wanted, prefix included.
      form: quantises each parameter before the next one is read.

    Raises:
      InputError: a broken file, or tensors unknown, missing or misshapen: one error that lists them.
    """
    return placed(deferred(path, leaves, shapes, dtype, prefixes, ignore), shardings, form)


Layers = Iterator[tuple[Any, np.ndarray]]  # of a parameter: index on its leading axis, or `...`, and values


@dataclasses.dataclass(frozen=True)
class Deferred:
    """A parameter that is read on the host on demand and not cached.

    Attributes:
      make: reads the parameter.
      layers: reads it layer by layer if it is stacked; None if there is only `make`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]
    layers: Callable[[], Layers] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.make()

    def quantised(self, spec: quantise.Plan) -> tuple[np.ndarray, np.ndarray]:
        """Integers and scales; at most one layer is held unquantised."""
        values, scales = (aligned(x.shape, x.dtype) for x in quantise.host_shapes(self, spec))
        for index, value in self.layers():
            layer = transpose.contiguous(value)
            quantise.split_host(layer.astype(self.dtype, copy=False), spec, values[index], scales[index])
        return values, scales


def placed(params: Any, shardings: Any = None, form: quantise.Format | None = None) -> Any:
    """A tree of `Deferred` as arrays, each on its devices before the next one is read. Otherwise as `load_params`."""
    shardings = {} if shardings is None else flatten_dict(shardings)
    arrays = {}
    for key, parameter in flatten_dict(params).items():
        spec = None if form is None else quantise.plan(key, parameter.shape, form)
        if spec is None:
            host_arrays = {key: parameter.make()}
        else:
            host_arrays = dict(zip(quantise.paths(key, parameter.shape, form), parameter.quantised(spec), strict=True))
        for name, array in host_arrays.items():
            sharding = shardings.get(name)
            if sharding is None:
                arrays[name] = jax.device_put(array)  # jnp.asarray would copy
            else:
                arrays[name] = jax.make_array_from_callback(
                    array.shape, sharding, lambda index, array=array: array[index]
                )
        del host_arrays, array
    return unflatten_dict(arrays)


def deferred(
    path: epath.PathLike,
    leaves: Sequence[Leaf],
    shapes: Any,
    dtype: DTypeLike | None = None,
    prefixes: Sequence[str] = ("",),
    ignore: Sequence[str] = (),
) -> Any:
    """A checkpoint's parameters as `Deferred`; names and shapes are checked now. Otherwise as `load_params`."""
    path = epath.Path(path)
    tensors = safetensors_file.index(path)
    shapes = flatten_dict(shapes)
    groups = by_parameter(leaves, shapes)
    prefix = max(prefixes, key=lambda prefix: sum(prefix + leaf.name in tensors for leaf in leaves))
    _check(path, tensors, leaves, shapes, prefix, ignore)

    def parameter(group: Sequence[Leaf], shape: tuple[int, ...]) -> Deferred:
        stored = {safetensors_file.DTYPES[tensors[prefix + leaf.name].dtype] for leaf in group}
        kept_dtype = np.dtype(jnp.result_type(*stored) if dtype is None else dtype)
        layers = functools.partial(_layers, group, shape, tensors, prefix)
        return Deferred(shape, kept_dtype, functools.partial(_filled, shape, kept_dtype, layers), layers)

    return unflatten_dict({key: parameter(group, shapes[key].shape) for key, group in groups.items()})


def _layers(group: Sequence[Leaf], shape: tuple[int, ...], tensors: Mapping[str, TensorInfo], prefix: str) -> Layers:
    read = lambda leaf: safetensors_file.read_tensor(tensors[prefix + leaf.name])
    view = lambda leaf, tensor: leaf.layout.to_params(tensor, shape if leaf.layer is None else shape[1:])
    first_leaves: dict[int | None, Leaf] = {}
    for leaf in group:
        info, tensor = tensors[prefix + leaf.name], read(leaf)
        if count := safetensors_file.not_finite(tensor):
            raise InputError(
                f"{info.file}: the tensor {prefix + leaf.name!r} holds {count} of {tensor.size} values that are NaN or "
                "infinite; fetch the file again, or take weights from before the run diverged"
            )
        if twin := first_leaves.get(leaf.layer):
            if not np.array_equal(view(twin, read(twin)), view(leaf, tensor)):
                raise InputError(f"{info.file}: {leaf.name!r} differs from its twin; which one counts is unknown")
        else:
            first_leaves[leaf.layer] = leaf
            yield ... if leaf.layer is None else leaf.layer, view(leaf, tensor)


def _filled(shape: tuple[int, ...], dtype: np.dtype, layers: Callable[[], Layers]) -> np.ndarray:
    host = aligned(shape, dtype)
    for index, value in layers():
        transpose.copy(host[index], value)
    return host


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new array aligned to 64 bytes: the CPU backend uses it without a copy."""
    raw = np.empty(int(np.prod(shape)) * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + raw.size - 64].view(dtype).reshape(shape)


def _check(
    path: epath.Path,
    tensors: Mapping[str, TensorInfo],
    leaves: Sequence[Leaf],
    shapes: Mapping[tuple[str, ...], Any],
    prefix: str,
    ignore: Sequence[str],
) -> None:
    """One error that lists every tensor that does not fit."""
    expected = {prefix + leaf.name: leaf_shape(leaf, shapes[leaf.path].shape) for leaf in leaves}
    unknown = [
        name for name in tensors if name not in expected and not any(fnmatch.fnmatchcase(name, p) for p in ignore)
    ]
    misshapen = []
    for name in expected.keys() & tensors.keys():
        info = tensors[name]
        if info.shape != expected[name]:
            misshapen.append(f"{name} {list(info.shape)} instead of {list(expected[name])}")
        elif info.dtype not in safetensors_file.DTYPES or info.dtype[0] not in "FB" or info.dtype == "BOOL":
            misshapen.append(f"{name} {info.dtype} instead of a floating type")
    problems = {"unknown": unknown, "missing": expected.keys() - tensors.keys(), "misshapen": misshapen}
    if any(problems.values()):
        listed = lambda names: folders.some(sorted(names), LISTED)
        parts = [f"{kind} tensors ({len(names)}): {listed(names)}" for kind, names in problems.items() if names]
        raise InputError(f"{path}: the checkpoint does not fit the model; {'; '.join(parts)}")


def save_params(
    path: epath.PathLike,
    leaves: Sequence[Leaf],
    params: Any,
    *,
    prefix: str = "",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    files: Mapping[str, bytes] | None = None,
    copied: Mapping[str, TensorInfo] | None = None,
    owner: str = "",
    flag: str = "weights",
) -> None:
    """Writes, atomically, a checkpoint directory that transformers can read.

    Args:
      path: the directory; one that was written here is replaced.
      leaves: the table, as for `load_params`.
      params: nested dicts of arrays, all addressable by this process; dtypes are kept.
      prefix: put before every name.
      max_shard_bytes: of tensors in one file; a larger tensor has a file of its own.
      files: further files of the directory, by name (config.json, the tokenizer).
      copied: tensors of another checkpoint that are written too, byte for byte, by their full names.
      owner, flag: of `folders.replace`.

    Raises:
      InputError: `path` is something else, or holds what was not written here.
      OSError: what was written cannot be read back.
    """
    params = flatten_dict(params)
    groups = by_parameter(leaves, params)
    entries: list[tuple[str, np.dtype, tuple[int, ...], Leaf | TensorInfo]] = []
    for leaf in (leaf for group in groups.values() for leaf in group):
        array = params[leaf.path]
        entries.append((prefix + leaf.name, np.dtype(array.dtype), leaf_shape(leaf, array.shape), leaf))
    for name, info in (copied or {}).items():
        entries.append((name, safetensors_file.dtype_of(info), info.shape, info))
    shards: list[dict[str, tuple[np.dtype, tuple[int, ...]]]] = [{}]
    shard_sources, size, total = [[]], 0, 0
    for name, dtype, shape, source in entries:
        nbytes = int(np.prod(shape)) * dtype.itemsize
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append({})
            shard_sources.append([])
            size = 0
        shards[-1][name] = (dtype, shape)
        shard_sources[-1].append(source)
        size, total = size + nbytes, total + nbytes
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    with folders.replace(path, WEIGHTS, flag, owner=owner) as scratch:
        for name, content in (files or {}).items():
            (scratch / name).write_bytes(content)
        for name, shard, sources in zip(names, shards, shard_sources, strict=True):
            safetensors_file.write_file(scratch / name, shard, _tensors(sources, params))
        if len(shards) > 1:
            weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (scratch / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))
        _check_written(scratch, shards)


def _check_written(folder: epath.Path, shards: Sequence[Mapping[str, tuple[np.dtype, tuple[int, ...]]]]) -> None:
    """Reads back the headers of a directory that was just written.

    Raises:
      OSError: a file is damaged or missing, or a tensor in it has another shape.
    """
    try:
        tensors = safetensors_file.index(folder)
    except InputError as error:
        raise OSError(f"cannot be read back after it was written: {error}") from error
    for name, (_, shape) in [item for shard in shards for item in shard.items()]:
        if name not in tensors or tensors[name].shape != tuple(shape):
            raise OSError(f"{folder}: {name!r} cannot be read back after it was written")


def _tensors(sources: Sequence[Leaf | TensorInfo], params: Mapping[tuple[str, ...], Any]) -> Iterator[np.ndarray]:
    """The tensors in torch's layout; a parameter is fetched from the devices once for all its layers."""
    path, host = None, None
    for leaf in sources:
        if isinstance(leaf, TensorInfo):
            yield safetensors_file.read_tensor(leaf)
            continue
        if leaf.path != path:
            host = None  # freed before the next one is fetched
            path, host = leaf.path, np.asarray(params[leaf.path])
        yield leaf.layout.to_torch(host if leaf.layer is None else host[leaf.layer])
