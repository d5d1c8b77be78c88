"""The host's layout of a prompt against transformers' own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as hf
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni import layout

IDS = layout.TokenIds(*range(101, 109), eos=(109,))


def thinker_on(ids):
    """A small reference model whose media tokens are `ids`."""
    config = Qwen2_5OmniThinkerConfig(
        text_config=dict(
            vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[2, 3, 3]),
        ),
        vision_config=dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=1, out_hidden_size=16),
        audio_config=dict(num_mel_bins=4, d_model=8, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=8,
                          output_dim=16, n_window=10, max_source_positions=40),
        audio_token_index=ids.audio, image_token_index=ids.image, video_token_index=ids.video,
        audio_start_token_id=ids.audio_start, audio_end_token_id=ids.audio_end,
        vision_start_token_id=ids.vision_start, vision_end_token_id=ids.vision_end,
    )  # fmt: skip
    return Qwen2_5OmniThinkerForConditionalGeneration._from_config(config).eval()


@pytest.fixture(scope="module")
def thinker():
    return thinker_on(IDS)


grids = st.tuples(st.integers(1, 5), st.integers(1, 5)).map(lambda hw: (1, 2 * hw[0], 2 * hw[1]))
videos = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)).map(lambda g: (g[0], 2 * g[1], 2 * g[2]))
seconds = st.sampled_from([1.0, 0.8, 2.0, 2 / 3, 0.1, 5.0, 1 / 3])
text = st.integers(0, 3).map(lambda n: ("text", n))
image = st.tuples(st.just("image"), grids)
audio = st.tuples(st.just("audio"), st.integers(3, 700))
video = st.tuples(st.just("video"), videos, seconds)
sides = st.sampled_from(["left", "right"])
sounding = st.tuples(st.just("sounding"), videos, seconds, st.integers(3, 900))


def prompt(items):
    """Ids of a row and its media, chunked as the processor does."""
    row, media = [5], dict(images=[], videos=[], seconds=[], audios=[])
    for kind, *what in items:
        if kind == "text":
            row += [7, 8, 9][: what[0]]
        elif kind == "image":
            row += [IDS.vision_start] + [IDS.image] * layout.grid_cells(what[0]) + [IDS.vision_end]
            media["images"].append(what[0])
        elif kind == "audio":
            row += [IDS.audio_start] + [IDS.audio] * layout.audio_tokens(what[0]) + [IDS.audio_end]
            media["audios"].append(what[0])
        else:
            grid, second, *sound = what
            media["videos"].append(grid)
            media["seconds"].append(second)
            cells = layout.grid_cells(grid)
            row.append(IDS.vision_start)
            if kind == "video":
                row += [IDS.video] * cells
            else:
                media["audios"] += sound
                times = np.repeat(np.arange(grid[0]), cells // grid[0]) * second * 25
                order = layout.interleave(times, np.arange(layout.audio_tokens(sound[0])), 50)
                row.append(IDS.audio_start)
                for heard, a, b in order:
                    row += [IDS.audio if heard else IDS.video] * (b - a)
                row.append(IDS.audio_end)
            row.append(IDS.vision_end)
    return row, media


def batch(rows, side):
    lines, media = zip(*map(prompt, rows))
    width = max(map(len, lines))
    tokens, mask = np.zeros((2, len(lines), width), np.int64)
    for i, line in enumerate(lines):
        at = slice(width - len(line), width) if side == "left" else slice(0, len(line))
        tokens[i, at], mask[i, at] = line, 1
    join = lambda key: [x for m in media for x in m[key]]
    return tokens, mask.astype(bool), {key: join(key) for key in media[0]}


def ours(tokens, mask, media, sound, **change):
    args = dict(
        ids=IDS,
        image_grids=np.array(media["images"], np.int64).reshape(-1, 3),
        video_grids=np.array(media["videos"], np.int64).reshape(-1, 3),
        seconds_per_grid=np.array(media["seconds"], np.float64),
        audio_lengths=np.array(media["audios"], np.int64),
        use_audio_in_video=sound,
    )
    return layout.rope_index(tokens, mask, **{**args, **change})


def theirs(thinker, tokens, mask, media, sound):
    optional = lambda values: torch.tensor(values) if values else None
    return thinker.get_rope_index(
        torch.tensor(tokens),
        image_grid_thw=optional(media["images"]),
        video_grid_thw=optional(media["videos"]),
        attention_mask=torch.tensor(mask).long(),
        use_audio_in_video=sound,
        audio_seqlens=optional(media["audios"]),
        second_per_grids=optional(media["seconds"]),
    )


def check(thinker, rows, side, sound):
    tokens, mask, media = batch(rows, side)
    positions, following = ours(tokens, mask, media, sound)
    expected, delta = theirs(thinker, tokens, mask, media, sound)
    np.testing.assert_array_equal(positions, expected.transpose(0, 1).numpy())
    # What generate gives the next token: its count in the row, from zero, plus the row's delta.
    np.testing.assert_array_equal(following, mask.sum(1) + delta[:, 0].numpy())


@given(
    st.lists(st.lists(text | image | audio | video, max_size=6), min_size=1, max_size=4),
    st.sampled_from(["left", "right"]),
)
@settings(max_examples=150)
def test_positions_of_text_images_videos_and_audio(thinker, rows, side):
    check(thinker, rows, side, False)


@given(
    st.lists(st.lists(text | image | audio | sounding, max_size=5), min_size=1, max_size=3),
    st.sampled_from(["left", "right"]),
)
@settings(max_examples=150)
def test_positions_of_videos_with_sound(thinker, rows, side):
    check(thinker, rows, side, True)


def test_the_batchs_padding_counts_only_without_media(thinker):
    """A row of one token beside longer ones: transformers moves its next token, but not with grids."""
    lone, longer, picture = [], [("text", 3)], [("image", (1, 2, 2))]
    for rows in ([lone, longer], [lone, picture]):
        check(thinker, rows, "left", False)


def test_next_position_is_what_generate_uses(thinker):
    rows = [[("text", 1), ("image", (1, 4, 6)), ("video", (3, 4, 4), 0.8)], [("audio", 53), ("text", 2)]]
    tokens, mask, media = batch(rows, "left")
    positions, following = ours(tokens, mask, media, False)
    seen = []
    decoder = thinker.model.language_model
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"].clone()), with_kwargs=True
    )
    patches = lambda key: torch.randn(sum(int(np.prod(g)) for g in media[key]), 1176)
    with torch.no_grad():
        thinker.generate(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask).long(),
            pixel_values=patches("images"),
            image_grid_thw=torch.tensor(media["images"]),
            pixel_values_videos=patches("videos"),
            video_grid_thw=torch.tensor(media["videos"]),
            video_second_per_grid=torch.tensor(media["seconds"]),
            input_features=torch.randn(1, 4, 53),
            feature_attention_mask=torch.ones(1, 53, dtype=torch.long),
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
        )
    handle.remove()
    axes = lambda ids: ids[-3:].transpose(0, 1).numpy()  # transformers puts plain text positions before the three
    np.testing.assert_array_equal(axes(seen[0])[mask.nonzero()[0], :, mask.nonzero()[1]],
                                  positions[mask.nonzero()[0], :, mask.nonzero()[1]])  # fmt: skip
    for step, ids in enumerate(seen[1:]):
        np.testing.assert_array_equal(axes(ids)[:, :, -1], np.repeat(following[:, None] + step, 3, axis=1))


def test_clip_with_ten_seconds_of_sound():
    """20 frames at 224 x 420 and 10 s: 1200 + 250 tokens in five chunks of 240 + 50, 1454 with the four at the ends."""
    row, media = prompt([("sounding", (10, 16, 30), 1.0, 1000)])
    assert len(row) - 1 == 1454
    changes = np.flatnonzero(np.diff(row[3:-2])) + 1
    assert np.diff([0, *changes, 1450]).tolist() == [240, 50] * 5
    positions, following = ours(np.array([row]), np.ones((1, len(row)), bool), media, True)
    assert positions[0, :, 1:3].tolist() == [[1, 1]] * 3
    assert positions[0, :, 3].tolist() == [2, 2, 2]
    assert positions[0, :, -1].tolist() == positions[0, :, -2].tolist() == [252] * 3
    assert following.tolist() == [253]


def test_chunks_move_once_for_each_boundary_token():
    times = np.repeat([0, 125, 250], 4)
    spans = layout.interleave(times, [], 50)
    assert [span[1:] for span in spans if not span[0]] == [(0, 4), (4, 5), (5, 8), (8, 9), (9, 10), (10, 12)]


@given(st.lists(videos | grids, min_size=1, max_size=4), st.integers(1, 5))
@settings(max_examples=100)
def test_windows_frames_and_coordinates(media, window):
    grid = np.array(media)
    order, ends = get_vision_window_index(torch.tensor(media), 2, window * 28, 14)
    windows = layout.window_cells(grid, window)
    np.testing.assert_array_equal(np.concatenate(windows), order.numpy())
    np.testing.assert_array_equal(np.cumsum([0, *map(len, windows)]) * 4, ends.numpy())
    coordinates = np.concatenate([layout.cell_coordinates(g) for g in grid])
    expected = get_vision_position_ids(torch.tensor(media), 2).numpy()
    np.testing.assert_array_equal(coordinates, expected[::4] // 2)
    # Attention in full blocks is within a temporal patch.
    frames = layout.frame_cells(grid)
    assert [len(cells) for cells in frames] == [h * w // 4 for t, h, w in media for _ in range(t)]
    np.testing.assert_array_equal(np.concatenate(frames), np.arange(len(order)))
    found = layout.vision_layout(grid, window=window, cells=1000, windows=1000)
    np.testing.assert_array_equal(found.rows_cols[: len(coordinates)], coordinates)
    assert found.windows.shape == (1000, window**2) and (found.windows >= 0).sum() == len(coordinates)
    np.testing.assert_array_equal(found.frames[found.frames >= 0], np.arange(len(order)))


@given(st.lists(st.integers(3, 90), min_size=1, max_size=4), st.integers(1, 7))
@settings(max_examples=150)
def test_audio_chunks_and_pairs(lengths, n_window):
    rng = np.random.default_rng(0)
    mels = [rng.standard_normal((n, 3)).astype(np.float32) for n in lengths]
    found = layout.audio_layout(lengths, n_window)
    joined = torch.from_numpy(np.concatenate(mels)).T
    padded, chunk_lengths = hf.chunk_and_pad_features(joined, torch.tensor(lengths), n_window)
    np.testing.assert_array_equal(found.lengths, chunk_lengths.numpy())
    chunks = layout.chunk_mel(mels, found, n_window, 3)
    np.testing.assert_array_equal(chunks[:, : padded.shape[2]], padded.transpose(1, 2).numpy())
    assert not chunks[:, padded.shape[2] :].any()
    # transformers averages flat[i] and flat[i + 1] of the valid positions of all chunks.
    valid = np.concatenate([c * n_window + np.arange((n - 1) // 2 + 1) for c, n in enumerate(chunk_lengths.tolist())])
    first = hf.get_pool_indices(torch.tensor(lengths)).numpy()
    np.testing.assert_array_equal(found.pairs, np.stack([valid[first], valid[first + 1]], axis=1))


def test_audio_padding():
    found = layout.audio_layout([30, 7], 5, chunks=6, tokens=20)
    assert found.lengths.tolist() == [10, 10, 10, 7, 0, 0] and found.audio.tolist() == [0, 0, 0, 1, -1, -1]
    assert (
        found.start.tolist() == [0, 10, 20, 0, 0, 0] and (found.pairs[9:] == -1).all() and (found.pairs[:9] >= 0).all()
    )


@given(st.lists(st.lists(text | image | audio | video, max_size=6), min_size=1, max_size=4), sides)
@settings(max_examples=60)
def test_media_of_a_row(rows, side):
    """Filling in features as transformers does (all image tokens in order, all video tokens) gives the same order."""
    tokens, mask, media = batch(rows, side)
    images, clips = (np.array(media[key], np.int64).reshape(-1, 3) for key in ("images", "videos"))
    found = layout.media_rows(
        tokens, mask, ids=IDS, image_grids=images, video_grids=clips, audio_lengths=np.array(media["audios"], np.int64)
    )
    vision, audible = layout.media_index(tokens, mask, IDS)
    features = np.full(tokens.shape, -1)
    cells = [sum(map(layout.grid_cells, g)) for g in (images, clips)]
    features[tokens == IDS.image] = np.arange(cells[0])
    features[tokens == IDS.video] = cells[0] + np.arange(cells[1])
    heard = np.full(tokens.shape, -1)
    heard[tokens == IDS.audio] = np.arange((tokens == IDS.audio).sum())
    ends = np.cumsum([0, *map(layout.audio_tokens, media["audios"])])
    for row, one in enumerate(found):
        there = vision[row] >= 0
        np.testing.assert_array_equal(one.cells[vision[row][there]], features[row][there])
        assert (features[row][~there] == -1).all() and sum(map(layout.grid_cells, one.grids)) == len(one.cells)
        mine = np.concatenate([np.zeros(0, int), *(np.arange(ends[i], ends[i + 1]) for i in one.audios)])
        np.testing.assert_array_equal(mine[audible[row][audible[row] >= 0]], heard[row][heard[row] >= 0])


V0, V1, I, W, A0, A1, S = 106, 107, 102, 103, 104, 105, 101


@pytest.mark.parametrize(
    "line, media, sound, message",
    [
        ([V0, I, I, V1], dict(images=[(1, 2, 6)]), False, "image needs 3 image tokens, the prompt has 2"),
        ([V0, W, W, V1], dict(images=[(1, 2, 6)]), False, "more videos than were given"),
        ([V0, W, W, V1], dict(videos=[(2, 2, 2)], seconds=[]), False, "seconds_per_grid"),
        ([V0, I, V1, 5, V0], dict(images=[(1, 2, 2)]), False, "ends with a vision start token"),
        ([V0, I, V1, A0, A1], dict(images=[(1, 2, 2)], audios=[9]), False, "start tokens of audio without"),
        ([V0, I, V1, A0, S, A1], dict(images=[(1, 2, 2)], audios=[2]), False, "audio is too short"),
        ([V0, I, V1, A0, S, A1], dict(images=[(1, 2, 2)], audios=[9]), False, "audio needs 2 audio tokens"),
        ([V0, A0, W, S, A1], dict(videos=[(1, 2, 2)], seconds=[1.0], audios=[3]), True, "two end tokens are missing"),
    ],
)
def test_positions_of_media_that_do_not_match(line, media, sound, message):
    media = {"images": [], "videos": [], "seconds": [], "audios": [], **media}
    with pytest.raises(InputError, match=message):
        ours(np.array([line]), np.ones((1, len(line)), bool), media, sound)


@pytest.mark.parametrize(
    "line, media, message",
    [
        ([V0, I, V1], dict(), "more image tokens than the 0 image grids"),
        ([V0, I, V1], dict(image_grids=[(1, 2, 4)]), r"image 0 with grid \[1, 2, 4\] needs 2 image tokens"),
        ([V0, W, V1], dict(video_grids=[(2, 2, 2)]), r"video 0 with grid \[2, 2, 2\] needs 2 video tokens"),
        ([A0, S, A1], dict(audio_lengths=[30]), "1 audio tokens, which no run of the given audios"),
        ([5], dict(image_grids=[(1, 2, 2)]), "1 images were given, but the prompts have tokens for 0"),
        ([5], dict(audio_lengths=[9]), "1 audios were given"),
    ],
)
def test_media_that_do_not_match(line, media, message):
    given_media = {"image_grids": [], "video_grids": [], "audio_lengths": [], **media}
    arrays = {
        key: np.array(value, np.int64).reshape((-1,) if key == "audio_lengths" else (-1, 3))
        for key, value in given_media.items()
    }
    with pytest.raises(InputError, match=message):
        layout.media_rows(np.array([line]), np.ones((1, len(line)), bool), ids=IDS, **arrays)


def test_what_does_not_fit_a_bucket_is_named():
    grid = np.array([[2, 8, 8]])
    for size in (dict(cells=31), dict(windows=1), dict(frames=1), dict(frame_size=15)):
        with pytest.raises(InputError, match=next(iter(size)).split("_")[0]):
            layout.vision_layout(grid, window=4, **size)
    for size in (dict(chunks=1), dict(tokens=4)):
        with pytest.raises(InputError, match=f"audio {next(iter(size))}"):
            layout.audio_layout([30], 10, **size)
    with pytest.raises(InputError, match="audio 1 has 2 mel frames"):
        layout.audio_layout([30, 2], 10)
    with pytest.raises(InputError, match="multiples of 2"):
        layout.vision_layout(np.array([[1, 3, 4]]), window=4)
