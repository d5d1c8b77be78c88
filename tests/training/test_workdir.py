"""Whose a work directory is: what `train` refuses before it loads anything, and the folders of older versions."""

import json
import pathlib
import shutil

import pytest
from etils import epath

from omnir1_jax.config import settings
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders
from omnir1_jax.training import workdir
from tests import tiny
from tests.files.test_folders import holder, tree

OLD = pathlib.Path(__file__).parent.parent / "old_run"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    return tiny.get_config(str(tmp_path / "tokenizer"))


def claim(path, config) -> folders.Mark:
    with workdir.hold(path, config) as mark:
        (epath.Path(path) / "metrics.jsonl").write_text("")  # so that it is not removed as unused
        return mark


def test_a_checkout_loses_nothing(tmp_path, config, monkeypatch):
    weights = tmp_path / "checkout/weights/Qwen2.5-Omni-7B"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_text("mine")
    monkeypatch.chdir(tmp_path / "checkout")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"--workdir: \. holds weights, not written by this command; name a new or an"):
        claim(".", config)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", [*workdir.START, *workdir.END, "weights"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_the_user_put_in_the_way_is_named_and_stays(tmp_path, config, name, kind):
    run = tmp_path / "run"
    mark = claim(run, config)
    folders.write(run, mark._replace(names=()))  # a run that has not come to it yet
    (run / "metrics.jsonl").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/thesis.txt").write_text("mine")
    if kind == "folder":
        shutil.copytree(tmp_path / "elsewhere", run / name)
    else:
        (run / name).symlink_to("../elsewhere") if kind == "link" else (run / name).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=f"--workdir: {run}/{name}"):
        claim(run, config)
    assert tree(tmp_path) == before


def test_steps_of_the_users_are_named_and_stay(tmp_path, config):
    run = tmp_path / "run"
    claim(run, config)
    folders.claim(run / "checkpoints", "checkpoints", "--workdir")
    for name in ("checkpoints/10", "checkpoints/10.orbax-checkpoint-tmp", "pictures/10"):
        (run / name).mkdir(parents=True)
        with pytest.raises(InputError, match=f"{run}/{name} was not written by this run; move it elsewhere"):
            claim(run, config)
        (run / name).rename(run / name.replace("10", "10.backup").replace("-tmp", ""))
    claim(run, config)


def test_inputs_are_apart(tmp_path, config):
    with pytest.raises(InputError, match=r"tokenizer/run is in the input .*tokenizer \(thinker.tokenizer\)"):
        claim(tmp_path / "tokenizer/run", config)
    config.data.qa.datasets.synthetic.root = "davis"
    config.data_root = str(tmp_path)
    with pytest.raises(InputError, match=r"is the input .*davis \(data.qa.datasets.synthetic.root\)"):
        claim(tmp_path / "davis", config)
    assert not (tmp_path / "davis").exists()


def test_one_run_at_a_time(tmp_path, config):
    claim(tmp_path / "run", config)
    with holder(tmp_path / "run", "flock") as process, pytest.raises(InputError) as refused:
        claim(tmp_path / "run", config)
    assert f"run is in use by process {process.pid} on host " in str(refused.value)
    claim(tmp_path / "run", config)


def test_a_work_directory_of_an_older_version_is_adopted(tmp_path, config):
    run = tmp_path / "run"
    shutil.copytree(OLD / "run", run)
    (run / "summary.json").write_text("{}")
    (run / "report.html").write_text("")
    for name in ("weights/model.safetensors", "weights/config.json", "pictures/4/00_a.png", "checkpoints/6.backup/x"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("1")
    (run / "pictures/5").mkdir()
    (run / "pictures/5/holiday.jpg").write_text("mine")
    before = tree(run)
    with pytest.raises(InputError, match="pictures/5 holds holiday.jpg, not written by this command; move that"):
        claim(run, config)
    shutil.move(run / "pictures/5", tmp_path / "5")
    mark = claim(run, config)
    assert {"config.json", "metrics.jsonl", "checkpoints", "summary.json", "report.html"} <= set(mark.names)
    for inner in ("weights", "pictures/4"):
        assert folders.read(run / inner).id == mark.id and not folders.foreign(run / inner)
    after = tree(run)
    assert all(after[name] == text for name, text in before.items() if not name.startswith(("pictures/5", "metrics")))


def test_a_folder_that_is_no_run_is_not_adopted(tmp_path, config):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("")
    for text in ("[]", "{}", "{", json.dumps({"steps": 3}), "[" * 10**5):
        (run / "config.json").write_text(text)
        with pytest.raises(InputError, match="holds config.json, metrics.jsonl, not written by this command"):
            claim(run, config)
    (run / "config.json").write_text(json.dumps(settings.plain(config)))
    claim(run, config)
