"""Advantages and losses against torch, written out completion by completion."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from omnir1_jax.config import schema
from omnir1_jax.config.sections import Grpo, Reward, Step
from omnir1_jax.models.qwen_omni.config import TokenIds
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rl import grpo, terms
from omnir1_jax.rl.config import Rewards, StepConfig

CHOICES = schema.rules(Grpo)

B, G, C = 3, 4, 7


def batch(seed):
    """Random groups: lengths from 0 to C, a flat group, garbage in the padding."""
    rng = np.random.default_rng(seed)
    policy = -rng.exponential(1.0, (B, G, C)).astype(np.float32)
    old = policy + rng.normal(0, 0.3, policy.shape).astype(np.float32)
    reference = policy + rng.normal(0, 0.5, policy.shape).astype(np.float32)
    lengths = rng.integers(1, C + 1, (B, G))
    mask = np.arange(C) < lengths[..., None]
    rewards = rng.normal(1.0, 1.0, (B, G)).astype(np.float32)
    rewards[1] = 0.3
    return policy, np.where(mask, old, np.nan), np.where(mask, reference, np.nan), mask, rewards


def advantage_of(group, kind):
    if np.all(group == group[0]):
        return np.zeros_like(group)
    if kind == "leave_one_out":
        return np.array([r - np.delete(group, i).mean() for i, r in enumerate(group)])
    return (group - group.mean()) / (group.std(ddof=1) + 1e-4 if kind == "normalised" else 1.0)


def torch_loss(policy, old, reference, mask, rewards, config):
    """The sum written as a loop over completions and tokens."""
    total, tokens, completions = 0.0, 0, 0
    for b in range(B):
        if config.skip_flat_groups and np.all(rewards[b] == rewards[b, 0]):
            continue
        advantage = advantage_of(rewards[b].astype(np.float64), config.advantage)
        for g in range(G):
            n = int(mask[b, g].sum())
            lp, lo, lr = policy[b, g, :n], torch.tensor(old[b, g, :n]), torch.tensor(reference[b, g, :n])
            ratio = torch.exp(lp - lo) if config.ratio == "token" else torch.exp((lp - lo).mean()).expand(n)
            a = float(advantage[g])
            surrogate = torch.minimum(ratio * a, ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * a)
            terms = -(surrogate - config.beta * (torch.exp(lr - lp) - (lr - lp) - 1))
            total = total + (terms.mean() if config.reduce == "completion" else terms.sum())
            tokens, completions = tokens + n, completions + 1
    return total / {"completion": completions, "token": tokens, "constant": completions * C}[config.reduce]


def test_each_term_counts_by_its_weight_and_not_by_its_spread():
    """GDPO against numpy: within each group term by term, the weighted sum over the batch."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, B, G)) * np.array([1.0, 100.0, 0.01])[:, None, None]
    values[1, 2] = 7.3  # a term that is flat in a group says nothing there
    weights = np.array([1.0, 0.5, 2.0])
    total = np.zeros((B, G))
    for b in range(B):
        for k in range(3):
            total[b] += weights[k] * advantage_of(values[k, b], "normalised")
    expected = total / (total.std() + 1e-4)
    found = grpo.decoupled(jnp.asarray(values, jnp.float32), jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(grpo.advantages(found, "per_term"), expected, rtol=2e-3, atol=1e-4)


def test_the_terms_of_a_task_are_those_of_its_weights():
    chosen = Grpo(advantage="per_term", overlong=4), Reward(terms=dict(format=0.5, length_bonus=0.0))
    config = StepConfig.of(Step(max_tokens=10), *chosen, None, TokenIds(*[0] * 8, (0,)))
    config = dataclasses.replace(config, extra=(terms.Extra("own", len, 3.0),))
    draw = lambda seed: jnp.asarray(np.random.default_rng(seed).normal(size=(B, G)), jnp.float32)
    names = ("accuracy", "format", "length_bonus", "own", "measured")
    made = Rewards(draw(9), {name: draw(seed) for seed, name in enumerate(names)}, {})
    lengths = jnp.asarray([[1, 6, 7, 8], [9, 10, 10, 2], [6, 6, 6, 6]])
    completions = Completions(jnp.zeros((B, G, 10), jnp.int32), lengths, jnp.zeros((B, G, 10)))
    rewards = terms.overlong(made, completions, config)
    punished = [[0, 0, -0.25, -0.5], [-0.75, -1, -1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(rewards.terms["overlong"], punished)
    np.testing.assert_allclose(rewards.total, made.total + np.array(punished), rtol=1e-6)
    used = {"accuracy": 1.0, "format": 0.5, "own": 3.0, "overlong": 1.0}
    values = jnp.stack([rewards.terms[name] for name in used])
    expected = grpo.decoupled(values, jnp.asarray(list(used.values())))
    np.testing.assert_allclose(terms.score(rewards, config), expected, rtol=1e-4, atol=1e-5)
    config = dataclasses.replace(config, grpo=Grpo())
    assert terms.score(rewards, config) is rewards.total and terms.overlong(made, completions, config) is made


VARIANTS = [
    Grpo(advantage=a, ratio=r, reduce=m, skip_flat_groups=s, clip_low=0.1, clip_high=0.28)
    for a, r, m, s in itertools.product(
        [name for name in CHOICES["advantage"].names if name != "per_term"],
        CHOICES["ratio"].names,
        CHOICES["reduce"].names,
        (False, True),
    )
]


@pytest.mark.parametrize("config", VARIANTS, ids=lambda c: f"{c.advantage}-{c.ratio}-{c.reduce}-{c.skip_flat_groups}")
def test_loss_and_gradient_equal_torch(config):
    policy, old, reference, mask, rewards = batch(0)
    (value, metrics), gradient = jax.value_and_grad(grpo.loss, has_aux=True)(
        jnp.where(mask, policy, jnp.nan), *map(jnp.asarray, (old, reference, mask, rewards)), config
    )
    leaf = torch.tensor(policy, requires_grad=True)
    expected = torch_loss(leaf, old, reference, mask, rewards, config)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-4, atol=1e-6)
    assert metrics.flat_groups == pytest.approx(1 / 3)


def test_one_update_a_rollout_has_ratio_one_and_the_plain_policy_gradient():
    policy, _, reference, mask, rewards = map(jnp.asarray, batch(1))
    config = Grpo(beta=0.0)
    (_, metrics), gradient = jax.value_and_grad(
        lambda p: grpo.loss(p, p, reference, mask, rewards, config), has_aux=True
    )(jnp.asarray(policy))
    a = np.stack([advantage_of(group.astype(np.float64), "normalised") for group in np.asarray(rewards)])
    expected = np.where(mask, -a[..., None] / mask.sum(-1, keepdims=True) / (B * G), 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)
    assert metrics.ratio == 1.0 and metrics.clipped == 0.0


@pytest.mark.parametrize("kind", CHOICES["advantage"].names)
def test_flat_groups_and_groups_of_one_have_advantage_zero(kind):
    rewards = jnp.full((1, 7), 0.1, jnp.float32)
    assert np.all(np.asarray(grpo.advantages(rewards, kind)) == 0)
    assert np.all(np.asarray(grpo.advantages(rewards[:, :1] + 2, kind)) == 0)


def test_length_bonus_needs_two_good_answers_and_the_right_length():
    accuracy = jnp.array([[0.1, 0.2, 0.3, 5.0], [0.1, 0.0, 0.0, 5.0]])
    lengths = jnp.array([[400.0, 320, 319, 750], [400, 400, 400, 400]])
    assert grpo.length_bonus(accuracy, lengths).tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]
