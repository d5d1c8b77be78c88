"""The step as a program: one graph or stage by stage, no callback, no second compilation, nothing lost on NaN."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnir1_jax.config.sections import Grpo
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.sample import Completions, Sampling
from omnir1_jax.parallel import batch_sharding, make_mesh
from omnir1_jax.rl import learn, step
from omnir1_jax.rl.config import Rewards
from omnir1_jax.systems import reasoner
from omnir1_jax.tasks import qa, vos
from tests.rl import small

PLANS = [
    '<think>a</think><answer>{"start_time": "00:00.00", "end_time": "00:00.20", "description": "the red one"}'
    '{"start_time": "00:01.50", "end_time": "00:02.00", "description": "left"}</answer>',
    '<think>b</think><answer>{"start_time": "00:01.00", "end_time": "00:01.00", "description": "Star "}</answer>',
    "no answer",
    '<answer>{"start_time": "00:02.00", "end_time": "00:01.00", "description": "x"}{}</answer>',
]
BOXES = ['[{"bbox_2d": [10, 10, 60, 50], "label": "x"}]', '{"bbox_2d": [1, 2, 3]} {"bbox_2d": [40, 5, 80, 55]}', "none"]


@pytest.fixture
def scripted(monkeypatch):
    """System 1 says PLANS, System 2 says BOXES; learning sees them as sampled."""
    spoken = small.spoken([PLANS, PLANS[::-1]], 192)
    monkeypatch.setattr(reasoner, "sample", lambda *_: spoken)
    monkeypatch.setattr(small, "models", functools.partial(small.models, small.Scripted(BOXES)))
    return small.step_config(sampling=Sampling(192, small.step_config().sampling.eos, 0), completion_bytes=384)


# With eps a gradient of nothing but rounding does not become a step.
OPTIMIZER = small.optimizer(eps=1e-4)
STAGED = {}  # by config: traced once, in the first test of it, as `scripted` has it


def made(config, mode):
    make = lambda: step.make_train_step(vos.TASK, small.models(), OPTIMIZER, config, mode)
    if mode == "fused":
        return make()
    key = repr(config)
    if key not in STAGED:
        STAGED[key] = make()
    return STAGED[key]


def run(config, mode, batch, steps=2):
    train_step, state, frozen, seen = made(config, mode), small.state(), small.frozen(), []
    for _ in range(steps):
        state, metrics, rollout = train_step(state, frozen, batch, jax.random.key(3))
        seen.append(jax.tree.map(np.asarray, (metrics, rollout.rewards)))
    return train_step, state, seen, rollout


def updated(config, batch, rollout):
    """(state, Learned) of the update alone, from a rollout of two completed prompts."""
    stages, frozen = step.make_stages(vos.TASK, small.models(), OPTIMIZER, config), small.frozen()
    media = jax.jit(stages.encode)(frozen, batch)
    return jax.jit(stages.update)(small.state(), frozen, batch, media, rollout.completions, rollout.rewards)


def test_fused_equals_staged_and_every_stage_had_something_to_do(scripted):
    batch = small.batches("vos", 2)[0]
    fused, state, seen, _ = run(scripted, "fused", batch)
    _, other, again, _ = run(scripted, "staged", batch)
    for (metrics, rewards), (metrics2, rewards2) in zip(seen, again):
        for name in metrics:
            np.testing.assert_allclose(metrics[name], metrics2[name], rtol=2e-5, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(rewards.total, rewards2.total, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), state.trainable, other.trainable)

    metrics, rewards = seen[0]
    for term in ("structure", "coverage", "count", "alignment", "saliency", "segmentation", "keyframes", "boxes"):
        assert np.ptp(rewards.terms[term]) > 0, f"{term} is blind"
    assert metrics["failure/plan/no_answer"] == 2 and metrics["failure/plan/out_of_range"] == 2
    assert metrics["failure/plan/missing_field"] == 2 and metrics["failure/box/bad_list"] > 0
    assert metrics["learn/grad_norm"] > 0 and metrics["learn/skipped"] == 0
    assert fused._cache_size() == 1  # the second step did not compile again


@pytest.fixture(scope="module")
def lowered():
    """The fused step with a sampled answer, traced once."""
    train_step = step.make_train_step(vos.TASK, small.models(), small.optimizer(), small.step_config())
    return train_step.lower(small.state(), small.frozen(), small.batches("vos", 2)[0], jax.random.key(0))


def test_no_callback_leaves_the_program(lowered):
    text = lowered.as_text()
    assert len(text) > 1e5
    assert not re.findall(r"callback|infeed|outfeed|host_compute|send|recv", text)
    values = re.sub(r"= dense<[^>]*> : tensor<[^>]*>", "", text)  # attributes, as paddings, are 64 bits wide
    assert not re.findall(r"tensor<(?:\d+x)*(?:i64|f64)>", values)


def test_sampled_tokens_have_the_scorer_s_log_probs_and_seeds_decide(lowered):
    batch, train_step = small.batches("vos", 2)[0], lowered.compile()
    go = lambda seed: train_step(small.state(), small.frozen(), batch, jax.random.key(seed))
    (state, metrics, rollout), (state2, _, rollout2), (_, _, rollout3) = go(0), go(0), go(1)
    assert metrics["learn/sampler_gap"] < 1e-4
    assert metrics["learn/kl"] > 0 and metrics["learn/ratio"] == 1
    jax.tree.map(np.testing.assert_array_equal, (state, rollout), (state2, rollout2))
    assert np.any(rollout.completions.tokens != rollout3.completions.tokens)


def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted(scripted):
    batch = small.batches("vos", 2)[0]
    train_step, frozen = made(scripted, "staged"), small.frozen()
    broken = frozen.replace(reference=jax.tree.map(lambda x: x * jnp.nan, frozen.reference))
    before = small.state()
    kept = jax.tree.map(np.asarray, (before.trainable, before.opt_state))
    state, metrics, _ = train_step(before, broken, batch, jax.random.key(0))
    assert metrics["learn/skipped"] == 1 and state.step == 1
    jax.tree.map(np.testing.assert_array_equal, (state.trainable, state.opt_state), kept)


def test_wrong_choices_are_refused_by_name(scripted):
    with pytest.raises(InputError, match="step.mode"):
        step.make_train_step(vos.TASK, small.models(), small.optimizer(), scripted, "eager")


def test_learning_on_as_many_tokens_as_the_longest_completion_has_changes_nothing(scripted):
    """Three compiled lengths: the first is one token too short, so the second is taken."""
    batch, longest = small.batches("vos", 2)[0], int(small.spoken([PLANS], 192).lengths.max())
    assert 40 < longest < 180
    _, whole, seen, rollout = run(scripted, "staged", batch, steps=1)
    short, learned = updated(dataclasses.replace(scripted, score_lengths=(longest + 5, longest - 1)), batch, rollout)
    for name in ("loss", "grad_norm", "entropy", "kl", "sampler_gap"):
        found = learned.grpo.kl if name == "kl" else getattr(learned, name)
        np.testing.assert_allclose(found, seen[0][0][f"learn/{name}"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), short.trainable, whole.trainable)


def test_several_updates_move_the_ratio_away_from_one(scripted):
    batch = small.batches("vos", 2)[0]
    _, _, seen, rollout = run(scripted, "staged", batch, steps=1)
    _, learned = updated(dataclasses.replace(scripted, updates=2, grpo=Grpo(beta=0.0)), batch, rollout)
    assert seen[0][0]["learn/ratio"] == 1 and learned.grpo.ratio != 1


def test_only_the_prompts_with_most_spread_are_learned_from():
    """Of four prompts, one flat: an update on the two that are kept is the one of a batch of those two."""
    batch, g, c = small.batches("qa", 4)[0], small.GROUP, 24
    rng = np.random.default_rng(0)
    total = jnp.asarray([[1.0] * g, [0.0, 3.0] * (g // 2), [0.4, 0.5] * (g // 2), [0.0, 1.0] * (g // 2)])
    rewards = Rewards(total, {"accuracy": total}, {})
    tokens = jnp.asarray(rng.integers(0, 90, (4, g, c)), jnp.int32)
    completions = Completions(tokens, jnp.full((4, g), c), jnp.zeros((4, g, c)))
    frozen = small.frozen()
    media = jax.jit(functools.partial(reasoner.encode, small.models().thinker))(frozen.encoders, batch.policy)
    updated = []
    for keep, rows in ((0.5, slice(None)), (1.0, jnp.asarray([1, 3]))):
        config = small.step_config(keep=keep)
        update = step.make_stages(qa.TASK, small.models(), small.optimizer(eps=1e-4), config).update
        chosen = jax.tree.map(lambda x, rows=rows: x[rows], (batch, media, completions, rewards))
        updated.append(jax.jit(update)(small.state(), frozen, *chosen))
    (state, learned), (other, wanted) = updated
    assert learned.grpo.flat_groups == 0 and wanted.grad_norm > 0
    np.testing.assert_allclose(learned.loss, wanted.loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), state.trainable, other.trainable)


def test_what_is_kept_lies_over_a_mesh_as_a_batch_does():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    total = jnp.asarray(np.random.default_rng(1).permutation(64).reshape(16, 4) ** 2, jnp.float32)
    placed = jax.device_put(Rewards(total, {}, {}), batch_sharding(mesh))
    with jax.set_mesh(mesh):
        kept, rows = jax.jit(functools.partial(learn.widest, small.step_config(keep=0.5)))(
            placed, jax.device_put(jnp.arange(16), batch_sharding(mesh))
        )
    assert rows.tolist() == sorted(np.argsort(-np.std(total, axis=1))[:8].tolist())
    np.testing.assert_array_equal(kept.total, total[rows])
    assert kept.total.sharding.is_equivalent_to(batch_sharding(mesh), 2)
