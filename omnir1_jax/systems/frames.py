"""The frames of a clip at System 2's resolution: the arrays in a batch, and how the host makes them."""

import dataclasses
import functools
from typing import no_type_check

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from transformers import PreTrainedTokenizerBase

from omnir1_jax.data.preprocess import bucket, pixels, tokens
from omnir1_jax.data.preprocess.settings import PixelBudget, Sizes
from omnir1_jax.models.qwen_omni import layout


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class HighResFrames:
    """The frames of each clip at System 2's resolution, and the prompt for one of them.

    All frames of a clip have the same size, so layout and positions are shared.

    Attributes:
      cells: each frame in cells of a thinker; `rgb` gives the frames as images.
      rows_cols, windows, frames: layout of one frame, as in `VisionInputs`.
      tokens .. vision_index: the prompt up to the description, as in `ThinkerInputs`.
      resized: width and height of the frame that the cells show; a grounder's boxes are in its pixels.
      original: width and height of the clip.
      grid: index of the cell at each position of a canvas for a frame of any shape, row by row; -1 beyond the frame.
    """

    cells: UInt8[Array, "b t m cell cell 3"]
    rows_cols: Int[Array, "b m 2"]
    windows: Int[Array, "b w window_cells"]
    frames: Int[Array, "b 1 frame_cells"]
    tokens: Int[Array, "b s"]
    mask: Bool[Array, "b s"]
    positions: Int[Array, "b 3 s"]
    next_position: Int[Array, " b"]
    vision_index: Int[Array, "b s"]
    resized: Int[Array, "b 2"]
    original: Int[Array, "b 2"]
    grid: Int[Array, "b rows columns"]

    @property
    def scale(self) -> Float[Array, "b 2"]:
        """Resized over original width and height."""
        return self.resized / self.original.astype(jnp.float32)

    def rgb(self) -> UInt8[Array, "b t h w 3"]:
        """The frames as images, top left on a canvas that fits any shape; black beyond `resized`."""
        b, t, _, side, _, _ = self.cells.shape
        rows, columns = self.grid.shape[1:]
        cell_index = jnp.maximum(self.grid, 0).reshape(b, 1, -1, 1, 1, 1)
        cells = jnp.take_along_axis(jnp.asarray(self.cells), cell_index, axis=2)
        cells = jnp.where(self.grid.reshape(b, 1, -1, 1, 1, 1) >= 0, cells, 0)
        cells = cells.reshape(b, t, rows, columns, side, side, 3)
        return jnp.swapaxes(cells, 3, 4).reshape(b, t, rows * side, columns * side, 3)


@dataclasses.dataclass(frozen=True)
class FramesConfig:
    """Config of `high_res_arrays`.

    Attributes:
      tokenizer, sizes: tokenizer and sizes of the thinker that grounds.
      prompt: System 2's prompt, with {description}.
      budget: pixel budget of a frame.
      max_aspect: longest side over shortest.
    """

    tokenizer: PreTrainedTokenizerBase = dataclasses.field(repr=False)
    sizes: Sizes
    prompt: str
    budget: PixelBudget
    max_aspect: float


@functools.lru_cache(maxsize=4)
def prompt_prefix(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Ids of System 2's prompt up to the description, one placeholder for the frame."""
    before = prompt.split("{description}")[0]
    end = max(before.rfind(token) + len(token) for token in tokens.SPELLING.values() if token in before)
    return tokenizer(before[:end], add_special_tokens=False)["input_ids"]


def high_res_arrays(
    frames: UInt8[np.ndarray, "t h w 3"], size: tuple[int, int], max_frames: int, config: FramesConfig
) -> dict[str, np.ndarray]:
    """The fields of `HighResFrames` for one clip of at most `max_frames` frames.

    Args:
      size: height and width of the clip.

    Raises:
      InputError: the clip does not fit its arrays.
    """
    sizes, limits = config.sizes, config.budget
    ids = tokens.token_ids(config.tokenizer)
    height, width = pixels.smart_resize(
        *size, min_pixels=limits.image_min, max_pixels=limits.image_max, factor=sizes.cell_pixels, name="frame"
    )
    patch = sizes.cell_pixels // sizes.merge
    patches = np.array([[1, height // patch, width // patch]], np.int32)
    shape = dict(sizes=sizes, max_aspect=config.max_aspect)
    max_cells, windows, longest = bucket.frame_bounds(limits.image_min, limits.image_max, **shape)
    vision = layout.vision_layout(
        patches,
        window=sizes.window_cells,
        merge=sizes.merge,
        cells=max_cells,
        windows=windows,
        frames=1,
        frame_size=max_cells,
    )
    cells = np.zeros((max_frames, max_cells, sizes.cell_pixels, sizes.cell_pixels, 3), np.uint8)
    for t, frame in enumerate(frames):
        cut = pixels.cells([pixels.resize(frame, height, width)], sizes.cell_pixels)[:, 0]
        cells[t, : len(cut)] = cut
    rows, columns = height // sizes.cell_pixels, width // sizes.cell_pixels
    grid = np.full((longest, longest), -1, np.int32)
    grid[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    start = prompt_prefix(config.tokenizer, config.prompt)
    token_ids = tokens.expand(start, ids, {"image": [np.full(layout.grid_cells(patches[0], sizes.merge), ids.image)]})
    length, used = len(start) - 1 + max_cells, len(token_ids)
    mask = np.arange(length) < used
    token_ids = np.pad(token_ids, (0, length - used), constant_values=ids.pad)
    positions, following = layout.rope_index(
        token_ids[None],
        mask[None],
        ids=ids,
        image_grids=patches,
        video_grids=np.zeros((0, 3), np.int32),
        seconds_per_grid=np.zeros(0, np.float32),
        audio_lengths=np.zeros(0, np.int32),
        position_id_per_second=sizes.position_id_per_second,
        seconds_per_chunk=sizes.seconds_per_chunk,
        merge=sizes.merge,
    )
    index, _ = layout.media_index(token_ids[None], mask[None], ids)
    return {
        "cells": cells,
        **dict(zip(("rows_cols", "windows", "frames"), vision)),
        "tokens": token_ids,
        "mask": mask,
        "positions": positions[0],
        "next_position": following[0],
        "vision_index": index[0],
        "resized": np.array([width, height], np.int32),
        "original": np.array(size[::-1], np.int32),
        "grid": grid,
    }
