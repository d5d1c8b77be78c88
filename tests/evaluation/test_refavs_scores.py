"""Ref-AVS J, F and S: the specification's numbers, the threshold sweep done naively, and torch's own."""

import importlib.util
import pathlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import refavs

_spec = importlib.util.spec_from_file_location("metric_oracles", pathlib.Path(__file__).parent / "oracles.py")
oracles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracles)


def example():
    gt = np.zeros((2, 4, 4), bool)
    gt[0, :2, :2] = True
    pred = np.zeros((2, 4, 4), np.uint8)
    pred[0, :2, :3] = 1
    pred[1, 3, 3] = 1
    return gt, pred


def test_numbers_of_the_specification():
    gt, pred = example()
    scores = refavs.score_batch(refavs.binary_logits(pred), gt)
    assert scores.J == pytest.approx((4 / 6 + 15 / 16) / 2, abs=1e-6) == pytest.approx(0.802083, abs=1e-6)
    assert pytest.approx(0.722222, abs=1e-6) == scores.F
    assert pytest.approx(0.467707, abs=1e-6) == scores.S
    raw = refavs.score_batch(pred.astype(np.float32), gt)
    assert pytest.approx(0.125, abs=1e-6) == raw.J


def test_thresholds_are_torchs():
    np.testing.assert_array_equal(refavs.THRESHOLDS, torch.linspace(0, 1 - 1e-10, 255).numpy())


def _random(seed, n=3, h=24, w=20):
    rng = np.random.default_rng(seed)
    gt = oracles.blobs(rng, n, h, w, 0.3)
    logits = rng.normal(0, rng.choice([0.5, 3.0, 15.0]), (n, h, w)).astype(np.float32) + 2 * gt
    if rng.random() < 0.3:
        logits = refavs.binary_logits(logits > 1)
    if rng.random() < 0.3:  # probabilities that hit thresholds exactly
        p = rng.choice(refavs.THRESHOLDS[1:-1].astype(np.float64), (n, h, w))
        logits = np.log(p / (1 - p)).astype(np.float32)
    return logits.astype(np.float32), gt


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_histogram_equals_the_sweep(seed):
    logits, gt = _random(seed)
    prob = refavs._sigmoid(logits)
    assert refavs.f_score(prob, gt) == pytest.approx(oracles.refavs_f(prob, gt, refavs.THRESHOLDS), abs=2e-6)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_torch_arithmetic(seed):
    logits, gt = _random(seed)
    scores = refavs.score_batch(logits, gt)
    s, g = torch.sigmoid(torch.from_numpy(logits)), torch.from_numpy(gt).int()
    p = (s > 0.4).int()
    inter, union = (p * g).sum((1, 2)), torch.maximum(p, g).sum((1, 2))
    empty = g.sum((1, 2)) == 0
    inter[empty], union[empty] = ((1 - g) * (1 - p)).sum((1, 2))[empty], g[0].numel()
    assert pytest.approx((inter / (union + 1e-7)).mean().item(), abs=1e-3) == scores.J
    assert pytest.approx(torch.sqrt((s > 0.5).sum() / s.numel()).item(), abs=1e-4) == scores.S


def test_empty_ground_truth():
    gt = np.zeros((2, 4, 4), bool)
    logits = refavs.binary_logits(np.eye(4)[None].repeat(2, 0))
    assert refavs.score_batch(logits, gt) == pytest.approx((0.75, 0.0, 0.5))


def test_ground_truth_is_any_touched_pixel():
    gt = np.zeros((1, 512, 512), np.uint8)
    gt[0, 100, 100] = 255
    small = refavs.resize_mask(gt)
    assert small.shape == (1, 256, 256) and small.sum() == 1 and small[0, 50, 50]
    assert refavs.resize_mask(np.ones((2, 300, 200), np.uint8)).all()
    torch_gt = torch.zeros(1, 1, 37, 61)
    torch_gt[..., 5:9, 11:30] = 1
    expected = torch.nn.functional.interpolate(torch_gt, (256, 256), mode="bilinear") > 0
    np.testing.assert_array_equal(refavs.resize_mask(torch_gt[0].numpy())[0], expected[0, 0].numpy())


def test_last_batch_is_unweighted():
    gt, _ = example()
    good = (refavs.binary_logits(gt[:1]), gt[:1])
    bad = (refavs.binary_logits(~gt[:1]), gt[:1])
    table = refavs.aggregate([good] * 4 + [bad], batch_videos=4)
    assert table["J"] == pytest.approx(0.5, abs=1e-6) and table["videos"] == 5 and table["batch_videos"] == 4
    assert table["F"] == pytest.approx((1 + 1.3 * 0.25 / (0.3 * 0.25 + 1)) / 2, abs=1e-6)


def test_sizes_that_differ_are_named():
    with pytest.raises(InputError, match=r"2x4x4.*2x4x3|2x4x3.*2x4x4"):
        refavs.score_batch(np.zeros((2, 4, 3), np.float32), np.zeros((2, 4, 4), bool))
