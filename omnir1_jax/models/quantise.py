"""Frozen weights of the thinker in 8 or 4 bits: integers, and `scales` beside them.

Symmetric, weights alone. In 8 bits an output channel (of the token table: a row) has a scale, which is put to the
product. In 4 bits each group of neighbouring input channels has one for each output channel, and the weight is
restored inside the product; the kernel then lies as [groups, group, out], from which TPUs read it without a copy in
memory. "int4" is for the decoder's feed-forward layers, most of a model's weights; all else has 8 bits.

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
APART = ("conv1", "conv2", "patch_embed")  # kernels of convolutions
PIECE = 1 << 24  # values that are quantised at a time on the host

Path = tuple[str, ...]


class Format(NamedTuple):
    """How frozen weights are held. `bits`: 8 or 4. `group`: input channels that share a scale in 4 bits."""

    bits: int
    group: int = 64


class Plan(NamedTuple):
    """Of one parameter. `axes`: those that share a scale, without that of the layers. `group`: 0 for whole channels."""

    bits: int
    group: int
    axes: tuple[int, ...]
    stacked: bool


def plan(path: Path, shape: tuple[int, ...], form: Format) -> Plan | None:
    """Of the thinker's parameter at `path`; None where it stays as it is.

    Raises:
      InputError: the group does not divide the parameter's input channels.
    """
    layer, leaf = path[-2:] if len(path) > 1 else ("", path[-1])
    stacked = any(name in STACKS for name in path)
    if leaf == "embedding":
        return Plan(8, 0, (1,), stacked)
    if leaf != "kernel" or layer in APART:
        return None
    if form.bits == 8 or path[0] != "text" or layer not in FEED_FORWARD:
        return Plan(8, 0, (0, 1) if layer == "o" else (0,), stacked)
    if shape[1] % form.group:
        name = "/".join(path[:-1])
        raise InputError(f"thinker.frozen_group: {form.group} does not divide the {shape[1]} input channels of {name}")
    return Plan(form.bits, form.group, (1,), stacked)


def split(weight: Any, how: Plan) -> tuple[Any, Any]:
    """One layer's weight, numpy's or JAX's -> integers, and scales in the weight's own dtype."""
    xp = np if isinstance(weight, np.ndarray) else jnp
    most = 2 ** (how.bits - 1) - 1
    wide = weight.astype(np.float32)
    if how.group:
        wide = wide.reshape(-1, how.group, *wide.shape[1:])
    scales = (xp.max(xp.abs(wide), axis=how.axes, keepdims=True) / most).astype(weight.dtype)
    steps = wide / xp.where(scales == 0, 1, scales).astype(np.float32)
    values = xp.clip(xp.rint(steps), -most, most).astype(np.int8).astype(DTYPES[how.bits])
    return values, xp.squeeze(scales, how.axes)


def product(
    x: Float[Array, "..."],
    values: Num[Array, "..."],
    scales: Float[Array, "..."],
    shape: tuple[int, ...],
    dtype: DTypeLike,
) -> Float[Array, "..."]:
    """`x` [..., *shape] times a kernel of these input axes, which may be cut into groups.

    As any linear layer's, the sum leaves the matrix unit in `dtype`: over a mesh parts of it pass the links.
    """
    axes = len(shape)
    if values.shape[:axes] == shape:
        y = narrow.product(x.astype(dtype), values.astype(dtype), axes)
        return (y * scales.astype(jnp.float32)).astype(dtype)
    grouped = x.astype(dtype).reshape(*x.shape[:-1], *values.shape[:2])
    return narrow.product(grouped, values.astype(dtype) * scales[:, None].astype(dtype), 2)


def quantised(params: Any, form: Format) -> Any:
    """The thinker's parameters, JAX arrays or shapes boxed with their logical axes, in this format."""
    flat = flatten_dict(params, is_leaf=lambda _, x: isinstance(x, nn.LogicallyPartitioned))
    found = {}
    for path, leaf in flat.items():
        how = plan(path, nn.unbox(leaf).shape, form)
        if how is None:
            found[path] = leaf
        elif isinstance(leaf, nn.LogicallyPartitioned):
            values, scales = jax.eval_shape(lambda x, how=how: _split_all(x, how), leaf.value)
            names = _names(leaf.names, how)
            found[path] = nn.LogicallyPartitioned(values, names[0])
            found[(*path[:-1], SCALES)] = nn.LogicallyPartitioned(scales, names[1])
        else:
            found[path], found[(*path[:-1], SCALES)] = _split_all(leaf, how)
    return unflatten_dict(found)


def paths(path: Path, shape: tuple[int, ...], form: Format) -> list[Path]:
    """Of the arrays that a parameter becomes."""
    return [path] if plan(path, shape, form) is None else [path, (*path[:-1], SCALES)]


def original(leaf: Any) -> Any:
    """The shape of a kernel before it was cut into groups, boxed as `leaf` is."""
    kernel = nn.unbox(leaf)
    if kernel.dtype != jnp.int4:
        return leaf
    layers, groups, group, out = kernel.shape
    whole = jax.ShapeDtypeStruct((layers, groups * group, out), kernel.dtype)
    return nn.LogicallyPartitioned(whole, (*leaf.names[:2], leaf.names[3])) if kernel is not leaf else whole


def _split_all(weight: Array, how: Plan) -> tuple[Array, Array]:
    return jax.lax.map(lambda one: split(one, how), weight) if how.stacked else split(weight, how)


def _names(names: tuple[str | None, ...], how: Plan) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    """Logical axes of integers and scales."""
    layers, own = names[: how.stacked], names[how.stacked :]
    if how.group:
        own = (own[0], None, *own[1:])
    return (*layers, *own), (*layers, *(name for i, name in enumerate(own) if i not in how.axes))


def host_shapes(weight: Any, how: Plan) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Integers and scales of a parameter, from its shape and dtype."""
    return jax.eval_shape(lambda x: _split_all(x, how), jax.ShapeDtypeStruct(weight.shape, weight.dtype))


def split_host(weight: np.ndarray, how: Plan, values: np.ndarray, scales: np.ndarray) -> None:
    """One layer's weight into `values` and `scales`, piece by piece: in float32 a token table takes gigabytes."""
    rows = 0 not in how.axes  # which share no scale, so that pieces of them are as good
    length, unit = weight.shape[0 if rows else -1], how.group or 1
    step = max(PIECE * length // weight.size // unit, 1) * unit
    for start in range(0, length, step):
        piece = slice(start, start + step)
        into = slice(start // unit, (start + step) // unit) if rows else (..., piece)
        values[into], scales[into] = split(weight[piece] if rows else weight[..., piece], how)


def format_of(params: Any) -> Format | None:
    """How these parameters are held; None where they are not quantised."""
    four = [leaf for leaf in jax.tree.leaves(params) if leaf.dtype == jnp.int4]
    if four:
        return Format(4, four[0].shape[-2])
    return Format(8) if any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params)) else None
