"""Prompts against transformers' own processor: ids, grids, pixels, mel spectrograms and positions."""

import functools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.data import preprocess
from omnir1_jax.data.preprocess import tokens
from tests.data import qwen_oracle
from tests.models import test_layout

torch.set_num_threads(1)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
LOW, HIGH = 4 * preprocess.CELL, 24 * preprocess.CELL
BUDGET = preprocess.PixelBudget(image_min=LOW, image_max=HIGH, video_min=LOW, video_max=HIGH)


@functools.cache
def thinker():
    return test_layout.thinker_on(tokens.token_ids(qwen_oracle.tokenizer()))


def picture(rng, height, width, channels=3):
    """Smooth, so that resizing is put to the test but not the clipping of noise."""
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, channels))
    return np.kron(coarse, np.ones((8, 8, 1)))[:height, :width].astype(np.uint8)


def wave(rng, seconds):
    return (0.2 * rng.standard_normal(int(seconds * 16000))).astype(np.float32)


def unpatched(pixel_values):
    """The processor's patches as cells: values of 0 to 255, [n, 2, 28, 28, 3]."""
    patches = np.asarray(pixel_values).reshape(-1, 2, 2, 3, 2, 14, 14)  # cells, rows, columns, RGB, frames, pixels
    cells = patches.transpose(0, 4, 1, 5, 2, 6, 3).reshape(-1, 2, 28, 28, 3)
    return (cells * STD + MEAN) * 255


def theirs(messages, budget=BUDGET):
    """The processor's answer to the same conversation, and whether its videos carry sound."""
    found = [item for _, item in tokens.items(messages)]
    media = lambda kind: [item[kind] for item in found if item["type"] == kind] or None
    audio, origin, clips = [], [], 0
    for item in found:
        if item["type"] == "audio":
            audio.append(item["audio"])
            origin.append(None)
        if item["type"] == "video":
            if "audio" in item:
                audio.append(item["audio"])
                origin.append(clips)
            clips += 1
    sound = any(index is not None for index in origin)
    frames = {item.get("fps", 2.0) for item in found if item["type"] == "video"}
    limits = lambda low, high: {"shortest_edge": low, "longest_edge": high}
    out = qwen_oracle.processor()(
        text=[tokens.chat_text(messages)],
        images=media("image"),
        videos=media("video"),
        audio=audio or None,
        return_tensors="np",
        load_audio_from_video=sound,
        **(dict(audio_from_video_indices=origin) if sound else {}),
        images_kwargs=dict(size=limits(budget.image_min, budget.image_max)),
        videos_kwargs=dict(size=limits(budget.video_min, budget.video_max), fps=frames.pop() if frames else None),
    )
    return {key: np.asarray(value) for key, value in out.items()}, sound


def check(messages):
    prompt = preprocess.prepare(messages, qwen_oracle.tokenizer(), budget=BUDGET)
    expected, sound = theirs(messages)
    np.testing.assert_array_equal(prompt.tokens, expected["input_ids"][0])
    kinds = [item["type"] for _, item in tokens.items(messages) if item["type"] in ("image", "video")]
    grids = {kind: prompt.grids[[k == kind for k in kinds]] if kinds else prompt.grids for kind in ("image", "video")}
    cells = np.split(prompt.cells, np.cumsum(prompt.grids.prod(axis=1) // 4)[:-1]) if kinds else []
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        if kind in kinds:
            np.testing.assert_array_equal(grids[kind], expected[grid])
            mine = np.concatenate([one for one, k in zip(cells, kinds) if k == kind])
            off = np.abs(mine - unpatched(expected[pixels]))
            assert off.max() < 2.01 and off.mean() < 0.02
    assert len(prompt.mels) == len(expected.get("input_features", ()))
    for mel, features, mask in zip(
        prompt.mels, expected.get("input_features", ()), expected.get("feature_attention_mask", ())
    ):
        assert len(mel) == mask.sum()
        np.testing.assert_allclose(mel, features.T[mask.astype(bool)], atol=2e-4)
    tensor = lambda key: torch.tensor(expected[key]) if key in expected else None
    positions, delta = thinker().get_rope_index(
        tensor("input_ids"),
        image_grid_thw=tensor("image_grid_thw"),
        video_grid_thw=tensor("video_grid_thw"),
        attention_mask=tensor("attention_mask"),
        use_audio_in_video=sound,
        audio_seqlens=tensor("feature_attention_mask").sum(-1) if prompt.mels else None,
        second_per_grids=tensor("video_second_per_grid"),
    )
    np.testing.assert_array_equal(prompt.positions, positions[:, 0].numpy())
    assert prompt.next_position == len(prompt.tokens) + int(delta)


side = st.integers(12, 260)
words = st.sampled_from(["What moves?", "Der rote Kreis, bitte!", '穿红色外套的人 {"a": 1}\n', " a  b "])


@st.composite
def conversation(draw, kinds):
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    fps = draw(st.sampled_from([2.0, 1.0, 3.0, 0.5, 2.5]))
    content = []
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=4)):
        if kind == "image":
            content.append({"type": "image", "image": picture(rng, draw(side), draw(side))})
        elif kind == "audio":
            content.append({"type": "audio", "audio": wave(rng, draw(st.floats(0.03, 1.5))), "sample_rate": 16000})
        else:
            height, width = draw(side), draw(side)
            frames = np.stack([picture(rng, height, width) for _ in range(draw(st.integers(1, 7)))])
            content.append({"type": "video", "video": frames, "fps": fps})
            if kind == "talking":
                content[-1] |= {"audio": wave(rng, draw(st.floats(0.03, 8.0))), "sample_rate": 16000}
        if draw(st.booleans()):
            content.append({"type": "text", "text": draw(words)})
    content.append({"type": "text", "text": draw(words)})
    opening = draw(st.sampled_from([[], [{"role": "system", "content": "Think, then answer."}]]))
    more = draw(
        st.sampled_from([[], [{"role": "assistant", "content": "A circle."}, {"role": "user", "content": "Why?"}]])
    )
    return [*opening, {"role": "user", "content": content}, *more]


@given(conversation(("image", "video", "audio")))
@settings(max_examples=60)
def test_prompts_equal_the_processors(messages):
    check(messages)


@given(conversation(("talking", "talking", "image", "audio")))
@settings(max_examples=20)
def test_prompts_with_sound_in_their_videos(messages):
    check(messages)
