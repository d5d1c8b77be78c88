"""Sampling of a group of completions for each prompt, in one compiled loop."""

import dataclasses

import flax.struct
from jaxtyping import Array, Bool, Float, Int, Key

from omnir1_jax.models.qwen_omni.cache import PromptCache
from omnir1_jax.models.qwen_omni.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Filters apply in the order temperature, top-k, top-p.

    Attributes:
      max_tokens: longest completion, the ending token included.
      eos: tokens that end a completion.
      pad: written after the end.
      temperature: 0 takes the most probable token.
      top_k: 0 for all.
      top_p: 1 for all.
    """

    max_tokens: int
    eos: tuple[int, ...]
    pad: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@flax.struct.dataclass
class Tails:
    """Own beginning of each continuation, after the shared prompt and before what is sampled."""

    tokens: Int[Array, "b g n"]
    mask: Bool[Array, "b g n"]


@flax.struct.dataclass
class Completions:
    """Sampled tokens.

    Attributes:
      tokens: padded after the end.
      lengths: tokens up to and with the ending one (all of them if none came).
      logprobs: log-probabilities of the sampled tokens under the model at the sampling temperature, all of the
        vocabulary counted: what `score` gives for them. Zero after the end.
    """

    tokens: Int[Array, "b g c"]
    lengths: Int[Array, "b g"]
    logprobs: Float[Array, "b g c"]


def generate(
    decoder: Decoder,
    variables: dict,
    prompt: PromptCache,
    key: Key[Array, ""],
    settings: Sampling,
    *,
    group: int | None = None,
    tails: Tails | None = None,
    row_ids: Int[Array, " b"] | None = None,
) -> Completions:
    """Continues each prompt `group` times, or as often as it has `tails`.

    Args:
      variables: {"params": ...} and, for an adapted model, {"lora": ...}.
      row_ids: numbers that stand for the prompts in the random keys (default: row in the batch). What is drawn for
        a prompt depends on `key`, its number and the continuation's, not on the rest of the batch.
    """
    raise NotImplementedError
