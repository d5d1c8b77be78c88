"""Questions with options: the answer is right if it is the gold text.

Scores that need floating text metrics (word error rate, rouge) are not computed in a graph: `data` refuses such
questions by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, no_type_check

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8

from omnir1_jax.data.clips import DecodedClip
from omnir1_jax.data.refs import ClipRef
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rl.config import Frozen, Rewards, StepConfig
from omnir1_jax.systems import prompts, reasoner
from omnir1_jax.tasks import common, description, examples, targets
from omnir1_jax.tasks.description import At, Description
from omnir1_jax.tasks.examples import Arrays, ExampleConfig
from omnir1_jax.tasks.task import Task, grouped
from omnir1_jax.text import tags
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
    """Answers [b g ...]."""

    answer: Answer
    right: Bool[Array, "b g"]


def prompt(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """A question about a clip, with its sound if it is heard, and the options if there are any."""
    options = clip.ref.extra.get("options") or ()
    option_text = lettered(options) if config.letters else "\n".join(options)
    text = prompts.render(config.template, query=clip.ref.query, options=option_text)
    if not config.stills or len(clip.frames) > 1 or not config.audio_seconds or clip.audio is None:
        return examples.video_prompt(clip, text, config)
    content = [
        {"type": "image", "image": clip.frames[0]},
        {"type": "audio", **examples.waveform(clip, config)},
        {"type": "text", "text": text},
    ]
    return examples.policy_arrays(content, config, images=1, audio_seconds=[config.audio_seconds])


def lettered(options: Sequence[str]) -> str:
    """One option per line, behind its letter."""
    letters = [chr(ord("A") + i) for i in range(len(options))]
    return "\n".join(f"{letter}. {option.removeprefix(f'{letter}. ')}" for letter, option in zip(letters, options))


def right_letter(ref: ClipRef) -> str:
    """The letter of the right option.

    Other kinds of question are refused: their scores (word error rate, rouge, relative error) are not computed in a
    graph.
    """
    options, index = ref.extra.get("options"), ref.extra.get("answer_index")
    if not options or index is None:
        kind = ref.extra.get("problem_type") or "a question without options"
        raise InputError(f"{kind}: only multiple choice is rewarded in training")
    return chr(ord("A") + index)


def truth(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """The gold answer is the option's letter."""
    return {"gold": np.frombuffer(right_letter(clip.ref).encode(), np.uint8), "gold_length": np.int32(1)}


def target(clip: DecodedClip, config: targets.TargetConfig) -> str:
    """The right option's letter."""
    return targets.thought(" I choose. ", right_letter(clip.ref))


def read(frozen: Frozen, config: StepConfig, batch: Batch, completions: Completions) -> Reading:
    """Completions to answers, compared byte by byte with the gold."""
    limits = config.limits._replace(description=batch.gold.shape[1] + 1)
    answer = read_answer(reasoner.read(frozen.vocab, completions, config.completion_bytes), limits)
    gold = jnp.repeat(jnp.pad(batch.gold, ((0, 0), (0, 1))), config.group, axis=0)
    same_text = jnp.all(answer.description.bytes == gold, axis=1)
    length = answer.description.length == jnp.repeat(batch.gold_length, config.group)
    right = answer.answered & same_text & length & ~answer.description.truncated
    return grouped(Reading(answer, right), config.group)


def failures(batch: Batch, reading: Reading, _: None) -> dict[str, Int[Array, "b g"]]:
    """Counts of failures by name."""
    wrong = (reading.answer.failure == Failure.OK) & ~reading.right
    return {**common.kinds("answer", reading.answer.failure), "answer/wrong": common.count(wrong)}


def reward(config: StepConfig, batch: Batch, completions: Completions, reading: Reading, *_: None) -> Rewards:
    """1 for the right answer."""
    right = reading.right.astype(jnp.float32)
    return common.total(config, right, reading.answer.formatted, completions, {}, failures(batch, reading, None))


def describe(facts: Mapping[str, Any], reading: Reading, _: None, index: At) -> Description:
    """The answer and the reference answer."""
    gold = facts["gold"][index[0]][: facts["gold_length"][index[0]]].tobytes().decode("utf-8", "replace")
    return Description(answer=description.text(reading.answer.description, index), gold=gold)


def metric(ref: ClipRef, completion: str) -> dict[str, float]:
    """As in training, for datasets without a benchmark's rules: whether the answer is the right letter."""
    return {"accuracy": float((tags.between(completion, "answer") or "").strip() == right_letter(ref))}


TASK = Task(
    "qa",
    Batch,
    prompt,
    read,
    reward,
    failures=failures,
    fields=("query", "options"),
    templates={"direct": "qa", "thinking": "qa_thinking", "open": "question"},
    clips="qa",
    extra={"options": ("this", "that"), "answer_index": 0},
    truth=truth,
    target=target,
    describe=describe,
    metric=metric,
    sampling="video",
)
