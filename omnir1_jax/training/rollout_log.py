"""From a step's rollout on the devices to its log: a `reporting.example.Example` per completion.

Only the rows of this process are logged: with several hosts, the prompts of the first.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from omnir1_jax.reporting.example import Example
from omnir1_jax.rl import grpo, terms
from omnir1_jax.rl.config import StepConfig
from omnir1_jax.rl.step import Rollout
from omnir1_jax.tasks import Task

# One program: its operations, each compiled by itself, take as long as a step of the toy.
_advantages = jax.jit(grpo.advantages, static_argnums=1)


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
      clips: number of completions that get a picture's data: the best of each prompt first, then the worst of each.
    """
    tokens, lengths, reading, grounding, rewards = fetch(
        (rollout.completions.tokens, rollout.completions.lengths, rollout.reading, rollout.grounding, rollout.rewards)
    )
    facts = fetch(task.facts(batch))
    score = terms.score(jax.device_put(rewards.replace(failures={})), config)
    advantages = np.asarray(_advantages(score, config.grpo.advantage))
    b, g = lengths.shape
    decode = lambda ids, length: tokenizer.decode(ids[:length].tolist(), skip_special_tokens=True)
    results = []
    for index in np.ndindex(b, g):
        results.append(
            Example(
                sample_id=sample_ids[index[0]],
                query=queries[index[0]],
                completion=decode(tokens[index], lengths[index]),
                family=task.name,
                reward=float(rewards.total[index]),
                rewards={name: float(value[index]) for name, value in rewards.terms.items()},
                advantage=float(advantages[index]),
                failures=tuple(name for name, count in rewards.failures.items() if count[index]),
                **task.describe(facts, reading, grounding, index)._asdict(),
            )
        )
    pictured = choose_pictured(rewards.total, clips)
    if pictured:
        masks = None if rollout.masks is None else fetch(rollout.masks.union)
        host_batch = fetch(batch)
        for i, j in pictured:
            clip = task.picture(host_batch, i)
            if masks is not None:
                clip = clip._replace(predicted=masks[i, j][np.asarray(host_batch.frame_valid[i])])
            results[i * g + j] = results[i * g + j]._replace(clip=clip)
    return results


def choose_pictured(reward: Float[np.ndarray, "b g"], count: int) -> list[tuple[int, int]]:
    """The completions to picture: the best of each prompt, then the worst of each if that is another one."""
    best = [(i, int(row.argmax())) for i, row in enumerate(reward)]
    worst = [(i, int(row.argmin())) for i, row in enumerate(reward)]
    return list(dict.fromkeys(best + worst))[:count]


def fetch(tree: Any) -> Any:
    """A tree of arrays on the host; of an array that spans several hosts, this one's rows in order."""
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
