"""ReVOS, MeViS and Ref-DAVIS17: per-expression scores and how they are aggregated."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import davis, mevis, refdavis, revos


def bits(text):
    return np.array([[int(c) for c in row] for row in text.split("/")], np.uint8)[None]


GT, PRED, FG = bits("1100/0000"), bits("1010/0001"), bits("1110/0000")


def test_revos_numbers_of_the_specification():
    assert revos.robustness(GT, PRED, FG)[0] == pytest.approx(0.3333336, abs=1e-7)
    assert revos.accuracy(GT, PRED)[0] == 0.625
    assert revos.robustness(GT, PRED * np.uint8(255), FG, "compat")[0] == 0
    assert revos.accuracy(GT, PRED * np.uint8(255), "compat")[0] == 0.5
    # Clean scores do not care how foreground is written.
    assert revos.robustness(GT, PRED * np.uint8(255), FG)[0] == pytest.approx(0.3333336, abs=1e-7)
    assert revos.accuracy(GT * 2, PRED * np.uint8(255))[0] == 0.625


def test_revos_compat_wraps_on_overlaps():
    overlap, pred = bits("2000"), bits("1000")
    assert revos.robustness(overlap, pred, bits("1111"))[0] == 1
    # 1 - 2 is 255 in uint8: one predicted pixel counts 255 false positives.
    assert revos.robustness(overlap, pred, bits("1111"), "compat")[0] == 0
    assert revos.robustness(overlap, pred, np.ones((1, 1, 4), np.uint8).repeat(200, 2)[..., :4], "compat")[0] == 0
    wide = np.zeros((1, 1, 1000), np.uint8)
    wide[..., 0] = 1
    value = revos.robustness(2 * wide, wide, np.ones_like(wide), "compat")[0]
    assert value == pytest.approx(1 - 255 / 1000, abs=1e-6)


def test_revos_expression_sums_objects():
    objects = np.stack([bits("1100/0000"), bits("0110/0000")])
    pred = bits("1110/0000")
    clean = revos.score_expression(objects, pred, pred)
    assert clean == pytest.approx((1, 1, 1, 1))
    compat = revos.score_expression(objects, pred, pred, "compat")
    assert pytest.approx(7 / 8) == compat.A and compat.R == 0
    none = revos.score_expression(objects[:0], pred, pred)
    assert none.J == 0 and pytest.approx(5 / 8) == none.A


def test_revos_aggregation():
    results = [
        (revos.REFERRING, revos.Scores(0.333333, 0.5, 1.0, 0.0)),
        (revos.REFERRING, revos.MISSING),
        (revos.REASONING, revos.Scores(0.8, 0.9, 0.7, 0.6)),
        (revos.NO_TARGET, revos.Scores(1.0, 1.0, 1.0, 1.0)),
    ]
    table = revos.aggregate(results)
    assert table["referring"]["J"] == pytest.approx(16.665)  # 33.33 rounded first, then halved
    assert table["referring"]["F"] == 25 and table["reasoning"]["J&F"] == pytest.approx(85)
    assert table["overall"]["J"] == pytest.approx((16.665 + 80) / 2)
    assert table["overall"]["J&F"] == pytest.approx(((16.665 + 80) / 2 + (25 + 90) / 2) / 2)
    assert table["count"] == {"referring": 2, "reasoning": 1}
    assert math.isnan(revos.aggregate([])["overall"]["J"])
    alone = revos.aggregate(results[:1])
    assert math.isnan(alone["reasoning"]["J"]) and alone["overall"]["F"] == 50


def test_revos_sizes_that_differ_are_named():
    with pytest.raises(InputError, match="1x2x4"):
        revos.score_expression(np.zeros((1, 1, 2, 3), np.uint8), PRED, FG)
    with pytest.raises(InputError, match=r"foreground.*1x2x3"):
        revos.robustness(GT, PRED, FG[..., :3])


def test_mevis_flat_mean():
    table = mevis.aggregate([mevis.Scores(0.5, 0.7), mevis.MISSING, mevis.Scores(1.0, 0.8)])
    assert table == pytest.approx({"J": 50, "F": 50, "J&F": 50, "count": 3})
    objects = np.stack([bits("1100/0000"), bits("0010/0000")])
    assert mevis.score_expression(objects, bits("1110/0000")) == (1, 1)
    assert mevis.score_expression(objects[:0], bits("0000/0000")) == (1, 1)
    assert math.isnan(mevis.aggregate([])["J"])


def test_refdavis_expressions_of_each_annotator():
    assert refdavis.submission_expressions(8) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    with pytest.raises(InputError, match="7 expressions"):
        refdavis.submission_expressions(7)


def test_label_map_is_argmax_over_background():
    scores = np.zeros((2, 1, 1, 4), np.float32)
    scores[0, 0, 0] = [0.9, 0.4, 0.05, 0.5]
    scores[1, 0, 0] = [0.2, 0.6, 0.08, 0.5]
    np.testing.assert_array_equal(refdavis.label_map(scores)[0, 0], [1, 2, 0, 1])
    np.testing.assert_array_equal(refdavis.label_map((scores > 0.3).astype(np.uint8))[0, 0], [1, 1, 0, 1])
    assert refdavis.label_map(scores[:0]).shape == (1, 1, 4)


def _random_video(rng, objects, proposals):
    shape = (3, 16, 20)
    gt = rng.integers(0, objects + 1, (3, 4, 5)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    gt[0, 0, :objects] = np.arange(1, objects + 1)
    labels = rng.integers(0, proposals + 1, (3, 8, 10)).repeat(2, 1).repeat(2, 2).astype(np.uint8)
    void = rng.random(shape) < 0.1
    void[0, 0, :objects] = False
    return np.where(void, np.uint8(255), gt), labels


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), objects=st.integers(1, 3), proposals=st.integers(0, 4))
def test_hungarian_equals_the_best_permutation(seed, objects, proposals):
    rng = np.random.default_rng(seed)
    annotation, labels = _random_video(rng, objects, proposals)
    j, f = refdavis.score_video(annotation, labels)
    void = annotation == 255
    count = max(objects, int(labels.max()))
    best = max(
        sum(
            davis.jaccard(annotation == g + 1, labels == p + 1, void).mean()
            + davis.contour(annotation == g + 1, labels == p + 1, void).mean()
            for g, p in enumerate(order)
        )
        for order in itertools.permutations(range(count), objects)
    )
    assert j.shape == f.shape == (objects, 3)
    assert (j.mean(1) + f.mean(1)).sum() == pytest.approx(best)


def test_unsupervised_aggregation_and_its_errors():
    gt = np.zeros((2, 8, 8), np.uint8)
    gt[:, 1:4, 1:4], gt[:, 5:7, 5:7], gt[:, 0, :] = 1, 2, 255
    swapped = np.select([gt == 1, gt == 2], [2, 1], 0).astype(np.uint8)
    perfect, half = refdavis.score_video(gt, swapped), refdavis.score_video(gt, np.where(gt == 1, gt, 0))
    table = refdavis.aggregate_unsupervised([[perfect], [half]])
    assert table["J"] == pytest.approx(75) and table["J&F"] == pytest.approx(75) and table["J-recall"] == 75
    assert table["submissions"] == 2
    with pytest.raises(InputError, match="first frame has no object"):
        refdavis.score_video(np.zeros_like(gt), gt)
    with pytest.raises(InputError, match="25 proposals"):
        refdavis.score_video(gt, np.full_like(gt, 25))
    with pytest.raises(InputError, match="bear: the prediction is 1x8x8 but the ground truth is 2x8x8"):
        refdavis.score_video(gt, gt[:1], "bear")
    with pytest.raises(InputError, match="without videos"):
        refdavis.aggregate_unsupervised([[]])
