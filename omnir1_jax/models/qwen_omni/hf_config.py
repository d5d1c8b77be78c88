"""The thinker's `ThinkerConfig` from and to a Hugging Face `config.json`, in the old spelling and the new."""

import copy
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from etils import epath
from jax.typing import DTypeLike

from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file
from omnir1_jax.files.json_file import describe
from omnir1_jax.models.config_values import MAX_COUNT, flag, number, section, whole, wholes, without_null
from omnir1_jax.models.qwen_omni.config import AudioConfig, TextConfig, ThinkerConfig, TokenIds, VisionConfig

MAX_WIDTH = 1 << 16  # of hidden states
WHOLE, THINKER = "qwen2_5_omni", "qwen2_5_omni_thinker"
ARCHITECTURES = {WHOLE: "Qwen2_5OmniForConditionalGeneration", THINKER: "Qwen2_5OmniThinkerForConditionalGeneration"}

# What transformers takes for a key that config.json leaves out. `vision_start_token_id` and `vision_end_token_id` are
# no declared fields there; these are the ids of the released tokeniser.
_TEXT = dict(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    rms_norm_eps=1e-6,
    hidden_act="silu",
    use_sliding_window=False,
)
_VISION = dict(
    depth=32,
    hidden_size=3584,
    intermediate_size=3420,
    num_heads=16,
    out_hidden_size=3584,
    fullatt_block_indexes=[7, 15, 23, 31],
    patch_size=14,
    temporal_patch_size=2,
    spatial_merge_size=2,
    window_size=112,
    in_channels=3,
    hidden_act="silu",
)
_AUDIO = dict(
    num_mel_bins=128,
    d_model=1280,
    encoder_layers=32,
    encoder_attention_heads=20,
    encoder_ffn_dim=5120,
    output_dim=3584,
    n_window=100,
    max_source_positions=1500,
    activation_function="gelu",
    scale_embedding=False,
)
_IDS = dict(
    audio_token_index=151646,
    image_token_index=151655,
    video_token_index=151656,
    audio_start_token_id=151647,
    audio_end_token_id=151648,
    vision_start_token_id=151652,
    vision_end_token_id=151653,
    pad_token_id=151643,
    eos_token_id=151645,
)
_OTHER = dict(position_id_per_seconds=25, seconds_per_chunk=2, tie_word_embeddings=False)

# What the modules compute; another value means another model.
_FIXED = {
    "text_config": {"hidden_act": "silu", "use_sliding_window": False},
    "vision_config": {"hidden_act": "silu"},
    "audio_config": {"activation_function": "gelu", "scale_embedding": False},
}
_ALIASES = {name.replace("_index", "_id"): name for name in _IDS if name.endswith("_index")}


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """The `config.json` of a checkpoint directory, as it is.

    Raises:
      InputError: it is missing or no JSON object.
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
    kind = raw.get("model_type")
    if kind not in (WHOLE, THINKER):
        raise InputError(f"{source}: model_type {kind!r} is not Qwen2.5-Omni ({WHOLE!r} or {THINKER!r})")
    part = raw.get("thinker_config") if kind == WHOLE else raw
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
    text = _section(raw, "text_config", _TEXT, source)
    vision = _section(raw, "vision_config", _VISION, source)
    audio = _section(raw, "audio_config", _AUDIO, source)
    top = _OTHER | {key: value for key, value in raw.items() if key in _OTHER and value is not None}
    theta, sections = _rope(text, source)
    t, v, a = (f"{source}: {name}." for name in ("text_config", "vision_config", "audio_config"))
    width, heads = whole(text, "hidden_size", t, 1, MAX_WIDTH), whole(text, "num_attention_heads", t, 1, MAX_COUNT)
    rope = section(vision, "rope_parameters", v)
    config = ThinkerConfig(
        text=TextConfig(
            vocab_size=whole(text, "vocab_size", t),
            hidden_size=width,
            intermediate_size=whole(text, "intermediate_size", t),
            num_layers=whole(text, "num_hidden_layers", t, 1, MAX_COUNT),
            num_heads=heads,
            num_kv_heads=whole(text, "num_key_value_heads", t, 1, heads),
            head_dim=whole({"head_dim": width // heads} | without_null(text), "head_dim", t, 1, MAX_WIDTH),
            rope_theta=theta,
            mrope_section=sections,
            rms_norm_eps=number(text, "rms_norm_eps", t, high=1.0),
            tie_word_embeddings=flag(top, "tie_word_embeddings", f"{source}: "),
        ),
        vision=VisionConfig(
            depth=whole(vision, "depth", v, 1, MAX_COUNT),
            hidden_size=whole(vision, "hidden_size", v, 1, MAX_WIDTH),
            intermediate_size=whole(vision, "intermediate_size", v),
            num_heads=whole(vision, "num_heads", v, 1, MAX_COUNT),
            out_hidden_size=whole(vision, "out_hidden_size", v, 1, MAX_WIDTH),
            full_attention_blocks=wholes(vision, "fullatt_block_indexes", v, 0, MAX_COUNT),
            patch_size=whole(vision, "patch_size", v, 1, MAX_COUNT),
            temporal_patch_size=whole(vision, "temporal_patch_size", v, 1, 16),
            spatial_merge_size=whole(vision, "spatial_merge_size", v, 1, 64),
            window_size=whole(vision, "window_size", v),
            in_channels=whole(vision, "in_channels", v, 1, MAX_COUNT),
            rope_theta=number({"rope_theta": vision.get("rope_theta", 1e4)} | without_null(rope), "rope_theta", v),
        ),
        audio=AudioConfig(
            num_mel_bins=whole(audio, "num_mel_bins", a, 1, MAX_COUNT),
            d_model=whole(audio, "d_model", a, 1, MAX_WIDTH),
            num_layers=whole(audio, "encoder_layers", a, 1, MAX_COUNT),
            num_heads=whole(audio, "encoder_attention_heads", a, 1, MAX_COUNT),
            ffn_dim=whole(audio, "encoder_ffn_dim", a),
            output_dim=whole(audio, "output_dim", a, 1, MAX_WIDTH),
            n_window=whole(audio, "n_window", a, 1, 4096),
            max_source_positions=whole(audio, "max_source_positions", a),
        ),
        tokens=_token_ids(raw, text, source),
        position_id_per_second=whole(top, "position_id_per_seconds", f"{source}: "),
        seconds_per_chunk=number(top, "seconds_per_chunk", f"{source}: ", high=1e6),
        dtype=dtype,
    )
    _check_sizes(config, source)
    return config


def _section(raw: Mapping[str, Any], name: str, defaults: Mapping[str, Any], source: str) -> dict[str, Any]:
    part = raw.get(name)
    if not isinstance(part, dict):
        raise InputError(f"{source}: {name} is missing or not an object")
    part = dict(defaults) | {key: value for key, value in part.items() if value is not None}
    for key, value in _FIXED[name].items():
        if part[key] != value:
            raise InputError(f"{source}: {name}.{key} is {describe(part[key])}; only {describe(value)} is supported")
    return part


def _rope(text: Mapping[str, Any], source: str) -> tuple[float, tuple[int, int, int]]:
    """(theta, mrope_section) from `rope_parameters`, or from `rope_theta` and `rope_scaling` of older files."""
    where = f"{source}: text_config."
    rope = section(text, "rope_parameters", where) or section(text, "rope_scaling", where)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise InputError(f"{where}rope_type is {describe(kind)}, which is not supported; only 'default' is")
    sections = wholes({"mrope_section": (16, 24, 24)} | without_null(rope), "mrope_section", where, 1, MAX_WIDTH)
    if len(sections) != 3:
        raise InputError(f"{where}mrope_section {list(sections)} must be 3 numbers: of time, height and width")
    return number({"rope_theta": text.get("rope_theta", 1e6)} | without_null(rope), "rope_theta", where), sections


def _token_ids(raw: Mapping[str, Any], text: Mapping[str, Any], source: str) -> TokenIds:
    named = {_ALIASES.get(key, key): value for key, value in raw.items() if value is not None}
    ids = _IDS | {key: text[key] for key in ("pad_token_id", "eos_token_id") if text.get(key) is not None}
    ids |= {key: named[key] for key in _IDS if key in named}
    eos = ids.pop("eos_token_id")
    one = {key: whole(ids, key, f"{source}: ", 0) for key in ids}
    return TokenIds(
        audio=one["audio_token_index"],
        image=one["image_token_index"],
        video=one["video_token_index"],
        audio_start=one["audio_start_token_id"],
        audio_end=one["audio_end_token_id"],
        vision_start=one["vision_start_token_id"],
        vision_end=one["vision_end_token_id"],
        pad=one["pad_token_id"],
        eos=wholes({"eos_token_id": eos if isinstance(eos, list) else [eos]}, "eos_token_id", f"{source}: "),
    )


def _check_sizes(config: ThinkerConfig, source: str) -> None:
    """InputError where sizes of the parts do not fit together."""
    t, v, a = config.text, config.vision, config.audio
    if t.head_dim % 2:
        raise InputError(f"{source}: head_dim {t.head_dim} must be even")
    if t.num_heads % t.num_kv_heads:
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


def to_json(config: ThinkerConfig, *, base: Mapping[str, Any] | None = None, whole: bool = False) -> dict[str, Any]:
    """A `config.json` that transformers reads.

    Args:
      base: the config that the weights came with: kept, but for what `config` has to say about tying.
      whole: wrapped as the whole model's, for names that begin with `thinker.`.
    """
    part = thinker_json(copy.deepcopy(dict(base)), "config.json") if base is not None else _new(config)
    part["model_type"], part["architectures"] = THINKER, [ARCHITECTURES[THINKER]]
    part["tie_word_embeddings"] = config.text.tie_word_embeddings
    # Not declared by transformers, but read: without it positions of media fail there.
    part.setdefault("vision_start_token_id", config.tokens.vision_start)
    part.setdefault("vision_end_token_id", config.tokens.vision_end)
    if not whole:
        return part
    around = copy.deepcopy(dict(base)) if base is not None and base.get("model_type") == WHOLE else {}
    return around | {"model_type": WHOLE, "architectures": [ARCHITECTURES[WHOLE]], "thinker_config": part}


def _new(config: ThinkerConfig) -> dict[str, Any]:
    """The whole config in the new spelling."""
    t, v, a, ids = config.text, config.vision, config.audio, config.tokens
    return dict(
        text_config=dict(
            model_type="qwen2_5_omni_text",
            vocab_size=t.vocab_size,
            hidden_size=t.hidden_size,
            intermediate_size=t.intermediate_size,
            num_hidden_layers=t.num_layers,
            num_attention_heads=t.num_heads,
            num_key_value_heads=t.num_kv_heads,
            head_dim=t.head_dim,
            rms_norm_eps=t.rms_norm_eps,
            rope_parameters=dict(rope_type="default", rope_theta=t.rope_theta, mrope_section=list(t.mrope_section)),
            tie_word_embeddings=t.tie_word_embeddings,
            pad_token_id=ids.pad,
            eos_token_id=list(ids.eos),
        ),
        vision_config=dict(
            model_type="qwen2_5_omni_vision_encoder",
            depth=v.depth,
            hidden_size=v.hidden_size,
            intermediate_size=v.intermediate_size,
            num_heads=v.num_heads,
            out_hidden_size=v.out_hidden_size,
            fullatt_block_indexes=list(v.full_attention_blocks),
            patch_size=v.patch_size,
            temporal_patch_size=v.temporal_patch_size,
            spatial_merge_size=v.spatial_merge_size,
            window_size=v.window_size,
            in_channels=v.in_channels,
            rope_parameters=dict(rope_type="axial", rope_theta=v.rope_theta),
        ),
        audio_config=dict(
            model_type="qwen2_5_omni_audio_encoder",
            num_mel_bins=a.num_mel_bins,
            d_model=a.d_model,
            encoder_layers=a.num_layers,
            encoder_attention_heads=a.num_heads,
            encoder_ffn_dim=a.ffn_dim,
            output_dim=a.output_dim,
            n_window=a.n_window,
            max_source_positions=a.max_source_positions,
        ),
        audio_token_index=ids.audio,
        image_token_index=ids.image,
        video_token_index=ids.video,
        audio_start_token_id=ids.audio_start,
        audio_end_token_id=ids.audio_end,
        vision_start_token_id=ids.vision_start,
        vision_end_token_id=ids.vision_end,
        pad_token_id=ids.pad,
        eos_token_id=list(ids.eos),
        position_id_per_seconds=config.position_id_per_second,
        seconds_per_chunk=int(config.seconds_per_chunk),
    )
