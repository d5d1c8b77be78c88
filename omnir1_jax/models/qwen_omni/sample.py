"""Sampling of a group of completions for each prompt, in one compiled loop."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from omnir1_jax.errors import InputError
from omnir1_jax.models.lora import INPUT_AXES
from omnir1_jax.models.narrow import columns_together, kernels
from omnir1_jax.models.qwen_omni.cache import PromptCache, TailCache, empty_tail
from omnir1_jax.models.qwen_omni.decoder import DECODING, Decoder, last_real, unstack_layers
from omnir1_jax.parallel import constrain, one_cpu, shards

TAIL_PIECE = 32  # tokens of the suffixes that are read at a time
# On a CPU a loop over layers copies each one's weights and keys out of their stacks for every token. Up to this many
# layers are unrolled instead, each with its own copy, made once.
MAX_UNROLLED_LAYERS = 16


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Filters apply in the order temperature, top-k, top-p.

    Attributes:
      max_tokens: longest completion, the ending token included.
      eos: tokens that end a completion.
      pad: written after the end.
      temperature: 0 takes the most probable token.
      top_k: 0 for all.
      top_p: 1 for all.
    """

    max_tokens: int
    eos: tuple[int, ...]
    pad: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.max_tokens < 1:
            raise InputError(f"sampling.max_tokens: {self.max_tokens} is less than 1")
        if self.temperature < 0:
            raise InputError(f"sampling.temperature: {self.temperature} is negative; 0 means greedy")
        if self.top_k < 0:
            raise InputError(f"sampling.top_k: {self.top_k} is negative; 0 means all tokens")
        if not 0 < self.top_p <= 1:
            raise InputError(f"sampling.top_p: {self.top_p} is not above 0 and at most 1; 1 means all tokens")


class Suffixes(NamedTuple):
    """The beginning of each continuation, after the shared prompt and before the sampled tokens.

    Attributes:
      mask: True for real tokens; padding may stand anywhere, and a tail may be empty.
    """

    tokens: Int[Array, "b g n"]
    mask: Bool[Array, "b g n"]


class Completions(NamedTuple):
    """Sampled tokens.

    Attributes:
      tokens: padded after the end.
      lengths: tokens up to and with the ending one (all of them if none came).
      logprobs: log-probabilities of the sampled tokens under the model at the sampling temperature (at 1 if greedy),
        the whole vocabulary counted. Top-k and top-p are left out on purpose: a policy gradient needs the ratio of
        two models' probabilities, and this is the number that `score` gives for the same token. Zero after the end.
    """

    tokens: Int[Array, "b g c"]
    lengths: Int[Array, "b g"]
    logprobs: Float[Array, "b g c"]


def warp(logits: Float[Array, "*b v"], settings: Sampling) -> Float[Array, "*b v"]:
    """Logits of the distribution that is drawn from: temperature, then top-k, then top-p; -inf for what is removed.

    Top-k keeps all ties with the k-th. Top-p removes, from the least probable up, tokens whose running sum is at most
    1 - p, and never the most probable one; of equal tokens the last ones go first. Thresholds are found bit by bit,
    without sorting the vocabulary.
    """
    logits = logits / settings.temperature
    if 0 < settings.top_k < logits.shape[-1]:
        keys = _ordered(logits)
        kth = _highest(lambda key: jnp.sum(keys >= key[..., None], axis=-1) >= settings.top_k, keys.shape[:-1])
        logits = jnp.where(keys < kth[..., None], -jnp.inf, logits)
    if settings.top_p < 1:
        keys, probabilities, surplus = _ordered(logits), jax.nn.softmax(logits), 1 - settings.top_p
        below = lambda key: jnp.sum(jnp.where(keys < key[..., None], probabilities, 0.0), axis=-1)
        lowest = _highest(lambda key: below(key) <= surplus, keys.shape[:-1])
        lowest = jnp.minimum(lowest, jnp.max(keys, axis=-1))
        tied = keys == lowest[..., None]
        tied_probability = jnp.max(jnp.where(tied, probabilities, 0.0), axis=-1)
        kept = jnp.sum(tied, axis=-1) - jnp.floor((surplus - below(lowest)) / tied_probability).astype(jnp.int32)
        kept = jnp.maximum(kept, 1)
        # By bits too: a running sum would gather a sharded vocabulary.
        tokens = jax.lax.broadcasted_iota(jnp.uint32, keys.shape, keys.ndim - 1)
        before = lambda token: jnp.sum(tied & (tokens < token[..., None]), axis=-1)
        last = _highest(lambda token: before(token) < kept, kept.shape)
        removed = tied & (tokens > last[..., None])
        logits = jnp.where((keys < lowest[..., None]) | removed, -jnp.inf, logits)
    return logits


def _ordered(values: Float[Array, "*b v"]) -> UInt32[Array, "*b v"]:
    """Unsigned integers in the order of float32 values."""
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    top = jnp.uint32(1 << 31)
    return jnp.where(bits & top, ~bits, bits | top)


def _highest(holds: Callable[[Array], Array], shape: tuple[int, ...]) -> UInt32[Array, "*b"]:
    """The highest number for which `holds`, which is true up to some number and false beyond it."""

    def bit(i: Int[Array, ""], prefix: UInt32[Array, "*b"]) -> UInt32[Array, "*b"]:
        higher = prefix | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(holds(higher), higher, prefix)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros(shape, jnp.uint32))


def _gumbel(keys: Key[Array, "*b"], size: int) -> Float[Array, "*b size"]:
    return jnp.vectorize(lambda key: jax.random.gumbel(key, (size,)), signature="()->(v)")(keys)


def _gumbel_of(key: Key[Array, ""], token: Int[Array, ""]) -> Float[Array, ""]:
    """Noise that belongs to a token, so that rounding that changes the rank of two tokens does not swap theirs."""
    return jax.random.gumbel(jax.random.fold_in(key, token))


def _best(logits: Float[Array, "*b v"], k: int) -> tuple[Float[Array, "*b k"], Int[Array, "*b k"]]:
    """`jax.lax.top_k`. Where the vocabulary is sharded, first each shard's best, so that no logits are gathered."""
    rows, size = logits.shape[:-1], logits.shape[-1]
    parts = shards("vocab", size, DECODING)
    if parts == 1:
        return tuple(jax.lax.top_k(logits, k))
    names = ("rows", *(None,) * (len(rows) - 1))
    pieces = constrain(logits.reshape(*rows, parts, size // parts), (*names, "vocab", None), DECODING)
    values, tokens = jax.lax.top_k(pieces, min(k, size // parts))
    tokens = tokens + size // parts * jnp.arange(parts)[:, None]
    values, tokens = (constrain(x.reshape(*rows, -1), (*names, None), DECODING) for x in (values, tokens))
    values, index = jax.lax.top_k(values, k)
    return values, jnp.take_along_axis(tokens, index, axis=-1)


def _draw_of_all(keys: Key[Array, "*b"], logits: Float[Array, "*b v"], settings: Sampling) -> Int[Array, "*b"]:
    return jnp.argmax(warp(logits, settings) + _gumbel(keys, logits.shape[-1]), axis=-1).astype(jnp.int32)


def _draw_of_best(keys: Key[Array, "*b"], logits: Float[Array, "*b v"], settings: Sampling) -> Int[Array, "*b"]:
    """The distribution of `_draw_of_all` with noise for the k best alone; rows with ties beyond k draw from all."""
    k = settings.top_k
    values, tokens = _best(logits, k)
    kth = jnp.min(values, axis=-1, keepdims=True)  # of values[..., -1:] XLA would make a full sort
    ties = jnp.sum(logits >= kth, axis=-1) > k
    values = values / settings.temperature
    # Sums from the least probable up, as in `warp`; top_k gives the order, of equal tokens the first one first.
    running = jnp.cumsum(jax.nn.softmax(values)[..., ::-1], axis=-1)[..., ::-1]
    removed = (running <= 1 - settings.top_p).at[..., 0].set(False)
    noise = jnp.vectorize(_gumbel_of)(keys[..., None], tokens)
    best = jnp.argmax(jnp.where(removed, -jnp.inf, values) + noise, axis=-1)
    drawn = jnp.take_along_axis(tokens, best[..., None], axis=-1)[..., 0]
    with jax.named_scope("ties"):
        drawn_or_tied = lambda: jnp.where(ties, _draw_of_all(keys, logits, settings), drawn)
        return jax.lax.cond(jnp.any(ties), drawn_or_tied, lambda: drawn)


def draw(
    keys: Key[Array, "*b"], logits: Float[Array, "*b v"], settings: Sampling
) -> tuple[Int[Array, "*b"], Float[Array, "*b"]]:
    """One token for each row from its own key, and its log-probability as in `Completions`."""
    if settings.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        few = 0 < settings.top_k < logits.shape[-1]
        tokens = (_draw_of_best if few else _draw_of_all)(keys, logits, settings)
        logits = logits / settings.temperature
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)


def _read_suffixes(
    apply: Callable, prompt: PromptCache, suffixes: Suffixes, tail: TailCache, last: Float[Array, "b g e"]
) -> tuple[TailCache, Float[Array, "b g e"]]:
    """Extends an empty tail by the suffixes' tokens, a piece at a time up to the last real one. Also the last hidden
    state of each."""
    spare = -suffixes.tokens.shape[2] % TAIL_PIECE
    tokens, mask = (jnp.pad(x, ((0, 0), (0, 0), (0, spare))) for x in suffixes)
    end = jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[2] + 1), 0))

    def read(state):
        tail, last = state
        piece = lambda x: jax.lax.dynamic_slice_in_dim(x, tail.used, TAIL_PIECE, axis=2)
        embeddings, real = apply(piece(tokens), method="embed"), piece(mask)
        hidden, tail = apply(embeddings, real, prompt, tail, method="extend")
        return tail, jnp.where(real.any(-1, keepdims=True), last_real(hidden, real), last)

    with jax.named_scope("suffixes"):
        return jax.lax.while_loop(lambda state: state[0].used < end, read, (tail, last))


def generate(
    decoder: Decoder,
    variables: Mapping[str, Any],
    prompt: PromptCache,
    key: Key[Array, ""],
    settings: Sampling,
    *,
    group: int | None = None,
    suffixes: Suffixes | None = None,
    row_ids: Int[Array, " b"] | None = None,
    active: Bool[Array, "b g"] | None = None,
) -> Completions:
    """Continues each prompt `group` times, or as often as it has `suffixes`. Stops as soon as all have ended.

    Args:
      variables: {"params": ...} and, for an adapted model, {"lora": ...}.
      prompt: from `Decoder.prefill`; it is read in place and never repeated.
      row_ids: numbers that stand for the prompts in the random keys (default: row in the batch). What is drawn for
        a prompt depends on `key`, its number and the continuation's, not on the rest of the batch.
      active: continuations to sample; the others have length 0 and do not prolong the loop.
    """
    if (group is None) == (suffixes is None):
        raise InputError("generate: give either group or suffixes")
    unrolled = one_cpu() and 1 < decoder.config.num_layers <= MAX_UNROLLED_LAYERS
    if unrolled:
        variables, prompt = unstack_layers(variables, prompt)
        variables = columns_together(variables, INPUT_AXES)

    def apply(*operands: Any, method: str) -> Any:
        return decoder.apply(kernels(variables), *operands, method=method)

    rows, length = prompt.mask.shape[0], settings.max_tokens
    group = group if suffixes is None else suffixes.tokens.shape[1]
    row_ids = jnp.arange(rows) if row_ids is None else row_ids
    fold = jnp.vectorize(jax.random.fold_in)
    keys = fold(fold(key, row_ids[:, None]), jnp.arange(group))

    suffix_slots = 0 if suffixes is None else -(-suffixes.tokens.shape[2] // TAIL_PIECE) * TAIL_PIECE
    slots = max(suffix_slots + length - 1, 1)
    tail = empty_tail(decoder.config, rows, group, slots, decoder.dtype, unrolled)
    last = jnp.broadcast_to(prompt.last[:, None], (rows, group, prompt.last.shape[-1]))
    if suffixes is not None:
        tail, last = _read_suffixes(apply, prompt, suffixes, tail, last)

    def write(i, logits, done, out: Completions) -> tuple[Array, Completions]:
        tokens, logprobs = draw(fold(keys, i), logits, settings)
        tokens, logprobs = jnp.where(done, settings.pad, tokens), jnp.where(done, 0.0, logprobs)
        out = Completions(
            tokens=jax.lax.dynamic_update_index_in_dim(out.tokens, tokens, i, axis=2),
            lengths=out.lengths + ~done,
            logprobs=jax.lax.dynamic_update_index_in_dim(out.logprobs, logprobs, i, axis=2),
        )
        return done | jnp.isin(tokens, jnp.asarray(settings.eos, jnp.int32)), out

    def more(state):
        i, done, _, _ = state
        return (i < length) & ~done.all()

    def body(state):
        i, done, tail, out = state
        tokens = jax.lax.dynamic_index_in_dim(out.tokens, i - 1, axis=2, keepdims=False)
        logits, tail = apply(tokens, ~done, prompt, tail, method="step")
        done, out = write(i, logits, done, out)
        return i + 1, done, tail, out

    empty = Completions(
        tokens=jnp.full((rows, group, length), settings.pad, jnp.int32),
        lengths=jnp.zeros((rows, group), jnp.int32),
        logprobs=jnp.zeros((rows, group, length), jnp.float32),
    )
    done = jnp.zeros((rows, group), bool) if active is None else ~active
    done, out = write(0, apply(last, method="logits"), done, empty)
    with jax.named_scope("decode"):
        return jax.lax.while_loop(more, body, (jnp.asarray(1), done, tail, out))[-1]
