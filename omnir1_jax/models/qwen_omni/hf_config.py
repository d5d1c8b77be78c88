"""The thinker's `ThinkerConfig` from and to a Hugging Face `config.json`, in the old spelling and the new."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from etils import epath
from jax.typing import DTypeLike

from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file
from omnir1_jax.files.json_file import describe
from omnir1_jax.models.config_values import MAX_COUNT, MAX_SIZE, flag, integer, integers, number, section, without_null
from omnir1_jax.models.qwen_omni.config import AudioConfig, TextConfig, ThinkerConfig, TokenIds, VisionConfig

MAX_WIDTH = 1 << 16  # of hidden states
WHOLE, THINKER = "qwen2_5_omni", "qwen2_5_omni_thinker"
ARCHITECTURES = {WHOLE: "Qwen2_5OmniForConditionalGeneration", THINKER: "Qwen2_5OmniThinkerForConditionalGeneration"}


class Key(NamedTuple):
    """A field in `config.json`: its key, transformers' default, the highest valid value."""

    name: str
    default: Any
    high: float = MAX_SIZE


_TEXT = dict(
    vocab_size=Key("vocab_size", 152064),
    hidden_size=Key("hidden_size", 3584, MAX_WIDTH),
    intermediate_size=Key("intermediate_size", 18944),
    num_layers=Key("num_hidden_layers", 28, MAX_COUNT),
    num_heads=Key("num_attention_heads", 28, MAX_COUNT),
    num_kv_heads=Key("num_key_value_heads", 4, MAX_COUNT),
    rms_norm_eps=Key("rms_norm_eps", 1e-6, 1.0),
)
_VISION = dict(
    depth=Key("depth", 32, MAX_COUNT),
    hidden_size=Key("hidden_size", 3584, MAX_WIDTH),
    intermediate_size=Key("intermediate_size", 3420),
    num_heads=Key("num_heads", 16, MAX_COUNT),
    out_hidden_size=Key("out_hidden_size", 3584, MAX_WIDTH),
    full_attention_blocks=Key("fullatt_block_indexes", (7, 15, 23, 31), MAX_COUNT),
    patch_size=Key("patch_size", 14, MAX_COUNT),
    temporal_patch_size=Key("temporal_patch_size", 2, 16),
    spatial_merge_size=Key("spatial_merge_size", 2, 64),
    window_size=Key("window_size", 112),
    in_channels=Key("in_channels", 3, MAX_COUNT),
)
_AUDIO = dict(
    num_mel_bins=Key("num_mel_bins", 128, MAX_COUNT),
    d_model=Key("d_model", 1280, MAX_WIDTH),
    num_layers=Key("encoder_layers", 32, MAX_COUNT),
    num_heads=Key("encoder_attention_heads", 20, MAX_COUNT),
    ffn_dim=Key("encoder_ffn_dim", 5120),
    output_dim=Key("output_dim", 3584, MAX_WIDTH),
    n_window=Key("n_window", 100, 4096),
    max_source_positions=Key("max_source_positions", 1500),
)
# `vision_start_token_id` and `vision_end_token_id` are not declared fields of transformers'; these are the ids of the
# released tokenizer.
_IDS = dict(
    audio=Key("audio_token_index", 151646),
    image=Key("image_token_index", 151655),
    video=Key("video_token_index", 151656),
    audio_start=Key("audio_start_token_id", 151647),
    audio_end=Key("audio_end_token_id", 151648),
    vision_start=Key("vision_start_token_id", 151652),
    vision_end=Key("vision_end_token_id", 151653),
    pad=Key("pad_token_id", 151643),
    eos=Key("eos_token_id", 151645),
)
_TOP = dict(
    position_id_per_second=Key("position_id_per_seconds", 25),
    seconds_per_chunk=Key("seconds_per_chunk", 2.0, 1e6),
)

# What the modules compute; another value means another model.
_FIXED: dict[str, dict[str, Any]] = {
    "text_config": {"hidden_act": "silu", "use_sliding_window": False},
    "vision_config": {"hidden_act": "silu"},
    "audio_config": {"activation_function": "gelu", "scale_embedding": False},
}


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """The `config.json` of a checkpoint directory, as it is.

    Raises:
      InputError: it is missing or not a JSON object.
    """
    path = epath.Path(path) / "config.json"
    if not path.exists():
        raise InputError(f"{path}: no such file; a checkpoint needs its config.json")
    return json_file.read_object(path)


def thinker_json(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The thinker's part of a `config.json`, which may be the thinker's own or the whole model's.

    Raises:
      InputError: a model of another family.
    """
    model_type = raw.get("model_type")
    if model_type not in (WHOLE, THINKER):
        raise InputError(f"{source}: model_type {model_type!r} is not Qwen2.5-Omni ({WHOLE!r} or {THINKER!r})")
    part = raw.get("thinker_config") if model_type == WHOLE else raw
    if not isinstance(part, dict):
        raise InputError(f"{source}: has no thinker_config")
    return dict(part)


def parse(raw: Mapping[str, Any], source: str = "config.json", dtype: DTypeLike = jnp.float32) -> ThinkerConfig:
    """`ThinkerConfig` of a Hugging Face config.

    Args:
      raw: the parsed JSON.
      source: name of the file for error messages.
      dtype: of activations.

    Raises:
      InputError: another model family, a setting that the modules do not have, or a key missing or of a wrong type.
    """
    raw = thinker_json(raw, source)
    text, vision, audio = (_section(raw, name, source) for name in _FIXED)
    t, v, a = (f"{source}: {name}." for name in _FIXED)
    theta, sections = _rope(text, source)
    sizes = _read(text, _TEXT, t)
    head = {"head_dim": sizes["hidden_size"] // sizes["num_heads"]}
    tied = {"tie_word_embeddings": False} | without_null(raw)
    rope = {"rope_theta": vision.get("rope_theta", 1e4)} | without_null(section(vision, "rope_parameters", v))
    config = ThinkerConfig(
        text=TextConfig(
            **sizes,
            head_dim=integer(head | text, "head_dim", t, 1, MAX_WIDTH),
            rope_theta=theta,
            mrope_section=sections,
            tie_word_embeddings=flag(tied, "tie_word_embeddings", f"{source}: "),
        ),
        vision=VisionConfig(**_read(vision, _VISION, v), rope_theta=number(rope, "rope_theta", v)),
        audio=AudioConfig(**_read(audio, _AUDIO, a)),
        tokens=_token_ids(raw, text, source),
        **_read(without_null(raw), _TOP, f"{source}: "),
        dtype=dtype,
    )
    _check_sizes(config, source)
    return config


def _section(raw: Mapping[str, Any], name: str, source: str) -> dict[str, Any]:
    """A section without its nulls, checked for settings that the modules do not support."""
    part = raw.get(name)
    if not isinstance(part, dict):
        raise InputError(f"{source}: {name} is missing or not an object")
    part = without_null(part)
    for key, value in _FIXED[name].items():
        if part.get(key, value) != value:
            raise InputError(f"{source}: {name}.{key} is {describe(part[key])}; only {describe(value)} is supported")
    return part


def _read(part: Mapping[str, Any], keys: Mapping[str, Key], where: str) -> dict[str, Any]:
    """The fields, each of its default's type and within its range."""
    fields = {}
    for field, (name, default, high) in keys.items():
        entry = {name: part.get(name, default)}
        match default:
            case int():
                fields[field] = integer(entry, name, where, 1, int(high))
            case float():
                fields[field] = number(entry, name, where, high=high)
            case _:
                fields[field] = integers(entry, name, where, 0, int(high))
    return fields


def _rope(text: Mapping[str, Any], source: str) -> tuple[float, tuple[int, int, int]]:
    """(theta, mrope_section) from `rope_parameters`, or from `rope_theta` and `rope_scaling` of older files."""
    prefix = f"{source}: text_config."
    rope = section(text, "rope_parameters", prefix) or section(text, "rope_scaling", prefix)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise InputError(f"{prefix}rope_type is {describe(kind)}, which is not supported; only 'default' is")
    sections = integers({"mrope_section": (16, 24, 24)} | without_null(rope), "mrope_section", prefix, 1, MAX_WIDTH)
    if len(sections) != 3:
        raise InputError(f"{prefix}mrope_section {list(sections)} must be 3 numbers: of time, height and width")
    return number({"rope_theta": text.get("rope_theta", 1e6)} | without_null(rope), "rope_theta", prefix), sections


def _token_ids(raw: Mapping[str, Any], text: Mapping[str, Any], source: str) -> TokenIds:
    """The ids, which newer files name `.._token_id` and older ones `.._token_index`."""
    alias = {key.name.replace("_index", "_id"): key.name for key in _IDS.values()}
    ends = {key: text[key] for key in ("pad_token_id", "eos_token_id") if key in text}
    named = {alias.get(key, key): value for key, value in without_null(raw).items()}
    ids = {key.name: key.default for key in _IDS.values()} | ends | named
    eos = ids["eos_token_id"]
    ids["eos_token_id"] = eos if isinstance(eos, list) else [eos]
    prefix = f"{source}: "
    return TokenIds(**{f: (integers if f == "eos" else integer)(ids, k.name, prefix, 0) for f, k in _IDS.items()})


def _check_sizes(config: ThinkerConfig, source: str) -> None:
    """InputError where sizes of the parts do not fit together."""
    t, v, a = config.text, config.vision, config.audio
    if t.head_dim % 2:
        raise InputError(f"{source}: head_dim {t.head_dim} must be even")
    if t.num_heads % t.num_kv_heads:  # as are more of the latter
        raise InputError(
            f"{source}: num_attention_heads {t.num_heads} is not a multiple of num_key_value_heads {t.num_kv_heads}"
        )
    if 2 * sum(t.mrope_section) != t.head_dim or len(t.mrope_section) != 3:
        raise InputError(
            f"{source}: mrope_section {list(t.mrope_section)} must be 3 numbers with sum head_dim/2 = {t.head_dim // 2}"
        )
    if v.hidden_size % (4 * v.num_heads) or a.d_model % (2 * a.num_heads):
        raise InputError(f"{source}: vision hidden_size must be a multiple of 4 heads, audio d_model of 2 heads")
    if v.out_hidden_size != t.hidden_size or a.output_dim != t.hidden_size:
        raise InputError(
            f"{source}: vision out_hidden_size {v.out_hidden_size} and audio output_dim {a.output_dim} must both be "
            f"the text's hidden_size {t.hidden_size}"
        )
    if a.n_window > a.max_source_positions:
        raise InputError(
            f"{source}: audio n_window {a.n_window} is more than max_source_positions {a.max_source_positions}"
        )
    if v.window_size % v.cell_pixels:
        raise InputError(f"{source}: window_size {v.window_size} is not a multiple of a cell's {v.cell_pixels} pixels")


def to_json(
    config: ThinkerConfig, *, base: Mapping[str, Any] | None = None, whole_model: bool = False
) -> dict[str, Any]:
    """A `config.json` that transformers reads.

    Args:
      base: the config that the weights came with; it is kept except for tying, which is `config`'s.
      whole_model: wrapped as the whole model's, for names that begin with `thinker.`.
    """
    part = thinker_json(copy.deepcopy(dict(base)), "config.json") if base is not None else _new(config)
    part["model_type"], part["architectures"] = THINKER, [ARCHITECTURES[THINKER]]
    part["tie_word_embeddings"] = config.text.tie_word_embeddings
    # Not declared by transformers, but read: without it positions of media fail there.
    part.setdefault("vision_start_token_id", config.tokens.vision_start)
    part.setdefault("vision_end_token_id", config.tokens.vision_end)
    if not whole_model:
        return part
    model_json = copy.deepcopy(dict(base)) if base is not None and base.get("model_type") == WHOLE else {}
    return model_json | {"model_type": WHOLE, "architectures": [ARCHITECTURES[WHOLE]], "thinker_config": part}


def _new(config: ThinkerConfig) -> dict[str, Any]:
    """The complete config in the new spelling."""
    t, v, ids = config.text, config.vision, _write(config.tokens, _IDS)
    ends = {key: ids[key] for key in ("pad_token_id", "eos_token_id")}
    rope = dict(rope_type="default", rope_theta=t.rope_theta, mrope_section=list(t.mrope_section))
    parts = dict(
        text_config=_write(t, _TEXT)
        | ends
        | dict(head_dim=t.head_dim, rope_parameters=rope, tie_word_embeddings=t.tie_word_embeddings),
        vision_config=_write(v, _VISION) | dict(rope_parameters=dict(rope_type="axial", rope_theta=v.rope_theta)),
        audio_config=_write(config.audio, _AUDIO),
    )
    kinds = ("qwen2_5_omni_text", "qwen2_5_omni_vision_encoder", "qwen2_5_omni_audio_encoder")
    parts = {name: {"model_type": kind} | part for kind, (name, part) in zip(kinds, parts.items(), strict=True)}
    return parts | ids | _write(config, _TOP) | {"seconds_per_chunk": int(config.seconds_per_chunk)}


def _write(config: Any, keys: Mapping[str, Key]) -> dict[str, Any]:
    values = {key.name: getattr(config, field) for field, key in keys.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
