"""Question answering: answer extraction, benchmark accuracies, Video-R1 style scores."""

import math
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import qa, qa_official, qa_score

OPTIONS = ["A. a violin", "B. two cats", "C. two cats and a dog", "D. A siren"]


@pytest.mark.parametrize(
    "text, letter",
    [
        ("B", "B"),
        ("The best answer is C.", "C"),
        ("The answer is (D) because A", "D"),
        ("Best option: b", None),
        ("one two three four five six seven eight nine ten eleven", None),
        ("I would say none", None),
        ("", None),
    ],
)
def test_video_mme_letter(text, letter):
    assert qa.choice_letter(text) == letter


@pytest.mark.parametrize(
    "completion, index",
    [
        ("<think>A or C?</think> <answer>B</answer>", 1),
        ("<think>A or C?</think>\n(D)", 3),
        ("C. two cats and a dog", 2),
        ("two cats", 1),
        ("It is two cats.", 1),
        ("I hear two cats and a dog there", 2),
        ("a violin, or else two cats", None),
        ("A violin", 0),
        ("A siren is heard", 3),
        ("The correct answer is D", 3),
        ("I think it must be C", 2),
        ("Answer: **B**", 1),
        ("nothing of the kind", None),
        ("b", 1),
        ("(c)", 2),
        ("d. a siren", 3),
        ("The answer is c", 2),
        ("I think that it is b.", 1),
        ("A is right", 0),
        ("a", 0),
        ("<think>it could be B, or else", None),
        ("<think>it could be B</think>", None),
        ("<think>A or C?</think><answer>b", 1),
        ("Because of a dog", None),
        ("Cats, DOGS and a B-flat", None),
        ("I'd say so", None),
    ],
)
def test_option_index(completion, index):
    assert qa.option_index(completion, OPTIONS) == index


@pytest.mark.parametrize("form", ["{}", "({})", "{}.", "{}) two", "The answer is {}", "so I take {}."])
def test_letters_count_in_either_case(form):
    for index, letter in enumerate("ABCD"):
        assert qa.option_index(form.format(letter), OPTIONS) == index
        assert qa.option_index(form.format(letter.lower()), OPTIONS) == index


@settings(max_examples=200)
@given(words=st.lists(st.text(string.ascii_letters, min_size=2, max_size=6), max_size=8))
def test_no_letter_counts_from_inside_a_word(words):
    assert qa.option_index(" ".join(words), ["11", "12", "13", "14"]) is None


def questions(*rows):
    return [qa.Choice(OPTIONS, gold, completion, groups) for gold, completion, groups in rows]


def test_accuracy_by_group():
    table = qa.accuracy(
        questions(
            (1, "two cats", {"audio_type": "speech", "task_type": "Count"}),
            (1, "A", {"audio_type": "speech", "task_type": "Count"}),
            (3, "D", {"audio_type": "music", "task_type": "Action"}),
            (3, "?", {"audio_type": "sound event", "task_type": "Action"}),
        ),
        qa.by_option,
    )
    assert table["accuracy"] == 50 and table["count"] == 4 and table["unanswered"] == 1
    assert table["audio_type"] == {
        "music": {"accuracy": 100, "count": 1},
        "sound event": {"accuracy": 0, "count": 1},
        "speech": {"accuracy": 50, "count": 2},
    }


def test_video_mme_divides_by_all_questions_or_as_published_by_those_answered():
    rows = questions(
        (1, "The answer is B", {"duration": "short"}),
        (1, "Cats. B", {"duration": "long"}),
        (1, "I cannot say", {"duration": "long"}),
        (1, "<think>B or D, so", {"duration": "medium"}),
    )
    table = qa.accuracy(rows, qa.by_first_letter)
    assert table["accuracy"] == 25 and table["duration"]["short"]["accuracy"] == 100 and table["unanswered"] == 2
    official = qa.accuracy(rows, qa_official.video_mme, of_answered=True)
    assert official["accuracy"] == 50 and official["count"] == 2 and official["unanswered"] == 2
    assert official["duration"]["long"] == {"accuracy": 0, "count": 1}
    assert math.isnan(official["duration"]["medium"]["accuracy"])
    # Two commas are missing in the published lead-ins.
    assert qa.by_first_letter(qa.Choice(OPTIONS, 2, "Best answer: C"))
    assert not qa_official.video_mme(qa.Choice(OPTIONS, 2, "Best answer: C"))


@pytest.mark.parametrize(
    "text, letter",
    [
        ("(B) or else (A)", "A"),
        ("(C), surely not D", "C"),
        ("A , B or C .", "C"),
        ("B is right and not C", "C"),
        ("MEGA hits", "A"),
        ("B.", "B"),
        ("b", None),
        ("It is two cats", None),
        ("What I hear is two cats and nothing else", "B"),
        ("I hear two cats and a dog, then a siren, there", "D"),
        ("none", None),
    ],
)
def test_omnibench_s_own_parser(text, letter):
    options = tuple(qa.option_text(option) for option in OPTIONS)
    assert qa_official.omnibench_letter(text, options) == letter


@pytest.mark.parametrize(
    "completion, right",
    [
        ("B", True), ("b", True), ("(B) two cats", True), ("b. two", True), ("", True), ("<answer></answer>", True),
        ("C", False), ("The answer is B", False), ("two cats\nB", False), ("<think>B", None),
    ],
)  # fmt: skip
def test_mvbench_s_own_rule(completion, right):
    assert qa_official.mvbench(qa.Choice(OPTIONS, 1, completion)) is right


@pytest.mark.parametrize(
    "completion, right",
    [("B", True), ("b. Two", True), ("Because of C", True), ("Answer: B", False), ("", False), ("<think>B", None)],
)
def test_daily_omni_s_own_rule(completion, right):
    assert qa_official.daily_omni(qa.Choice(("A. One", "B. Two", "C. Three", "D. Four"), 1, completion)) is right


def test_avhbench():
    task, other = qa.JUDGE_TASKS[0], qa.JUDGE_TASKS[2]
    said = [
        ("Yes", "Yes, it is."),
        ("Yes", "No"),
        ("No", "<answer>yes</answer>"),
        ("No", "Nope, nothing"),
        ("No", "NO."),
    ]
    rows = [{"task": task, "label": label, "completion": c} for label, c in said]
    rows += [
        {"task": other, "label": "Yes", "completion": "yes"},
        {"task": "AV Captioning", "label": "x", "completion": ""},
    ]
    table = qa.avhbench(rows)
    assert table[task] == pytest.approx(
        {"accuracy": 40, "precision": 50, "recall": 50, "F1": 50, "yes_rate": 40, "unreadable": 1, "count": 5}
    )
    assert table["all"]["count"] == 6 and table["all"]["accuracy"] == 50 and qa.JUDGE_TASKS[1] not in table
    assert qa.yes_no("noisy yesterday") is None
    with pytest.raises(InputError, match="neither Yes nor No"):
        qa.avhbench([{"task": task, "label": "maybe", "completion": ""}])
    with pytest.raises(InputError, match="no row of a judge task"):
        qa.avhbench([])


@pytest.mark.parametrize(
    "kind, gold, answer, score",
    [
        ("multiple choice", "B", "B", 1),
        ("multiple choice", "B", "B.", 0),
        ("numerical", "3.14", "3.141", 1),
        ("numerical", "3", "3.0", 0),
        ("numerical", "1,000", "1000.0", 1),
        ("numerical", "12", "12", 1),
        ("numerical", "12", "twelve", 0),
        ("numerical", "12", "nan", 0),
        ("OCR", "the quick brown fox", "the quick fox", 0.75),
        ("OCR", "a", "b c d", 0),
        ("free-form", "the cat sat", "the cat sat", 1),
        ("free-form", "the cat sat", "the cat ran", (2 / 3 + 1 / 2 + 2 / 3) / 3),
        ("free-form", "the cat", "", 0),
        ("free-form", "the cats sat", "a cat sitting", (1 / 3 + 0 + 1 / 3) / 3),
        ("free-form", "Two runners are running", "two runner run", (6 / 7 + 2 / 5 + 6 / 7) / 3),
        ("regression", "10", "9", 0.9),
        ("regression", "10", "-30", 0),
        ("regression", "0", "0", 0),
        ("regression", "x", "9", 0),
    ],
)
def test_score_answer(kind, gold, answer, score):
    assert qa_score.score_answer(kind, gold, answer) == pytest.approx(score, abs=1e-7)


def test_video_r1_table_and_errors():
    rows = [
        {"problem_type": "OCR", "solution": "<answer>ab cd</answer>", "completion": "<answer>ab</answer>"},
        {"problem_type": "numerical", "solution": "<answer>4</answer>", "completion": "4"},
    ]
    table = qa_score.video_r1(rows)
    assert table["score"] == 25 and table["problem_type"]["OCR"] == {"score": 50, "count": 1}
    with pytest.raises(InputError, match="question type 'essay'"):
        qa_score.score_answer("essay", "", "")


@settings(max_examples=100)
@given(a=st.lists(st.sampled_from("xyz"), max_size=5), b=st.lists(st.sampled_from("xyz"), max_size=5))
def test_edit_distance_equals_recursion(a, b):
    def distance(i, j):
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert qa_score.edit_distance(a, b) == distance(len(a), len(b))


@settings(max_examples=200)
@given(text=st.text(max_size=60), kind=st.sampled_from(qa_score.QUESTION_TYPES))
def test_any_text_scores_within_bounds(text, kind):
    assert 0 <= qa_score.score_answer(kind, "12 cats", text) <= 1
    assert qa.option_index(text, OPTIONS) in (None, 0, 1, 2, 3)
