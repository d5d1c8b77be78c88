"""The answer about one item as plain values: for the log of an evaluation and for pictures."""

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from omnir1_jax import tasks
from omnir1_jax.inference.answer import Answers, Prompts
from omnir1_jax.inference.samples import Sample
from omnir1_jax.tasks.description import Box


def record(
    sample: Sample, answers: Answers | None, row: int, task: tasks.Task, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """One line of `results.jsonl`, without scores.

    Args:
      answers: answers of the batch, on the host; None where the sample could not be read.
      row: row of the sample in the batch.
    """
    line: dict[str, Any] = {
        "position": sample.position,
        "sample_id": sample.sample_id,
        "query": "" if sample.ref is None else sample.ref.query,
        "fault": sample.fault,
        "completion": "",
        "plan": [],
        "keyframes": [],
        "failures": [],
    }
    if answers is None or sample.fault is not None:
        return line | {"failures": ["sample/bad"]}
    index = (row, 0)
    tokens = answers.completions.tokens[index][: int(answers.completions.lengths[index])].tolist()
    line["completion"] = tokenizer.decode(tokens, skip_special_tokens=True)
    failures = [name for name, count in answers.failures.items() if count[index]]
    if task.grounds:
        description, prompts = task.describe(None, answers.reading, answers, index), answers.prompts
        slots = np.flatnonzero(answers.chosen.valid[row]).tolist()
        keyframes = [
            keyframe._replace(frame=int(prompts.frames[row, k]), boxes=_boxes(prompts, row, k))
            for k, keyframe in zip(slots, description.keyframes, strict=True)
        ]
        if keyframes and not prompts.used[row].any():
            failures += ["box/none"]
        line |= {} if description.answer is None else {"answer": description.answer}
        line["plan"] = [piece._asdict() for piece in description.pieces]
        line["keyframes"] = [keyframe._asdict() for keyframe in keyframes]
    return line | {"failures": sorted(failures)}


def _boxes(prompts: Prompts, row: int, k: int) -> tuple[Box, ...]:
    return tuple(tuple(float(x) for x in box) for box in prompts.boxes[row, k, prompts.used[row, k]])
