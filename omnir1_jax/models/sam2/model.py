"""SAM 2.1 as one module: the steps that images and videos are made of.

All methods are batched over the first axis (frames to encode, or objects); `video.py` and `image.py` wire them.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnir1_jax.models.sam2.config import Sam2Config
from omnir1_jax.models.sam2.decoder import MaskDecoder, Masks, best, single
from omnir1_jax.models.sam2.hiera import Features, ImageEncoder
from omnir1_jax.models.sam2.layers import Linear, Mlp, PatchConv, partitioned, pick, sine_position_1d, sine_position_2d
from omnir1_jax.models.sam2.memory import MemoryAttention, MemoryEncoder, mask_for_memory
from omnir1_jax.models.sam2.prompt import PromptEncoder, fourier

NO_OBJECT = -1024.0  # mask logit where the model decides that the object is absent


class ObjectMasks(NamedTuple):
    """One mask per object after the occlusion decision: where `score` <= 0 the logits are `NO_OBJECT`.

    `masks`, if requested, are all of the decoder's before that decision.
    """

    logits: Float[Array, "b y x"]
    iou: Float[Array, " b"]
    score: Float[Array, " b"]
    pointer: Float[Array, "b d"]
    masks: Masks | None = None


class Sam2(nn.Module):
    """The network. Use as `model.apply({"params": params}, ..., method=Sam2.encode)`."""

    config: Sam2Config

    def setup(self):
        config, width = self.config, self.config.width
        row = partitioned(nn.initializers.normal(0.02), None, "embed")
        corner = partitioned(nn.initializers.normal(0.02), None, None, "embed")
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)
        # Upstream keeps the Fourier matrix twice; a checkpoint may hold two that differ.
        matrix = partitioned(nn.initializers.normal(1.0), None, None)
        self.image_positional = self.param("image_positional", matrix, (2, width // 2))
        self.no_memory = self.param("no_memory", corner, (1, 1, width))
        if config.video:
            channels = config.memory_channels
            self.memory_attention = MemoryAttention(config)
            self.memory_encoder = MemoryEncoder(config)
            time = partitioned(nn.initializers.normal(0.02), None, None, None, None)
            self.memory_time = self.param("memory_time", time, (config.memories, 1, 1, channels))
            self.no_object_pointer = self.param("no_object_pointer", row, (1, width))
            self.pointer_proj = Mlp(width, width, 3, config.dtype)
            if config.pointer_time:
                self.pointer_time = Linear(channels, config.dtype, ("embed", None))
            if config.occlusion_embedding:
                self.occlusion = self.param(
                    "occlusion", partitioned(nn.initializers.normal(0.02), None, None), (1, channels)
                )
            # Kept for export only: no step reads them.
            self.no_memory_position = self.param("no_memory_position", corner, (1, 1, width))
            self.mask_downsample = PatchConv(1, 4, config.dtype)

    def encode(self, pixels: Float[Array, "t s s 3"]) -> Features:
        """Normalised frames at the input side to features."""
        return self.image_encoder(pixels)

    def look(
        self,
        features: Features,
        image: Float[Array, "b h w d"],
        sparse: Float[Array, "b n d"],
        dense: Float[Array, "#b #h #w d"],
    ) -> Masks:
        """Masks of prompts on images whose coarse map is `image` (with or without memory)."""
        grid = self.config.grid
        centres = (jnp.arange(grid) + 0.5) / grid
        position = fourier(jnp.stack(jnp.meshgrid(centres, centres), axis=-1), self.image_positional)
        return self.mask_decoder(image + dense, position, sparse, features.middle, features.fine)

    def without_memory(self, coarse: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """The coarse map of a frame that is segmented by itself."""
        return coarse + self.no_memory.astype(coarse.dtype)

    def find_box(self, features: Features, boxes: Float[Array, "b 4"], all_masks: bool = False) -> ObjectMasks:
        """Prompted frames: boxes (x0, y0, x1, y1) in pixels of the model's input, one per object."""
        image = self.without_memory(features.coarse)
        masks = self.look(features, image, self.prompt_encoder.boxes(boxes), self.prompt_encoder.dense())
        return self._one_mask(masks, self.config.multimask_box, all_masks)

    def find_again(self, features: Features, image: Float[Array, "b h w d"], all_masks: bool = False) -> ObjectMasks:
        """Tracked frames: `image` is the coarse map conditioned on the object's memory."""
        sparse = self.prompt_encoder.nothing(image.shape[0])
        masks = self.look(features, image, sparse, self.prompt_encoder.dense())
        return self._one_mask(masks, self.config.multimask_tracking, all_masks)

    def _one_mask(self, masks: Masks, multimask: bool, all_masks: bool) -> ObjectMasks:
        logits, iou, token = best(masks) if multimask else single(masks, self.config)
        present = masks.score > 0
        logits = jnp.where(present[:, None, None], logits, NO_OBJECT)
        if not self.config.video:
            return ObjectMasks(logits, iou, masks.score, token, masks if all_masks else None)
        pointer = jnp.where(present[:, None], self.pointer_proj(token), self.no_object_pointer.astype(token.dtype))
        return ObjectMasks(logits, iou, masks.score, pointer, masks if all_masks else None)

    def remember(self, coarse: Float[Array, "b h w d"], result: ObjectMasks, prompted: bool) -> Float[Array, "b n c"]:
        """The memory of a frame, in `memory_dtype`. `prompted`: the mask came from a prompt and is thresholded at 0."""
        config = self.config
        mask = mask_for_memory(result.logits, prompted, config.side, config.memory_scale, config.memory_bias)
        memory = self.memory_encoder(coarse, mask)
        if config.occlusion_embedding:
            hidden = (result.score <= 0)[:, None, None, None]
            memory = memory + hidden * self.occlusion.astype(memory.dtype)
        return memory.reshape(memory.shape[0], -1, config.memory_channels).astype(config.memory_dtype)

    def recall(
        self,
        coarse: Float[Array, "b h w d"],
        maps: Float[Array, "b s n c"],
        times: Int[Array, "#b s"],
        maps_seen: Bool[Array, "b s"],
        pointers: Float[Array, "b p d"],
        distances: Float[Array, "b p"],
        pointers_seen: Bool[Array, "b p"],
    ) -> Float[Array, "b h w d"]:
        """A frame's coarse map conditioned on an object's memories and pointers.

        Args:
          times: row of the temporal encoding of each memory slot.
          distances: of the pointers in time, as a share of the longest distance.
        """
        config = self.config
        (b, slots, n, channels), grid = maps.shape, config.grid
        map_position = jnp.asarray(sine_position_2d(grid, grid, channels)).reshape(n, channels)
        time = pick(self.memory_time[:, 0, 0].astype(jnp.float32), times)
        map_positions = jnp.broadcast_to(map_position + time[:, :, None], (b, slots, n, channels))
        splits = config.width // channels
        tokens = pointers.reshape(b, -1, channels)
        if config.pointer_time:
            position = self.pointer_time(sine_position_1d(distances, config.width))
            token_positions = position.repeat(splits, axis=1)
        else:
            token_positions = jnp.zeros_like(tokens)
        seen = jnp.concatenate((maps_seen.repeat(n, axis=1), pointers_seen.repeat(splits, axis=1)), axis=1)
        return self.memory_attention(coarse, maps, map_positions, tokens, token_positions, seen)

    def __call__(self, pixels: Float[Array, "1 s s 3"]) -> ObjectMasks:
        """Touches every parameter; for initialisation."""
        config = self.config
        features = self.encode(pixels)
        self.prompt_encoder.masks(jnp.zeros((1, config.mask_side, config.mask_side)))
        result = self.find_box(features, jnp.zeros((1, 4)))
        if not config.video:
            return result
        memory = self.remember(features.coarse, result, True)
        self.mask_downsample(jnp.zeros((1, 4, 4, 1)))
        seen = jnp.ones((1, 1), bool)
        times, distances = jnp.zeros((1, 1), int), jnp.zeros((1, 1))
        image = self.recall(features.coarse, memory[:, None], times, seen, result.pointer[:, None], distances, seen)
        return self.find_again(features, image)


def init(config: Sam2Config, rng: Array) -> Any:
    """Random parameters as `Module.init` gives them: leaves boxed with their logical axes."""
    pixels = jnp.zeros((1, config.side, config.side, 3))
    params = jax.jit(Sam2(config).init)(rng, pixels)["params"]
    return place(params)


def place(params: Any, spread: float = 0.5, gain: float = 1.5) -> Any:
    """Random parameters with which prompts attend to where they point; learning that from scratch takes far longer.

    Prompts and image get one Fourier matrix, `spread` times as fine, and where they attend to one another queries and
    keys start equal, `gain` times as large, so that near places match.
    """
    params = jax.tree.map(lambda x: x, params)  # the dictionaries are our own from here on
    prompts, decoder = params["prompt_encoder"], params["mask_decoder"]
    prompts["positional"] = jax.tree.map(lambda x: spread * x, prompts["positional"])
    params["image_positional"] = jax.tree.map(jnp.copy, prompts["positional"])
    layers = [layer for name, layer in decoder.items() if name.startswith("layers_")]
    both = [layer[name] for layer in layers for name in ("token_to_image", "image_to_token")]
    for attention in (*both, decoder["final_attn"]):
        keys = jax.tree.map(lambda x: gain * x, attention["k_proj"]["kernel"])
        attention["k_proj"]["kernel"], attention["q_proj"]["kernel"] = keys, jax.tree.map(jnp.copy, keys)
    return params


def abstract_params(config: Sam2Config) -> Any:
    """The shapes and logical axes of `init`'s result; costs no memory."""
    pixels = jax.ShapeDtypeStruct((1, config.side, config.side, 3), jnp.float32)
    return jax.eval_shape(Sam2(config).init, jax.random.key(0), pixels)["params"]
