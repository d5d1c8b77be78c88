"""RefAVS in its training form: the answer describes what sounds, System 2 finds it in the first frame."""

from typing import NamedTuple, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omnir1_jax import rewards
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rl.config import Frozen, Models, Rewards, StepConfig
from omnir1_jax.systems import detail, reasoner
from omnir1_jax.tasks import common
from omnir1_jax.text.readers import Answer, Boxes, read_answer, read_boxes


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Batch:
    """Prompts with sound and a first frame.

    Attributes:
      policy: System 1's prompts.
      sharp: the first frame for the grounder (t = 1).
      box: of the object in that frame, in original pixels.
    """

    policy: ThinkerInputs
    sharp: detail.SharpFrames
    box: Float[Array, "b 4"]


class Reading(NamedTuple):
    """Answers [b, g, ...] and requests to System 2."""

    answer: Answer
    requests: detail.Requests
    too_long: Int[Array, ""]


class Found(NamedTuple):
    """System 2's first box of each answer."""

    grounded: detail.Grounded
    boxes: Boxes


def read(frozen: Frozen, config: StepConfig, batch: Batch, completions: Completions) -> Reading:
    """Completions to descriptions. An answer without content is not looked for."""
    text = reasoner.read(frozen.vocab, completions, config.completion_bytes)
    answer = read_answer(text, config.limits)
    tails = common.tails(frozen, config, answer.description)
    answer = jax.tree.map(lambda x: x.reshape(-1, config.group, *x.shape[1:]), answer)
    wanted = (answer.answered & (answer.description.length > 0))[..., None]
    asked = common.requests(config, tails, jnp.zeros(wanted.shape, jnp.int32), wanted)
    return Reading(answer, asked, jnp.sum(wanted & ~asked.valid))


def ground(models: Models, frozen: Frozen, config: StepConfig, batch: Batch, reading: Reading) -> Found:
    """The first box that System 2 gives."""
    grounded = common.find(models, frozen, config, batch.sharp, reading.requests)
    flat = Completions(grounded.tokens, grounded.lengths, None)
    boxes = read_boxes(reasoner.read(frozen.vocab, flat, config.grounding_bytes), 1)
    shape = grounded.lengths.shape[:2]
    return Found(grounded, jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), boxes))


def segment(*_) -> None:
    """Nothing to segment."""


def reward(
    config: StepConfig, batch: Batch, completions: Completions, reading: Reading, found: Found, _: None
) -> Rewards:
    """Overlap of the found box with the true one."""
    shape = completions.lengths.shape
    truth = jnp.broadcast_to(batch.box[:, None], (*shape, 4))
    scale = jnp.broadcast_to(batch.sharp.scale[:, None], (*shape, 2))
    accuracy = rewards.refavs_accuracy(found.boxes.box[:, :, 0], truth, scale)
    asked = reading.requests.valid[..., 0]
    accuracy = jnp.where(asked, accuracy, 0.0)
    failures = {
        **common.kinds("answer", reading.answer.failure),
        **common.kinds("box", found.boxes.failure[..., 0], asked),
        "answer/empty": jnp.sum(reading.answer.answered & (reading.answer.description.length == 0)).astype(jnp.float32),
        "description/too_long": reading.too_long.astype(jnp.float32),
    }
    return common.total(config, accuracy, reading.answer.formatted, completions, {}, failures)
