"""The reference thinker at any size on random weights, and the inputs that its processor would hand over."""

import dataclasses

import numpy as np
import torch
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from tests.models.test_layout import IDS, batch

torch.set_num_threads(1)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A tiny thinker; everything that a test may want to vary."""

    heads: int = 4
    kv_heads: int = 2
    section: tuple[int, int, int] = (2, 3, 3)
    hidden: int = 48
    ffn: int = 64
    layers: int = 2
    vocab: int = 128
    tied: bool = False
    vision_depth: int = 3
    vision_hidden: int = 32
    vision_heads: int = 2
    vision_ffn: int = 40
    full_blocks: tuple[int, ...] = (1,)
    window: int = 112
    patch: int = 14
    mel_bins: int = 8
    audio_width: int = 24
    audio_heads: int = 3
    audio_ffn: int = 40
    audio_layers: int = 2
    n_window: int = 10


def hf_config(s: Sizes) -> Qwen2_5OmniThinkerConfig:
    config = Qwen2_5OmniThinkerConfig(
        text_config=dict(
            vocab_size=s.vocab, hidden_size=s.hidden, intermediate_size=s.ffn, num_hidden_layers=s.layers,
            num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, head_dim=2 * sum(s.section),
            max_position_embeddings=4096, rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=list(s.section)),
        ),
        vision_config=dict(
            depth=s.vision_depth, hidden_size=s.vision_hidden, intermediate_size=s.vision_ffn,
            num_heads=s.vision_heads, out_hidden_size=s.hidden, fullatt_block_indexes=list(s.full_blocks),
            window_size=s.window, patch_size=s.patch,
        ),
        audio_config=dict(
            num_mel_bins=s.mel_bins, d_model=s.audio_width, encoder_layers=s.audio_layers,
            encoder_attention_heads=s.audio_heads, encoder_ffn_dim=s.audio_ffn, output_dim=s.hidden,
            n_window=s.n_window, max_source_positions=max(s.n_window, 40),
        ),
        audio_token_index=IDS.audio, image_token_index=IDS.image, video_token_index=IDS.video,
        audio_start_token_id=IDS.audio_start, audio_end_token_id=IDS.audio_end,
        vision_start_token_id=IDS.vision_start, vision_end_token_id=IDS.vision_end,
        tie_word_embeddings=s.tied,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return config


def reference(sizes: Sizes, seed: int = 0) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """Nothing is at zero or at its default: norms around 1, biases around 0.3, matrices of unit gain."""
    model = Qwen2_5OmniThinkerForConditionalGeneration(hf_config(sizes)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                norm = name.endswith("weight")
                parameter.copy_(1 + 0.3 * noise if norm else 0.3 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise.div_(parameter[0].numel() ** 0.5))  # in place: matrices of some tests are large
    return model


def hf_inputs(sizes: Sizes, rows, side: str = "left", sound: bool = False, seed: int = 0) -> dict:
    """What the processor returns for rows of (kind, ...) items (see `test_layout.prompt`), with random media."""
    tokens, mask, media = batch(rows, side)
    draw = np.random.default_rng(seed)
    tokens = np.where(tokens < 100, draw.integers(3, 100, tokens.shape), tokens)
    tokens[~mask] = 0
    columns = 3 * 2 * sizes.patch**2
    out = {"input_ids": tokens, "attention_mask": mask.astype(np.int64)}
    for kind, pixels, name in (
        ("images", "pixel_values", "image_grid_thw"),
        ("videos", "pixel_values_videos", "video_grid_thw"),
    ):
        if media[kind]:
            out[name] = np.array(media[kind])
            out[pixels] = draw.standard_normal((out[name].prod(1).sum(), columns), np.float32)
    if media["videos"]:
        out["video_second_per_grid"] = np.array(media["seconds"], np.float32)
    if media["audios"]:
        longest = max(media["audios"]) + 5  # padding is not silence, and must not matter
        out["input_features"] = draw.standard_normal((len(media["audios"]), sizes.mel_bins, longest), np.float32)
        lengths = np.array(media["audios"])[:, None]
        out["feature_attention_mask"] = (np.arange(longest) < lengths).astype(np.int64)
    if sound:
        out["use_audio_in_video"] = True
    return {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in out.items()}


def relative(got, want) -> float:
    """Largest difference over the largest magnitude."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.abs(got - want).max() / np.abs(want).max())


def distance(got, want) -> float:
    """Root of the mean square difference over that of the wanted."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))
