"""System 2: finds what a description names in a sharp frame, and follows it through the clip.

A *grounder* turns (frame, description) pairs into text with boxes, a *segmenter* turns boxes into masks. Both are
plain functions that the config names; `GROUNDERS` and `SEGMENTERS` are where another one is plugged in.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from omnir1_jax.models import sam2
from omnir1_jax.models.qwen_omni.cache import Prompt
from omnir1_jax.models.qwen_omni.inputs import VisionInputs
from omnir1_jax.models.qwen_omni.sample import Completions, Sampling, Tails, generate
from omnir1_jax.models.qwen_omni.thinker import Thinker, place


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class SharpFrames:
    """The frames of each clip at System 2's resolution, and the prompt in which one of them will stand.

    All frames of a clip have the same size, so layout and positions are those of any.

    Attributes:
      cells: each frame cut into the thinker's cells; a frame stands for both of a pair.
      rows_cols, windows, frames: layout of one frame, as in `VisionInputs`.
      tokens .. vision_index: the prompt up to the description, as in `ThinkerInputs`.
      resized: width and height of the frame that the cells show; answers are in its pixels.
      original: width and height of the clip.
    """

    cells: UInt8[Array, "b t m cell cell 3"]
    rows_cols: Int[Array, "b m 2"]
    windows: Int[Array, "b w window_cells"]
    frames: Int[Array, "b 1 frame_cells"]
    tokens: Int[Array, "b s"]
    mask: Bool[Array, "b s"]
    positions: Int[Array, "b 3 s"]
    next_position: Int[Array, " b"]
    vision_index: Int[Array, "b s"]
    resized: Int[Array, "b 2"]
    original: Int[Array, "b 2"]

    @property
    def scale(self) -> Float[Array, "b 2"]:
        """Resized over original width and height."""
        return self.resized / self.original.astype(jnp.float32)


class Requests(NamedTuple):
    """What is to be found where: up to k frames for each of g completions.

    Attributes:
      frame: distinct within a completion.
      tokens, mask: the rest of the prompt after the frame: description and instructions.
    """

    frame: Int[Array, "b g k"]
    valid: Bool[Array, "b g k"]
    tokens: Int[Array, "b g k n"]
    mask: Bool[Array, "b g k n"]


class Grounded(NamedTuple):
    """System 2's answers, and how many distinct frames had to be read for them."""

    tokens: Int[Array, "b g k c"]
    lengths: Int[Array, "b g k"]
    frames_read: Int[Array, " b"]


def qwen_omni(
    thinker: Thinker, params: Mapping[str, Any], frames: SharpFrames, requests: Requests, sampling: Sampling
) -> Grounded:
    """Grounding by a thinker, greedy. Each distinct frame of a clip is encoded and prefilled once for all requests.

    Args:
      params: {"vision": ..., "text": ...} of the frozen copy.
    """
    b, g, k, _ = requests.tokens.shape
    t = frames.cells.shape[1]
    decoder, text = thinker.decoder(), {"params": params["text"]}
    wanted = jnp.any((requests.frame[..., None] == jnp.arange(t)) & requests.valid[..., None], axis=(1, 2))
    order = jnp.argsort(~wanted, axis=1, stable=True)  # distinct frames first, in time order
    count = jnp.sum(wanted, axis=1)

    def answer(slot: Int[Array, ""], out: Completions) -> Completions:
        at = jnp.take(order, slot, axis=1)
        cells = jnp.take_along_axis(frames.cells, at[:, None, None, None, None, None], axis=1)[:, 0]
        pixels = jnp.repeat(cells[:, :, None], 2, axis=2)
        vision = VisionInputs(pixels, frames.rows_cols, frames.windows, frames.frames)
        seen = thinker.apply({"params": {"vision": params["vision"]}}, vision, method=lambda m, x: m.vision(x))
        embeddings = decoder.apply(text, frames.tokens, method="embed")
        prompt = Prompt(
            place(embeddings, seen, frames.vision_index), frames.positions, frames.mask, frames.next_position
        )
        cache = decoder.apply(text, prompt, method="prefill")

        here = (requests.frame == at[:, None, None]) & requests.valid & (slot < count)[:, None, None]
        mine = jnp.argmax(here, axis=2)[..., None, None]
        own = lambda x: jnp.take_along_axis(x, mine, axis=2)[:, :, 0]
        found = generate(
            decoder,
            text,
            cache,
            jax.random.key(0),
            sampling,
            tails=Tails(own(requests.tokens), own(requests.mask)),
            active=jnp.any(here, axis=2),
        )
        put = lambda new, old: jnp.where(here.reshape(here.shape + (1,) * (old.ndim - 3)), new[:, :, None], old)
        return jax.tree.map(put, found, out)

    none = Completions(
        tokens=jnp.full((b, g, k, sampling.max_tokens), sampling.pad, jnp.int32),
        lengths=jnp.zeros((b, g, k), jnp.int32),
        logprobs=jnp.zeros((b, g, k, sampling.max_tokens), jnp.float32),
    )
    slots = jnp.max(count)
    step = lambda state: (state[0] + 1, answer(*state))
    _, out = jax.lax.while_loop(lambda state: state[0] < slots, step, (jnp.asarray(0), none))
    return Grounded(out.tokens, out.lengths, count)


class Masks(NamedTuple):
    """Propagated masks of each completion, all its objects together, at the segmenter's mask size."""

    union: Bool[Array, "b g t y x"]
    scores: Float[Array, "b g n t"]


def sam2_video(
    model: sam2.Sam2,
    params: Any,
    clip: UInt8[Array, "b t h w 3"],
    frame_valid: Bool[Array, "b t"],
    original: Int[Array, "b 2"],
    boxes: Float[Array, "b g k n 4"],
    prompts: Bool[Array, "b g k n"],
    frame: Int[Array, "b g k"],
) -> Masks:
    """SAM 2.1 from the boxes of each object through the clip; each clip is encoded once for all completions.

    Args:
      clip: frames stretched to any square; `original` is the width and height that the boxes refer to.
      prompts: which boxes are real. A completion without any has an empty union.
    """
    _, g, k, n = prompts.shape

    def one(clip, frame_valid, original, boxes, prompts, frame):
        flat = lambda x: jnp.moveaxis(x, 2, 1).reshape(g * n, k, *x.shape[3:])
        at = jnp.broadcast_to(frame[:, None], (g, n, k)).reshape(g * n, k)
        used = flat(prompts)
        tracks = sam2.segment_video(
            model,
            params,
            clip,
            flat(boxes),
            at,
            used,
            frame_valid=frame_valid,
            object_valid=used.any(axis=1),
            size=original[::-1],
        )
        seen = (tracks.logits > 0) & tracks.known[..., None, None]
        return Masks(seen.reshape(g, n, *seen.shape[1:]).any(axis=1), tracks.scores.reshape(g, n, -1))

    return jax.vmap(one)(clip, frame_valid, original, boxes, prompts, frame)


GROUNDERS: dict[str, Callable[..., Grounded]] = {"qwen_omni": qwen_omni}
SEGMENTERS: dict[str, Callable[..., Masks]] = {"sam2": sam2_video}
