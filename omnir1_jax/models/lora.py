"""LoRA adapters on the decoder's linear layers: `x W + (alpha / rank) (x A) B`, W unchanged.

The adapter is a tree of its own, handed to the decoder beside the parameters:
`decoder.apply(adapted(params, adapter, config), ...)` is the policy, `decoder.apply({"params": params}, ...)` with
the same arrays the reference.
"""

import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from omnir1_jax.config.sections import Lora
from omnir1_jax.errors import InputError
from omnir1_jax.models import quantise

# Linear layers of a block that can be adapted, with the number of axes that they contract.
INPUT_AXES = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}

Params = Mapping[str, Any]


def init(key: Key[Array, ""], params: Params, config: Lora) -> dict:
    """A new adapter in float32: A uniform like a linear layer's weights, B zero, so that outputs do not change.

    Args:
      params: of the decoder or the thinker; shapes are enough. Leaves boxed with logical axes, as `Module.init`
        returns them, give boxed leaves (`parallel.rules.tree_shardings`, `nn.unbox`).

    Returns:
      {"layers": {"q": {"a": [layers, *in, rank], "b": [layers, rank, *out]}, ...}}, under "text" for a thinker.

    Raises:
      InputError: a pattern that matches no layer.
    """
    if config.rank < 1:
        raise InputError(f"lora.rank: {config.rank} is less than 1")
    kernels = {path: leaf for path, leaf in _flat(params).items() if _linear(path)}
    adapted_kernels = {}
    for pattern in config.layers:
        matches = [path for path in kernels if _matches(path, pattern)]
        if not matches:
            names = ", ".join("/".join(path[:-1]) for path in kernels)
            raise InputError(f"lora.layers: {pattern!r} names no linear layer; there are {names}")
        adapted_kernels |= {path: kernels[path] for path in matches}

    adapter = {}
    for path, path_key in zip(sorted(adapted_kernels), jax.random.split(key, len(adapted_kernels))):
        leaf = quantise.original(adapted_kernels[path])
        shape, split = nn.unbox(leaf).shape, 1 + INPUT_AXES[path[-2]]
        bound = 1 / math.sqrt(math.prod(shape[1:split]))
        a = jax.random.uniform(path_key, (*shape[:split], config.rank), jnp.float32, -bound, bound)
        b = jnp.zeros((shape[0], config.rank, *shape[split:]), jnp.float32)
        if isinstance(leaf, nn.LogicallyPartitioned):
            a = nn.LogicallyPartitioned(a, (*leaf.names[:split], "rank"))
            b = nn.LogicallyPartitioned(b, (leaf.names[0], "rank", *leaf.names[split:]))
        adapter[(*path[:-1], "a")], adapter[(*path[:-1], "b")] = a, b
    return flax.traverse_util.unflatten_dict(adapter)


def adapted(params: Params, adapter: Params, config: Lora) -> dict:
    """Variables of the adapted model. Gradients reach the adapter only."""
    scaled = {path: x * config.scale if path[-1] == "b" else x for path, x in _flat(adapter).items()}
    return {"params": jax.lax.stop_gradient(params), "lora": flax.traverse_util.unflatten_dict(scaled)}


def merge(params: Params, adapter: Params, config: Lora) -> dict:
    """Parameters of a plain model that is equivalent to the adapted one; `params` themselves do not change.

    A quantised kernel cannot take the adapter, which is put beside the kernel, where `layers.Linear` reads it.
    """
    flat, factors = _flat(params), _flat(adapter)
    for path in {path[:-1] for path in factors}:
        if (*path, quantise.SCALES) in flat:
            flat[(*path, "a")], flat[(*path, "b")] = factors[(*path, "a")], config.scale * factors[(*path, "b")]
            continue
        kernel = flat[(*path, "kernel")]
        product = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(factors[(*path, "a")], factors[(*path, "b")])
        flat[(*path, "kernel")] = (kernel.astype(jnp.float32) + config.scale * product).astype(kernel.dtype)
    return flax.traverse_util.unflatten_dict(flat)


def merged_on_host(kernel: Any, pair: Mapping[str, Any], config: Lora) -> np.ndarray:
    """`merge` of one kernel [layers, *in, *out], layer by layer in numpy. `pair`: its adapter {"a", "b"}."""
    kernel, (a, b) = np.asarray(kernel), (np.asarray(pair[name], np.float32) for name in "ab")
    kernel = kernel if kernel.flags.writeable else kernel.copy()
    for i, layer in enumerate(kernel):
        kernel[i] = layer.astype(np.float32) + config.scale * np.tensordot(a[i], b[i], 1)
    return kernel


def _flat(tree: Params) -> dict[tuple[str, ...], Any]:
    return flax.traverse_util.flatten_dict(tree)


def _linear(path: tuple[str, ...]) -> bool:
    path = path[1:] if path[0] == "text" else path
    return len(path) == 3 and path[0] == "layers" and path[1] in INPUT_AXES and path[2] == "kernel"


def _matches(path: tuple[str, ...], pattern: str) -> bool:
    name = "/".join(path[:-1])
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*/{pattern}")
