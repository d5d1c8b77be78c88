"""Hugging Face names of SAM 2.1's parameters; loading and export."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from jax.typing import DTypeLike

from omnir1_jax.errors import InputError
from omnir1_jax.models import hf_checkpoint
from omnir1_jax.models.hf_checkpoint import (
    CONV2D,
    CONV_TRANSPOSE2D,
    MAX_SHARD_BYTES,
    SAME,
    TRANSPOSED,
    Layout,
    Leaf,
    load_params,
    save_params,
)
from omnir1_jax.models.sam2.config import Sam2Config
from omnir1_jax.models.sam2.hf_config import read_config, to_hf
from omnir1_jax.models.sam2.model import Sam2, abstract_params
from omnir1_jax.parallel.rules import tree_shardings

# What a video checkpoint has beyond an image one.
VIDEO_ONLY = (
    "memory_*",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "occlusion_spatial_embedding_parameter",
    "mask_downsample.*",
    "object_pointer_proj.*",
    "temporal_positional_encoding_projection_layer.*",
)


class Table:
    """Collects leaves; `layer` stacks them."""

    def __init__(self):
        self.leaves: list[Leaf] = []

    def one(self, name: str, path: str, layout: Layout = SAME, layer: int | None = None) -> None:
        self.leaves.append(Leaf(name, tuple(path.split("/")), layer, layout))

    def linear(self, name: str, path: str, layer: int | None = None, layout: Layout = TRANSPOSED) -> None:
        self.one(f"{name}.weight", f"{path}/kernel", layout, layer)
        self.one(f"{name}.bias", f"{path}/bias", SAME, layer)

    def norm(self, name: str, path: str, layer: int | None = None) -> None:
        self.one(f"{name}.weight", f"{path}/scale", SAME, layer)
        self.one(f"{name}.bias", f"{path}/bias", SAME, layer)

    def conv(self, name: str, path: str) -> None:
        self.linear(name, path, layout=CONV2D)

    def mlp(self, name: str, path: str, layers: int, layer: int | None = None) -> None:
        self.linear(f"{name}.proj_in", f"{path}/proj_in", layer)
        for i in range(layers - 2):
            self.linear(f"{name}.layers.{i}", f"{path}/layers_{i}", layer)
        self.linear(f"{name}.proj_out", f"{path}/proj_out", layer)

    def attention(self, name: str, path: str, layer: int | None = None) -> None:
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self.linear(f"{name}.{part}", f"{path}/{part}", layer)


def leaves(config: Sam2Config) -> list[Leaf]:
    """Every tensor of a checkpoint and the parameter that it is."""
    table = Table()
    _image_encoder(table, config)
    _prompt_and_decoder(table, config)
    if config.video:
        _memory(table, config)
    return table.leaves


def _image_encoder(table: Table, config: Sam2Config) -> None:
    source, target = "vision_encoder.backbone", "image_encoder"
    table.conv(f"{source}.patch_embed.projection", f"{target}/patch/conv")
    table.one(f"{source}.pos_embed", f"{target}/position")
    table.one(f"{source}.pos_embed_window", f"{target}/window_position")
    for run in config.hiera.runs():
        for i in range(run.count):
            layer = None if run.count == 1 else i
            name, path = f"{source}.blocks.{run.first + i}", f"{target}/{run.name}"
            table.norm(f"{name}.layer_norm1", f"{path}/norm1", layer)
            table.norm(f"{name}.layer_norm2", f"{path}/norm2", layer)
            table.linear(f"{name}.attn.qkv", f"{path}/attn/qkv", layer)
            table.linear(f"{name}.attn.proj", f"{path}/attn/proj", layer)
            table.mlp(f"{name}.mlp", f"{path}/mlp", 2, layer)
            if run.spec.dim != run.spec.dim_in:
                table.linear(f"{name}.proj", f"{path}/proj", layer)
    deepest = len(config.hiera.dims) - 1
    for level in range(deepest + 1):  # upstream counts from the deepest
        table.conv(f"vision_encoder.neck.convs.{deepest - level}", f"{target}/lateral_{level}")
    table.conv("mask_decoder.conv_s0", f"{target}/fine")
    table.conv("mask_decoder.conv_s1", f"{target}/middle")


def _prompt_and_decoder(table: Table, config: Sam2Config) -> None:
    table.one("shared_image_embedding.positional_embedding", "image_positional")
    table.one("no_memory_embedding", "no_memory")
    source, target = "prompt_encoder", "prompt_encoder"
    table.one(f"{source}.shared_embedding.positional_embedding", f"{target}/positional")
    table.one(f"{source}.point_embed.weight", f"{target}/point")
    table.one(f"{source}.not_a_point_embed.weight", f"{target}/not_a_point")
    table.one(f"{source}.no_mask_embed.weight", f"{target}/no_mask")
    for i in (1, 2, 3):
        table.conv(f"{source}.mask_embed.conv{i}", f"{target}/mask_conv{i}")
    for i in (1, 2):
        table.norm(f"{source}.mask_embed.layer_norm{i}", f"{target}/mask_norm{i}")
    source, target = "mask_decoder", "mask_decoder"
    table.one(f"{source}.obj_score_token.weight", f"{target}/object_token")
    table.one(f"{source}.iou_token.weight", f"{target}/iou_token")
    table.one(f"{source}.mask_tokens.weight", f"{target}/mask_tokens")
    for i in range(config.decoder_layers):
        name, path = f"{source}.transformer.layers.{i}", f"{target}/layers_{i}"
        table.attention(f"{name}.self_attn", f"{path}/self_attn")
        table.attention(f"{name}.cross_attn_token_to_image", f"{path}/token_to_image")
        table.attention(f"{name}.cross_attn_image_to_token", f"{path}/image_to_token")
        table.mlp(f"{name}.mlp", f"{path}/mlp", config.decoder_layers)
        for j in (1, 2, 3, 4):
            table.norm(f"{name}.layer_norm{j}", f"{path}/norm{j}")
    table.attention(f"{source}.transformer.final_attn_token_to_image", f"{target}/final_attn")
    table.norm(f"{source}.transformer.layer_norm_final_attn", f"{target}/final_norm")
    table.linear(f"{source}.upscale_conv1", f"{target}/upscale1", layout=CONV_TRANSPOSE2D)
    table.linear(f"{source}.upscale_conv2", f"{target}/upscale2", layout=CONV_TRANSPOSE2D)
    table.norm(f"{source}.upscale_layer_norm", f"{target}/upscale_norm")
    for i in range(config.multimasks + 1):
        table.mlp(f"{source}.output_hypernetworks_mlps.{i}", f"{target}/hypernetworks", 3, i)
    table.mlp(f"{source}.iou_prediction_head", f"{target}/iou_head", config.iou_depth)
    table.mlp(f"{source}.pred_obj_score_head", f"{target}/object_head", 3)


def _memory(table: Table, config: Sam2Config) -> None:
    table.one("no_memory_positional_encoding", "no_memory_position")
    table.one("memory_temporal_positional_encoding", "memory_time")
    table.one("no_object_pointer", "no_object_pointer")
    table.conv("mask_downsample", "mask_downsample")
    table.mlp("object_pointer_proj", "pointer_proj", 3)
    if config.occlusion_embedding:
        table.one("occlusion_spatial_embedding_parameter", "occlusion")
    if config.pointer_time:
        table.linear("temporal_positional_encoding_projection_layer", "pointer_time")
    for i in range(config.attention_layers):
        name, path = f"memory_attention.layers.{i}", "memory_attention/layers"
        table.attention(f"{name}.self_attn", f"{path}/self_attn", i)
        table.attention(f"{name}.cross_attn_image", f"{path}/cross_attn", i)
        table.linear(f"{name}.linear1", f"{path}/linear1", i)
        table.linear(f"{name}.linear2", f"{path}/linear2", i)
        for j in (1, 2, 3):
            table.norm(f"{name}.layer_norm{j}", f"{path}/norm{j}", i)
    table.norm("memory_attention.layer_norm", "memory_attention/norm")
    source, target = "memory_encoder", "memory_encoder"
    for i in range(config.mask_layers):
        table.conv(f"{source}.mask_downsampler.layers.{i}.conv", f"{target}/mask_{i}/conv")
        table.norm(f"{source}.mask_downsampler.layers.{i}.layer_norm", f"{target}/mask_norm_{i}")
    table.conv(f"{source}.mask_downsampler.final_conv", f"{target}/mask_out")
    table.conv(f"{source}.feature_projection", f"{target}/frame")
    table.conv(f"{source}.projection", f"{target}/out")
    for i in range(config.fuser_layers):
        name, path = f"{source}.memory_fuser.layers.{i}", f"{target}/fuser_{i}"
        table.one(f"{name}.scale", f"{path}/scale")
        table.conv(f"{name}.depthwise_conv", f"{path}/depthwise")
        table.norm(f"{name}.layer_norm", f"{path}/norm")
        table.linear(f"{name}.pointwise_conv1", f"{path}/pointwise1")
        table.linear(f"{name}.pointwise_conv2", f"{path}/pointwise2")


def load(
    path: epath.PathLike,
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    **options: Any,
) -> tuple[Sam2, Any]:
    """Reads a directory saved by transformers' `Sam2VideoModel` or `Sam2Model`.

    Args:
      path: holds `config.json` and safetensors, sharded or not.
      dtype: float32 or bfloat16, of the parameters and of the computation.
      mesh: where to lay the parameters out by their logical axes; None is the default device.
      options: fields of `Sam2Config` to replace. `video=False` takes only the image model out of a video checkpoint.

    Returns:
      The module and its parameters (a nested dict of arrays).

    Raises:
      InputError: a missing or malformed file, a config that is not supported, or tensors that do not fit it (all of
        them listed).
    """
    name = jnp.dtype(dtype).name
    if name not in ("float32", "bfloat16"):
        raise InputError(f"SAM 2 dtype {name!r}: must be float32 or bfloat16")
    config = read_config(path, dtype=name, **options)
    abstract = hf_checkpoint.abstract(abstract_params, config, path)
    shapes = nn.meta.unbox(abstract)
    shardings = None if mesh is None else tree_shardings(mesh, abstract)
    ignore = () if config.video else VIDEO_ONLY
    params = load_params(path, leaves(config), shapes, dtype=dtype, shardings=shardings, ignore=ignore)
    return Sam2(config), params


def export(
    path: epath.PathLike,
    model: Sam2,
    params: Any,
    *,
    files: Mapping[str, bytes] = MappingProxyType({}),
    max_shard_bytes: int = MAX_SHARD_BYTES,
    owner: str = "",
    flag: str = "weights",
) -> None:
    """Writes a directory that transformers' `Sam2VideoModel` (or `Sam2Model`, without `video`) and `load` read.

    Tensors keep the names, order of axes and dtype of a checkpoint: what `load` read comes out bit for bit. The
    directory appears by rename, `files` (by name) in it. `path`, `owner` and `flag` as for `hf_checkpoint.save_params`.
    """
    config = to_hf(model.config) | {"dtype": jnp.dtype(jax.tree.leaves(params)[0].dtype).name}
    files = {**files, "config.json": json.dumps(config, indent=2, sort_keys=True).encode()}
    save_params(
        path,
        leaves(model.config),
        nn.meta.unbox(params),
        max_shard_bytes=max_shard_bytes,
        files=files,
        owner=owner,
        flag=flag,
    )
