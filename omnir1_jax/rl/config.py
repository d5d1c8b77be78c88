"""What is fixed when a step is compiled: the models' shapes and the choices of a run."""

import dataclasses
from typing import Any, no_type_check

import flax.struct
from jaxtyping import Array

from omnir1_jax.models.lora import LoraConfig
from omnir1_jax.models.qwen_omni.sample import Sampling
from omnir1_jax.models.qwen_omni.thinker import Thinker
from omnir1_jax.models.sam2 import Sam2
from omnir1_jax.rewards import VosReward
from omnir1_jax.rl.grpo import GrpoConfig
from omnir1_jax.text.bpe import Bpe
from omnir1_jax.text.prompt import Template
from omnir1_jax.text.rules import Limits
from omnir1_jax.text.vocab import ByteVocab


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Choices of the GRPO step.

    Attributes:
      group: completions of each prompt.
      sampling: of System 1's completions.
      grounding: of System 2's answers; greedy in the paper.
      keyframes: most frames of a completion that System 2 looks at.
      limits: maximum groups and description bytes that are read of a plan.
      completion_bytes, grounding_bytes: longest texts that are read.
      description_tokens: longest description and instruction in System 2's prompt.
      reward: of the video family; its format and length weights count for every family.
      bonus_range: lengths in tokens that earn the length bonus.
      updates: optimiser updates on each rollout.
      score_chunk: tokens whose logits exist at a time.
      score_lengths: lengths beside `sampling.max_tokens` that learning is compiled for; the shortest that holds all
        completions of a step is taken. Each costs compile time.
      grounder, segmenter: names in `systems.detail`.
      lora: train an adapter instead of the decoder.
    """

    group: int
    sampling: Sampling
    grounding: Sampling
    grpo: GrpoConfig = GrpoConfig()
    reward: VosReward = VosReward()
    keyframes: int = 4
    limits: Limits = Limits()
    completion_bytes: int = 4096
    grounding_bytes: int = 1024
    description_tokens: int = 160
    bonus_range: tuple[int, int] = (320, 750)
    updates: int = 1
    score_chunk: int = 256
    score_lengths: tuple[int, ...] = ()
    grounder: str = "qwen_omni"
    segmenter: str = "sam2"
    lora: LoraConfig | None = None


@dataclasses.dataclass(frozen=True)
class Models:
    """Modules without their parameters. `sam2` is None for a run that segments nothing, `thinker` where SAM 2 itself is
    trained."""

    thinker: Thinker | None
    sam2: Sam2 | None


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Frozen:
    """All arrays that training does not change.

    Attributes:
      towers: {"vision", "audio"} of the thinker, shared by policy, reference and grounder.
      reference: the decoder before training: KL reference, grounder, and with LoRA the base of the policy.
      sam2: SAM 2.1's parameters.
      vocab, bpe: the tokenizer as tables.
      grounding: System 2's prompt from the frame on.
    """

    towers: dict[str, Any]
    reference: dict[str, Any]
    sam2: Any
    vocab: ByteVocab
    bpe: Bpe
    grounding: Template


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Rewards:
    """Rewards of a rollout.

    Attributes:
      total: what the advantages are made of.
      terms: every term before its weight, by name; also what was only measured.
      failures: how often each kind of failure happened in the whole batch, by name.
    """

    total: Array
    terms: dict[str, Array]
    failures: dict[str, Array]
