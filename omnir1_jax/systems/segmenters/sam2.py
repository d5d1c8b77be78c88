"""SAM 2.1 as segmenter: boxes are tracked through the clip, each clip encoded once for all completions.

Over a mesh each device computes its own clips, and with an axis `tensor` a part of the completions.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from omnir1_jax.errors import InputError
from omnir1_jax.models import sam2
from omnir1_jax.models.sam2.model import NO_OBJECT
from omnir1_jax.parallel.rowwise import rowwise
from omnir1_jax.systems.segmenters.protocol import Masks, Prompts


@dataclasses.dataclass(frozen=True)
class Sam2Segmenter:
    """SAM 2.1 with its module."""

    model: sam2.Sam2

    def load(self, config: ConfigDict) -> Any:
        """Not supported: `build.models` reads its weights."""
        raise InputError("step.segmenter: the parameters of SAM 2 come from build.models")

    def masks(
        self,
        params: Any,
        clip: UInt8[Array, "b t h w 3"],
        frame_valid: Bool[Array, "b t"],
        original: Int[Array, "b 2"],
        prompts: Prompts,
    ) -> Masks:
        """The union of a completion's objects; empty without a prompt."""

        def keep(tracks: sam2.Tracks) -> tuple[Array, Array]:
            return (tracks.logits > 0) & tracks.known[..., None, None], tracks.scores

        side = self.model.config.mask_side
        blank = (jnp.zeros((side, side), bool), jnp.full((), NO_OBJECT))
        run = functools.partial(_follow, self.model, keep, blank, self.model.config.object_chunk)
        seen, scores = rowwise(run, params, clip, frame_valid, original, columns=prompts)
        return Masks(seen.any(axis=2), scores)

    def logits(
        self,
        params: Any,
        clip: UInt8[Array, "b t h w 3"],
        frame_valid: Bool[Array, "b t"],
        original: Int[Array, "b 2"],
        prompts: Prompts,
    ) -> Float[Array, "b g n t y x"]:
        """As `Segmenter.logits`, one object after another: most answers are of one."""
        blank = (jnp.full((self.model.config.mask_side,) * 2, NO_OBJECT),)
        run = functools.partial(_follow, self.model, lambda tracks: (tracks.logits.astype(jnp.float32),), blank, 1)
        return rowwise(run, params, clip, frame_valid, original, columns=prompts)[0]


def _follow(model, keep: Callable, blank: tuple, chunk: int, params, clip, frame_valid, original, boxes, used, frame):
    """`keep`'s results for the tracks of each object, [b g n t ...], for the clips and completions of one device.

    Args:
      blank: results for a frame of an object without a box.
      chunk: number of objects of each clip that are tracked at a time.
    """
    b, g, k, n = used.shape
    t, objects = clip.shape[1], g * n
    flat = lambda x: jnp.moveaxis(x, 3, 2).reshape(b, objects, k, *x.shape[4:])
    boxes, used = flat(boxes), flat(used)
    prompt_frame = jnp.broadcast_to(frame[:, :, None], (b, g, n, k)).reshape(b, objects, k)
    real = used.any(axis=2)
    order = jnp.argsort(~real, axis=1, stable=True)  # tracked objects first, so that the others cost nothing
    chunk = min(chunk, objects)
    chunks = -(-objects // chunk)
    order = jnp.pad(order, ((0, 0), (0, chunks * chunk - objects)), constant_values=objects)
    features = jax.vmap(lambda frames: sam2.encode_frames(model, params, frames))(clip)

    def track(features, boxes, prompt_frame, used, chunk_objects, frame_valid, original):
        chosen = lambda x: jnp.take(x, chunk_objects, axis=0, mode="fill", fill_value=0)
        tracks = sam2.track(
            model, params, features, chosen(boxes), chosen(prompt_frame), chosen(used),
            frame_valid=frame_valid, size=original[::-1], axis_name="clips",
        )  # fmt: skip
        return keep(tracks)

    def body(state):
        turn, results = state
        chunk_objects = jax.lax.dynamic_slice_in_dim(order, turn * chunk, chunk, axis=1)
        new = jax.vmap(track, axis_name="clips")(
            features, boxes, prompt_frame, used, chunk_objects, frame_valid, original
        )
        write = jax.vmap(lambda old, x, chunk_objects: old.at[chunk_objects].set(x, mode="drop"))
        return turn + 1, tuple(write(old, x, chunk_objects) for old, x in zip(results, new, strict=True))

    with jax.named_scope("objects"):
        rounds = jnp.max(-(-jnp.sum(real, axis=1) // chunk))
        start = tuple(jnp.broadcast_to(x, (b, objects, t, *x.shape)) for x in blank)
        _, results = jax.lax.while_loop(lambda state: state[0] < rounds, body, (jnp.zeros((), rounds.dtype), start))
    return tuple(x.reshape(b, g, n, *x.shape[2:]) for x in results)
