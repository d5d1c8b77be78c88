"""The language model of the thinker: one stack of blocks, run over whole sequences or over cached ones."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from omnir1_jax.models.attention import Mask, attend, attend_shared
from omnir1_jax.models.layers import Linear, RMSNorm
from omnir1_jax.models.narrow import product
from omnir1_jax.models.quantise import SCALES
from omnir1_jax.models.qwen_omni.cache import Prompt, PromptCache, Stack, TailCache
from omnir1_jax.models.qwen_omni.config import TextConfig
from omnir1_jax.models.qwen_omni.rope import Rotary, rotary, rotate
from omnir1_jax.models.remat import ATTENTION_OUTPUT, remat
from omnir1_jax.parallel import DECODING_RULES, DEFAULT_RULES, constrain

DECODING = (*DEFAULT_RULES, *DECODING_RULES)


@flax.struct.dataclass
class Sequence:
    """A block's tokens are the full sequence and attend to one another. `keep` returns keys and values for a cache."""

    mask: Mask
    keep: bool = flax.struct.field(pytree_node=False, default=False)


@flax.struct.dataclass
class Continuation:
    """A block's tokens continue a cached prompt: they attend to it and to their tail, written from `slot` on."""

    prompt_mask: Bool[Array, "b p"]
    tail_mask: Bool[Array, "b g n c"]
    slot: Int[Array, ""]


class Block(nn.Module):
    """Attention and feed-forward, each on its normalised input and added to the stream."""

    config: TextConfig
    dtype: DTypeLike
    attention: str

    @nn.compact
    def __call__(self, carry, layer, angles: Rotary, view: Sequence | Continuation):
        """One layer.

        Args:
          carry: the stream [..., tokens, d] and, in a `Continuation`, a stack of the tail.
          layer: in a `Continuation` this layer's index in the stack, None where that is its own, and the prompt's keys
            and values; else None.
        """
        x, tail = carry
        c = self.config
        full_sequence = isinstance(view, Sequence)
        stream = ("batch" if full_sequence else "rows", *(None,) * (x.ndim - 1))
        x = constrain(x, stream)
        y = RMSNorm(c.hidden_size, c.rms_norm_eps, self.dtype, name="attention_norm")(x)

        def like_weights(t, axis: str):
            """Shards a continuation's `t` like weights in the decoding layout: activations move and weights do not."""
            return t if full_sequence else constrain(t, ("rows", *(None,) * (t.ndim - 3), axis, "head_dim"), DECODING)

        def heads(name: str, count: int, axis: str):
            shapes = (c.hidden_size,), (count, c.head_dim), ("embed",), (axis, "head_dim")
            t = like_weights(Linear(*shapes, use_bias=True, dtype=self.dtype, name=name)(y), axis)
            # Attention is local to a prompt and its heads, whatever the layout of the weights.
            return constrain(t, ("batch", *(None,) * (t.ndim - 3), axis, None))

        q, k = rotate(heads("q", c.num_heads, "heads"), angles), rotate(heads("k", c.num_kv_heads, "kv_heads"), angles)
        v = heads("v", c.num_kv_heads, "kv_heads")
        cache_entries = None
        if isinstance(view, Sequence):
            y = attend(q, k, v, mask=view.mask, implementation=self.attention)
            if view.keep:
                cache_entries = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        else:
            index, prompt_k, prompt_v = layer
            new = Stack(*(jnp.swapaxes(t, 2, 3) for t in (k, v)))
            update = jax.lax.dynamic_update_slice
            if index is None:
                keys, values = (t.reshape(-1, *t.shape[3:]) for t in new)
                keys = update(tail.keys, jnp.swapaxes(keys, 1, 2), (0, 0, view.slot))
                layer_tail = tail = Stack(keys, update(tail.values, values, (0, view.slot, 0)))
            else:
                tail = Stack(*(update(old, t[None], (index, 0, 0, 0, view.slot, 0)) for old, t in zip(tail, new)))
                layer_tail = Stack(*(jax.lax.dynamic_index_in_dim(t, index, keepdims=False) for t in tail))
            y = attend_shared(q, prompt_k, prompt_v, view.prompt_mask, *layer_tail, view.tail_mask)
        y = checkpoint_name(y, ATTENTION_OUTPUT)
        shapes = (c.num_heads, c.head_dim), (c.hidden_size,), ("heads", "head_dim"), ("embed",)
        x = constrain(x + Linear(*shapes, dtype=self.dtype, name="o")(like_weights(y, "heads")), stream)

        y = RMSNorm(c.hidden_size, c.rms_norm_eps, self.dtype, name="mlp_norm")(x)
        shapes = (c.hidden_size,), (c.intermediate_size,), ("embed",), ("mlp",)
        gate, up = (Linear(*shapes, dtype=self.dtype, name=name)(y) for name in ("gate", "up"))
        shapes = (c.intermediate_size,), (c.hidden_size,), ("mlp",), ("embed",)
        hidden = nn.silu(gate) * up
        hidden = constrain(hidden, ("batch", None, "mlp")) if full_sequence else hidden
        # Left to itself the compiler splits a few tokens over the devices and reads the weights once for each part.
        x = constrain(x + Linear(*shapes, dtype=self.dtype, name="down")(hidden), stream)
        return (x, tail), cache_entries


class Matrix(NamedTuple):
    """A table, or a head's kernel. `scales`: of each token, where the values are integers (`models.quantise`)."""

    values: Num[Array, "n m"]
    scales: Float[Array, " v"] | None

    @property
    def T(self) -> "Matrix":
        return Matrix(self.values.T, self.scales)


class Embedding(nn.Module):
    """The token table, also the head's where the two are tied."""

    config: TextConfig

    @nn.compact
    def __call__(self) -> Matrix:
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
        values = self.param("embedding", init, (self.config.vocab_size, self.config.hidden_size))
        return Matrix(values, self.get_variable("params", SCALES))


class Head(nn.Module):
    """The matrix from hidden states to the vocabulary, where it is not tied to the embedding."""

    config: TextConfig

    @nn.compact
    def __call__(self) -> Matrix:
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("embed", "vocab"))
        values = self.param("kernel", init, (self.config.hidden_size, self.config.vocab_size))
        return Matrix(values, self.get_variable("params", SCALES))


def logits_of(hidden: Float[Array, "*b d"], head: Matrix, dtype: DTypeLike) -> Float[Array, "*b v"]:
    """Logits in float32, accumulated in float32 whatever the dtype of the hidden states."""
    logits = product(hidden.astype(dtype), head.values, 1, preferred_element_type=jnp.float32)
    return logits if head.scales is None else logits * head.scales.astype(jnp.float32)


class Decoder(nn.Module):
    """Token and media embeddings in, hidden states and logits out.

    Used as `decoder.apply({"params": params}, ..., method="hidden")`; with `"lora": adapter` beside `"params"` the
    linear layers of the blocks are adapted (`omnir1_jax.models.lora`).

    Attributes:
      dtype: of activations; parameters are cast on use.
      remat: name in `omnir1_jax.models.remat.POLICIES`.
      attention: implementation for whole sequences (`omnir1_jax.models.attention.attend`).
    """

    config: TextConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    attention: str = "auto"

    def setup(self):
        c = self.config
        self.table = Embedding(c, name="embed")
        self.stack = nn.scan(
            remat(Block, self.remat),
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.dtype, self.attention, name="layers")
        self.final_norm = RMSNorm(c.hidden_size, c.rms_norm_eps, self.dtype, name="norm")
        if not c.tie_word_embeddings:
            self.output = Head(c, name="head")

    def __call__(
        self, tokens: Int[Array, "b s"], positions: Int[Array, "b 3 s"], mask: Bool[Array, "b s"]
    ) -> Float[Array, "b s v"]:
        """Logits of plain text; what `init` traces."""
        return self.logits(self.hidden(self.embed(tokens), positions, mask))

    def embed(self, tokens: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """Rows of the token table."""
        values, scales = self.table()
        rows = values[tokens].astype(self.dtype)
        return rows if scales is None else rows * scales[tokens][..., None].astype(self.dtype)

    def head(self) -> Matrix:
        """The matrix of `logits` in its own dtype, for callers that take the vocabulary in pieces (`score`)."""
        return self.table().T if self.config.tie_word_embeddings else self.output()

    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Float32."""
        return logits_of(hidden, self.head(), self.dtype)

    def hidden(
        self, embeddings: Float[Array, "b s d"], positions: Int[Array, "b 3 s"], mask: Bool[Array, "b s"]
    ) -> Float[Array, "b s d"]:
        """Final hidden states of padded rows, each token attending to the real tokens up to itself."""
        return self.packed(embeddings, positions, Mask(keys=mask, causal=True))

    def packed(
        self, embeddings: Float[Array, "b s d"], positions: Int[Array, "b 3 s"], mask: Mask
    ) -> Float[Array, "b s d"]:
        """Final hidden states under any mask, such as the tree of a prompt and its completions."""
        angles = rotary(positions, self.config, self.dtype)
        (x, _), _ = self.stack((embeddings.astype(self.dtype), None), None, angles, Sequence(mask))
        return self.final_norm(x)

    def prefill(self, prompt: Prompt) -> PromptCache:
        """Reads the prompts once; the cache serves any number of continuations."""
        angles = rotary(prompt.positions, self.config, self.dtype)
        view = Sequence(Mask(keys=prompt.mask, causal=True), keep=True)
        (x, _), (keys, values) = self.stack((prompt.embeddings.astype(self.dtype), None), None, angles, view)
        return PromptCache(keys, values, prompt.mask, prompt.next_position, self.final_norm(last_real(x, prompt.mask)))

    def extend(
        self,
        embeddings: Float[Array, "b g n d"],
        mask: Bool[Array, "b g n"],
        prompt: PromptCache,
        tail: TailCache,
    ) -> tuple[Float[Array, "b g n d"], TailCache]:
        """Appends n tokens to each of g continuations of each prompt.

        Positions continue from the prompt's `next_position`, padding not counted. Hidden states of padding are
        meaningless. The caller ensures that the tail has n free slots.

        Args:
          mask: which of the new tokens are real.

        Returns:
          final hidden states, the longer tail.
        """
        n, slots = embeddings.shape[2], tail.mask.shape[-1]
        before = jnp.sum(tail.mask, axis=-1, keepdims=True)
        index = before + jnp.cumsum(mask, axis=-1) - mask
        positions = jnp.broadcast_to((prompt.next_position[:, None, None] + index)[:, :, None], (*mask.shape[:2], 3, n))
        filled = jax.lax.dynamic_update_slice(tail.mask, mask, (0, 0, tail.used))
        visible = filled[:, :, None] & (jnp.arange(slots) <= tail.used + jnp.arange(n)[:, None])
        view = Continuation(prompt.mask, visible, tail.used)
        x, angles = embeddings.astype(self.dtype), rotary(positions, self.config, self.dtype)
        if len(tail.stacks) == 1:
            layers = jnp.arange(self.config.num_layers), prompt.keys, prompt.values
            (x, stack), _ = self.stack((x, tail.stacks[0]), layers, angles, view)
            stacks = (stack,)
        else:
            block, stacks = Block(self.config, self.dtype, self.attention, parent=None), ()
            for n, stack in enumerate(tail.stacks):
                layer_variables = {name: tree["layers"][str(n)] for name, tree in self.variables.items()}
                layer = None, prompt.keys[n], prompt.values[n]
                (x, stack), _ = block.apply(layer_variables, (x, stack), layer, angles, view)
                stacks += (stack,)
        return self.final_norm(x), TailCache(stacks, filled, tail.used + embeddings.shape[2])

    def step(
        self, tokens: Int[Array, "b g"], mask: Bool[Array, "b g"], prompt: PromptCache, tail: TailCache
    ) -> tuple[Float[Array, "b g v"], TailCache]:
        """Appends one token to each continuation; logits of the next."""
        x, tail = self.extend(self.embed(tokens)[:, :, None], mask[..., None], prompt, tail)
        logits = self.logits(constrain(x[:, :, 0], ("rows", None, None)))
        return constrain(logits, ("rows", None, "vocab"), DECODING), tail


def unstack_layers(variables: Mapping[str, Any], prompt: PromptCache) -> tuple[dict[str, Any], PromptCache]:
    """Weights and keys for `extend` on a tail of unstacked layers."""
    layers = lambda tree: [jax.tree.map(lambda x, n=n: x[n], tree) for n in range(prompt.keys.shape[0])]
    named_layers = lambda tree: {str(n): layer for n, layer in enumerate(layers(tree))}
    variables = {name: {**tree, "layers": named_layers(tree["layers"])} for name, tree in variables.items()}
    flat = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
    return variables, prompt._replace(
        keys=layers(flat(prompt.keys.swapaxes(-1, -2))), values=layers(flat(prompt.values))
    )


def last_real(x: Float[Array, "*b s d"], mask: Bool[Array, "*b s"]) -> Float[Array, "*b d"]:
    """The vector of the last real token of each row, whichever side the padding is on."""
    last = jnp.max(jnp.where(mask, jnp.arange(mask.shape[-1]), 0), axis=-1)
    return jnp.take_along_axis(x, last[..., None, None], axis=-2)[..., 0, :]
