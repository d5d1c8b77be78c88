"""The toy's main job: what is measured once is kept, a stopped run is gone on with, tables say what was measured."""

import json
import re

import pytest
from etils import epath
from matplotlib.figure import Figure

from omnir1_jax.config import settings
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders
from omnir1_jax.inference.answer import KEYFRAMES
from omnir1_jax.inference.samples import SOUNDS
from omnir1_jax.reporting import toy_report
from omnir1_jax.toy import __main__ as toy

GAINS = {0: 6.0, 1: 8.0}


@pytest.fixture
def world(monkeypatch):
    """Phases that take no time; counts of their calls, and runs that stop the first time."""
    calls = {"before": 0, "train": [], "after": 0, "stop": set()}

    def train(config, run, validation):
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
    assert "| RK | 47.0 ± 1.4 | 22.5 ± 0.0 | 2 |" in text
    page = (tmp_path / "report.html").read_text()
    assert "47.0 ± 1.4" in page and not re.search(r'(src|href)="(?!data:|#)', page)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


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
