"""The mask decoder: prompt tokens and image attend to one another, then tokens give masks on the image."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from omnir1_jax.models.sam2.config import Sam2Config
from omnir1_jax.models.sam2.layers import Linear, Mlp, UpConv, attend, norm, partitioned, precision

EPS = 1e-5  # of the two-way transformer
UPSCALE_EPS = 1e-6


class Masks(NamedTuple):
    """All masks of a prompt, the single one first.

    logits at the mask side; `iou` is the predicted quality in [0, 1]; `tokens` make object pointers; `score` is the
    logit of the object being there.
    """

    logits: Float[Array, "b m y x"]
    iou: Float[Array, "b m"]
    tokens: Float[Array, "b m d"]
    score: Float[Array, " b"]


class Attention(nn.Module):
    """Attention with its projections; `inner` is the width of queries and keys over all heads."""

    inner: int
    heads: int
    dtype: str
    score_limit: int

    @nn.compact
    def __call__(
        self, q: Float[Array, "b n d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"]
    ) -> Float[Array, "b n d"]:
        axes, split = ("embed", "heads"), lambda x: x.reshape(*x.shape[:2], self.heads, -1)
        out = attend(
            split(Linear(self.inner, self.dtype, axes, name="q_proj")(q)),
            split(Linear(self.inner, self.dtype, axes, name="k_proj")(k)),
            split(Linear(self.inner, self.dtype, axes, name="v_proj")(v)),
            dtype=self.dtype,
            score_limit=self.score_limit,
        )
        out = out.reshape(*out.shape[:2], self.inner)
        return Linear(q.shape[-1], self.dtype, ("heads", "embed"), name="o_proj")(out)


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, then to the image; an MLP; then the image attends to the tokens."""

    config: Sam2Config
    first: bool

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b n d"],
        image: Float[Array, "b m d"],
        token_position: Float[Array, "b n d"],
        image_position: Float[Array, "#b m d"],
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b m d"]]:
        config, dtype = self.config, self.config.dtype
        limit, heads, inner = config.score_limit, config.decoder_heads, config.width // config.decoder_downsample
        attention = lambda inner, name: Attention(inner, heads, dtype, limit, name=name)
        if self.first:  # no positions and no skip
            tokens = attention(config.width, "self_attn")(tokens, tokens, tokens)
        else:
            q = tokens + token_position
            tokens = tokens + attention(config.width, "self_attn")(q, q, tokens)
        tokens = norm(EPS, dtype, "norm1")(tokens)
        k = image + image_position
        tokens = tokens + attention(inner, "token_to_image")(tokens + token_position, k, image)
        tokens = norm(EPS, dtype, "norm2")(tokens)
        tokens = tokens + Mlp(config.decoder_mlp, config.width, config.decoder_layers, dtype, name="mlp")(tokens)
        tokens = norm(EPS, dtype, "norm3")(tokens)
        image = image + attention(inner, "image_to_token")(k, tokens + token_position, tokens)
        return tokens, norm(EPS, dtype, "norm4")(image)


class MaskDecoder(nn.Module):
    """Masks of prompts. Everything has one entry per prompt, images included."""

    config: Sam2Config

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w d"],
        position: Float[Array, "h w d"],
        sparse: Float[Array, "b n d"],
        middle: Float[Array, "b h2 w2 d4"],
        fine: Float[Array, "b h4 w4 d8"],
    ) -> Masks:
        config, dtype, width = self.config, self.config.dtype, self.config.width
        b, h, w, _ = image.shape
        mask_count = config.multimasks + 1
        init = partitioned(nn.initializers.normal(1.0), None, "embed")
        output_tokens = [
            self.param("object_token", init, (1, width)),
            self.param("iou_token", init, (1, width)),
            self.param("mask_tokens", init, (mask_count, width)),
        ]
        output_tokens = jnp.broadcast_to(jnp.concatenate(output_tokens).astype(dtype), (b, mask_count + 2, width))
        start = tokens = jnp.concatenate((output_tokens, sparse.astype(dtype)), axis=1)
        image, position = image.reshape(b, h * w, width), position.reshape(1, h * w, width).astype(dtype)
        for i in range(config.decoder_layers):
            tokens, image = TwoWayBlock(config, i == 0, name=f"layers_{i}")(tokens, image, start, position)
        inner = config.width // config.decoder_downsample
        final = Attention(inner, config.decoder_heads, dtype, config.score_limit, name="final_attn")
        tokens = norm(EPS, dtype, "final_norm")(tokens + final(tokens + start, image + position, image))
        score, quality, tokens = tokens[:, 0], tokens[:, 1], tokens[:, 2 : 2 + mask_count]

        gelu = lambda x: jax.nn.gelu(x, approximate=False)
        x = UpConv(width // 4, dtype, name="upscale1")(image.reshape(b, h, w, width)) + middle
        x = gelu(norm(UPSCALE_EPS, dtype, "upscale_norm")(x))
        x = gelu(UpConv(width // 8, dtype, name="upscale2")(x) + fine)
        heads = nn.vmap(
            Mlp,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=1,
            out_axes=1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        filters = heads(width, width // 8, 3, dtype, name="hypernetworks")(tokens)
        logits = jnp.einsum(
            "bmc,byxc->bmyx", filters, x, precision=precision(dtype), preferred_element_type=jnp.float32
        )
        iou = Mlp(config.iou_width, mask_count, config.iou_depth, dtype, name="iou_head")(quality)
        score = Mlp(width, 1, 3, dtype, name="object_head")(score)
        return Masks(logits, jax.nn.sigmoid(iou.astype(jnp.float32)), tokens, score[:, 0].astype(jnp.float32))


def best(masks: Masks) -> tuple[Float[Array, "b y x"], Float[Array, " b"], Float[Array, "b d"]]:
    """Of the multimasks the one with the best predicted quality: logits, IoU, token."""
    index = 1 + jnp.argmax(masks.iou[:, 1:], axis=1)
    take = lambda x: jax.vmap(lambda row, i: row[i])(x, index)
    return take(masks.logits), take(masks.iou), take(masks.tokens)


def single(masks: Masks, config: Sam2Config) -> tuple[Float[Array, "b y x"], Float[Array, " b"], Float[Array, "b d"]]:
    """The single mask, unless it is unstable: then the best multimask. The token stays the single mask's.

    Stability is |logit > delta| / |logit > -delta|, 1 for an empty mask.
    """
    logits, iou = masks.logits[:, 0], masks.iou[:, 0]
    if config.dynamic_multimask:
        inner = jnp.sum(logits > config.stability_delta, axis=(1, 2))
        outer = jnp.sum(logits > -config.stability_delta, axis=(1, 2))
        stable = jnp.where(outer > 0, inner / jnp.maximum(outer, 1), 1.0) >= config.stability_threshold
        other, other_iou, _ = best(masks)
        logits = jnp.where(stable[:, None, None], logits, other)
        iou = jnp.where(stable, iou, other_iou)
    return logits, iou, masks.tokens[:, 0]
