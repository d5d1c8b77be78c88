"""What a clip becomes before batching: draws, checks, boxes, areas, masks on the canvas, sound."""

import io

import cv2
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.data import canvas, clips, frame_sampling, rle
from omnir1_jax.data.refs import AudioBytes, BadSample, ClipRef, ImageBytes, PngMasks, RleMasks


def encode(frame):
    return cv2.imencode(".png", np.ascontiguousarray(frame[..., ::-1]))[1].tobytes()


def wav(samples):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format="WAV", subtype="FLOAT")
    return AudioBytes(buffer.getvalue())


def make(frames, masks=None, family="vos", **more):
    names = tuple(str(t) for t in range(len(frames)))
    source = None
    if masks is not None:
        tracks = tuple(tuple(rle.encode(m) if m.any() else None for m in track) for track in masks)
        source = RleMasks(tracks, masks.shape[-2:])
    return ClipRef("mem", "s", family, "q", ImageBytes(tuple(encode(f) for f in frames), names), masks=source, **more)


def read(ref, seed=0, **changes):
    return clips.decode(ref, clips.DecodeConfig(**changes), frame_sampling.generator(seed, 0, 0))


def world(rng, n, t, h, w):
    frames = rng.integers(0, 256, (t, h, w, 3), np.uint8)
    masks = np.zeros((n, t, h, w), bool)
    for i in range(n):
        for k in range(t):
            if rng.random() < 0.8:
                y, x = int(rng.integers(0, h)), int(rng.integers(0, w))
                masks[i, k, y : y + int(rng.integers(1, h)), x : x + int(rng.integers(1, w))] = True
    return frames, masks


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 3), t=st.integers(1, 5))
def test_element_equals_the_clip(seed, n, t):
    rng = np.random.default_rng(seed)
    h, w = int(rng.integers(2, 20)), int(rng.integers(2, 20))
    frames, masks = world(rng, n, t, h, w)
    config = canvas.DetailConfig(frames=6, objects=3, canvas=(h, w), mask_size=(h, w))
    out = canvas.element(read(make(frames, masks)), config)
    np.testing.assert_array_equal(out["frames"][:t], frames)
    assert not out["frames"][t:].any() and not out["masks"][:, t:].any() and not out["masks"][n:].any()
    np.testing.assert_array_equal(out["masks"][:n, :t], masks)
    np.testing.assert_array_equal(out["frame_valid"], np.arange(6) < t)
    np.testing.assert_array_equal(out["frame_index"], [*range(t), *[-1] * (6 - t)])
    np.testing.assert_array_equal(out["object_valid"], np.arange(3) < n)
    assert tuple(out["size"]) == (h, w)
    for i in range(3):
        for k in range(6):
            box, area = [-1] * 4, 0
            if i < n and k < t and masks[i, k].any():
                y, x = np.nonzero(masks[i, k])
                box, area = [x.min(), y.min(), x.max(), y.max()], len(y)
            assert out["boxes"][i, k].tolist() == box and out["areas"][i, k] == area


def test_boxes_and_areas_are_of_the_original_size():
    masks = np.zeros((1, 1, 40, 60), bool)
    masks[0, 0, 10:20, 30:50] = True
    out = canvas.element(
        read(make(np.zeros((1, 40, 60, 3), np.uint8), masks)),
        canvas.DetailConfig(frames=1, canvas=(32, 32), mask_size=(20, 30)),
    )
    assert out["boxes"][0, 0].tolist() == [30, 10, 49, 19] and out["areas"][0, 0] == 200
    np.testing.assert_array_equal(out["masks"][0, 0], masks[0, 0, ::2, ::2])


def test_a_thin_object_does_not_vanish():
    mask = np.zeros((64, 64), bool)
    mask[33, 10:50] = True
    small = canvas.resize_mask(mask, (16, 16))
    assert small[8].any() and small.sum() <= 11
    block = np.zeros((64, 64), bool)
    block[16:32, 8:24] = True
    np.testing.assert_array_equal(canvas.resize_mask(block, (16, 16)), block[::4, ::4])


def test_large_frames_shrink_but_sizes_stay():
    frames, masks = world(np.random.default_rng(0), 1, 2, 40, 60)
    clip = read(make(frames, masks), max_frame_pixels=600)
    assert clip.frames.shape == (2, 20, 30, 3) and clip.size == (40, 60) and clip.masks.shape[-2:] == (40, 60)


def test_training_draws_frames_and_objects():
    frames, masks = world(np.random.default_rng(0), 5, 40, 4, 4)
    lengths, objects = set(), set()
    for seed in range(40):
        clip = read(make(frames, masks), seed)
        rng = frame_sampling.generator(seed, 0, 0)
        indices = frame_sampling.training_frames(40, rng)
        np.testing.assert_array_equal(clip.frame_indices, indices)
        chosen = frame_sampling.training_objects(5, rng)
        np.testing.assert_array_equal(clip.masks, masks[chosen][:, indices])
        np.testing.assert_array_equal(clip.frames, frames[indices])
        lengths.add(len(indices))
        objects.add(tuple(chosen))
    assert len(lengths) > 5 and len(objects) > 5


def test_other_ways_of_choosing_frames():
    frames, masks = world(np.random.default_rng(0), 1, 40, 4, 4)
    assert read(make(frames, masks), sampling="first").frame_indices.tolist() == [0]
    assert read(make(frames, masks), sampling="uniform", frames=64).frame_indices.tolist() == list(range(40))
    assert read(make(frames, masks), sampling="uniform", frames=4).frame_indices.tolist() == [0, 13, 26, 39]
    # No rate is declared: taken for a clip at 2 frames a second.
    assert len(read(make(frames, masks), sampling="video", frames=64).frame_indices) == 40
    assert len(read(make(frames, masks), sampling="video", frames=10).frame_indices) == 10


def test_what_does_not_fit_is_bad():
    frames, masks = world(np.random.default_rng(0), 4, 3, 6, 8)
    with pytest.raises(BadSample, match="frames of 6x8, but 6x9 according to the masks"):
        read(make(frames, np.ones((1, 3, 6, 9), bool)))
    with pytest.raises(BadSample, match="6x8, but 840x840 according to the metadata"):
        read(make(frames, masks, size=(840, 840)))
    with pytest.raises(BadSample, match="4 objects, room for 3"):
        read(make(frames, masks), sampling="uniform")
    with pytest.raises(BadSample, match="no mask for frame 2"):
        read(make(frames, masks[:1, :2]))
    clip = read(make(frames, masks))
    with pytest.raises(BadSample, match="3 frames of 3 objects; a batch has room for 2 of 3"):
        canvas.element(clip, canvas.DetailConfig(frames=2))


def test_targets_where_they_are_needed():
    frames = np.zeros((3, 6, 8, 3), np.uint8)
    masks = np.zeros((1, 3, 6, 8), bool)
    with pytest.raises(clips.Unsuitable, match="no target in the chosen frames"):
        read(make(frames, masks), target="some_frame")
    masks[0, 1, 2, 2] = True
    read(make(frames, masks), target="some_frame")
    with pytest.raises(clips.Unsuitable, match="no target in the first frame"):
        read(make(frames, masks), target="first_frame")
    masks[0, 0, 2, 2] = True
    assert read(make(frames, masks), target="first_frame").masks.sum() == 2


def test_sound():
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    samples = np.linspace(-0.5, 0.5, 24000).astype(np.float32)
    loud = make(frames, audio=wav(samples))
    clip = read(loud, sound="required")
    np.testing.assert_array_equal(clip.audio, samples)
    assert read(loud).audio is None and not read(loud).without_sound
    mute = read(make(frames), sound="optional")
    assert mute.audio is None and mute.without_sound
    with pytest.raises(BadSample, match="no sound"):
        read(make(frames), sound="required")
    silent = make(frames, audio=wav(np.zeros(100, np.float32)))
    with pytest.raises(BadSample, match="silent throughout"):
        read(silent, sound="required")
    assert len(read(silent, sound="optional").audio) == 100


def test_png_masks_lose_no_object(tmp_path):
    labels = np.array([[0, 1, 2], [3, 4, 0]], np.uint8)
    cv2.imwrite(str(tmp_path / "0.png"), labels)
    source = PngMasks((str(tmp_path / "0.png"),), (4, 2, 1))
    chosen = clips.select_objects(source, [0, 2])
    assert chosen.values == (4, 1)
    ref = make(np.zeros((1, 2, 3, 3), np.uint8))
    clip = read(ClipRef(**{**vars(ref), "masks": source}))
    np.testing.assert_array_equal(clip.masks[:, 0], np.stack([labels == v for v in (4, 2, 1)]))
