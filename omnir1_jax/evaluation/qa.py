"""Question answering: reading an answer out of a completion, and the scores of each benchmark.

OmniBench, Video-MME, MVBench: share of correct choices. AVHBench: yes/no statistics. Video-R1 style questions:
a score in [0, 1] by question type. A completion that answers nothing readable is wrong, and is counted.
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from omnir1_jax.errors import InputError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
JUDGE_TASKS = ("Audio-driven Video Hallucination", "Video-driven Audio Hallucination", "AV Matching")

_ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
_THINK = re.compile(r"^.*</think>", re.DOTALL)
_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_OPTION_LABEL = re.compile(r"^\s*\(?([A-Z])\s*[).:]\s*")


def answer_text(completion: str) -> str:
    """The first `<answer>`, else what follows the thinking, else the whole completion; stripped."""
    if found := _ANSWER.search(completion):
        return found.group(1).strip()
    return _THINK.sub("", completion).replace("<answer>", "").strip()


def choice_letter(text: str, letters: str = "ABCD") -> str | None:
    """Video-MME's rule: without the usual lead-ins, the first of `letters` (upper case) anywhere in the text.

    More than ten words with no letter among them, or no letter at all, is no answer.
    """
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    found = re.search(f"[{letters}]", text)
    return found.group(0) if found else None


def option_text(option: str) -> str:
    """An option without its label: "B. two cats" -> "two cats"."""
    return _OPTION_LABEL.sub("", option).strip()


def option_index(completion: str, options: Sequence[str]) -> int | None:
    """Which option a completion picks, or None.

    In this order: a label at the start ("B", "(B)", "B. ..."), the full text of one option (any case),
    the first letter standing alone, Video-MME's first letter anywhere.
    """
    text = answer_text(completion)
    letters = LETTERS[: len(options)]
    stripped = text
    for prefix in _PREFIXES:
        stripped = stripped.replace(prefix, "")
    stripped = stripped.strip(" \n\t:*")
    if found := re.match(rf"\(?([{letters}])(?:[).:,\s*]|$)(?![a-z'])", stripped):
        # "A cat ..." opens with an article: a bare A counts only where nothing follows it on the line.
        bare = not stripped.startswith("(") and stripped[1:2] == " "
        if not bare:
            return letters.index(found.group(1))
    folded = text.casefold().rstrip(".")
    texts = [option_text(o).casefold().rstrip(".") for o in options]
    if folded in texts:
        return texts.index(folded)
    inside = [i for i, t in enumerate(texts) if t and re.search(rf"(?<!\w){re.escape(t)}(?!\w)", folded)]
    if inside:
        # "two cats" is also found within "two cats and a dog": the longest counts if it holds all the others.
        longest = max(inside, key=lambda i: len(texts[i]))
        if all(texts[i] in texts[longest] for i in inside):
            return longest
    if alone := re.search(rf"\(([{letters}])\)|\b([{letters}])\b(?! [a-z])", stripped):
        return letters.index(alone.group(1) or alone.group(2))
    letter = choice_letter(text, letters)
    return letters.index(letter) if letter else None


class Choice(NamedTuple):
    """One multiple-choice question: its options, the gold option's index, the model's completion, its groups
    (e.g. {"audio type": "speech"})."""

    options: Sequence[str]
    gold: int
    completion: str
    groups: Mapping[str, str] = {}


def gold_index(answer: str, options: Sequence[str], name: str = "") -> int:
    """Index of the gold answer, given as the option's text (with or without its label) or as a letter."""
    texts = [option_text(o) for o in options]
    for candidates, wanted in ((list(options), answer), (texts, option_text(answer))):
        if wanted in candidates:
            return candidates.index(wanted)
    letter = answer.strip().strip("().")
    if len(letter) == 1 and letter in LETTERS[: len(options)]:
        return LETTERS.index(letter)
    raise InputError(f"{name or 'question'}: the answer {answer!r} is none of its options {list(options)}")


def accuracy(questions: Iterable[Choice], first_letter: bool = False) -> Mapping[str, Any]:
    """Percent correct overall and by every group, with counts; `first_letter` uses Video-MME's rule alone."""
    hits: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0, 0])
    unanswered = 0
    for q in questions:
        if first_letter:
            letters = LETTERS[: len(q.options)]
            letter = choice_letter(answer_text(q.completion), letters)
            picked = letters.index(letter) if letter else None
        else:
            picked = option_index(q.completion, q.options)
        unanswered += picked is None
        for key in [("", "")] + list(q.groups.items()):
            hits[key][0] += picked == q.gold
            hits[key][1] += 1
    right, total = hits.pop(("", ""), [0, 0])
    table: dict[str, Any] = {
        "accuracy": 100 * right / total if total else math.nan,
        "count": total,
        "unanswered": unanswered,
    }
    for (group, value), (good, n) in sorted(hits.items()):
        table.setdefault(group, {})[value] = {"accuracy": 100 * good / n, "count": n}
    return table


def omnibench(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Rows with `options`, `answer` (full text), `audio type`, `task type`, `completion`: accuracy, by both types."""
    return accuracy(
        Choice(
            r["options"], gold_index(r["answer"], r["options"]), r["completion"], _groups(r, "audio type", "task type")
        )
        for r in rows
    )


def video_mme(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Rows with `options`, `answer` (letter), `completion`: accuracy, by duration, domain, sub_category, task_type."""
    keys = ("duration", "domain", "sub_category", "task_type")
    return accuracy(
        (Choice(r["options"], gold_index(r["answer"], r["options"]), r["completion"], _groups(r, *keys)) for r in rows),
        first_letter=True,
    )


def mvbench(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Rows with `candidates`, `answer` (full text), `task`, `completion`: total correct / total, and by task."""
    return accuracy(
        Choice(r["candidates"], gold_index(r["answer"], r["candidates"]), r["completion"], _groups(r, "task"))
        for r in rows
    )


def _groups(row: Mapping[str, Any], *keys: str) -> dict[str, str]:
    return {key: str(row[key]) for key in keys if key in row}


def yes_no(completion: str) -> str | None:
    """ "yes" or "no": the first whole word that is one of them, any case; None if there is neither."""
    found = _YES_NO.search(answer_text(completion))
    return found.group(1).lower() if found else None


def _judge(pairs: list[tuple[str, str | None]]) -> dict[str, float]:
    tp = sum(gold == "yes" and said == "yes" for gold, said in pairs)
    correct = sum(gold == said for gold, said in pairs)
    said_yes = sum(said == "yes" for _, said in pairs)
    is_yes = sum(gold == "yes" for gold, _ in pairs)
    precision = tp / said_yes if said_yes else 0.0
    recall = tp / is_yes if is_yes else 0.0
    return {
        "accuracy": 100 * correct / len(pairs),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "F1": 100 * 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "yes_rate": 100 * said_yes / len(pairs),
        "unreadable": float(sum(said is None for _, said in pairs)),
        "count": float(len(pairs)),
    }


def avhbench(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Mapping[str, float]]:
    """Rows with `task`, `label` (Yes/No), `completion`: statistics of each judge task and of `all` of them,
    positive = Yes. Rows of other tasks (captioning) are left out."""
    pairs: dict[str, list[tuple[str, str | None]]] = collections.defaultdict(list)
    for row in rows:
        if row["task"] in JUDGE_TASKS:
            gold = str(row["label"]).strip().lower()
            if gold not in ("yes", "no"):
                raise InputError(f"AVHBench {row.get('video_id', '?')}: label {row['label']!r} is neither Yes nor No")
            pairs[row["task"]].append((gold, yes_no(row["completion"])))
    if not pairs:
        raise InputError(f"AVHBench: no row of a judge task ({', '.join(JUDGE_TASKS)})")
    table = {task: _judge(pairs[task]) for task in JUDGE_TASKS if task in pairs}
    return {**table, "all": _judge([p for task in table for p in pairs[task]])}
