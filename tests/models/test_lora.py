"""Adapters: the formula, what they leave alone, merging, and the decoder's entry points with them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from omnir1_jax.config.sections import Lora
from omnir1_jax.errors import InputError
from omnir1_jax.models import lora
from omnir1_jax.models.qwen_omni.cache import Prompt
from omnir1_jax.models.qwen_omni.decoder import Decoder
from omnir1_jax.models.qwen_omni.sample import Sampling, generate
from omnir1_jax.models.qwen_omni.score import score
from omnir1_jax.parallel.rules import tree_shardings
from tests.models.text_oracle import params_of, reference, relative, text_config, text_positions

CONFIG = text_config()
ALL = Lora(rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def params():
    return params_of(reference(CONFIG, seed=5), CONFIG)


def random_adapter(params, config):
    """B is drawn too: a fresh adapter would hide every mistake."""
    fresh = lora.init(jax.random.key(0), params, config)
    leaves, structure = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [0.1 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves)]
    return jax.tree.unflatten(structure, drawn)


def rows():
    rng = np.random.default_rng(2)
    tokens = rng.integers(3, 100, (2, 9)).astype(np.int32)
    mask = np.ones((2, 9), bool)
    mask[0, :2] = False
    positions, next_position = text_positions(mask)
    return tuple(map(jnp.asarray, (tokens, positions, mask, next_position)))


@jax.jit
def logits(variables):
    tokens, positions, mask, _ = rows()
    return Decoder(CONFIG, remat="full").apply(variables, tokens, positions, mask)


def test_fresh_adapter_changes_nothing(params):
    adapter = lora.init(jax.random.key(0), params, ALL)
    assert set(adapter["layers"]) == {"q", "k", "v", "o", "gate", "up", "down"}
    assert adapter["layers"]["o"]["a"].shape == (2, 4, 16, 3)
    assert adapter["layers"]["o"]["b"].shape == (2, 3, 48)
    assert adapter["layers"]["k"]["b"].shape == (2, 3, 2, 16)
    assert all(float(jnp.std(layer["a"])) > 0.05 for layer in adapter["layers"].values())
    np.testing.assert_array_equal(logits(lora.adapted(params, adapter, ALL)), logits({"params": params}))


def test_merge_is_the_formula(params):
    adapter = random_adapter(params, ALL)
    merged = lora.merge(params, adapter, ALL)
    part = adapter["layers"]["o"]
    want = params["layers"]["o"]["kernel"] + 6.0 / 3 * np.einsum("lhdr,lre->lhde", part["a"], part["b"])
    np.testing.assert_allclose(merged["layers"]["o"]["kernel"], want, atol=1e-6)
    adapted = logits(lora.adapted(params, adapter, ALL))
    assert relative(logits({"params": merged}), adapted) < 1e-5
    assert relative(adapted, logits({"params": params})) > 0.1
    half = lora.merge(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), adapter, ALL)
    assert half["layers"]["q"]["kernel"].dtype == jnp.bfloat16


def test_gradients_reach_the_adapter_only(params):
    """They equal those through the merged weights; the base's are zero."""
    adapter = random_adapter(params, ALL)
    weights = jax.random.normal(jax.random.key(3), (2, 9, CONFIG.vocab_size))

    def through_adapter(params, adapter):
        return jnp.sum(weights * logits(lora.adapted(params, adapter, ALL)))

    def through_merged(adapter):
        return jnp.sum(weights * logits({"params": lora.merge(params, adapter, ALL)}))

    base, got = jax.grad(through_adapter, (0, 1))(params, adapter)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(base))
    errors = jax.tree.map(relative, got, jax.grad(through_merged)(adapter))
    assert max(jax.tree.leaves(errors)) < 1e-4, errors


def test_layers_are_chosen_by_pattern(params):
    def names(*patterns, tree=params):
        adapter = lora.init(jax.random.key(0), tree, Lora(2, 4.0, patterns))
        tree = adapter.get("text", adapter)
        return set(tree["layers"])

    assert names("q", "v") == {"q", "v"}
    assert names("layers/[qkvo]") == {"q", "k", "v", "o"}
    assert names(
        "text/layers/*p", tree={"text": params, "vision": {"layers": {"q": {"kernel": jnp.ones((1, 2, 2))}}}}
    ) == {"up"}
    with pytest.raises(InputError, match=r"lora.layers: 'head' names no linear layer; there are layers/down"):
        names("q", "head")
    with pytest.raises(InputError, match="rank: 0"):
        lora.init(jax.random.key(0), params, Lora(0, 1.0))
    adapter = random_adapter(params, Lora(2, 4.0, ("down",)))
    some = lora.adapted(params, adapter, Lora(2, 4.0, ("down",)))
    merged = lora.merge(params, adapter, Lora(2, 4.0, ("down",)))
    assert relative(logits(some), logits({"params": merged})) < 1e-5


def test_axes_of_a_boxed_tree():
    """From shapes with logical axes alone: the adapter carries axes, and they give shardings."""
    tokens, positions, mask, _ = rows()
    boxed = jax.eval_shape(Decoder(CONFIG).init, jax.random.key(0), tokens, positions, mask)["params"]
    adapter = jax.eval_shape(lambda key: lora.init(key, boxed, ALL), jax.random.key(0))
    assert adapter["layers"]["o"]["a"].names == ("layers", "heads", "head_dim", "rank")
    assert adapter["layers"]["k"]["b"].names == ("layers", "rank", "kv_heads", "head_dim")
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))
    shardings = tree_shardings(mesh, adapter)
    assert shardings["layers"]["gate"]["a"].spec == PartitionSpec(None, "fsdp", None)
    assert shardings["layers"]["gate"]["b"].spec == PartitionSpec(None, None, "tensor")
    assert nn.unbox(adapter)["layers"]["up"]["b"].shape == (2, 3, 80)


def test_sampling_and_scoring_with_an_adapter(params):
    """The policy samples and scores through the adapter as the merged model does; the reference is the bare base."""
    adapter = random_adapter(params, ALL)
    tokens, positions, mask, next_position = rows()
    decoder = Decoder(CONFIG)

    @jax.jit
    def rollout(variables):
        prompt = Prompt(decoder.apply(variables, tokens, method="embed"), positions, mask, next_position)
        cache = decoder.apply(variables, prompt, method="prefill")
        out = generate(decoder, variables, cache, jax.random.key(4), Sampling(6, (), 0), group=2)
        return out, score(decoder, variables, prompt, out.tokens, out.lengths).logprobs

    out, scored = rollout(lora.adapted(params, adapter, ALL))
    np.testing.assert_allclose(out.logprobs, scored, atol=1e-4)
    plain, _ = rollout({"params": lora.merge(params, adapter, ALL)})
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    assert (rollout({"params": params})[0].tokens != out.tokens).any()
