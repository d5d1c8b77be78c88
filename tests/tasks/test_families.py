"""The smaller families from what was said to what it earns, and prompts as files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnir1_jax.errors import InputError
from omnir1_jax.systems import prompts
from omnir1_jax.tasks import TASKS
from tests.rewards import reward_oracle
from tests.rl import small


def judge(family, texts, config, size=192, grounder=None):
    """Reading, grounding and rewards of two prompts' completions."""
    batch = small.batches(family, 2)[0]
    task, frozen, models = TASKS[family], small.frozen(), small.models(grounder)
    said = small.spoken(texts, size)
    reading = jax.jit(lambda: task.read(frozen, config, batch, said))()
    found = task.ground(models, frozen, config, batch, reading)
    rewards = task.reward(config, batch, said, reading, found, task.segment())
    return batch, said, rewards


def test_refavs_earns_the_overlap_of_system_2_s_first_box():
    boxes = ['{"bbox_2d": [10, 10, 60, 50]} {"bbox_2d": [0, 0, 1, 1]}', "none", '{"bbox_2d": [0, 0, 83, 55]}', "{}"]
    said = ["<think>a</think> <answer>red one</answer>", "<answer>ring</answer>", "<answer> </answer>", "nothing"]
    config = small.step_config(completion_bytes=256)
    batch, _, rewards = judge("refavs", [said, said[::-1]], config, grounder=small.Scripted(boxes))
    for b, row in enumerate([said, said[::-1]]):
        for g, text in enumerate(row):
            box = {0: [10, 10, 60, 50], 2: [0, 0, 83, 55]}.get(g)
            truth = np.asarray(batch.box[b]) * np.tile(np.asarray(batch.sharp.scale[b]), 2)
            asked = "<answer>" in text and "> <" not in text.split("<answer>")[1] + ">" and "<answer> <" not in text
            expected = reward_oracle.box_iou(box, truth) if box and asked else 0.0
            assert rewards.terms["accuracy"][b, g] == pytest.approx(expected, abs=1e-5), (b, g, text)
    assert rewards.terms["format"].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert rewards.failures["answer/no_answer"].sum() == 2 and rewards.failures["answer/empty"].sum() == 2


def test_refcocog_reads_the_policy_s_own_box():
    batch = small.batches("refcocog", 2)[0]
    scale = np.asarray(batch.scale)
    true = lambda b, shift=0: '{{"bbox_2d": {}, "points_1": {}, "points_2": {}}}'.format(
        (np.trunc(np.asarray(batch.box[b]) * np.tile(scale[b], 2)) + shift).tolist(),
        *(np.trunc(np.asarray(batch.points[b, i]) * scale[b]).tolist() for i in range(2)),
    )
    wrong = '{"bbox_2d": [0, 0, 2, 2]}'
    say = lambda thought, answer: f"<think>{thought}</think><answer>{answer}</answer>"
    sets = {
        "said": lambda b: [say("a", true(b)), say("a", true(b, 4)), "none", say("a", true(b, 500))],
        "where": lambda b: [say(wrong, true(b)), say(true(b), wrong), true(b), say(true(b), "that one")],
    }
    for name, made in sets.items():
        texts = [made(b) for b in range(2)]
        _, _, rewards = judge("refcocog", texts, small.step_config(completion_bytes=384), size=256)
        accuracy = np.asarray(rewards.terms["accuracy"])
        for at in np.ndindex(accuracy.shape):
            truth = (np.asarray(x[at[0]]) for x in (batch.box, batch.points, batch.scale))
            expected = reward_oracle.refcocog(texts[at[0]][at[1]], *truth)
            assert accuracy[at] == pytest.approx(sum(expected.values()), abs=1e-4)
        # The truth in the answer earns all of 1.4 + 1 + 1 + 1; outside of it, nothing.
        assert np.all(accuracy[:, 0] > 4.39) and np.all(accuracy[:, 2] == 0)
        if name == "where":
            assert np.all(accuracy[:, 3] == 0) and rewards.failures["object/no_answer"].sum() == 2
        else:  # the length bonus, as in every family, of those above the bar
            np.testing.assert_array_equal(rewards.terms["length_bonus"], [[1, 1, 0, 1]] * 2)
            np.testing.assert_allclose(rewards.total, accuracy + np.array([2, 2, 0, 2]), rtol=1e-6)


def test_questions_are_right_or_wrong():
    batch = small.batches("qa", 2)[0]
    right = [bytes(np.asarray(row[:1])).decode() for row in batch.gold]
    say = lambda b: [
        f"<think>a</think><answer> {right[b]}\n</answer>",
        f"<answer>{right[b]}.</answer>",
        right[b],
        "<answer></answer>",
    ]
    _, _, rewards = judge("qa", [say(0), say(1)], small.step_config())
    assert rewards.terms["accuracy"].tolist() == [[1, 0, 0, 0]] * 2
    assert rewards.failures["answer/wrong"].sum() == 4 and rewards.failures["answer/no_answer"].sum() == 2


def test_every_family_s_example_survives_the_way_to_a_batch():
    for family in TASKS:
        batch = small.batches(family, 2)[0]
        assert isinstance(batch, TASKS[family].batch)
        assert np.any(np.asarray(batch.policy.mask)) and batch.policy.tokens.dtype == jnp.int32


def test_templates_are_filled_in_one_pass_and_checked(tmp_path):
    text = prompts.render(
        prompts.load("vos", TASKS["vos"].fields), query="a {duration} {", duration="3", fps="2", example="{}"
    )
    assert 'a {duration} {"' in text and "{example}" not in text
    rng = np.random.default_rng(0)
    assert len({prompts.example(12.0, rng) for _ in range(5)}) == 5
    assert prompts.clock(61.5) == "01:01.50"
    (tmp_path / "own.txt").write_text("Find it")
    with pytest.raises(InputError, match=r"prompts.vos: .*own.txt lacks \{query\}"):
        prompts.load("vos", TASKS["vos"].fields, str(tmp_path / "own.txt"))
    (tmp_path / "own.txt").write_text("Find {query} {options}")
    with pytest.raises(InputError, match=r"unknown field \{options\}"):
        prompts.load("vos", TASKS["vos"].fields, str(tmp_path / "own.txt"))
    with pytest.raises(InputError, match="cannot be read"):
        prompts.load("vos", TASKS["vos"].fields, str(tmp_path / "absent.txt"))
