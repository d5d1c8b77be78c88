"""How the published scripts of four benchmarks read an answer, oddities included, for comparison with their numbers.

Each takes the text of the answer (`qa.answer_text`). A completion whose thinking never ended has none and
counts as unanswered in every script.
"""

import re

from omnir1_jax.evaluation import qa
from omnir1_jax.evaluation.qa import LETTERS, Choice

# Two commas are missing in the published list, so its last four lead-ins are joined into two.
_VIDEO_MME_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
)


def video_mme(q: Choice) -> bool | None:
    """The first of A to D anywhere, also within a word ("Best answer: C" is B); none: not answered."""
    text = qa.answer_text(q.completion) or ""
    for prefix in _VIDEO_MME_PREFIXES:
        text = text.replace(prefix, "")
    match = re.search("[ABCD]", text)
    return None if match is None else match.group() == LETTERS[q.gold]


def omnibench(q: Choice) -> bool | None:
    """The letter of `omnibench_letter`. The gold letter is the answer's index among the options.

    (The script parses the answer's text too, takes "A man ..." for option A, and stops at answers of few words.)
    """
    text = qa.answer_text(q.completion)
    letter = None if text is None else omnibench_letter(text, q.options)
    return None if letter is None else letter == LETTERS[q.gold]


def omnibench_letter(text: str, options: tuple[str, ...]) -> str | None:
    """The last of the letters, by the rule of MMMU's parser: "(B)", else "B " and else "B.", if only at a word's end.

    Only capitals count. Texts of more than five words without any are searched for the options themselves.
    """
    padded = f" {text} "
    letters = LETTERS[: len(options)]
    lowered = {letter: option.lower() for letter, option in zip(letters, options)}
    for form, match in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if chosen := [letter for letter in letters if form.format(letter) in padded]:
            return max(chosen, key=lambda letter: padded.rfind(match.format(letter)))
    chosen = [letter for letter in letters if lowered[letter] in padded.lower()] if len(padded.split()) > 5 else []
    return max(chosen, key=lambda letter: padded.lower().rfind(lowered[letter]), default=None)


def mvbench(q: Choice) -> bool | None:
    """Whether the first word of the first line holds "(b)" or is part of it, in any case: an empty answer is right."""
    text = qa.answer_text(q.completion)
    if text is None:
        return None
    first = text.split("\n")[0].lower().split(" ")[0]
    gold = f"({LETTERS[q.gold].lower()})"
    return first.replace(".", "") in gold or gold in first


def daily_omni(q: Choice) -> bool | None:
    """The letter at the start, in either case, also of a word ("Because ..." is B); any other answer is wrong."""
    text = qa.answer_text(q.completion)
    if text is None:
        return None
    match = re.match(r"\s*([A-D])", text, re.IGNORECASE)
    return match is not None and match[1].upper() == LETTERS[q.gold]
