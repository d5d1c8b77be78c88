"""From rollouts to examples: every family, text as it was said, boxes in the clip's own pixels, failures by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omnir1_jax.config.sections import Grpo
from omnir1_jax.models.qwen_omni.sample import Sampling
from omnir1_jax.reporting import pictures
from omnir1_jax.rl.config import Frozen, Models
from omnir1_jax.rl.step import Rollout
from omnir1_jax.systems.segmenters import Masks
from omnir1_jax.tasks import TASKS
from omnir1_jax.text.bpe import bpe_tables
from omnir1_jax.text.rules import Limits
from omnir1_jax.text.vocab import byte_vocab
from omnir1_jax.training import rollout_log
from tests.rl import small

PLAN = (
    '<think>a</think><answer>{"start_time": "00:00.00", "end_time": "00:00.20", "description": "the R\\u00e9d one"}'
    '{"start_time": "00:01.50", "end_time": "00:02.00", "description": "left"}</answer>'
)
WORDS = {
    "vos": [PLAN, "no answer", "<answer>{}</answer>", "<answer></answer>"],
    "refavs": ["<think>a</think> <answer>red one</answer>", "<answer> </answer>", "none", "<answer>ring</answer>"],
    "refcocog": ['<think>a</think><answer>{"bbox_2d": [4, 8, 20, 24], "points_1": [5, 9]}</answer>', "none", "{}", ""],
    "qa": ["<answer>A</answer>", "<answer>B</answer>", "<answer>C</answer>", "nothing"],
}
BOXES = ['[{"bbox_2d": [10, 10, 60, 50], "label": "x"}]', '{"bbox_2d": [1, 2, 3]} {"bbox_2d": [40, 5, 80, 55]}', "none"]


@functools.cache
def told(family: str, clips: int = 0):
    """Two prompts, WORDS by System 1 in order and in reverse, BOXES by System 2, random masks."""
    eos = small.step_config().sampling.eos
    config = small.step_config(
        sampling=Sampling(192, eos, 0),
        completion_bytes=384,
        grpo=Grpo("centred"),
        limits=Limits(3, 32),
    )
    batch = small.batches(family, 2)[0]
    words = small.tokenizer()
    tables = byte_vocab(words), bpe_tables(words), None
    frozen = Frozen({"vision": None}, None, None, *tables)
    task, models = TASKS[family], Models(None, None, small.Scripted(BOXES))
    said = small.spoken([WORDS[family], WORDS[family][::-1]], 192)
    masks = None
    if family == "vos":
        shape = (2, small.GROUP, *batch.truth.shape[1:])
        masks = Masks(jax.random.bernoulli(jax.random.key(0), 0.2, shape), jnp.zeros(()))

    # Compiled for the moment, not for speed.
    @functools.partial(
        jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    )
    def judge():
        reading = task.read(frozen, config, batch, said)
        found = task.ground(models, frozen, config, batch, reading)
        return reading, found, task.reward(config, batch, said, reading, found, masks)

    reading, found, rewards = judge()
    rollout = Rollout(said, reading, found, masks, rewards)
    made = rollout_log.examples(task, batch, rollout, ["s0", "s1"], ["q0", "q1"], small.tokenizer(), config, clips)
    return batch, rollout, made


@pytest.mark.parametrize("family", WORDS)
def test_every_completion_is_told_with_its_numbers(family):
    _, rollout, made = told(family, 3)
    assert [e.completion for e in made] == WORDS[family] + WORDS[family][::-1]
    assert [(e.sample_id, e.query, e.family) for e in made[::4]] == [("s0", "q0", family), ("s1", "q1", family)]
    total = np.asarray(rollout.rewards.total)
    np.testing.assert_allclose([e.reward for e in made], total.reshape(-1))
    np.testing.assert_allclose([e.advantage for e in made], (total - total.mean(1, keepdims=True)).ravel(), atol=1e-5)
    for name, value in rollout.rewards.terms.items():
        np.testing.assert_allclose([e.rewards[name] for e in made], np.asarray(value).reshape(-1), err_msg=name)
    # What the step counts is named in at least one completion, and nothing else is.
    counted = {name for name, value in rollout.rewards.failures.items() if value.any()}
    assert counted == {kind for e in made for kind in e.failures}


def test_a_plan_is_told_piece_by_piece_and_frame_by_frame():
    batch, _, made = told("vos", 3)
    scale = np.asarray(batch.sharp.scale[0])
    first = made[0]
    assert [tuple(piece) for piece in first.pieces] == [
        (0.0, 0.2, (0, 0), "the Réd one", None),
        (1.5, 2.0, (3, 4), "left", None),
    ]
    assert [(k.frame, k.description) for k in first.keyframes] == [(0, "the Réd one"), (3, "left"), (4, "left")]
    assert [k.answer for k in first.keyframes] == [BOXES[0], BOXES[0], BOXES[1]]
    want = np.array([10, 10, 60, 50]) / np.tile(scale, 2)
    np.testing.assert_allclose(first.keyframes[0].boxes, [want], rtol=1e-5)
    np.testing.assert_allclose(first.keyframes[2].boxes, [np.array([40, 5, 80, 55]) / np.tile(scale, 2)], rtol=1e-5)
    assert made[1].failures == ("plan/no_answer",) and made[3].failures == ("plan/no_piece",)
    assert made[2].pieces[0].frames is None and made[2].pieces[0].failure == "missing_field"
    assert made[2].failures == ("plan/missing_field",)


def test_clips_show_what_the_systems_saw():
    batch, rollout, made = told("vos", 3)
    total = np.asarray(rollout.rewards.total)
    seen = [i for i, e in enumerate(made) if e.clip is not None]
    assert seen == sorted({int(total[0].argmax()), 4 + int(total[1].argmax()), int(total[0].argmin())})
    clip = made[seen[0]].clip
    count = int(batch.frame_valid[0].sum())
    assert clip.size == (84, 56) == tuple(int(x) for x in batch.sharp.original[0])
    assert len(clip.frames) == count and clip.seconds[:3] == (0.0, 0.5, 1.0)
    # The segmenter's frames went another way: the same picture, stretched to a square.
    square = np.asarray(batch.clip[0, 0]).astype(float)
    near = pictures.marks.fit(clip.frames[0], small.SIDE, small.SIDE).astype(float)
    assert np.corrcoef(square.ravel(), near.ravel())[0, 1] > 0.95
    at = divmod(seen[0], small.GROUP)
    np.testing.assert_array_equal(clip.predicted, np.asarray(rollout.masks.union)[at][:count])
    np.testing.assert_array_equal(clip.truth, np.asarray(batch.truth[0, :count]))
    assert clip.boxes.shape == (int(batch.objects[0]), count, 4)
    assert pictures.draw(made[seen[0]]).shape[1] == pictures.WIDTH


def test_the_smaller_families_are_told_in_their_own_terms():
    batch, _, sound = told("refavs", 3)
    assert [e.answer for e in sound[:4]] == ["red one", "", "", "ring"]
    np.testing.assert_allclose(
        sound[0].keyframes[0].boxes, [np.array([10, 10, 60, 50]) / np.tile(np.asarray(batch.sharp.scale[0]), 2)]
    )
    assert sound[1].failures == ("answer/empty",) and sound[2].failures == ("answer/no_answer",)
    clip = next(e.clip for e in sound if e.clip is not None)
    np.testing.assert_array_equal(clip.boxes, np.asarray(batch.box[:1])[None])

    batch, _, image = told("refcocog", 3)
    scale = np.tile(np.asarray(batch.scale[0]), 2)
    np.testing.assert_allclose(image[0].keyframes[0].boxes, [np.array([4, 8, 20, 24]) / scale], rtol=1e-5)
    assert image[1].keyframes[0].boxes == () and "object/no_answer" in image[1].failures
    assert next(e.clip for e in image if e.clip is not None).size == (840, 840)  # that dataset is square

    batch, _, asked = told("qa", 3)
    gold = bytes(np.asarray(batch.gold[0, :1])).decode()
    assert {e.gold for e in asked[:4]} == {gold} and [e.answer for e in asked[:3]] == ["A", "B", "C"]
    assert [e.failures for e in asked[:3]] == [() if e.answer == gold else ("answer/wrong",) for e in asked[:3]]
    assert len(next(e.clip for e in asked if e.clip is not None).frames) == small.FRAMES
    for example in (*sound, *image, *asked):
        if example.clip is not None:
            pictures.draw(example)


def test_the_rows_of_this_process_are_read_once_and_in_order():
    mesh = Mesh(np.array(jax.devices()[:8])[[3, 1, 0, 2, 7, 5, 4, 6]].reshape(4, 2), ("data", "tensor"))
    x = np.arange(24).reshape(8, 3)
    put = lambda spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    for spec in (("data",), (("data", "tensor"),), ()):
        np.testing.assert_array_equal(rollout_log.rows_here(put(spec)), x)
    assert rollout_log.rows_here(jax.device_put(1.5)) == 1.5


def test_the_best_of_each_prompt_is_pictured_before_the_worst():
    reward = np.array([[0.0, 2.0, 1.0], [5.0, 5.0, 5.0]])
    assert rollout_log.choose_pictured(reward, 9) == [(0, 1), (1, 0), (0, 0)]
    assert rollout_log.choose_pictured(reward, 1) == [(0, 1)] and rollout_log.choose_pictured(reward, 0) == []
