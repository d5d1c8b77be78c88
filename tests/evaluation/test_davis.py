"""DAVIS J and F: the specification's numbers, and equality with the definitions done by loops."""

import importlib.util
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import davis

_spec = importlib.util.spec_from_file_location("metric_oracles", pathlib.Path(__file__).parent / "oracles.py")
oracles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracles)


def rect(h, w, y0, y1, x0, x1):
    mask = np.zeros((h, w), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


SQUARE = rect(100, 100, 20, 60, 20, 60)
SMALL = rect(6, 6, 2, 4, 2, 4)
EMPTY = np.zeros((100, 100), np.uint8)


@pytest.mark.parametrize(
    "gt, pred, j, f",
    [
        (SQUARE, SQUARE, 1, 1),
        (SQUARE, rect(100, 100, 20, 60, 22, 62), 0.904762, 1),
        (SQUARE, rect(100, 100, 20, 60, 23, 63), 0.860465, 0.525),
        (SQUARE, rect(100, 100, 25, 65, 25, 65), 0.620253, 0.0625),
        (SQUARE, EMPTY, 0, 0),
        (EMPTY, EMPTY, 1, 1),
        (EMPTY, np.ones_like(EMPTY), 0, 1),
        (SMALL, rect(6, 6, 2, 4, 3, 5), 0.333333, 1),
        (SMALL, rect(6, 6, 0, 2, 0, 2), 0, 0.545455),
    ],
)
def test_numbers_of_the_specification(gt, pred, j, f):
    assert davis.jaccard(gt, pred) == pytest.approx(j, abs=5e-7)
    assert davis.contour(gt, pred) == pytest.approx(f, abs=5e-7)


def test_boundary_of_the_specification():
    expected = np.array([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_array_equal(davis.boundary_map(rect(4, 4, 2, 4, 2, 4)), expected)
    assert davis.boundary_map(SMALL).sum() == 8 and davis.boundary_map(rect(6, 6, 0, 2, 0, 2)).sum() == 3


@pytest.mark.parametrize("h, w, r", [(480, 854, 8), (720, 1280, 12), (1080, 1920, 18), (100, 100, 2), (6, 6, 1)])
def test_tolerance(h, w, r):
    assert davis.tolerance(h, w) == r


def test_bound_of_one_or_more_is_pixels():
    assert davis.tolerance(480, 854, 3.0) == 3
    shifted = rect(100, 100, 20, 60, 23, 63)
    assert davis.contour(SQUARE, shifted, bound=3.0) == 1 and davis.contour(SQUARE, shifted) < 1


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), h=st.integers(1, 26), w=st.integers(1, 26))
def test_equals_the_loops(seed, h, w):
    rng = np.random.default_rng(seed)
    bound = float(rng.choice([0.008, 0.06, 2.0, 3.0]))
    gt, pred = (oracles.blobs(rng, 2, h, w, rng.choice([0.05, 0.3, 0.7])) for _ in range(2))
    j, f = davis.jaccard(gt, pred), davis.contour(gt, pred, bound=bound)
    for t in range(2):
        np.testing.assert_array_equal(davis.boundary_map(gt[t]), oracles.boundary(gt[t]))
        assert j[t] == oracles.jaccard(gt[t], pred[t])
        assert f[t] == pytest.approx(oracles.contour(gt[t], pred[t], bound), abs=1e-12)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_large_frames_equal_a_dilation_of_the_whole_frame(seed):
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    h, w = int(rng.integers(200, 480)), int(rng.integers(200, 854))
    gt, pred = (np.zeros((h, w), bool) for _ in range(2))
    for mask in (gt, pred):
        for _ in range(int(rng.integers(0, 4))):
            y, x = int(rng.integers(0, h)), int(rng.integers(0, w))
            mask[y : y + int(rng.integers(1, 90)), x : x + int(rng.integers(1, 90))] = True
    bg, bp = davis.boundary_map(gt) > 0, davis.boundary_map(pred) > 0
    if not bg.any() or not bp.any():
        expected = float(bg.any() == bp.any())
    else:
        element = davis.disk(davis.tolerance(h, w)).astype(bool)
        precision = (bp & ndimage.binary_dilation(bg, element)).sum() / bp.sum()
        recall = (bg & ndimage.binary_dilation(bp, element)).sum() / bg.sum()
        expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert davis.contour(gt, pred) == pytest.approx(expected, abs=1e-12)


def test_void_pixels_count_for_neither():
    void = rect(100, 100, 0, 100, 40, 100).astype(bool)
    pred = rect(100, 100, 20, 60, 20, 90)
    assert davis.jaccard(SQUARE, pred, void) == 1 and davis.contour(SQUARE, pred, void) == 1
    assert davis.jaccard(SQUARE, pred) < 1


def test_any_leading_axes():
    pred = np.stack([SQUARE, EMPTY, rect(100, 100, 20, 60, 22, 62)]).reshape(3, 1, 100, 100)
    gt = np.broadcast_to(SQUARE, pred.shape)
    np.testing.assert_allclose(davis.jaccard(gt, pred)[:, 0], [1, 0, 0.9047619], atol=1e-7)
    np.testing.assert_allclose(davis.contour(gt, pred)[:, 0], [1, 0, 1])


def test_sizes_that_differ_are_named():
    with pytest.raises(InputError, match="prediction is 6x6 but the ground truth is 100x100"):
        davis.jaccard(SQUARE, SMALL)
    with pytest.raises(InputError, match=r"6x6.*100x100"):
        davis.contour(SQUARE, SMALL)


def test_statistics():
    values = np.array([1.0, 0.9, 0.8, 0.6, 0.5, 0.4, 0.2, 0.1])
    # Quarters of 8 frames end at frames 1, 3, 4 (2.75+..), 6, 8 -> [0..2] and [5..7], ends shared.
    stats = davis.statistics(values)
    assert stats["mean"] == pytest.approx(values.mean()) and stats["recall"] == 0.5
    assert stats["decay"] == pytest.approx(values[:3].mean() - values[5:].mean())
