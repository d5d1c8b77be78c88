"""cuDNN's flash attention on NVIDIA, through `jax.nn.dot_product_attention`."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from omnir1_jax.models.attention.mask import Mask, allowed

MAX_MASK = 2**28  # elements of the mask that cuDNN reads from memory; 512 MiB in bfloat16


def attend(
    q: Float[Array, "b s h d"], k: Float[Array, "b t k d"], v: Float[Array, "b t k d"], mask: Mask, scale: float
) -> Float[Array, "b s h d"]:
    """See `dispatch.attend`, which has checked the shapes."""
    table = allowed(mask, jnp.arange(q.shape[1]), k.shape[1], causal=False)
    table = None if table is None else table[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=table, scale=scale, is_causal=mask.causal, implementation="cudnn")


def why_not(q: tuple[int, ...], v: tuple[int, ...], dtype: DTypeLike, mask: Mask) -> str | None:
    """What keeps cuDNN's flash attention from these shapes of queries and values, or None.

    The limits are those of compute capability 8.0 (Hopper allows heads up to 256). Any mask but a causal one is
    read from memory, where it must have even sides and at most `MAX_MASK` elements.
    """
    if jnp.dtype(dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
        return f"dtype {jnp.dtype(dtype).name} is neither bfloat16 nor float16"
    if q[-1] % 8 or q[-1] > 128:
        return f"head_dim {q[-1]} is not a multiple of 8 up to 128"
    if q[-1] != v[-1]:
        return f"queries and keys have {q[-1]} channels, values {v[-1]}"
    if any(part is not None for part in (mask.keys, mask.segments, mask.dense, mask.tree)):
        if q[1] % 2 or v[1] % 2:
            return f"with a mask, {q[1]} queries and {v[1]} keys must both be even"
        if q[0] * q[1] * v[1] > MAX_MASK:
            return f"the mask of {q[0]} x {q[1]} x {v[1]} elements is larger than {MAX_MASK}"
    return None
