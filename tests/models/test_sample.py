"""Sampling against transformers' generate and warpers, and against the scorer."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from omnir1_jax.errors import InputError
from omnir1_jax.models import narrow
from omnir1_jax.models.qwen_omni.cache import Prompt
from omnir1_jax.models.qwen_omni.decoder import Decoder
from omnir1_jax.models.qwen_omni.sample import Sampling, Suffixes, draw, generate, warp
from omnir1_jax.models.qwen_omni.score import score
from tests.models.text_oracle import params_of, reference, text_config, text_positions

CONFIGS = {
    "4 heads on 2": text_config(),
    "6 on 1, tied": text_config(6, 1, (1, 2, 1), tied=True),
    "3 on 3": text_config(3, 3, (4, 1, 3), layers=3),
    "2 on 1, real sections": text_config(2, 1, (16, 24, 24)),
}


def prompt_rows(config, rows=3, length=11, seed=0):
    """Plain text: padded left, padded right, whole."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, config.vocab_size - 10, (rows, length)).astype(np.int32)
    mask = np.ones((rows, length), bool)
    mask[0, :3] = False
    if rows > 1:
        mask[1, -4:] = False
    return tokens, mask


@functools.partial(jax.jit, static_argnames=("decoder", "settings", "group"))
def run(
    decoder,
    params,
    tokens,
    mask,
    positions,
    next_position,
    key,
    settings,
    group=None,
    suffixes=None,
    row_ids=None,
    active=None,
):
    variables = {"params": params}
    rows = Prompt(decoder.apply(variables, tokens, method="embed"), positions, mask, next_position)
    prompt = decoder.apply(variables, rows, method="prefill")
    rest = dict(group=group, suffixes=suffixes, row_ids=row_ids, active=active)
    return generate(decoder, variables, prompt, key, settings, **rest)


def run_text(config, params, tokens, mask, settings, key=0, **kwargs):
    positions, next_position = text_positions(mask)
    arrays = map(jnp.asarray, (tokens, mask, positions, next_position))
    return run(Decoder(config), params, *arrays, jax.random.key(key), settings, **kwargs)


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_equals_transformers_for_32_tokens(name):
    config = CONFIGS[name]
    model = reference(config, seed=7)
    tokens, mask = prompt_rows(config)
    got = run_text(config, params_of(model, config), tokens, mask, Sampling(32, (), 0, temperature=0.0), group=2)
    for row in range(3):
        ids = torch.tensor(tokens[row][mask[row]][None], dtype=torch.long)
        with torch.no_grad():
            want = model.generate(input_ids=ids, max_new_tokens=32, do_sample=False, eos_token_id=-1)[0, ids.shape[1] :]
        for continuation in range(2):
            np.testing.assert_array_equal(got.tokens[row, continuation], want)
    assert (np.asarray(got.lengths) == 32).all()


@pytest.fixture(scope="module")
def small():
    config = text_config()
    return config, params_of(reference(config, seed=11), config)


def test_after_the_end(small):
    """Tokens up to the ending one as without it; padding, zero log-probs and no more steps after."""
    config, params = small
    tokens, mask = prompt_rows(config)
    free = run_text(config, params, tokens, mask, Sampling(12, (), 0, temperature=0.0), group=1)
    ending = tuple(int(t) for t in free.tokens[:, 0, 4])  # every row ends at its fifth token at the latest
    steps = []

    class Counted(Decoder):
        def step(self, *args):
            jax.debug.callback(lambda: steps.append(1))
            return super().step(*args)

    positions, next_position = text_positions(mask)
    arrays = map(jnp.asarray, (tokens, mask, positions, next_position))
    stop = Sampling(12, ending, 99, temperature=0.0)
    got = run(Counted(config), params, *arrays, jax.random.key(0), stop, group=1)
    jax.effects_barrier()
    for row in range(3):
        sequence = np.asarray(free.tokens[row, 0])
        length = int(np.flatnonzero(np.isin(sequence, ending))[0]) + 1
        assert got.lengths[row, 0] == length
        np.testing.assert_array_equal(got.tokens[row, 0], [*sequence[:length], *[99] * (12 - length)])
        np.testing.assert_allclose(got.logprobs[row, 0, :length], free.logprobs[row, 0, :length], atol=1e-6)
        assert not np.asarray(got.logprobs[row, 0, length:]).any()
    assert len(steps) == int(got.lengths.max()) - 1 < 11


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 64]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    ties=st.booleans(),
)
def test_warp_equals_transformers(seed, temperature, top_k, top_p, ties):
    logits = np.random.default_rng(seed).normal(size=(64, 40)).astype(np.float32) * 3
    if ties and top_p == 1.0:  # with top-p, which of two equal tokens goes is up to the sort
        logits = np.round(logits)
    want = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
    if top_k:
        want = TopKLogitsWarper(top_k)(None, want)
    if top_p < 1:
        want = TopPLogitsWarper(top_p)(None, want)
    got = warp(jnp.asarray(logits), Sampling(1, (), 0, temperature, top_k, top_p))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(want.numpy()))
    kept = ~np.isinf(want.numpy())
    np.testing.assert_allclose(np.asarray(got)[kept], want.numpy()[kept], rtol=1e-6)


@pytest.mark.parametrize(
    "temperature, top_k, top_p, ties",
    [
        (0.8, 9, 0.9, False), (0.8, 9, 0.9, True), (1.0, 5, 1.0, True),
        (1.7, 0, 0.7, True), (0.5, 20, 0.3, False), (1.0, 3, 0.95, True),
    ],
)  # fmt: skip
def test_draws_follow_the_distribution_of_transformers(temperature, top_k, top_p, ties):
    """Chi-square of 250,000 draws over the tokens, equal logits together: which of them goes is up to a sort."""
    logits = np.random.default_rng(1).normal(size=24).astype(np.float32) * 1.5
    logits = np.round(logits) if ties else logits
    how = Sampling(1, (), 0, temperature, top_k, top_p)
    keys = jax.random.split(jax.random.key(2), 250_000)
    tokens, logprobs = jax.jit(jax.vmap(lambda key: draw(key, jnp.asarray(logits), how)))(keys)
    want = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits)[None])
    want = TopKLogitsWarper(top_k)(None, want) if top_k else want
    want = TopPLogitsWarper(top_p)(None, want) if top_p < 1 else want
    values, group = np.unique(logits, return_inverse=True)
    expected = np.bincount(group, torch.softmax(want.double(), -1)[0].numpy(), len(values)) * len(keys)
    drawn = np.bincount(group[np.asarray(tokens)], minlength=len(values))
    assert not drawn[expected == 0].any() and (expected == 0).any()
    if (expected > 0).sum() > 1:
        assert stats.chisquare(drawn[expected > 0], expected[expected > 0]).pvalue > 1e-3
    # The log-probability is that of the model at the temperature, nothing filtered.
    whole = np.asarray(jax.nn.log_softmax(logits / temperature))
    np.testing.assert_allclose(logprobs, whole[tokens], atol=1e-6)


def test_a_tie_with_the_last_of_the_best_changes_no_other_row():
    """Rows with more ties than k draw from all their tokens; the others draw as without such a row beside them."""
    how = Sampling(1, (), 0, top_k=4)
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(5, 30)).astype(np.float32))
    keys = jax.random.split(jax.random.key(1), 5)
    alone, _ = draw(keys, logits, how)
    beside, _ = draw(keys, logits.at[2].set(0.0), how)
    np.testing.assert_array_equal(np.delete(alone, 2), np.delete(beside, 2))


def test_no_program_of_sampling_sorts_the_vocabulary():
    logits, keys = jnp.zeros((4, 512)), jax.random.split(jax.random.key(0), 4)
    for top_k in (0, 50):
        how = Sampling(1, (), 0, top_k=top_k, top_p=0.9)
        program = jax.jit(lambda keys, logits, how=how: draw(keys, logits, how)).lower(keys, logits).compile().as_text()
        assert " sort(" not in program


@pytest.mark.parametrize("how", [Sampling(10, (5, 17, 40, 63), 0), Sampling(10, (5, 17), 0, 0.7, 30, 0.9)])
def test_logprobs_equal_the_scorers(small, how):
    config, params = small
    tokens, mask = prompt_rows(config, length=14, seed=3)
    out = run_text(config, params, tokens, mask, how, key=4, group=4)
    positions, next_position = text_positions(mask)
    decoder, variables = Decoder(config), {"params": params}

    @jax.jit
    def rescore(tokens, mask, positions, next_position, out):
        rows = Prompt(decoder.apply(variables, tokens, method="embed"), positions, mask, next_position)
        return score(decoder, variables, rows, out.tokens, out.lengths, temperature=how.temperature)

    scores = rescore(*map(jnp.asarray, (tokens, mask, positions, next_position)), out)
    np.testing.assert_allclose(out.logprobs, scores.logprobs, atol=1e-4)
    assert len(np.unique(np.asarray(out.tokens).reshape(-1, 10), axis=0)) == 12  # all differ


def test_large_kernels_are_multiplied_in_the_order_of_their_columns(small, monkeypatch):
    """The same draws; every linear layer of a token's step reads kernels of which columns lie together."""
    config, params = small
    tokens, mask = prompt_rows(config)
    arrays = tuple(map(jnp.asarray, (tokens, mask, *text_positions(mask))))
    how = Sampling(8, (), 0)
    want = run(Decoder(config), params, *arrays, jax.random.key(1), how, group=4)
    monkeypatch.setattr(narrow, "LARGE", 1)
    sample = jax.jit(lambda *given: run.__wrapped__(Decoder(config), *given, how, group=4))
    compiled = sample.lower(params, *arrays, jax.random.key(1)).compile()
    got = compiled(params, *arrays, jax.random.key(1))
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)
    for name in (*(f"Block/{layer}" for layer in ("q", "k", "v", "o", "gate", "up", "down")), "Decoder.logits"):
        product = rf" dot\(.*rhs_contracting_dims={{(\d)}}.*decode/.*{name}/dot_general"
        products = re.findall(product, compiled.as_text())
        assert len(products) >= 1 and set(products) == {"1"}


def test_draws_do_not_depend_on_the_batch(small):
    """The same key and row number: the same completion, whatever other rows, padding and group."""
    config, params = small
    tokens, mask = prompt_rows(config)
    how = Sampling(8, (5,), 0)
    ids = jnp.asarray([4, 9, 2])
    batch = run_text(config, params, tokens, mask, how, key=5, group=3, row_ids=ids)
    order = np.array([2, 0])
    moved = run_text(config, params, tokens[order], mask[order], how, key=5, group=2, row_ids=ids[order])
    np.testing.assert_array_equal(moved.tokens, batch.tokens[order][:, :2])
    other = run_text(config, params, tokens, mask, how, key=6, group=3, row_ids=ids)
    assert (other.tokens != batch.tokens).any()
    again = run_text(config, params, tokens, mask, how, key=5, group=3, row_ids=ids)
    np.testing.assert_array_equal(again.tokens, batch.tokens)


def test_suffixes_continue_the_prompt(small):
    """A shared prompt with three different suffixes, padded here and there or empty: as if each were a prompt."""
    config, params = small
    tokens, mask = prompt_rows(config, rows=2)
    rng = np.random.default_rng(8)
    own = rng.integers(3, 100, (2, 3, 5)).astype(np.int32)
    real = np.ones((2, 3, 5), bool)
    real[0, 0, 2:], real[0, 1, :3], real[1, 2] = False, False, False
    greedy = Sampling(9, (), 0, temperature=0.0)
    got = run_text(config, params, tokens, mask, greedy, suffixes=Suffixes(jnp.asarray(own), jnp.asarray(real)))
    whole = np.concatenate([np.repeat(tokens[:, None], 3, 1), own], 2).reshape(6, -1)
    whole_mask = np.concatenate([np.repeat(mask[:, None], 3, 1), real], 2).reshape(6, -1)
    want = run_text(config, params, whole, whole_mask, greedy, group=1)
    np.testing.assert_array_equal(got.tokens, want.tokens.reshape(2, 3, 9))
    np.testing.assert_allclose(got.logprobs, want.logprobs.reshape(2, 3, 9), atol=1e-5)


def test_prompt_cache_is_not_repeated_for_the_group():
    """From 2 to 16 continuations of a long prompt, memory grows by far less than one more copy of its cache."""
    config = text_config(vocab=32, layers=4)
    decoder, length = Decoder(config), 4096
    shape = functools.partial(jax.ShapeDtypeStruct)
    params = jax.eval_shape(
        lambda key: decoder.init(key, jnp.zeros((1, 1), int), jnp.zeros((1, 3, 1), int), jnp.ones((1, 1), bool)),
        jax.random.key(0),
    )["params"]
    cache = jax.eval_shape(
        lambda params, e, p, m, n: decoder.apply({"params": params}, Prompt(e, p, m, n), method="prefill"),
        params,
        shape((1, length, config.hidden_size), jnp.float32),
        shape((1, 3, length), jnp.int32),
        shape((1, length), bool),
        shape((1,), jnp.int32),
    )

    def memory(group):
        def decode(params, cache, key):
            return generate(decoder, {"params": params}, cache, key, Sampling(4, (), 0), group=group)

        key = jax.eval_shape(jax.random.key, 0)
        return jax.jit(decode).lower(params, cache, key).compile().memory_analysis().temp_size_in_bytes

    one_layer = (cache.keys.size + cache.values.size) * 4 // config.num_layers
    grown = memory(16) - memory(2)
    scores = 14 * config.num_heads * length * 4  # of the fourteen additional continuations, one layer at a time
    assert grown < one_layer + 3 * scores


def test_settings_are_checked():
    for field, value, message in [
        ("max_tokens", 0, "less than 1"),
        ("temperature", -1.0, "negative"),
        ("top_k", -1, "negative"),
        ("top_p", 0.0, "above 0"),
        ("top_p", 1.5, "at most 1"),
    ]:
        with pytest.raises(InputError, match=f"sampling.{field}: .*{message}"):
            Sampling(**{"max_tokens": 1, "eos": (), "pad": 0, field: value})


def test_one_token_only(small):
    config, params = small
    tokens, mask = prompt_rows(config)
    one = run_text(config, params, tokens, mask, Sampling(1, (), 0, temperature=0.0), group=1)
    more = run_text(config, params, tokens, mask, Sampling(12, (), 0, temperature=0.0), group=1)
    np.testing.assert_array_equal(one.tokens, more.tokens[..., :1])


def test_unwanted_continuations_are_empty_and_change_nothing(small):
    config, params = small
    tokens, mask = prompt_rows(config)
    settings = Sampling(8, (), 0)
    wanted = jnp.array([[True, False], [False, False], [True, True]])
    every = run_text(config, params, tokens, mask, settings, group=2)
    some = run_text(config, params, tokens, mask, settings, group=2, active=wanted)
    assert some.lengths.tolist() == [[8, 0], [0, 0], [8, 8]]
    np.testing.assert_array_equal(some.tokens, np.where(wanted[..., None], every.tokens, 0))
