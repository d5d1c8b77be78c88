"""The decoder against transformers' text model: hidden states, logits, gradients, caches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.cache import Prompt, empty_tail
from omnir1_jax.models.qwen_omni.config import TextConfig
from omnir1_jax.models.qwen_omni.decoder import Decoder, last_real, unstack_layers
from omnir1_jax.models.qwen_omni.rope import rotary
from omnir1_jax.models.remat import POLICIES
from tests.models.text_oracle import gradients_of, params_of, reference, relative, text_config

# GQA from one key head to one for each query head; wide, narrow and uneven sections; tied heads.
CONFIGS = {
    "4 heads on 2": text_config(),
    "6 on 1, tied": text_config(6, 1, (1, 2, 1), tied=True),
    "3 on 3": text_config(3, 3, (4, 1, 3), layers=3),
    "8 on 4": text_config(8, 4, (2, 3, 3), hidden=64),
    "14 on 2, wide": text_config(14, 2, (2, 3, 3), ffn=150, layers=1),
    "2 on 1, real sections": text_config(2, 1, (16, 24, 24), layers=1),
}


def random_rows(seed: int, config: TextConfig, rows=3, length=19):
    """Tokens, TMRoPE positions that differ on all axes, and a mask with padding left, right and none."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, config.vocab_size - 10, (rows, length)).astype(np.int32)
    positions = np.cumsum(rng.integers(0, 9, (rows, 3, length)), axis=-1).astype(np.int32)
    mask = np.ones((rows, length), bool)
    mask[0, :4], mask[1, -5:] = False, False
    return jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(mask)


def run_reference(model, tokens, positions, mask):
    out = model.model.language_model(
        input_ids=torch.tensor(np.asarray(tokens), dtype=torch.long),
        attention_mask=torch.tensor(np.asarray(mask), dtype=torch.long),
        position_ids=torch.tensor(np.asarray(positions).swapaxes(0, 1), dtype=torch.long),
    )
    return model.lm_head(out.last_hidden_state)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request):
    config = CONFIGS[request.param]
    model = reference(config, seed=len(request.param))
    return config, model, params_of(model, config)


def test_logits(case):
    config, model, params = case
    tokens, positions, mask = random_rows(1, config)
    with torch.no_grad():
        want = run_reference(model, tokens, positions, mask).numpy()
    got = jax.jit(Decoder(config).apply)({"params": params}, tokens, positions, mask)
    assert relative(np.asarray(got)[mask], want[mask]) < 1e-5


@pytest.mark.parametrize("name", ["4 heads on 2", "3 on 3", "2 on 1, real sections"])
def test_prefill_and_extend_equal_whole_sequences(name):
    """A prompt in the cache, then 2 x 3 tokens appended to each of two continuations: the same as six rows at once."""
    config = CONFIGS[name]
    params = params_of(reference(config, seed=len(name)), config)
    decoder = Decoder(config)
    apply = functools.partial(decoder.apply, {"params": params})
    tokens, positions, mask = random_rows(2, config)
    next_position = positions.max((1, 2)) + 3
    suffixes = np.random.default_rng(3).integers(3, config.vocab_size - 10, (3, 2, 6)).astype(np.int32)
    real = np.ones((3, 2, 6), bool)
    real[0, 0, :2], real[1, 1, 4:], real[2, 0, 1:4] = False, False, False

    @functools.partial(jax.jit, static_argnums=2)
    def cached(tokens, suffixes, layers_apart):
        rows = Prompt(apply(tokens, method="embed"), positions, mask, next_position)
        prompt, extend = apply(rows, method="prefill"), apply
        if layers_apart:
            variables, prompt = unstack_layers({"params": params}, prompt)
            extend = functools.partial(decoder.apply, variables)
        tail = empty_tail(config, 3, 2, 8, jnp.float32, layers_apart)
        parts = []
        for part in (slice(0, 3), slice(3, 6)):
            embeddings = apply(suffixes[:, :, part], method="embed")
            x, tail = extend(embeddings, real[:, :, part], prompt, tail, method="extend")
            parts.append(x)
        return prompt.last, jnp.concatenate(parts, axis=2), tail.used

    @jax.jit
    def whole(tokens, positions, mask):
        return apply(apply(tokens, method="embed"), positions, mask, method="hidden")

    suffixes, real = jnp.asarray(suffixes), jnp.asarray(real)
    last, hidden, used = cached(tokens, suffixes, False)
    assert used == 6
    if config.num_layers > 1:
        np.testing.assert_allclose(cached(tokens, suffixes, True)[1][real], hidden[real], atol=2e-5)
    index = jnp.cumsum(real, axis=-1) - 1
    for g in range(2):
        tail_positions = jnp.broadcast_to((next_position[:, None] + index[:, g])[:, None], (3, 3, 6))
        want = whole(
            jnp.concatenate([tokens, suffixes[:, g]], 1),
            jnp.concatenate([positions, tail_positions], 2),
            jnp.concatenate([mask, real[:, g]], 1),
        )
        np.testing.assert_allclose(last, last_real(want[:, :19], mask), atol=2e-5)
        np.testing.assert_allclose(hidden[:, g][real[:, g]], want[:, 19:][real[:, g]], atol=2e-5)


def test_gradients_against_torch(case):
    config, model, params = case
    tokens, positions, mask = random_rows(4, config)
    weights = np.random.default_rng(5).normal(size=(*tokens.shape, config.vocab_size)).astype(np.float32)
    weights *= np.asarray(mask)[..., None]
    model.zero_grad()
    (torch.tensor(weights) * run_reference(model, tokens, positions, mask).log_softmax(-1)).sum().backward()
    want = gradients_of(model, config)

    @jax.jit
    def loss(params):
        logits = Decoder(config, remat="full").apply({"params": params}, tokens, positions, mask)
        return jnp.sum(weights * jax.nn.log_softmax(logits))

    got = jax.grad(loss)(params)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    errors = jax.tree.map(relative, got, want)
    assert max(jax.tree.leaves(errors)) < 1e-4, errors


def test_bfloat16_within_its_error():
    """As far from the float32 logits as the reference's own bfloat16 run is."""
    config = CONFIGS["4 heads on 2"]
    model = reference(config, seed=3)
    params = params_of(model, config)
    tokens, positions, mask = random_rows(6, config)
    real = np.asarray(mask)
    with torch.no_grad():
        exact = run_reference(model, tokens, positions, mask).numpy()[real]
        want = run_reference(model.bfloat16(), tokens, positions, mask).float().numpy()[real]
    decoder = Decoder(config, dtype=jnp.bfloat16)
    logits = decoder.apply({"params": params}, tokens, positions, mask)
    assert logits.dtype == jnp.float32
    error = np.sqrt(np.mean((np.asarray(logits)[real] - exact) ** 2))
    assert error < 1.2 * np.sqrt(np.mean((want - exact) ** 2))
    assert decoder.apply({"params": params}, tokens, method="embed").dtype == jnp.bfloat16


def test_rotary_angles_are_rounded_like_the_reference():
    """Cosines in the hidden dtype, bit for bit, at positions of a long video."""
    config = text_config(2, 1, (16, 24, 24))
    model = reference(config, 0).model.language_model
    positions = np.random.default_rng(7).integers(0, 5000, (2, 3, 64)).astype(np.int32)
    dummy = torch.zeros(1, dtype=torch.bfloat16)
    want = model.rotary_emb(dummy, torch.tensor(positions.swapaxes(0, 1), dtype=torch.long))
    for got, expected in zip(rotary(jnp.asarray(positions), config, jnp.bfloat16), want):
        half = expected.float().numpy()[..., : config.head_dim // 2]
        assert (np.asarray(got, np.float32) != half).mean() < 1e-3  # cosines of two libraries differ in the last bit


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"none", "full"}))
def test_remat_changes_no_gradient(policy):
    config = text_config()
    params = params_of(reference(config, 1), config)
    tokens, positions, mask = random_rows(8, config, rows=2)

    def loss(params, remat):
        logits = Decoder(config, remat=remat).apply({"params": params}, tokens, positions, mask)
        return jnp.sum(mask[..., None] * jax.nn.log_softmax(logits) ** 2)

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    for a, b in zip(jax.tree.leaves(grad(params, policy)), jax.tree.leaves(grad(params, "none"))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3 * float(jnp.abs(b).max()))


def test_unknown_remat_is_named():
    with pytest.raises(InputError, match="no policy named 'some'; there are none, full"):
        Decoder(text_config(), remat="some").init(jax.random.key(0), *map(jnp.asarray, random_rows(0, text_config())))
