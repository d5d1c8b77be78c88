"""A thinker as grounder: sees a frame and a description, and answers with boxes as text."""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int
from ml_collections import ConfigDict

from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.cache import Prompt, PromptCache
from omnir1_jax.models.qwen_omni.decoding import decoding_copy
from omnir1_jax.models.qwen_omni.inputs import VisionInputs
from omnir1_jax.models.qwen_omni.sample import Sampling, Suffixes, generate
from omnir1_jax.models.qwen_omni.thinker import Thinker, insert_features
from omnir1_jax.parallel import constrain, shards
from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.systems.grounders.protocol import GroundedBoxes, Requests
from omnir1_jax.text import prompt
from omnir1_jax.text.bpe import Bpe
from omnir1_jax.text.prompt import Template
from omnir1_jax.text.readers import read_boxes
from omnir1_jax.text.strings import Buffer
from omnir1_jax.text.vocab import ByteVocab, detokenise

# Frames of each clip that are read at a time if weights are sharded, as each read gathers all of them.
GATHERED = 4


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class ThinkerParams:
    """A thinker and its tokenizer as arrays. All but the prompt is None if it is the run's own thinker.

    Attributes:
      prompt: template of System 2's prompt from the frame on.
      vision, text: the thinker's parameters.
      vocab, bpe: its tokenizer's tables.
    """

    prompt: Template
    vision: Any = None
    text: Any = None
    vocab: ByteVocab | None = None
    bpe: Bpe | None = None


class Prompts(NamedTuple):
    """Requests as tokens.

    Attributes:
      tokens, mask: the rest of the prompt after the frame: description and instructions.
    """

    frame: Int[Array, "b g k"]
    valid: Bool[Array, "b g k"]
    tokens: Int[Array, "b g k n"]
    mask: Bool[Array, "b g k n"]


class Answers(NamedTuple):
    """The thinker's completions, and the number of distinct frames read for them."""

    tokens: Int[Array, "b g k c"]
    lengths: Int[Array, "b g k"]
    frames_read: Int[Array, " b"]


@dataclasses.dataclass(frozen=True)
class ThinkerGrounder:
    """Greedy grounding by a thinker.

    Attributes:
      sampling: sampling of its answers.
      description_tokens: maximum tokens of description and instruction in its prompt.
      answer_bytes: maximum bytes of an answer that is parsed.
    """

    thinker: Thinker
    sampling: Sampling
    description_tokens: int
    answer_bytes: int
    host: ClassVar[bool] = False

    def load(self, config: ConfigDict) -> Any:
        """Not supported: `build.models` reads the weights of thinkers."""
        raise InputError("step.grounder: the parameters of a thinker come from build.models")

    def ground(self, params: ThinkerParams, frames: HighResFrames, requests: Requests, slots: int) -> GroundedBoxes:
        """Boxes as the thinker's answers give them; every group of an answer takes a slot, good or bad."""
        form, shape = params.prompt, requests.frame.shape
        suffixes = prompt.fill(
            params.bpe, form._replace(prefix=form.prefix[:0]), requests.description, self.description_tokens
        )
        lengths = suffixes.length.reshape(shape)
        tokens = suffixes.ids.reshape(*shape, -1)
        asked = requests.valid & (lengths > 0)
        prompts = Prompts(requests.frame, asked, tokens, jnp.arange(tokens.shape[-1]) < lengths[..., None])
        answers = answer(self.thinker, params, frames, prompts, self.sampling)
        text = detokenise(params.vocab, answers.tokens.reshape(-1, answers.tokens.shape[-1]), self.answer_bytes)[0]
        grouped = lambda tree: jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), tree)
        boxes = grouped(read_boxes(text, slots))
        return GroundedBoxes(
            boxes.box,
            boxes.count,
            boxes.failure,
            asked,
            Buffer(*grouped(text)),
            frames.scale,
            answers.frames_read,
            lengths,
            answers.lengths,
        )


def answer(
    thinker: Thinker, params: ThinkerParams, frames: HighResFrames, requests: Prompts, sampling: Sampling
) -> Answers:
    """Each distinct frame is read once, then all requests are answered side by side."""
    b, g, k, n = requests.tokens.shape
    t = frames.cells.shape[1]
    decoder = thinker.decoder()
    text = decoding_copy(decoder, {"params": params.text})
    is_needed = jnp.any((requests.frame[..., None] == jnp.arange(t)) & requests.valid[..., None], axis=(1, 2))
    order = jnp.argsort(~is_needed, axis=1, stable=True)  # distinct frames first, in time order
    count = jnp.sum(is_needed, axis=1)

    slots = min(t, g * k)
    at_a_time = min(slots, GATHERED) if shards("embed", decoder.config.hidden_size) > 1 else 1
    slots += -slots % at_a_time

    @functools.partial(jax.jit, inline=True)  # traced once for the shapes and the loop
    def read(slot: Int[Array, ""]) -> PromptCache:
        """`at_a_time` frames of each clip from `slot` on, one row each."""
        frame_index = jnp.take(order, slot + jnp.arange(at_a_time), axis=1, mode="clip")
        cells = jnp.take_along_axis(frames.cells, frame_index[:, :, None, None, None, None], axis=1)
        per_frame = lambda x: constrain(jnp.repeat(x, at_a_time, axis=0), ("batch", *(None,) * (x.ndim - 1)))
        pixels = jnp.repeat(cells.reshape(-1, *cells.shape[2:])[:, :, None], 2, axis=2)
        vision = VisionInputs(pixels, per_frame(frames.rows_cols), per_frame(frames.windows), per_frame(frames.frames))
        seen = thinker.apply({"params": {"vision": params.vision}}, vision, method=lambda m, x: m.vision(x))
        embeddings = decoder.apply(text, per_frame(frames.tokens), method="embed")
        prompt = Prompt(
            insert_features(embeddings, seen, per_frame(frames.vision_index)),
            *map(per_frame, (frames.positions, frames.mask, frames.next_position)),
        )
        cache = decoder.apply(text, prompt, method="prefill")
        split_batch = lambda x, axis: x.reshape(*x.shape[:axis], b, at_a_time, *x.shape[axis + 1 :])
        return cache._replace(
            keys=split_batch(cache.keys, 1), values=split_batch(cache.values, 1), last=split_batch(cache.last, 0)
        )

    def body(state: tuple[Array, tuple[Array, ...]]) -> tuple[Array, tuple[Array, ...]]:
        slot, caches = state
        cache = read(slot)
        new = (cache.keys, cache.values, cache.last)
        insert = lambda old, x, axis: jax.lax.dynamic_update_slice_in_dim(old, x, slot, axis)
        return slot + at_a_time, tuple(insert(old, x, axis) for old, x, axis in zip(caches, new, (2, 2, 1)))

    like = jax.eval_shape(read, jax.ShapeDtypeStruct((), jnp.int32))
    buffer = lambda x, axis: jnp.zeros((*x.shape[:axis], slots, *x.shape[axis + 1 :]), x.dtype)
    empty = (buffer(like.keys, 2), buffer(like.values, 2), buffer(like.last, 1))
    with jax.named_scope("frames/together" if at_a_time > 1 else "frames"):
        _, caches = jax.lax.while_loop(lambda state: state[0] < jnp.max(count), body, (jnp.zeros((), jnp.int32), empty))

    # Each request becomes a row with its frame's cache, so that one pass over the weights serves all of them.
    cache_slot = jnp.take_along_axis(jnp.cumsum(is_needed, axis=1) - 1, requests.frame.reshape(b, g * k), axis=1)
    cache_slot = jnp.clip(cache_slot, 0, slots - 1)
    keys, values = (
        jnp.take_along_axis(x, cache_slot[None, :, :, None, None, None], axis=2).reshape(-1, b * g * k, *x.shape[3:])
        for x in caches[:2]
    )
    repeat = lambda x: jnp.repeat(x, g * k, axis=0)
    last = jnp.take_along_axis(caches[2], cache_slot[..., None], axis=1).reshape(b * g * k, -1)
    generated = generate(
        decoder,
        text,
        PromptCache(keys, values, repeat(frames.mask), repeat(frames.next_position), last),
        jax.random.key(0),
        sampling,
        suffixes=Suffixes(requests.tokens.reshape(-1, 1, n), requests.mask.reshape(-1, 1, n)),
        active=requests.valid.reshape(-1, 1),
    )
    return Answers(generated.tokens.reshape(b, g, k, -1), generated.lengths.reshape(b, g, k), count)
