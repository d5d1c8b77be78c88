"""Score in [0, 1] of one answer to a Video-R1 style question, by question type."""

import collections
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omnir1_jax.errors import InputError, optional
from omnir1_jax.text import tags

QUESTION_TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")


def extract_answer(text: str) -> str:
    """The first `<answer>` of a completion or solution, stripped; "" if there is none."""
    return (tags.between(text, "answer") or "").strip()


def number(text: str) -> float | None:
    """A finite number, thousands' commas removed; None if the text is not one."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein distance with unit costs."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Edits in words per reference word (an empty reference counts as one word)."""
    reference_words = reference.split()
    return edit_distance(reference_words, hypothesis.split()) / max(1, len(reference_words))


@functools.cache
def _scorer():
    # Here, because it imports NLTK, which takes a second.
    return optional("rouge_score.rouge_scorer", "eval").RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def rouge(reference: str, hypothesis: str) -> tuple[float, float, float]:
    """F of ROUGE-1, ROUGE-2 and ROUGE-L, words stemmed as for the published scores."""
    scores = _scorer().score(reference, hypothesis)
    rouge1, rouge2, longest = (float(scores[name].fmeasure) for name in ("rouge1", "rouge2", "rougeL"))
    return rouge1, rouge2, longest


def score_answer(question_type: str, gold: str, answer: str) -> float:
    """Score of `answer` (the text inside its answer tags). An unreadable answer scores 0."""
    gold, answer = gold.strip(), answer.strip()
    match question_type:
        case "multiple choice":
            return float(gold == answer)
        case "numerical":
            decimal = [("." in t) or ("," in t) for t in (gold, answer)]
            a, b = number(gold), number(answer)
            return float(a is not None and b is not None and decimal[0] == decimal[1] and round(a, 2) == round(b, 2))
        case "OCR":
            return min(max(1.0 - word_error_rate(gold, answer), 0.0), 1.0)
        case "free-form":
            return sum(rouge(gold, answer)) / 3
        case "regression":
            a, b = number(gold), number(answer)
            return 0.0 if a is None or b is None else 1.0 - min(1.0, (abs(b - a) + 1e-9) / (abs(a) + 1e-9))
    raise InputError(f"question type {question_type!r}: expected one of {', '.join(QUESTION_TYPES)}")


def video_r1(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Rows with `problem_type`, `solution` (`<answer>...</answer>`), `completion`: mean score in percent, by type."""
    scores: dict[str, list[float]] = collections.defaultdict(list)
    for row in rows:
        gold, answer = extract_answer(row["solution"]), extract_answer(row["completion"])
        scores[row["problem_type"]].append(score_answer(row["problem_type"], gold, answer))
    all_scores = [x for values in scores.values() for x in values]
    if not all_scores:
        raise InputError("no question to score")
    table = {kind: {"score": 100 * sum(v) / len(v), "count": len(v)} for kind, v in sorted(scores.items())}
    return {"score": 100 * sum(all_scores) / len(all_scores), "count": len(all_scores), "problem_type": table}
