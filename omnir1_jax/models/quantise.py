"""Frozen weights of the thinker in 8 or 4 bits: integers, and `scales` beside them.

Symmetric, weights only. In 8 bits each output channel (each row of the token table) has a scale, which is applied to
the product. In 4 bits each group of neighbouring input channels has a scale per output channel, and the weight is
dequantised inside the product; the kernel is stored as [groups, group, out], which TPUs read without a copy in
memory. "int4" is for the decoder's feed-forward layers, most of a model's weights; the rest has 8 bits.

Qwix quantises a module's parameters as a whole. Here they are filled one by one as they are read, and shared by
policy, reference and grounder, with the adapter in a tree of its own: that takes the few lines below.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from omnir1_jax.errors import InputError
from omnir1_jax.models import narrow

SCALES = "scales"
DTYPES = {4: jnp.int4, 8: jnp.int8}
STACKS = ("layers", "blocks")
FEED_FORWARD = ("gate", "up", "down")
CONVOLUTIONS = ("conv1", "conv2", "patch_embed")
PIECE = 1 << 24  # values that are quantised at a time on the host

Path = tuple[str, ...]


class Format(NamedTuple):
    """How frozen weights are held. `bits`: 8 or 4. `group`: input channels that share a scale in 4 bits."""

    bits: int
    group: int = 64


class Plan(NamedTuple):
    """How one parameter is quantised. `axes`: those that share a scale, without the layers'. `group`: 0: no groups."""

    bits: int
    group: int
    axes: tuple[int, ...]
    stacked: bool


def plan(path: Path, shape: tuple[int, ...], form: Format) -> Plan | None:
    """The plan of the thinker's parameter at `path`; None if it is not quantised.

    Raises:
      InputError: the group does not divide the parameter's input channels.
    """
    layer, leaf = path[-2:] if len(path) > 1 else ("", path[-1])
    stacked = any(name in STACKS for name in path)
    if leaf == "embedding":
        return Plan(8, 0, (1,), stacked)
    if leaf != "kernel" or layer in CONVOLUTIONS:
        return None
    if form.bits == 8 or path[0] != "text" or layer not in FEED_FORWARD:
        return Plan(8, 0, (0, 1) if layer == "o" else (0,), stacked)
    if shape[1] % form.group:
        name = "/".join(path[:-1])
        raise InputError(f"thinker.frozen_group: {form.group} does not divide the {shape[1]} input channels of {name}")
    return Plan(form.bits, form.group, (1,), stacked)


def split(weight: Any, spec: Plan) -> tuple[Any, Any]:
    """One layer's weight, numpy's or JAX's -> integers, and scales in the weight's own dtype."""
    xp = np if isinstance(weight, np.ndarray) else jnp
    max_value = 2 ** (spec.bits - 1) - 1
    values32 = weight.astype(np.float32)
    if spec.group:
        values32 = values32.reshape(-1, spec.group, *values32.shape[1:])
    scales = (xp.max(xp.abs(values32), axis=spec.axes, keepdims=True) / max_value).astype(weight.dtype)
    steps = values32 / xp.where(scales == 0, 1, scales).astype(np.float32)
    values = xp.clip(xp.rint(steps), -max_value, max_value).astype(np.int8).astype(DTYPES[spec.bits])
    return values, xp.squeeze(scales, spec.axes)


def product(
    x: Float[Array, "..."],
    values: Num[Array, "..."],
    scales: Float[Array, "..."],
    shape: tuple[int, ...],
    dtype: DTypeLike,
) -> Float[Array, "..."]:
    """`x` [..., *shape] times a kernel of these input axes, which may be grouped.

    As in any linear layer, the sum leaves the matrix unit in `dtype`: over a mesh partial sums are communicated.
    """
    axes = len(shape)
    if values.shape[:axes] == shape:
        y = narrow.product(x.astype(dtype), values, axes)
        return (y * scales.astype(jnp.float32)).astype(dtype)
    grouped = x.astype(dtype).reshape(*x.shape[:-1], *values.shape[:2])
    return narrow.product(grouped, values.astype(dtype) * scales[:, None].astype(dtype), 2)


def quantised(params: Any, form: Format) -> Any:
    """The thinker's parameters, JAX arrays or shapes boxed with their logical axes, in this format."""
    flat = flatten_dict(params, is_leaf=lambda _, x: isinstance(x, nn.LogicallyPartitioned))
    arrays = {}
    for path, leaf in flat.items():
        spec = plan(path, nn.unbox(leaf).shape, form)
        if spec is None:
            arrays[path] = leaf
        elif isinstance(leaf, nn.LogicallyPartitioned):
            values, scales = jax.eval_shape(lambda x, spec=spec: _split_all(x, spec), leaf.value)
            names = _names(leaf.names, spec)
            arrays[path] = nn.LogicallyPartitioned(values, names[0])
            arrays[(*path[:-1], SCALES)] = nn.LogicallyPartitioned(scales, names[1])
        else:
            arrays[path], arrays[(*path[:-1], SCALES)] = _split_all(leaf, spec)
    return unflatten_dict(arrays)


def paths(path: Path, shape: tuple[int, ...], form: Format) -> list[Path]:
    """Paths of the arrays that a parameter becomes."""
    return [path] if plan(path, shape, form) is None else [path, (*path[:-1], SCALES)]


def original(leaf: Any) -> Any:
    """The shape of a kernel before it was grouped, boxed as `leaf` is."""
    kernel = nn.unbox(leaf)
    if kernel.dtype != jnp.int4:
        return leaf
    layers, groups, group, out = kernel.shape
    ungrouped = jax.ShapeDtypeStruct((layers, groups * group, out), kernel.dtype)
    return nn.LogicallyPartitioned(ungrouped, (*leaf.names[:2], leaf.names[3])) if kernel is not leaf else ungrouped


def _split_all(weight: Array, spec: Plan) -> tuple[Array, Array]:
    return jax.lax.map(lambda layer: split(layer, spec), weight) if spec.stacked else split(weight, spec)


def _names(names: tuple[str | None, ...], spec: Plan) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    """Logical axes of integers and scales."""
    layers, layer_names = names[: spec.stacked], names[spec.stacked :]
    if spec.group:
        layer_names = (layer_names[0], None, *layer_names[1:])
    return (*layers, *layer_names), (*layers, *(name for i, name in enumerate(layer_names) if i not in spec.axes))


def host_shapes(weight: Any, spec: Plan) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Integers and scales of a parameter, from its shape and dtype."""
    return jax.eval_shape(lambda x: _split_all(x, spec), jax.ShapeDtypeStruct(weight.shape, weight.dtype))


def split_host(weight: np.ndarray, spec: Plan, values: np.ndarray, scales: np.ndarray) -> None:
    """One layer's weight into `values` and `scales`, piece by piece: in float32 a token table takes gigabytes."""
    by_row = 0 not in spec.axes  # rows share no scale: they can be quantised in pieces
    channels, unit = weight.shape[0 if by_row else -1], spec.group or 1
    piece_channels = max(PIECE * channels // weight.size // unit, 1) * unit
    for start in range(0, channels, piece_channels):
        piece = slice(start, start + piece_channels)
        target = slice(start // unit, (start + piece_channels) // unit) if by_row else (..., piece)
        values[target], scales[target] = split(weight[piece] if by_row else weight[..., piece], spec)


def format_of(params: Any) -> Format | None:
    """The format of these parameters; None if they are not quantised."""
    int4_leaves = [leaf for leaf in jax.tree.leaves(params) if leaf.dtype == jnp.int4]
    if int4_leaves:
        return Format(4, int4_leaves[0].shape[-2])
    return Format(8) if any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params)) else None
