"""The whole step over 8 devices: whatever the mesh, three steps are those of one device."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from omnir1_jax.models import lora, sam2
from omnir1_jax.models.lora import LoraConfig
from omnir1_jax.models.qwen_omni.thinker import abstract_params
from omnir1_jax.parallel import make_mesh, state_shardings, tree_shardings
from omnir1_jax.rl import learn
from omnir1_jax.rl.families import qa
from omnir1_jax.rl.step import make_train_step
from tests.rl import small

ADAPTER = LoraConfig(4, 8.0)
MESHES = [
    {"data": 8},
    {"fsdp": 8},
    {"data": 2, "fsdp": 4},
    {"fsdp": 4, "tensor": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
]


@pytest.fixture
def varied(monkeypatch):
    """Rewards that differ within a group, so that the policy gradient takes part; random texts earn nothing."""
    honest = qa.reward

    def reward(config, batch, completions, *rest):
        found = honest(config, batch, completions, *rest)
        return found.replace(total=jnp.cos(completions.tokens[..., 0].astype(jnp.float32)))

    monkeypatch.setattr(qa, "reward", reward)


def optimizer():
    # A larger epsilon than usual, so that a gradient of nothing but rounding does not become a step.
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, eps=1e-4, weight_decay=0.01))


def boxed_state(adapter: bool):
    boxed = abstract_params(small.thinker_config())["text"]
    if not adapter:
        return boxed
    return jax.eval_shape(lambda: lora.init(jax.random.key(0), boxed, ADAPTER))


def steps(family: str, adapter: bool, shape: dict | None, count: int = 3):
    """Losses and parameters after `count` steps, on the mesh or on one device."""
    config = small.step_config(lora=ADAPTER if adapter else None)
    trainable, frozen = small.randomise(nn.unbox(boxed_state(adapter)), 5), small.frozen()
    batch = small.batches(family, 8)[0]
    key, rule, shardings = jax.random.key(3), optimizer(), None
    state = learn.init(jax.tree.map(jnp.copy, trainable), rule)
    if shape:
        mesh = make_mesh(shape)
        whole, boxed = NamedSharding(mesh, PartitionSpec()), boxed_state(adapter)
        shardings = learn.TrainState(whole, tree_shardings(mesh, boxed), state_shardings(mesh, boxed, rule), whole)
        state = jax.device_put(state, shardings)
        names = abstract_params(small.thinker_config())
        placed = frozen.replace(
            towers={name: names[name] for name in frozen.towers},
            reference=names["text"],
            sam2=sam2.abstract_params(small.sam2_config()),
        )
        frozen = jax.device_put(frozen, tree_shardings(mesh, placed))
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        moment = state.opt_state[1][0].mu["layers"]["down" if not adapter else "q"]
        assert all(not x.sharding.is_fully_replicated for x in jax.tree.leaves(moment)) or set(shape) == {"data"}
        with jax.set_mesh(mesh):
            return run(
                make_train_step(small.models(), rule, config, shardings=shardings), state, frozen, batch, key, count
            )
    return run(make_train_step(small.models(), rule, config), state, frozen, batch, key, count)


def run(step, state, frozen, batch, key, count):
    seen = []
    for _ in range(count):
        state, metrics, rollout = step(state, frozen, batch, key)
        seen.append((np.asarray(rollout.completions.tokens), {k: float(v) for k, v in metrics.items()}))
    assert step._cache_size() == 1
    return seen, jax.tree.map(np.asarray, state.trainable)


@functools.cache
def alone(family: str, adapter: bool, count: int = 3):
    return steps(family, adapter, None, count)


def compare(family, adapter, shape, count=3):
    (got, params), (want, wanted) = steps(family, adapter, shape, count), alone(family, adapter, count)
    for (tokens, metrics), (tokens2, metrics2) in zip(got, want, strict=True):
        np.testing.assert_array_equal(tokens, tokens2)
        for name in ("learn/loss", "learn/grad_norm", "learn/kl", "reward/total"):
            np.testing.assert_allclose(metrics[name], metrics2[name], rtol=1e-4, atol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, wanted)
    assert got[0][1]["learn/grad_norm"] > 1e-3


slow = lambda meshes: [pytest.param(mesh, marks=pytest.mark.slow) for mesh in meshes]  # half a minute of compiling each


@pytest.mark.parametrize("shape", [*slow(MESHES[:4]), MESHES[4]], ids=str)
def test_full_fine_tuning_on_any_mesh(shape, varied):
    compare("qa", False, shape)


@pytest.mark.parametrize("shape", slow(MESHES), ids=str)
def test_an_adapter_on_any_mesh(shape, varied):
    compare("qa", True, shape)


@pytest.mark.slow
def test_both_systems_and_the_segmenter_on_a_mesh():
    compare("vos", False, {"data": 2, "fsdp": 2, "tensor": 2}, count=1)
