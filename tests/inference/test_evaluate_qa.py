"""Questions: what is asked, with which sound and how many pixels, and the benchmarks' tables."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from omnir1_jax import evaluate
from omnir1_jax.config import settings
from omnir1_jax.data import mvbench, registry
from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import score_answers
from omnir1_jax.inference import benchmark, host, identity, samples, tasks
from omnir1_jax.inference.tasks import Options
from omnir1_jax.tasks import TASKS
from tests.data import trees as qa_trees
from tests.inference import scripted, small

ANSWERS = ["<think>x</think><answer>B</answer>", "B. Two.", "I cannot say"]


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    for name in ("omnibench", "dailyomni", "videomme", "mvbench", "avhbench"):
        qa_trees.BUILD[name](root / name)
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    config = small.config(tmp_path_factory.mktemp("config"))
    config.prompts.text_tokens = 320
    return scripted.systems(config)


def evaluated(made, out, root, name, **changes):
    options = Options(name, root=str(root), **{"frames": 2, "batch_size": 5, **changes})
    (found,) = benchmark.evaluate(made, options, out, quiet=True).values()
    rows = [json.loads(row) for row in (out / "results.jsonl").read_text().splitlines()]
    assert found["items"] == len(rows) and found["bad"] == []
    table = found["table"]
    columns = {
        "videomme": lambda: {"general": table["accuracy"], "short": table["duration"]["short"]["accuracy"]},
        "avhbench": lambda: {"judge": table["all"]["accuracy"]},
    }
    assert found["paper"] == columns.get(name, lambda: {"average": table["accuracy"]})()
    return table, [row["completion"] for row in rows]


def share(hits):
    return pytest.approx(100 * sum(hits) / len(hits))


def asked(made, trees, benchmark, position=0, **changes):
    """The text of a question's prompt and its arrays."""
    (task,) = tasks.benchmarks(made, Options(benchmark, root=str(trees / benchmark), **changes))
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
    (found,) = benchmark.evaluate(made, options, tmp_path / "out", quiet=True).values()
    # Right answers are ABCD[n + q] for videos n of two questions q: A B B C C D; heard are B B - B B -.
    assert found["table"]["accuracy"] == pytest.approx(100 * 1 / 6) and found["table"]["count"] == 6
    assert found["table"]["unanswered"] == 2
    assert found["table"]["duration"]["short"]["accuracy"] == 50
    other = found["other_scoring"]  # the published script divides by the four that were answered
    assert other["scoring"] == "official" and other["paper"]["general"] == 25 and other["table"]["count"] == 4
    assert evaluate.show({"": found}).splitlines()[-1].startswith("scoring official: general 25.00, short ")
    lines = [json.loads(row) for row in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["completion"] for line in lines] == ANSWERS * 2
    assert (tmp_path / "out" / "report.html").exists() and not (tmp_path / "out" / "predictions").exists()


def test_daily_omni_says_that_it_is_a_part_of_what_was_published(made, trees, tmp_path, monkeypatch):
    scripted.install(monkeypatch, ["Because of B.", "(D)"])
    options = Options("dailyomni", root=str(trees / "dailyomni"), frames=2, batch_size=2, audio_seconds=1.0)
    (found,) = benchmark.evaluate(made, options, tmp_path / "out", quiet=True).values()
    assert found["notes"] == ["dailyomni/test: 2 items are there, 1197 were published"]
    assert found["notes"][0] in evaluate.show({"": found})
    assert found["paper"] == {"average": 100.0} and found["table"]["duration"].keys() == {"30s", "60s"}
    assert found["other_scoring"]["paper"] == {"average": 50.0}  # the published script reads the first letter alone


def test_numbers_of_omnibench_and_mvbench_are_those_of_their_files(made, trees, tmp_path, monkeypatch):
    says = ["<think>not C</think><answer>a red shape</answer>", "D", "(B) that", "I cannot say", "C"]
    scripted.install(monkeypatch, says)
    table, _ = evaluated(made, tmp_path / "omni", trees / "omnibench", "omnibench", audio_seconds=1.0)
    rows = [json.loads(row) for row in (trees / "omnibench/dataset").glob("*.jsonl").__next__().open()]
    right = [row["options"].index(row["answer"].strip()) == picked for row, picked in zip(rows, [0, 3, 1])]
    assert right == [True, True, False] and table["accuracy"] == share(right) and table["count"] == 3
    for row, hit in zip(rows, right):
        assert table["audio_type"][row["audio type"].lower()] == {"accuracy": 100 * hit, "count": 1}

    table, _ = evaluated(made, tmp_path / "mv", trees / "mvbench", "mvbench", prompt="thinking")
    picks, hits = [None, None, 1, None, 2], {}
    for file in mvbench.FOLDERS:  # the tasks in their order, two questions each
        for row in json.loads((trees / "mvbench" / "json" / f"{file}.json").read_text()):
            picked = picks[sum(map(len, hits.values())) % 5]
            hits.setdefault(file, []).append(picked is not None and row["candidates"][picked] == row["answer"])
    every = [hit for task in hits.values() for hit in task]
    assert 0 < sum(every) < len(every) == table["count"] == 40 and table["accuracy"] == share(every)
    assert {task: own["accuracy"] for task, own in table["task"].items()} == {t: share(h) for t, h in hits.items()}


def test_a_task_of_ones_own_is_scored_by_its_metric(made, tmp_path, monkeypatch):
    examples = pathlib.Path(__file__).parent.parent.parent / "docs/examples"
    counting, squares = f"{examples}/counting.py:TASK", f"{examples}/squares.py:open_squares"
    world = dict(family="vos", clips=4, config="toy", lessons=True)
    config = made.config.copy_and_resolve_references()
    config.data = dict(
        shapes=settings.task(family=counting, datasets=settings.datasets(synthetic=world), frames=2),
        squares=settings.task(family=counting, datasets=settings.datasets(mine=dict(name=squares)), frames=2),
        boxes=settings.task(family="refcocog", datasets=settings.datasets(synthetic=dict(family="refcocog"))),
    )
    made, options = made._replace(config=config), Options("synthetic", limit=5, frames=2, batch_size=5)
    shapes, ours = tasks.benchmarks(made, options)  # nobody knows how good boxes in a text are
    assert (shapes.name, ours.name, ours.reader.split) == ("shapes", "squares", "valid")
    assert len(shapes.reader) == 5 and shapes.reader[0].extra["looks"]
    assert identity.identity(made, ours, options, "")["own_task"] == host.digest(counting) is not None
    scripted.install(monkeypatch, ["<answer>1</answer>", "<answer> 2 </answer>", "three"])  # of 1, 2, 3, 4, 1 squares
    only = dataclasses.replace(options, tasks=("squares",))
    (found,) = benchmark.evaluate(made, only, tmp_path / "out", quiet=True).values()
    assert found["table"] == {"accuracy": 40.0, "count": 5, "unusable_samples": 0} and found["paper"] == {}
    with pytest.raises(InputError, match="--tasks: 'boxes' is none of shapes, squares"):
        list(tasks.benchmarks(made, dataclasses.replace(options, tasks=("boxes",))))
    del config.data["shapes"], config.data["squares"]
    with pytest.raises(InputError, match="--benchmark: the config has no task to hold out"):
        list(tasks.benchmarks(made, options))


def test_questions_of_no_benchmark_are_right_or_wrong_as_in_training():
    reader = registry.open_dataset("synthetic", "", "valid", family="qa", clips=4)
    right = [f"<think>x</think><answer> {chr(ord('A') + ref.extra['answer_index'])}</answer>" for ref in reader]
    said = {ref.sample_id: text for ref, text in zip(reader, [right[0].replace("<answer>", ""), *right[1:]])}
    table = score_answers.score(reader, said, metric=TASKS["qa"].metric)
    assert table == {"accuracy": 100 * (len(reader) - 1) / len(reader), "count": len(reader), "unusable_samples": 0}


def test_numbers_of_avhbench_are_those_of_its_file(made, trees, tmp_path, monkeypatch):
    scripted.install(monkeypatch, ["Yes", "<think>no</think><answer>yes.</answer>", "Noise, no doubt"])
    table, _ = evaluated(made, tmp_path / "out", trees / "avhbench", "avhbench", audio_seconds=1.0)
    rows = json.loads((trees / "avhbench" / "QA.json").read_text())
    pairs = [(row["label"], said) for row, said in zip(rows, ("Yes", "Yes", "No"))]  # captioning is not judged
    both = sum(gold == said == "Yes" for gold, said in pairs)
    precision, recall = both / sum(said == "Yes" for _, said in pairs), both / sum(gold == "Yes" for gold, _ in pairs)
    wanted = {
        "accuracy": share([gold == said for gold, said in pairs]),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "F1": 100 * 2 * precision * recall / (precision + recall),
        "yes_rate": share([said == "Yes" for _, said in pairs]),
    }
    assert {key: table["all"][key] for key in wanted} == wanted
    assert [table[row["task"]]["accuracy"] for row in rows[:3]] == [100 * (gold == said) for gold, said in pairs]


def test_a_model_is_asked_with_both_prompts_and_budgets_and_hears_what_is_chosen(made, trees, tmp_path, monkeypatch):
    """Random weights, nothing scripted: each choice reaches the model, and the numbers are those of its words."""
    scripted.compile_quickly(monkeypatch)
    # Louder than small.noise made it, so that what was seen and heard outweighs the last word.
    made = made._replace(policy=jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, made.policy))
    letters = [row["answer"] for row in json.loads((trees / "videomme/videomme/test.json").read_text())]
    said = {}
    for name, changes in {
        "base": dict(prompt="thinking", tokens=6),
        "direct": dict(prompt="direct", tokens=6),
        "sharp": dict(prompt="thinking", tokens=12),
        "muted": dict(prompt="thinking", tokens=6, sound="muted"),
        "swapped": dict(prompt="thinking", tokens=6, sound="swapped"),
    }.items():
        table, said[name] = evaluated(
            made, tmp_path / name, trees / "videomme", "videomme", audio_seconds=1.0, batch_size=6, **changes
        )
        picked = [re.search("[ABCD]", text) for text in said[name]]
        right = [found is not None and found[0] == letter for found, letter in zip(picked, letters)]
        assert table["accuracy"] == share(right) and table["count"] == 6
        assert {key: own["accuracy"] for key, own in table["duration"].items()} == {
            key: share(right[2 * n : 2 * n + 2]) for n, key in enumerate(("short", "medium", "long"))
        }
        assert table["unanswered"] == sum(found is None for found in picked)
    assert len({tuple(texts) for texts in said.values()}) == len(said)


def test_noise_is_fresh_for_every_item_whatever_the_batch(made, trees, tmp_path, monkeypatch):
    """So hot that noise alone decides: six items, six texts; the same in batches of 1 and 4, and where resumed."""
    scripted.compile_quickly(monkeypatch)
    hot = dataclasses.replace(made.step.sampling, temperature=1e6)
    made = made._replace(step=dataclasses.replace(made.step, sampling=hot))
    ask = dict(root=trees / "videomme", name="videomme", tokens=6, prompt="direct")
    _, four = evaluated(made, tmp_path / "four", batch_size=4, **ask)
    assert len(set(four)) == len(four) == 6
    assert evaluated(made, tmp_path / "one", batch_size=1, **ask)[1] == four
    log = tmp_path / "one" / "results.jsonl"
    whole = log.read_bytes()
    log.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    evaluated(made, tmp_path / "one", batch_size=1, **ask)
    assert log.read_bytes() == whole
    assert evaluated(made, tmp_path / "other", batch_size=1, seed=1, **ask)[1] != four


def test_questions_have_no_keyframes(made, trees, tmp_path):
    options = Options("videomme", root=str(trees / "videomme"), keyframes="uniform")
    with pytest.raises(InputError, match="--keyframes"):
        benchmark.evaluate(made, options, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
