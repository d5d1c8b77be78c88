"""The reward of a plan: its frames, the boxes in them, and the propagated masks.

Written for one completion; `jax.vmap` does the rest. T and N are the clip's static sizes, of which `frames` and
`objects` are in use. The numbers are those of the authors' training code.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnir1_jax.config.rewards import VosReward
from omnir1_jax.rewards import boxes
from omnir1_jax.systems.keyframes import Keyframes, members
from omnir1_jax.text.readers import Plan

TINY = 1e-6
MIN_PLAN_FRAMES = 4


class PlanTerms(NamedTuple):
    """Terms of the plan alone, without System 2. All 0 for an answer without objects."""

    structure: Float[Array, ""]  # 0.2 per object for being present, complete, valid; over the number of objects
    coverage: Float[Array, ""]  # share of (object, frame) cells where the object is visible, over the number of objects
    count: Float[Array, ""]  # distinct frames: 0.4 each up to 4, then back down
    span: Float[Array, ""]  # -0.2 for each frame of a piece beyond its first
    overlap: Float[Array, ""]  # -0.5 for each repeated frame
    diversity: Float[Array, ""]  # the paper's: whether pieces in time order overlap the next
    closeness: Float[Array, ""]  # the paper's: 1 at the wanted number of pieces, falling to 0
    any_valid: Bool[Array, ""]


class Matching(NamedTuple):
    """Predicted boxes, each assigned to an object.

    Attributes:
      box: box of each object in each keyframe, in the pixels of the resized image.
      prompt: mask of boxes without a missing coordinate in valid keyframes: these prompt the segmenter.
      alignment: mean IoU over the (object, keyframe) cells whose true box is real.
      mismatch: predictions beyond the number of objects, negative.
    """

    box: Float[Array, "k n 4"]
    prompt: Bool[Array, "k n"]
    alignment: Float[Array, ""]
    mismatch: Float[Array, ""]


class VosTerms(NamedTuple):
    """Every term of one completion, before weights."""

    structure: Float[Array, ""]
    coverage: Float[Array, ""]
    count: Float[Array, ""]
    span: Float[Array, ""]
    overlap: Float[Array, ""]
    saliency: Float[Array, ""]
    alignment: Float[Array, ""]
    mismatch: Float[Array, ""]
    segmentation: Float[Array, ""]
    diversity: Float[Array, ""]
    closeness: Float[Array, ""]


def plan_terms(
    plan: Plan,
    areas: Float[Array, "n t"],
    objects: Int[Array, ""],
    config: VosReward,
) -> PlanTerms:
    """Terms of one plan (its fields without the leading axis).

    Args:
      areas: pixels of each object in each frame; 0 in padding.
      objects: number of the n that are real.
    """
    member = members(plan.valid, plan.first_frame, plan.last_frame, areas.shape[1])
    size = jnp.sum(member, axis=1)
    present = jnp.sum(areas > 0, axis=0)
    coverage = jnp.sum(member * present, axis=1) / jnp.maximum(objects * size, 1)
    number = jnp.maximum(plan.count, 1)
    distinct = jnp.sum(jnp.any(member, axis=0))
    count = jnp.where(distinct <= MIN_PLAN_FRAMES, 0.4 * distinct, 0.4 * (7 - distinct))

    pieces = jnp.sum(plan.valid)
    last = jnp.iinfo(jnp.int32).max
    order = jnp.argsort(jnp.where(plan.valid, plan.first_frame, last), stable=True)
    follower = jnp.where(plan.valid, plan.first_frame, last)[order][1:]
    clear = jnp.append(plan.last_frame[order][:-1] < follower, True)
    pair_terms = jnp.where(clear, config.distance_reward, config.overlap_punishment)
    away = jnp.abs(pieces - config.target_pieces) / config.target_pieces
    return PlanTerms(
        structure=0.2 * (plan.count + jnp.sum(plan.complete) + pieces) / number,
        coverage=jnp.sum(coverage) / number,
        count=count.astype(jnp.float32),
        span=-0.2 * jnp.sum(jnp.maximum(size - 1, 0)).astype(jnp.float32),
        overlap=-0.5 * (jnp.sum(size) - distinct).astype(jnp.float32),
        diversity=jnp.sum(pair_terms * (jnp.arange(pair_terms.shape[0]) < pieces)),
        closeness=jnp.where(pieces > 0, jnp.maximum(1.0 - away, 0.0), 0.0).astype(jnp.float32),
        any_valid=pieces > 0,
    )


def match(
    predicted: Float[Array, "k n 4"],
    predictions: Int[Array, "k"],
    truth: Float[Array, "n t 4"],
    scale: Float[Array, "2"],
    objects: Int[Array, ""],
    keyframes: Keyframes,
    config: VosReward,
) -> Matching:
    """Assigns each predicted box to an object, keyframe by keyframe, maximising the sum of IoU.

    Args:
      predicted: the first n groups of System 2's answer in each keyframe, missing boxes -1, in resized pixels.
      predictions: number of groups in the answer.
      truth: boxes of the objects in original pixels, -1 where the object is not in the frame.
      scale: resized over original width and height.
    """
    k, n = predicted.shape[:2]
    used = jnp.arange(n) < objects
    slot = keyframes.valid[:, None] & used
    gt = truth[:, keyframes.frame].swapaxes(0, 1)
    real = ~boxes.is_missing(gt) & slot
    gt = gt * jnp.tile(scale, 2)
    predicted = jnp.where(slot[..., None], predicted, boxes.MISSING)
    matched = real if config.edge_boxes_match else real & (gt[..., 0] > 0)

    score = boxes.iou(predicted[:, :, None], gt[:, None, :])
    score = jnp.where((slot & ~boxes.is_missing(predicted))[:, :, None] & matched[:, None, :], score, 0.0)
    to = jnp.stack([boxes.assign(s) for s in score])
    matched_score = jnp.take_along_axis(score, to[..., None], axis=2)[..., 0]
    counts = jnp.take_along_axis(real, to, axis=1)
    rows = jnp.arange(k)[:, None]
    box = jnp.full_like(predicted, boxes.MISSING).at[rows, to].set(predicted)
    excess = jnp.where(keyframes.valid, jnp.maximum(predictions - objects, 0), 0)
    return Matching(
        box=box,
        prompt=jnp.all(box != boxes.MISSING, axis=-1) & slot,
        alignment=jnp.sum(matched_score * counts) / jnp.maximum(jnp.sum(counts), 1),
        mismatch=-jnp.sum(excess) / (objects + TINY) * 0.5 / jnp.maximum(jnp.sum(keyframes.valid), 1),
    )


def region_similarity(
    predicted: Bool[Array, "t h w"], truth: Bool[Array, "t h w"], frames: Int[Array, ""]
) -> Float[Array, ""]:
    """Mean over the first `frames` frames of IoU of two masks; 1 where both are empty (DAVIS J)."""
    inter = jnp.sum(predicted & truth, axis=(1, 2))
    union = jnp.sum(predicted | truth, axis=(1, 2))
    j = jnp.where(union > 0, inter / jnp.maximum(union, 1), 1.0)
    return jnp.sum(j * (jnp.arange(j.shape[0]) < frames)) / jnp.maximum(frames, 1)


def vos_terms(
    plan: PlanTerms,
    matching: Matching,
    similarity: Float[Array, ""],
    areas: Float[Array, "n t"],
    keyframes: Keyframes,
    config: VosReward,
) -> VosTerms:
    """All terms of one completion, the published gates applied.

    Args:
      similarity: `region_similarity` of the propagated masks' union; it counts only if a box prompted them.
    """
    total = jnp.sum(areas, axis=0)
    chosen = total[keyframes.frame] / (jnp.max(total) + TINY)
    saliency = jnp.sum(chosen * keyframes.valid) / jnp.maximum(jnp.sum(keyframes.valid), 1)
    grounded = jnp.any(matching.prompt)
    weighed = config.segmentation > TINY or not config.gated_by_segmentation
    gate = (grounded | (not config.gated)) & weighed
    keep = lambda x: jnp.where(gate, x, 0.0)
    return VosTerms(
        structure=plan.structure,
        coverage=plan.coverage,
        count=plan.count,
        span=plan.span,
        overlap=plan.overlap,
        saliency=keep(saliency),
        alignment=keep(matching.alignment),
        mismatch=keep(matching.mismatch),
        segmentation=jnp.where(grounded & weighed, similarity, 0.0),
        diversity=plan.diversity,
        closeness=plan.closeness,
    )


def accuracy(terms: VosTerms, any_valid: Bool[Array, ""], config: VosReward) -> Float[Array, ""]:
    """The weighted sum without format and length; plans without a valid piece keep structure alone."""
    weighted = {name: getattr(config, name) * value for name, value in terms._asdict().items()}
    base = weighted.pop("structure") + weighted.pop("coverage")
    rest = jnp.where(any_valid, sum(weighted.values()), 0.0)
    return base + (jnp.maximum(rest, 0.0) if config.clip else rest)
