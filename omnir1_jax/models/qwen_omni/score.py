"""Log-probabilities of given completions: prompt and completions in one packed row, the vocabulary in pieces."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from omnir1_jax.models.attention import Mask, Tree
from omnir1_jax.models.qwen_omni.cache import Prompt
from omnir1_jax.models.qwen_omni.decoder import DECODING, Decoder, Matrix, last_real, logits_of
from omnir1_jax.parallel import constrain


class Scores(NamedTuple):
    """Per token; zero after the end of a completion.

    Attributes:
      logprobs: at the temperature asked for.
      entropy: of the distribution of which the token is one, in nats; None unless asked for.
      best: whether no token is more probable; False after the end.
    """

    logprobs: Float[Array, "b g c"]
    entropy: Float[Array, "b g c"] | None
    best: Bool[Array, "b g c"]


def score(
    decoder: Decoder,
    variables: Mapping[str, Any],
    prompt: Prompt,
    tokens: Int[Array, "b g c"],
    lengths: Int[Array, "b g"],
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int = 256,
) -> Scores:
    """Scores g completions of each prompt on `p + g * c` tokens instead of `g * (p + c)`; differentiable.

    The prompt is read once: a tree mask keeps the completions apart, and the positions of each continue from the
    prompt's. Token 0 of every completion is predicted by the prompt's last real token.

    Args:
      variables: {"params": ...} and, for an adapted model, {"lora": ...}.
      lengths: real tokens of each completion.
      temperature: divides the logits.
      chunk: tokens of a row whose logits exist at a time, in the backward pass too; 0: all.
    """
    b, g, c = tokens.shape
    p = prompt.mask.shape[1]
    real = jnp.arange(c) < lengths[..., None]
    completion_embeddings = decoder.apply(variables, tokens, method="embed").reshape(b, g * c, -1)
    positions = prompt.next_position[:, None, None] + jnp.tile(jnp.arange(c), g)
    hidden = decoder.apply(
        variables,
        jnp.concatenate([prompt.embeddings.astype(completion_embeddings.dtype), completion_embeddings], axis=1),
        jnp.concatenate([prompt.positions, jnp.broadcast_to(positions, (b, 3, g * c))], axis=2),
        Mask(keys=jnp.concatenate([prompt.mask, real.reshape(b, g * c)], axis=1), tree=Tree(p, g, c)),
        method="packed",
    )
    last = last_real(hidden[:, :p], prompt.mask)
    first = jnp.broadcast_to(last[:, None, None], (b, g, 1, last.shape[-1]))
    predictors = jnp.concatenate([first, hidden[:, p:].reshape(b, g, c, -1)[:, :, :-1]], axis=2)
    logprobs, entropies, best = token_logprobs(
        predictors.reshape(b, g * c, -1),
        decoder.apply(variables, method="head"),
        tokens.reshape(b, g * c),
        temperature=temperature,
        chunk=chunk,
        dtype=decoder.dtype,
    )
    logprobs = jnp.where(real, logprobs.reshape(b, g, c), 0.0)
    entropies = jnp.where(real, entropies.reshape(b, g, c), 0.0) if entropy else None
    return Scores(logprobs, entropies, real & best.reshape(b, g, c))


def token_logprobs(
    hidden: Float[Array, "b n d"],
    head: Matrix,
    targets: Int[Array, "b n"],
    *,
    temperature: float,
    chunk: int,
    dtype: DTypeLike,
) -> tuple[Float[Array, "b n"], Float[Array, "b n"], Bool[Array, "b n"]]:
    """Log-probability of each target, entropy of its distribution, whether it is the most probable token.

    From `chunk` tokens' logits at a time; 0: of all.

    Over a mesh the vocabulary is sharded, as for decoding: each device scores all tokens on its shard, so that
    a piece moves hidden states and not the head or its gradient. The head is cast inside a piece, so that its gradient
    adds up in its own dtype.
    """
    head = head._replace(values=constrain(head.values, (None, "vocab"), DECODING))
    b, n = targets.shape
    count = -(-n // min(chunk or n, n))
    size = -(-n // count)
    hidden = jnp.pad(hidden, ((0, 0), (0, count * size - n), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, count * size - n)))

    @jax.checkpoint
    def piece(parts):
        hidden, targets = parts
        hidden = constrain(hidden.astype(dtype), ("rows", None, None), DECODING)
        logits = logits_of(hidden, head, dtype) / temperature
        logits = constrain(logits, ("rows", None, "vocab"), DECODING)
        total = jax.nn.logsumexp(logits, axis=-1)
        # A sum over one token: local on a sharded vocabulary, and its gradient needs no scatter.
        chosen = jnp.sum(jnp.where(jnp.arange(head.values.shape[1]) == targets[..., None], logits, 0.0), axis=-1)
        log_probs = logits - total[..., None]
        return chosen - total, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1), chosen >= jnp.max(logits, axis=-1)

    def split(x):
        return jnp.moveaxis(x.reshape(b, count, size, *x.shape[2:]), 1, 0)

    pieces = jax.lax.map(piece, (split(hidden), split(targets)))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(b, count * size)[:, :n] for x in pieces)
