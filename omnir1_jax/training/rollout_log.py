"""From a step's rollout on the devices to what a person reads of it: `reporting.example.Example` of every completion.

Only what this process has is told: with several hosts, the prompts of the first.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from omnir1_jax.reporting.example import Example
from omnir1_jax.rl import grpo, terms
from omnir1_jax.rl.config import StepConfig
from omnir1_jax.rl.step import Rollout
from omnir1_jax.tasks import Task


def examples(
    task: Task,
    batch: Any,
    rollout: Rollout,
    sample_ids: Sequence[str],
    queries: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    config: StepConfig,
    clips: int = 0,
) -> list[Example]:
    """Every completion of a step, those of a prompt together.

    Args:
      batch: the step's; its pixels are fetched only for the clips.
      sample_ids, queries: of its prompts.
      clips: how many completions get what a picture needs: the best of each prompt first, then the worst of each.
    """
    tokens, lengths, reading, found, rewards = fetch(
        (rollout.completions.tokens, rollout.completions.lengths, rollout.reading, rollout.grounding, rollout.rewards)
    )
    facts = fetch(task.facts(batch))
    score = terms.score(jax.tree.map(jnp.asarray, rewards.replace(failures={})), config)
    advantages = np.asarray(grpo.advantages(score, config.grpo.advantage))
    b, g = lengths.shape
    write = lambda ids, length: tokenizer.decode(ids[:length].tolist(), skip_special_tokens=True)
    out = []
    for at in np.ndindex(b, g):
        out.append(
            Example(
                sample_id=sample_ids[at[0]],
                query=queries[at[0]],
                completion=write(tokens[at], lengths[at]),
                family=task.name,
                reward=float(rewards.total[at]),
                rewards={name: float(value[at]) for name, value in rewards.terms.items()},
                advantage=float(advantages[at]),
                failures=tuple(name for name, count in rewards.failures.items() if count[at]),
                **task.describe(facts, reading, found, at)._asdict(),
            )
        )
    chosen = picked(rewards.total, clips)
    if chosen:
        masks = None if rollout.masks is None else fetch(rollout.masks.union)
        whole = fetch(batch)
        for i, j in chosen:
            clip = task.picture(whole, i)
            if masks is not None:
                clip = clip._replace(predicted=masks[i, j][np.asarray(whole.frame_valid[i])])
            out[i * g + j] = out[i * g + j]._replace(clip=clip)
    return out


def picked(reward: Float[np.ndarray, "b g"], count: int) -> list[tuple[int, int]]:
    """The completions worth a picture: the best of each prompt, then the worst of each where that is another one."""
    best = [(i, int(row.argmax())) for i, row in enumerate(reward)]
    worst = [(i, int(row.argmin())) for i, row in enumerate(reward)]
    return list(dict.fromkeys(best + worst))[:count]


def fetch(tree: Any) -> Any:
    """A tree of arrays on the host; of an array that spans several hosts the rows that are here, in order."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            leaf.copy_to_host_async()
    return jax.tree.map(_rows, tree)


def _rows(array: Any) -> np.ndarray:
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    return rows_here(array)


def rows_here(array: jax.Array) -> np.ndarray:
    """The rows of a sharded array that this process holds, each once."""
    if not array.ndim:
        return np.asarray(array.addressable_shards[0].data)
    parts: dict[int, np.ndarray] = {}
    for shard in array.addressable_shards:
        start = shard.index[0].start or 0
        if start not in parts:
            parts[start] = np.asarray(shard.data)
    return np.concatenate([parts[start] for start in sorted(parts)])
