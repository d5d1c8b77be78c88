"""Video object segmentation (ReVOS, MeViS): a plan, its keyframes grounded, the boxes carried through the clip."""

from typing import NamedTuple, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from omnir1_jax import rewards
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rl.config import Frozen, Models, Rewards, StepConfig
from omnir1_jax.systems import keyframes, reasoner, segmenters
from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.systems.grounders.protocol import GroundedBoxes, Requests
from omnir1_jax.systems.keyframes import Keyframes
from omnir1_jax.systems.segmenters import Masks, Prompts, TextSegmenter
from omnir1_jax.tasks import common
from omnir1_jax.tasks.task import Task
from omnir1_jax.text.readers import Plan, read_plan


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Batch:
    """Prompts about clips of up to t frames and n objects.

    Attributes:
      policy: System 1's prompts.
      sharp: frames for the grounder.
      clip: frames for the segmenter, stretched to a square.
      truth: the objects together, at the segmenter's mask size.
      boxes: of each object, in original pixels, -1 where it is not in the frame.
      areas: pixels of each object.
      objects: how many of the n are real.
    """

    policy: ThinkerInputs
    sharp: HighResFrames
    clip: UInt8[Array, "b t side side 3"]
    frame_valid: Bool[Array, "b t"]
    truth: Bool[Array, "b t y x"]
    boxes: Float[Array, "b n t 4"]
    areas: Float[Array, "b n t"]
    objects: Int[Array, " b"]


class Reading(NamedTuple):
    """A plan's fields and its keyframes, [b, g, ...] each."""

    plan: Plan
    keyframes: Keyframes
    requests: Requests


class Found(NamedTuple):
    """System 2's boxes, given to objects; and its masks, where it makes them without boxes."""

    boxes: GroundedBoxes
    matching: rewards.Matching
    masks: Masks | None = None


def _grouped(tree, group: int):
    return jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), tree)


def read(frozen: Frozen, config: StepConfig, batch: Batch, completions: Completions) -> Reading:
    """Completions to plans, keyframes and requests to System 2."""
    g, t = config.group, batch.frame_valid.shape[1]
    text = reasoner.read(frozen.vocab, completions, config.completion_bytes)
    plan = read_plan(text, jnp.repeat(jnp.sum(batch.frame_valid, axis=1), g), config.limits)
    member = jax.vmap(keyframes.members, (0, 0, 0, None))(plan.valid, plan.first_frame, plan.last_frame, t)
    chosen = jax.vmap(keyframes.select, (0, None))(member, config.keyframes)
    described = keyframes.descriptions(plan.description, chosen)
    plan, chosen, described = _grouped((plan, chosen, described), g)
    return Reading(plan, chosen, Requests(chosen.frame, chosen.valid, described))


def ground(models: Models, frozen: Frozen, config: StepConfig, batch: Batch, reading: Reading) -> Found:
    """Boxes of every keyframe, matched to the true objects."""
    n, masks = batch.boxes.shape[1], None
    if isinstance(models.segmenter, TextSegmenter):
        size = batch.truth.shape[2:]
        found = models.segmenter.from_text(frozen.segmenter, batch.sharp, batch.frame_valid, reading.requests, size)
        boxes = segmenters.extents(found, batch.sharp, reading.requests, n)
        masks = Masks(jnp.any(found, axis=2), None)
    else:
        boxes = common.find(models, frozen, batch.sharp, reading.requests, n)
    match = lambda box, count, chosen, truth, scale, objects: rewards.match(
        box, count, truth, scale, objects, chosen, config.reward
    )
    per_clip = jax.vmap(match, (0, 0, 0, None, None, None))
    matching = jax.vmap(per_clip)(boxes.box, boxes.count, reading.keyframes, batch.boxes, boxes.scale, batch.objects)
    return Found(boxes, matching, masks)


def segment(
    models: Models, frozen: Frozen, config: StepConfig, batch: Batch, reading: Reading, found: Found
) -> Masks | None:
    """The matched boxes carried through the clip, in original pixels; None if no weight asks for masks."""
    if config.reward.segmentation == 0:
        return None
    if found.masks is not None:
        return found.masks
    if models.segmenter is None:
        raise InputError(
            "reward.segmentation: masks are weighed but the run has no segmenter; set sam2 or the weight to 0"
        )
    back = jnp.tile(found.boxes.scale, 2)[:, None, None, None]
    prompts = Prompts(found.matching.box / back, found.matching.prompt, reading.keyframes.frame)
    masks = segmenters.union(
        models.segmenter, frozen.segmenter, batch.clip, batch.frame_valid, batch.sharp.original, prompts
    )
    if masks.union.shape[3:] != batch.truth.shape[2:]:
        raise InputError(
            f"step.segmenter: its masks are {masks.union.shape[3:]}, the true ones {batch.truth.shape[2:]}"
        )
    return masks


def reward(
    config: StepConfig,
    batch: Batch,
    completions: Completions,
    reading: Reading,
    found: Found,
    masks: Masks | None,
) -> Rewards:
    """Every term of every completion."""

    def one(plan, chosen, matching, union, truth, frame_valid, areas, objects):
        first = rewards.plan_terms(plan, areas, objects, config.reward)
        similarity = jnp.zeros(())
        if union is not None:
            similarity = rewards.region_similarity(union, truth, jnp.sum(frame_valid))
        terms = rewards.vos_terms(first, matching, similarity, areas, chosen, config.reward)
        return terms, rewards.accuracy(terms, first.any_valid, config.reward)

    union = None if masks is None else masks.union
    per_clip = jax.vmap(one, (0, 0, 0, 0, None, None, None, None))
    terms, accuracy = jax.vmap(per_clip)(
        reading.plan,
        reading.keyframes,
        found.matching,
        union,
        batch.truth,
        batch.frame_valid,
        batch.areas,
        batch.objects,
    )
    asked = found.boxes.asked
    taken = (
        jnp.arange(found.boxes.failure.shape[-1])
        < jnp.minimum(found.boxes.count, batch.objects[:, None, None])[..., None]
    )
    plan = reading.plan
    failures = {
        **common.kinds("plan", plan.failure, jnp.arange(plan.failure.shape[-1]) < plan.slots_used[..., None]),
        **common.kinds("box", found.boxes.failure, asked[..., None] & taken),
        "plan/no_answer": jnp.sum(~plan.answered).astype(jnp.float32),
        "plan/no_piece": jnp.sum(plan.answered & (plan.count == 0)).astype(jnp.float32),
        "plan/too_short": jnp.sum(plan.short).astype(jnp.float32),
        "plan/over_limit": jnp.sum(plan.unread > 0).astype(jnp.float32),
        "box/no_group": jnp.sum(asked & (found.boxes.count == 0)).astype(jnp.float32),
        "description/too_long": jnp.sum(reading.requests.valid & ~asked).astype(jnp.float32),
    }
    measured = {
        "keyframes": jnp.sum(reading.keyframes.valid, axis=2).astype(jnp.float32),
        "boxes": jnp.sum(found.matching.prompt, axis=(2, 3)).astype(jnp.float32),
    }
    every = {**terms._asdict(), **measured}
    if masks is None:
        del every["segmentation"]  # not computed, and not 0
    return common.total(config, accuracy, plan.formatted, completions, every, failures)


TASK = Task("vos", Batch, read, reward, ground=ground, segment=segment)
