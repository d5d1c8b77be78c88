"""TMRoPE: the time, height and width position of every token of a prompt. Numpy only; import it through `layout`.

Text counts up on all three axes. An image's tokens share one time, a video's tokens take 25 ids a second, a sound's
tokens one id each (which is 25 a second), and each block starts after the largest id of the piece before it.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from omnir1_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """Ids of the tokens that stand for media in the prompt, of padding, and of those that end a text."""

    audio: int
    image: int
    video: int
    audio_start: int
    audio_end: int
    vision_start: int
    vision_end: int
    pad: int
    eos: tuple[int, ...]


def audio_tokens(mel_frames: int) -> int:
    """Decoder tokens of an audio: two strides of two, the second without a tail (25 a second)."""
    return ((mel_frames - 1) // 2 + 1 - 2) // 2 + 1


def chunk_spans(values: Sequence[float] | np.ndarray, size: int) -> list[tuple[int, int]]:
    """Cuts rising values into runs; a run ends where a value reaches the next multiple of `size`.

    A jump over several multiples still ends one run only, as in transformers: with size 50, four tokens each at
    0, 125 and 250 give (0, 4) (4, 5) (5, 8) (8, 9) (9, 10) (10, 12).
    """
    spans, start = [], 0
    for i, value in enumerate(values):
        if value >= (len(spans) + 1) * size:
            spans.append((start, i))
            start = i
    return [*spans, (start, len(values))]


def interleave(
    video: Sequence[float] | np.ndarray, audio: Sequence[float] | np.ndarray, size: int
) -> list[tuple[bool, int, int]]:
    """Order of a video's tokens and those of its sound, given the time of each token in position ids.

    Returns:
      (is_audio, first, last + 1) of each piece: video, audio, video, ... each `size` ids long.
    """
    pieces = [chunk_spans(video, size), chunk_spans(audio, size)]
    return [
        (bool(kind), *pieces[kind][j]) for j in range(max(map(len, pieces))) for kind in (0, 1) if j < len(pieces[kind])
    ]


def rope_index(
    tokens: Integer[np.ndarray, "b s"],
    mask: Bool[np.ndarray, "b s"],
    *,
    ids: TokenIds,
    image_grids: Integer[np.ndarray, "n 3"],
    video_grids: Integer[np.ndarray, "m 3"],
    seconds_per_grid: Float[np.ndarray, " v"],
    audio_lengths: Integer[np.ndarray, " a"],
    use_audio_in_video: bool = False,
    position_id_per_second: int = 25,
    seconds_per_chunk: float | int = 2.0,
    merge: int = 2,
) -> tuple[Int[np.ndarray, "b 3 s"], Int[np.ndarray, " b"]]:
    """Positions of a batch, equal to `get_rope_index` of transformers' thinker, and each row's next position.

    Its peculiarities are kept: padding has position 1; the next position is the largest id of the row plus 1, the
    padding's counted where the batch has no images or videos at all; after a video with its sound, the text continues
    from the last *piece*, which need not hold the largest id.

    Args:
      tokens: ids with every placeholder expanded; padding on either side or in between.
      mask: True for real tokens.
      ids: ids of the placeholders.
      image_grids: (frame pairs, rows, columns) in patches of the batch's images in order; [0, 3] for none.
      video_grids: the same for videos.
      seconds_per_grid: seconds between frame pairs of each video.
      audio_lengths: mel frames of the batch's audios in order, those in videos included.
      use_audio_in_video: whether videos carry their sound (`<vision_bos><audio_bos>...`).
      position_id_per_second: time ids in a second.
      seconds_per_chunk: length of the pieces of video and sound.
      merge: patches along a side of a cell.

    Raises:
      InputError: tokens and media do not match.
    """
    tokens, mask = np.asarray(tokens), np.asarray(mask)
    if not len(image_grids) and not len(video_grids):
        counted = np.where(mask, np.cumsum(mask, axis=1) - 1, 1).astype(np.int32)
        return np.repeat(counted[:, None], 3, axis=1), counted.max(axis=1) + np.int32(1)
    if len(seconds_per_grid) != len(video_grids):
        raise InputError(f"{len(video_grids)} videos need as many seconds_per_grid, got {len(seconds_per_grid)}")
    frame_times = [
        # Single precision and truncated, as in the reference.
        (np.arange(grid[0], dtype=np.float32) * np.float32(seconds) * np.float32(position_id_per_second)).astype(int)
        for grid, seconds in zip(video_grids, seconds_per_grid)
    ]
    media = {
        "image": [_grid_positions(np.arange(grid[0]) * position_id_per_second, grid, merge) for grid in image_grids],
        "video": [_grid_positions(times, grid, merge) for times, grid in zip(frame_times, video_grids)],
        "audio": [np.tile(np.arange(audio_tokens(int(frames))), (3, 1)) for frames in audio_lengths],
    }
    unread = {kind: iter(blocks) for kind, blocks in media.items()}
    positions = np.ones((len(tokens), 3, tokens.shape[1]), np.int32)
    next_positions = np.zeros(len(tokens), np.int32)
    for row, (token_ids, real) in enumerate(zip(tokens, mask)):
        size = int(position_id_per_second * seconds_per_chunk)
        row_positions = _row_positions(f"row {row}", token_ids[real], ids, unread, use_audio_in_video, size)
        positions[row][:, real] = row_positions
        next_positions[row] = row_positions.max() + 1
    return positions, next_positions


def _grid_positions(times: Int[np.ndarray, " t"], grid: Integer[np.ndarray, "3"], merge: int) -> Int[np.ndarray, "3 n"]:
    """Time, row and column of each cell of a grid, counted from its start."""
    t, h, w = np.indices((len(times), int(grid[1]) // merge, int(grid[2]) // merge)).reshape(3, -1)
    return np.stack([times[t], h, w])


def _row_positions(
    name: str,
    token_ids: Integer[np.ndarray, " s"],
    ids: TokenIds,
    unread: dict[str, Iterator[Int[np.ndarray, "3 _"]]],
    use_audio_in_video: bool,
    size: int,
) -> Int[np.ndarray, "3 s"]:
    """Positions of an unpadded prompt; takes its media from `unread`.

    Start and end tokens count as text, except the doubled ones around a video with its sound, which share a position.
    """
    if not len(token_ids):
        raise InputError(f"{name} is all padding")
    vision = np.flatnonzero(token_ids == ids.vision_start) + 1
    if vision.size and vision[-1] == len(token_ids):
        raise InputError(f"{name} ends with a vision start token: its placeholder is missing")
    opens_video = ids.audio_start if use_audio_in_video else ids.video
    left = {
        "audio": int((token_ids == ids.audio_start).sum()),
        "image": int((token_ids[vision] == ids.image).sum()),
        "video": int((token_ids[vision] == opens_video).sum()),
    }
    pieces, position = [], 0
    start = lambda: int(pieces[-1].max()) + 1 if pieces else 0
    text = lambda count: [np.tile(start() + np.arange(count), (3, 1))] if count else []
    doubled = lambda: [np.full((3, 2), start())]
    while any(left.values()):
        starts = {
            kind: position + np.flatnonzero(token_ids[position:] == getattr(ids, kind)) for kind in left if left[kind]
        }
        starts = {kind: int(indices[0]) for kind, indices in starts.items() if indices.size}
        if not starts:
            raise InputError(f"{name} has start tokens of {', '.join(k for k in left if left[k])} without placeholders")
        first = min(starts, key=starts.get)
        with_sound = first == "video" and use_audio_in_video
        kinds = ("video", "audio") if with_sound else (first,)
        blocks = [_take(name, kind, unread) for kind in kinds]
        end = starts[first] + sum(block.shape[1] for block in blocks)
        for kind, block in zip(kinds, blocks):
            count = int((token_ids[starts[first] : end] == getattr(ids, kind)).sum())
            if count != block.shape[1]:
                raise InputError(
                    f"{name}: the next {kind} needs {block.shape[1]} {kind} tokens, the prompt has {count}"
                )
            left[kind] -= 1
        if with_sound:
            if starts[first] - 2 < position:
                raise InputError(f"{name}: a video with sound needs its two start tokens before it")
            pieces += text(starts[first] - 2 - position)
            pieces += doubled()
            offset = start()
            pieces += [offset + blocks[sound][:, a:b] for sound, a, b in interleave(blocks[0][0], blocks[1][0], size)]
            pieces += doubled()
            end += 2
        else:
            pieces += text(starts[first] - position)
            pieces.append(start() + blocks[0])
        position = end
    if position > len(token_ids):
        raise InputError(f"{name} ends inside a video with sound: its two end tokens are missing")
    pieces += text(len(token_ids) - position)
    return np.concatenate(pieces, axis=1)


def _take(name: str, kind: str, unread: dict[str, Iterator[Int[np.ndarray, "3 _"]]]) -> Int[np.ndarray, "3 _"]:
    block = next(unread[kind], None)
    if block is None:
        raise InputError(f"{name} has tokens for more {kind}s than were given")
    if not block.size:
        raise InputError(f"{name}: the next {kind} is too short for a token")
    return block
