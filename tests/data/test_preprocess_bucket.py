"""Buckets: one set of shapes for every aspect ratio, and prompts padded to it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.data import preprocess
from omnir1_jax.data.preprocess import CELL, Bucket, PixelBudget, bucket, pixels
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni import layout
from tests.data import qwen_oracle


def need(height, width, low, high):
    rows, columns = (side // 28 for side in pixels.smart_resize(height, width, min_pixels=low, max_pixels=high))
    return rows * columns, len(layout.window_cells(np.array([[1, 2 * rows, 2 * columns]]), 4))


limits = st.tuples(st.integers(1, 150), st.integers(0, 900)).map(lambda two: (two[0] * CELL, sum(two) * CELL))


@given(limits, st.lists(st.tuples(st.integers(1, 2500), st.integers(1, 2500)), max_size=20), st.data())
@settings(max_examples=300)
def test_every_shape_fits_the_bounds(limit, shapes, data):
    """Random shapes, and those near the edges: sides just under and over halves and wholes of a cell."""
    aspect = data.draw(st.sampled_from([200, 200, 4, 2.5, 1]))
    edges = st.tuples(st.integers(1, 60), st.sampled_from([-1, 0, 1])).map(lambda e: max(1, 14 * e[0] + e[1]))
    shapes += data.draw(st.lists(st.tuples(edges, edges), max_size=20))
    shapes += [(side, int(side * aspect)) for side in data.draw(st.lists(edges, min_size=3, max_size=10))]
    cells, windows, _ = bucket.frame_bounds(*limit, max_aspect=aspect)
    for height, width in shapes:
        if max(height, width) <= aspect * min(height, width):
            own_cells, own_windows = need(height, width, *limit)
            assert own_cells <= cells and own_windows <= windows, (height, width)


@pytest.mark.parametrize("low, high, aspect", [(16, 128, 200), (16, 100, 4), (64, 1600, 4), (1, 9, 2), (4, 16, 200)])
def test_bounds_are_close(low, high, aspect):
    """The worst of all shapes (sides in steps of a quarter cell) is nearly the bound."""
    sides = sorted({7 * n for n in range(1, 40)} | {28 * n for n in range(10, 215, 5)})
    shapes = [(h, w) for h, w in itertools.product(sides, sides) if h <= w <= aspect * h]
    worst = np.array([need(h, w, low * CELL, high * CELL) for h, w in shapes]).max(axis=0)
    bounds = np.array(bucket.frame_bounds(low * CELL, high * CELL, max_aspect=aspect)[:2])
    assert (worst <= bounds).all() and (bounds <= np.ceil(1.35 * worst)).all(), (worst, bounds)


BUDGET = PixelBudget(4 * CELL, 16 * CELL, 4 * CELL, 12 * CELL)


def prompts(shapes=((60, 90), (90, 60), (30, 300))):
    rng = np.random.default_rng(0)
    found = []
    for height, width in shapes:
        video = rng.integers(0, 256, (3, height, width, 3), np.uint8)
        audio = rng.standard_normal(int(rng.integers(8000, 16000))).astype(np.float32)
        content = [
            {"type": "image", "image": video[0]},
            {"type": "video", "video": video},
            {"type": "audio", "audio": audio, "sample_rate": 16000},
            {"type": "text", "text": "What?" * height},
        ]
        found.append(preprocess.prepare([{"role": "user", "content": content}], qwen_oracle.tokenizer(), budget=BUDGET))
    return found


ROOM = preprocess.bucket_for(
    text_tokens=500, images=1, video_frames=[3], audio_seconds=[1.0], budget=BUDGET, max_aspect=10, multiple=128
)


def test_one_bucket_takes_all_shapes():
    mine = prompts()
    batch = preprocess.pad_to(mine, ROOM)
    assert ROOM.tokens % 128 == 0 and batch.tokens.shape == (3, ROOM.tokens)
    assert batch.vision.pixels.shape == (3, ROOM.cells, 2, 28, 28, 3) and batch.vision.pixels.dtype == np.uint8
    assert batch.vision.windows.shape == (3, ROOM.windows, 16)
    assert batch.vision.frames.shape == (3, ROOM.frames, ROOM.frame_cells)
    assert batch.audio.mel.shape == (3, ROOM.audio_chunks, 200, 128)
    assert batch.audio.pairs.shape == (3, ROOM.audio_tokens, 2)
    for row, prompt in enumerate(mine):
        real = batch.mask[row]
        assert not real[0] and real.sum() == len(prompt.tokens)
        np.testing.assert_array_equal(batch.tokens[row][real], prompt.tokens)
        np.testing.assert_array_equal(batch.positions[row][:, real], prompt.positions)
        assert (batch.tokens[row][~real] == prompt.pad).all() and (batch.positions[row][:, ~real] == 1).all()
        assert batch.next_position[row] == prompt.next_position == prompt.positions.max() + 1
        for index, got, there in (
            (batch.vision_index, prompt.vision_index, len(prompt.cells)),
            (batch.audio_index, prompt.audio_index, sum(layout.audio_tokens(len(one)) for one in prompt.mels)),
        ):
            np.testing.assert_array_equal(index[row][real], got)
            assert (index[row][~real] == -1).all() and index[row].max() == there - 1
        count = len(prompt.cells)
        np.testing.assert_array_equal(batch.vision.pixels[row, :count], prompt.cells)
        assert not batch.vision.pixels[row, count:].any()
        for lists in (batch.vision.windows[row], batch.vision.frames[row]):
            np.testing.assert_array_equal(np.sort(lists[lists >= 0]), np.arange(count))
        lengths = batch.audio.lengths[row]
        np.testing.assert_array_equal(np.concatenate(
            [chunk[:length] for chunk, length in zip(batch.audio.mel[row], lengths)]), prompt.mels[0])  # fmt: skip


def tight(prompts):
    """The smallest bucket that takes these prompts."""
    visual = [layout.vision_layout(one.grids, window=4, merge=2) for one in prompts if len(one.cells)]
    heard = [layout.audio_layout([len(mel) for mel in one.mels], 100) for one in prompts if one.mels]
    return Bucket(
        tokens=max(len(one.tokens) for one in prompts),
        cells=max(len(one.rows_cols) for one in visual),
        windows=max(len(one.windows) for one in visual),
        frames=max(len(one.frames) for one in visual),
        frame_cells=max(one.frames.shape[1] for one in visual),
        audio_chunks=max(len(one.lengths) for one in heard),
        audio_tokens=max(len(one.pairs) for one in heard),
    )


def test_a_tight_bucket_takes_its_prompts_and_none_smaller_does():
    mine = prompts()
    close = tight(mine)
    preprocess.pad_to(mine, close)
    for name in ("tokens", "cells", "windows", "frames", "frame_cells", "audio_chunks", "audio_tokens"):
        smaller = Bucket(**{**vars(close), name: getattr(close, name) - 1})
        with pytest.raises(InputError, match=r"prompt \d.*\d " + NAMES.get(name, name) + "|no room: " + name):
            preprocess.pad_to(mine, smaller)


NAMES = {"frame_cells": "cells in one of the frames", "audio_chunks": "audio chunks", "audio_tokens": "audio tokens"}


def test_text_alone_needs_no_encoders():
    one = preprocess.prepare([{"role": "user", "content": "Hello?"}], qwen_oracle.tokenizer())
    batch = preprocess.pad_to([one], Bucket(tokens=64))
    assert batch.vision is None and batch.audio is None
    with_room = preprocess.pad_to([one], ROOM)
    assert (with_room.vision.windows == -1).all() and not with_room.audio.lengths.any()
    with pytest.raises(InputError, match="prompt 0 has cells for which the bucket has no room"):
        preprocess.pad_to(prompts()[:1], Bucket(tokens=900))
    with pytest.raises(InputError, match="at least one prompt"):
        preprocess.pad_to([], ROOM)
