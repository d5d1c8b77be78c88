"""Questions with options: the answer is right if it is the gold text.

Scores that need floating text metrics (word error rate, rouge) are not computed in a graph: `data` refuses such
questions by name.
"""

from typing import NamedTuple, no_type_check

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt8

from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rl.config import Frozen, Rewards, StepConfig
from omnir1_jax.systems import reasoner
from omnir1_jax.tasks import common
from omnir1_jax.tasks.task import Task
from omnir1_jax.text.readers import Answer, read_answer
from omnir1_jax.text.rules import Failure


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Batch:
    """Questions.

    Attributes:
      gold: UTF-8 of the right answer, stripped, zero beyond its length.
    """

    policy: ThinkerInputs
    gold: UInt8[Array, "b d"]
    gold_length: Int[Array, " b"]


class Reading(NamedTuple):
    """Answers, flattened."""

    answer: Answer
    right: Bool[Array, "n"]


def read(frozen: Frozen, config: StepConfig, batch: Batch, completions: Completions) -> Reading:
    """Completions to answers, compared byte by byte with the gold."""
    limits = config.limits._replace(description=batch.gold.shape[1] + 1)
    answer = read_answer(reasoner.read(frozen.vocab, completions, config.completion_bytes), limits)
    gold = jnp.repeat(jnp.pad(batch.gold, ((0, 0), (0, 1))), config.group, axis=0)
    same = jnp.all(answer.description.bytes == gold, axis=1)
    length = answer.description.length == jnp.repeat(batch.gold_length, config.group)
    return Reading(answer, answer.answered & same & length & ~answer.description.cut)


def reward(config: StepConfig, batch: Batch, completions: Completions, reading: Reading, *_: None) -> Rewards:
    """1 for the right answer."""
    shape = completions.lengths.shape
    right = reading.right.reshape(shape).astype(jnp.float32)
    wrong = (reading.answer.failure == Failure.OK) & ~reading.right
    failures = {**common.kinds("answer", reading.answer.failure), "answer/wrong": jnp.sum(wrong).astype(jnp.float32)}
    return common.total(config, right, reading.answer.formatted.reshape(shape), completions, {}, failures)


TASK = Task("qa", Batch, read, reward)
