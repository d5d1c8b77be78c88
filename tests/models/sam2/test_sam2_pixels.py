"""Resizing, lifting and hole filling."""

import jax
import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.models import sam2
from omnir1_jax.models.sam2.hiera import bicubic_matrix
from omnir1_jax.models.sam2.pixels import MEAN, STD


@pytest.mark.parametrize("size", [(48, 90), (200, 100), (64, 64)])
def test_preprocess_equals_torch_on_8_bit_frames(size):
    """Torch resizes 8-bit images in two rounded passes, which may be off by a level of 255 from one rounded pass."""
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    got = np.asarray(jax.jit(sam2.preprocess, static_argnums=1)(frames, 64))
    x = torch.tensor(frames).permute(0, 3, 1, 2)
    resized = F.interpolate(x, (64, 64), mode="bilinear", align_corners=False, antialias=True)
    levels = got * np.array(STD) * 255 + np.array(MEAN) * 255
    off = np.abs(levels - resized.permute(0, 2, 3, 1).numpy())
    assert off.max() < 1.01 and np.mean(off > 0.5) < (0.2 if size != (64, 64) else 1e-9)
    assert np.abs(levels - np.round(levels)).max() < 1e-3
    exact = F.interpolate(x.float(), (64, 64), mode="bilinear", align_corners=False, antialias=True)
    assert np.abs(levels - exact.permute(0, 2, 3, 1).numpy()).max() < 0.501


@pytest.mark.parametrize("size", [(37, 90), (480, 640)])
def test_lift_masks_equals_torch(size):
    logits = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float32)
    expected = F.interpolate(torch.tensor(logits), size, mode="bilinear", align_corners=False).numpy()
    got = jax.jit(sam2.lift_masks, static_argnums=(1, 2))(logits, *size)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("size", "out"), [(7, 64), (14, 256), (14, 7), (5, 5)])
def test_bicubic_matrix_equals_torch(size, out):
    rows = torch.eye(size)[None, None]
    expected = F.interpolate(rows, (size, out), mode="bicubic", align_corners=False)[0, 0].T
    np.testing.assert_allclose(bicubic_matrix(size, out), expected, atol=1e-5)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.floats(0.3, 0.8))
def test_fill_holes(seed, area, share):
    """Against scipy's labels of the background, 8-connected."""
    rng = np.random.default_rng(seed)
    logits = (rng.uniform(size=(2, 15, 12)) - share).astype(np.float32)
    got = sam2.fill_holes(logits, area)
    for mask, filled in zip(logits, got, strict=True):
        labels, count = scipy.ndimage.label(mask <= 0, np.ones((3, 3)))
        expected = mask.copy()
        for label in range(1, count + 1):
            if (labels == label).sum() <= area:
                expected[labels == label] = 0.1
        np.testing.assert_array_equal(filled, expected)
