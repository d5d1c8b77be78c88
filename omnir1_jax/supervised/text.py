"""Supervised training of the thinker on given texts: cross entropy on several targets of each prompt."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from omnir1_jax.config.sections import Lora
from omnir1_jax.errors import InputError
from omnir1_jax.models import lora
from omnir1_jax.models.qwen_omni.cache import Prompt
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.score import score
from omnir1_jax.models.qwen_omni.thinker import Thinker
from omnir1_jax.parallel import jit_step
from omnir1_jax.rl.config import Frozen, Models
from omnir1_jax.rl.learn import TrainState, apply_if_finite
from omnir1_jax.systems import reasoner
from omnir1_jax.tasks.task import tree_of


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Config of the supervised step.

    Attributes:
      encoders: whether to train the whole thinker; otherwise its decoder, or a LoRA adapter of it, as in GRPO.
      lora: settings of the adapter.
      score_chunk: number of tokens of a row whose logits exist at a time.
    """

    encoders: bool
    lora: Lora | None
    score_chunk: int

    def __post_init__(self):
        if self.encoders and self.lora is not None:
            raise InputError("sft.encoders: encoders are trained whole, so lora.rank has to be 0")


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Batch:
    """Prompts with g target texts each, which do not see one another.

    Attributes:
      tokens: tokens after the prompt: for each target an optional question, then the answer.
      lengths: number of tokens of each target; 0 for an absent one.
      weights: weight of each token in the loss, 0 for questions.
      task: name of the task in the metrics.
    """

    policy: ThinkerInputs
    tokens: Int[Array, "b g c"]
    lengths: Int[Array, "b g"]
    weights: Float[Array, "b g c"]
    task: str = flax.struct.field(pytree_node=False, default="")


SftStep = Callable[[TrainState, Frozen, Batch, Key[Array, ""]], tuple[TrainState, dict[str, Array], None]]


def loss(
    thinker: Thinker, config: SftConfig, trainable: Any, frozen: Frozen, batch: Batch
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean cross entropy in nats over the targets' tokens by their weights, and the share of them that are most
    probable. The prompt is read once for all its targets."""
    prompt, variables = _prompt(thinker, config, trainable, frozen, batch.policy)
    scores = score(
        thinker.decoder(), variables, prompt, batch.tokens, batch.lengths, temperature=1.0, chunk=config.score_chunk
    )
    real = jnp.arange(batch.tokens.shape[-1]) < batch.lengths[..., None]
    weights = jnp.where(real, batch.weights, 0.0)
    total = jnp.maximum(jnp.sum(weights), 1e-6)
    return -jnp.sum(weights * scores.logprobs) / total, jnp.sum(weights * scores.best) / total


def _prompt(
    thinker: Thinker, config: SftConfig, trainable: Any, frozen: Frozen, inputs: ThinkerInputs
) -> tuple[Prompt, Mapping[str, Any]]:
    """The prompts, and the decoder's variables; the encoders get a gradient where they are trained."""
    if config.encoders:
        return thinker.apply({"params": trainable}, inputs, method="prompt"), {"params": trainable["text"]}
    variables = {"params": trainable}
    if config.lora is not None:
        variables = lora.adapted(frozen.reference, trainable, config.lora)
    return reasoner.prompt(thinker, variables, inputs, reasoner.encode(thinker, frozen.encoders, inputs)), variables


def make_sft_step(
    models: Models, optimizer: optax.GradientTransformation, config: SftConfig, shardings: TrainState | None = None
) -> SftStep:
    """The step `(state, frozen, batch, key) -> (state, metrics, None)`; `state` is donated.

    Args:
      optimizer: gets the gradients of `state.trainable`: the decoder's parameters or an adapter as in
        `rl.step.make_train_step`, so that a run there can start from the state; with `config.encoders` all parameters.
      shardings: shardings of the state, kept from step to step; by default the compiler's choice.
    """

    def train_step(state: TrainState, frozen: Frozen, batch: Batch, key: Key[Array, ""]):
        del key  # nothing is drawn

        def objective(trainable):
            return loss(models.thinker, config, trainable, frozen, batch)

        (value, accuracy), grads = jax.value_and_grad(objective, has_aux=True)(state.trainable)
        state, norm = apply_if_finite(state, value, grads, optimizer)
        metrics = {
            "sft/loss": value,
            "sft/accuracy": accuracy,
            "learn/grad_norm": norm,
            "learn/skipped": state.skipped.astype(jnp.float32),
        }
        if batch.task:
            metrics |= {f"sft/loss/{batch.task}": value, f"sft/accuracy/{batch.task}": accuracy}
        return dataclasses.replace(state, step=state.step + 1), metrics, None

    return jit_step(train_step, shardings)


def to_batch(task: str, arrays: Mapping[str, Any]) -> Batch:
    """The step's batch of a task from the pipeline's flat arrays (numpy, jax or shapes).

    Examples with several prompts (`targets.grounding`) become several rows.
    """
    if len(arrays["policy/tokens"].shape) == 3:
        arrays = {key: value.reshape(-1, *value.shape[2:]) for key, value in arrays.items()}
    tree = tree_of(arrays)
    return Batch(tree["policy"], **tree["target"], task=task)
