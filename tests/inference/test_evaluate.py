"""Evaluations of trees on disk: the numbers are those of the PNGs, bad items count, archives are whole."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import zipfile
from unittest import mock

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnir1_jax.config import settings
from omnir1_jax.data import registry
from omnir1_jax.data.synthetic import writers
from omnir1_jax.data.synthetic.world import PRESETS
from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import score_masks
from omnir1_jax.inference import benchmark, run, scores, tasks
from omnir1_jax.inference.store import Store
from omnir1_jax.inference.tasks import Options
from omnir1_jax.inference.validation import flat
from omnir1_jax.parallel import make_mesh
from tests.data import trees as own_trees
from tests.inference import scoring, scripted, small


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    for name in ("revos", "mevis", "refavs"):
        writers.LAYOUTS[name](root / name, PRESETS["toy"], 10, 0)
    own_trees.davis(root / "refdavis")
    own_trees.ytvos(root / "refytvos")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return scripted.systems(small.config(tmp_path_factory.mktemp("config")))


def evaluated(made, out, root, **changes):
    options = Options(**{"batch_size": 6, "root": str(root), **changes})
    (results,) = benchmark.evaluate(made, options, out, quiet=True).values()
    assert json.loads((out / "results.json").read_text()) == results
    if options.scoring == "clean":  # what a validation expects before anything is answered
        (asked,) = tasks.benchmarks(made, options)
        blank = scores.blank(asked.reader, asked.task, tasks.positions(asked, options), asked.root)
        assert flat(blank).keys() == flat(results["table"]).keys()
    return results


def lines(out):
    return [json.loads(row) for row in (out / "results.jsonl").read_text().splitlines()]


def same(table, wanted):
    for key, value in wanted.items():
        if isinstance(value, dict):
            same(table[key], value)
        else:
            np.testing.assert_allclose(table[key], value, rtol=1e-6, err_msg=key)


def published(tree, out):
    """ReVOS' table by the published arithmetic, from the PNGs."""
    reader = registry.open_dataset("revos", str(tree), "valid")
    return score_masks.table(
        "revos", [score_masks.score_position(reader, str(out / "predictions"), "compat", i) for i in range(len(reader))]
    )


def test_numbers_of_revos_and_mevis_are_those_of_the_pngs(made, trees, tmp_path, monkeypatch):
    scripted.install(monkeypatch, scripted.PLANS)
    found = evaluated(made, tmp_path / "revos", trees / "revos", benchmark="revos")
    wanted = scoring.revos(trees / "revos", tmp_path / "revos" / "predictions")
    assert wanted["overall"]["J"] > 5 and wanted["overall"]["R"] < 99
    same(found["table"], wanted)
    assert len(found["paper"]) == 9 and found["paper"]["overall J&F"] == found["table"]["overall"]["J&F"]
    assert found["failures"].keys() >= {"plan/no_answer", "plan/missing_field", "box/bad_list", "box/no_group"}
    assert found["bad"] == [] and found["items"] == found["table"]["count"]["referring"] * 2

    assert found["scoring"] == "clean" and found["other_scoring"]["scoring"] == "official"
    official = published(trees / "revos", tmp_path / "revos")
    assert official["overall"]["A"] < wanted["overall"]["A"] - 1
    same(found["other_scoring"]["table"], official)
    # Asked for the other scoring, the same evaluation is read again; also one whose lines do not have it yet.
    log = tmp_path / "revos" / "results.jsonl"
    before = log.read_bytes()
    again = evaluated(made, tmp_path / "revos", trees / "revos", benchmark="revos", scoring="official")
    assert again["table"] == found["other_scoring"]["table"] and again["other_scoring"]["table"] == found["table"]
    assert again["scoring"] == "official" and log.read_bytes() == before
    old = [{key: value for key, value in line.items() if key != "official"} for line in lines(tmp_path / "revos")]
    log.write_text("".join(json.dumps(line) + "\n" for line in old))
    again = evaluated(made, tmp_path / "revos", trees / "revos", benchmark="revos")
    same(again["other_scoring"]["table"], official)

    found = evaluated(made, tmp_path / "mevis", trees / "mevis", benchmark="mevis")
    assert "other_scoring" not in found
    same(found["table"], scoring.mevis(trees / "mevis", tmp_path / "mevis" / "predictions"))
    page = (tmp_path / "mevis" / "report.html").read_text()
    assert page.count("data:image/") >= 6 and "http" not in page.split("</style>")[1]

    # True boxes in spread frames against boxes that mean nothing.
    best = evaluated(made, tmp_path / "best", trees / "mevis", benchmark="mevis", system2="oracle", keyframes="uniform")
    assert best["table"]["J&F"] > found["table"]["J&F"] + 15
    assert "box/none" not in best["failures"]

    # The same boxes as another model's, from a file.
    with (tmp_path / "boxes.jsonl").open("w") as file:
        for line in lines(tmp_path / "best"):
            boxes = {one["frame"]: one["boxes"] for one in line["keyframes"]}
            file.write(json.dumps({"sample_id": line["sample_id"], "boxes": boxes}) + "\n")
    given = dict(benchmark="mevis", system2="file", boxes=str(tmp_path / "boxes.jsonl"), keyframes="uniform")
    assert evaluated(made, tmp_path / "file", trees / "mevis", **given)["table"] == best["table"]


def test_system2_is_asked_for_the_querys_own_words(made, trees, tmp_path, monkeypatch):
    """Whatever the plan says, or where there is none; in every frame that is looked at, and in tasks without plans."""
    scripted.install(monkeypatch, scripted.PLANS)
    wanted = dict(benchmark="mevis", keyframes="uniform", limit=12)
    evaluated(made, tmp_path / "plan", trees / "mevis", **wanted)
    evaluated(made, tmp_path / "query", trees / "mevis", description="query", **wanted)
    planned, asked = lines(tmp_path / "plan"), lines(tmp_path / "query")
    assert any(not line["keyframes"] for line in planned)  # no plan, nothing to ask
    for line in asked:
        assert len(line["keyframes"]) > 1
        assert {keyframe["description"] for keyframe in line["keyframes"]} == {line["query"]}
    scripted.install(monkeypatch, scripted.DESCRIPTIONS)
    evaluated(
        made, tmp_path / "refavs", trees / "refavs", benchmark="refavs", split="val", description="query", limit=6
    )
    heard = [line for line in lines(tmp_path / "refavs") if line["keyframes"]]
    assert heard and all(line["keyframes"][0]["description"] == line["query"] for line in heard)

    config = made.config.copy_and_resolve_references()
    with config.unlocked():
        config.step.description_bytes = 8
    found = evaluated(made._replace(config=config), tmp_path / "short", trees / "mevis", description="query", **wanted)
    assert "does not fit step.description_bytes = 8" in found["bad"][0]["reason"]


def test_system1_answers_once_whatever_is_done_with_its_answers(made, trees, tmp_path, monkeypatch):
    """For all rules of a call, and for calls that share what is known; asked otherwise, it answers again."""
    scripted.install(monkeypatch, scripted.PLANS)
    asked = mock.Mock(side_effect=run.RESPOND)
    monkeypatch.setattr(run, "RESPOND", asked)
    options = Options("mevis", root=str(trees / "mevis"), batch_size=6, limit=12)
    alone = [dict(keyframes="uniform"), dict(keyframes="first"), dict(system2="oracle", description="query")]
    for i, choices in enumerate(alone):
        benchmark.evaluate(made, dataclasses.replace(options, **choices), tmp_path / f"alone_{i}", quiet=True)
    assert asked.call_count == 2 * 3
    known = {}
    benchmark.evaluate(made, options, tmp_path / "rules", ("uniform", "first"), quiet=True, known=known)
    benchmark.evaluate(made, dataclasses.replace(options, **alone[2]), tmp_path / "boxes", quiet=True, known=known)
    assert asked.call_count == 2 * 3 + 2
    for i, path in enumerate(("rules/uniform", "rules/first", "boxes")):
        assert lines(tmp_path / path) == lines(tmp_path / f"alone_{i}")
    for i, other in enumerate((dict(sound="muted"), dict(seed=1))):
        benchmark.evaluate(
            made, dataclasses.replace(options, **other), tmp_path / f"other_{i}", quiet=True, known=known
        )
    assert asked.call_count == 2 * 3 + 2 + 2 * 2


def test_many_devices_give_the_same(made, trees, tmp_path, monkeypatch):
    scripted.install(monkeypatch, scripted.PLANS)
    mesh = make_mesh({"data": 2, "fsdp": 4})
    many = scripted.systems(made.config, mesh)
    wanted = dict(benchmark="mevis", system2="oracle", keyframes="uniform", batch_size=5, limit=12)
    found = evaluated(many, tmp_path / "many", trees / "mevis", **wanted)
    wanted["batch_size"] = 8  # what 5 is rounded up to
    assert found["table"] == evaluated(made, tmp_path / "one", trees / "mevis", **wanted)["table"]
    assert json.loads((tmp_path / "many" / "run.json").read_text())["options"]["batch_size"] == 8
    assert lines(tmp_path / "many") == lines(tmp_path / "one")


def test_numbers_of_refavs_are_those_of_the_pngs(made, trees, tmp_path, monkeypatch):
    scripted.install(monkeypatch, scripted.DESCRIPTIONS)
    found = evaluated(made, tmp_path / "out", trees / "refavs", benchmark="refavs", split="val")
    wanted = scoring.refavs(trees / "refavs", "val", tmp_path / "out" / "predictions")
    assert wanted["S"] > 0.1 and wanted["videos"] > 6
    same(found["table"], wanted)
    assert found["failures"]["answer/empty"] > 1
    first = lines(tmp_path / "out")[0]
    assert first["answer"] == "the loud star" and first["keyframes"][0]["frame"] == 0


class Pierced(scripted.Filled):
    """With every fourth pixel within a box missing."""

    def logits(self, *args):
        return pierced(super().logits(*args)[:, 0])[:, None]


def pierced(logits):
    least = jax.lax.reduce_window(logits, jnp.inf, jax.lax.min, (1, 1, 1, 3, 3), (1,) * 5, "SAME")
    every = jnp.arange(logits.shape[-1]) % 2 == 0
    return jnp.where((least > 0) & every & every[:, None], -1.0, logits)


def test_holes_are_filled_where_asked(made, trees, tmp_path, monkeypatch):
    scripted.install(monkeypatch, scripted.PLANS)
    other = made._replace(models=dataclasses.replace(made.models, segmenter=Pierced()))
    masks = {}
    for name, systems, area in (("whole", made, 0), ("pierced", other, 0), ("filled", other, 1)):
        evaluated(
            systems, tmp_path / name, trees / "mevis", benchmark="mevis", system2="oracle", keyframes="uniform",
            limit=6, hole_area=area,
        )  # fmt: skip
        masks[name] = [cv2.imread(str(p), -1) for p in sorted((tmp_path / name / "predictions").rglob("*.png"))]
    assert np.array_equal(masks["filled"], masks["whole"])
    assert np.mean(np.array(masks["pierced"]) > 0) < 0.98 * np.mean(np.array(masks["whole"]) > 0)


def test_numbers_of_refdavis_are_those_of_the_pngs(made, trees, tmp_path, monkeypatch):
    """By expression and by four annotators; with the mask file, and as DAVIS ships its masks; wherever it is named."""
    scripted.install(monkeypatch, scripted.PLANS)
    asked = dict(benchmark="refdavis", system2="oracle", batch_size=5, sampling="video")
    found = evaluated(made, tmp_path / "file", trees / "refdavis", **asked)
    wanted = scoring.refdavis(trees / "refdavis", tmp_path / "file" / "predictions")
    assert wanted["unsupervised"]["J"] > 10 and wanted["J"] > 10
    same(found["table"], wanted)

    shutil.copytree(trees / "refdavis", tmp_path / "data" / "davis")
    (tmp_path / "data" / "davis" / "valid" / "mask_dict.json").unlink()
    config = made.config.copy_and_resolve_references()
    config.data_root = str(tmp_path / "data")
    config.data.vos.datasets = settings.datasets(refdavis=dict(root="davis", split="valid"))
    maps = evaluated(made._replace(config=config), tmp_path / "maps", "", **asked)
    assert maps["table"] == found["table"]


def test_refytvos_is_an_archive_for_its_server_or_scored_by_its_own_masks(made, trees, tmp_path, monkeypatch):
    scripted.install(monkeypatch, scripted.PLANS)
    found = evaluated(made, tmp_path / "valid", trees / "refytvos", benchmark="refytvos")
    assert found["table"] == {"unscored": 3} and found["paper"] == {} and found["archive"]["missing"] == 0
    with zipfile.ZipFile(tmp_path / "valid" / found["archive"]["file"]) as archive:
        names = archive.namelist()
        shown = [cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), -1) for name in names]
    # Videos of the test split, which the file of valid also lists, are not the server's.
    assert names == [f"Annotations/v_valid/{e}/{5 * t:05d}.png" for e in range(3) for t in range(6)]
    assert {image.shape for image in shown} == {(48, 64)} and set(np.unique(shown)) == {0, 255}

    found = evaluated(
        made, tmp_path / "train", trees / "refytvos", benchmark="refytvos", split="train", system2="oracle",
        keyframes="uniform",
    )  # fmt: skip
    wanted = scoring.refytvos(trees / "refytvos", tmp_path / "train" / "predictions")
    assert wanted["J"] > 20
    same(found["table"], wanted)


def test_items_that_cannot_be_read_are_predictions_of_nothing(made, trees, tmp_path, monkeypatch):
    scripted.install(monkeypatch, scripted.PLANS)
    broken = tmp_path / "mevis"
    shutil.copytree(trees / "mevis", broken)
    first, second = sorted((broken / "valid_u" / "JPEGImages").iterdir())
    image = sorted(first.iterdir())[2]
    image.write_bytes(image.read_bytes()[:-40])
    sorted(second.iterdir())[0].unlink()
    found = evaluated(made, tmp_path / "out", broken, benchmark="mevis")
    assert len(found["bad"]) == found["items"] == found["failures"]["sample/bad"]
    reasons = " ".join(bad["reason"] for bad in found["bad"])
    assert "is truncated" in reasons and "is missing" in reasons
    drawn = list((tmp_path / "out" / "predictions" / first.name).rglob("*.png"))
    assert drawn and not any(scoring.cv2.imread(str(path)).any() for path in drawn)
    assert not (tmp_path / "out" / "predictions" / second.name).exists()
    assert found["table"]["missing"] == sum("is missing" in bad["reason"] for bad in found["bad"])


def test_splits_whose_truth_a_server_keeps_become_an_archive(made, trees, tmp_path, monkeypatch):
    scripted.install(monkeypatch, scripted.PLANS)
    found = evaluated(made, tmp_path / "out [1]*?{a}", trees / "mevis", benchmark="mevis", split="valid", limit=3)
    assert found["table"] == {"unscored": 3}
    videos = json.loads((trees / "mevis" / "valid" / "meta_expressions.json").read_text())["videos"]
    with zipfile.ZipFile(tmp_path / "out [1]*?{a}" / found["archive"]["file"]) as archive:
        names = archive.namelist()
    video = next(iter(videos))
    assert names == [f"{video}/{i}/{frame}.png" for i in range(3) for frame in videos[video]["frames"]]


def test_an_evaluation_is_not_mixed_with_another(made, trees, tmp_path, monkeypatch):
    scripted.install(monkeypatch, scripted.PLANS)
    monkeypatch.setattr(run, "launch", lambda *_: pytest.fail("nothing is left to compute"))
    options = Options("mevis", root=str(trees / "mevis"), limit=1)
    (task,) = tasks.benchmarks(made, options)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text('{"options": {"benchmark": "revos"}, "task": [], "weights": ""}')
    with pytest.raises(InputError, match='--out: .*holds results with --benchmark "revos", this one has "mevis"'):
        run.evaluate(made, task, options, tmp_path / "out")


def plant(folder):
    """Files and folders of a user, also with names that look like an evaluation's; a function that checks them."""
    planted = {
        "notes.txt": b"mine", ".x.part": b"mine", ".results.json.1.abc.part": b"mine", "results.json.backup": b"mine",
        ".0.omnir1.part/00000.png": b"mine", "weights/model.safetensors": b"mine", "predictions/v/0/00000.png": b"mine",
        "predictions/.a.1.b.part/x": b"mine", "predictions.old/v/0/00000.png": b"mine",
    }  # fmt: skip
    for name, content in planted.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "link").symlink_to(folder.parent)
    return lambda: all((folder / name).read_bytes() == content for name, content in planted.items())


def test_a_users_files_stay_and_only_what_was_written_is_resumed(made, trees, tmp_path, monkeypatch):
    scripted.install(monkeypatch, scripted.PLANS)
    wanted = dict(benchmark="mevis", split="valid", limit=3)
    unharmed = plant(tmp_path)
    for out, said in (
        (tmp_path, "holds .0.omnir1.part, .results.json.1.abc.part, .x.part and 6 more, not written by this command"),
        (tmp_path / "notes.txt", "is a file"),
        (tmp_path / "notes.txt" / "out", "is a file"),
        (tmp_path / "link", "is a symbolic link"),
    ):
        with pytest.raises(InputError, match=f"--out: {re.escape(str(out))}.* {said}"):
            evaluated(made, out, trees / "mevis", **wanted)
    assert unharmed() and not (tmp_path / "run.json").exists()

    out = tmp_path / "out"
    found = evaluated(made, out, trees / "mevis", **wanted)
    assert unharmed()
    items = sorted(path for path in (out / "predictions").glob("*/*"))
    contents = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    inner = plant(out)  # from now on beside, and among, what the evaluation wrote

    def kill(pending):
        """The last line is not there, its prediction is, and half of it once more."""
        rows = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
        (out / "results.jsonl").write_bytes(b"".join(rows[:2]))
        half = items[2].with_name(f".{items[2].name}.omnir1.part")
        half.mkdir(exist_ok=True)
        (half / next(items[2].iterdir()).name).write_bytes(b"half")
        if pending:
            with Store(out, json.loads((out / "run.json").read_text())) as store:
                store.begin([2])
        return half

    half = kill(pending=False)  # a prediction that the evaluation does not know of
    with pytest.raises(InputError, match=f"{half} was not written by this command; move it elsewhere"):
        evaluated(made, out, trees / "mevis", **wanted)
    kill(pending=True)
    (items[2] / "notes.txt").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"2 holds notes.txt, not written by this command; move that elsewhere"):
        evaluated(made, out, trees / "mevis", **wanted)
    (items[2] / "notes.txt").unlink()
    assert evaluated(made, out, trees / "mevis", **wanted) == found  # the archive among it holds nothing of the user's
    different = {path.name for path, content in contents.items() if path.read_bytes() != content}
    assert different <= {"timing.json", ".omnir1.json"} and inner() and unharmed() and not half.exists()
    # A folder of a version without marks, killed.
    (out / "results.jsonl").write_bytes(b"".join((out / "results.jsonl").read_bytes().splitlines(keepends=True)[:2]))
    (out / ".omnir1.json").unlink()
    known = ("options", "task", "weights", "boxes", "temperature", "config")
    values = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({name: values[name] for name in known}))
    assert evaluated(made, out, trees / "mevis", **wanted) == found and inner()


def test_every_part_is_looked_at_before_the_first_is_computed(made, trees, tmp_path, monkeypatch):
    scripted.install(monkeypatch, scripted.PLANS)
    options, rules, out = Options("mevis", root=str(trees / "mevis"), limit=1), ("first", "uniform"), tmp_path / "out"
    benchmark.evaluate(made, options, out, rules, quiet=True)
    assert benchmark.evaluate(made, options, out, rules, quiet=True).keys() == {*rules}
    monkeypatch.setattr(run, "launch", lambda *_: pytest.fail("nothing may be computed"))
    with pytest.raises(InputError, match=r"holds an evaluation for each of several tasks or rules"):
        benchmark.evaluate(made, options, out, quiet=True)
    values = json.loads((out / "uniform" / "run.json").read_text())
    (out / "first" / "results.jsonl").write_text("")
    (out / "uniform" / "run.json").write_text(json.dumps(values | {"weights": "other"}))
    with pytest.raises(InputError, match=r"out/uniform holds results with other weights"):
        benchmark.evaluate(made, options, out, rules, quiet=True)
    shutil.move(out / "uniform", tmp_path / "moved")
    (out / "uniform").symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match=r"out/uniform is a symbolic link"):
        benchmark.evaluate(made, options, out, rules, quiet=True)
    (out / "uniform").unlink()
    hold = f"from omnir1_jax.files import locks\nwith locks.lock({str(out)!r}, ''): print(1, flush=True), input()"
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(InputError, match=rf"--out: {out} is in use by process {holder.pid} on host "):
        benchmark.evaluate(made, options, out, rules, quiet=True)
    holder.communicate(b"\n")


def test_a_root_is_where_the_command_runs_or_below_data_root_and_its_videos_are_counted(made, trees, monkeypatch):
    monkeypatch.chdir(trees.parent)
    here = str(trees.relative_to(trees.parent) / "refytvos")
    (found,) = tasks.benchmarks(made, Options("refytvos", root=here))
    assert found.root == str(trees / "refytvos") and len(found.reader.clips()) == 1 < len(found.reader)
    assert tasks.count_note(found) == ("refytvos/valid: 1 videos are there, 202 were published",)
    monkeypatch.setitem(made.config, "data_root", str(trees))
    (same,) = tasks.benchmarks(made, Options("refytvos", root="refytvos"))
    assert same.root == found.root


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(benchmark="revos"), "--root"),
        (dict(benchmark="revos", root="nowhere"), "nowhere"),
        (dict(benchmark="coco"), "--benchmark"),
        (dict(benchmark="synthetic", tasks=("qa",)), "--tasks"),
        (dict(benchmark="synthetic", sound="loud"), "--sound"),
        (dict(benchmark="synthetic", system2="file"), "--boxes"),
        (dict(benchmark="synthetic", system2="file", boxes=__file__), "line 1"),
        (dict(benchmark="refavs", root=".", frames=4), "--frames"),
    ],
)
def test_wrong_choices_are_one_line_that_names_the_flag(made, changes, named):
    with pytest.raises(InputError, match=named):
        list(tasks.benchmarks(made, Options(**changes)))
