"""Question answering: answer extraction, benchmark accuracies, Video-R1 style scores."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import qa, qa_score

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
    ],
)
def test_option_index(completion, index):
    assert qa.option_index(completion, OPTIONS) == index


def test_gold_index():
    assert qa.gold_index("two cats", OPTIONS) == 1 and qa.gold_index("C", OPTIONS) == 2
    assert qa.gold_index("D. A siren", OPTIONS) == 3 and qa.gold_index("x", ["y", "x"]) == 1
    # An option that reads like a letter is found as text first.
    assert qa.gold_index("B", ["C", "B", "A"]) == 1
    with pytest.raises(InputError, match="q7: the answer 'a horse'"):
        qa.gold_index("a horse", OPTIONS, "q7")


def _rows(*said):
    return [{"options": OPTIONS, "completion": c, **extra} for c, extra in said]


def test_omnibench_by_audio_type():
    rows = _rows(
        ("two cats", {"answer": "two cats", "audio type": "speech", "task type": "Count"}),
        ("A", {"answer": "two cats", "audio type": "speech", "task type": "Count"}),
        ("D", {"answer": "A siren", "audio type": "music", "task type": "Action"}),
        ("?", {"answer": "A siren", "audio type": "sound event", "task type": "Action"}),
    )
    table = qa.omnibench(rows)
    assert table["accuracy"] == 50 and table["count"] == 4 and table["unanswered"] == 1
    assert table["audio type"] == {
        "music": {"accuracy": 100, "count": 1},
        "sound event": {"accuracy": 0, "count": 1},
        "speech": {"accuracy": 50, "count": 2},
    }


def test_video_mme_and_mvbench():
    rows = _rows(
        ("The answer is B", {"answer": "B", "duration": "short"}),
        ("Cats. B", {"answer": "B", "duration": "long"}),
    )
    table = qa.video_mme(rows)
    assert table["accuracy"] == 50 and table["duration"]["short"]["accuracy"] == 100
    rows = [
        {"candidates": ["left", "right"], "answer": "right", "task": "Moving", "completion": c} for c in ("(B)", "left")
    ] + [{"candidates": ["yes", "no"], "answer": "yes", "task": "Action", "completion": "yes"}]
    table = qa.mvbench(rows)
    assert table["accuracy"] == pytest.approx(200 / 3) and table["task"]["Moving"]["accuracy"] == 50


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

    def common(i, j):
        if not i or not j:
            return 0
        return 1 + common(i - 1, j - 1) if a[i - 1] == b[j - 1] else max(common(i - 1, j), common(i, j - 1))

    assert qa_score._common_subsequence(a, b) == common(len(a), len(b))


@settings(max_examples=200)
@given(text=st.text(max_size=60), kind=st.sampled_from(qa_score.QUESTION_TYPES))
def test_any_text_scores_within_bounds(text, kind):
    assert 0 <= qa_score.score_answer(kind, "12 cats", text) <= 1
    assert qa.option_index(text, OPTIONS) in (None, 0, 1, 2, 3)
