"""Prompts as tokens: points, boxes and masks."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omnir1_jax.models.sam2.config import Sam2Config
from omnir1_jax.models.sam2.layers import Linear, PatchConv, activation, norm, partitioned, pick

# Labels of points. A padding point is not a no-op: its token is zero but is attended.
PADDING, NOT_A_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = -10, -1, 0, 1, 2, 3


def fourier(coordinates: Float[Array, "*b 2"], matrix: Float[Array, "2 d"]) -> Float[Array, "*b e"]:
    """Random Fourier features of coordinates (x, y) in [0, 1], in fp32; sines, then cosines."""
    angle = (
        2
        * math.pi
        * jnp.matmul(2 * coordinates.astype(jnp.float32) - 1, matrix.astype(jnp.float32), precision="highest")
    )
    return jnp.concatenate((jnp.sin(angle), jnp.cos(angle)), axis=-1)


class PromptEncoder(nn.Module):
    """Embeds prompts given in pixels of the model's input."""

    config: Sam2Config

    def setup(self):
        config, width = self.config, self.config.width
        normal = nn.initializers.normal(1.0)
        row = partitioned(normal, None, "embed")  # distinct from the start, as upstream
        self.positional = self.param("positional", partitioned(normal, None, None), (2, width // 2))
        self.point = self.param("point", row, (config.point_embeddings, width))
        self.not_a_point = self.param("not_a_point", row, (1, width))
        self.no_mask = self.param("no_mask", row, (1, width))
        self.mask_conv1 = PatchConv(config.mask_channels // 4, 2, config.dtype)
        self.mask_conv2 = PatchConv(config.mask_channels, 2, config.dtype)
        self.mask_conv3 = Linear(width, config.dtype, (None, "embed"), 4)
        self.mask_norm1 = norm(config.prompt_eps, config.dtype)
        self.mask_norm2 = norm(config.prompt_eps, config.dtype)

    def points(self, points: Float[Array, "b n 2"], labels: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        """Tokens of points (x, y); their centres lie half a pixel further."""
        tokens = fourier((points + 0.5) / self.config.side, self.positional)
        label = labels[..., None]
        tokens = jnp.where(label == NOT_A_POINT, self.not_a_point.astype(jnp.float32), tokens)
        tokens = jnp.where(label == PADDING, 0.0, tokens)
        kind = pick(self.point.astype(jnp.float32), labels)
        return jnp.where(label >= 0, tokens + kind, tokens).astype(self.config.dtype)

    def boxes(self, boxes: Float[Array, "b 4"]) -> Float[Array, "b 3 d"]:
        """Tokens of boxes (x0, y0, x1, y1): two corners and one that is not a point."""
        b = boxes.shape[0]
        points = jnp.concatenate((boxes.reshape(b, 2, 2), jnp.zeros((b, 1, 2), boxes.dtype)), axis=1)
        labels = jnp.array([TOP_LEFT, BOTTOM_RIGHT, NOT_A_POINT])
        return self.points(points, jnp.broadcast_to(labels, (b, 3)))

    def nothing(self, batch: int) -> Float[Array, "b 2 d"]:
        """Tokens of a frame without any prompt."""
        return self.points(jnp.zeros((batch, 2, 2)), jnp.full((batch, 2), NOT_A_POINT))

    def dense(self) -> Float[Array, "1 1 1 d"]:
        """What is added to the image when there is no mask prompt."""
        return self.no_mask.astype(self.config.dtype)[None, None]

    def masks(self, masks: Float[Array, "b h w"]) -> Float[Array, "b y x d"]:
        """What is added to the image for mask prompts (logits at the mask side)."""
        act = activation(self.config.prompt_activation)
        x = act(self.mask_norm1(self.mask_conv1(masks[..., None])))
        return self.mask_conv3(act(self.mask_norm2(self.mask_conv2(x))))
