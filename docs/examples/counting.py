"""A task of one's own in one file: how many shapes does the clip hold? The answer is a number.

python -m omnir1_jax.train --config docs/examples/counting.py --workdir RUN
"""

import pathlib
from typing import Any, NamedTuple, no_type_check

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from omnir1_jax.config.settings import datasets, task
from omnir1_jax.systems import reasoner
from omnir1_jax.tasks import Task, common, description, examples
from omnir1_jax.tasks.task import grouped
from omnir1_jax.text import tags
from omnir1_jax.text.readers import Answer, read_answer
from omnir1_jax.text.rules import Failure
from omnir1_jax.text.strings import Buffer

DIGITS = 4  # more are no number
TEMPLATE = "How many shapes are there? Answer as <think>...</think> <answer>number</answer>."


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Batch:
    """Clips and how many shapes are in them."""

    policy: Any
    number: Int[Array, " b"]


class Reading(NamedTuple):
    """Answers [b g ...] as numbers; -1 for a text that is none."""

    answer: Answer
    number: Int[Array, "b g"]
    right: Bool[Array, "b g"]


def prompt(clip, config):
    """The clip, then the question."""
    return examples.video_prompt(clip, config.template, config)


def truth(clip, config):
    """The number of shapes, which the synthetic world's reader knows."""
    return {"number": np.int32(len(clip.ref.extra["looks"]))}


def number_of(text: Buffer) -> Int[Array, "*lead"]:
    """Decimal texts as numbers, -1 for all others."""
    place = jnp.arange(text.bytes.shape[-1])
    used = place < text.length[..., None]
    digit = text.bytes.astype(jnp.int32) - ord("0")
    power = 10 ** jnp.clip(text.length[..., None] - 1 - place, 0, DIGITS)
    good = jnp.all(~used | ((digit >= 0) & (digit <= 9)), axis=-1) & (text.length > 0) & (text.length <= DIGITS)
    return jnp.where(good, jnp.sum(jnp.where(used, digit * power, 0), axis=-1), -1)


def read(frozen, config, batch, completions) -> Reading:
    """Completions to numbers."""
    answer = read_answer(reasoner.read(frozen.vocab, completions, config.completion_bytes), config.limits)
    answer, number = grouped((answer, number_of(answer.description)), config.group)
    return Reading(answer, number, number == batch.number[:, None])


def failures(batch, reading, _):
    """Each with its name."""
    answered = reading.answer.failure == Failure.OK
    return {
        **common.kinds("answer", reading.answer.failure),
        "number/none": common.count(answered & (reading.number < 0)),
        "number/wrong": common.count((reading.number >= 0) & ~reading.right),
    }


def reward(config, batch, completions, reading, *_):
    """1 for the right number, beside the format and the length bonus that all tasks have."""
    right = reading.right.astype(jnp.float32)
    return common.total(config, right, reading.answer.formatted, completions, {}, failures(batch, reading, None))


def describe(facts, reading, _, at):
    """The answer beside the right number."""
    said = description.text(reading.answer.description, at)
    return description.Description(answer=said, gold=str(facts["number"][at[0]]))


def metric(ref, completion):
    """Of an evaluation, by the text of the completion; on the host, so any Python will do."""
    said = (tags.between(completion, "answer") or "").strip()
    return {"accuracy": float(said == str(len(ref.extra["looks"])))}


TASK = Task(
    "counting",
    Batch,
    prompt,
    read,
    reward,
    failures=failures,
    template=TEMPLATE,
    clips="vos",
    extra={"looks": ("red circle",)},
    truth=truth,
    describe=describe,
    metric=metric,
)


def get_config():
    """The toy's models on clips of the synthetic world, whose lessons say everything that is in them."""
    from configs import toy

    c = toy.get_config()
    c.name = "counting"
    world = dict(family="vos", config="toy", clips=2000, lessons=True)
    own = f"{pathlib.Path(__file__)}:TASK"
    c.data = dict(counting=task(family=own, datasets=datasets(synthetic=world), batch_size=8, frames=8))
    c.prompts.text_tokens = 96
    return c
