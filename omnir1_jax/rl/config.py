"""What is fixed when a step is compiled: the models' shapes and the choices of a run."""

import dataclasses
from typing import Any, no_type_check

import flax.struct
from jaxtyping import Array

from omnir1_jax.config.rewards import VosReward
from omnir1_jax.config.schema import shared
from omnir1_jax.config.sections import Grpo, Lora, Reward, Step
from omnir1_jax.models.qwen_omni.config import TokenIds
from omnir1_jax.models.qwen_omni.sample import Sampling
from omnir1_jax.models.qwen_omni.thinker import Thinker
from omnir1_jax.systems.grounders.protocol import Grounder
from omnir1_jax.systems.grounders.thinker import ThinkerParams
from omnir1_jax.systems.segmenters.protocol import Segmenter, TextSegmenter
from omnir1_jax.text.bpe import Bpe
from omnir1_jax.text.rules import Limits
from omnir1_jax.text.vocab import ByteVocab


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Choices of the GRPO step.

    Attributes:
      group: completions of each prompt.
      sampling: of System 1's completions.
      keyframes: maximum frames of a completion that System 2 looks at.
      limits: maximum groups and description bytes that are read of a plan.
      completion_bytes: longest completion that is read.
      reward: of the video family; its format and length weights count for every family.
      extra: further reward terms, `terms.Extra`.
      bonus_range: lengths in tokens that earn the length bonus.
      updates: optimiser updates on each rollout.
      score_chunk: tokens whose logits exist at a time.
      score_lengths: lengths beside `sampling.max_tokens` that learning is compiled for; the shortest that holds all
        completions of a step is taken. Each costs compile time.
      lora: train an adapter instead of the decoder.
      keep: share of the task's prompts that is learned from.
    """

    group: int
    sampling: Sampling
    grpo: Grpo
    reward: VosReward
    keyframes: int
    limits: Limits
    completion_bytes: int
    bonus_range: tuple[int, int]
    updates: int
    score_chunk: int
    score_lengths: tuple[int, ...]
    lora: Lora | None
    keep: float = 1.0
    extra: tuple[Any, ...] = ()

    @classmethod
    def of(cls, step: Step, grpo: Grpo, reward: Reward, lora: Lora | None, ids: TokenIds) -> "StepConfig":
        """The choices of these sections of settings, for a tokenizer with these tokens."""
        return cls(
            **shared(cls, step),
            sampling=Sampling(step.max_tokens, ids.eos, ids.pad, step.temperature, step.top_k, step.top_p),
            limits=Limits(step.max_pieces, step.description_bytes),
            grpo=grpo,
            reward=reward.weights(),
            bonus_range=reward.bonus_range,
            lora=lora,
        )


@dataclasses.dataclass(frozen=True)
class Models:
    """Models without their parameters. `segmenter` is None for a run without segmentation, `thinker` and `grounder` if
    SAM 2 itself is trained."""

    thinker: Thinker | None
    segmenter: Segmenter | TextSegmenter | None
    grounder: Grounder | None = None

    @property
    def on_host(self) -> bool:
        """Whether System 2 runs on the host."""
        return any(getattr(model, "host", False) for model in (self.grounder, self.segmenter))


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Frozen:
    """All arrays that training does not change.

    Attributes:
      encoders: {"vision", "audio"} of the thinker, shared by policy and reference.
      reference: the decoder before training: KL reference, and with LoRA the base of the policy.
      segmenter: the segmenter's own parameters.
      vocab, bpe: the tokenizer as tables.
      grounder: the grounder's own parameters; the arrays of the thinker before training are not held twice.
    """

    encoders: dict[str, Any]
    reference: dict[str, Any]
    segmenter: Any
    vocab: ByteVocab
    bpe: Bpe
    grounder: Any

    def grounder_params(self) -> Any:
        """The parameters that the grounder is called with."""
        params = self.grounder
        if isinstance(params, ThinkerParams) and params.text is None:
            shared_params = dict(vision=self.encoders["vision"], text=self.reference, vocab=self.vocab, bpe=self.bpe)
            return dataclasses.replace(params, **shared_params)
        return params


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Rewards:
    """Rewards of a rollout.

    Attributes:
      total: the rewards that give the advantages.
      terms: every term before its weight, by name; also those that are only measured.
      failures: number of failures of each kind in each completion, by name.
    """

    total: Array
    terms: dict[str, Array]
    failures: dict[str, Array]
