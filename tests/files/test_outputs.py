"""What --out and --json of commands may name: never anything of the user's, and said before anything is computed."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from absl.testing import flagsaver

from omnir1_jax import bench, infer, plan
from omnir1_jax.config import settings
from omnir1_jax.data import unpickle_masks
from omnir1_jax.data.tfds_builders import builders
from omnir1_jax.errors import InputError
from omnir1_jax.files import output_file
from omnir1_jax.inference import outputs
from omnir1_jax.toy import tokenizer

ROOT = pathlib.Path(__file__).parents[2]
PLAN, FIGURES = {"hbm_bytes_per_chip": 1, "fits": True}, {"text": {"seconds": 1.0}}


@flagsaver.flagsaver
def run(command, *arguments):
    settings.parse([command.__name__, *arguments])
    command.main([])


def planted(folder):
    """Things of a user that --json may be pointed at: name -> what is said."""
    (folder / "mine.json").write_text('{"a": 1}')
    (folder / "list.json").write_text("[]")
    (folder / "thesis.txt").write_text("mine")
    (folder / "empty").write_bytes(b"")
    (folder / "ours.json").write_text(json.dumps(PLAN))
    (folder / "link.json").symlink_to(folder / "ours.json")
    (folder / "dangling.json").symlink_to(folder / "absent")
    (folder / "folder.json").mkdir()
    os.mkfifo(folder / "pipe")
    said = dict.fromkeys(("mine.json", "list.json", "thesis.txt", "empty", "pipe"), "was not written by this command")
    said |= dict.fromkeys(("link.json", "dangling.json"), "is a symbolic link")
    return said | {"folder.json": "is a folder", "thesis.txt/out.json": "is a file"}


def contents(folder):
    """Names of all entries below a folder, with what regular files hold."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_a_file_that_the_command_did_not_write_stays(tmp_path):
    said = planted(tmp_path)
    before = contents(tmp_path)
    for (name, words), (ours, value) in [
        (item, kind) for item in said.items() for kind in ((plan.is_output, PLAN), (bench.is_output, FIGURES))
    ]:
        for act in (output_file.check, lambda *args, value=value: output_file.write(*args[:2], value, args[2])):
            with pytest.raises(InputError, match=f"--json: {re.escape(str(tmp_path / name))}.* {words}"):
                act(str(tmp_path / name), "--json", ours)
    with pytest.raises(InputError, match="was not written by this command"):
        output_file.check(str(tmp_path / "ours.json"), "--json", bench.is_output)
    assert contents(tmp_path) == before
    for path in (tmp_path / "ours.json", tmp_path / "new" / "plan.json"):
        for value in (PLAN, [PLAN, PLAN]):
            output_file.write(str(path), "--json", value, plan.is_output)
            assert json.loads(path.read_text()) == value
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plan.json"]


def test_commands_refuse_such_files_before_they_compute(tmp_path, monkeypatch):
    (tmp_path / "mine.json").write_text("{}")
    monkeypatch.setattr(plan.report, "plan", lambda *_, **__: pytest.fail("planned"))
    monkeypatch.setattr(bench.importlib, "import_module", lambda _: pytest.fail("measured"))
    refused = f"--json: {tmp_path / 'mine.json'} was not written by this command; name another file"
    for command, *arguments in ((plan, f"--config={ROOT}/configs/toy.py", "--topology=v5p:2x2x1"), (bench,)):
        with pytest.raises(InputError, match=refused):
            run(command, f"--json={tmp_path / 'mine.json'}", *arguments)


def test_infer_writes_only_a_new_an_empty_or_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(infer.load, "from_checkpoint", lambda *_, **__: pytest.fail("computed"))
    monkeypatch.setattr(infer, "keep_compiled", lambda _: None)
    monkeypatch.setattr(infer.from_checkpoint, "inputs", lambda *_: {"--checkpoint": str(tmp_path / "run")})
    for name in ("film", "planned", "run", "target", "old", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "film" / "clip.mp4").write_bytes(b"film")
    (tmp_path / "planned" / "plan.json").write_text(json.dumps(PLAN))  # as `plan --json plan.json` makes it
    (tmp_path / "planned" / "thesis.txt").write_text("mine")
    (tmp_path / "old" / "plan.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    before = contents(tmp_path)

    def refused(out, said):
        film = tmp_path / "film" / "clip.mp4"
        with pytest.raises(InputError, match=f"--out: .*{said}"):
            run(infer, "--checkpoint=toy", f"--video={film}", "--query=it", "--task=vos", f"--out={out}")

    for out, said in {
        tmp_path / "planned": "planned holds plan.json, thesis.txt, not written by this command; name a new",
        tmp_path / "old": "old holds plan.json, not written by this command",
        tmp_path / "link": "link is a symbolic link",
        tmp_path / "file": "file is a file",
        tmp_path / "file" / "out": "file is a file",
        tmp_path / "run" / "answer": "is in the input",
        tmp_path / "film" / "clip.mp4" / "x": "is a file",
        ".": "is or holds the working directory",
        "..": "is or holds the working directory",
        "gs://bucket/out": "is not on a local disk",
    }.items():
        refused(out, said)
    hold = "import sys; from omnir1_jax.files import folders\n"
    hold += "with folders.replace(sys.argv[1], 'infer', '--out'): print(1, flush=True), sys.stdin.read(1)"
    command = [sys.executable, "-c", hold, str(tmp_path / "new")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    refused(tmp_path / "new", f"is in use by process {holder.pid} on host")
    holder.kill()
    holder.communicate()
    assert outputs.check_target(tmp_path / "new") is None
    (tmp_path / ".new.omnir1.part" / ".omnir1.lock").unlink()
    (tmp_path / ".new.omnir1.part" / ".omnir1.json").unlink()
    (tmp_path / ".new.omnir1.part").rmdir()
    assert contents(tmp_path) == before


def test_writers_of_single_things_leave_what_is_there(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tokenizer.json").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(InputError, match=r"weights holds tokenizer.json, not written by this command"):
        tokenizer.main(["tokenizer", str(tmp_path / "weights")])
    with pytest.raises(InputError, match="link exists already"):
        unpickle_masks.convert(tmp_path / "masks.pkl", tmp_path / "link")
    assert (tmp_path / "weights" / "tokenizer.json").read_text() == "mine" and (tmp_path / "link").is_symlink()


def test_tfds_directories_stay(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "meta_expressions_train_.json").write_text("{}")
    with pytest.raises(InputError, match="--out: .*root/built is in the input"):
        builders.build("revos", tmp_path / "root", tmp_path / "root" / "built")
    (tmp_path / "out" / "revos").mkdir(parents=True)
    (tmp_path / "out" / "revos" / "1.0.0").symlink_to(tmp_path / "absent")
    with pytest.raises(InputError, match=r"--out: .*1\.0\.0 exists already; build into another directory"):
        builders.build("revos", tmp_path / "root", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "revos").iterdir()] == ["1.0.0"]
