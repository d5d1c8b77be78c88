"""Text that a model or a dataset wrote is read as the original expressions read it, in time linear in its length."""

import contextlib
import pathlib
import re
import signal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omnir1_jax.data import refcocog
from omnir1_jax.errors import printable
from omnir1_jax.evaluation import qa, qa_score
from omnir1_jax.inference import infer
from omnir1_jax.reporting import html
from omnir1_jax.text import tags
from tests.text import host

PIECES = (
    *("<answer>", "</answer>", "<think>", "</think>", "<box>", "</box>", "{", "}", "{}", '{"a": 1}', "<", ">", '"'),
    *(" ", "\n", "\t", "\r", "\v", "\f", "\x1c", "\x85", "\xa0", "\u2003", "\u200b", "a", "A", "yes", "(3, 4)"),
)
TEXT = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)
# The expressions of the original code.
ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
THINK = re.compile(r"^.*</think>", re.DOTALL)
ASCII_ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL | re.ASCII)
FORMAT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL | re.ASCII)


def first(pattern, text, group=1):
    match = re.search(pattern, text, re.DOTALL)
    return match and match[group]


@settings(max_examples=1500, deadline=None)
@given(TEXT)
@example("<think></think><answer></answer>")
@example("<think></answer>")
@example("<answer> \x85 </answer></answer>")
def test_texts_are_read_as_the_original_expressions_read_them(text):
    answer = ANSWER.search(text)
    assert qa_score.extract_answer(text) == (answer[1].strip() if answer else "")
    unfinished = not answer and "<think>" in text and "</think>" not in text
    rest = answer[1] if answer else THINK.sub("", text).replace("<answer>", "")
    assert qa.answer_text(text) == (None if unfinished else rest.strip())
    ascii_answer = ASCII_ANSWER.search(text)
    assert host._answer(text) == (ascii_answer and ascii_answer[1])
    assert host._formatted(text) == (FORMAT.fullmatch(text) is not None)
    assert host._groups(text) == re.findall(r"\{.*?\}", text, re.DOTALL)
    assert host._first_object(text) == first(r"\{[^}]+\}", text, 0)
    assert tags.between(text, "answer") == first(r"<answer>(.*?)</answer>", text)
    thought, said = (re.search(rf"<{tag}>(.*?)(</{tag}>|$)", text, re.DOTALL) for tag in ("think", "answer"))
    assert infer.sections(text) == (thought[1].strip() if thought else "", (said[1] if said else text).strip())
    assert tags.all_between(text, "box") == re.findall(r"<box>(.*?)</box>", text, re.DOTALL)


@contextlib.contextmanager
def at_most(seconds: float):
    """Fails where the body takes longer; expressions look for signals while they match."""

    def late(*_):
        pytest.fail(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


ROOT = pathlib.Path(__file__).parent.parent.parent
LENGTH = 1_000_000
UNITS = (
    "\n",
    "<answer>",
    "<answer>\n",
    "</think> ",
    "<think></think><answer>",
    "{",
    "{}",
    '{"',
    '"',
    "[",
    "(",
    "\\",
    "1",
)
HOSTILE = {
    **{f"{unit!r} alone": unit * (LENGTH // len(unit)) for unit in UNITS},
    "white space in an answer": "<answer>" + " \n" * (LENGTH // 2),
    "white space after thinking": "<think></think>" + "\n" * LENGTH,
    "brackets in an object": '<answer>{"a": ' + "[" * LENGTH + "}</answer>",
    "spaces in an object": '<answer>{"a"' + " " * LENGTH + ": 1}</answer>",
    "digits in an object": '<answer>{"start_time": "' + "1" * LENGTH + ':1.1", "end_time": "1:1.1"}</answer>',
    "a number": '<answer>{"bbox_2d": [' + "1" * LENGTH + ", 1, 1, 1e" + "9" * LENGTH + "]}</answer>",
    "pairs": "<box>" + "(1 ," * (LENGTH // 4),
    "an opened tag": "<think>" + "a\n" * (LENGTH // 2),
}
OPTIONS = ["A. a cat", "B. a dog and a cat", "C. none"]


def readers(text):
    host.read_plan(text, 100)
    host.read_answer(text)
    host.read_boxes(text, 4)
    host.read_box_and_points(text)
    infer.sections(text)
    qa.option_index(text, OPTIONS)
    qa.yes_no(text)
    qa_score.number(text)
    for kind in qa_score.QUESTION_TYPES:
        qa_score.score_answer(kind, "two cats and 3 dogs", qa_score.extract_answer(text) or text)
    with contextlib.suppress(ValueError):
        refcocog.parse_solution(text)
    printable(text)
    html.clipped(text, 1000)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_million_characters_are_read_in_seconds(name):
    with at_most(20):
        readers(HOSTILE[name])


@pytest.mark.parametrize("depth", [10, 17, 100, 500, 900, 5000])
def test_nesting_is_bad_and_never_a_recursion(depth):
    group = '{"a": ' + "[" * depth + "]" * depth + "}"
    assert (host.read_object(group) is None) == (depth > 16)
