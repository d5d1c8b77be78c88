"""Questions: what is asked, with which sound and how many pixels, and the benchmarks' tables."""

import json

import numpy as np
import pytest

from omnir1_jax import evaluate
from omnir1_jax.errors import InputError
from omnir1_jax.inference import samples, tasks
from omnir1_jax.inference.tasks import Options
from tests.data import trees as qa_trees
from tests.inference import scripted, small

ANSWERS = ["<think>x</think><answer>B</answer>", "B. Two.", "I cannot say"]


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    for name in ("omnibench", "videomme", "avhbench"):
        getattr(qa_trees, name)(root / name)
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    config = small.config(tmp_path_factory.mktemp("config"))
    config.prompts.text_tokens = 320
    return scripted.systems(config)


def asked(made, trees, benchmark, position=0, **changes):
    """The text of a question's prompt and its arrays."""
    (task,) = tasks.tasks(made, Options(benchmark, root=str(trees / benchmark), **changes))
    sample = samples.read(task, position)
    assert sample.fault is None, sample.fault
    return made.tokenizer.decode(sample.arrays["policy/tokens"]), sample.arrays


def test_what_is_asked(made, trees):
    text, thinking = asked(made, trees, "omnibench", prompt="thinking", audio_seconds=2.0)
    assert "What sounds?\nA. a red shape\nB. a green shape" in text and "Think first" in text
    assert "<|IMAGE|>" in text and "<|AUDIO|>" in text and "<|VIDEO|>" not in text
    assert np.abs(thinking["policy/audio/mel"]).max() > 0

    text, _ = asked(made, trees, "videomme", 2, prompt="direct", frames=4)
    assert "B. Two.\nC. Three." in text and "A. A." not in text and "Think first" not in text
    assert "letter of the right option only" in text and "<|VIDEO|>" in text

    text, heard = asked(made, trees, "avhbench", prompt="direct", frames=4, audio_seconds=1.0)
    assert "Answer yes or no." in text and "A. Yes" not in text and "<|AUDIO|>" in text
    muted = asked(made, trees, "avhbench", prompt="direct", frames=4, audio_seconds=1.0, sound="muted")[1]
    assert not np.array_equal(heard["policy/audio/mel"], muted["policy/audio/mel"])
    assert np.array_equal(heard["policy/tokens"], muted["policy/tokens"])


def test_budgets_of_pixels(made, trees):
    cells = lambda tokens: (
        asked(made, trees, "videomme", frames=2, tokens=tokens)[1]["policy/vision_index"] >= 0
    ).sum()
    small_budget, large = cells(6), cells(16)
    assert 2 < small_budget <= 6 < large <= 16


def test_the_table_is_the_benchmark_s(made, trees, tmp_path, monkeypatch):
    scripted.install(monkeypatch, ANSWERS)
    options = Options("videomme", root=str(trees / "videomme"), frames=2, batch_size=3)
    (found,) = evaluate.evaluate(made, options, tmp_path / "out", quiet=True).values()
    # Right answers are ABCD[n + q] for videos n of two questions q: A B B C C D; heard are B B - B B -.
    assert found["table"]["accuracy"] == pytest.approx(100 * 1 / 6) and found["table"]["count"] == 6
    assert found["table"]["unanswered"] == 2
    assert found["table"]["duration"]["short"]["accuracy"] == 50
    lines = [json.loads(row) for row in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["completion"] for line in lines] == ANSWERS * 2
    assert (tmp_path / "out" / "report.html").exists() and not (tmp_path / "out" / "predictions").exists()


def test_questions_have_no_keyframes(made, trees, tmp_path):
    options = Options("videomme", root=str(trees / "videomme"), keyframes="uniform")
    with pytest.raises(InputError, match="--keyframes"):
        evaluate.evaluate(made, options, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
