"""Sizes, pixels, mel spectrograms, chat format, files and bad input, piece by piece."""

import inspect

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.image_transforms import convert_to_rgb

from omnir1_jax.data import audio, frame_sampling, media, preprocess
from omnir1_jax.data.preprocess import CELL, PixelBudget, mel, pixels, tokens
from omnir1_jax.data.refs import BadSample, ImageFiles, VideoAudio, VideoFile
from omnir1_jax.errors import InputError
from tests.data import qwen_oracle

torch.set_num_threads(1)
SIZES_TABLE = {  # height, width: at most 128 cells, at most 100, image of 64 to 1600, stock video
    (480, 854): [(224, 420), (196, 364), (476, 840), (476, 840)],
    (720, 1280): [(224, 420), (196, 364), (728, 1288), (560, 1008)],
    (1080, 1920): [(224, 420), (196, 364), (812, 1484), (560, 1008)],
    (840, 840): [(308, 308), (280, 280), (840, 840), (756, 756)],
}
LIMITS = [(16, 128), (16, 100), (64, 1600), (128, 768)]


@pytest.mark.parametrize("size", SIZES_TABLE)
def test_sizes_of_the_usual_clips(size):
    found = [pixels.smart_resize(*size, min_pixels=low * CELL, max_pixels=high * CELL) for low, high in LIMITS]
    assert found == SIZES_TABLE[size]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 60), st.integers(1, 900), st.sampled_from([28, 32]))
@settings(max_examples=500)
def test_sizes_equal_the_processors(height, width, low, more, factor):
    processors = inspect.getmodule(qwen_oracle.vision_classes()[0])
    limits = dict(min_pixels=low * factor**2, max_pixels=(low + more) * factor**2, factor=factor)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(InputError, match="aspect ratio"):
            pixels.smart_resize(height, width, **limits)
        return
    assert pixels.smart_resize(height, width, **limits) == processors.smart_resize(height, width, **limits)


@pytest.mark.parametrize("size", [(480, 854, 224, 420), (190, 108, 84, 56), (100, 40, 56, 84), (56, 84, 56, 84)])
def test_resizing_is_torchs_for_every_shape(size):
    """Noise is the worst case. Tall pictures are those whose passes Pillow on its own would swap."""
    height, width, to_height, to_width = size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None], size=(to_height, to_width), mode="bicubic", antialias=True
    )
    off = np.abs(pixels.resize(image, to_height, to_width).astype(int) - expected[0].permute(1, 2, 0).numpy())
    assert off.max() <= 2 and off.mean() < 0.01


def test_gray_and_transparent_pictures():
    rng = np.random.default_rng(0)
    for channels in (1, 3, 4):
        image = rng.integers(0, 256, (20, 30, channels), np.uint8)
        np.testing.assert_array_equal(pixels.rgb(image), convert_to_rgb(image, return_numpy=True))
    np.testing.assert_array_equal(pixels.rgb(image[:, :, 0]), np.repeat(image[:, :, :1], 3, axis=2))
    for mode in ("L", "RGB", "RGBA", "P"):
        picture = Image.fromarray(image[:, :, :3]).convert(mode)
        np.testing.assert_array_equal(pixels.rgb(picture), convert_to_rgb(picture, return_numpy=True))


def test_odd_frames_repeat_the_last():
    frames = np.random.default_rng(0).integers(0, 256, (3, 28, 56, 3), np.uint8)
    cut = pixels.cells(list(frames))
    assert cut.shape == (4, 2, 28, 28, 3)
    np.testing.assert_array_equal(cut[3], np.stack([frames[2, :, 28:], frames[2, :, 28:]]))
    np.testing.assert_array_equal(cut[1], frames[:2, :, 28:])


@given(
    st.sampled_from([321, 360, 399, 400, 480, 16000, 16001, 47_999, 4_799_900]), st.integers(0, 4), st.integers(0, 99)
)
@settings(max_examples=16)
def test_mel_equals_the_feature_extractors(samples, kind, seed):
    """Tones, clicks at the very end, ramps and silence among them: what the padding and its floor would show in."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / 16000
    wave = [
        lambda: 0.2 * rng.standard_normal(samples),
        lambda: 0.5 * np.sin(2 * np.pi * rng.uniform(50, 7000) * time),
        lambda: np.zeros(samples),
        lambda: np.eye(1, samples, samples - 1)[0],
        lambda: 1e-3 * rng.standard_normal(samples) + np.eye(1, samples, samples - 1)[0],
    ][kind]().astype(np.float32)
    out = qwen_oracle.processor().feature_extractor(
        wave, sampling_rate=16000, return_attention_mask=True, return_tensors="np"
    )
    expected = out["input_features"][0].T[out["attention_mask"][0].astype(bool)]
    found = mel.log_mel(wave, sample_rate=16000)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=3e-4)
    assert np.abs(found - expected).mean() < 2e-6


def clip(frames=4, height=56, width=84):
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)


def sound(seconds=1.0):
    return (0.1 * np.random.default_rng(1).standard_normal(int(16000 * seconds))).astype(np.float32)


SMALL = PixelBudget(CELL, 64 * CELL, CELL, 64 * CELL)


def talk(*content, budget=SMALL, tokenizer=None):
    messages = [{"role": "user", "content": list(content)}]
    return preprocess.prepare(messages, tokenizer or qwen_oracle.tokenizer(), budget=budget)


WORDS = {"type": "text", "text": "What?"}
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}{% for i in m.content %}"
    "{% if i.type == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>{% else %}{{ i.text }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_the_tokenizers_own_template_comes_first(tmp_path):
    own = preprocess.load_tokenizer(qwen_oracle.save_tokenizer(tmp_path))
    picture = {"type": "image", "image": clip(1)[0]}
    assert own.decode(talk(picture, WORDS, tokenizer=own).tokens).startswith("<|im_start|>system\nYou are a helpful")
    own.chat_template = TEMPLATE
    text = own.decode(talk(picture, WORDS, tokenizer=own).tokens)
    assert text == "[user]<|vision_bos|>" + 6 * "<|IMAGE|>" + "<|vision_eos|>What?[assistant]"
    with pytest.raises(InputError, match=r"chat template placed 0 <\|AUDIO\|> for 1 audio"):
        talk({"type": "audio", "audio": sound(), "sample_rate": 16000}, WORDS, tokenizer=own)


def test_a_clip_of_system_1():
    """20 frames of 480 x 854 with 10 s of sound under 128 cells: 1454 tokens from start to end."""
    budget = PixelBudget(video_min=16 * CELL, video_max=128 * CELL)
    frames = np.zeros((20, 480, 854, 3), np.uint8)
    prompt = talk({"type": "video", "video": frames, "audio": sound(10), "sample_rate": 16000}, WORDS, budget=budget)
    assert prompt.grids.tolist() == [[10, 16, 30]] and len(prompt.cells) == 1200
    assert (prompt.vision_index >= 0).sum() == 1200 and (prompt.audio_index >= 0).sum() == 250
    places = np.flatnonzero((prompt.vision_index >= 0) | (prompt.audio_index >= 0))
    assert places[-1] - places[0] + 5 == 1454


def test_a_whole_clips_budget(monkeypatch):
    """The processor bounds a clip's pixels, if asked, by a number of tokens."""
    reference = qwen_oracle.processor().video_processor
    monkeypatch.setattr(reference, "max_video_tokens", 100)
    low, high = 4 * CELL, 40 * CELL
    for frames in (4, 5, 18, 40, 200):
        video = np.zeros((frames, 100, 150, 3), np.uint8)
        size = {"shortest_edge": low, "longest_edge": high}
        expected = reference([video], size=size, cap_pixels_per_frame=True, return_tensors="np")["video_grid_thw"]
        item = {"type": "video", "video": video, "total_pixels": int(100 * CELL * 0.9)}
        prompt = talk(item | {"min_pixels": low, "max_pixels": high}, WORDS)
        np.testing.assert_array_equal(prompt.grids, expected)


def write_video(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        track = container.add_stream("aac", rate=16000, layout="mono")
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
        samples = av.AudioFrame.from_ndarray(sound(len(frames) / 10)[None], format="fltp", layout="mono")
        samples.sample_rate = 16000
        container.mux(track.encode(samples))
        container.mux(track.encode())


def test_files_are_what_their_contents_are(tmp_path):
    path = str(tmp_path / "clip.mp4")
    write_video(path, clip(40))
    frames = media.load_frames(VideoFile(path), frame_sampling.video_frame_indices(40, 10.0))
    heard = audio.load_audio(VideoAudio(path))
    by_path = talk({"type": "video", "video": path, "audio": VideoAudio(path)}, WORDS)
    by_value = talk({"type": "video", "video": frames, "audio": heard, "sample_rate": 16000}, WORDS)
    assert len(frames) == 8 and by_path.grids[0, 0] == 4
    for mine, other in zip(by_path[:6], by_value[:6]):
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_array_equal(by_path.mels[0], by_value.mels[0])
    picture = str(tmp_path / "a.png")
    Image.fromarray(clip(1)[0]).save(picture)
    for source in (picture, ImageFiles((picture,), ("a",)), Image.fromarray(clip(1)[0])):
        found = talk({"type": "image", "image": source}, WORDS)
        np.testing.assert_array_equal(found.cells, talk({"type": "image", "image": clip(1)[0]}, WORDS).cells)
    with pytest.raises(BadSample, match=r"nowhere.png"):
        talk({"type": "image", "image": str(tmp_path / "nowhere.png")}, WORDS)


NAN = np.full(8000, np.nan, np.float32)
BAD = {
    "no messages": ([], "at least one"),
    "no role": ([{"content": "a"}], "message 0 must have the keys role and content"),
    "empty content": ([{"role": "user", "content": ""}], "not empty"),
    "empty text": ([WORDS, {"type": "text", "text": "  "}], "message 0, item 1: the text is empty"),
    "placeholder": ([{"type": "text", "text": "see <|IMAGE|>"}], r"the text holds <\|IMAGE\|>"),
    "unknown type": ([{"type": "movie", "movie": "x"}], "item 0: type must be one of .*'movie'"),
    "unknown key": ([{"type": "image", "image": clip(1)[0], "size": 3}], "unknown key size"),
    "no data": ([{"type": "video", "fps": 2.0}], "no key video"),
    "no frames": ([{"type": "video", "video": clip(4)[:0]}], r"item 0 \(video\) has no frames"),
    "frames differ": ([{"type": "video", "video": [clip()[0], clip(1, 30)[0]]}], "differ in size"),
    "no rate of frames": ([{"type": "video", "video": clip(), "fps": 0}], "fps must be a positive number"),
    "float frames": ([{"type": "video", "video": clip() / 255}], "frame 0 must hold uint8"),
    "thin image": ([{"type": "image", "image": np.zeros((2, 402, 3), np.uint8)}], "aspect ratio may be at most 200"),
    "empty image": ([{"type": "image", "image": np.zeros((0, 9, 3), np.uint8)}], "0 x 9 pixels"),
    "two channels": ([{"type": "image", "image": np.zeros((9, 9, 2), np.uint8)}], "1, 3 or 4 channels"),
    "limits": ([{"type": "image", "image": clip(1)[0], "min_pixels": 9, "max_pixels": 4}], "at most max_pixels"),
    "no sampling rate": ([{"type": "audio", "audio": sound()}], r"\(audio\) comes without its sample_rate"),
    "another rate": ([{"type": "audio", "audio": sound(), "sample_rate": 44100}], "sampled at 44100 Hz: resample"),
    "not finite": ([{"type": "audio", "audio": NAN, "sample_rate": 16000}], "not finite, the first at 0"),
    "stereo": ([{"type": "audio", "audio": sound()[None], "sample_rate": 16000}], "one channel"),
    "too short": ([{"type": "audio", "audio": sound(0.02), "sample_rate": 16000}], "must be over 0.02 s"),
    "too long": ([{"type": "audio", "audio": np.zeros(4_800_001, np.float32), "sample_rate": 16000}], "at most 300 s"),
    "integers": ([{"type": "audio", "audio": np.zeros(9999, np.int16), "sample_rate": 16000}], "floating point"),
    "half in silence": (
        [
            {"type": "video", "video": clip(), "audio": sound(), "sample_rate": 16000},
            {"type": "video", "video": clip()},
        ],
        "video 1 of the prompt has no sound while another has",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case):
    given_, message = BAD[case]
    plain = not given_ or "type" not in given_[0]
    with pytest.raises(InputError, match=message) as error:
        if plain:
            preprocess.prepare(given_, qwen_oracle.tokenizer())
        else:
            talk(*given_)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_family(tmp_path):
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(InputError, match=r"lacks <\|AUDIO\|>"):
        tokens.token_ids(other)
    with pytest.raises(InputError, match="not a directory"):
        preprocess.load_tokenizer(tmp_path / "none")
    with pytest.raises(InputError, match="no readable tokenizer"):
        preprocess.load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="video_min must be positive"):
        PixelBudget(video_min=9, video_max=4)
