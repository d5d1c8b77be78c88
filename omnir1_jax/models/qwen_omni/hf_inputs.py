"""The dict that the Hugging Face processor returns, as `ThinkerInputs`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni import layout
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.models.qwen_omni.inputs import AudioInputs, ThinkerInputs, VisionInputs

KEYS = (
    "input_ids",
    "attention_mask",
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
    "video_second_per_grid",
    "input_features",
    "feature_attention_mask",
    "use_audio_in_video",
)


def thinker_inputs(hf_inputs: Mapping[str, Any], config: ThinkerConfig) -> ThinkerInputs:
    """Works out everything irregular on the host; patches stay the floats that they are.

    Args:
      hf_inputs: any subset of `KEYS` with `input_ids`; numpy arrays, torch tensors or lists. Without
        `attention_mask` every token is real. Images, videos and audios belong to the placeholders in their order.

    Returns:
      numpy leaves, padded to what the largest row needs.

    Raises:
      InputError: an unknown key, ids out of range, or media that do not match their grids, masks or placeholders.
    """
    unknown = sorted(set(hf_inputs) - set(KEYS))
    if unknown:
        raise InputError(f"hf_inputs: unknown key {', '.join(unknown)}; known are {', '.join(KEYS)}")
    given = {key: value for key, value in hf_inputs.items() if value is not None}
    use_audio_in_video = bool(given.pop("use_audio_in_video", False))
    arrays = {key: _array(key, value) for key, value in given.items()}
    tokens, mask = _tokens(arrays, config)
    cells, image_grids, video_grids = _cells(arrays, config)
    mels = _mels(arrays, config)
    lengths = np.array([len(mel) for mel in mels], np.int64)
    merge = config.vision.spatial_merge_size
    media = dict(
        ids=config.tokens, image_grids=image_grids, video_grids=video_grids, audio_lengths=lengths, merge=merge
    )
    rows = layout.media_rows(tokens, mask, **media)
    positions, next_position = layout.rope_index(
        tokens,
        mask,
        seconds_per_grid=arrays.get("video_second_per_grid", np.zeros(0)).reshape(-1).astype(np.float32),
        use_audio_in_video=use_audio_in_video,
        position_id_per_second=config.position_id_per_second,
        seconds_per_chunk=config.seconds_per_chunk,
        **media,
    )
    vision_index, audio_index = layout.media_index(tokens, mask, config.tokens)
    return ThinkerInputs(
        tokens=tokens,
        mask=mask,
        positions=positions,
        next_position=next_position,
        vision_index=vision_index,
        audio_index=audio_index,
        vision=_vision(rows, cells, config) if len(cells) else None,
        audio=_audio(rows, mels, config) if mels else None,
    )


def _array(key: str, value: Any) -> np.ndarray:
    """Torch tensors, bfloat16 among them, and lists as numpy arrays, without importing torch."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise InputError(f"hf_inputs: {key} must be an array of numbers, got {array.dtype}")
    return array


def _tokens(
    arrays: Mapping[str, np.ndarray], config: ThinkerConfig
) -> tuple[Int[np.ndarray, "b s"], Bool[np.ndarray, "b s"]]:
    if "input_ids" not in arrays:
        raise InputError("hf_inputs: input_ids is missing")
    tokens = arrays["input_ids"]
    if tokens.ndim != 2 or tokens.size == 0 or tokens.dtype.kind not in "iu":
        raise InputError(f"hf_inputs: input_ids must be integers [batch, tokens], got {tokens.dtype} {tokens.shape}")
    outside = np.argwhere((tokens < 0) | (tokens >= config.text.vocab_size))
    if len(outside):
        row, column = outside[0]
        raise InputError(
            f"hf_inputs: input_ids[{row}, {column}] is {tokens[row, column]}, outside the vocabulary of "
            f"{config.text.vocab_size}"
        )
    mask = arrays.get("attention_mask", np.ones(tokens.shape, bool)).astype(bool)
    if mask.shape != tokens.shape:
        raise InputError(f"hf_inputs: attention_mask {mask.shape} must have the shape of input_ids {tokens.shape}")
    if not mask.any(axis=1).all():
        raise InputError(f"hf_inputs: row {int(np.argmin(mask.any(axis=1)))} of attention_mask has no real token")
    return tokens.astype(np.int32), mask


def _cells(
    arrays: Mapping[str, np.ndarray], config: ThinkerConfig
) -> tuple[Shaped[np.ndarray, "n patches columns"], Int[np.ndarray, "i 3"], Int[np.ndarray, "v 3"]]:
    """All cells of the batch, those of images first, with the grids of images and of videos."""
    v = config.vision
    columns = v.in_channels * v.temporal_patch_size * v.patch_size**2
    patches, grids = [np.zeros((0, columns), np.float32)], []
    for pixels, grid in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
        if (pixels in arrays) != (grid in arrays):
            raise InputError(f"hf_inputs: {pixels} and {grid} must come together")
        grid_sizes = arrays.get(grid, np.zeros((0, 3), np.int64))
        if grid_sizes.ndim != 2 or grid_sizes.shape[1] != 3 or grid_sizes.dtype.kind not in "iu":
            raise InputError(
                f"hf_inputs: {grid} must be integers [media, 3], got {grid_sizes.dtype} {grid_sizes.shape}"
            )
        if (grid_sizes < 1).any() or (grid_sizes[:, 1:] % v.spatial_merge_size).any():
            raise InputError(
                f"hf_inputs: {grid} must be positive with rows and columns in multiples of {v.spatial_merge_size}"
            )
        values = arrays.get(pixels, patches[0])
        rows = int(grid_sizes.prod(axis=1).sum())
        if values.shape != (rows, columns):
            raise InputError(f"hf_inputs: {pixels} is {values.shape}, but {grid} asks for {(rows, columns)}")
        patches.append(values.astype(np.float32))
        grids.append(grid_sizes.astype(np.int64))
    cells = np.concatenate(patches).reshape(-1, v.cell_patches, columns)
    return cells, *grids


def _mels(arrays: Mapping[str, np.ndarray], config: ThinkerConfig) -> list[np.ndarray]:
    """Mel spectrograms [frames, bins] of the batch's audios without their padding."""
    if ("input_features" in arrays) != ("feature_attention_mask" in arrays):
        raise InputError("hf_inputs: input_features and feature_attention_mask must come together")
    if "input_features" not in arrays:
        return []
    features, mask = arrays["input_features"], arrays["feature_attention_mask"].astype(bool)
    bins = config.audio.num_mel_bins
    if features.ndim != 3 or features.shape[1] != bins:
        raise InputError(f"hf_inputs: input_features must be [audios, {bins}, frames], got {features.shape}")
    if mask.shape != (features.shape[0], features.shape[2]):
        raise InputError(
            f"hf_inputs: feature_attention_mask {mask.shape} must be [audios, frames] of input_features "
            f"{features.shape}"
        )
    return [mel.T[real].astype(np.float32) for mel, real in zip(features, mask)]


def _vision(rows: list[layout.RowMedia], cells: np.ndarray, config: ThinkerConfig) -> VisionInputs:
    v = config.vision
    options = dict(window=v.window_cells, merge=v.spatial_merge_size)
    layouts = [layout.vision_layout(row.grids, **options) for row in rows]
    sizes = dict(
        cells=max(len(row_layout.rows_cols) for row_layout in layouts),
        windows=max(len(row_layout.windows) for row_layout in layouts),
        frames=max(len(row_layout.frames) for row_layout in layouts),
        frame_size=max(row_layout.frames.shape[1] for row_layout in layouts),
    )
    padded = [layout.vision_layout(row.grids, **options, **sizes) for row in rows]
    pixels = np.zeros((len(rows), sizes["cells"], *cells.shape[1:]), np.float32)
    for target, row in zip(pixels, rows):
        target[: len(row.cells)] = cells[row.cells]
    return VisionInputs(
        pixels,
        np.stack([row_layout.rows_cols for row_layout in padded]),
        np.stack([row_layout.windows for row_layout in padded]),
        np.stack([row_layout.frames for row_layout in padded]),
    )


def _audio(rows: list[layout.RowMedia], mels: list[np.ndarray], config: ThinkerConfig) -> AudioInputs:
    a = config.audio
    mels_by_row = [[mels[i] for i in row.audios] for row in rows]
    lengths = [[len(mel) for mel in row_mels] for row_mels in mels_by_row]
    layouts = [layout.audio_layout(row_lengths, a.n_window) for row_lengths in lengths]
    sizes = dict(
        chunks=max(len(row_layout.lengths) for row_layout in layouts),
        tokens=max(len(row_layout.pairs) for row_layout in layouts),
    )
    padded = [layout.audio_layout(row_lengths, a.n_window, **sizes) for row_lengths in lengths]
    chunks = [
        layout.chunk_mel(row_mels, row_layout, a.n_window, a.num_mel_bins)
        for row_mels, row_layout in zip(mels_by_row, padded)
    ]
    return AudioInputs(
        np.stack(chunks),
        np.stack([row_layout.lengths for row_layout in padded]),
        np.stack([row_layout.pairs for row_layout in padded]),
    )
