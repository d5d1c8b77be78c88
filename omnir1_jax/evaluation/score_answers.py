"""Scores completions against a dataset's reader: the benchmark's table of question answering."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from omnir1_jax.data.refs import BadSample, ClipRef, Reader
from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import qa, qa_official, qa_score

Answered = Sequence[tuple[ClipRef, str]]
Scoring = Literal["clean", "official"]
Table = Callable[[Answered], Mapping[str, Any]]
Metric = Callable[[ClipRef, str], Mapping[str, float]]


def _choices(*groups: str, judge: Callable[[qa.Choice], bool | None], of_answered: bool = False) -> Table:
    def table(answered: Answered) -> Mapping[str, Any]:
        questions = []
        for ref, completion in answered:
            options, gold = ref.extra["options"], ref.extra["answer_index"]
            if options and gold is not None:
                labels = {g: str(ref.extra[g]) for g in groups if ref.extra.get(g) is not None}
                questions.append(qa.Choice(options, gold, completion, labels))
        return qa.accuracy(questions, judge, of_answered)

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


_OMNIBENCH = ("audio_type", "task_type")
_DAILY_OMNI = ("task_type", "video_category", "duration")
_VIDEO_MME = ("duration", "domain", "sub_category", "task_type")
TABLES: Mapping[str, Table] = {
    "omnibench": _choices(*_OMNIBENCH, judge=qa.by_option),
    "dailyomni": _choices(*_DAILY_OMNI, judge=qa.by_option),
    "videomme": _choices(*_VIDEO_MME, judge=qa.by_first_letter),
    "mvbench": _choices("task", judge=qa.by_option),
    "avhbench": _avhbench,
    "videor1": _videor1,
    "folder": _choices(judge=qa.by_option),
}
# Tables by the rules of the published scripts, if these differ.
OFFICIAL: Mapping[str, Table] = {
    "omnibench": _choices(*_OMNIBENCH, judge=qa_official.omnibench),
    "dailyomni": _choices(*_DAILY_OMNI, judge=qa_official.daily_omni),
    "videomme": _choices(*_VIDEO_MME, judge=qa_official.video_mme, of_answered=True),
    "mvbench": _choices("task", judge=qa_official.mvbench),
}


def means(metric: Metric) -> Table:
    """Mean scores over the clips that have any, in percent."""

    def table(answered: Answered) -> Mapping[str, Any]:
        scores = [clip_scores for ref, completion in answered if (clip_scores := metric(ref, completion))]
        names = dict.fromkeys(name for clip_scores in scores for name in clip_scores)
        of = lambda name: [clip_scores[name] for clip_scores in scores if name in clip_scores]
        return {**{name: 100 * math.fsum(of(name)) / len(of(name)) for name in names}, "count": len(scores)}

    return table


def score(
    reader: Reader, completions: Mapping[str, str], scoring: Scoring = "clean", metric: Metric | None = None
) -> dict[str, Any]:
    """The table of the reader's benchmark from completions by sample id.

    Args:
      metric: function that scores a clip, for a reader without a benchmark.
      scoring: "official" follows the published script if there is one in `OFFICIAL`; "clean" differs where the script
        contradicts the benchmark's own description.

    Raises InputError where a completion is missing. Samples whose entry is unusable have none and are counted.
    """
    if reader.name not in TABLES and metric is None:
        raise InputError(f"no answers to score for {reader.name}; expected one of {', '.join(TABLES)}")
    tables = {**TABLES, **OFFICIAL} if scoring == "official" else TABLES
    table = tables[reader.name] if reader.name in TABLES else means(metric)
    answered, unusable, missing = [], 0, []
    for position in range(len(reader)):
        try:
            ref = reader[position]
        except BadSample:
            unusable += 1
            continue
        if reader.name in TABLES and ref.family != "qa":
            continue
        if ref.sample_id in completions:
            answered.append((ref, completions[ref.sample_id]))
        else:
            missing.append(ref.sample_id)
    if missing:
        raise InputError(f"{len(missing)} of {len(reader)} questions have no completion, first {missing[0]}")
    return {**table(answered), "unusable_samples": unusable}
