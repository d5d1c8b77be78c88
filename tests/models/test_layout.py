"""The host's layout of a prompt against transformers' own."""

import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from omnir1_jax.models.qwen_omni import layout

IDS = types.SimpleNamespace(
    audio=101, image=102, video=103, audio_start=104, audio_end=105, vision_start=106, vision_end=107
)


@pytest.fixture(scope="module")
def thinker():
    config = Qwen2_5OmniThinkerConfig(
        text_config=dict(
            vocab_size=128, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[2, 3, 3]),
        ),
        vision_config=dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=1, out_hidden_size=16),
        audio_config=dict(num_mel_bins=4, d_model=8, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=8,
                          output_dim=16, n_window=10, max_source_positions=40),
        audio_token_index=IDS.audio, image_token_index=IDS.image, video_token_index=IDS.video,
        audio_start_token_id=IDS.audio_start, audio_end_token_id=IDS.audio_end,
        vision_start_token_id=IDS.vision_start, vision_end_token_id=IDS.vision_end,
    )  # fmt: skip
    return Qwen2_5OmniThinkerForConditionalGeneration._from_config(config).eval()


def mel_for(tokens, odd):
    return 4 * tokens + (-1 if odd else 2)


grids = st.tuples(st.integers(1, 5), st.integers(1, 5)).map(lambda hw: (1, 2 * hw[0], 2 * hw[1]))
videos = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)).map(lambda g: (g[0], 2 * g[1], 2 * g[2]))
seconds = st.sampled_from([1.0, 0.8, 2.0, 2 / 3, 0.1, 5.0, 1 / 3])
text = st.integers(0, 3).map(lambda n: ("text", n))
image = st.tuples(st.just("image"), grids)
audio = st.tuples(st.just("audio"), st.integers(3, 700))
video = st.tuples(st.just("video"), videos, seconds)
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
