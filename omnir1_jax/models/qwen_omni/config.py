"""Sizes and switches of the Qwen2.5-Omni thinker. `hf_config.py` reads them from a `config.json`."""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike

from omnir1_jax.models.qwen_omni.layout import TokenIds


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The language model: grouped-query attention, SiLU-gated feed-forward, RMSNorm, multimodal rotary positions."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    mrope_section: tuple[int, int, int]  # rotary frequencies for time, height, width; sums to head_dim / 2
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision encoder: windows of `window_size` pixels, but full frames in `full_attention_blocks`."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    full_attention_blocks: tuple[int, ...]
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    in_channels: int = 3
    rope_theta: float = 1e4
    rms_norm_eps: float = 1e-6

    @property
    def cell_pixels(self) -> int:
        """Side in pixels of a cell: the merge_size x merge_size patches that become one token of the decoder."""
        return self.patch_size * self.spatial_merge_size

    @property
    def cell_patches(self) -> int:
        return self.spatial_merge_size**2

    @property
    def window_cells(self) -> int:
        """Side of an attention window in cells."""
        return self.window_size // self.cell_pixels


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """The audio encoder: a transformer over chunks of `2 * n_window` mel frames."""

    num_mel_bins: int
    d_model: int
    num_layers: int
    num_heads: int
    ffn_dim: int
    output_dim: int
    n_window: int
    max_source_positions: int = 1500

    @property
    def chunk_frames(self) -> int:
        return 2 * self.n_window


@dataclasses.dataclass(frozen=True)
class ThinkerConfig:
    """The complete thinker.

    Attributes:
      position_id_per_second: time positions of TMRoPE in one second.
      seconds_per_chunk: length of a piece when a video's frames and its sound interleave.
      dtype: activations; parameters keep the dtype that they were loaded with and are cast on use.
      remat: name of the rematerialisation policy of the decoder (`remat.POLICIES`).
      attention: which kernel (`attention.attend`): "auto", "xla", "splash" or "cudnn".
    """

    text: TextConfig
    vision: VisionConfig
    audio: AudioConfig
    tokens: TokenIds
    position_id_per_second: int = 25
    seconds_per_chunk: float = 2.0
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    attention: str = "auto"
