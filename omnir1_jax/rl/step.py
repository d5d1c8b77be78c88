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
    """What happened, for logs and pictures. `reading`, `found`, `masks` are the task's own."""

    completions: Completions
    reading: Any
    found: Any
    masks: Any
    rewards: Rewards


@runtime_checkable
class Task(Protocol):
    """What the step asks of a task; `tasks.Task` says what each function takes and gives."""

    read: Callable[..., Any]
    ground: Callable[..., Any]
    segment: Callable[..., Any]
    reward: Callable[..., Rewards]


TrainStep = Callable[[TrainState, Frozen, Any, Key[Array, ""]], tuple[TrainState, dict[str, Array], Rollout]]


class Stages(NamedTuple):
    """The step's arrows, each a function of arrays."""

    encode: Callable[..., Any]  # frozen, batch
    sample: Callable[..., Any]  # state, frozen, batch, media, key
    read: Callable[..., Any]  # frozen, batch, completions
    ground: Callable[..., Any]  # frozen, batch, reading
    segment: Callable[..., Any]  # frozen, batch, reading, found
    reward: Callable[..., Any]  # batch, completions, reading, found, masks
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

    def segment(frozen, batch, reading, found):
        return task.segment(models, frozen, config, batch, reading, found)

    def reward(batch, completions, reading, found, masks):
        outputs = batch, completions, reading, found, masks
        rewards = terms.overlong(task.reward(config, *outputs), completions, config)
        return terms.add(rewards, [term for term in config.extra if not term.host], *outputs)

    def update(state, frozen, batch, media, completions, rewards):
        # Pixels and sound are in `media` already, so that only what is read again is gathered.
        inputs = batch.policy.replace(vision=None, audio=None)
        rewards, inputs, media, completions = learn.widest(config, rewards, inputs, media, completions)
        score = terms.score(rewards, config)
        return learn.learn(models.thinker, optimizer, config, state, frozen, inputs, media, completions, score)

    # Named so that profiles and counts can tell the stages apart.
    named = (jax.named_scope(f.__name__)(f) for f in (encode, sample, read, ground, segment, reward, update))
    return Stages(*named)


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
      task: of all batches that the step gets.
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
    host = [term for term in config.extra if term.host]
    if host and mode != "staged":
        raise InputError(f"step.mode: {host[0].name} of reward.extra runs on the host; take 'staged'")
    stage, log = make_stages(task, models, optimizer, config), _logged
    if mode == "staged":
        mesh = None if shardings is None else jax.tree.leaves(shardings)[0].mesh
        kept = None if shardings is None else (shardings, None)
        update, ground = jit(stage.update, mesh, donate_argnums=0, out_shardings=kept), stage.ground
        stage = Stages(*map(_awaited, (*(jit(each, mesh) for each in stage[:-1]), update)))
        if models.on_host:
            stage = stage._replace(ground=_awaited(ground))
        log = _awaited(jax.jit(_logged))

    def train_step(state: TrainState, frozen: Frozen, batch: Any, key: Key[Array, ""]):
        media, rollout = roll(stage, host, state, frozen, batch, jax.random.fold_in(key, state.step))
        state, learned = stage.update(state, frozen, batch, media, rollout.completions, rollout.rewards)
        return state, *log(rollout, learned, state)

    if mode == "staged":
        return train_step
    # What the step has no use for lies in the device's memory all the same, so that a plan has to see it.
    return jit_step(train_step, shardings, keep_unused=True)


def roll(
    stage: Stages, host: Sequence[terms.Extra], state: TrainState, frozen: Frozen, batch: Any, key: Key[Array, ""]
) -> tuple[Any, Rollout]:
    """What a step does before it learns: the encoders' output, and everything that was sampled, found and earned."""
    media = stage.encode(frozen, batch)
    completions = stage.sample(state, frozen, batch, media, key)
    reading = stage.read(frozen, batch, completions)
    found = stage.ground(frozen, batch, reading)
    masks = stage.segment(frozen, batch, reading, found)
    rewards = stage.reward(batch, completions, reading, found, masks)
    if host:
        rewards = terms.add(rewards, host, *jax.device_get((batch, completions, reading, found, masks)))
    return media, Rollout(completions, reading, found, masks, rewards)


def make_reward(
    task: Task, models: Models, config: StepConfig, mode: str = "fused", mesh: Mesh | None = None
) -> Callable[[TrainState, Frozen, Any, Key[Array, ""]], Float[Array, "b g"]]:
    """`(state, frozen, batch, key) -> rewards [b g]`: a step that learns nothing. Modes as of `make_train_step`."""
    stage, host = make_stages(task, models, optax.identity(), config), [term for term in config.extra if term.host]
    if mode == "staged":
        ground = stage.ground
        stage = Stages(*(_awaited(jit(each, mesh)) for each in stage))
        stage = stage._replace(ground=_awaited(ground)) if models.on_host else stage

    def reward(state: TrainState, frozen: Frozen, batch: Any, key: Key[Array, ""]) -> Float[Array, "b g"]:
        return roll(stage, host, state, frozen, batch, key)[1].rewards.total

    return reward if mode == "staged" else jit(reward, mesh)


def _awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    """A stage ends before the next begins: its time is its own, and virtual devices of a CPU meet in one program."""
    return lambda *arguments: jax.block_until_ready(function(*arguments))


def _logged(rollout: Rollout, learned: Learned, state: TrainState) -> tuple[dict[str, Array], Rollout]:
    metrics = summary(rollout.completions, rollout.rewards, learned, state) | loops(rollout)
    return constrain_rows((metrics, rollout), rollout.rewards.total.shape[0])


def loops(rollout: Rollout) -> dict[str, Array]:
    """How far the loops went that end by the data, and the tokens that System 2 decoded."""
    found = {"completion/longest": jnp.max(rollout.completions.lengths)}
    boxes, scores = getattr(rollout.found, "boxes", None), getattr(rollout.masks, "scores", None)
    if isinstance(boxes, GroundedBoxes):
        found["ground/frames"] = jnp.max(boxes.frames_read)
        if boxes.answer_tokens is not None:
            found["ground/longest_request"] = jnp.max(boxes.request_tokens)
            found["ground/longest_answer"] = jnp.max(boxes.answer_tokens)
            found["ground/answer_tokens"] = jnp.sum(boxes.answer_tokens)
    if scores is not None:
        tracked = jnp.any(scores != NO_OBJECT, axis=-1)
        found["ground/objects"] = jnp.max(jnp.sum(tracked, axis=(1, 2)))
    return {name: value.astype(jnp.float32) for name, value in found.items()}


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
