"""From completions and a dataset's reader to the benchmark's table of question answering."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omnir1_jax.data.samples import BadSample, ClipRef, Reader
from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import qa, qa_score

Answered = Sequence[tuple[ClipRef, str]]


def _choices(*groups: str, first_letter: bool = False) -> Callable[[Answered], Mapping[str, Any]]:
    def table(answered: Answered) -> Mapping[str, Any]:
        questions = []
        for ref, completion in answered:
            options, gold = ref.extra["options"], ref.extra["answer_index"]
            if options and gold is not None:
                labels = {g: str(ref.extra[g]) for g in groups if ref.extra.get(g) is not None}
                questions.append(qa.Choice(options, gold, completion, labels))
        return qa.accuracy(questions, first_letter)

    return table


def _avhbench(answered: Answered) -> Mapping[str, Any]:
    return qa.avhbench(
        {"task": r.extra["task"], "label": r.extra["answer"], "video_id": r.extra["video_id"], "completion": c}
        for r, c in answered
    )


def _videor1(answered: Answered) -> Mapping[str, Any]:
    return qa_score.video_r1(
        {
            "problem_type": r.extra["problem_type"],
            "solution": f"<answer>{r.extra['answer']}</answer>",
            "completion": c,
        }
        for r, c in answered
    )


TABLES: Mapping[str, Callable[[Answered], Mapping[str, Any]]] = {
    "omnibench": _choices("audio_type", "task_type"),
    "videomme": _choices("duration", "domain", "sub_category", "task_type", first_letter=True),
    "mvbench": _choices("task"),
    "avhbench": _avhbench,
    "videor1": _videor1,
    "folder": _choices(),
}


def score(reader: Reader, completions: Mapping[str, str]) -> dict[str, Any]:
    """The table of the reader's benchmark from completions by sample id.

    Raises InputError where a completion is missing. Samples whose entry is unusable have none and are counted.
    """
    if reader.name not in TABLES:
        raise InputError(f"no answers to score for {reader.name}; expected one of {', '.join(TABLES)}")
    answered, unusable, missing = [], 0, []
    for position in range(len(reader)):
        try:
            ref = reader[position]
        except BadSample:
            unusable += 1
            continue
        if ref.family != "qa":
            continue
        if ref.sample_id in completions:
            answered.append((ref, completions[ref.sample_id]))
        else:
            missing.append(ref.sample_id)
    if missing:
        raise InputError(f"{len(missing)} of {len(reader)} questions have no completion, first {missing[0]}")
    return {**TABLES[reader.name](answered), "unusable_samples": unusable}
