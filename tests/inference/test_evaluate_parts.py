"""The parts of an evaluation: frames chosen in place of the plan's, masks lifted, the log of what is done."""

import json
from unittest import mock

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from omnir1_jax import evaluate
from omnir1_jax.data.refs import ClipRef, ImageFiles
from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import predictions
from omnir1_jax.inference import from_checkpoint, load, report, samples, segment
from omnir1_jax.inference.answer import EvalConfig, Query, choose
from omnir1_jax.inference.store import Store
from omnir1_jax.models import sam2
from omnir1_jax.reporting import pictures
from omnir1_jax.tasks import TASKS
from omnir1_jax.text import readers
from omnir1_jax.training import export
from tests.inference import small


def chosen(rule, counts, valid=(False, True), oracle=False, room=24, count=4, boxes=None):
    """Frames of clips of `counts` frames whose plan's pieces are `valid`."""
    counts = jnp.asarray(counts)
    pieces = jnp.broadcast_to(jnp.asarray(valid), (len(counts), len(valid)))
    plan = readers.Plan(*[None] * len(readers.Plan._fields))._replace(valid=pieces)
    batch = Query(policy=None, number=jnp.arange(len(counts)), frame_valid=jnp.arange(room) < counts[:, None])
    batch = batch.replace(boxes=boxes)
    return jax.device_get(choose(EvalConfig(TASKS["vos"], rule, oracle), plan, batch, count, jax.random.key(0)))


def test_frames_of_the_baselines_lie_in_the_clip_and_carry_the_first_valid_description():
    uniform = chosen("uniform", [8, 12, 2, 1])
    frames = [f[v].tolist() for f, v in zip(uniform.frame, uniform.valid)]
    assert frames == [[1, 3, 5, 7], [1, 4, 7, 10], [0, 1], [0]]
    assert (uniform.piece == uniform.valid).all()
    first = chosen("first", [8])
    assert first.frame[0].tolist() == [0, 0, 0, 0] and first.valid[0].tolist() == [True, False, False, False]
    random = chosen("random", [8] * 40)
    assert all(sorted(set(row)) == list(row) and row[-1] < 8 for row in random.frame)
    assert len({tuple(row) for row in random.frame}) > 20
    assert not chosen("random", [8], (False, False)).valid.any()
    # Objects of 3 and 2 frames, the second alone in frame 2; nothing is true of the second clip.
    boxes = np.full((2, 2, 24, 4), -1.0)
    boxes[0, 0, [3, 5, 6]] = [[0, 0, 4, 4], [0, 0, 9, 9], [0, 0, 5, 5]]
    boxes[0, 1, [2, 3]] = [0, 0, 1, 1], [0, 0, 8, 2]
    best = chosen("best", [8, 8], boxes=jnp.asarray(boxes), count=3)
    assert [f[v].tolist() for f, v in zip(best.frame, best.valid)] == [[3, 5, 6], []]
    few = chosen("random", [3], (False, False), oracle=True)  # true boxes need no description
    assert few.frame[0][few.valid[0]].tolist() == [0, 1, 2]


def test_rules_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match="--keyframes"):
        EvalConfig(TASKS["vos"], "worst")
    with pytest.raises(InputError, match="video segmentation alone"):
        EvalConfig(TASKS["refavs"], "uniform")
    with pytest.raises(InputError, match="--description"):
        EvalConfig(TASKS["vos"], description="own")
    with pytest.raises(InputError, match="System 2"):
        EvalConfig(TASKS["qa"], description="query")


def test_lifted_masks_are_those_of_each_clip_by_itself():
    rng = np.random.default_rng(0)
    sizes = [(70, 96), (33, 120), (64, 64)]
    logits = rng.normal(size=(3, 2, 4, 16, 16)).astype(np.float32)
    canvas = segment.canvas(sizes)
    assert canvas == (128, 128)
    original = jnp.asarray([size[::-1] for size in sizes])
    lifted = np.asarray(segment.lift(jnp.asarray(logits), original, canvas))
    for own, found, (height, width) in zip(logits, lifted, sizes):
        wanted = np.asarray(sam2.lift_masks(jnp.asarray(own), height, width) > 0).any(axis=0)
        assert wanted.mean() > 0.5
        assert (wanted == found[:, :height, :width]).mean() > 0.9999


def test_few_lengths_serve_all_clips():
    lengths = [samples.length(n) for n in range(1, 200)]
    assert all(size >= n for n, size in enumerate(lengths, 1)) and len(set(lengths)) == 16
    assert max(size / n for n, size in enumerate(lengths, 1)) < 1.5


def test_items_are_read_ahead_in_order_and_no_further_than_asked():
    started = []
    stream = samples.ahead(lambda x: started.append(x) or x * x, range(50), 3, 4)
    assert [next(stream) for _ in range(5)] == [0, 1, 4, 9, 16] and len(started) <= 10
    assert list(stream) == [x * x for x in range(5, 50)]


def test_a_log_cut_short_loses_its_last_line_alone(tmp_path):
    with Store(tmp_path, {"options": {"seed": 1}, "task": ("a", 2)}) as store:
        store.add({"position": 3, "scores": {"J": 0.5}})
        store.add({"position": 4, "scores": {"J": float("nan")}})
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"position": 5, "sco')
    with Store(tmp_path, {"options": {"seed": 1}, "task": ["a", 2]}) as store:
        assert sorted(store.lines) == [3, 4] and store.lines[4]["scores"] == {"J": None}
        store.add({"position": 5})
    assert [json.loads(row)["position"] for row in (tmp_path / "results.jsonl").read_text().splitlines()] == [3, 4, 5]
    with pytest.raises(InputError, match=r"holds results with --seed 1, this one has 3, and task \[.*2\], this one"):
        Store(tmp_path, {"options": {"seed": 3}, "task": "b"})
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="line 1 is damaged"):
        Store(tmp_path, {"options": {"seed": 1}, "task": ["a", 2]})


def test_pictures_of_long_videos_tell_the_frames_own_numbers(tmp_path, monkeypatch):
    image = np.full((24, 32, 3), 90, np.uint8)
    names = [f"{t:05d}" for t in range(150)]
    for name in names:
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), image)
    predictions.write(str(tmp_path / "predictions"), "v", "0", names, np.zeros((150, 24, 32), bool))
    frames = ImageFiles(tuple(str(tmp_path / f"{name}.jpg") for name in names), tuple(names))
    ref = ClipRef("mevis", "mevis/valid/v/0", "vos", "it", frames, extra={"video": "v", "exp_id": "0"})
    line = dict(position=0, sample_id="v/0", query="it", completion="", failures=[], fault=None, predicted=True)
    line["keyframes"] = [dict(frame=t, description="it", answer="", boxes=[]) for t in (3, 148)]
    drawn = []
    monkeypatch.setattr(report.pictures, "draw", lambda example: drawn.append(example) or image)
    assert report._picture(tmp_path, mock.Mock(spec=samples.Benchmark, reader=[ref], task=TASKS["vos"]), line)
    (example,) = drawn
    assert 64 <= len(example.clip.frames) <= 66 and example.clip.numbers[-1] == 149
    told = [pictures._when(example.clip, keyframe.frame) for keyframe in example.keyframes]
    assert told == ["frame 3", "frame 148"]


def test_frozen_weights_ground_beside_trained_ones(tmp_path):
    """The weights before training, of a run; those that the config names, of a directory of weights."""
    config = small.config(tmp_path / "base", lora_rank=4)
    workdir, _ = small.workdir(tmp_path / "run", config)
    kernel = lambda tree: np.asarray(tree["layers"]["up"]["kernel"])
    base = kernel(load.load_systems("toy", config).policy["text"])
    own, two = load.load_systems(str(workdir)), load.load_systems(str(workdir), system2="frozen")
    np.testing.assert_array_equal(kernel(two.policy["text"]), kernel(own.policy["text"]))
    np.testing.assert_array_equal(kernel(two.frozen.reference), base)
    np.testing.assert_array_equal(kernel(own.frozen.reference), kernel(own.policy["text"]))
    assert np.abs(kernel(own.policy["text"]) - base).max() > 0.01
    chosen = from_checkpoint.config_of(str(workdir))
    loaded = from_checkpoint.load(str(workdir), chosen, segmenter=False)
    export.save(epath.Path(tmp_path / "weights"), chosen, loaded, loaded.trainable, step=loaded.step, flag="target")
    again = load.load_systems(str(tmp_path / "weights"), config, "frozen")
    np.testing.assert_allclose(kernel(again.policy["text"]), kernel(own.policy["text"]), atol=1e-6)
    np.testing.assert_array_equal(kernel(again.frozen.reference), base)
    assert config.thinker.path == str(tmp_path / "base" / "thinker")


def test_tables_are_shown_side_by_side():
    results = {
        "plan": {"table": {"overall": {"J": 50.0, "F": 40.0}, "missing": 1}, "items": 3, "bad": [{}]},
        "first": {"table": {"overall": {"J": 1.0}}, "items": 3, "bad": []},
    }
    lines = evaluate.show(results).splitlines()
    assert lines[0].split() == ["plan", "first"] and lines[1].split() == ["overall", "/", "J", "50.00", "1.00"]
    assert lines[2].split() == ["overall", "/", "F", "40.00"] and lines[-1].split() == ["unreadable", "1", "0"]
    assert len({len(line.rstrip()) for line in lines[:2]}) == 1
    results["plan"] |= {"notes": ["a task is left out"]}
    results["first"] |= {"other_scoring": {"scoring": "official", "paper": {"overall J": 0.5, "overall F": 2}}}
    output = evaluate.show(results).splitlines()
    assert output[: len(lines)] == lines
    assert output[len(lines) :] == [
        "plan: a task is left out",
        "first: scoring official: overall J 0.50, overall F 2.00",
    ]
