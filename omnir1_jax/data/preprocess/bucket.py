"""Static shapes: prompts padded to a bucket and stacked, and the bucket that a family of prompts needs."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from omnir1_jax.data.preprocess.mel import mel_frames
from omnir1_jax.data.preprocess.pixels import MAX_ASPECT
from omnir1_jax.data.preprocess.prompt import Prompt
from omnir1_jax.data.preprocess.settings import SAMPLE_RATE, STOCK_BUDGET, STOCK_SIZES, PixelBudget, Sizes
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni import layout


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The sizes of a compiled program's inputs, for each prompt; without cells (or chunks) it takes no pixels (sound).

    Attributes:
      tokens: s, length of a prompt.
      cells: n, visual tokens.
      windows: w, attention windows.
      frames: f, images and frame pairs.
      frame_cells: largest number of cells of one of them.
      audio_chunks: c, chunks of sound.
      audio_tokens: a, tokens of sound.
    """

    tokens: int
    cells: int = 0
    windows: int = 0
    frames: int = 0
    frame_cells: int = 0
    audio_chunks: int = 0
    audio_tokens: int = 0


class VisionBatch(NamedTuple):
    """Fields of the model's `inputs.VisionInputs`."""

    pixels: UInt8[np.ndarray, "b n 2 cell cell 3"]
    rows_cols: Int[np.ndarray, "b n 2"]
    windows: Int[np.ndarray, "b w window_cells"]
    frames: Int[np.ndarray, "b f frame_cells"]


class AudioBatch(NamedTuple):
    """Fields of the model's `inputs.AudioInputs`."""

    mel: Float[np.ndarray, "b c chunk_frames mel_bins"]
    lengths: Int[np.ndarray, "b c"]
    pairs: Int[np.ndarray, "b a 2"]


class PromptBatch(NamedTuple):
    """Fields of the model's `inputs.ThinkerInputs`."""

    tokens: Int[np.ndarray, "b s"]
    mask: Bool[np.ndarray, "b s"]
    positions: Int[np.ndarray, "b 3 s"]
    next_position: Int[np.ndarray, " b"]
    vision_index: Int[np.ndarray, "b s"]
    audio_index: Int[np.ndarray, "b s"]
    vision: VisionBatch | None
    audio: AudioBatch | None


def pad_to(prompts: Sequence[Prompt], bucket: Bucket, *, sizes: Sizes = STOCK_SIZES) -> PromptBatch:
    """Stacks prompts, each padded on the left to the bucket; padding has position 1, as in transformers.

    Raises:
      InputError: no prompts, or one that does not fit, naming the prompt and the dimension.
    """
    if not prompts:
        raise InputError("a batch needs at least one prompt")
    rows = [_row(prompt, bucket, sizes, f"prompt {i}") for i, prompt in enumerate(prompts)]
    text, vision, audio = zip(*rows)
    stacked = [np.stack(leaves) for leaves in zip(*text)]
    return PromptBatch(
        *stacked,
        vision=VisionBatch(*(np.stack(leaves) for leaves in zip(*vision))) if bucket.cells else None,
        audio=AudioBatch(*(np.stack(leaves) for leaves in zip(*audio))) if bucket.audio_chunks else None,
    )


def _row(prompt: Prompt, bucket: Bucket, sizes: Sizes, name: str):
    length = len(prompt.tokens)
    counts = {"cells": len(prompt.cells), "audio_chunks": len(prompt.mels)}
    for kind, count in counts.items():
        if count and not getattr(bucket, kind):
            raise InputError(f"{name} has {kind.split('_')[0]} for which the bucket has no room: {kind} is 0")
    try:
        padding = layout.fit(length, bucket.tokens, "tokens") - length
        vision = _vision(prompt, bucket, sizes) if bucket.cells else ()
        audio = _audio(prompt, bucket, sizes) if bucket.audio_chunks else ()
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    pad = lambda row, value: np.pad(row, (padding, 0), constant_values=value)
    text = (
        pad(prompt.tokens, prompt.pad),
        pad(np.ones(length, bool), False),
        np.stack([pad(axis, 1) for axis in prompt.positions]),
        np.int32(prompt.next_position),
        pad(prompt.vision_index, -1),
        pad(prompt.audio_index, -1),
    )
    return text, vision, audio


def _vision(prompt: Prompt, bucket: Bucket, sizes: Sizes):
    visual = layout.vision_layout(
        prompt.grids,
        window=sizes.window_cells,
        merge=sizes.merge,
        cells=bucket.cells,
        windows=bucket.windows,
        frames=bucket.frames,
        frame_size=bucket.frame_cells,
    )
    pixels = np.zeros((bucket.cells, *prompt.cells.shape[1:]), np.uint8)
    pixels[: len(prompt.cells)] = prompt.cells
    return pixels, *visual


def _audio(prompt: Prompt, bucket: Bucket, sizes: Sizes):
    audio = layout.audio_layout(
        [len(mel) for mel in prompt.mels], sizes.n_window, chunks=bucket.audio_chunks, tokens=bucket.audio_tokens
    )
    chunks = layout.chunk_mel(prompt.mels, audio, sizes.n_window, sizes.mel_bins)
    return chunks, audio.lengths, audio.pairs


class FrameBounds(NamedTuple):
    """Largest number of cells, of windows, and of cells along a side."""

    cells: int
    windows: int
    side: int


def frame_bounds(
    min_pixels: float | int,
    max_pixels: float | int,
    *,
    sizes: Sizes = STOCK_SIZES,
    max_aspect: float | int = MAX_ASPECT,
) -> FrameBounds:
    """Upper bounds over the sizes that `smart_resize` gives frames with aspect ratios up to `max_aspect`.

    With area limits of m and M cells and sides x : y = a, it makes round(x) * round(y) <= M cells, or shrinks to
    floor(sqrt(M a)) * floor(sqrt(M / a)) but at least one per side, or enlarges to ceil(sqrt(m a)) * ceil(sqrt(m / a)).
    So the area may pass M, where a side is held at one or both are rounded up.
    """
    grids = _grid_bounds(min_pixels, max_pixels, sizes, max_aspect)
    across = lambda side: -(-side // sizes.window_cells)
    return FrameBounds(max(r * c for r, c in grids), max(across(r) * across(c) for r, c in grids), max(map(max, grids)))


def _grid_bounds(
    min_pixels: float | int, max_pixels: float | int, sizes: Sizes, max_aspect: float | int
) -> list[tuple[int, int]]:
    """For each number of cells along the shorter side, the largest number along the longer one."""
    min_cells, max_cells = min_pixels / sizes.cell_pixels**2, max_pixels / sizes.cell_pixels**2
    # Generous by the rounding errors of the square roots, which turn a 4 into 4.000000001 and so into 5.
    floor, ceil = lambda value: math.floor(value + 1e-9), lambda value: math.ceil(value + 1e-9)
    grids = []
    for rows in range(1, floor(math.sqrt(max(max_cells, 1))) + 1):
        # As it is (a side under rows + 1/2 times the aspect, rounded), or shrunk.
        unscaled = min(floor(max_cells / rows), floor(max_aspect * (rows + 0.5) + 0.5))
        shrunk = floor(math.sqrt(max_cells * max_aspect)) if rows == 1 else floor(max_cells / rows)
        grids.append((rows, max(unscaled, min(shrunk, floor(math.sqrt(max_cells * max_aspect))), 1)))
    for rows in range(1, ceil(math.sqrt(min_cells)) + 1):
        # Enlarged: sqrt(m a) is over rows - 1, so the other side is under m / (rows - 1) before it is rounded up.
        other = min_cells / (rows - 1) if rows > 1 else math.inf
        grids.append((rows, ceil(min(other, math.sqrt(min_cells * max_aspect)))))
    return grids


def bucket_for(
    *,
    text_tokens: int,
    images: int = 0,
    video_frames: Sequence[int] = (),
    audio_seconds: Sequence[float | int] = (),
    budget: PixelBudget = STOCK_BUDGET,
    sizes: Sizes = STOCK_SIZES,
    max_aspect: float | int = MAX_ASPECT,
    multiple: int = 1,
) -> Bucket:
    """The bucket that takes every prompt with at most these media, whatever the shape of its images and frames.

    Args:
      text_tokens: all tokens that are not media, the start and end tokens around media among them.
      images: number of images.
      video_frames: frames of each video.
      audio_seconds: length of each audio, those of videos included.
      budget: pixels of images and frames.
      sizes: of the model.
      max_aspect: longest side over shortest; windows grow with it, so a smaller one saves padding.
      multiple: tokens are rounded up to a multiple of this.
    """
    bounds = lambda kind, high: frame_bounds(getattr(budget, f"{kind}_min"), high, sizes=sizes, max_aspect=max_aspect)
    media = [(1, *bounds("image", budget.image_max)[:2])] * images
    media += [(-(-count // 2), *bounds("video", budget.frame_max(count))[:2]) for count in video_frames]
    mels = [mel_frames(math.ceil(seconds * SAMPLE_RATE)) for seconds in audio_seconds]
    cells = sum(pairs * frame_cells for pairs, frame_cells, _ in media)
    audio_tokens = sum(map(layout.audio_tokens, mels))
    return Bucket(
        tokens=-(-(text_tokens + cells + audio_tokens) // multiple) * multiple,
        cells=cells,
        windows=sum(pairs * frame_windows for pairs, _, frame_windows in media),
        frames=sum(pairs for pairs, _, _ in media),
        frame_cells=max((frame_cells for _, frame_cells, _ in media), default=0),
        audio_chunks=sum(-(-frames // (2 * sizes.n_window)) for frames in mels),
        audio_tokens=audio_tokens,
    )
