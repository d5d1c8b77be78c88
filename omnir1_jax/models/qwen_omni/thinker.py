"""The thinker: both encoders and the decoder in one tree of parameters {"vision", "audio", "text"}."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omnir1_jax.models.qwen_omni.audio import AudioEncoder
from omnir1_jax.models.qwen_omni.cache import Prompt
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.models.qwen_omni.decoder import Decoder
from omnir1_jax.models.qwen_omni.inputs import AudioInputs, ThinkerInputs, VisionInputs
from omnir1_jax.models.qwen_omni.vision import VisionEncoder


def insert_features(
    embeddings: Float[Array, "b s d"], features: Float[Array, "b n d"], index: Int[Array, "b s"]
) -> Float[Array, "b s d"]:
    """Puts features[index] where index is not -1."""
    vectors = jnp.take_along_axis(features, jnp.maximum(index, 0)[..., None], axis=1)
    return jnp.where((index >= 0)[..., None], vectors.astype(embeddings.dtype), embeddings)


class Thinker(nn.Module):
    """Used as `thinker.apply({"params": params}, inputs, method="hidden")`.

    The decoder alone is `thinker.decoder()` with `params["text"]`: sampling and scoring take that and the result of
    `prompt`.
    """

    config: ThinkerConfig

    def setup(self):
        c = self.config
        switches = dict(dtype=c.dtype, remat=c.remat, attention=c.attention)
        self.vision = VisionEncoder(c.vision, **switches)
        self.audio = AudioEncoder(c.audio, **switches)
        self.text = Decoder(c.text, **switches)

    def __call__(self, inputs: ThinkerInputs) -> Float[Array, "b s v"]:
        """Logits; what `init` traces."""
        return self.logits(inputs)

    @nn.nowrap
    def decoder(self) -> Decoder:
        """The decoder as a module of its own, for `params["text"]`."""
        c = self.config
        return Decoder(c.text, dtype=c.dtype, remat=c.remat, attention=c.attention)

    def encode(self, inputs: ThinkerInputs) -> Float[Array, "b s d"]:
        """Embeddings of the prompts with those of the media in place."""
        x = self.text.embed(inputs.tokens)
        if inputs.vision is not None:
            x = insert_features(x, self.vision(inputs.vision), inputs.vision_index)
        if inputs.audio is not None:
            x = insert_features(x, self.audio(inputs.audio), inputs.audio_index)
        return x

    def prompt(self, inputs: ThinkerInputs) -> Prompt:
        """What the decoder's `prefill` and `score.score` read."""
        return Prompt(self.encode(inputs), inputs.positions, inputs.mask, inputs.next_position)

    def hidden(self, inputs: ThinkerInputs) -> Float[Array, "b s d"]:
        """Final hidden states; those of padding hold nothing of meaning."""
        return self.text.hidden(self.encode(inputs), inputs.positions, inputs.mask)

    def logits(self, inputs: ThinkerInputs) -> Float[Array, "b s v"]:
        """Float32."""
        return self.text.logits(self.hidden(inputs))


def dummy_inputs(config: ThinkerConfig) -> ThinkerInputs:
    """The smallest inputs that touch every parameter: one token, one cell, one chunk of sound."""
    v, a = config.vision, config.audio
    zeros = lambda *shape: jnp.zeros(shape, jnp.int32)
    cell = (v.temporal_patch_size, v.cell_pixels, v.cell_pixels, v.in_channels)
    return ThinkerInputs(
        tokens=zeros(1, 1),
        mask=jnp.ones((1, 1), bool),
        positions=zeros(1, 3, 1),
        next_position=zeros(1),
        vision_index=zeros(1, 1),
        audio_index=zeros(1, 1),
        vision=VisionInputs(
            jnp.zeros((1, 1, *cell), jnp.uint8), zeros(1, 1, 2), zeros(1, 1, v.window_cells**2), zeros(1, 1, 1)
        ),
        audio=AudioInputs(jnp.zeros((1, 1, a.chunk_frames, a.num_mel_bins)), zeros(1, 1) + 2, zeros(1, 1, 2)),
    )


@functools.lru_cache(maxsize=4)  # a start asks for what is trained and for what is read; not to be changed
def abstract_params(config: ThinkerConfig) -> dict:
    """Shapes and logical axes of all parameters, without making them: leaves boxed as `init` boxes them."""
    thinker = Thinker(config)
    return jax.eval_shape(lambda: thinker.init(jax.random.key(0), dummy_inputs(config)))["params"]


def count(params: dict) -> int:
    """Number of parameters of a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(params)))
