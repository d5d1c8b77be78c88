"""Parts of the user's own: the examples of docs/ as a run of the training command takes them."""

import json
import pathlib
import re
import sys

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnir1_jax import tasks
from omnir1_jax.build import run as build
from omnir1_jax.build import valid
from omnir1_jax.config import settings
from omnir1_jax.config.sections import Grpo
from omnir1_jax.data.registry import open_dataset
from omnir1_jax.errors import InputError
from omnir1_jax.planning import abstract
from omnir1_jax.rl import grpo, step, terms
from omnir1_jax.rl.config import Frozen, Rewards
from omnir1_jax.text.strings import Buffer
from omnir1_jax.text.vocab import byte_vocab
from omnir1_jax.training import loop
from tests import tiny
from tests.data import qwen_oracle
from tests.rl import small

DOCS = pathlib.Path(__file__).parent.parent.parent / "docs"
EXAMPLES = DOCS / "examples"
COUNTING, SQUARES = f"{EXAMPLES}/counting.py:TASK", f"{EXAMPLES}/squares.py:open_squares"
CISPO, BATCH_STD = f"{EXAMPLES}/cispo.py:cispo", f"{EXAMPLES}/cispo.py:batch_std"
BREVITY, VARIETY = f"{EXAMPLES}/brevity.py:brevity", f"{EXAMPLES}/brevity.py:variety"


def config(tokenizer, **changes):
    """The smallest run, counting squares."""
    c = tiny.get_config(str(tokenizer))
    clips = settings.datasets(squares=dict(name=SQUARES, clips=8))
    c.data = dict(many=settings.task(family=COUNTING, datasets=clips, batch_size=2, frames=2, sampling="uniform"))
    c.steps, c.checkpoint.every, c.log.pictures_every = 3, 0, 3
    c.update_from_flattened_dict(changes)
    return c


def spread(batch, completions, *_):
    """A term by which random completions differ."""
    return completions.tokens[..., 0] % 7


def test_a_run_with_a_task_a_term_a_dataset_and_a_loss_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "mesh_of", lambda config: None)  # one device of the tests' eight
    own = {
        "reward.extra": ((BREVITY, 0.5), (f"{__name__}:spread", 1.0)),
        "grpo.loss": CISPO,
        "grpo.advantage": BATCH_STD,
    }
    c = config(qwen_oracle.save_tokenizer(tmp_path / "tokenizer"), **own)
    assert loop.train(c, tmp_path / "run", quiet=True) is not None
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows] == ["many"] * 3
    for row in rows:
        length = row["completion/many/length"]
        assert row["reward/many/brevity"] == pytest.approx(1 - length / c.step.max_tokens)
        parts = [row[f"reward/many/{name}"] for name in ("accuracy", "format", "length_bonus")]
        assert row["reward/many/total"] == pytest.approx(
            sum(parts) + 0.5 * row["reward/many/brevity"] + row["reward/many/spread"], abs=1e-5
        )
        assert row["failure/many/answer/no_answer"] == 4 and row["failure/many/number/wrong"] == 0
    lines = [json.loads(line) for line in (tmp_path / "run/rollouts.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * 4 and {line["family"] for line in lines} == {"counting"}
    for line in lines:  # what the reader drew is what the task knows
        assert int(line["gold"]) == 1 + int(line["sample_id"].split("/")[-1]) % 4
        assert "answer/no_answer" in line["failures"] and line["rewards"]["brevity"] >= 0
    # The first loss of an update from which nothing has moved is 0 with the built-in one, and the deviation a group's.
    assert rows[0]["learn/loss"] != pytest.approx(0, abs=1e-3) and rows[0]["learn/grad_norm"] > 0
    rewards = np.array([line["reward"] for line in lines]).reshape(3, 2, 2)
    centred = rewards - rewards.mean(axis=2, keepdims=True)
    expected = centred / (centred.std(axis=(1, 2), keepdims=True) + 1e-4)
    np.testing.assert_allclose([line["advantage"] for line in lines], expected.ravel(), rtol=1e-5)
    assert list((tmp_path / "run/pictures").rglob("*.png"))
    # What the run saved resumes: names with dots and slashes come back as they were.
    saved = settings.read(tmp_path / "run/config.json")
    assert settings.plain(saved.reward) == settings.plain(c.reward) and saved.data.many.family == COUNTING


def test_a_loss_of_ones_own_has_the_gradient_that_its_text_says():
    """No token's gradient is cut off, and what a function of one's own gives is checked."""
    rng, config = np.random.default_rng(0), Grpo(loss=CISPO, beta=0.0, clip_low=0.1, clip_high=0.1)
    policy, old = (jnp.asarray(-rng.exponential(1.0, (2, 3, 5)), jnp.float32) for _ in range(2))
    mask = jnp.arange(5) < jnp.array([[5, 2, 3], [4, 1, 5]])[..., None]
    rewards = jnp.array([[0.0, 1.0, 3.0], [2.0, 2.0, 5.0]])
    (_, metrics), gradient = jax.value_and_grad(grpo.loss, has_aux=True)(policy, old, policy, mask, rewards, config)
    weight = jnp.clip(jnp.exp(policy - old), 0.9, 1.1)
    expected = -weight * grpo.advantages(rewards)[..., None] / mask.sum(axis=-1, keepdims=True) / 6
    np.testing.assert_allclose(gradient, jnp.where(mask, expected, 0), rtol=1e-5)
    assert metrics.clipped > 0.5
    with pytest.raises(InputError, match="grpo.loss: .* did not give a scalar and GrpoMetrics"):
        grpo.loss(policy, old, policy, mask, rewards, Grpo(loss=f"{__name__}:means"))
    with pytest.raises(InputError, match=r"grpo.advantage: .* gave \(2,\), not one number per completion \(2, 3\)"):
        grpo.advantages(rewards, f"{__name__}:means")


def means(rewards, *_):
    """Neither advantages nor a loss: a number per group."""
    return rewards.mean(axis=1)


def test_numbers_in_words_of_a_model():
    task = tasks.get(COUNTING)
    batch = task.batch(None, jnp.array([3]))
    texts = ["<answer>3</answer>", "<answer> 12 </answer>", "<answer>three</answer>", "3"]
    frozen = Frozen({}, None, None, byte_vocab(small.tokenizer()), None, None)
    # Compiled for the moment, not for speed.
    read = jax.jit(task.read, static_argnums=1, compiler_options={"xla_backend_optimization_level": 0})
    reading = read(frozen, small.step_config(completion_bytes=64), batch, small.spoken([texts], 32))
    assert reading.number.tolist() == [[3, 12, -1, -1]] and reading.right.tolist() == [[True, False, False, False]]
    counts = {name: count.tolist() for name, count in task.failures(batch, reading, None).items()}
    assert counts["number/wrong"] == [[0, 1, 0, 0]] and counts["number/none"] == [[0, 0, 1, 0]]
    assert counts["answer/no_answer"] == [[0, 0, 0, 1]]
    number_of = sys.modules[task.read.__module__].number_of
    many = Buffer(jnp.full((1, 9), ord("9"), jnp.uint8), jnp.array([9]), jnp.array([False]))
    assert number_of(many).tolist() == [-1]


def test_a_plan_takes_the_shapes_from_the_task():
    c = config("")
    c.thinker.path, c.thinker.sizes, c.thinker.tokenizer = "Qwen2.5-Omni-3B", {}, ""
    program = abstract.program(c)
    assert program.batches["many"].number.shape == (2,) and program.tasks["many"].name == "counting"


def test_files_of_ones_own_reach_worker_processes():
    """As grain carries them: without the module, which a worker cannot import."""
    task, reader = tasks.get(COUNTING), open_dataset(SQUARES, "", clips=4)
    packed = cloudpickle.dumps((task.truth, reader))
    names = {task.truth.__module__, reader.make.__module__}
    kept = {name: sys.modules.pop(name) for name in names}
    try:
        truth, reader = cloudpickle.loads(packed)
        ref = reader[2]
        assert len(ref.extra["looks"]) == 3 and truth.__name__ == "truth"
    finally:
        sys.modules.update(kept)


def test_terms_on_the_host_run_between_the_stages():
    """The step hands them what it made, as numpy arrays, and adds what they give."""
    config = small.step_config(extra=terms.load([(VARIETY, 2.0), (BREVITY, 1.0)]))
    with pytest.raises(InputError, match="step.mode: variety of reward.extra runs on the host"):
        step.make_train_step(tasks.TASKS["qa"], small.models(), small.optimizer(), config)
    said = small.spoken([["a a a a", "abc", "", "b"]], 24)
    zeros = jnp.zeros((1, 4))
    rewards = terms.add(Rewards(zeros, {}, {}), config.extra, None, *jax.device_get((said, None, None, None)))
    lengths = np.asarray(said.lengths[0])
    different = [len(set(np.asarray(said.tokens[0, g])[:n].tolist())) / n for g, n in enumerate(lengths)]
    np.testing.assert_allclose(rewards.terms["variety"], [different], rtol=1e-6)
    np.testing.assert_allclose(rewards.total, [2 * np.array(different) + 1 - lengths / 24], rtol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"reward.extra": (("brevity", 1.0),)}, "reward.extra: .* has an entry that is not one of pairs"),
        ({"reward.extra": ((f"{EXAMPLES}/brevity.py:nothing", 1.0),)}, "brevity.py has no 'nothing'"),
        ({"reward.extra": ((BREVITY, 1.0), (BREVITY, 2.0))}, "two terms are called brevity"),
        ({"reward.extra": ((VARIETY, 1.0),)}, "step.mode: 'fused' cannot hold variety"),
        ({"grpo.loss": "cispo"}, "grpo.loss: 'cispo' is none of clipped, nor module:object or file.py:object"),
        ({"grpo.loss": f"{EXAMPLES}/cispo.py:ppo"}, "grpo.loss: .*cispo.py has no 'ppo'"),
        ({"grpo.advantage": f"{EXAMPLES}/cispo.py:jnp"}, "grpo.advantage: .* is not a function"),
        ({"data.many.family": "no_such.module:TASK"}, "data.many.family: no_such.module cannot be imported"),
        ({"data.many.family": BREVITY}, "data.many.family: .* is not a task"),
        (
            {"data.many.datasets.squares.name": f"{EXAMPLES}/none.py:open"},
            "datasets.squares.name: .* cannot be imported",
        ),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_compiled(changes, message):
    with pytest.raises(InputError, match=message) as refused:
        valid.check(config("tokenizer", **changes))
    assert "\n" not in str(refused.value)


def test_terms_of_another_shape_or_name_are_refused():
    rewards = Rewards(jnp.zeros((2, 4)), {"brevity": jnp.zeros((2, 4))}, {})
    with pytest.raises(InputError, match=r"odd gave \(2,\), not one number per completion \(2, 4\)"):
        terms.add(rewards, [terms.Extra("odd", lambda *_: jnp.zeros(2), 1.0)])
    with pytest.raises(InputError, match="the task has a term brevity already"):
        terms.add(rewards, [terms.Extra("brevity", lambda *_: jnp.zeros((2, 4)), 1.0)])


def test_the_page_names_what_there_is():
    page = (DOCS / "your_own_task.md").read_text()
    for path in re.findall(r"[\w/]+\.py", page):
        assert (DOCS.parent / path).is_file() or path == "file.py", path
    fields = {field for field in tasks.Task.__dataclass_fields__}
    assert {"prompt", "truth", "read", "reward", "failures", "describe", "picture", "target"} <= fields
    made = sys.modules[tasks.get(COUNTING).read.__module__].get_config()
    assert valid.check(made) and made.data.counting.family == COUNTING
