"""RefAVS in its training form: the answer describes what sounds, System 2 finds it in the first frame."""

from typing import NamedTuple, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from omnir1_jax import rewards
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rl.config import Frozen, Models, Rewards, StepConfig
from omnir1_jax.systems import reasoner
from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.systems.grounders.protocol import GroundedBoxes, Requests
from omnir1_jax.tasks import common
from omnir1_jax.tasks.task import Task
from omnir1_jax.text.readers import Answer, read_answer


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
    sharp: HighResFrames
    box: Float[Array, "b 4"]


class Reading(NamedTuple):
    """Answers [b, g, ...] and requests to System 2."""

    answer: Answer
    requests: Requests


def read(frozen: Frozen, config: StepConfig, batch: Batch, completions: Completions) -> Reading:
    """Completions to descriptions. An answer without content is not looked for."""
    text = reasoner.read(frozen.vocab, completions, config.completion_bytes)
    answer = read_answer(text, config.limits)
    answer = jax.tree.map(lambda x: x.reshape(-1, config.group, *x.shape[1:]), answer)
    wanted = (answer.answered & (answer.description.length > 0))[..., None]
    description = jax.tree.map(lambda x: x[:, :, None], answer.description)
    return Reading(answer, Requests(jnp.zeros(wanted.shape, jnp.int32), wanted, description))


def ground(models: Models, frozen: Frozen, config: StepConfig, batch: Batch, reading: Reading) -> GroundedBoxes:
    """The first box that System 2 gives."""
    return common.find(models, frozen, batch.sharp, reading.requests, 1)


def reward(
    config: StepConfig, batch: Batch, completions: Completions, reading: Reading, found: GroundedBoxes, _: None
) -> Rewards:
    """Overlap of the found box with the true one."""
    shape = completions.lengths.shape
    truth = jnp.broadcast_to(batch.box[:, None], (*shape, 4))
    scale = jnp.broadcast_to(found.scale[:, None], (*shape, 2))
    accuracy = rewards.refavs_accuracy(found.box[:, :, 0, 0], truth, scale)
    asked = found.asked[..., 0]
    accuracy = jnp.where(asked, accuracy, 0.0)
    failures = {
        **common.kinds("answer", reading.answer.failure),
        **common.kinds("box", found.failure[..., 0, 0], asked),
        "answer/empty": jnp.sum(reading.answer.answered & (reading.answer.description.length == 0)).astype(jnp.float32),
        "description/too_long": jnp.sum(reading.requests.valid & ~found.asked).astype(jnp.float32),
    }
    return common.total(config, accuracy, reading.answer.formatted, completions, {}, failures)


TASK = Task("refavs", Batch, read, reward, ground=ground)
