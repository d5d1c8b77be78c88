"""`Sam2Config` from a Hugging Face `config.json`, and back."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file
from omnir1_jax.models.config_values import flag, number, section, whole, wholes, without_null
from omnir1_jax.models.sam2.config import HieraConfig, Sam2Config

_WHERE = "SAM 2 config: "


def _same(values: Mapping[str, Any], what: str) -> Any:
    """The one value that several keys of a config must agree on."""
    if len({json.dumps(v) for v in values.values()}) > 1:
        raise InputError(f"SAM 2 config: {what} must be equal: {', '.join(f'{k}={v}' for k, v in values.items())}")
    return next(iter(values.values()))


def _get(part: Mapping[str, Any], key: str, default: Any) -> Any:
    """`part[key]` of the default's type and within a size's range; the default where it is absent or null.

    Raises:
      InputError: naming the key.
    """
    part = {key: default} | without_null({key: part.get(key)})
    match default:
        case bool():
            return flag(part, key, _WHERE)
        case int():
            return whole(part, key, _WHERE, min(default, 0))
        case float():
            return number(part, key, _WHERE, -1e6, 1e6)
        case tuple():
            return wholes(part, key, _WHERE)
    if not isinstance(part[key], str):
        raise InputError(f"{_WHERE}{key} is {json_file.describe(part[key])}; it must be a name")
    return part[key]


def _square(part: Mapping[str, Any], key: str, default: int) -> int:
    """`part[key]`: one number, or an equal height and width."""
    value = part.get(key)
    if not isinstance(value, list | tuple):
        return _get(part, key, default)
    sides = wholes(part, key, _WHERE)
    if len(set(sides)) != 1:
        raise InputError(f"{_WHERE}{key} {list(sides)} must be square")
    return sides[0]


def from_hf(config: Mapping[str, Any], **options: Any) -> Sam2Config:
    """`Sam2Config` of a parsed HF `config.json` of `Sam2Model` or `Sam2VideoModel`.

    Absent keys take the defaults of transformers' configuration classes (SAM 2.1 tiny). `options` replace fields.
    Raises `InputError` naming the key for a model of another kind or a setting that is not supported.
    """
    kind = config.get("model_type")
    if kind not in ("sam2", "sam2_video"):
        raise InputError(f"config.json: model_type {kind!r} is not sam2 or sam2_video")
    vision = section(config, "vision_config", _WHERE)
    back = section(vision, "backbone_config", _WHERE)
    prompt = section(config, "prompt_encoder_config", _WHERE)
    decoder = section(config, "mask_decoder_config", _WHERE)

    dims = _get(back, "embed_dim_per_stage", (96, 192, 384, 768))
    if _get(back, "hidden_size", 96) != (dims or (0,))[0]:
        raise InputError(f"config.json: backbone hidden_size {back.get('hidden_size', 96)} is not that of {dims}")
    if _get(vision, "backbone_channel_list", (768, 384, 192, 96)) != dims[::-1]:
        raise InputError(f"config.json: backbone_channel_list is not the reverse of embed_dim_per_stage {dims}")
    fixed = (
        (back, "query_stride", [2, 2]),
        (back, "num_channels", 3),
        (vision, "fpn_kernel_size", 1),
        (vision, "fpn_stride", 1),
        (vision, "fpn_padding", 0),
        (vision, "num_feature_levels", 3),
    )
    for part, key, wanted in fixed:
        value = part.get(key)
        if value is not None and (list(value) if isinstance(value, list | tuple) else value) != wanted:
            raise InputError(f"config.json: {key} {json_file.describe(value)} is not supported, only {wanted}")
    widths = {
        "fpn_hidden_size": _get(vision, "fpn_hidden_size", 256),
        "prompt_encoder_config.hidden_size": _get(prompt, "hidden_size", 256),
        "mask_decoder_config.hidden_size": _get(decoder, "hidden_size", 256),
    }
    video = kind == "sam2_video"
    if video:
        names = ("memory_attention_hidden_size", "memory_encoder_hidden_size", "mask_downsampler_embed_dim")
        widths |= {name: _get(config, name, 256) for name in (*names, "memory_fuser_embed_dim")}
    patch = _square(prompt, "patch_size", 16)
    if patch != 16:
        raise InputError(f"config.json: prompt encoder patch_size {patch} is not supported, only 16")
    box_points = 2
    low, high = _get(config, "multimask_min_pt_num", 0), _get(config, "multimask_max_pt_num", 1)
    multimask = _get(config, "multimask_output_in_sam", True)
    stride, total = _get(config, "mask_downsampler_stride", 2), _get(config, "mask_downsampler_total_stride", 16)
    layers = next((n for n in range(1, 9) if stride**n == total), 0)
    rope = section(config, "rope_parameters", _WHERE)
    values: dict[str, Any] = dict(
        hiera=HieraConfig(
            dims=dims,
            heads=_get(back, "num_attention_heads_per_stage", (1, 2, 4, 8)),
            blocks=_get(back, "blocks_per_stage", (1, 2, 7, 2)),
            windows=_get(back, "window_size_per_stage", (8, 4, 14, 7)),
            global_blocks=_get(back, "global_attention_blocks", (5, 7, 9)),
            background=_get(back, "window_positional_embedding_background_size", (7, 7)),
            pool_stages=_get(back, "num_query_pool_stages", 3),
            patch_kernel=_square(back, "patch_kernel_size", 7),
            patch_stride=_square(back, "patch_stride", 4),
            patch_padding=_square(back, "patch_padding", 3),
            mlp_ratio=_get(back, "mlp_ratio", 4.0),
            activation=_get(back, "hidden_act", "gelu"),
            eps=_get(back, "layer_norm_eps", 1e-6),
        ),
        width=_same(widths, "the widths of the parts"),
        top_down_levels=_get(vision, "fpn_top_down_levels", (2, 3)),
        point_embeddings=_get(prompt, "num_point_embeddings", 4),
        mask_channels=_get(prompt, "mask_input_channels", 16),
        prompt_activation=_get(prompt, "hidden_act", "gelu"),
        prompt_eps=_get(prompt, "layer_norm_eps", 1e-6),
        decoder_layers=_get(decoder, "num_hidden_layers", 2),
        decoder_heads=_get(decoder, "num_attention_heads", 8),
        decoder_mlp=_get(decoder, "mlp_dim", 2048),
        decoder_downsample=_get(decoder, "attention_downsample_rate", 2),
        multimasks=_get(decoder, "num_multimask_outputs", 3),
        iou_depth=_get(decoder, "iou_head_depth", 3),
        iou_width=_get(decoder, "iou_head_hidden_dim", 256),
        dynamic_multimask=_get(decoder, "dynamic_multimask_via_stability", True),
        stability_delta=_get(decoder, "dynamic_multimask_stability_delta", 0.05),
        stability_threshold=_get(decoder, "dynamic_multimask_stability_thresh", 0.98),
        video=video,
        side=_square(prompt, "image_size", 1024),
    )
    if video:
        values |= dict(
            memories=_get(config, "num_maskmem", 7),
            memory_channels=_get(config, "memory_encoder_output_channels", 64),
            memory_scale=_get(config, "sigmoid_scale_for_mem_enc", 20.0),
            memory_bias=_get(config, "sigmoid_bias_for_mem_enc", -10.0),
            occlusion_embedding=_get(config, "enable_occlusion_spatial_embedding", True),
            multimask_box=multimask and low <= box_points <= high,
            multimask_tracking=multimask and _get(config, "multimask_output_for_tracking", True) and low <= 0 <= high,
            pointers=_get(config, "max_object_pointers_in_encoder", 16),
            pointer_time=_get(config, "enable_temporal_pos_encoding_for_object_pointers", True),
            attention_layers=_get(config, "memory_attention_num_layers", 4),
            attention_heads=_get(config, "memory_attention_num_attention_heads", 1),
            attention_downsample=_get(config, "memory_attention_downsample_rate", 1),
            attention_mlp=_get(config, "memory_attention_feed_forward_hidden_size", 2048),
            attention_activation=_get(config, "memory_attention_feed_forward_hidden_act", "relu"),
            rope_theta=_get(rope, "rope_theta", _get(config, "memory_attention_rope_theta", 10000.0)),
            mask_kernel=_get(config, "mask_downsampler_kernel_size", 3),
            mask_stride=stride,
            mask_padding=_get(config, "mask_downsampler_padding", 1),
            mask_layers=layers,
            mask_activation=_get(config, "mask_downsampler_hidden_act", "gelu"),
            fuser_layers=_get(config, "memory_fuser_num_layers", 2),
            fuser_mlp=_get(config, "memory_fuser_intermediate_dim", 1024),
            fuser_kernel=_get(config, "memory_fuser_kernel_size", 7),
            fuser_padding=_get(config, "memory_fuser_padding", 3),
            fuser_activation=_get(config, "memory_fuser_hidden_act", "gelu"),
            conditioning_slots=_get(config, "max_cond_frame_num", -1),
        )
    known = {field.name for field in dataclasses.fields(Sam2Config)}
    if unknown := sorted(set(options) - known):
        raise InputError(f"SAM 2 options: there is no option {', '.join(unknown)}")
    return Sam2Config(**(values | options))


def read_config(path: epath.PathLike, **options: Any) -> Sam2Config:
    """`from_hf` of `path/config.json`; errors name the file."""
    file = epath.Path(path) / "config.json"
    if not file.exists():
        raise InputError(f"{file}: no such file; give a directory saved by transformers' Sam2Model or Sam2VideoModel")
    config = json_file.read_object(file)
    try:
        return from_hf(config, **options)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def to_hf(config: Sam2Config) -> dict[str, Any]:
    """The `config.json` that transformers reads back as this model; our options are not part of it.

    The input side is the one of `config`, so that transformers runs at it too.
    """
    hiera, side, width = config.hiera, config.side, config.width
    low, high = (0 if config.multimask_tracking else 1), (2 if config.multimask_box else 1)
    kind = "sam2_video" if config.video else "sam2"
    values: dict[str, Any] = {
        "architectures": ["Sam2VideoModel" if config.video else "Sam2Model"],
        "model_type": kind,
        "dtype": config.dtype,
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "image_size": [side, side],
                "hidden_size": hiera.dims[0],
                "num_attention_heads": hiera.heads[0],
                "embed_dim_per_stage": list(hiera.dims),
                "num_attention_heads_per_stage": list(hiera.heads),
                "blocks_per_stage": list(hiera.blocks),
                "window_size_per_stage": list(hiera.windows),
                "global_attention_blocks": list(hiera.global_blocks),
                "window_positional_embedding_background_size": list(hiera.background),
                "num_query_pool_stages": hiera.pool_stages,
                "patch_kernel_size": [hiera.patch_kernel] * 2,
                "patch_stride": [hiera.patch_stride] * 2,
                "patch_padding": [hiera.patch_padding] * 2,
                "mlp_ratio": hiera.mlp_ratio,
                "hidden_act": hiera.activation,
                "layer_norm_eps": hiera.eps,
            },
            "backbone_channel_list": list(hiera.dims[::-1]),
            "backbone_feature_sizes": [[side // stride] * 2 for stride in (4, 8, 16)],
            "fpn_hidden_size": width,
            "fpn_top_down_levels": list(config.top_down_levels),
            "num_feature_levels": 3,
        },
        "prompt_encoder_config": {
            "model_type": f"{kind}_prompt_encoder",
            "hidden_size": width,
            "image_size": side,
            "patch_size": 16,
            "mask_input_channels": config.mask_channels,
            "num_point_embeddings": config.point_embeddings,
            "hidden_act": config.prompt_activation,
            "layer_norm_eps": config.prompt_eps,
        },
        "mask_decoder_config": {
            "model_type": f"{kind}_mask_decoder",
            "hidden_size": width,
            "mlp_dim": config.decoder_mlp,
            "num_hidden_layers": config.decoder_layers,
            "num_attention_heads": config.decoder_heads,
            "attention_downsample_rate": config.decoder_downsample,
            "num_multimask_outputs": config.multimasks,
            "iou_head_depth": config.iou_depth,
            "iou_head_hidden_dim": config.iou_width,
            "dynamic_multimask_via_stability": config.dynamic_multimask,
            "dynamic_multimask_stability_delta": config.stability_delta,
            "dynamic_multimask_stability_thresh": config.stability_threshold,
        },
    }
    if not config.video:
        return values
    return values | {
        "image_size": side,
        "num_maskmem": config.memories,
        "sigmoid_scale_for_mem_enc": config.memory_scale,
        "sigmoid_bias_for_mem_enc": config.memory_bias,
        "enable_occlusion_spatial_embedding": config.occlusion_embedding,
        "multimask_output_in_sam": config.multimask_box or config.multimask_tracking,
        "multimask_min_pt_num": low,
        "multimask_max_pt_num": high,
        "multimask_output_for_tracking": config.multimask_tracking,
        "max_object_pointers_in_encoder": config.pointers,
        "max_cond_frame_num": config.conditioning_slots,
        "enable_temporal_pos_encoding_for_object_pointers": config.pointer_time,
        "memory_attention_hidden_size": width,
        "memory_attention_num_layers": config.attention_layers,
        "memory_attention_num_attention_heads": config.attention_heads,
        "memory_attention_downsample_rate": config.attention_downsample,
        "memory_attention_feed_forward_hidden_size": config.attention_mlp,
        "memory_attention_feed_forward_hidden_act": config.attention_activation,
        "memory_attention_rope_feat_sizes": [config.grid] * 2,
        "rope_parameters": {"rope_type": "axial", "rope_theta": config.rope_theta},
        "memory_encoder_hidden_size": width,
        "memory_encoder_output_channels": config.memory_channels,
        "mask_downsampler_embed_dim": width,
        "mask_downsampler_kernel_size": config.mask_kernel,
        "mask_downsampler_stride": config.mask_stride,
        "mask_downsampler_padding": config.mask_padding,
        "mask_downsampler_total_stride": config.mask_stride**config.mask_layers,
        "mask_downsampler_hidden_act": config.mask_activation,
        "memory_fuser_num_layers": config.fuser_layers,
        "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": config.fuser_mlp,
        "memory_fuser_kernel_size": config.fuser_kernel,
        "memory_fuser_padding": config.fuser_padding,
        "memory_fuser_hidden_act": config.fuser_activation,
    }
