"""The optimizer that a config makes: schedule, decay of matrices only, freezing, accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from omnir1_jax import settings
from omnir1_jax.errors import InputError
from omnir1_jax.setup import optimizer

PARAMS = {
    "embed": {"embedding": jnp.full((3, 2), 2.0)},
    "layers": {"q": {"kernel": jnp.full((2, 2), 1.0), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}},
}


def config(**changes):
    c = settings.defaults()
    c.steps = 10
    c.optimizer.learning_rate = 0.1
    for key, value in changes.items():
        c.optimizer[key] = value
    return c


def after(rule, grads, params=PARAMS):
    """Parameters after one update for each of the gradients."""
    state = rule.init(params)
    for grad in grads:
        updates, state = rule.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return params


def random_grads(n: int):
    rng = np.random.default_rng(0)
    return [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS) for _ in range(n)]


def test_only_matrices_decay():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    made = after(optimizer.make(config(weight_decay=0.5, schedule="constant"), PARAMS), [zero])
    np.testing.assert_allclose(made["embed"]["embedding"], 2.0 * (1 - 0.05))
    np.testing.assert_allclose(made["layers"]["q"]["kernel"], 1 - 0.05)
    np.testing.assert_array_equal(made["layers"]["q"]["bias"], 1.0)
    np.testing.assert_array_equal(made["layers"]["norm"]["scale"], 1.0)


def test_frozen_parameters_stay():
    made = after(optimizer.make(config(freeze=("embed/*", "*/scale")), PARAMS), random_grads(2))
    np.testing.assert_array_equal(made["embed"]["embedding"], PARAMS["embed"]["embedding"])
    np.testing.assert_array_equal(made["layers"]["norm"]["scale"], 1.0)
    assert not np.array_equal(made["layers"]["q"]["kernel"], PARAMS["layers"]["q"]["kernel"])


def test_accumulated_gradients_are_averaged():
    grads = random_grads(4)
    mean = [jax.tree.map(lambda a, b: (a + b) / 2, *pair) for pair in (grads[:2], grads[2:])]
    c = config(accumulate=2, clip_norm=0.5)
    whole = config(clip_norm=0.5)
    whole.steps = 5
    got, wanted = after(optimizer.make(c, PARAMS), grads), after(optimizer.make(whole, PARAMS), mean)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, wanted)


@pytest.mark.parametrize("kind, middle, last", [("cosine", 0.05, 0.0), ("linear", 0.05, 0.0), ("constant", 0.1, 0.1)])
def test_schedule_rises_and_falls_within_the_run(kind, middle, last):
    c = config(schedule=kind, warmup_steps=10)
    c.steps = 30
    rate = optimizer.schedule(c)
    np.testing.assert_allclose(
        [rate(0), rate(5), rate(10), rate(20), rate(30)], [0, 0.05, 0.1, middle, last], atol=1e-8
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"freeze": ("embd/*",)}, "optimizer.freeze: 'embd/\\*'"),
        ({"freeze": ("*",)}, "every parameter"),
        ({"schedule": "cosin"}, "optimizer.schedule"),
        ({"accumulate": 0}, "optimizer.accumulate"),
    ],
)
def test_bad_settings_are_named(changes, words):
    with pytest.raises(InputError, match=words):
        optimizer.make(config(**changes), PARAMS)
