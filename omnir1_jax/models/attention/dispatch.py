"""The dispatch of attention: plain XLA everywhere, splash on TPU, cuDNN on NVIDIA."""

import math

import jax
from jaxtyping import Array, Float

from omnir1_jax.errors import InputError
from omnir1_jax.models.attention import cudnn, xla
from omnir1_jax.models.attention.mask import Mask

IMPLEMENTATIONS = ("auto", "xla", "splash", "cudnn")
LONG = 1024  # keys from which on splash pays for heads that do not fill the lanes of a TPU


def attend(
    q: Float[Array, "b s h d"],
    k: Float[Array, "b t k d"],
    v: Float[Array, "b t k c"],
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    implementation: str = "auto",
) -> Float[Array, "b s h c"]:
    """softmax(scale * q k^T) v, softmax in float32; h query heads share k key heads in consecutive groups.

    Values may be of another width than queries and keys, except under a tree.

    Args:
      mask: default none at all.
      scale: default 1 / sqrt(d).
      implementation: one of `IMPLEMENTATIONS`; "auto" is what `automatic` chooses.

    Raises:
      InputError: shapes do not agree, or the implementation asked for by name cannot do them.
    """
    mask = Mask() if mask is None else mask
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    _check(q.shape, k.shape, mask)
    if implementation == "auto":
        implementation = automatic(q, k, v, mask)
    elif implementation not in IMPLEMENTATIONS:
        raise InputError(f"attention: {implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")
    elif (reason := _why_not(implementation, q, k, v, mask)) is not None:
        raise InputError(f"attention: {implementation} cannot be used because {reason}; use 'auto' or 'xla'")

    if implementation == "splash":
        from omnir1_jax.models.attention import splash  # here, because importing Pallas for TPU takes a second

        return splash.attend(q, k, v, mask=mask, scale=scale)
    return {"cudnn": cudnn.attend, "xla": xla.attend}[implementation](q, k, v, mask, scale)


def automatic(q: Float[Array, "b s h d"], k: Float[Array, "b t k d"], v: Float[Array, "b t k c"], mask: Mask) -> str:
    """Splash on TPU and cuDNN on NVIDIA where `why_not_splash` and `cudnn.why_not` return None, else XLA.

    The device is that of the mesh set with `jax.set_mesh`, even one that is only compiled for, else the default one.
    """
    fused = {"tpu": "splash", "gpu": "cudnn"}.get(_platform(), "xla")
    return "xla" if _why_not(fused, q, k, v, mask) else fused


def _why_not(implementation: str, q: Array, k: Array, v: Array, mask: Mask) -> str | None:
    if implementation == "splash":
        return why_not_splash(q.shape, k.shape, mask)
    return cudnn.why_not(q.shape, v.shape, q.dtype, mask) if implementation == "cudnn" else None


def _platform() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return getattr(device, "platform", None) or jax.default_backend()


def why_not_splash(q: tuple[int, ...], k: tuple[int, ...], mask: Mask) -> str | None:
    """What keeps the splash kernel from these shapes [b, s, h, d] and [b, t, k, d], or None."""
    if mask.dense is not None:
        return "a dense mask has no block structure"
    if q[1] < 128 or k[1] < 128:
        return f"{q[1]} queries and {k[1]} keys do not fill a block of 128"
    if q[-1] % 128 and (q[-1] < 64 or k[1] < LONG):
        return f"head_dim {q[-1]} is not a multiple of 128, nor at least 64 with {LONG} keys"
    return None


def _check(q: tuple[int, ...], k: tuple[int, ...], mask: Mask) -> None:
    if q[2] % k[2]:
        raise InputError(f"attention: {q[2]} query heads cannot share {k[2]} key heads evenly")
    square = mask.causal or mask.segments is not None or mask.tree is not None
    if square and q[1] != k[1]:
        raise InputError(f"attention: {q[1]} queries and {k[1]} keys, but the mask needs as many of both")
    if mask.tree is not None and mask.tree.prompt + mask.tree.group * mask.tree.length != k[1]:
        raise InputError(f"attention: {mask.tree} does not add up to {k[1]} tokens")
