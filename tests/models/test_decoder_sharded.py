"""The decoder over a mesh: the same numbers on CPU devices, and programs for TPU compiled without one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omnir1_jax.models.qwen_omni.cache import Prompt
from omnir1_jax.models.qwen_omni.config import TextConfig
from omnir1_jax.models.qwen_omni.decoder import Decoder
from omnir1_jax.models.qwen_omni.sample import Sampling, draw, generate
from omnir1_jax.models.qwen_omni.score import score
from omnir1_jax.parallel.mesh import make_mesh
from omnir1_jax.parallel.rules import tree_shardings
from omnir1_jax.planning import hlo
from tests.models.text_oracle import params_of, reference, relative, text_config, text_positions

ROWS = PartitionSpec(("data", "fsdp"))


def boxed_params(config: TextConfig):
    tokens = jnp.zeros((1, 1), jnp.int32)
    arguments = tokens, jnp.zeros((1, 3, 1), jnp.int32), jnp.ones((1, 1), bool)
    return jax.eval_shape(Decoder(config).init, jax.random.key(0), *arguments)["params"]


def rollout(decoder, variables, tokens, mask, positions, next_position, key, group, length):
    prompt = Prompt(decoder.apply(variables, tokens, method="embed"), positions, mask, next_position)
    cache = decoder.apply(variables, prompt, method="prefill")
    return generate(decoder, variables, cache, key, Sampling(length, (5, 6), 0), group=group)


def gradient(decoder, params, tokens, mask, positions, next_position, completions, lengths):
    def loss(params):
        variables = {"params": params}
        prompt = Prompt(decoder.apply(variables, tokens, method="embed"), positions, mask, next_position)
        return score(decoder, variables, prompt, completions, lengths).logprobs.sum()

    return jax.grad(loss)(params)


def test_the_same_over_eight_devices():
    """Data, fsdp and tensor axes of two each: sampled tokens, log-probs and gradients of the unsharded run."""
    config = text_config(vocab=64)
    params = params_of(reference(config, 4), config)
    decoder = Decoder(config, remat="full")
    rng = np.random.default_rng(1)
    tokens, mask = rng.integers(3, 60, (4, 8)).astype(np.int32), np.ones((4, 8), bool)
    mask[1, :3], mask[2, -2:] = False, False
    rows = tuple(map(jnp.asarray, (tokens, mask, *text_positions(mask))))

    @jax.jit
    def both(params, rows):
        out = rollout(decoder, {"params": params}, *rows, jax.random.key(2), 2, 6)
        return out, gradient(decoder, params, *rows, out.tokens, out.lengths)

    want, want_gradient = both(params, rows)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, tree_shardings(mesh, boxed_params(config)))
        assert len({s.data.shape for s in sharded["layers"]["q"]["kernel"].addressable_shards}) == 1
        assert sharded["layers"]["q"]["kernel"].addressable_shards[0].data.shape == (2, 24, 2, 16)
        got, got_gradient = both(sharded, jax.device_put(rows, NamedSharding(mesh, ROWS)))
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-4)
    assert max(jax.tree.leaves(jax.tree.map(relative, got_gradient, want_gradient))) < 1e-4


def test_draws_from_a_sharded_vocabulary_are_those_from_one_device():
    """Also of a row with ties beyond k, one with ties among its k best, and k above a shard's tokens."""
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(2, 2, 48)).astype(np.float32) * 3)
    logits = logits.at[0, 1].set(jnp.round(logits[0, 1])).at[1, 0].set(0.0)
    keys = jax.random.split(jax.random.key(4), (2, 2))
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    for how in (Sampling(1, (), 0, top_k=5, top_p=0.9), Sampling(1, (), 0, top_k=20), Sampling(1, (), 0, top_p=0.6)):
        want, logprobs = draw(keys, logits, how)
        with jax.set_mesh(mesh):
            where = NamedSharding(mesh, PartitionSpec("data", None, ("fsdp", "tensor")))
            got, got_logprobs = jax.jit(draw, static_argnums=2)(keys, jax.device_put(logits, where), how)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_allclose(got_logprobs, logprobs, atol=1e-6)


def test_drawing_gathers_no_sharded_vocabulary():
    """On eight v5e chips the best of each shard and sums travel, whose sizes are far below the vocabulary's."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    mesh = Mesh(np.array(topology.devices).reshape(1, 4, 2), ("data", "fsdp", "tensor"))
    shape = lambda *names: (
        lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*names)))
    )
    logits = shape(None, None, ("fsdp", "tensor"))((2, 4, 8192), jnp.float32)
    keys = shape()((2, 4), jax.eval_shape(jax.random.key, 0).dtype)
    with jax.set_mesh(mesh):
        program = jax.jit(lambda *args: draw(*args, Sampling(1, (), 0, top_k=50, top_p=0.9))).lower(keys, logits)
        module = hlo.parse(program.compile().as_text())
    sizes = [one.bytes for each in module.computations.values() for one in each if one.opcode.startswith("all-gather")]
    assert sizes and max(sizes) <= 2 * 4 * 8 * 50 * 4


def test_compiles_for_tpu_with_splash_inside():
    """Prefill with sampling, and the scorer's gradient, on four v5e chips: splash runs in the rematerialised scan."""
    config = text_config(4, 2, (16, 24, 24), hidden=256, ffn=512, vocab=512)
    decoder = Decoder(config, dtype=jnp.bfloat16, remat="full")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    mesh = Mesh(np.array(topology.devices).reshape(1, 2, 2), ("data", "fsdp", "tensor"))
    boxed = boxed_params(config)
    params = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nn.unbox(boxed),
        tree_shardings(mesh, boxed),
    )

    def rows(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((4, *shape), dtype, sharding=NamedSharding(mesh, ROWS))

    prompt = rows(256), rows(256, dtype=bool), rows(3, 256), rows()
    key = jax.eval_shape(jax.random.key, 0)
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        sampled = jax.jit(lambda params, *args: rollout(decoder, {"params": params}, *args, 2, 128))
        program = sampled.lower(params, *prompt, key).compile().as_text()
        assert program.count("tpu_custom_call") == 1  # in the scan over layers of the prefill
        learn = jax.jit(lambda *args: gradient(decoder, *args))
        program = learn.lower(params, *prompt, rows(2, 128), rows(2)).compile().as_text()
        assert program.count("tpu_custom_call") == 4  # forward, again for the backward pass, dq, dkv
