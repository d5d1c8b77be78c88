"""SAM 2 trained on clips with masks: boxes on some frames, tracked through the clip, compared with ground truth.

The forward pass is that of inference (`sam2.unroll`); the losses are those of SAM 2's own training.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from omnir1_jax.config import sections
from omnir1_jax.errors import InputError
from omnir1_jax.models import sam2
from omnir1_jax.parallel import jit_step
from omnir1_jax.rl import learn

Metrics = dict[str, Float[Array, ""]]


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Batch:
    """Clips with the ground truth of their objects.

    Attributes:
      clip: frames stretched to the model's side.
      masks: how much of each pixel the object covers, 0 to 255, at the model's mask side.
      boxes: boxes of each object, in original pixels, -1 where it is not in the frame.
      size: height and width of the original frames.
    """

    clip: UInt8[Array, "b t side side 3"]
    frame_valid: Bool[Array, "b t"]
    masks: UInt8[Array, "b n t y x"]
    boxes: Float[Array, "b n t 4"]
    object_valid: Bool[Array, "b n"]
    size: Int[Array, "b 2"]


class Prompts(NamedTuple):
    """Boxes for `sam2.unroll`, in original pixels."""

    boxes: Float[Array, "b n k 4"]
    frames: Int[Array, "b n k"]
    valid: Bool[Array, "b n k"]


class Losses(NamedTuple):
    """Mean of each loss over the frames it applies to."""

    mask: Float[Array, ""]
    dice: Float[Array, ""]
    iou: Float[Array, ""]
    score: Float[Array, ""]


def visible(batch: Batch) -> Bool[Array, "b n t"]:
    """Mask of frames in which an object is visible."""
    return (batch.boxes[..., 2] >= 0) & batch.frame_valid[:, None] & batch.object_valid[..., None]


def split_clips(batch: Batch, piece: int) -> Batch:
    """Clips split into pieces of `piece` frames, consecutive in the batch; 0 does not split them."""
    b, t = batch.frame_valid.shape
    if piece in (0, t):
        return batch
    if t % piece:
        raise InputError(f"masks.piece {piece}: must divide the clips' {t} frames")
    s = t // piece
    by_frame = lambda x: x.reshape(b * s, piece, *x.shape[2:])
    by_object = lambda x: by_frame(jnp.moveaxis(x, 2, 1)).swapaxes(1, 2)
    again = lambda x: jnp.repeat(x, s, axis=0)
    return Batch(
        clip=by_frame(batch.clip),
        frame_valid=by_frame(batch.frame_valid),
        masks=by_object(batch.masks),
        boxes=by_object(batch.boxes),
        object_valid=again(batch.object_valid),
        size=again(batch.size),
    )


def draw_prompts(key: Key[Array, ""], batch: Batch, config: sections.Masks) -> Prompts:
    """1 to `prompts` frames per object among those that show it, with boxes as inexact as a grounder's."""
    seen = visible(batch)
    b, n, t = seen.shape
    k = min(config.prompts, t)
    order_key, count_key, spread_key, noise_key = jax.random.split(key, 4)
    order = jnp.where(seen, jax.random.uniform(order_key, seen.shape), 2.0)
    frames = jnp.argsort(order, axis=2)[..., :k]
    count = jax.random.randint(count_key, (b, n, 1), 1, k + 1)
    valid = (jnp.arange(k) < count) & jnp.take_along_axis(seen, frames, axis=2)
    boxes = jnp.take_along_axis(batch.boxes, frames[..., None], axis=2)
    sides = jnp.tile(boxes[..., 2:] - boxes[..., :2] + 1, 2)
    spread = config.jitter * jax.random.uniform(spread_key, (b, n, k, 1))
    boxes = boxes + spread * sides * jax.random.normal(noise_key, boxes.shape)
    return Prompts(boxes, frames, valid)


def forward(
    model: sam2.Sam2, params: Any, batch: Batch, prompts: Prompts, remat: bool
) -> tuple[sam2.Tracks, sam2.Masks]:
    """`sam2.unroll` of every clip, [b n t ...]. All frames are encoded together."""
    side = model.config.side
    if batch.clip.shape[2:4] != (side, side):
        raise InputError(f"data: clips are {batch.clip.shape[2]} x {batch.clip.shape[3]}, sam2.side is {side}")
    keep = jax.checkpoint if remat else lambda f: f

    @keep
    def encode(params, clip):
        pixels = sam2.preprocess(clip.reshape(-1, *clip.shape[2:]), side)
        encoded = model.apply({"params": params}, pixels, method=sam2.Sam2.encode)
        return jax.tree.map(lambda x: x.reshape(*clip.shape[:2], *x.shape[1:]), encoded)

    def one(features, boxes, frames, valid, size, frame_valid, object_valid):
        return sam2.unroll(
            model, params, features, boxes, frames, valid,
            size=size, frame_valid=frame_valid, object_valid=object_valid, remat=remat,
        )  # fmt: skip

    features = encode(params, batch.clip)
    return jax.vmap(one)(features, *prompts, batch.size, batch.frame_valid, batch.object_valid)


def _mean(x: Float[Array, "*s"], where: Bool[Array, "*s"]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(where, x, 0.0)) / jnp.maximum(jnp.sum(where), 1)


def focal(logits: Float[Array, "*s y x"], truth: Float[Array, "*#s y x"], focus: float) -> Float[Array, "*s"]:
    """Cross-entropy with soft targets, weighted by |truth - probability| ** focus, a mean over the pixels."""
    entropy = optax.sigmoid_binary_cross_entropy(logits, truth)
    if focus:
        entropy *= jnp.abs(jax.nn.sigmoid(logits) - truth) ** focus
    return jnp.mean(entropy, axis=(-2, -1))


def dice(logits: Float[Array, "*s y x"], truth: Float[Array, "*#s y x"]) -> Float[Array, "*s"]:
    """1 - dice coefficient of probabilities and soft targets; 1 is added to numerator and denominator as upstream."""
    p = jax.nn.sigmoid(logits)
    total = lambda x: jnp.sum(x, axis=(-2, -1))
    return 1 - (2 * total(p * truth) + 1) / (total(p) + total(truth) + 1)


def overlap(logits: Float[Array, "*s y x"], truth: Float[Array, "*#s y x"]) -> Float[Array, "*s"]:
    """Intersection over union of the masks; 1 where both are empty."""
    mask, true = logits > 0, truth >= 0.5
    union = jnp.sum(mask | true, axis=(-2, -1))
    return jnp.where(union > 0, jnp.sum(mask & true, axis=(-2, -1)) / jnp.maximum(union, 1), 1.0)


def losses(
    tracks: sam2.Tracks, masks: sam2.Masks, batch: Batch, config: sections.Masks
) -> tuple[Float[Array, ""], Losses, Metrics]:
    """The losses of tracks: of masks where the object is visible, of the score on every frame that was reached.

    Of the multimasks only the best one is trained, besides the single mask; the predicted quality of all is.
    """
    seen, known = visible(batch) & tracks.known, tracks.known
    truth = batch.masks.astype(jnp.float32)[:, :, :, None] / 255
    per_mask = jnp.stack((focal(masks.logits, truth, config.focus), dice(masks.logits, truth)), axis=-1)
    weighted = config.mask * per_mask[..., 0] + config.dice * per_mask[..., 1]  # [b n t m]
    best = 1 + jnp.argmin(weighted[..., 1:], axis=-1)
    chosen = per_mask[..., 0, :] + jnp.take_along_axis(per_mask, best[..., None, None], axis=-2)[..., 0, :]
    quality = overlap(jax.lax.stop_gradient(masks.logits), truth)
    missed = jnp.mean(jnp.abs(masks.iou - quality), axis=-1)
    parts = Losses(
        mask=_mean(chosen[..., 0], seen) / 2,
        dice=_mean(chosen[..., 1], seen) / 2,
        iou=_mean(missed, seen),
        score=_mean(optax.sigmoid_binary_cross_entropy(masks.score, seen.astype(jnp.float32)), known),
    )
    loss = config.mask * parts.mask + config.dice * parts.dice + config.iou * parts.iou + config.score * parts.score
    empty = ~jnp.any(tracks.logits > 0, axis=(-2, -1))
    metrics = {
        "j": _mean(overlap(tracks.logits, jnp.where(seen[..., None, None], truth[:, :, :, 0], 0.0)), known),
        "j_visible": _mean(overlap(tracks.logits, truth[:, :, :, 0]), seen),
        "empty_hidden": _mean(empty.astype(jnp.float32), known & ~seen),
        "empty_visible": _mean(empty.astype(jnp.float32), seen),
    }
    return loss, parts, metrics


def make_mask_step(
    model: sam2.Sam2,
    optimizer: optax.GradientTransformation,
    config: sections.Masks,
    shardings: learn.TrainState | None = None,
) -> Callable[[learn.TrainState, Any, Batch, Key[Array, ""]], tuple[learn.TrainState, Metrics, None]]:
    """The training step of `objective = "masks"`; the trainable are SAM 2's parameters, nothing is frozen.

    Args:
      shardings: shardings of the state, kept from step to step; by default the compiler's choice.

    Returns:
      `step(state, frozen, batch, key) -> (state, metrics, None)`, jitted; the state is donated.
    """

    def objective(params: Any, batch: Batch, prompts: Prompts) -> tuple[Float[Array, ""], tuple[Losses, Metrics]]:
        loss, *rest = losses(*forward(model, params, batch, prompts, config.remat), batch, config)
        return loss, tuple(rest)

    def step(state: learn.TrainState, frozen: Any, batch: Batch, key: Key[Array, ""]):
        del frozen
        batch = split_clips(batch, config.piece)
        prompts = draw_prompts(key, batch, config)
        (loss, (parts, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(state.trainable, batch, prompts)
        state, norm = learn.apply_if_finite(state, loss, grads, optimizer)
        metrics |= {f"loss/{name}": value for name, value in parts._asdict().items()}
        metrics |= {"loss": loss, "grad_norm": norm, "skipped": state.skipped.astype(jnp.float32)}
        return dataclasses.replace(state, step=state.step + 1), metrics, None

    return jit_step(step, shardings)


def to_batch(arrays: Mapping[str, Any]) -> Batch:
    """The step's batch from the pipeline's arrays (numpy, jax or shapes)."""
    return Batch(**{field.name: arrays[field.name] for field in dataclasses.fields(Batch)})
