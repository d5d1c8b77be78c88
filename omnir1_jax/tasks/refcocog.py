"""refCOCOg in Seg-Zero's form: one image, one phrase; the policy itself answers with a box and two points."""

from typing import no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from omnir1_jax import rewards
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rl.config import Frozen, Rewards, StepConfig
from omnir1_jax.systems import reasoner
from omnir1_jax.tasks import common
from omnir1_jax.tasks.task import Task
from omnir1_jax.text.readers import BoxAndPoints, read_box_and_points


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Batch:
    """Prompts about one image.

    Attributes:
      box, points: the truth, in original pixels.
      scale: resized over original width and height.
    """

    policy: ThinkerInputs
    box: Float[Array, "b 4"]
    points: Float[Array, "b 2 2"]
    scale: Float[Array, "b 2"]


def read(frozen: Frozen, config: StepConfig, batch: Batch, completions: Completions) -> BoxAndPoints:
    """Completions, flattened, to boxes and points."""
    return read_box_and_points(reasoner.read(frozen.vocab, completions, config.completion_bytes))


def reward(config: StepConfig, batch: Batch, completions: Completions, answer: BoxAndPoints, *_: None) -> Rewards:
    """The sum of Seg-Zero's four terms of what stands in the answer."""
    shape = completions.lengths.shape
    truth = jax.tree.map(lambda x: jnp.repeat(x, config.group, axis=0), (batch.box, batch.points, batch.scale))
    terms = jax.tree.map(lambda x: x.reshape(shape), rewards.refcocog_terms(answer, *truth))
    failures = {
        **common.kinds("object", answer.failure),
        **common.kinds("box", answer.box_failure),
        **common.kinds("points", answer.point_failure),
    }
    return common.total(config, sum(terms.values()), answer.formatted.reshape(shape), completions, terms, failures)


TASK = Task("refcocog", Batch, read, reward)
