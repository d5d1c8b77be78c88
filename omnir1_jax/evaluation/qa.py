"""Question answering: parsing the answer of a completion, and the scores of each benchmark.

OmniBench, Video-MME, MVBench: share of correct choices. AVHBench: yes/no statistics. Video-R1 style questions:
a score in [0, 1] by question type. A completion without a readable answer is wrong, and is counted.
"""

import collections
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from omnir1_jax.data.avhbench import JUDGE_TASKS
from omnir1_jax.errors import InputError
from omnir1_jax.text import tags

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

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
_ALONE = re.compile(r"(?<![\w'’-])[A-Za-z](?![\w'’-])")
_VERB = re.compile(r"\s+(is|was|seems|would|because|since|as|or|and)\b")
_WORD, _LOWER = re.compile(r"\s+\w"), re.compile(r" [a-z]")
_OPTION_LABEL = re.compile(r"^\s*\(?([A-Z])\s*[).:]\s*")


def answer_text(completion: str) -> str | None:
    """The first `<answer>`, else the text after the thinking, else the entire completion; stripped.

    None if the thinking never ended and there is no answer.
    """
    answer = tags.between(completion, "answer")
    if answer is None and "<think>" in completion and "</think>" not in completion:
        return None
    if answer is None:
        answer = completion.rpartition("</think>")[2].replace("<answer>", "")
    return answer.strip()


def choice_letter(text: str, letters: str = "ABCD") -> str | None:
    """Video-MME's rule: without the usual lead-ins, the first of `letters` (upper case) anywhere in the text."""
    match = re.search(f"[{letters}]", _without_prefixes(text))
    return match.group(0) if match else None


def _without_prefixes(text: str) -> str:
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    return text


def option_text(option: str) -> str:
    """An option without its label: "B. two cats" -> "two cats"."""
    return _OPTION_LABEL.sub("", option).strip()


def option_index(completion: str, options: Sequence[str]) -> int | None:
    """Which option a completion picks, or None.

    In this order: a label at the start ("B", "(b)", "B. ..."), the full text of one option (any case), the first
    letter standing alone. Letters count in either case, and never from inside a word.
    """
    text = answer_text(completion)
    if text is None:
        return None
    letters = LETTERS[: len(options)]
    stripped = _without_prefixes(text).strip(" \n\t:*")
    if label := re.match(rf"\(?([{letters}])(?:[).:,\n*]|$)(?![a-z'])", stripped, re.IGNORECASE):
        return letters.index(label.group(1).upper())
    folded = text.casefold().rstrip(".")
    texts = [option_text(o).casefold().rstrip(".") for o in options]
    if folded in texts:
        return texts.index(folded)
    inside = [i for i, t in enumerate(texts) if t and re.search(rf"(?<!\w){re.escape(t)}(?!\w)", folded)]
    if inside:
        # "two cats" also matches within "two cats and a dog": the longest counts if it contains all the others.
        longest = max(inside, key=lambda i: len(texts[i]))
        if all(texts[i] in texts[longest] for i in inside):
            return longest
    standalone = [match for match in _ALONE.finditer(stripped) if _names_option(match, letters)]
    # A letter before a lower-case word is less certain: "plan B is ... (C)".
    sure = [match for match in standalone if not _LOWER.match(stripped, match.end())]
    return letters.index((sure or standalone)[0].group().upper()) if standalone else None


def _names_option(match: re.Match, letters: str) -> bool:
    """Whether a letter standing alone is one of `letters` and not the article or the pronoun ("a cat", "I see")."""
    letter, rest = match.group().upper(), (match.string, match.end())
    return letter in letters and not (letter in "AI" and _WORD.match(*rest) and not _VERB.match(*rest))


class Choice(NamedTuple):
    """One multiple-choice question: its options, the gold option's index, the model's completion, its groups
    (e.g. {"audio type": "speech"})."""

    options: Sequence[str]
    gold: int
    completion: str
    groups: Mapping[str, str] = {}


def accuracy(
    questions: Iterable[Choice], judge: Callable[[Choice], bool | None], of_answered: bool = False
) -> Mapping[str, Any]:
    """Percent correct overall and by every group, with the number of questions counted.

    Args:
      judge: function that returns whether the answer is right, or None if there is none.
      of_answered: count the answered questions only, not all.
    """
    hits: dict[tuple[str, str], list[bool | None]] = collections.defaultdict(list)
    for q in questions:
        right = judge(q)
        for key in [("", "")] + list(q.groups.items()):
            hits[key].append(right)

    def share(judged: list[bool | None]) -> dict[str, Any]:
        counted = [right for right in judged if right is not None or not of_answered]
        return {"accuracy": 100 * counted.count(True) / len(counted) if counted else math.nan, "count": len(counted)}

    all_hits = hits.pop(("", ""), [])
    table: dict[str, Any] = {**share(all_hits), "unanswered": all_hits.count(None)}
    for (group, value), judged in sorted(hits.items()):
        table.setdefault(group, {})[value] = share(judged)
    return table


def by_option(q: Choice) -> bool | None:
    """Whether the picked option (`option_index`) is the gold one."""
    picked = option_index(q.completion, q.options)
    return None if picked is None else picked == q.gold


def by_first_letter(q: Choice) -> bool | None:
    """Whether the first letter (`choice_letter`) is the gold option's."""
    letters = LETTERS[: len(q.options)]
    letter = choice_letter(answer_text(q.completion) or "", letters)
    return None if letter is None else letters.index(letter) == q.gold


def yes_no(completion: str) -> str | None:
    """ "yes" or "no": the first word equal to one of them, any case; None if there is neither."""
    match = _YES_NO.search(answer_text(completion) or "")
    return match.group(1).lower() if match else None


def _judge(pairs: list[tuple[str, str | None]]) -> dict[str, float]:
    tp = sum(gold == "yes" and answer == "yes" for gold, answer in pairs)
    correct = sum(gold == answer for gold, answer in pairs)
    answered_yes = sum(answer == "yes" for _, answer in pairs)
    is_yes = sum(gold == "yes" for gold, _ in pairs)
    precision = tp / answered_yes if answered_yes else 0.0
    recall = tp / is_yes if is_yes else 0.0
    return {
        "accuracy": 100 * correct / len(pairs),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "F1": 100 * 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "yes_rate": 100 * answered_yes / len(pairs),
        "unreadable": float(sum(answer is None for _, answer in pairs)),
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
