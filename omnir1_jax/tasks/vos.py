"""Video object segmentation (ReVOS, MeViS): a plan, its keyframes grounded, the boxes tracked through the clip."""

from typing import Any, NamedTuple, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from omnir1_jax import rewards
from omnir1_jax.data import canvas
from omnir1_jax.data.clips import DecodedClip
from omnir1_jax.data.frame_sampling import SAMPLED_FPS
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rl.config import Frozen, Models, Rewards, StepConfig
from omnir1_jax.systems import keyframes, prompts, reasoner, segmenters
from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.systems.grounders.protocol import GroundedBoxes, Requests
from omnir1_jax.systems.keyframes import Keyframes
from omnir1_jax.systems.segmenters import Masks, Prompts, TextSegmenter
from omnir1_jax.tasks import common, description, examples, targets
from omnir1_jax.tasks.common import Grounded
from omnir1_jax.tasks.description import At, Clip, Description
from omnir1_jax.tasks.examples import Arrays, ExampleConfig
from omnir1_jax.tasks.task import Task, grouped, nothing
from omnir1_jax.text.readers import Plan, read_plan


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Batch:
    """Prompts about clips of up to t frames and n objects.

    Attributes:
      policy: System 1's prompts.
      sharp: frames for the grounder.
      clip: frames for the segmenter, stretched to a square.
      truth: union of the objects' masks, at the segmenter's mask size.
      boxes: boxes of each object, in original pixels, -1 where it is not in the frame.
      areas: pixels of each object.
      objects: number of the n that are real.
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


class Grounding(NamedTuple):
    """System 2's boxes, assigned to objects; and its masks, if it makes them without boxes."""

    boxes: GroundedBoxes
    matching: rewards.Matching
    masks: Masks | None = None


def prompt(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """A clip with its query."""
    seconds = len(clip.frames) / SAMPLED_FPS
    text = prompts.render(
        config.template,
        query=clip.ref.query,
        duration=f"{seconds:g}",
        fps=f"{SAMPLED_FPS:g}",
        example=prompts.example(seconds, clip.rng),
    )
    return examples.video_prompt(clip, text, config)


def frames(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """All frames of the clip."""
    return examples.sharp_arrays(clip.frames, clip.size, config)


def truth(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """The segmenter's frames and the objects."""
    side = config.segmenter_side
    if not side:
        raise InputError("sam2.side: the video family needs the segmenter's input side")
    shape = canvas.DetailConfig(config.frames, config.objects, (side, side), (side // 4, side // 4))
    seen = canvas.element(clip, shape)
    return {
        "clip": seen["frames"],
        "frame_valid": seen["frame_valid"],
        "truth": seen["masks"].any(axis=0),
        "boxes": seen["boxes"].astype(np.float32),
        "areas": seen["areas"].astype(np.float32),
        "objects": np.int32(seen["object_valid"].sum()),
    }


def target(clip: DecodedClip, config: targets.TargetConfig) -> str:
    """A plan from the ground truth: moments over the clip at which the target is largest, described by the query."""
    if clip.masks is None:
        raise InputError("no masks to make a plan from")
    moments = targets.best_moments(clip.masks, config.keyframes)
    if not moments:
        raise InputError("the target is in no frame")
    query = targets.quoted(clip.ref.query)[1:-1]
    plan = " ".join(targets.piece(t, t, query) for t in moments)
    return targets.thought(f" What is meant is {query}. ", f" {plan} ")


def read(frozen: Frozen, config: StepConfig, batch: Any, completions: Completions) -> Reading:
    """Completions to plans, keyframes and requests to System 2. Any batch with `frame_valid` suffices."""
    g, t = config.group, batch.frame_valid.shape[1]
    text = reasoner.read(frozen.vocab, completions, config.completion_bytes)
    plan = read_plan(text, jnp.repeat(jnp.sum(batch.frame_valid, axis=1), g), config.limits)
    member = jax.vmap(keyframes.members, (0, 0, 0, None))(plan.valid, plan.first_frame, plan.last_frame, t)
    chosen = jax.vmap(keyframes.select, (0, None))(member, config.keyframes)
    described = keyframes.descriptions(plan.description, chosen)
    plan, chosen, described = grouped((plan, chosen, described), g)
    return Reading(plan, chosen, Requests(chosen.frame, chosen.valid, described))


def ground(models: Models, frozen: Frozen, config: StepConfig, batch: Batch, reading: Reading) -> Grounding:
    """Boxes of every keyframe, matched to the true objects."""
    n, masks = batch.boxes.shape[1], None
    if isinstance(models.segmenter, TextSegmenter):
        size = batch.truth.shape[2:]
        text_masks = models.segmenter.from_text(
            frozen.segmenter, batch.sharp, batch.frame_valid, reading.requests, size
        )
        boxes = segmenters.extents(text_masks, batch.sharp, reading.requests, n)
        masks = Masks(jnp.any(text_masks, axis=2), None)
    else:
        boxes = common.find(models, frozen, batch.sharp, reading.requests, n)
    match = lambda box, count, chosen, truth, scale, objects: rewards.match(
        box, count, truth, scale, objects, chosen, config.reward
    )
    per_clip = jax.vmap(match, (0, 0, 0, None, None, None))
    matching = jax.vmap(per_clip)(boxes.box, boxes.count, reading.keyframes, batch.boxes, boxes.scale, batch.objects)
    return Grounding(boxes, matching, masks)


def segment(
    models: Models, frozen: Frozen, config: StepConfig, batch: Batch, reading: Reading, grounding: Grounding
) -> Masks | None:
    """Masks of the matched boxes tracked through the clip, in original pixels; None if no weight needs masks."""
    if config.reward.segmentation == 0:
        return None
    if grounding.masks is not None:
        return grounding.masks
    if models.segmenter is None:
        raise InputError(
            "reward.segmentation: masks are weighed but the run has no segmenter; set sam2 or the weight to 0"
        )
    to_original = jnp.tile(grounding.boxes.scale, 2)[:, None, None, None]
    box_prompts = Prompts(grounding.matching.box / to_original, grounding.matching.prompt, reading.keyframes.frame)
    masks = segmenters.union(
        models.segmenter, frozen.segmenter, batch.clip, batch.frame_valid, batch.sharp.original, box_prompts
    )
    if masks.union.shape[3:] != batch.truth.shape[2:]:
        raise InputError(
            f"step.segmenter: its masks are {masks.union.shape[3:]}, the true ones {batch.truth.shape[2:]}"
        )
    return masks


def failures(batch: Any, reading: Reading, grounding: Grounded) -> dict[str, Int[Array, "b g"]]:
    """Counts of failures by name; without boxes of System 2's those of the plan alone. Needs `batch.objects`."""
    plan, boxes = reading.plan, grounding.boxes
    counts = {
        **common.kinds("plan", plan.failure, jnp.arange(plan.failure.shape[-1]) < plan.slots_used[..., None]),
        "plan/no_answer": common.count(~plan.answered),
        "plan/no_piece": common.count(plan.answered & (plan.count == 0)),
        "plan/too_short": plan.short,
        "plan/over_limit": common.count(plan.unread > 0),
    }
    if boxes is None:
        return counts
    limit = jnp.minimum(boxes.count, batch.objects[:, None, None])
    counted = jnp.arange(boxes.failure.shape[-1]) < limit[..., None]
    return {
        **counts,
        **common.kinds("box", boxes.failure, boxes.asked[..., None] & counted),
        "box/no_group": common.count(boxes.asked & (boxes.count == 0)),
        "description/too_long": common.count(reading.requests.valid & ~boxes.asked),
    }


def reward(
    config: StepConfig,
    batch: Batch,
    completions: Completions,
    reading: Reading,
    grounding: Grounding,
    masks: Masks | None,
) -> Rewards:
    """Every term of every completion."""

    def completion_terms(plan, chosen, matching, union, truth, frame_valid, areas, objects):
        first = rewards.plan_terms(plan, areas, objects, config.reward)
        similarity = jnp.zeros(())
        if union is not None:
            similarity = rewards.region_similarity(union, truth, jnp.sum(frame_valid))
        terms = rewards.vos_terms(first, matching, similarity, areas, chosen, config.reward)
        return terms, rewards.accuracy(terms, first.any_valid, config.reward)

    union = None if masks is None else masks.union
    per_clip = jax.vmap(completion_terms, (0, 0, 0, 0, None, None, None, None))
    terms, accuracy = jax.vmap(per_clip)(
        reading.plan,
        reading.keyframes,
        grounding.matching,
        union,
        batch.truth,
        batch.frame_valid,
        batch.areas,
        batch.objects,
    )
    measured = {
        "keyframes": jnp.sum(reading.keyframes.valid, axis=2).astype(jnp.float32),
        "boxes": jnp.sum(grounding.matching.prompt, axis=(2, 3)).astype(jnp.float32),
    }
    all_terms = {**terms._asdict(), **measured}
    if masks is None:
        del all_terms["segmentation"]  # not computed, and not 0
    counts = failures(batch, reading, grounding)
    return common.total(config, accuracy, reading.plan.formatted, completions, all_terms, counts)


def describe(facts: Any, reading: Reading, grounding: Grounded, index: At) -> Description:
    """The plan, and System 2's boxes for its keyframes."""
    return Description(
        description.pieces(reading.plan, index), description.keyframes(reading.requests, grounding.boxes, index)
    )


def picture(batch: Batch, i: int) -> Clip:
    """The clip with the objects and their boxes."""
    count = int(np.sum(batch.frame_valid[i]))
    clip = description.high_res_clip(batch.sharp, i, count)
    boxes = batch.boxes[i][: int(batch.objects[i]), :count]
    return clip._replace(truth=batch.truth[i][:count], boxes=boxes.astype(np.float32))


TASK = Task(
    "vos",
    Batch,
    prompt,
    read,
    reward,
    ground=ground,
    segment=segment,
    failures=failures,
    fields=("query", "duration", "fps", "example"),
    clips="vos",
    frames=frames,
    truth=truth,
    target=target,
    facts=nothing,
    describe=describe,
    picture=picture,
    plans=True,
)
