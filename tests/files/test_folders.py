"""Whose folder it is: what a command may write, replace and remove, and that one process writes at a time."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from omnir1_jax.errors import InputError
from omnir1_jax.files import folders, locks
from tests.bucket import bucket

FLAG = "--out"


@pytest.fixture(params=["local", "gs"])
def root(request, tmp_path, monkeypatch):
    with contextlib.ExitStack() as stack:
        if request.param == "gs":
            stack.enter_context(bucket(monkeypatch))
            monkeypatch.setattr(locks, "LEASE", locks.Lease(0.5, 0.1, 0.0))
        yield epath.Path("gs://bucket/root" if request.param == "gs" else tmp_path / "root")


def tree(path) -> dict[str, bytes | str | None]:
    """All below a local folder: contents, targets of links, None for folders."""
    out = {}
    for entry in sorted(pathlib.Path(path).rglob("*")):
        name = str(entry.relative_to(path))
        out[name] = os.readlink(entry) if entry.is_symlink() else entry.read_bytes() if entry.is_file() else None
    return out


def fill(scratch, **texts: str) -> None:
    for name, text in texts.items():
        (scratch / name).write_text(text)


def build(target, **texts: str) -> None:
    with folders.replace(target, "answer", FLAG) as scratch:
        fill(scratch, **texts)


def test_a_new_an_empty_and_an_own_folder_are_claimed(root):
    mark = folders.claim(root / "new", "run", FLAG)
    assert folders.read(root / "new") == mark and mark.kind == "run" and len(mark.id) == 32
    assert folders.claim(root / "new", "run", FLAG) == mark
    (root / "empty").mkdir(parents=True, exist_ok=True)
    folders.claim(root / "empty", "run", FLAG)
    with pytest.raises(InputError, match="--out: .*new is a folder of kind run, not answer; name another"):
        folders.claim(root / "new", "answer", FLAG)


def foreign_folder(path):
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


def current_folder(path):
    foreign_folder(path)
    os.chdir(path)
    return "."


def link(path):
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


REFUSED = {
    "holds thesis.txt, not written by this command; name a new or an empty folder": foreign_folder,
    "--out: . ": current_folder,
    "is a symbolic link": link,
    "is a symbolic link;": lambda path: path.symlink_to("nowhere"),
    "is a file; name a folder": lambda path: path.write_text("mine"),
    "is a file; name another folder": lambda path: (path.write_text("mine"), path / "below")[1],
    "damaged, so that it does not tell whose": lambda path: (
        path.mkdir(),
        (path / folders.MARK).write_text("{}"),
        None,
    )[2],
    "damaged, so": lambda path: (
        path.mkdir(),
        (path / folders.MARK).write_text('{"kind": "run", "version": 1, "id": "a", "names": ["../x"]}'),
        None,
    )[2],
    "later version": lambda path: (path.mkdir(), (path / folders.MARK).write_text('{"version": 2}'), None)[2],
    "cannot be a folder": lambda path: path.with_name("x" * 300),
}


@pytest.mark.parametrize("message", REFUSED)
def test_anything_else_is_refused_in_one_line_and_left_as_it_is(tmp_path, monkeypatch, message):
    monkeypatch.chdir(tmp_path)
    made = REFUSED[message](tmp_path / "target")
    target = made if isinstance(made, str | pathlib.Path) else tmp_path / "target"
    before = tree(tmp_path)
    for attempt in (folders.check, folders.claim, folders.hold, folders.replace):
        with pytest.raises(InputError) as refused, contextlib.ExitStack() as stack:
            opened = attempt(target, "run", FLAG)
            if hasattr(opened, "__enter__"):
                stack.enter_context(opened)
        assert message in str(refused.value) and "\n" not in str(refused.value)
        assert tree(tmp_path) == before


def test_a_file_is_listed_before_it_is_written_and_no_other_is_touched(root):
    folders.claim(root, "run", FLAG)
    with folders.file(root, "report.html", FLAG) as scratch:
        assert folders.read(root).names == ("report.html",)
        scratch.write_text("1")
    with folders.file(root, "report.html", FLAG) as scratch:
        scratch.write_text("2")
    assert (root / "report.html").read_text() == "2"
    (root / "summary.json").write_text("mine")
    for attempt in (
        lambda: folders.begin(root, "summary.json", FLAG),
        lambda: folders.check(root, "run", FLAG, names=["report.html", "summary.json"]),
    ):
        with pytest.raises(InputError, match="summary.json was not written by this command; move it elsewhere"):
            attempt()
    assert (root / "summary.json").read_text() == "mine"


def test_an_older_folder_is_adopted(root):
    (root / "config.json").write_text("{}") if "://" in str(root) else foreign_folder(root)
    adopt = lambda path: ["config.json", "thesis.txt"]
    assert folders.check(root, "run", FLAG, adopt=adopt) is None
    with pytest.raises(InputError, match="not written by this command"):
        folders.claim(root, "run", FLAG, adopt=lambda path: None)
    assert folders.claim(root, "run", FLAG, adopt=adopt).names == ("config.json", "thesis.txt")


def test_a_folder_is_replaced_whole_or_not_at_all(root):
    build(root / "answer", plan="1", sheet="1")
    build(root / "answer", plan="2")
    assert [p.name for p in (root / "answer").iterdir() if not p.name.startswith(".")] == ["plan"]
    assert (root / "answer/plan").read_text() == "2"
    with pytest.raises(RuntimeError), folders.replace(root / "answer", "answer", FLAG) as scratch:
        fill(scratch, plan="3")
        raise RuntimeError
    assert (root / "answer/plan").read_text() == "2"
    assert [p.name for p in root.iterdir()] == ["answer"]


def test_a_foreign_file_in_an_own_folder_is_never_replaced(root):
    build(root / "answer", plan="1")
    (root / "answer" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="answer holds notes.txt, not written by this command; move that elsewhere"):
        build(root / "answer", plan="2")
    assert folders.remove(root / "answer") == ["notes.txt"]
    assert (root / "answer/notes.txt").read_text() == "mine" and (root / "answer/plan").read_text() == "1"
    (root / "answer" / "notes.txt").unlink()
    with pytest.raises(InputError, match="holds late.txt"), folders.replace(root / "answer", "answer", FLAG) as scratch:
        fill(scratch, plan="2")
        (root / "answer" / "late.txt").write_text("mine")  # while it was at work
    assert (root / "answer/late.txt").read_text() == "mine" and (root / "answer/plan").read_text() == "1"


def test_links_and_folders_of_the_users_count_as_foreign(tmp_path):
    target = tmp_path / "answer"
    with folders.replace(target, "answer", FLAG) as scratch:
        (scratch / "masks").mkdir()
        fill(scratch, **{"masks/0.png": "0", "plan": "1"})
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/0.png").write_text("mine")
    for name, make in {
        "empty/": lambda: (target / "empty").mkdir(),
        "masks/1.png@": lambda: (target / "masks/1.png").symlink_to("0.png"),
        "masks@": lambda: ((target / "masks").rename(tmp_path / "kept"), (target / "masks").symlink_to("../outside")),
    }.items():
        make()
        before = tree(tmp_path)
        assert name in folders.foreign(target) and folders.remove(target)
        with pytest.raises(InputError, match="not written by this command"):
            build(target, plan="2")
        assert tree(tmp_path) == before
        (target / name.rstrip("/@")).rmdir() if name == "empty/" else (target / name.rstrip("@")).unlink()


def test_a_copy_of_an_inner_folder_is_the_users(root):
    with folders.replace(root / "a/weights", "weights", FLAG, owner="1" * 32) as scratch:
        fill(scratch, model="1")
    with pytest.raises(InputError, match="is a copy that belongs to another folder"):
        folders.check(root / "a/weights", "weights", FLAG, owner="2" * 32)


KILLED = """
import os, signal, sys
from omnir1_jax.files import folders
count, calls = int(sys.argv[2]), 0
def counting(real):
    def call(*args, **keywords):
        global calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **keywords)
    return call
from etils.epath import backend
for name in ("rename", "replace", "remove", "mkdir", "makedirs", "rmtree"):
    setattr(backend._OsPathBackend, name, counting(getattr(backend._OsPathBackend, name)))
os.rename = counting(os.rename)
with folders.replace(sys.argv[1], "answer", "--out") as scratch:
    (scratch / "plan").write_text("2")
"""


def test_killed_at_any_moment_the_old_or_the_new_is_there_and_the_next_one_ends(tmp_path):
    """Killed before every single change of the disk, in forks of one process."""
    target, outcomes = tmp_path / "answer", []
    for count in range(1, 40):
        build(target, plan="1", sheet="1")
        (tmp_path / "foreign.txt").write_text("mine")
        child = os.fork()
        if not child:
            sys.argv = ["", str(target), str(count)]
            try:
                exec(KILLED, {})
            finally:
                os._exit(0)
        ended = os.waitpid(child, 0)[1] == 0
        left = [path for path in (target, tmp_path / ".answer.omnir1.old") if (path / "plan").exists()]
        outcomes.append((left[0] / "plan").read_text())
        build(target, plan="3")
        assert sorted(tree(tmp_path)) == ["answer", "answer/.omnir1.json", "answer/plan", "foreign.txt"]
        if ended:
            break
    assert ended and {"1", "2"} == set(outcomes)


HOLDER = """
import sys, time
from omnir1_jax.files import folders, locks
with locks.lock(sys.argv[1], "--out", lease=locks.Lease(1.0, 0.1, 0.1), force_lease=sys.argv[2] == "lease"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(folder, how):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), how], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def take(folder, how):
    lease = locks.Lease(1.0, 0.1, 0.1)
    with locks.lock(folder, FLAG, lease=lease, force_lease=how == "lease"), locks.lock(folder, FLAG):
        pass


@pytest.mark.parametrize("how", ["flock", "lease"])
def test_one_at_a_time_and_a_killed_holder_leaves_no_stale_lock(tmp_path, how):
    with holder(tmp_path, how) as process:
        with pytest.raises(InputError, match=f"--out: .* is in use by process {process.pid} on host .*; wait until"):
            take(tmp_path, how)
        process.send_signal(signal.SIGKILL)
        process.wait()
        begun = time.monotonic()
        take(tmp_path, how)
        assert time.monotonic() - begun < 0.9  # at once: the holder was of this machine
    assert not (tmp_path / locks.LOCK).exists()


def test_a_lease_of_another_host_is_taken_over_once_it_is_no_longer_renewed(tmp_path):
    (tmp_path / locks.LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1, "lease": "x"}))
    begun = time.monotonic()
    take(tmp_path, "lease")
    assert time.monotonic() - begun > 1.0


def test_a_holder_whose_lease_was_taken_over_ends(tmp_path, monkeypatch):
    lost = []
    monkeypatch.setattr(locks, "_end_process", lost.append)
    with locks.lock(tmp_path, FLAG, lease=locks.Lease(1.0, 0.05, 0.0), force_lease=True):
        (tmp_path / locks.LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 7, "lease": "x"}))
        end = time.monotonic() + 5
        while not lost and time.monotonic() < end:
            time.sleep(0.01)
    assert "taken over by process 7 on host elsewhere" in lost[0]
    assert (tmp_path / locks.LOCK).exists()  # the other's


def test_where_flock_is_missing_a_lease_is_held(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(locks.errno.ENOLCK, "no locks")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with locks.lock(tmp_path, FLAG, lease=locks.Lease(1.0, 0.1, 0.0)):
        assert "lease" in json.loads((tmp_path / locks.LOCK).read_text())


def test_a_file_with_the_name_of_the_lock_stays(tmp_path):
    (tmp_path / locks.LOCK).write_text("mine")
    for how in ("flock", "lease"):
        with pytest.raises(InputError, match="a file of that name is there which is not a lock"):
            take(tmp_path, how)
    assert (tmp_path / locks.LOCK).read_text() == "mine"


def test_a_held_folder_that_was_not_used_is_gone(root):
    with folders.hold(root, "run", FLAG) as mark:
        assert folders.read(root) == mark
    assert not root.exists()
    with folders.hold(root, "run", FLAG) as mark, folders.file(root, "config.json", FLAG) as scratch:
        scratch.write_text("{}")
    assert folders.read(root).id == mark.id
    assert sorted(p.name for p in root.iterdir()) == [folders.MARK, "config.json"]


def test_outputs_are_apart_from_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("data")
    inputs = {"--checkpoint": "weights/model", "data.vos.root": "data/davis", "--boxes": "", "x": "gs://b/data"}
    for out, how in {
        "weights": "contains the input weights/model",
        "weights/model": "is the input",
        "data/davis/out": r"is in the input data/davis \(data.vos.root\)",
        "link/davis": "is the input",
        ".": "contains",
        "gs://b/data/run": "is in",
        "gs://b": "contains",
    }.items():
        with pytest.raises(InputError, match=f"--out: {out} .*{how}"):
            folders.check_disjoint(out, FLAG, inputs)
    for out in ("runs/x", "data/out", "weights2", "gs://b/data2"):
        folders.check_disjoint(out, FLAG, inputs)
