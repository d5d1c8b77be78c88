"""`Sam2Config` from a Hugging Face `config.json`, and back."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file
from omnir1_jax.models.config_values import flag, integer, integers, number, section, without_null
from omnir1_jax.models.sam2.config import HieraConfig, Sam2Config

_WHERE = "SAM 2 config: "
# Keys of the fields, by section; absent ones have the fields' defaults, which are those of transformers.
_HIERA = dict(
    dims="embed_dim_per_stage",
    heads="num_attention_heads_per_stage",
    blocks="blocks_per_stage",
    windows="window_size_per_stage",
    global_blocks="global_attention_blocks",
    background="window_positional_embedding_background_size",
    pool_stages="num_query_pool_stages",
    patch_kernel="patch_kernel_size",
    patch_stride="patch_stride",
    patch_padding="patch_padding",
    mlp_ratio="mlp_ratio",
    activation="hidden_act",
    eps="layer_norm_eps",
)
_PROMPT = dict(
    point_embeddings="num_point_embeddings",
    mask_channels="mask_input_channels",
    prompt_activation="hidden_act",
    prompt_eps="layer_norm_eps",
    side="image_size",
)
_DECODER = dict(
    decoder_layers="num_hidden_layers",
    decoder_heads="num_attention_heads",
    decoder_mlp="mlp_dim",
    decoder_downsample="attention_downsample_rate",
    multimasks="num_multimask_outputs",
    iou_depth="iou_head_depth",
    iou_width="iou_head_hidden_dim",
    dynamic_multimask="dynamic_multimask_via_stability",
    stability_delta="dynamic_multimask_stability_delta",
    stability_threshold="dynamic_multimask_stability_thresh",
)
_VIDEO = dict(
    memories="num_maskmem",
    memory_channels="memory_encoder_output_channels",
    memory_scale="sigmoid_scale_for_mem_enc",
    memory_bias="sigmoid_bias_for_mem_enc",
    occlusion_embedding="enable_occlusion_spatial_embedding",
    pointers="max_object_pointers_in_encoder",
    pointer_time="enable_temporal_pos_encoding_for_object_pointers",
    attention_layers="memory_attention_num_layers",
    attention_heads="memory_attention_num_attention_heads",
    attention_downsample="memory_attention_downsample_rate",
    attention_mlp="memory_attention_feed_forward_hidden_size",
    attention_activation="memory_attention_feed_forward_hidden_act",
    mask_kernel="mask_downsampler_kernel_size",
    mask_stride="mask_downsampler_stride",
    mask_padding="mask_downsampler_padding",
    mask_activation="mask_downsampler_hidden_act",
    fuser_layers="memory_fuser_num_layers",
    fuser_mlp="memory_fuser_intermediate_dim",
    fuser_kernel="memory_fuser_kernel_size",
    fuser_padding="memory_fuser_padding",
    fuser_activation="memory_fuser_hidden_act",
    conditioning_slots="max_cond_frame_num",
)
_SQUARE = ("patch_kernel_size", "patch_stride", "patch_padding", "image_size")  # one number, or an equal pair


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
    if key in _SQUARE and isinstance(part[key], list | tuple):
        sides = integers(part, key, _WHERE)
        if len(set(sides)) != 1:
            raise InputError(f"{_WHERE}{key} {list(sides)} must be square")
        return sides[0]
    match default:
        case bool():
            return flag(part, key, _WHERE)
        case int():
            return integer(part, key, _WHERE, min(default, 0))
        case float():
            return number(part, key, _WHERE, -1e6, 1e6)
        case tuple():
            return integers(part, key, _WHERE)
    if not isinstance(part[key], str):
        raise InputError(f"{_WHERE}{key} is {json_file.describe(part[key])}; it must be a name")
    return part[key]


def _read(part: Mapping[str, Any], keys: Mapping[str, str], defaults: Any) -> dict[str, Any]:
    return {field: _get(part, key, getattr(defaults, field)) for field, key in keys.items()}


def _write(config: Any, keys: Mapping[str, str]) -> dict[str, Any]:
    values = {key: getattr(config, field) for field, key in keys.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def from_hf(config: Mapping[str, Any], **options: Any) -> Sam2Config:
    """`Sam2Config` of a parsed HF `config.json` of `Sam2Model` or `Sam2VideoModel`.

    Absent keys take the defaults of transformers' configuration classes (SAM 2.1 tiny). `options` replace fields.
    Raises `InputError` naming the key for a model of another kind or a setting that is not supported.
    """
    model_type = config.get("model_type")
    if model_type not in ("sam2", "sam2_video"):
        raise InputError(f"config.json: model_type {model_type!r} is not sam2 or sam2_video")
    vision = section(config, "vision_config", _WHERE)
    backbone = section(vision, "backbone_config", _WHERE)
    prompt = section(config, "prompt_encoder_config", _WHERE)
    decoder = section(config, "mask_decoder_config", _WHERE)
    hiera = HieraConfig(**_read(backbone, _HIERA, HieraConfig))

    if _get(backbone, "hidden_size", 96) != (hiera.dims or (0,))[0]:
        raise InputError(
            f"config.json: backbone hidden_size {backbone.get('hidden_size', 96)} is not that of {hiera.dims}"
        )
    if _get(vision, "backbone_channel_list", (768, 384, 192, 96)) != hiera.dims[::-1]:
        raise InputError(f"config.json: backbone_channel_list is not the reverse of embed_dim_per_stage {hiera.dims}")
    fixed = (
        (backbone, "query_stride", [2, 2]),
        (backbone, "num_channels", 3),
        (vision, "fpn_kernel_size", 1),
        (vision, "fpn_stride", 1),
        (vision, "fpn_padding", 0),
        (vision, "num_feature_levels", 3),
        (prompt, "patch_size", 16),
    )
    for part, key, expected in fixed:
        value = part.get(key)
        if value is not None and (list(value) if isinstance(value, list | tuple) else value) != expected:
            raise InputError(f"config.json: {key} {json_file.describe(value)} is not supported, only {expected}")
    video = model_type == "sam2_video"
    widths = {
        "fpn_hidden_size": _get(vision, "fpn_hidden_size", 256),
        "prompt_encoder_config.hidden_size": _get(prompt, "hidden_size", 256),
        "mask_decoder_config.hidden_size": _get(decoder, "hidden_size", 256),
    }
    if video:
        names = ("memory_attention_hidden_size", "memory_encoder_hidden_size", "mask_downsampler_embed_dim")
        widths |= {name: _get(config, name, 256) for name in (*names, "memory_fuser_embed_dim")}
    values: dict[str, Any] = dict(
        hiera=hiera,
        width=_same(widths, "the widths of the parts"),
        top_down_levels=_get(vision, "fpn_top_down_levels", (2, 3)),
        video=video,
        **_read(prompt, _PROMPT, Sam2Config),
        **_read(decoder, _DECODER, Sam2Config),
    )
    if video:
        box_points, multimask = 2, _get(config, "multimask_output_in_sam", True)
        low, high = _get(config, "multimask_min_pt_num", 0), _get(config, "multimask_max_pt_num", 1)
        rope, theta = section(config, "rope_parameters", _WHERE), Sam2Config.rope_theta
        values |= _read(config, _VIDEO, Sam2Config)
        total = _get(config, "mask_downsampler_total_stride", 16)
        values |= dict(
            multimask_box=multimask and low <= box_points <= high,
            multimask_tracking=multimask and _get(config, "multimask_output_for_tracking", True) and low <= 0 <= high,
            rope_theta=_get(rope, "rope_theta", _get(config, "memory_attention_rope_theta", theta)),
            mask_layers=next((n for n in range(1, 9) if values["mask_stride"] ** n == total), 0),
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
    model_type = "sam2_video" if config.video else "sam2"
    backbone = _write(hiera, _HIERA) | {
        "model_type": "sam2_hiera_det_model",
        "image_size": [side, side],
        "hidden_size": hiera.dims[0],
        "num_attention_heads": hiera.heads[0],
    }
    values: dict[str, Any] = {
        "architectures": ["Sam2VideoModel" if config.video else "Sam2Model"],
        "model_type": model_type,
        "dtype": config.dtype,
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": {
                key: [value] * 2 if key.startswith("patch_") else value for key, value in backbone.items()
            },
            "backbone_channel_list": list(hiera.dims[::-1]),
            "backbone_feature_sizes": [[side // stride] * 2 for stride in (4, 8, 16)],
            "fpn_hidden_size": width,
            "fpn_top_down_levels": list(config.top_down_levels),
            "num_feature_levels": 3,
        },
        "prompt_encoder_config": {"model_type": f"{model_type}_prompt_encoder", "hidden_size": width, "patch_size": 16}
        | _write(config, _PROMPT),
        "mask_decoder_config": {"model_type": f"{model_type}_mask_decoder", "hidden_size": width}
        | _write(config, _DECODER),
    }
    if not config.video:
        return values
    return values | {
        **_write(config, _VIDEO),
        "image_size": side,
        "multimask_output_in_sam": config.multimask_box or config.multimask_tracking,
        "multimask_min_pt_num": 0 if config.multimask_tracking else 1,
        "multimask_max_pt_num": 2 if config.multimask_box else 1,
        "multimask_output_for_tracking": config.multimask_tracking,
        "memory_attention_hidden_size": width,
        "memory_attention_rope_feat_sizes": [config.grid] * 2,
        "rope_parameters": {"rope_type": "axial", "rope_theta": config.rope_theta},
        "memory_encoder_hidden_size": width,
        "mask_downsampler_embed_dim": width,
        "mask_downsampler_total_stride": config.mask_stride**config.mask_layers,
        "memory_fuser_embed_dim": width,
    }
