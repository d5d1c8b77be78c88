"""Whole prediction trees against the readers of synthetic datasets in the real layouts."""

import functools
import json
import shutil

import cv2
import numpy as np
import pytest

from omnir1_jax.data import masks, mevis, reasonvos, refavs, revos
from omnir1_jax.data import refdavis as data_refdavis
from omnir1_jax.data.reader import make_reader
from omnir1_jax.data.refs import ClipRef, ImageFiles
from omnir1_jax.data.synthetic import writers
from omnir1_jax.data.synthetic.world import WorldConfig
from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import predictions, score_answers, score_masks
from omnir1_jax.evaluation import revos as revos_scores
from omnir1_jax.inference import scores
from tests.data import trees
from tests.evaluation import oracles

WORLD = WorldConfig(height=40, width=56, frames=5)


def truth(ref):
    return masks.decode_masks(ref.masks, range(len(ref.frames)))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    writers.revos(root / "revos", WORLD, 6, 1)
    writers.mevis(root / "mevis", WORLD, 6, 1)
    writers.refavs(root / "refavs", WORLD, 6, 1)
    return root


def predict(reader, root, change=lambda mask: mask):
    for position in range(len(reader)):
        ref = reader[position]
        union = change(truth(ref).any(0))
        predictions.write(str(root), ref.extra["video"], ref.extra["exp_id"], ref.frames.names, union)


def score_rows(reader, root, mode="clean"):
    return [score_masks.score_position(reader, root, mode, position) for position in range(len(reader))]


@pytest.mark.parametrize("name, split", [("revos", "valid"), ("revos", "train"), ("mevis", "valid_u")])
def test_perfect_and_empty_predictions(tree, tmp_path, name, split):
    """The split of ReVOS without foreground masks has J and F alone."""
    reader = {"revos": revos, "mevis": mevis}[name].open(str(tree / name), split)
    rules = score_masks.rules(reader)
    assert rules == ("revos" if split == "valid" else "mevis")
    predict(reader, tmp_path / "perfect")
    table = score_masks.table(rules, score_rows(reader, str(tmp_path / "perfect")))
    overall = table["overall"] if rules == "revos" else table
    assert overall["J"] == pytest.approx(100) and overall["J&F"] == pytest.approx(100) and table["missing"] == 0
    if rules == "revos":
        assert overall["A"] == pytest.approx(100) and overall["R"] == pytest.approx(100)
        compat = score_masks.table(rules, score_rows(reader, str(tmp_path / "perfect"), "compat"))
        # As published: every foreground pixel of a 0/255 prediction is a mistake.
        assert compat["overall"]["A"] < 99 and compat["overall"]["J"] == pytest.approx(100)
    (tmp_path / "none").mkdir()
    nothing = score_masks.table(rules, score_rows(reader, str(tmp_path / "none")))
    assert nothing["missing"] == len(reader)
    assert (nothing["overall"] if rules == "revos" else nothing)["J&F"] == 0


def test_rows_are_the_metrics_of_their_arrays(tree, tmp_path):
    reader = revos.open(str(tree / "revos"), "valid")
    predict(reader, tmp_path / "p", lambda mask: np.roll(mask, 3, -1))
    rows = score_rows(reader, str(tmp_path / "p"))
    for position, row in enumerate(rows):
        ref = reader[position]
        objects = truth(ref).astype(np.uint8)
        foreground = masks.decode_masks(ref.foreground, range(len(ref.frames)))[0].astype(np.uint8)
        pred = np.roll(objects.any(0), 3, -1)
        assert row.scores == revos_scores.score_expression(objects, pred, foreground)._asdict()
        assert row.sample_id == ref.sample_id and row.type_id == ref.extra["type_id"]


def test_what_is_wrong_is_named(tree, tmp_path):
    reader = revos.open(str(tree / "revos"), "valid")
    predict(reader, tmp_path / "p", lambda mask: mask[:, ::2])
    with pytest.raises(InputError, match=r"p/.*: the prediction is 5x20x56 but the ground truth is 5x40x56"):
        score_rows(reader, str(tmp_path / "p"))
    with pytest.raises(InputError, match="go to a server"):
        score_rows(mevis.open(str(tree / "mevis"), "valid"), str(tmp_path))


def test_reasonvos_scores_the_frames_that_have_an_annotation(tmp_path):
    """By the published script's way: the files of a mask's folder, the predictions of the same names, a flat mean."""
    trees.reasonvos(tmp_path / "data")
    reader, found = reasonvos.open(str(tmp_path / "data")), {"J": [], "F": []}
    for position in range(len(reader)):
        ref = reader[position]
        predicted = np.ones((len(ref.frames), 48, 64), bool)  # wrong where nothing is annotated
        predicted[list(ref.extra["annotated"])] = np.roll(truth(ref).any(0)[list(ref.extra["annotated"])], 3, -1)
        predictions.write(str(tmp_path / "p"), ref.extra["video"], ref.extra["exp_id"], ref.frames.names, predicted)
        folder = next((tmp_path / "data/Annotations").glob(f"*_{ref.extra['video']}_{ref.extra['obj_id']}"))
        gray = lambda path: cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        files = sorted(folder.glob("*.png"))
        place = tmp_path / "p" / ref.extra["video"] / ref.extra["obj_id"]
        pairs = [(gray(file) > 0, gray(place / file.name) > 0) for file in files]
        found["J"].append(np.mean([oracles.jaccard(*pair) for pair in pairs]))
        found["F"].append(np.mean([oracles.contour(*pair) for pair in pairs]))
        assert scores.score(ref, predicted) == pytest.approx({key: found[key][-1] for key in found})
    table = score_masks.table(score_masks.rules(reader), score_rows(reader, str(tmp_path / "p")))
    j, f = (100 * np.mean(found[key]) for key in ("J", "F"))
    assert table["J"] == pytest.approx(j) and table["J&F"] == pytest.approx((j + f) / 2) and 20 < j < 95
    assert table["count"] == 4


def predict_refavs(reader, root, change=lambda mask: mask):
    for position in range(len(reader)):
        ref = reader[position]
        uid = ref.sample_id.split("/", 2)[2]
        predictions.write(str(root), uid, f"fid_{ref.extra['fid']}", ref.frames.names, change(truth(ref).any(0)))


def test_refavs(tree, tmp_path):
    seen = refavs.open(str(tree / "refavs"), "test_s")
    predict_refavs(seen, tmp_path / "s")
    table = score_masks.score_refavs(seen, str(tmp_path / "s"), batch_videos=2)
    assert table["videos"] == len(seen) and table["batch_videos"] == 2
    assert table["J"] == pytest.approx(1) and table["F"] == pytest.approx(1)
    assert table["davis"]["J"] == pytest.approx(100)
    null = refavs.open(str(tree / "refavs"), "test_n")
    predict_refavs(null, tmp_path / "n")
    assert score_masks.score_refavs(null, str(tmp_path / "n"))["S"] == 0
    predict_refavs(null, tmp_path / "all", np.ones_like)
    assert score_masks.score_refavs(null, str(tmp_path / "all"))["S"] == 1
    with pytest.raises(InputError, match="is missing; predict an empty mask"):
        score_masks.score_refavs(null, str(tmp_path / "s"))


def test_refdavis_by_both_protocols(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.zeros((3, 24, 30), np.uint8)
    labels[:, 2:9, 3:9], labels[:, 12:20, 10:25], labels[:, 22:, 26:] = 1, 2, 255
    names = [f"{t:05d}" for t in range(3)]
    for folder, ending in (("JPEGImages/480p", "jpg"), ("Annotations_unsupervised/480p", "png")):
        (tmp_path / folder / "bear").mkdir(parents=True)
        for t, name in enumerate(names):
            picture = labels[t] if ending == "png" else rng.integers(0, 255, (24, 30, 3), np.uint8)
            cv2.imwrite(str(tmp_path / folder / "bear" / f"{name}.{ending}"), picture)
    record = {"frames": names, "expressions": {str(e): {"exp": f"e{e}"} for e in range(8)}}
    meta = tmp_path / "meta_expressions/valid/meta_expressions.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"videos": {"bear": record}}))
    reader = data_refdavis.open(str(tmp_path))
    for position in range(len(reader)):
        ref = reader[position]
        union = truth(ref).any(0)
        if ref.extra["exp_id"] == "5":  # annotator 1's second object is wrongly empty
            union &= False
        predictions.write(str(tmp_path / "p"), "bear", ref.extra["exp_id"], names, union)
    table = score_masks.table("refdavis", score_rows(reader, str(tmp_path / "p")))
    assert table["J"] == table["F"] == pytest.approx(100 * 7 / 8) and table["count"] == 8
    table = score_masks.score_refdavis_unsupervised(reader, str(tmp_path), str(tmp_path / "p"))
    # Three submissions are perfect, one has one of two objects; the void corner is no one's.
    assert table["J"] == table["F"] == pytest.approx((3 * 100 + 50) / 4) and table["submissions"] == 4
    shutil.rmtree(tmp_path / "p/bear/6")
    with pytest.raises(InputError, match=r"bear/6 is missing"):
        score_masks.score_refdavis_unsupervised(reader, str(tmp_path), str(tmp_path / "p"))


def question(dataset, sample_id, row):
    options, gold, extra = row
    frames = ImageFiles(("x.jpg",), ("0",))
    answer = options[gold] if options else extra.pop("answer")
    right = {"options": options, "answer": answer, "answer_index": gold}
    return ClipRef(dataset, sample_id, "qa", "q?", frames, extra=right | extra)


def questions(dataset, rows):
    items = [(str(i), i, row) for i, row in enumerate(rows)]
    return make_reader(dataset, "test", items, functools.partial(question, dataset), dataset)


def test_answers_by_dataset():
    options = ("A. cat", "B. dog")
    reader = questions(
        "videomme", [(options, i % 2, {"duration": d}) for i, d in enumerate(("short", "short", "long"))]
    )
    said = {"videomme/test/0": "A", "videomme/test/1": "A", "videomme/test/2": "The answer is A."}
    table = score_answers.score(reader, said)
    assert table["accuracy"] == pytest.approx(200 / 3) and table["duration"]["short"]["accuracy"] == 50
    assert table["unusable_samples"] == 0
    reader = questions("omnibench", [(("a cat", "a dog"), 1, {"audio_type": "music", "task_type": "x"})])
    assert score_answers.score(reader, {"omnibench/test/0": "it is a dog"})["audio_type"]["music"]["accuracy"] == 100
    reader = questions("avhbench", [(("Yes", "No"), 0, {"task": "AV Matching", "video_id": "v"})])
    assert score_answers.score(reader, {"avhbench/test/0": "yes"})["all"]["accuracy"] == 100
    reader = questions("videor1", [((), None, {"answer": "12", "problem_type": "numerical"})])
    assert score_answers.score(reader, {"videor1/test/0": "<answer>12</answer>"})["score"] == 100


def test_answers_that_are_missing_are_named():
    reader = questions("mvbench", [(("a", "b"), 0, {"task": "t"})] * 2)
    with pytest.raises(InputError, match="1 of 2 questions have no completion, first mvbench/test/1"):
        score_answers.score(reader, {"mvbench/test/0": "a"})
    with pytest.raises(InputError, match="no answers to score for revos"):
        score_answers.score(questions("revos", [(("a", "b"), 0, {})]), {})
