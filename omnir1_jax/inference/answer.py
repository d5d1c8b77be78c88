"""Both systems over a batch, in the graph: System 1's answer, the frames it chose, System 2's boxes in them.

At evaluation there are no true objects to give boxes to. Box i of the answers is slot i of the objects, in every
keyframe, and the answer is the union of all slots: where System 2 names one object, all its boxes prompt one track;
where it names several it does so in a like order, and where it does not, the union forgives an exchange.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Bool, Float, Int, Key

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
from omnir1_jax.text.readers import Answer as Description
from omnir1_jax.text.readers import Plan, read_answer, read_plan

KEYFRAMES = ("plan", "uniform", "random", "first")


@dataclasses.dataclass(frozen=True)
class How:
    """Choices of an evaluation that are compiled in.

    Attributes:
      family: vos, refavs or qa.
      keyframes: "plan": those of System 1; otherwise the first description of its plan in frames spread evenly,
        drawn at random, or in the first one. As many as a plan may have, whatever it had.
      oracle: given boxes (the true ones, or another model's) in place of System 2's. With frames that are not the
        plan's they need no plan either.
      host: System 2 is on the host (`inference.host`): no boxes yet, only the frames that were chosen.
      objects: slots for objects.
    """

    family: str
    keyframes: str = "plan"
    oracle: bool = False
    objects: int = 8
    host: bool = False

    def __post_init__(self):
        if self.keyframes not in KEYFRAMES:
            raise InputError(f"--keyframes: {self.keyframes!r} is none of {', '.join(KEYFRAMES)}")
        if self.family != "vos" and self.keyframes != "plan":
            raise InputError(f"--keyframes: {self.keyframes} is for benchmarks of video segmentation alone")
        if self.objects < 1:
            raise InputError(f"--objects: {self.objects} is less than 1")


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Asked:
    """What a batch is asked; all but `policy` is None for questions.

    Attributes:
      policy: System 1's prompts.
      sharp: the seen frames for System 2.
      frame_valid: which of them are real. frame_index: their places in the video.
      boxes: given ones in pixels of the video, -1 where there is none.
      original: width and height of the video.
      number: position of the item in its benchmark; random draws for the item depend on it and the seed alone.
    """

    policy: ThinkerInputs
    number: Int[Array, " b"]
    sharp: HighResFrames | None = None
    frame_valid: Bool[Array, "b t"] | None = None
    frame_index: Int[Array, "b t"] | None = None
    boxes: Float[Array, "b n t 4"] | None = None
    original: Int[Array, "b 2"] | None = None


class Prompts(NamedTuple):
    """What the segmenter is given: boxes in pixels of the video, which are real, and frames of the video."""

    boxes: Float[Array, "b k n 4"]
    used: Bool[Array, "b k n"]
    frames: Int[Array, "b k"]


class Found(NamedTuple):
    """What was answered and read of it. `plan` is System 1's plan, or the description of a RefAVS answer.

    Attributes:
      chosen: frames among those seen.
      boxes: of System 2 in the graph, [b 1 k ...]; None with boxes from elsewhere.
    """

    completions: Completions
    plan: Plan | Description | None = None
    chosen: Keyframes | None = None
    boxes: GroundedBoxes | None = None
    prompts: Prompts | None = None


def to_asked(arrays: Mapping[str, Any]) -> Asked:
    """From flat arrays, their keys paths such as "policy/vision/pixels"."""
    tree = unflatten_dict(dict(arrays), sep="/")
    if "sharp" in tree:
        tree["sharp"] = HighResFrames(**tree["sharp"])
    return Asked(policy=ThinkerInputs.of(tree.pop("policy")), **tree)


def answer(
    models: Models,
    config: StepConfig,
    how: How,
    policy: Mapping[str, Any],
    frozen: Frozen,
    batch: Asked,
    key: Key[Array, ""],
) -> Found:
    """All but the masks. Models, config and how are static.

    Args:
      config: with groups of 1.
      policy: the thinker's parameters as System 1: {"vision", "audio", "text"}.
      frozen: the thinker's parameters as System 2, and tables of the tokenizer.
    """
    media = reasoner.encode(models.thinker, policy, batch.policy)
    variables = {"params": policy["text"]}
    # Noise is drawn by the item's number: it is fresh for every item, and the same in whatever batch the item is.
    completions = reasoner.sample(
        models.thinker, variables, batch.policy, media, key, config.sampling, 1, row_ids=batch.number
    )
    if how.family == "qa":
        return Found(completions)
    text = reasoner.read(frozen.vocab, completions, config.completion_bytes)
    if how.family == "vos":
        plan = read_plan(text, jnp.sum(batch.frame_valid, axis=1), config.limits)
        chosen = choose(how, plan, batch, config.keyframes, key)
        descriptions = plan.description
    else:
        plan = read_answer(text, config.limits)
        wanted = (plan.answered & (plan.description.length > 0))[:, None]
        chosen = Keyframes(jnp.zeros(wanted.shape, jnp.int32), jnp.zeros(wanted.shape, jnp.int32), wanted)
        descriptions = jax.tree.map(lambda x: x[:, None], plan.description)
    at = jnp.take_along_axis(batch.frame_index, chosen.frame, axis=1)
    if how.oracle:
        true = jnp.take_along_axis(batch.boxes, chosen.frame[:, None, :, None], axis=2).swapaxes(1, 2)
        used = ~box_rules.is_missing(true) & chosen.valid[..., None]
        return Found(completions, plan, chosen, prompts=Prompts(true, used, at))
    if how.host:
        blank = jnp.zeros((*chosen.frame.shape, slots(how), 4))
        return Found(completions, plan, chosen, prompts=Prompts(blank, blank[..., 0] > 0, at))
    described = keyframes.descriptions(descriptions, chosen)
    requests = Requests(*jax.tree.map(lambda x: x[:, None], (chosen.frame, chosen.valid, described)))
    boxes = common.find(models, frozen, batch.sharp, requests, slots(how))
    return Found(completions, plan, chosen, boxes, Prompts(boxes.original[:, 0], boxes.used[:, 0], at))


def slots(how: How) -> int:
    """RefAVS names one object: of its answer the first box counts, as in training."""
    return 1 if how.family == "refavs" else how.objects


def choose(how: How, plan: Plan, batch: Asked, count: int, key: Key[Array, ""]) -> Keyframes:
    """The frames that System 2 looks at, and the piece of the plan that describes each. [b count]"""
    most = batch.frame_valid.shape[1]
    if how.keyframes == "plan":
        member = jax.vmap(keyframes.members, (0, 0, 0, None))(plan.valid, plan.first_frame, plan.last_frame, most)
        return jax.vmap(keyframes.select, (0, None))(member, count)
    place = jnp.arange(count)

    def one(frames: Int[Array, ""], number: Int[Array, ""]) -> tuple[Int[Array, "k"], Bool[Array, "k"]]:
        some = jnp.minimum(frames, count)
        if how.keyframes == "first":
            return jnp.zeros(count, jnp.int32), place == 0
        if how.keyframes == "uniform":
            return (2 * place + 1) * frames // jnp.maximum(2 * some, 1), place < some
        noise = jax.random.uniform(jax.random.fold_in(key, number), (most,))
        rank = jnp.argsort(jnp.argsort(jnp.where(jnp.arange(most) < frames, noise, 2.0)))
        drawn = jnp.sort(jnp.where(rank < some, jnp.arange(most), most))
        return jnp.pad(drawn, (0, max(count - most, 0)))[:count], place < some

    frame, valid = jax.vmap(one)(jnp.sum(batch.frame_valid, axis=1), batch.number)
    told = jnp.ones(len(frame), bool) if how.oracle else jnp.any(plan.valid, axis=1)
    valid = valid & told[:, None]
    piece = jnp.broadcast_to(jnp.argmax(plan.valid, axis=1)[:, None], frame.shape)
    keep = lambda x: jnp.where(valid, x, 0)
    return Keyframes(keep(frame), keep(piece), valid)
