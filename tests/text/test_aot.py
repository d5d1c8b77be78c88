"""The whole of it compiles for a TPU v5e: static shapes, no host callback, no 64-bit type."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omnir1_jax.text import bpe, prompt, readers, vocab
from tests.text import trained

N, TOKENS, BYTES, SLOTS = 8, 64, 256, 3


def read(tables, ids, frames):
    text, _ = vocab.detokenise(tables, ids, BYTES)
    return (
        readers.read_plan(text, frames),
        readers.read_answer(text),
        readers.read_boxes(text, SLOTS),
        readers.read_box_and_points(text),
    )


def ask(tables, form, plan):
    return prompt.fill(tables, form, plan.description, 64)


@pytest.fixture(scope="module")
def chip():
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=(1, 1, 1))
    # Without a chip an executable cannot be read back, so that none is cached.
    jax.config.update("jax_enable_compilation_cache", False)
    yield NamedSharding(Mesh(np.array(topology.devices), ("x",)), PartitionSpec())
    jax.config.update("jax_enable_compilation_cache", True)


def compiled(function, chip, *args):
    shaped = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), args)
    lowered = jax.jit(function).lower(*shaped)
    text = lowered.as_text()
    assert "callback" not in text and "custom_call" not in text
    # Attributes (a window's padding) are written as i64; no value is.
    values = re.sub(r"\w+ = dense<[^>]*> : tensor<[^>]*>", "", text)
    assert "xi32>" in values and not re.findall(r"tensor<(?:\d+x)*(?:i64|ui64|f64)>", values)
    compiled = lowered.compile()
    final = compiled.as_text()
    assert "callback" not in final and "s32[" in final and not re.findall(r"\b(?:s64|u64|f64)\[", final)
    assert compiled.memory_analysis().temp_size_in_bytes < 1 << 28
    return jax.eval_shape(function, *shaped)


def test_everything_compiles_for_v5e(chip):
    tokenizer = trained.tokenizer(280)
    tables = vocab.byte_vocab(tokenizer), bpe.bpe_tables(tokenizer)
    form = prompt.template(tokenizer, "<|im_start|>Locate the {description}.<|im_end|>")
    ids, frames = jnp.zeros((N, TOKENS), jnp.int32), jnp.ones(N, jnp.int32)
    plan = compiled(read, chip, tables[0], ids, frames)[0]
    tokens = compiled(ask, chip, tables[1], form, plan)
    wide = [x for x in jax.tree.leaves((plan, tokens)) if x.dtype.itemsize > 4]
    assert not wide
