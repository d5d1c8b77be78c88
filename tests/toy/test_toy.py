"""The toy's main job: what is measured once is kept, a stopped run is gone on with, tables say what was measured."""

import json
import re

import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from omnir1_jax.config import settings
from omnir1_jax.data.masks import decode_masks
from omnir1_jax.data.synthetic import reader as synthetic
from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import predictions
from omnir1_jax.files import folders
from omnir1_jax.inference import compare, scores, store
from omnir1_jax.inference.answer import KEYFRAMES
from omnir1_jax.inference.load import Systems
from omnir1_jax.inference.samples import SOUNDS
from omnir1_jax.reporting import before_after, toy_report
from omnir1_jax.toy import __main__ as toy
from tests.reporting.test_reports import Page

GAINS = {0: 6.0, 1: 8.0}


@pytest.fixture
def world(monkeypatch):
    """Phases that take no time; counts of their calls, and runs that stop the first time."""
    calls = {"before": 0, "train": [], "after": 0, "stop": set()}

    def train(config, run, validation, shapes):
        calls["train"].append((run.name, config.seed, dict(config.reward.terms)))
        folders.claim(run, "train", "--workdir")
        if run.name in calls["stop"]:
            calls["stop"].remove(run.name)
            return None
        rows = []
        for step in range(1, 21):
            row = {"step": step, "reward/total": step / 10, "reward/accuracy": step / 20}
            rows.append(row | ({"reward/segmentation": step / 40, "reward/alignment": step / 80} if step % 2 else {}))
        folders.begin(run, "metrics.jsonl", "--workdir").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return "state"

    def before(config, folder, clips):
        calls["before"] += 1
        return {"vos": {rule: 40.0 + n for n, rule in enumerate(KEYFRAMES)}, "refavs": dict.fromkeys(SOUNDS, 30.0)}

    def after(run, folder, clips):
        calls["after"] += 1
        plan = 40.0 + GAINS[int(run.name.split("_")[-1])]
        return {"vos": {"plan": plan}, "refavs": {"own": 50.0, "muted": 31.0, "swapped": 29.0}}

    monkeypatch.setattr(toy.loop, "train", train)
    monkeypatch.setattr(toy, "before", before)
    monkeypatch.setattr(toy, "after", after)
    return calls


@pytest.fixture
def config():
    config = settings.defaults()
    config.steps = 20
    with config.unlocked():
        config.reward.terms.update(alignment=4.0, segmentation=4.0)
    return config


def test_goes_on_where_it_was_stopped(world, config, tmp_path):
    world["stop"] = {"all_1"}
    assert toy.measure(config, tmp_path, ["all"], [0, 1], 8) is None
    found = toy.measure(config, tmp_path, ["all"], [0, 1], 8)
    assert (world["before"], world["after"]) == (1, 2)
    assert [name for name, *_ in world["train"]] == ["all_0", "all_1", "all_1"]
    assert [run["vos"]["plan"] for run in found["runs"].values()] == [46.0, 48.0]
    # Odd steps are of segmentation: 1, 3 and 17, 19 of 20 are the first and the last fifth.
    assert found["runs"]["all_0"]["learnt"]["vos reward"] == pytest.approx({"first": 0.2, "last": 1.8})
    assert found["runs"]["all_0"]["learnt"]["refavs box IoU"] == pytest.approx({"first": 0.15, "last": 0.95})
    with pytest.raises(InputError, match="--clips 8, this one has 9"):
        toy.measure(config, tmp_path, ["all"], [0], 9)


def test_what_the_user_put_in_the_way_is_named_before_anything_is_computed(world, config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(
        InputError, match="--out: .*out holds thesis.txt, not written by this command; name a new or an"
    ):
        toy.measure(config, tmp_path / "out", ["all"], [0], 8)
    (tmp_path / "out/thesis.txt").unlink()
    toy.measure(config, tmp_path / "out", ["all"], [0], 8)
    for name in ("runs/rk_1", "after/rk_1/plan", "phases/before_mine", "runs/all_0/weights"):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "thesis.txt").write_text("mine")
    (tmp_path / "out/phases/mine.json").write_text("mine")
    for name in ("runs/rk_1", "after/rk_1/plan"):
        with pytest.raises(InputError, match=f"out/{name} holds thesis.txt"):
            toy.measure(config, tmp_path / "out", ["rk"], [1], 8)
        (tmp_path / "out" / name / "thesis.txt").unlink()
    with pytest.raises(InputError, match="runs/all_0/weights holds thesis.txt"):
        toy.measure(config, tmp_path / "out", ["all"], [0], 8)
    assert (tmp_path / "out/phases/mine.json").read_text() == "mine" and world["before"] == 1


def test_an_older_directory_is_adopted(world, config, tmp_path):
    toy.measure(config, tmp_path, ["all"], [0], 8)
    for mark in tmp_path.rglob(folders.MARK):
        mark.unlink()
    (tmp_path / "runs/all_0/config.json").write_text(json.dumps(settings.plain(config)))
    (tmp_path / ".lock").touch()
    assert set(toy.measure(config, tmp_path, ["all"], [0], 8)["runs"]) == {"all_0"}
    assert world["before"] == 1


def test_tables_and_page(world, config, tmp_path):
    found = toy.measure(config, tmp_path, ["all", "rk"], [0, 1], 8)
    assert [terms for _, _, terms in world["train"]][2] == {"alignment": 0.0, "segmentation": 0.0}
    text = toy_report.write(tmp_path, found)
    assert text == (tmp_path / "table.md").read_text()
    assert "| its description in random frames | 42.0 |" in text
    assert "| trained, its own plan | 47.0 ± 1.4 |" in text and "| gain over the cold start | 7.0 ± 1.4 |" in text
    assert "| trained | 50.0 ± 0.0 | 31.0 ± 0.0 | 29.0 ± 0.0 |" in text
    assert "| none: the cold start | 40.0 |  |  | 30.0 |  |  |  |" in text
    assert "| RK | 47.0 ± 1.4 |  |  | 50.0 ± 0.0 | 22.5 ± 0.0 |  | 2 |" in text
    page = (tmp_path / "report.html").read_text()
    assert "47.0 ± 1.4" in page and not re.search(r'(src|href)="(?!data:|#)', page)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_every_choice_is_evaluated_and_told(world, config, tmp_path, monkeypatch):
    """Of the real phases: all choices of both tasks, sounds of segmentation where there is sound, scores by query."""
    asked = []

    def evaluate(made, options, folder, known):
        asked.append((folder.name, options))
        return {
            "": {
                "table": {"J&F": {"boxes_best": 80.0, "boxes_plan": 60.0, "query_random": 12.5}.get(folder.name, 40.0)}
            }
        }

    monkeypatch.setattr(toy.benchmark, "evaluate", evaluate)
    monkeypatch.setattr(
        toy.compare, "by_kind", lambda folder: dict.fromkeys(before_after.KINDS, float(len(folder.name)))
    )
    made = Systems(ConfigDict({"data": {"vos": {"audio_seconds": 0.0}}}), *[None] * (len(Systems._fields) - 1))
    silent = toy.scores(made, tmp_path, 8, toy.BEFORE)
    assert not [name for name, _ in asked if name.startswith("vos_")] and "vos_muted" not in silent["vos"]
    asked.clear()
    made.config.data.vos.audio_seconds = 8.0
    cold, after = toy.scores(made, tmp_path, 8, toy.BEFORE), toy.scores(made, tmp_path, 8, toy.AFTER, system2="frozen")
    chosen = {name: options for name, options in asked[: len(toy.BEFORE)]}
    assert (chosen["query_first"].keyframes, chosen["query_first"].description) == ("first", "query")
    assert (chosen["boxes_best"].keyframes, chosen["boxes_best"].system2) == ("best", "oracle")
    assert (chosen["vos_muted"].sound, chosen["vos_muted"].tasks) == ("muted", ("vos",))
    trained = {name: options for name, options in asked[len(toy.BEFORE) + 3 :]}
    assert trained["plan"].system2 == trained["own"].system2 == "frozen" and trained["boxes_plan"].system2 == "oracle"

    run = (
        {"reward": "all", "seed": 0, "learnt": {}} | after | {"vos": after["vos"] | {"plan": 50.0, "boxes_plan": 72.0}}
    )
    found = {"before": cold, "runs": {"all_0": run}, "clips": 8, "steps": 20}
    text = toy_report.markdown(toy_report.tables(found))
    assert "| the query's words in random frames | 12.5 |" in text
    assert "| true boxes in the trained plan's frames | 72.0 |" in text
    assert "| share of what is between cold start and ceiling, % | 25.0 |" in text
    assert "| J&F of queries | by looks | by order or motion | by sound |" in text
    assert "| cold start | 4.0 | 9.0 | 11.0 |" in text  # by_kind of plan, vos_muted and vos_swapped


def test_supervised_training_takes_the_place_of_a_reward(config):
    supervised, rewarded = toy.experiment(config, toy.SFT, 3), toy.experiment(config, "rk", 3)
    assert supervised.objective == "sft" and rewarded.objective == "grpo"
    assert rewarded.optimizer.learning_rate == config.optimizer.learning_rate
    assert supervised.optimizer.learning_rate == toy.SFT_RATE * config.optimizer.learning_rate


def test_a_run_has_its_colour_in_every_panel(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: drawn.append(figure) or file.write(b"png"))
    rows = lambda segmentation: [
        {"step": n, "reward/total": 1.0 + n, "reward/segmentation": segmentation * n} for n in range(1, 9)
    ]
    toy_report.curves({"all": rows(1.0), "rk_ra": rows(0.0), "rk_rg": rows(1.0)}, epath.Path(tmp_path) / "c.png")
    colours = [{line.get_label(): line.get_color() for line in axes.lines} for axes in drawn[0].axes]
    assert list(colours[0]) == ["all", "rk_ra", "rk_rg"] and list(colours[1]) == ["all", "rk_rg"]
    assert all(colours[0][name] == colours[1][name] for name in colours[1])


CLIPS = 8
DATASETS = {
    "vos": dict(name="synthetic", root="", split="valid", family="vos", config="fleeting", clips=CLIPS, mixed=True),
    "refavs": dict(name="synthetic", root="", split="valid", family="refavs", config="fleeting", clips=3, heard=True),
}


def read(task):
    dataset = DATASETS[task]
    return synthetic.open(**{key: value for key, value in dataset.items() if key != "name"})


def evaluated(folder, task, values, frame, thought):
    """An evaluation's directory: scores of some items, one keyframe and thought in all of them, and no mask."""
    with store.Store(folder, {"dataset": {"options": DATASETS[task]}}) as stored:
        stored.begin(values)
        for position, score in values.items():
            ref, shape = read(task)[position], (len(read(task)[position].frames), 64, 96)
            keyframe = {"frame": frame, "description": "red <ring>", "answer": "", "boxes": [[1.0, 2.0, 30.0, 40.0]]}
            line = {"position": position, "sample_id": ref.sample_id, "query": ref.query, "fault": None, "failures": []}
            line |= {"completion": f"<think>{thought} {position}</think>", "plan": [], "predicted": True}
            line |= {"keyframes": [keyframe] if thought else [], "scores": {"J": score, "F": score}, "type_id": 1}
            masks = np.zeros(shape, bool)
            predictions.write(stored.predictions, *scores.png_folder(ref), scores.names(ref, shape[0]), masks)
            stored.add(line)
        stored.end()


@pytest.fixture
def answered(world, config, tmp_path):
    """A function: the toy's page where the trained run has these J&F of each task's clips, the cold start 0.5."""

    def page(trained, thought="after"):
        labels = {"vos": "plan", "refavs": "own"}
        found = toy.measure(config, tmp_path, ["all"], [0], CLIPS)
        for task, values in trained.items():
            evaluated(tmp_path / "before" / labels[task], task, dict.fromkeys(values, 0.5), 0, "before")
            evaluated(tmp_path / "after/all_0" / labels[task], task, values, 3 if task == "vos" else 0, thought)
        for name in toy.PAGE:
            folders.begin(tmp_path, name, toy.FLAG)
        toy_report.write(tmp_path, found, toy.comparisons(tmp_path, "all_0"))
        return (tmp_path / "report.html").read_text()

    return page


def test_the_page_opens_on_the_clips_that_rose_most_of_each_kind(answered):
    needs = {position: read("vos")[position].extra["needs"] for position in range(4 * CLIPS)}
    of = {kind: [position for position in needs if needs[position] == kind][:3] for kind in ("sound", "video", "image")}
    trained = dict(zip(of["sound"], (0.4, 0.9, 0.7))) | dict(zip(of["video"], (0.8, 0.2, 0.5)))
    trained |= dict(zip(of["image"], (0.5, 0.6, 0.3)))
    document = answered({"vos": trained, "refavs": {0: 0.5, 5: 0.75}})
    words = re.sub(r"\s+", " ", Page(document).text)
    assert words.index("Before and after") < words.index("What was learnt")
    queries = re.findall("<h3>“(.*?)”</h3>", document)
    most = [("vos", of["sound"][1]), ("vos", of["video"][0]), ("vos", of["image"][1]), ("refavs", 5)]
    assert queries[:4] == [read(task)[position].query for task, position in most]
    assert queries[4:] == [read("vos")[of["video"][1]].query]  # what fell most, behind a click
    assert "J&F 50.0 → 90.0, the largest rise of 3" in words and "J&F 50.0 → 20.0, the largest fall" in words
    assert "segmentation by sound 3 67 % 33 %" in words.replace("\xa0", " ")
    assert "sounding shapes by sound 2 50 % 0 %" in words.replace("\xa0", " ")
    for position in (of["sound"][1], of["video"][0], of["image"][1]):
        assert f"before {position} " in words and f"after {position} " in words
    # Frames 0 and 3 of 16: the stored ones.
    chosen = re.findall(r'mark chosen[^"]*" style="left:([\d.]+)%;width:([\d.]+)%', document)
    assert chosen[:2] == [("0.00", "6.25"), ("18.75", "6.25")]
    assert "at 1.5 s: System 2 is asked for “red <ring>” and draws 1 box" in words


def test_the_timeline_says_who_is_heard_and_when_the_target_is_visible(answered):
    shown = next(k for k, ref in enumerate(read("vos")) if sum(tone is not None for tone in ref.extra["tones"]) >= 2)
    document, ref = answered({"vos": {shown: 0.7}}), read("vos")[shown]
    heard = [
        (look, tone, span) for look, tone, span in zip(*(ref.extra[k] for k in ("looks", "tones", "sounds"))) if tone
    ]
    assert len(heard) >= 2
    for look, tone, (start, end) in heard:
        label = f"from {start:g} to {end:g} s"
        assert re.search(rf'{look}, {tone} tone</span>\s*<div class="track" role="img" aria-label="{label}">', document)
    seen = np.flatnonzero(decode_masks(ref.masks, range(16)).any(axis=(0, 2, 3)))
    assert document.count("mark true") - 1 == len(seen)  # and one in the legend
    assert f"in frames {', '.join(map(str, seen))}" in document
    assert f"meant is the {ref.extra['looks'][ref.extra['obj_id'][0]]}" in document


def test_a_run_in_which_nothing_rose_has_a_page(answered):
    document = answered({"vos": {0: 0.3, 4: 0.4}}, thought="")
    words = Page(document).text
    assert re.findall("<h3>“(.*?)”</h3>", document)[0] == read("vos")[4].query
    assert "none rose; this one fell least of 2" in words and "No plan can be read: no frame is shown." in words


def test_the_page_is_written_again_from_what_is_stored(answered, world, config, tmp_path):
    document = answered({"vos": {0: 0.7, 4: 0.4}, "refavs": {0: 0.6}})
    found = toy.measure(config, tmp_path, ["all"], [0], CLIPS)
    toy_report.write(tmp_path, found, toy.comparisons(tmp_path, "all_0"))
    assert (tmp_path / "report.html").read_text() == document and world["before"] == 1
    run = tmp_path / "before/plan" / store.RUN
    run.write_text("{}")  # as an older version wrote it
    assert compare.stored("segmentation", "vos", run.parent, tmp_path / "after/all_0/plan") is None
    assert [comparison.title for comparison in toy.comparisons(tmp_path, "all_0")] == ["sounding shapes"]


def test_a_thought_is_what_stands_between_its_marks():
    assert before_after.thought("<think>a\nb </think> <answer>c</answer>") == "a\nb"
    assert before_after.thought("<think>never ends") is None
