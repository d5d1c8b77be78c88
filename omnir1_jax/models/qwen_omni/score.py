"""Log-probabilities of given completions: prompt and completions in one packed row, the vocabulary in pieces."""

import flax.struct
from jaxtyping import Array, Float, Int

from omnir1_jax.models.qwen_omni.cache import Prompt
from omnir1_jax.models.qwen_omni.decoder import Decoder


@flax.struct.dataclass
class Scores:
    """Per token; zero after the end of a completion.

    Attributes:
      logprobs: at the temperature asked for.
      entropy: of the distribution the token was drawn from, in nats; None unless asked for.
    """

    logprobs: Float[Array, "b g c"]
    entropy: Float[Array, "b g c"] | None = None


def score(
    decoder: Decoder,
    variables: dict,
    prompt: Prompt,
    tokens: Int[Array, "b g c"],
    lengths: Int[Array, "b g"],
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int = 256,
) -> Scores:
    """Scores g completions of each prompt on `p + g * c` tokens; differentiable.

    Args:
      chunk: tokens of a row whose logits exist at a time.
    """
    raise NotImplementedError
