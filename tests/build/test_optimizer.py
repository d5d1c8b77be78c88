"""The optimizer that a config makes: schedule, decay of matrices only, freezing, accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from omnir1_jax.build import optimizer
from omnir1_jax.config.sections import Optimizer
from omnir1_jax.errors import InputError

PARAMS = {
    "embed": {"embedding": jnp.full((3, 2), 2.0)},
    "layers": {"q": {"kernel": jnp.full((2, 2), 1.0), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}},
}


STEPS = 10


def config(**changes) -> Optimizer:
    return Optimizer(**{"learning_rate": 0.1} | changes)


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
    made = after(optimizer.make(config(weight_decay=0.5, schedule="constant"), STEPS, PARAMS), [zero])
    np.testing.assert_allclose(made["embed"]["embedding"], 2.0 * (1 - 0.05))
    np.testing.assert_allclose(made["layers"]["q"]["kernel"], 1 - 0.05)
    np.testing.assert_array_equal(made["layers"]["q"]["bias"], 1.0)
    np.testing.assert_array_equal(made["layers"]["norm"]["scale"], 1.0)


def test_frozen_parameters_stay():
    made = after(optimizer.make(config(freeze=("embed/*", "*/scale")), STEPS, PARAMS), random_grads(2))
    np.testing.assert_array_equal(made["embed"]["embedding"], PARAMS["embed"]["embedding"])
    np.testing.assert_array_equal(made["layers"]["norm"]["scale"], 1.0)
    assert not np.array_equal(made["layers"]["q"]["kernel"], PARAMS["layers"]["q"]["kernel"])


def test_accumulated_gradients_are_averaged():
    grads = random_grads(4)
    mean = [jax.tree.map(lambda a, b: (a + b) / 2, *pair) for pair in (grads[:2], grads[2:])]
    c = config(accumulate=2, clip_norm=0.5)
    made = optimizer.make(c, STEPS, PARAMS), optimizer.make(config(clip_norm=0.5), STEPS // 2, PARAMS)
    got, wanted = after(made[0], grads), after(made[1], mean)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, wanted)


KERNELS = {  # of two layers: their shapes, and the matrix that Muon sees
    "q": ((2, 8, 2, 3), (8, 6)),
    "o": ((2, 2, 3, 8), (6, 8)),
    "up": ((2, 8, 12), (8, 12)),
}


def by_torch(tree, name, layer):
    return torch.tensor(np.asarray(tree["layers"][name]["kernel"][layer]).reshape(KERNELS[name][1]))


def test_muon_steps_by_each_layers_matrix_as_torch_does():
    rng = np.random.default_rng(1)
    draw = lambda: {
        "layers": {
            name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)} for name, (shape, _) in KERNELS.items()
        }
    }
    params, grads = draw(), draw()
    c = config(rule="muon", schedule="constant", weight_decay=0.5, clip_norm=0.0)
    got = after(optimizer.make(c, STEPS, params), [grads], params)["layers"]
    for name, (_, matrix) in KERNELS.items():
        for layer in range(2):
            wanted = torch.nn.Parameter(by_torch(params, name, layer))
            wanted.grad = by_torch(grads, name, layer)
            torch.optim.Muon([wanted], 0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw").step()
            # torch orthogonalises in bfloat16; a step's elements are some 0.02.
            mine = np.asarray(got[name]["kernel"][layer]).reshape(matrix)
            np.testing.assert_allclose(mine, wanted.detach(), rtol=0, atol=2e-3, err_msg=f"{name} {layer}")


def test_muon_leaves_what_is_no_kernel_to_nadam():
    params = {"embed": PARAMS["embed"], "layers": {"up": PARAMS["layers"]["q"], "norm": PARAMS["layers"]["norm"]}}
    zero = jax.tree.map(jnp.zeros_like, params)
    made = after(
        optimizer.make(config(rule="muon", weight_decay=0.5, schedule="constant"), STEPS, params), [zero], params
    )
    np.testing.assert_allclose(made["layers"]["up"]["kernel"], 1 - 0.05)
    grads = jax.tree.map(jnp.ones_like, params)
    made = after(
        optimizer.make(config(rule="muon", weight_decay=0.0, schedule="constant"), STEPS, params), [grads], params
    )
    wanted = after(optax.nadam(0.1), [grads], params)
    others = lambda tree: (tree["embed"]["embedding"], tree["layers"]["up"]["bias"], tree["layers"]["norm"]["scale"])
    for got, want in zip(others(made), others(wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_muon_with_frozen_kernels():
    params = {name: {"kernel": jnp.eye(4) + 1} for name in ("up", "down")}
    grads = jax.tree.map(jnp.ones_like, params)
    made = after(optimizer.make(config(rule="muon", freeze=("up/*",)), STEPS, params), [grads], params)
    np.testing.assert_array_equal(made["up"]["kernel"], params["up"]["kernel"])
    assert not np.array_equal(made["down"]["kernel"], params["down"]["kernel"])


@pytest.mark.parametrize("kind, middle, last", [("cosine", 0.05, 0.0), ("linear", 0.05, 0.0), ("constant", 0.1, 0.1)])
def test_schedule_rises_and_falls_within_the_run(kind, middle, last):
    rate = optimizer.schedule(config(schedule=kind, warmup_steps=10), 30)
    np.testing.assert_allclose(
        [rate(0), rate(5), rate(10), rate(20), rate(30)], [0, 0.05, 0.1, middle, last], atol=1e-8
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"freeze": ("embd/*",)}, "optimizer.freeze: 'embd/\\*'"),
        ({"freeze": ("*",)}, "every parameter"),
    ],
)
def test_bad_settings_are_named(changes, words):
    with pytest.raises(InputError, match=words):
        optimizer.make(config(**changes), STEPS, PARAMS)
