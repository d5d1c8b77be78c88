"""Frame sampling: the specification's numbers, torch's linspace, the training loader's rule."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.data import frame_sampling


def number(*args, **bounds):
    return len(frame_sampling.video_frame_indices(*args, **bounds))


@pytest.mark.parametrize("total, fps, n", [(300, 30.0, 20), (299, 29.97, 18)])
def test_numbers_of_the_specification(total, fps, n):
    indices = frame_sampling.video_frame_indices(total, fps)
    assert len(indices) == n and indices[0] == 0 and indices[-1] == total - 1


def test_bounds():
    assert number(30 * 3600, 30.0) == 768
    assert number(30 * 3600, 30.0, maximum=65) == 64
    assert number(10, 30.0) == 4
    assert number(3, 30.0) == 2 and number(1, 30.0) == 1
    np.testing.assert_array_equal(frame_sampling.video_frame_indices(1, 30.0), [0])


def test_pixel_budget():
    total = 16384 * 28 * 28
    assert frame_sampling.frame_pixel_budget(20, total) == 768 * 28 * 28
    assert frame_sampling.frame_pixel_budget(64, total) == total / 64 * 2
    assert frame_sampling.frame_pixel_budget(768, total) == int(1.05 * 128 * 28 * 28)


@settings(max_examples=300)
@given(total=st.integers(2, 50_000), n=st.integers(2, 384))
def test_indices_are_torchs(total, n):
    theirs = torch.linspace(0, total - 1, 2 * n)
    ours = frame_sampling.linspace32(total - 1, 2 * n)
    # Another processor may round torch's last bit otherwise; the index may then differ only where it is a tie.
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=3e-7)
    differs = np.round(ours) != theirs.round().numpy()
    assert (np.abs(ours[differs] % 1 - 0.5) < 0.01).all()


@settings(max_examples=200)
@given(length=st.integers(1, 400), seed=st.integers(0, 99), epoch=st.integers(0, 3), index=st.integers(0, 9))
def test_training_rule(length, seed, epoch, index):
    frames = frame_sampling.training_frames(length, frame_sampling.generator(seed, epoch, index))
    again = frame_sampling.training_frames(length, frame_sampling.generator(seed, epoch, index))
    np.testing.assert_array_equal(frames, again)
    if length <= 16:
        np.testing.assert_array_equal(frames, np.arange(length))
    else:
        assert 16 <= len(frames) <= 24 and frames[0] == 0 and frames[-1] == length - 1
        exact = np.array([k * (length - 1) // (len(frames) - 1) for k in range(len(frames))])
        # numpy's linspace may land just below a whole number and is then cut to the one before.
        assert ((frames == exact) | (frames == exact - 1)).all() and (frames == exact).mean() > 0.7


def test_every_number_is_drawn_and_draws_differ():
    numbers = {
        len(frame_sampling.training_frames(100, frame_sampling.generator(0, e, i)))
        for e in range(20)
        for i in range(20)
    }
    assert numbers == set(range(16, 25))
    first = [
        frame_sampling.generator(*key).integers(2**62)
        for key in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0), (0, 0, 0, 1))
    ]
    assert len(set(first)) == 5


def test_objects_keep_their_order():
    np.testing.assert_array_equal(frame_sampling.training_objects(3, frame_sampling.generator(0, 0, 0)), [0, 1, 2])
    assert len(frame_sampling.training_objects(0, frame_sampling.generator(0, 0, 0))) == 0
    chosen = {tuple(frame_sampling.training_objects(5, frame_sampling.generator(0, 0, i))) for i in range(200)}
    assert len(chosen) == 10 and all(list(c) == sorted(set(c)) and len(c) == 3 for c in chosen)
