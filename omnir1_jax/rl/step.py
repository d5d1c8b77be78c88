"""One GRPO step: sample a group, let System 2 judge it, learn. One compiled program, no callback to the host."""

import functools
from collections.abc import Callable
from typing import Any, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rl import learn
from omnir1_jax.rl.config import Frozen, Models, Rewards, StepConfig
from omnir1_jax.rl.families import family_of
from omnir1_jax.rl.learn import Learned, TrainState
from omnir1_jax.systems import reasoner


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Rollout:
    """What happened, for logs and pictures. `reading`, `found`, `masks` are the family's own."""

    completions: Completions
    reading: Any
    found: Any
    masks: Any
    rewards: Rewards


TrainStep = Callable[[TrainState, Frozen, Any, Key[Array, ""]], tuple[TrainState, dict[str, Array], Rollout]]


def make_train_step(
    models: Models,
    optimizer: optax.GradientTransformation,
    config: StepConfig,
    mode: str = "fused",
    shardings: TrainState | None = None,
) -> TrainStep:
    """The step `(state, frozen, batch, key) -> (state, metrics, rollout)`; `state` is donated.

    Args:
      optimizer: sees the gradients of `state.trainable`.
      mode: "fused" compiles the step as one program; "staged" compiles each stage by itself, for debugging, profiling
        and small memory. Both give the same numbers.
      shardings: of the state, which it keeps from step to step; default what the compiler chooses.
    """
    if mode not in ("fused", "staged"):
        raise InputError(f"step.mode: {mode!r} is neither 'fused' nor 'staged'")
    named = lambda f: jax.named_scope(f.__name__)(f)  # so that profiles and counts can tell the stages apart
    stage = (lambda f, **how: jax.jit(named(f), **how)) if mode == "staged" else lambda f, **_: named(f)

    @stage
    def encode(frozen, batch):
        return reasoner.encode(models.thinker, frozen.towers, batch.policy)

    @stage
    def sample(state, frozen, batch, media, key):
        variables = learn.policy(state.trainable, frozen, config)
        return reasoner.sample(models.thinker, variables, batch.policy, media, key, config.sampling, config.group)

    @stage
    def read(frozen, batch, completions):
        return family_of(batch).read(frozen, config, batch, completions)

    @stage
    def ground(frozen, batch, reading):
        return family_of(batch).ground(models, frozen, config, batch, reading)

    @stage
    def segment(frozen, batch, reading, found):
        return family_of(batch).segment(models, frozen, config, batch, reading, found)

    @stage
    def reward(batch, completions, reading, found, masks):
        return family_of(batch).reward(config, batch, completions, reading, found, masks)

    @functools.partial(stage, donate_argnums=0)
    def update(state, frozen, batch, media, completions, rewards):
        return learn.learn(
            models.thinker, optimizer, config, state, frozen, batch.policy, media, completions, rewards.total
        )

    def train_step(state: TrainState, frozen: Frozen, batch: Any, key: Key[Array, ""]):
        family_of(batch)  # refuses what no family knows before anything runs
        media = encode(frozen, batch)
        completions = sample(state, frozen, batch, media, jax.random.fold_in(key, state.step))
        reading = read(frozen, batch, completions)
        found = ground(frozen, batch, reading)
        masks = segment(frozen, batch, reading, found)
        rewards = reward(batch, completions, reading, found, masks)
        state, learned = update(state, frozen, batch, media, completions, rewards)
        return (
            state,
            summary(completions, rewards, learned, state),
            Rollout(completions, reading, found, masks, rewards),
        )

    out = None if shardings is None else (shardings, None, None)
    return jax.jit(train_step, donate_argnums=0, out_shardings=out) if mode == "fused" else train_step


def summary(completions: Completions, rewards: Rewards, learned: Learned, state: TrainState) -> dict[str, Array]:
    """Scalars of a step by name."""
    return {
        "reward/total": jnp.mean(rewards.total),
        "reward/std": jnp.mean(jnp.std(rewards.total, axis=1)),
        **{f"reward/{name}": jnp.mean(value) for name, value in rewards.terms.items()},
        **{f"failure/{name}": value for name, value in rewards.failures.items()},
        "completion/length": jnp.mean(completions.lengths.astype(jnp.float32)),
        "learn/loss": learned.loss,
        "learn/grad_norm": learned.grad_norm,
        "learn/entropy": learned.entropy,
        "learn/sampler_gap": learned.sampler_gap,
        "learn/skipped": state.skipped.astype(jnp.float32),
        **{f"learn/{name}": value for name, value in learned.grpo._asdict().items()},
    }
