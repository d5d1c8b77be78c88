"""The packed scorer against one forward pass for each completion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnir1_jax.models.qwen_omni.cache import Prompt
from omnir1_jax.models.qwen_omni.decoder import Decoder, Matrix
from omnir1_jax.models.qwen_omni.score import score, token_logprobs
from tests.models.text_oracle import params_of, reference, relative, text_config

B, P, G, C = 2, 13, 3, 7


@pytest.fixture(scope="module", params=["4 heads on 2", "6 on 1, tied"])
def case(request):
    config = text_config() if "4" in request.param else text_config(6, 1, (1, 2, 1), tied=True)
    rng = np.random.default_rng(1)
    mask = np.ones((B, P), bool)
    mask[0, :4], mask[1, -2:] = False, False
    positions = np.cumsum(rng.integers(0, 5, (B, 3, P)), axis=-1)
    batch = dict(
        embeddings=rng.normal(size=(B, P, config.hidden_size)).astype(np.float32),
        positions=positions.astype(np.int32),
        mask=mask,
        next_position=(positions.max((1, 2)) + 1).astype(np.int32),
        tokens=rng.integers(0, config.vocab_size, (B, G, C)).astype(np.int32),
        lengths=np.array([[7, 1, 4], [5, 7, 0]], np.int32),
        weights=rng.normal(size=(B, G, C)).astype(np.float32),
    )
    return config, params_of(reference(config, seed=2), config), jax.tree.map(jnp.asarray, batch)


def packed(decoder, params, embeddings, batch, chunk, temperature):
    rows = Prompt(embeddings, batch["positions"], batch["mask"], batch["next_position"])
    tokens, lengths = batch["tokens"], batch["lengths"]
    return score(decoder, {"params": params}, rows, tokens, lengths, temperature=temperature, entropy=True, chunk=chunk)


def separate(decoder, params, embeddings, batch, temperature):
    """G forward passes over prompt + completion, all logits at once."""
    real = jnp.arange(C) < batch["lengths"][..., None]
    logprobs, entropies = [], []
    for g in range(G):
        own = decoder.apply({"params": params}, batch["tokens"][:, g], method="embed")
        steps = jnp.broadcast_to((batch["next_position"][:, None] + jnp.arange(C))[:, None], (B, 3, C))
        hidden = decoder.apply(
            {"params": params},
            jnp.concatenate([embeddings, own], 1),
            jnp.concatenate([batch["positions"], steps], 2),
            jnp.concatenate([batch["mask"], real[:, g]], 1),
            method="hidden",
        )
        last = jnp.stack([hidden[r, int(np.flatnonzero(np.asarray(batch["mask"])[r])[-1])] for r in range(B)])
        hidden = jnp.concatenate([last[:, None], hidden[:, P:-1]], 1)
        logits = jax.nn.log_softmax(decoder.apply({"params": params}, hidden, method="logits") / temperature)
        logprobs.append(jnp.take_along_axis(logits, batch["tokens"][:, g][..., None], 2)[..., 0])
        entropies.append(-jnp.sum(jnp.exp(logits) * logits, -1))
    return jnp.where(real, jnp.stack(logprobs, 1), 0), jnp.where(real, jnp.stack(entropies, 1), 0)


def test_equals_separate_passes(case):
    config, params, batch = case
    chunk, temperature = (256, 0.6) if config.tie_word_embeddings else (4, 1.0)
    decoder = Decoder(config, remat="full")

    def packed_loss(params, embeddings):
        scores = packed(decoder, params, embeddings, batch, chunk, temperature)
        return jnp.sum(scores.logprobs * batch["weights"]) + jnp.sum(scores.entropy * batch["weights"] ** 2), scores

    def separate_loss(params, embeddings):
        logprobs, entropies = separate(decoder, params, embeddings, batch, temperature)
        return jnp.sum(logprobs * batch["weights"]) + jnp.sum(entropies * batch["weights"] ** 2), (logprobs, entropies)

    (_, got), got_grads = jax.jit(jax.value_and_grad(packed_loss, (0, 1), has_aux=True))(params, batch["embeddings"])
    (_, want), grads = jax.jit(jax.value_and_grad(separate_loss, (0, 1), has_aux=True))(params, batch["embeddings"])
    np.testing.assert_allclose(got.logprobs, want[0], atol=1e-5, rtol=1e-6)
    np.testing.assert_allclose(got.entropy, want[1], atol=1e-5, rtol=1e-6)
    errors = jax.tree.map(relative, got_grads, grads)
    assert max(jax.tree.leaves(errors)) < 1e-5, errors
    assert not np.asarray(got.logprobs)[1, 2].any()  # an empty completion


def intermediates(jaxpr):
    """Shapes of all values of a program, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (v.aval for v in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, jax.extend.core.ClosedJaxpr)):
            if isinstance(inner, jax.extend.core.ClosedJaxpr):
                yield from intermediates(inner.jaxpr)
            elif isinstance(inner, jax.extend.core.Jaxpr):
                yield from intermediates(inner)


def test_logits_of_all_tokens_never_exist():
    """Forward and backward: nothing as large as half of [tokens, vocabulary], and a piece of it does appear."""
    n, d, vocab, chunk = 96, 8, 4000, 16
    rng = np.random.default_rng(4)
    hidden = jnp.asarray(rng.normal(size=(2, n, d)).astype(np.float32))
    head = jnp.asarray(rng.normal(size=(d, vocab)).astype(np.float32))
    targets = jnp.asarray(rng.integers(0, vocab, (2, n)))

    def loss(hidden, head):
        pieces = token_logprobs(hidden, Matrix(head, None), targets, temperature=1.0, chunk=chunk, dtype=jnp.float32)
        return sum(jnp.sum(x) for x in pieces)

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, head)
    sizes = [aval.size for aval in intermediates(jaxpr.jaxpr) if hasattr(aval, "size")]
    assert 2 * chunk * vocab <= max(sizes) < 2 * n * vocab // 2
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, head).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * n * vocab * 4
