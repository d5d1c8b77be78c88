"""Policies as variables of the decoder, and the update: scores, loss, optimiser."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from omnir1_jax.models import lora
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.models.qwen_omni.score import score
from omnir1_jax.models.qwen_omni.thinker import Thinker
from omnir1_jax.parallel import constrain_rows, replicated, state_shardings, tree_shardings
from omnir1_jax.rl import grpo
from omnir1_jax.rl.config import Frozen, Rewards, StepConfig
from omnir1_jax.systems import reasoner
from omnir1_jax.systems.reasoner import Media


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: rollouts so far.
      trainable: the decoder's parameters, or the adapter.
      skipped: updates left out because the loss or a gradient was not finite.
    """

    step: Int[Array, ""]
    trainable: Any
    opt_state: Any
    skipped: Int[Array, ""]


class Learned(NamedTuple):
    """Means over the step's updates."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    entropy: Float[Array, ""]
    sampler_gap: Float[Array, ""]  # largest difference of a token's log-prob between sampler and scorer
    grpo: grpo.GrpoMetrics


def init(trainable: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A state before the first step."""
    zero = lambda: jnp.zeros((), jnp.int32)
    return TrainState(zero(), trainable, optimizer.init(trainable), zero())


def shardings(mesh: Mesh, boxed: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Shardings of a state for parameters `boxed` with their logical axes; moments are sharded like parameters."""
    return TrainState(
        replicated(mesh), tree_shardings(mesh, boxed), state_shardings(mesh, boxed, optimizer), replicated(mesh)
    )


def policy(trainable: Any, frozen: Frozen, config: StepConfig) -> Mapping[str, Any]:
    """The decoder's variables: the trained parameters, or the reference with the trained adapter."""
    if config.lora is None:
        return {"params": trainable}
    return lora.adapted(frozen.reference, trainable, config.lora)


def apply_if_finite(
    state: TrainState, loss: Float[Array, ""], grads: Any, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Float[Array, ""]]:
    """One optimiser update, or none where the loss or a gradient is not finite. Also the gradient's norm."""
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    # The optimiser runs either way; zero gradients keep NaN out of results that are discarded.
    finite_grads = jax.tree.map(lambda g: jnp.where(finite, g, 0), grads)
    updates, opt_state = optimizer.update(finite_grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    state = dataclasses.replace(
        state,
        trainable=keep(trainable, state.trainable),
        opt_state=keep(opt_state, state.opt_state),
        skipped=state.skipped + ~finite,
    )
    return state, norm


def widest(config: StepConfig, rewards: Rewards, *trees: Any) -> tuple[Any, ...]:
    """Rewards and other trees of the share `config.keep` of a batch's prompts: those whose rewards spread most.

    They stay in the batch's order; of equal ones the first stay. Over a mesh they are resharded.
    """
    b = rewards.total.shape[0]
    size = round(b * config.keep)
    if size == b:
        return rewards, *trees
    order = jnp.argsort(-grpo.spread(rewards.total), stable=True)
    rows = jnp.sort(order[:size])
    return constrain_rows(jax.tree.map(lambda x: jnp.take(x, rows, axis=0), (rewards, *trees)), size)


def learn(
    thinker: Thinker,
    optimizer: optax.GradientTransformation,
    config: StepConfig,
    state: TrainState,
    frozen: Frozen,
    inputs: ThinkerInputs,
    media: Media,
    completions: Completions,
    rewards: Float[Array, "b g"],
) -> tuple[TrainState, Learned]:
    """`config.updates` updates on one rollout. The prompt is read once for all completions of a group."""
    decoder = thinker.decoder()
    max_tokens = completions.tokens.shape[-1]
    real = jnp.arange(max_tokens) < completions.lengths[..., None]
    sizes = (*sorted(size for size in set(config.score_lengths) if size < max_tokens), max_tokens)
    size_index = jnp.searchsorted(jnp.asarray(sizes), jnp.max(completions.lengths))

    def scores(variables, size):
        """Scores of the first `size` tokens of each completion, beyond which all is padding."""
        token_scores = score(
            decoder,
            variables,
            reasoner.prompt(thinker, variables, inputs, media),
            completions.tokens[..., :size],
            completions.lengths,
            temperature=config.sampling.temperature or 1.0,
            entropy=True,
            chunk=config.score_chunk,
        )
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, max_tokens - size))), token_scores)

    def objective(trainable, old, reference, size):
        current = scores(policy(trainable, frozen, config), size)
        old_logprobs = jax.lax.stop_gradient(current.logprobs) if old is None else old
        reference_logprobs = jax.lax.stop_gradient(current.logprobs) if reference is None else reference
        loss, metrics = grpo.loss(current.logprobs, old_logprobs, reference_logprobs, real, rewards, config.grpo)
        return loss, (current, metrics)

    def shortest(function, *operands):
        """`function` on the smallest of `sizes` that holds the longest completion."""
        return jax.lax.switch(size_index, [functools.partial(function, size=size) for size in sizes], *operands)

    reference = None
    if config.grpo.beta > 0:
        with jax.named_scope("reference"):
            reference = jax.lax.stop_gradient(shortest(scores, {"params": frozen.reference}).logprobs)
    old, sampler_gap, results = None, None, []
    for _ in range(config.updates):
        (loss, (current, metrics)), grads = shortest(
            jax.value_and_grad(objective, has_aux=True), state.trainable, old, reference
        )
        if old is None:
            old = jax.lax.stop_gradient(current.logprobs)
            sampler_gap = jnp.max(jnp.where(real, jnp.abs(old - completions.logprobs), 0.0))
        state, norm = apply_if_finite(state, loss, grads, optimizer)
        entropy = jnp.sum(jnp.where(real, current.entropy, 0.0)) / jnp.maximum(jnp.sum(real), 1)
        results.append(Learned(loss, norm, entropy, sampler_gap, metrics))
    return dataclasses.replace(state, step=state.step + 1), jax.tree.map(lambda *x: jnp.mean(jnp.stack(x)), *results)
