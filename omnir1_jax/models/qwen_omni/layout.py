"""Everything irregular about a prompt, worked out on the host from its ids and grids: positions, cells, chunks.

Numpy only, so that data loading needs no accelerator. A *grid* is (frame pairs, rows, columns) of an image or a
video in patches; a *cell* is the merge x merge patches that become one token of the decoder. Lists of cells are in
the order of the prompt's visual tokens; -1 means "nothing here".
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.tmrope import TokenIds, audio_tokens, interleave, rope_index

__all__ = [
    "AudioLayout", "RowMedia", "TokenIds", "VisionLayout", "audio_layout", "audio_tokens", "cell_coordinates",
    "chunk_mel", "fit", "frame_cells", "grid_cells", "interleave", "media_index", "media_rows", "pad_lists",
    "rope_index", "vision_layout", "window_cells",
]  # fmt: skip


class RowMedia(NamedTuple):
    """The media of one row, in prompt order.

    Attributes:
      grids: images and videos of the row.
      cells: index of each cell of the row in the batch's cells, all images' cells first, then all videos'.
      audios: which of the batch's audios the row holds.
    """

    grids: Int[np.ndarray, "m 3"]
    cells: Int[np.ndarray, " n"]
    audios: Int[np.ndarray, " k"]


class VisionLayout(NamedTuple):
    """`VisionInputs` of one row without its pixels."""

    rows_cols: Int[np.ndarray, "n 2"]
    windows: Int[np.ndarray, "w window_cells"]
    frames: Int[np.ndarray, "f frame_cells"]


class AudioLayout(NamedTuple):
    """Where the chunks of one row come from and which positions its audio tokens average.

    Attributes:
      audio: the chunk's audio, counted in the row; -1 for padding.
      start: first mel frame of the chunk in that audio.
      lengths: mel frames of the chunk; 0 for padding.
      pairs: see `inputs.AudioInputs`.
    """

    audio: Int[np.ndarray, " c"]
    start: Int[np.ndarray, " c"]
    lengths: Int[np.ndarray, " c"]
    pairs: Int[np.ndarray, "a 2"]


def grid_cells(grid: Sequence[int] | Integer[np.ndarray, "3"], merge: int = 2) -> int:
    """Cells, so visual tokens, of a grid."""
    frames, rows, columns = (int(n) for n in grid)
    return frames * (rows // merge) * (columns // merge)


def media_rows(
    tokens: Integer[np.ndarray, "b s"],
    mask: Bool[np.ndarray, "b s"],
    *,
    ids: TokenIds,
    image_grids: Integer[np.ndarray, "n 3"],
    video_grids: Integer[np.ndarray, "m 3"],
    audio_lengths: Integer[np.ndarray, " a"],
    merge: int = 2,
) -> list[RowMedia]:
    """Which images, videos and audios each row holds: grids and mel lengths are consumed in the placeholders' order.

    Raises:
      InputError: media and placeholders do not match.
    """
    grids = {"image": np.asarray(image_grids).reshape(-1, 3), "video": np.asarray(video_grids).reshape(-1, 3)}
    counts = {kind: [grid_cells(grid, merge) for grid in grids[kind]] for kind in grids}
    starts = {kind: np.concatenate([[0], np.cumsum(counts[kind])]).astype(np.int64) for kind in grids}
    starts["video"] += starts["image"][-1]
    audio_counts = [audio_tokens(int(n)) for n in audio_lengths]
    used = {"image": 0, "video": 0, "audio": 0}
    rows = []
    for row, (token_ids, real) in enumerate(zip(np.asarray(tokens), np.asarray(mask))):
        token_ids = token_ids[real]
        visual = token_ids[(token_ids == ids.image) | (token_ids == ids.video)]
        order, cells, position = [], [], 0
        while position < len(visual):
            kind = "image" if visual[position] == ids.image else "video"
            index = used[kind]
            if index == len(counts[kind]):
                raise InputError(
                    f"row {row} has more {kind} tokens than the {index} {kind} grids hold: "
                    f"expand each {kind} placeholder to as many tokens as its grid has cells"
                )
            count = counts[kind][index]
            if (
                count < 1
                or not (visual[position : position + count] == visual[position]).all()
                or position + count > len(visual)
            ):
                raise InputError(
                    f"row {row}: {kind} {index} with grid {grids[kind][index].tolist()} needs {count} "
                    f"{kind} tokens in a row, but the prompt has {_run(visual[position:])}"
                )
            order.append(grids[kind][index])
            cells.append(np.arange(starts[kind][index], starts[kind][index + 1]))
            used[kind], position = index + 1, position + count
        remaining, audios = int((token_ids == ids.audio).sum()), []
        while remaining > 0 and used["audio"] < len(audio_counts):
            audios.append(used["audio"])
            remaining -= audio_counts[used["audio"]]
            used["audio"] += 1
        if remaining:
            raise InputError(
                f"row {row} has {int((token_ids == ids.audio).sum())} audio tokens, which no run of the given audios "
                f"({', '.join(map(str, audio_counts)) or 'none'} tokens) fills exactly"
            )
        rows.append(
            RowMedia(
                np.array(order, np.int32).reshape(-1, 3),
                np.concatenate([np.zeros(0, np.int64), *cells]).astype(np.int32),
                np.array(audios, np.int32),
            )
        )
    for kind, given in (("image", len(counts["image"])), ("video", len(counts["video"])), ("audio", len(audio_counts))):
        if used[kind] < given:
            raise InputError(f"{given} {kind}s were given, but the prompts have tokens for {used[kind]} only")
    return rows


def _run(visual: Integer[np.ndarray, " n"]) -> int:
    """How often the first value repeats."""
    other = np.flatnonzero(visual != visual[0])
    return int(other[0]) if other.size else len(visual)


def media_index(
    tokens: Integer[np.ndarray, "b s"], mask: Bool[np.ndarray, "b s"], ids: TokenIds
) -> tuple[Int[np.ndarray, "b s"], Int[np.ndarray, "b s"]]:
    """(vision_index, audio_index): which cell, which audio token of its row a token stands for, else -1."""
    visual = mask & ((tokens == ids.image) | (tokens == ids.video))
    audible = mask & (tokens == ids.audio)
    count = lambda placeholders: np.where(placeholders, np.cumsum(placeholders, axis=1) - 1, -1).astype(np.int32)
    return count(visual), count(audible)


def cell_coordinates(grid: Sequence[int] | Integer[np.ndarray, "3"], merge: int = 2) -> Int[np.ndarray, "n 2"]:
    """Row and column, in cells, of each cell of a grid: frame pairs first, then rows, then columns."""
    frames, rows, columns = (int(n) for n in grid)
    coordinates = np.indices((rows // merge, columns // merge), np.int32).reshape(2, -1).T
    return np.tile(coordinates, (frames, 1))


def window_cells(grids: Integer[np.ndarray, "m 3"], window: int, merge: int = 2) -> list[Int[np.ndarray, " cells"]]:
    """Cells of each attention window (`window` cells a side, smaller at the right and lower edges), row by row.

    Cells are numbered through all grids. The order is that of `transformers.vision_utils.get_vision_window_index`.
    """
    lists, first = [], 0
    for frames, rows, columns in np.asarray(grids) // [1, merge, merge]:
        cells = first + np.arange(frames * rows * columns, dtype=np.int32).reshape(frames, rows, columns)
        lists += [
            frame[y : y + window, x : x + window].reshape(-1)
            for frame in cells
            for y in range(0, rows, window)
            for x in range(0, columns, window)
        ]
        first += cells.size
    return lists


def frame_cells(grids: Integer[np.ndarray, "m 3"], merge: int = 2) -> list[Int[np.ndarray, " cells"]]:
    """Cells of each temporal patch (an image, or a pair of frames), numbered through all grids."""
    sizes = [
        int(rows * columns) for frames, rows, columns in np.asarray(grids) // [1, merge, merge] for _ in range(frames)
    ]
    ends = np.cumsum(sizes, dtype=np.int64)
    return [np.arange(end - size, end, dtype=np.int32) for size, end in zip(sizes, ends)]


def vision_layout(
    grids: Integer[np.ndarray, "m 3"],
    *,
    window: int,
    merge: int = 2,
    cells: int | None = None,
    windows: int | None = None,
    frames: int | None = None,
    frame_size: int | None = None,
) -> VisionLayout:
    """Coordinates, windows and frames of a row's cells, padded.

    Args:
      grids: the row's images and videos in prompt order (`RowMedia.grids`).
      window: side of an attention window in cells.
      merge: patches along a side of a cell.
      cells, windows, frames, frame_size: sizes to pad to (n, w, f and frame_cells of `inputs.VisionInputs`);
        None takes what the grids need, at least 1.

    Raises:
      InputError: the grids need more than a size allows.
    """
    grids = np.asarray(grids).reshape(-1, 3)
    if (grids < 1).any() or (grids[:, 1:] % merge).any():
        raise InputError(f"grids must be positive with rows and columns in multiples of {merge}, got {grids.tolist()}")
    rows_cols = np.concatenate([np.zeros((0, 2), np.int32), *(cell_coordinates(grid, merge) for grid in grids)])
    total = fit(len(rows_cols), cells, "cells")
    return VisionLayout(
        np.pad(rows_cols, ((0, total - len(rows_cols)), (0, 0))),
        pad_lists(window_cells(grids, window, merge), windows, window**2, "windows"),
        pad_lists(frame_cells(grids, merge), frames, frame_size, "frames"),
    )


def audio_layout(
    mel_lengths: Sequence[int] | Integer[np.ndarray, " k"],
    n_window: int,
    *,
    chunks: int | None = None,
    tokens: int | None = None,
) -> AudioLayout:
    """Chunks of `2 * n_window` mel frames of a row's audios, and the pairs of positions that its tokens average.

    A pair runs over the audio's own positions one after the other, so with an odd `n_window` it may reach into the
    next chunk; an odd last position is dropped.

    Args:
      mel_lengths: mel frames of each audio of the row, in prompt order.
      n_window: half a chunk in mel frames, which is a chunk in positions.
      chunks, tokens: sizes to pad to (c and a of `inputs.AudioInputs`); None takes what there is, at least 1.

    Raises:
      InputError: an audio too short for one token, or more chunks or tokens than the sizes allow.
    """
    audio, start, lengths, pairs = [], [], [], []
    for index, frames in enumerate(int(n) for n in mel_lengths):
        if audio_tokens(frames) < 1:
            raise InputError(f"audio {index} has {frames} mel frames; one token needs 3 (30 ms)")
        position = len(lengths) * n_window + np.arange(2 * audio_tokens(frames), dtype=np.int32)
        pairs.append(position.reshape(-1, 2))
        for first in range(0, frames, 2 * n_window):
            audio.append(index)
            start.append(first)
            lengths.append(min(2 * n_window, frames - first))
    pairs = np.concatenate([np.zeros((0, 2), np.int32), *pairs])
    total = fit(len(lengths), chunks, "audio chunks")
    total_tokens = fit(len(pairs), tokens, "audio tokens")
    pad = lambda values, empty: np.array(values + [empty] * (total - len(values)), np.int32)
    return AudioLayout(
        pad(audio, -1),
        pad(start, 0),
        pad(lengths, 0),
        np.pad(pairs, ((0, total_tokens - len(pairs)), (0, 0)), constant_values=-1),
    )


def chunk_mel(
    mels: Sequence[Float[np.ndarray, "_ bins"]], layout: AudioLayout, n_window: int, bins: int
) -> Float[np.ndarray, "c frames bins"]:
    """Mel spectrograms of a row's audios ([mel frames, bins] each) cut into the chunks of `layout`, zero-padded."""
    chunks = np.zeros((len(layout.lengths), 2 * n_window, bins), np.float32)
    for chunk, audio, start, length in zip(chunks, layout.audio, layout.start, layout.lengths):
        if length:
            chunk[:length] = mels[audio][start : start + length]
    return chunks


def fit(need: int, size: int | None, name: str) -> int:
    """`size`, or what is needed (at least 1) where it is None; InputError where it is too small."""
    if size is None:
        return max(need, 1)
    if need > size:
        raise InputError(f"{need} {name} do not fit the bucket's {size}: lower the pixel or length budget, or widen it")
    return size


def pad_lists(
    lists: Sequence[Int[np.ndarray, "_"]], count: int | None, width: int | None, name: str
) -> Int[np.ndarray, "count width"]:
    """Lists of unequal length as one array, -1 padded to [count, width]."""
    count = fit(len(lists), count, name)
    width = fit(max(map(len, lists), default=1), width, f"cells in one of the {name}")
    table = np.full((count, width), -1, np.int32)
    for row, cells in zip(table, lists):
        row[: len(cells)] = cells
    return table
