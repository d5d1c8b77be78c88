"""Compiled functions that read narrow parameters, in little memory on a CPU."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# XLA's CPU backend computes in float32. From "convert a layer's slice" it makes "slice the converted stack", which does
# not depend on the layer any more, and moves that out of the loop: all layers in float32 at once.
IN_THE_LOOP = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


def jit(function: Callable[..., Any], **how: Any) -> Any:
    """`jax.jit(function, **how)` for positional arguments; on a CPU, parameters narrower than float32 are converted
    layer by layer. `lower` is that of the program that a call with these arguments runs."""
    usual, in_the_loop = jax.jit(function, **how), jax.jit(function, **how, compiler_options=IN_THE_LOOP)

    def chosen(args: Any) -> Any:
        narrow = any(isinstance(x, jax.Array) and x.ndim > 1 and _narrow(x) for x in jax.tree.leaves(args))
        return in_the_loop if narrow and jax.default_backend() == "cpu" else usual

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        return chosen(args)(*args)

    run.lower = lambda *args: chosen(args).lower(*args)  # type: ignore[attr-defined]
    return run


def _narrow(x: jax.Array) -> bool:
    return jax.numpy.issubdtype(x.dtype, jax.numpy.floating) and x.dtype.itemsize < 4
