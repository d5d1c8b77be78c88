"""One GRPO step: sample a group, let System 2 judge it, learn. One compiled program, no callback to the host."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, no_type_check, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.models.sam2.model import NO_OBJECT
from omnir1_jax.parallel import constrain_rows, jit, jit_step
from omnir1_jax.rl import grpo, learn, terms
from omnir1_jax.rl.config import Frozen, Models, Rewards, StepConfig
from omnir1_jax.rl.learn import Learned, TrainState
from omnir1_jax.systems import reasoner
from omnir1_jax.systems.grounders.protocol import GroundedBoxes

MODES = ("fused", "staged")


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Rollout:
    """A step's samples and rewards, for logs and pictures. `reading`, `grounding`, `masks` are the task's own."""

    completions: Completions
    reading: Any
    grounding: Any
    masks: Any
    rewards: Rewards


@runtime_checkable
class Task(Protocol):
    """The functions of a task that the step calls; `tasks.Task` describes their arguments and results."""

    read: Callable[..., Any]
    ground: Callable[..., Any]
    segment: Callable[..., Any]
    reward: Callable[..., Rewards]


TrainStep = Callable[[TrainState, Frozen, Any, Key[Array, ""]], tuple[TrainState, dict[str, Array], Rollout]]


class Stages(NamedTuple):
    """The step's stages, each a function of arrays."""

    encode: Callable[..., Any]  # frozen, batch
    sample: Callable[..., Any]  # state, frozen, batch, media, key
    read: Callable[..., Any]  # frozen, batch, completions
    ground: Callable[..., Any]  # frozen, batch, reading
    segment: Callable[..., Any]  # frozen, batch, reading, grounding
    reward: Callable[..., Any]  # batch, completions, reading, grounding, masks
    update: Callable[..., Any]  # state, frozen, batch, media, completions, rewards


def make_stages(task: Task, models: Models, optimizer: optax.GradientTransformation, config: StepConfig) -> Stages:
    """The stages of `make_train_step`, not compiled."""

    def encode(frozen, batch):
        return reasoner.encode(models.thinker, frozen.encoders, batch.policy)

    def sample(state, frozen, batch, media, key):
        variables = learn.policy(state.trainable, frozen, config)
        return reasoner.sample(models.thinker, variables, batch.policy, media, key, config.sampling, config.group)

    def read(frozen, batch, completions):
        return task.read(frozen, config, batch, completions)

    def ground(frozen, batch, reading):
        return task.ground(models, frozen, config, batch, reading)

    def segment(frozen, batch, reading, grounding):
        return task.segment(models, frozen, config, batch, reading, grounding)

    def reward(batch, completions, reading, grounding, masks):
        outputs = batch, completions, reading, grounding, masks
        rewards = terms.overlong(task.reward(config, *outputs), completions, config)
        return terms.add(rewards, [term for term in config.extra if not term.host], *outputs)

    def update(state, frozen, batch, media, completions, rewards):
        # Pixels and sound are in `media` already, so that they are not gathered.
        inputs = batch.policy.replace(vision=None, audio=None)
        rewards, inputs, media, completions = learn.widest(config, rewards, inputs, media, completions)
        score = terms.score(rewards, config)
        return learn.learn(models.thinker, optimizer, config, state, frozen, inputs, media, completions, score)

    # Named so that profiles and counts can tell the stages apart.
    stages = (jax.named_scope(f.__name__)(f) for f in (encode, sample, read, ground, segment, reward, update))
    return Stages(*stages)


def make_train_step(
    task: Task,
    models: Models,
    optimizer: optax.GradientTransformation,
    config: StepConfig,
    mode: str = "fused",
    shardings: TrainState | None = None,
) -> TrainStep:
    """The step `(state, frozen, batch, key) -> (state, metrics, rollout)`; `state` is donated.

    Args:
      task: the task of all batches that the step gets.
      optimizer: sees the gradients of `state.trainable`.
      mode: "fused" compiles the step as one program; "staged" compiles each stage by itself, for debugging, profiling
        and small memory. Both give the same numbers. A System 2 on the host needs "staged".
      shardings: of the state, which it keeps from step to step; default what the compiler chooses.
    """
    if mode not in MODES:
        raise InputError(f"step.mode: {mode!r} is none of {', '.join(MODES)}")
    if models.on_host and mode != "staged":
        raise InputError("step.mode: System 2 is on the host, so that the stages run one by one; take 'staged'")
    if models.on_host and jax.process_count() > 1:
        raise InputError("step.grounder: System 2 on the host trains in one process only")
    host_terms = [term for term in config.extra if term.host]
    if host_terms and mode != "staged":
        raise InputError(f"step.mode: {host_terms[0].name} of reward.extra runs on the host; take 'staged'")
    stages, log = make_stages(task, models, optimizer, config), _logged
    if mode == "staged":
        mesh = None if shardings is None else jax.tree.leaves(shardings)[0].mesh
        out_shardings = None if shardings is None else (shardings, None)
        update, ground = jit(stages.update, mesh, donate_argnums=0, out_shardings=out_shardings), stages.ground
        stages = Stages(*map(_awaited, (*(jit(function, mesh) for function in stages[:-1]), update)))
        if models.on_host:
            stages = stages._replace(ground=_awaited(ground))
        log = _awaited(jax.jit(_logged))

    def train_step(state: TrainState, frozen: Frozen, batch: Any, key: Key[Array, ""]):
        media, rollout = roll(stages, host_terms, state, frozen, batch, jax.random.fold_in(key, state.step))
        state, learned = stages.update(state, frozen, batch, media, rollout.completions, rollout.rewards)
        return state, *log(rollout, learned, state)

    if mode == "staged":
        return train_step
    # Unused arguments occupy the device's memory as well, so that a plan has to see them.
    return jit_step(train_step, shardings, keep_unused=True)


def roll(
    stages: Stages,
    host_terms: Sequence[terms.Extra],
    state: TrainState,
    frozen: Frozen,
    batch: Any,
    key: Key[Array, ""],
) -> tuple[Any, Rollout]:
    """A step up to its rewards: the encoders' output, and the rollout."""
    media = stages.encode(frozen, batch)
    completions = stages.sample(state, frozen, batch, media, key)
    reading = stages.read(frozen, batch, completions)
    grounding = stages.ground(frozen, batch, reading)
    masks = stages.segment(frozen, batch, reading, grounding)
    rewards = stages.reward(batch, completions, reading, grounding, masks)
    if host_terms:
        rewards = terms.add(rewards, host_terms, *jax.device_get((batch, completions, reading, grounding, masks)))
    return media, Rollout(completions, reading, grounding, masks, rewards)


def make_reward(
    task: Task, models: Models, config: StepConfig, mode: str = "fused", mesh: Mesh | None = None
) -> Callable[[TrainState, Frozen, Any, Key[Array, ""]], Float[Array, "b g"]]:
    """`(state, frozen, batch, key) -> rewards [b g]`: a step that learns nothing. Modes as of `make_train_step`."""
    stages = make_stages(task, models, optax.identity(), config)
    host_terms = [term for term in config.extra if term.host]
    if mode == "staged":
        ground = stages.ground
        stages = Stages(*(_awaited(jit(stage, mesh)) for stage in stages))
        stages = stages._replace(ground=_awaited(ground)) if models.on_host else stages

    def reward(state: TrainState, frozen: Frozen, batch: Any, key: Key[Array, ""]) -> Float[Array, "b g"]:
        return roll(stages, host_terms, state, frozen, batch, key)[1].rewards.total

    return reward if mode == "staged" else jit(reward, mesh)


def _awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    """Waits for a stage's results: stages are timed apart, and a CPU's virtual devices run one program at a time."""
    return lambda *arguments: jax.block_until_ready(function(*arguments))


def _logged(rollout: Rollout, learned: Learned, state: TrainState) -> tuple[dict[str, Array], Rollout]:
    metrics = summary(rollout.completions, rollout.rewards, learned, state) | loops(rollout)
    return constrain_rows((metrics, rollout), rollout.rewards.total.shape[0])


def loops(rollout: Rollout) -> dict[str, Array]:
    """Iterations of loops whose end depends on the data, and the number of tokens that System 2 decoded."""
    metrics = {"completion/longest": jnp.max(rollout.completions.lengths)}
    boxes, scores = getattr(rollout.grounding, "boxes", None), getattr(rollout.masks, "scores", None)
    if isinstance(boxes, GroundedBoxes):
        metrics["ground/frames"] = jnp.max(boxes.frames_read)
        if boxes.answer_tokens is not None:
            metrics["ground/longest_request"] = jnp.max(boxes.request_tokens)
            metrics["ground/longest_answer"] = jnp.max(boxes.answer_tokens)
            metrics["ground/answer_tokens"] = jnp.sum(boxes.answer_tokens)
    if scores is not None:
        tracked = jnp.any(scores != NO_OBJECT, axis=-1)
        metrics["ground/objects"] = jnp.max(jnp.sum(tracked, axis=(1, 2)))
    return {name: value.astype(jnp.float32) for name, value in metrics.items()}


def summary(completions: Completions, rewards: Rewards, learned: Learned, state: TrainState) -> dict[str, Array]:
    """Scalars of a step by name."""
    return {
        "reward/total": jnp.mean(rewards.total),
        "reward/std": jnp.mean(jnp.std(rewards.total, axis=1)),
        **{f"reward/{name}": jnp.mean(value) for name, value in rewards.terms.items()},
        **{f"failure/{name}": jnp.sum(count).astype(jnp.float32) for name, count in rewards.failures.items()},
        "completion/length": jnp.mean(completions.lengths.astype(jnp.float32)),
        "learn/loss": learned.loss,
        "learn/grad_norm": learned.grad_norm,
        "learn/entropy": learned.entropy,
        "learn/sampler_gap": learned.sampler_gap,
        "learn/skipped": state.skipped.astype(jnp.float32),
        **{f"learn/{name}": value for name, value in learned.grpo._asdict().items()},
        "reward/flat_groups": jnp.mean(grpo.flat_groups(rewards.total).astype(jnp.float32)),
    }
