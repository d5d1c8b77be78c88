"""System 1: watches and listens at low resolution, thinks, and answers with a plan."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key

from omnir1_jax.models.qwen_omni.cache import Prompt
from omnir1_jax.models.qwen_omni.decoding import decoding_copy
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.sample import Completions, Sampling, generate
from omnir1_jax.models.qwen_omni.thinker import Thinker, insert_features
from omnir1_jax.text.vocab import ByteVocab, Text, detokenise


class Media(NamedTuple):
    """Outputs of the frozen encoders for a batch, used in the prompts of policy and reference alike."""

    vision: Float[Array, "b n d"] | None
    audio: Float[Array, "b a d"] | None


def encode(thinker: Thinker, encoders: Mapping[str, Any], inputs: ThinkerInputs) -> Media:
    """Runs the encoders once. No gradient reaches them.

    Args:
      encoders: the thinker's parameters {"vision": ..., "audio": ...}; one without input may be missing.
    """
    vision = audio = None
    if inputs.vision is not None:
        params = {"params": {"vision": encoders["vision"]}}
        vision = thinker.apply(params, inputs.vision, method=lambda m, x: m.vision(x))
    if inputs.audio is not None:
        audio = thinker.apply({"params": {"audio": encoders["audio"]}}, inputs.audio, method=lambda m, x: m.audio(x))
    return jax.lax.stop_gradient(Media(vision, audio))


def prompt(thinker: Thinker, variables: Mapping[str, Any], inputs: ThinkerInputs, media: Media) -> Prompt:
    """The prompts with the media in place, their text embedded by the decoder of `variables`; differentiable."""
    embeddings = thinker.decoder().apply(variables, inputs.tokens, method="embed")
    if media.vision is not None:
        embeddings = insert_features(embeddings, media.vision, inputs.vision_index)
    if media.audio is not None:
        embeddings = insert_features(embeddings, media.audio, inputs.audio_index)
    return Prompt(embeddings, inputs.positions, inputs.mask, inputs.next_position)


def sample(
    thinker: Thinker,
    variables: Mapping[str, Any],
    inputs: ThinkerInputs,
    media: Media,
    key: Key[Array, ""],
    settings: Sampling,
    group: int,
    *,
    row_ids: Int[Array, " b"] | None = None,
) -> Completions:
    """`group` completions of each prompt, which is read once. `row_ids`: see `generate`."""
    decoder = thinker.decoder()
    variables = decoding_copy(decoder, variables)
    cache = decoder.apply(variables, prompt(thinker, variables, inputs, media), method="prefill")
    return generate(decoder, variables, cache, key, settings, group=group, row_ids=row_ids)


def read(vocab: ByteVocab, completions: Completions, max_bytes: int) -> Text:
    """Token ids to text, special tokens dropped; leading axes of the completions are flattened."""
    flat = completions.tokens.reshape(-1, completions.tokens.shape[-1])
    return detokenise(vocab, flat, max_bytes)[0]
