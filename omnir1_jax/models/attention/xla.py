"""Attention in plain XLA, for every platform and mask; long sequences in pieces of queries."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from omnir1_jax.models.attention.mask import Mask, allowed

# At most this many scores exist at a time (float32: 512 MiB), but queries are taken in pieces no smaller than
# MIN_QUERIES, below which matrix products are inefficient.
MAX_SCORES = 2**27
MIN_QUERIES = 128
_MASKED = -1e30  # finite, so that a query without any key gives the mean of the values, not NaN


def attend(
    q: Float[Array, "b s h d"], k: Float[Array, "b t k d"], v: Float[Array, "b t k c"], mask: Mask, scale: float
) -> Float[Array, "b s h c"]:
    """See `dispatch.attend`, which has checked the shapes. What a tree forbids is not computed."""
    if mask.tree is not None and mask.dense is None and mask.segments is None and not mask.causal:
        return _attend_tree(q, k, v, mask, scale)
    b, s, h, d = q.shape
    t, key_heads = k.shape[1:3]
    keys, values = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)

    def piece(q, rows):
        grouped = q.reshape(b, -1, key_heads, h // key_heads, d)
        # One matrix for each key head, so that queries are moved and not scores.
        by_head = jnp.transpose(grouped, (0, 2, 3, 1, 4))
        scores = by_head.reshape(b, key_heads, -1, d)
        scores = jnp.einsum("bkqd,bktd->bkqt", scores, keys, preferred_element_type=jnp.float32) * scale
        scores = scores.reshape(*by_head.shape[:-1], t)
        table = allowed(mask, rows, t, causal=True)
        if table is not None:
            scores = jnp.where(table[:, None, None], scores, _MASKED)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        out = jnp.matmul(weights.reshape(b, key_heads, -1, t), values).reshape(*by_head.shape[:-1], -1)
        return jnp.transpose(out, (0, 3, 1, 2, 4)).reshape(*q.shape[:-1], -1)

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
    prompt_out = attend(q[:, :p], k[:, :p], v[:, :p], Mask(keys=keys[:, :p], causal=True), scale)
    suffix_k, suffix_v = (x[:, p:].reshape(b, g, c, -1, d).swapaxes(2, 3) for x in (k, v))
    completions_out = attend_shared(
        q[:, p:].reshape(b, g, c, h, d),
        k[:, :p].swapaxes(1, 2),
        v[:, :p].swapaxes(1, 2),
        keys[:, :p],
        suffix_k,
        suffix_v,
        keys[:, p:].reshape(b, g, 1, c) & jnp.tri(c, dtype=bool),
        scale=scale,
    )
    return jnp.concatenate([prompt_out, completions_out.reshape(b, g * c, h, d)], axis=1)


def attend_shared(
    q: Float[Array, "b g n h d"],
    prompt_k: Float[Array, "b k p d"] | Float[Array, "bk d p"],
    prompt_v: Float[Array, "b k p d"] | Float[Array, "bk p d"],
    prompt_mask: Bool[Array, "b p"],
    suffix_k: Float[Array, "b g k c d"] | Float[Array, "bgk d c"],
    suffix_v: Float[Array, "b g k c d"] | Float[Array, "bgk c d"],
    suffix_mask: Bool[Array, "b g n c"],
    *,
    scale: float | None = None,
) -> Float[Array, "b g n h d"]:
    """g continuations attend to one prompt and each to its own suffix; the prompt's keys are read in place, once.

    One softmax spans both parts. Keys and values may have one axis in place of several, keys then with channels first.
    """
    b, g, _, h, d = q.shape
    p, c = prompt_mask.shape[1], suffix_mask.shape[-1]
    flat = prompt_v.ndim == 3
    key_heads = prompt_v.shape[0] // b if flat else prompt_v.shape[1]

    def scores(q, keys, equation: str):
        if not flat:
            return jnp.einsum(equation, q, keys, preferred_element_type=jnp.float32) * scale
        return matrices(q, keys, preferred_element_type=jnp.float32) * scale

    def matrices(x, y, **options):
        """x @ y, whose leading axes may be one."""
        if not flat:
            return jnp.matmul(x, y, **options)
        return jnp.matmul(x.reshape(-1, *x.shape[-2:]), y, **options).reshape(*x.shape[:-1], -1)

    scale = 1 / math.sqrt(d) if scale is None else scale

    def piece(q, suffix_mask):
        n = suffix_mask.shape[2]
        grouped = q.reshape(b, g, n, key_heads, h // key_heads, d)
        # One matrix for each key head on the prompt, one for each continuation's on the suffix. Scores, keys and values
        # stay where the products want them; queries, sums and results are moved between the two orders.
        by_head = lambda x: jnp.transpose(x, (0, 3, 1, 2, 4, 5))  # b k g n r
        by_member = lambda x: jnp.transpose(x, (0, 1, 3, 2, 4, 5))  # b g k n r
        swap = lambda x: jnp.swapaxes(x, 1, 2)  # between the two
        shape = by_head(grouped).shape[:-1]
        on_prompt = by_head(grouped).reshape(b, key_heads, -1, d)
        on_prompt = scores(on_prompt, prompt_k, "bkqd,bkpd->bkqp")
        on_prompt = jnp.where(prompt_mask[:, None, None, None, None], on_prompt.reshape(*shape, p), _MASKED)
        on_suffix = by_member(grouped).reshape(b, g, key_heads, -1, d)
        on_suffix = scores(on_suffix, suffix_k, "bgkqd,bgkcd->bgkqc")
        on_suffix = on_suffix.reshape(b, g, key_heads, n, -1, c)
        on_suffix = jnp.where(suffix_mask[:, :, None, :, None], on_suffix, _MASKED)
        top = jnp.maximum(on_prompt.max(-1, keepdims=True), swap(on_suffix.max(-1, keepdims=True)))
        top = jax.lax.stop_gradient(top)
        on_prompt, on_suffix = jnp.exp(on_prompt - top), jnp.exp(on_suffix - swap(top))
        total = on_prompt.sum(-1, keepdims=True) + swap(on_suffix.sum(-1, keepdims=True))
        on_prompt, on_suffix = (x.astype(q.dtype) for x in (on_prompt, on_suffix))
        out = matrices(on_prompt.reshape(b, key_heads, -1, p), prompt_v).reshape(*shape, d)
        out = out + swap(matrices(on_suffix.reshape(b, g, key_heads, -1, c), suffix_v).reshape(swap(out).shape))
        out = (out / total).astype(q.dtype)  # fewer channels are divided than weights
        return jnp.transpose(out, (0, 2, 3, 1, 4, 5)).reshape(q.shape)

    return _in_pieces(piece, b * g * h * (p + c), (q, 2), (suffix_mask, 2))
