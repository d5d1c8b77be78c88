"""The one door to attention kernels: plain XLA everywhere, splash on TPU, cuDNN on NVIDIA.

Who may look at whom is data (`Mask`), so that a kernel can build it block by block and the whole table of queries
against keys never has to exist.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from omnir1_jax.errors import InputError

Implementation = Literal["auto", "xla", "splash", "cudnn"]

# The XLA path holds at most this many scores at a time (float32: 512 MiB), but takes queries in pieces no smaller
# than MIN_QUERIES, below which matrix products are inefficient.
MAX_SCORES = 2**27
MIN_QUERIES = 128
MAX_CUDNN_MASK = 2**28  # elements of the mask that cuDNN reads from memory; 512 MiB in bfloat16
_MASKED = -1e30  # finite, so that a query without any key gives the mean of the values, not NaN


class Tree(NamedTuple):
    """Sequence layout `prompt + group * length`: completions see the prompt and themselves, not one another."""

    prompt: int
    group: int
    length: int


@flax.struct.dataclass
class Mask:
    """All conditions that are given must hold.

    Attributes:
      keys: keys that are real.
      segments: query and key must have the same number (needs as many queries as keys).
      dense: any table.
      causal: no query looks ahead (needs as many queries as keys).
      tree: causal within the prompt and within each completion, see `Tree`.
    """

    keys: Bool[Array, "b t"] | None = None
    segments: Int[Array, "b t"] | None = None
    dense: Bool[Array, "#b s t"] | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    tree: Tree | None = flax.struct.field(pytree_node=False, default=None)


def attend(
    q: Float[Array, "b s h d"],
    k: Float[Array, "b t k d"],
    v: Float[Array, "b t k d"],
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    implementation: str = "auto",
) -> Float[Array, "b s h d"]:
    """softmax(scale * q k^T) v, softmax in float32; h query heads share k key heads in consecutive groups.

    Args:
      mask: default none at all.
      scale: default 1 / sqrt(d).
      implementation: "auto" takes splash on TPU and cuDNN on NVIDIA where `why_not_splash` and `why_not_cudnn` have
        nothing against it, else XLA. The device is that of the mesh set with `jax.set_mesh`, be it one that is only
        compiled for, else the default one.

    Raises:
      InputError: shapes do not agree, or the implementation asked for by name cannot do them.
    """
    mask = Mask() if mask is None else mask
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    _check(q.shape, k.shape, mask)
    why_not = {
        "xla": lambda: None,
        "splash": lambda: why_not_splash(q.shape, k.shape, mask),
        "cudnn": lambda: why_not_cudnn(q.shape, k.shape, q.dtype, mask),
    }
    if implementation == "auto":
        implementation = {"tpu": "splash", "gpu": "cudnn"}.get(_platform(), "xla")
        if why_not[implementation]() is not None:
            implementation = "xla"
    elif implementation not in why_not:
        raise InputError(f"attention: no implementation named {implementation!r}; there are auto, {', '.join(why_not)}")
    elif (reason := why_not[implementation]()) is not None:
        raise InputError(f"attention: {implementation} cannot be used because {reason}; use 'auto' or 'xla'")

    if implementation == "splash":
        from omnir1_jax.models import splash  # here, because importing Pallas for TPU takes a second

        return splash.attend(q, k, v, mask=mask, scale=scale)
    if implementation == "cudnn":
        table = _allowed(mask, jnp.arange(q.shape[1]), k.shape[1], causal=False)
        table = None if table is None else table[:, None]
        return jax.nn.dot_product_attention(
            q, k, v, mask=table, scale=scale, is_causal=mask.causal, implementation="cudnn"
        )
    return _attend_xla(q, k, v, mask, scale)


def _platform() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return getattr(device, "platform", None) or jax.default_backend()


def why_not_splash(q: tuple[int, ...], k: tuple[int, ...], mask: Mask) -> str | None:
    """What keeps the splash kernel from these shapes [b, s, h, d] and [b, t, k, d], or None."""
    if mask.dense is not None:
        return "a dense mask has no block structure"
    if q[-1] % 128:
        return f"head_dim {q[-1]} is no multiple of 128"
    if q[1] < 128 or k[1] < 128:
        return f"{q[1]} queries and {k[1]} keys do not fill a block of 128"
    return None


def why_not_cudnn(q: tuple[int, ...], k: tuple[int, ...], dtype: DTypeLike, mask: Mask) -> str | None:
    """What keeps cuDNN's flash attention from these shapes [b, s, h, d] and [b, t, k, d], or None.

    The limits are those of compute capability 8.0 (Hopper allows heads up to 256). Any mask but a causal one is
    read from memory, where it must have even sides and a bearable size.
    """
    if jnp.dtype(dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
        return f"dtype {jnp.dtype(dtype).name} is neither bfloat16 nor float16"
    if q[-1] % 8 or q[-1] > 128:
        return f"head_dim {q[-1]} is no multiple of 8 up to 128"
    if any(part is not None for part in (mask.keys, mask.segments, mask.dense, mask.tree)):
        if q[1] % 2 or k[1] % 2:
            return f"with a mask, {q[1]} queries and {k[1]} keys must both be even"
        if q[0] * q[1] * k[1] > MAX_CUDNN_MASK:
            return f"the mask of {q[0]} x {q[1]} x {k[1]} elements is larger than {MAX_CUDNN_MASK}"
    return None


def _check(q: tuple[int, ...], k: tuple[int, ...], mask: Mask) -> None:
    if q[2] % k[2]:
        raise InputError(f"attention: {q[2]} query heads cannot share {k[2]} key heads evenly")
    square = mask.causal or mask.segments is not None or mask.tree is not None
    if square and q[1] != k[1]:
        raise InputError(f"attention: {q[1]} queries and {k[1]} keys, but the mask needs as many of both")
    if mask.tree is not None and mask.tree.prompt + mask.tree.group * mask.tree.length != k[1]:
        raise InputError(f"attention: {mask.tree} does not add up to {k[1]} tokens")


def tree_allowed(tree: Tree, rows, columns):
    """Whether query `rows` may look at `columns` of a tree; NumPy or JAX integers that broadcast."""
    tail = columns - tree.prompt
    same = (tail < 0) | (tail // tree.length == (rows - tree.prompt) // tree.length)
    return (columns <= rows) & same


def _allowed(
    mask: Mask, rows: Int[Array, " s"], keys: int, *, causal: bool
) -> Bool[Array, "b_or_1 {rows.shape[0]} {keys}"] | None:
    """The table of the queries `rows`; None where everything is allowed. Without `causal` that part is left out."""
    columns, parts = jnp.arange(keys), []
    if mask.keys is not None:
        parts.append(mask.keys[:, None])
    if mask.segments is not None:
        parts.append(jnp.take(mask.segments, rows, axis=1, mode="clip")[:, :, None] == mask.segments[:, None])
    if mask.dense is not None:
        parts.append(jnp.take(mask.dense, rows, axis=1, mode="clip"))
    if mask.causal and causal:
        parts.append((columns <= rows[:, None])[None])
    if mask.tree is not None:
        parts.append(tree_allowed(mask.tree, rows[:, None], columns)[None])
    if not parts:
        return None
    table = parts[0]
    for part in parts[1:]:
        table = table & part
    return jnp.broadcast_to(table, (table.shape[0], rows.shape[0], keys))


def _attend_xla(q, k, v, mask: Mask, scale: float):
    if mask.tree is not None and mask.dense is None and mask.segments is None and not mask.causal:
        return _attend_tree(q, k, v, mask, scale)
    b, s, h, d = q.shape
    t, key_heads = k.shape[1:3]

    def piece(q, rows):
        grouped = q.reshape(b, -1, key_heads, h // key_heads, d)
        scores = jnp.einsum("bskrd,btkd->bkrst", grouped, k, preferred_element_type=jnp.float32) * scale
        table = _allowed(mask, rows, t, causal=True)
        if table is not None:
            scores = jnp.where(table[:, None, None], scores, _MASKED)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum("bkrst,btkd->bskrd", weights, v).reshape(q.shape)

    return _in_pieces(piece, b * h * t, (q, 1), (jnp.arange(s), 0))


def _in_pieces(piece: Callable, scores_per_query: int, *arrays: tuple[jax.Array, int]):
    """`piece(*arrays)` over slices of the query axis of each array, so that at most MAX_SCORES scores exist.

    Args:
      arrays: (array, its query axis); the first gives the axis of the result.
    """
    queries = arrays[0][0].shape[arrays[0][1]]
    size = max(MIN_QUERIES, MAX_SCORES // scores_per_query)
    if size >= queries:
        return piece(*(array for array, _ in arrays))
    count = math.ceil(queries / size)
    size = math.ceil(queries / count)

    def split(array, axis):
        padding = [(0, count * size - queries if i == axis else 0) for i in range(array.ndim)]
        array = jnp.pad(array, padding)
        shape = (*array.shape[:axis], count, size, *array.shape[axis + 1 :])
        return jnp.moveaxis(array.reshape(shape), axis, 0)

    # Checkpointed: the backward pass makes the scores of one piece at a time too.
    out = jax.lax.map(lambda parts: jax.checkpoint(piece)(*parts), tuple(split(*a) for a in arrays))
    axis = arrays[0][1]
    out = jnp.moveaxis(out, 0, axis)
    out = out.reshape(*out.shape[:axis], count * size, *out.shape[axis + 2 :])
    return jax.lax.slice_in_dim(out, 0, queries, axis=axis)


def _attend_tree(q, k, v, mask: Mask, scale: float):
    """Prompt against prompt, completions against prompt and themselves: what the mask forbids is not computed."""
    p, g, c = mask.tree
    b, _, h, d = q.shape
    keys = jnp.ones(k.shape[:2], bool) if mask.keys is None else mask.keys
    first = _attend_xla(q[:, :p], k[:, :p], v[:, :p], Mask(keys=keys[:, :p], causal=True), scale)
    tail_k, tail_v = (x[:, p:].reshape(b, g, c, -1, d).swapaxes(2, 3) for x in (k, v))
    rest = attend_shared(
        q[:, p:].reshape(b, g, c, h, d),
        k[:, :p].swapaxes(1, 2),
        v[:, :p].swapaxes(1, 2),
        keys[:, :p],
        tail_k,
        tail_v,
        keys[:, p:].reshape(b, g, 1, c) & jnp.tri(c, dtype=bool),
        scale=scale,
    )
    return jnp.concatenate([first, rest.reshape(b, g * c, h, d)], axis=1)


def attend_shared(
    q: Float[Array, "b g n h d"],
    prompt_k: Float[Array, "b k p d"],
    prompt_v: Float[Array, "b k p d"],
    prompt_mask: Bool[Array, "b p"],
    tail_k: Float[Array, "b g k c d"],
    tail_v: Float[Array, "b g k c d"],
    tail_mask: Bool[Array, "b g n c"],
    *,
    scale: float | None = None,
) -> Float[Array, "b g n h d"]:
    """g continuations look at one prompt and each at its own tail; the prompt's keys are read in place, once.

    Keys stand before tokens in the layout, so that neither product has to move them. One softmax spans both parts.
    """
    b, g, _, h, d = q.shape
    key_heads = prompt_k.shape[1]
    scale = 1 / math.sqrt(d) if scale is None else scale

    def piece(q, tail_mask):
        grouped = q.reshape(b, g, -1, key_heads, h // key_heads, d)
        on_prompt = jnp.einsum("bgnkrd,bkpd->bkgnrp", grouped, prompt_k, preferred_element_type=jnp.float32) * scale
        on_tail = jnp.einsum("bgnkrd,bgkcd->bkgnrc", grouped, tail_k, preferred_element_type=jnp.float32) * scale
        on_prompt = jnp.where(prompt_mask[:, None, None, None, None], on_prompt, _MASKED)
        on_tail = jnp.where(tail_mask[:, None, :, :, None], on_tail, _MASKED)
        top = jnp.maximum(on_prompt.max(-1, keepdims=True), on_tail.max(-1, keepdims=True))
        top = jax.lax.stop_gradient(top)
        on_prompt, on_tail = jnp.exp(on_prompt - top), jnp.exp(on_tail - top)
        total = on_prompt.sum(-1, keepdims=True) + on_tail.sum(-1, keepdims=True)
        on_prompt, on_tail = ((x / total).astype(q.dtype) for x in (on_prompt, on_tail))
        out = jnp.einsum("bkgnrp,bkpd->bgnkrd", on_prompt, prompt_v)
        return (out + jnp.einsum("bkgnrc,bgkcd->bgnkrd", on_tail, tail_v)).reshape(q.shape)

    keys = prompt_k.shape[2] + tail_k.shape[3]
    return _in_pieces(piece, b * g * h * keys, (q, 2), (tail_mask, 2))
