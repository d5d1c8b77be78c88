"""Operations of the GRPO step by phase, and those of the usual implementation of the same step."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from omnir1_jax.config.settings import CELL, datasets, defaults, task
from omnir1_jax.models.qwen_omni.sample import TAIL_PIECE
from omnir1_jax.planning import operations
from omnir1_jax.planning.abstract import Program
from omnir1_jax.planning.hlo import Module
from omnir1_jax.planning.operations import Assumptions
from omnir1_jax.systems.grounders.thinker import GATHERED, ThinkerGrounder
from omnir1_jax.systems.segmenters.sam2 import Sam2Segmenter

# Stages of the step, the finer ones first: an operation counts for the first whose scopes it lies in.
PHASES = (
    "encode",
    "sample/decode",
    "sample",
    "read",
    "ground/frames",
    "ground/suffixes",
    "ground/decode",
    "ground",
    "segment/objects",
    "segment",
    "reward",
    "update/reference",
    "update/recompute",
    "update/backward",
    "update",
)
STAGES = ("encode", "sample", "read", "ground", "segment", "reward", "update", "other")

# TFLOP per prompt at the paper's sizes with `generate` and a vision encoder for every rollout, reference and policy on
# group x (prompt + completion) tokens, full rematerialisation, each of group x keyframes requests read separately.
USUAL = {"encode": 8.0, "sample": 73.0, "ground": 672.0, "segment": 177.0, "update": 247.0 + 988.0}
BUDGET = 0.45  # of the usual sum


# Loops whose end depends on data, by the scopes that they were traced under; the first match counts.
COMPLETION, ANSWER, SUFFIXES, TOGETHER, FRAMES, OBJECTS = LOOPS = (
    r"sample/.*decode",
    r"ground/.*decode",
    r"ground/.*suffixes",
    r"ground/frames/together",
    r"ground/frames",
    r"segment/.*objects",
)
TRACKED = r"segment/.*objects.*tracked"


class Rollout(NamedTuple):
    """Trips of a step's loops whose end depends on data.

    Attributes:
      completion: tokens of the longest completion. answer: of System 2's longest answer.
      tail: tokens of System 2's longest prompt after the frame.
      frames: distinct keyframes of a prompt's group, at most group x keyframes and the clip's length.
      objects: tracked objects of a prompt's group, those of all completions together.
    """

    completion: int
    answer: int
    tail: int
    frames: int
    objects: int


def longest(program: Program, name: str) -> Rollout:
    """Every loop of a task's step at its limit."""
    step, grounder = program.step, program.models.grounder
    task, batch = program.tasks[name], program.batches[name]
    frames = batch.sharp.cells.shape[1] if task.grounds else 0
    objects = batch.boxes.shape[1] if task.segments else 0
    by_thinker = task.grounds and isinstance(grounder, ThinkerGrounder)
    return Rollout(
        step.sampling.max_tokens,
        grounder.sampling.max_tokens if by_thinker else 1,
        grounder.description_tokens + program.frozen.grounder.prompt.suffix.shape[0] if by_thinker else 0,
        min(frames, step.group * step.keyframes),
        step.group * objects,
    )


def assumptions(program: Program, rollout: Rollout) -> Assumptions:
    """The trips and branches of a rollout."""
    step, vision = program.step, program.models.thinker.config.vision
    max_tokens = step.sampling.max_tokens
    lengths = [size for size in sorted(set(step.score_lengths)) if size < max_tokens] + [max_tokens]
    bucket = next(i for i, size in enumerate(lengths) if size >= min(rollout.completion, max_tokens))
    full_attention_share = len(vision.full_attention_blocks) / vision.depth
    segmenter = program.models.segmenter
    chunk = min(
        segmenter.model.config.object_chunk if isinstance(segmenter, Sam2Segmenter) else 1, max(rollout.objects, 1)
    )
    clips = [batch.clip.shape[1] for batch in program.batches.values() if hasattr(batch, "clip")]
    return Assumptions(
        trips={
            COMPLETION: rollout.completion - 1,
            ANSWER: rollout.answer - 1,
            SUFFIXES: math.ceil(rollout.tail / TAIL_PIECE),
            TOGETHER: math.ceil(rollout.frames / GATHERED),
            FRAMES: rollout.frames,
            r"segment/.*objects.*prompted": step.keyframes,
            TRACKED: max(clips, default=1) - 1,  # an object has at least one prompted frame
            OBJECTS: math.ceil(rollout.objects / chunk),
        },
        shares={
            r"blocks/cond": (1 - full_attention_share, full_attention_share),
            r"update/(reference/)?cond": [float(i == bucket) for i in range(len(lengths))],
        },
    )


def by_phase(module: Module, assumed: Assumptions) -> dict[str, float]:
    """Operations of each of `PHASES` and of the rest ("other")."""
    return operations.by_phase(operations.by_path(module, assumed), PHASES)


def by_stage(phases: Mapping[str, float]) -> dict[str, float]:
    """Sums of the finer phases."""
    amounts = dict.fromkeys(STAGES, 0.0)
    for name, amount in phases.items():
        amounts[name.split("/")[0]] += amount
    return amounts


def paper_config() -> ConfigDict:
    """One prompt at the paper's sizes: 7B, 24 frames of 128 tokens, a prompt of 1,850, SAM 2.1 large, one object."""
    c = defaults()
    c.thinker.path = "Qwen2.5-Omni-7B"
    c.sam2.path = "sam2.1-hiera-large"
    c.pixels.policy_video = (4 * CELL, 128 * CELL)
    c.pixels.sharp = (64 * CELL, 900 * CELL)
    c.prompts.text_tokens = 314
    c.prompts.max_aspect = 2.0
    c.data = dict(vos=task(datasets=datasets(revos={}), batch_size=1, frames=24, objects=1, target="some_frame"))
    c.step.group = 8
    c.step.keyframes = 4
    c.step.max_tokens = 768
    c.step.score_lengths = (416, 576)
    c.step.grounding_tokens = 256
    return c


def paper_rollout(frames: int) -> Rollout:
    """The rollout of `USUAL`: completions of 400 tokens, answers of 100, descriptions of about 40."""
    return Rollout(completion=400, answer=100, tail=90, frames=frames, objects=8)
