"""Narrow parameters on a CPU: no copy of a whole stack in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnir1_jax.models import narrow, quantise
from omnir1_jax.models.qwen_omni import decoder as decoders
from omnir1_jax.models.qwen_omni.config import TextConfig
from omnir1_jax.models.qwen_omni.decoder import Decoder


def test_layers_are_converted_one_by_one():
    """Temporaries of the compiled program, beside what the layers take in float32: 0.06 of it, 1.06 if hoisted."""
    decoder = Decoder(TextConfig(64, 128, 512, 16, 2, 2, 64, 1e4, (8, 12, 12)), dtype=jnp.bfloat16)
    inputs = jnp.zeros((1, 8), jnp.int32), jnp.zeros((1, 3, 8), jnp.int32), jnp.ones((1, 8), bool)
    shapes = nn.unbox(jax.eval_shape(decoder.init, jax.random.key(0), *inputs)["params"])
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.bfloat16), shapes)
    lowered = narrow.jit(lambda params, *inputs: decoder.apply({"params": params}, *inputs)).lower(params, *inputs)
    layers = sum(4 * x.size for x in jax.tree.leaves(params["layers"]))
    assert lowered.compile().memory_analysis().temp_size_in_bytes < layers / 4


def test_one_row_is_multiplied_without_a_copy_of_the_kernel(monkeypatch):
    monkeypatch.setattr(narrow, "PIECE", 1 << 16)
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((1, 256), (256, 4, 1024)))
    multiply = lambda x, kernel: narrow.product(x, kernel, 1, preferred_element_type=jnp.float32)
    compiled = narrow.jit(multiply).lower(x, kernel).compile()
    want = np.tensordot(np.asarray(x, np.float64), np.asarray(kernel, np.float64), 1)
    np.testing.assert_allclose(compiled(x, kernel), want, rtol=1e-4, atol=1e-4)
    assert compiled.memory_analysis().temp_size_in_bytes < kernel.size


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_head_is_multiplied_piece_by_piece(monkeypatch, rows, quantised):
    """Logits as those of the whole head, without a wider copy of it."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(rows, 256)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(256, 12288)), jnp.bfloat16)
    how = quantise.plan(("head", "kernel"), kernel.shape, quantise.Format(8))
    head = decoders.Matrix(*(quantise.split(kernel, how) if quantised else (kernel, None)))
    monkeypatch.setattr(narrow, "FEW_ROWS", 0)
    want = decoders.logits_of(hidden, head, jnp.bfloat16)
    monkeypatch.setattr(narrow, "FEW_ROWS", 3)
    monkeypatch.setattr(narrow, "PIECE", 1 << 17)
    compiled = narrow.jit(lambda head, x: decoders.logits_of(x, head, jnp.bfloat16)).lower(head, hidden).compile()
    np.testing.assert_allclose(compiled(head, hidden), want, rtol=1e-5, atol=1e-4)
    assert compiled.memory_analysis().temp_size_in_bytes < kernel.size
