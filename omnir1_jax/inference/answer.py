"""Both systems over a batch, in the graph: System 1's answer, the frames it chose, System 2's boxes in them.

At evaluation there are no true objects to give boxes to. Box i of the answers is slot i of the objects, in every
keyframe, and the answer is the union of all slots: where System 2 names one object, all its boxes prompt one track;
where it names several, their order is usually the same, and otherwise the union forgives an exchange.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from omnir1_jax import tasks
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rewards import boxes as box_rules
from omnir1_jax.rl.config import Frozen, Models, StepConfig
from omnir1_jax.systems import keyframes, reasoner
from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.systems.grounders.protocol import GroundedBoxes, Requests
from omnir1_jax.systems.keyframes import Keyframes
from omnir1_jax.tasks import common
from omnir1_jax.text.readers import Plan
from omnir1_jax.text.strings import Buffer

KEYFRAMES = ("plan", "uniform", "random", "first", "best")
DESCRIPTIONS = ("plan", "query")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Choices of an evaluation that are compiled in.

    Attributes:
      task: the benchmark's task.
      keyframes: "plan": those of System 1; otherwise the first description of its plan in frames spread evenly,
        drawn at random, in the first one, or ("best", an oracle's) in those whose given boxes are largest: always the
        largest number that a plan may have.
      oracle: whether boxes are given (ground truth, or another model's) instead of System 2's. With frames that are not
        the plan's they need no plan either.
      description: what System 2 is asked for: "plan": System 1's words; "query": the query's own; with frames that are
        not the plan's, these need no plan.
      host: whether System 2 runs on the host (`inference.host`): no boxes yet, only the chosen frames.
      objects: slots for objects.
    """

    task: tasks.Task
    keyframes: str = "plan"
    oracle: bool = False
    objects: int = 8
    host: bool = False
    description: str = "plan"

    def __post_init__(self):
        if self.description not in DESCRIPTIONS:
            raise InputError(f"--description: {self.description!r} is none of {', '.join(DESCRIPTIONS)}")
        if not self.task.grounds and self.description != "plan":
            raise InputError(f"--description: {self.description} is for tasks with a System 2")
        if self.keyframes not in KEYFRAMES:
            raise InputError(f"--keyframes: {self.keyframes!r} is none of {', '.join(KEYFRAMES)}")
        if not self.task.plans and self.keyframes != "plan":
            raise InputError(f"--keyframes: {self.keyframes} is for benchmarks of video segmentation alone")
        if self.objects < 1:
            raise InputError(f"--objects: {self.objects} is less than 1")


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Query:
    """The queries of a batch; all but `policy` is None for questions.

    Attributes:
      policy: System 1's prompts.
      sharp: the seen frames for System 2.
      frame_valid: which of them are real. frame_index: their indices in the video.
      boxes: given boxes in pixels of the video, -1 where there is none.
      original: width and height of the video.
      number: position of the item in its benchmark; random draws for the item depend on it and the seed alone.
      words: the query's text, where System 2 is asked for it.
    """

    policy: ThinkerInputs
    number: Int[Array, " b"]
    sharp: HighResFrames | None = None
    frame_valid: Bool[Array, "b t"] | None = None
    frame_index: Int[Array, "b t"] | None = None
    boxes: Float[Array, "b n t 4"] | None = None
    original: Int[Array, "b 2"] | None = None
    words: Buffer | None = None

    @property
    def objects(self) -> Int[Array, " b"]:
        """All slots: the number of objects is not known."""
        return jnp.full(len(self.boxes), self.boxes.shape[1])


class Prompts(NamedTuple):
    """What the segmenter is given: boxes in pixels of the video, which are real, and frames of the video."""

    boxes: Float[Array, "b k n 4"]
    used: Bool[Array, "b k n"]
    frames: Int[Array, "b k"]


class Answers(NamedTuple):
    """Completions and what was parsed from them, [b 1 ...]; all but these and their failures is None for questions.

    Attributes:
      failures: how often each kind of failure happened, by name.
      reading: the task's parsed completion, with the chosen requests to System 2.
      boxes: boxes of System 2 in the graph; None if they come from elsewhere.
    """

    completions: Completions
    failures: dict[str, Int[Array, "b 1"]]
    reading: Any = None
    boxes: GroundedBoxes | None = None
    prompts: Prompts | None = None

    @property
    def chosen(self) -> Requests:
        """Keyframes among the seen frames, with their requests to System 2, [b k ...]."""
        return jax.tree.map(lambda x: x[:, 0], self.reading.requests)


def respond(
    models: Models,
    config: StepConfig,
    policy: Mapping[str, Any],
    inputs: ThinkerInputs,
    number: Int[Array, " b"],
    key: Key[Array, ""],
) -> Completions:
    """System 1's answers [b 1 ...]. The same program whatever frames are shown to System 2.

    Args:
      config: step config with groups of 1.
      policy: the thinker's parameters as System 1: {"vision", "audio", "text"}.
      number: `Query.number`.
    """
    # Scopes as of the training step's stages, by which the planner counts.
    with jax.named_scope("encode"):
        media = reasoner.encode(models.thinker, policy, inputs)
    with jax.named_scope("sample"):
        # Noise depends on the item's number: different for every item, and the same in any batch.
        variables = {"params": policy["text"]}
        return reasoner.sample(models.thinker, variables, inputs, media, key, config.sampling, 1, row_ids=number)


def read(config: StepConfig, task: tasks.Task, frozen: Frozen, batch: Query, completions: Completions) -> Any:
    """The task's parsed completions [b 1 ...], with their own requests to System 2. The same program for all rules."""
    return task.read(frozen, config, batch, completions)


def request(config: StepConfig, eval_config: EvalConfig, batch: Query, parsed: Any, key: Key[Array, ""]) -> Any:
    """Parsed completions [b 1 ...] with requests to System 2 by the rules of `eval_config`."""
    if eval_config.keyframes != "plan":
        parsed = parsed._replace(requests=elsewhere(eval_config, parsed.plan, batch, config.keyframes, key))
    if eval_config.description == "query":
        asked = parsed.requests.valid
        words = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None, None], (*asked.shape, *x.shape[1:])), batch.words)
        parsed = parsed._replace(requests=parsed.requests._replace(description=words))
    return parsed


def ground(models: Models, count: int, frozen: Frozen, frames: HighResFrames, requests: Requests) -> GroundedBoxes:
    """System 2's boxes, up to `count` of a request. The same program whoever chose the frames."""
    with jax.named_scope("ground"):
        return common.find(models, frozen, frames, requests, count)


def conclude(
    config: StepConfig,
    eval_config: EvalConfig,
    batch: Query,
    completions: Completions,
    reading: Any,
    boxes: GroundedBoxes | None,
) -> Answers:
    """The answers with what the segmenter is given, and their failures. `boxes`: None if they come from elsewhere."""
    unended = {"completion/unended": common.count(common.unended(completions, config.sampling.eos))}
    if not eval_config.task.grounds:
        return Answers(completions, unended)
    answers = Answers(completions, unended, reading, boxes)
    frame, valid = answers.chosen.frame, answers.chosen.valid
    clip_frames = jnp.take_along_axis(batch.frame_index, frame, axis=1)
    if eval_config.oracle:
        true = jnp.take_along_axis(batch.boxes, frame[:, None, :, None], axis=2).swapaxes(1, 2)
        prompts = Prompts(true, ~box_rules.is_missing(true) & valid[..., None], clip_frames)
    elif boxes is None:
        blank = jnp.zeros((*frame.shape, slots(eval_config), 4))
        prompts = Prompts(blank, blank[..., 0] > 0, clip_frames)
    else:
        prompts = Prompts(boxes.original[:, 0], boxes.used[:, 0], clip_frames)
    return answers._replace(prompts=prompts, failures={**eval_config.task.failures(batch, reading, answers), **unended})


def slots(eval_config: EvalConfig) -> int:
    """How many boxes of an answer count."""
    return eval_config.task.max_boxes or eval_config.objects


def elsewhere(eval_config: EvalConfig, plans: Plan, batch: Query, count: int, key: Key[Array, ""]) -> Requests:
    """Requests about frames that the plans [b 1 ...] did not choose."""
    plan = jax.tree.map(lambda x: x[:, 0], plans)
    chosen = choose(eval_config, plan, batch, count, key)
    described = keyframes.descriptions(plan.description, chosen)
    # True boxes need no description, so there may be keyframes without one.
    valid = jnp.take_along_axis(plan.valid, chosen.piece, axis=1)
    described = described._replace(length=jnp.where(valid, described.length, 0))
    return jax.tree.map(lambda x: x[:, None], Requests(chosen.frame, chosen.valid, described))


def choose(eval_config: EvalConfig, plan: Plan, batch: Query, count: int, key: Key[Array, ""]) -> Keyframes:
    """Frames in place of the plan's, and the piece of the plan that describes each. [b count]"""
    max_frames = batch.frame_valid.shape[1]
    slot = jnp.arange(count)

    def one(
        frames: Int[Array, ""], number: Int[Array, ""], area: Float[Array, " t"]
    ) -> tuple[Int[Array, " k"], Bool[Array, " k"]]:
        chosen_count = jnp.minimum(frames, count)
        if eval_config.keyframes == "first":
            return jnp.zeros(count, jnp.int32), slot == 0
        if eval_config.keyframes == "uniform":
            return (2 * slot + 1) * frames // jnp.maximum(2 * chosen_count, 1), slot < chosen_count
        if eval_config.keyframes == "best":
            order, chosen_count = -area, jnp.minimum(jnp.sum(area > 0), count)
        else:
            noise = jax.random.uniform(jax.random.fold_in(key, number), (max_frames,))
            order = jnp.where(jnp.arange(max_frames) < frames, noise, 2.0)
        drawn = jnp.sort(jnp.where(jnp.argsort(jnp.argsort(order)) < chosen_count, jnp.arange(max_frames), max_frames))
        return jnp.pad(drawn, (0, max(count - max_frames, 0)))[:count], slot < chosen_count

    areas = jnp.zeros(batch.frame_valid.shape)
    if eval_config.keyframes == "best":
        areas = jnp.sum(jnp.where(box_rules.is_missing(batch.boxes), 0, box_rules.area(batch.boxes)), axis=1)
    frame, valid = jax.vmap(one)(jnp.sum(batch.frame_valid, axis=1), batch.number, areas)
    needs_plan = not eval_config.oracle and eval_config.description == "plan"
    described = jnp.any(plan.valid, axis=1) if needs_plan else jnp.ones(len(frame), bool)
    valid = valid & described[:, None]
    piece = jnp.broadcast_to(jnp.argmax(plan.valid, axis=1)[:, None], frame.shape)
    keep = lambda x: jnp.where(valid, x, 0)
    return Keyframes(keep(frame), keep(piece), valid)
