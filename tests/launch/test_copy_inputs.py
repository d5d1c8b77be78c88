"""launch/copy_inputs.py, on a folder in place of a bucket."""

import collections
import importlib.util
import shutil

import fsspec
import pytest

from tests.launch.machine import ROOT

spec = importlib.util.spec_from_file_location("copy_inputs", ROOT / "launch" / "copy_inputs.py")
copy_inputs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(copy_inputs)


@pytest.fixture
def bucket(tmp_path):
    for name in ("weights/a/config.json", "data/list.txt", "data/deep/er/frame 1.jpg"):
        file = tmp_path / "inputs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (tmp_path / "checkout").mkdir()
    return f"file://{tmp_path}/inputs", tmp_path / "checkout"


def files(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_folders_are_kept(bucket):
    url, checkout = bucket
    assert copy_inputs.main(url, str(checkout)) == 0
    assert files(checkout) == {
        name: name for name in ("weights/a/config.json", "data/list.txt", "data/deep/er/frame 1.jpg")
    }
    assert copy_inputs.main(url + "/", str(checkout)) == 0


def test_an_interrupted_copy_resumes(bucket, monkeypatch):
    url, checkout = bucket
    monkeypatch.setattr(copy_inputs, "BATCH", 1)
    store = type(fsspec.core.url_to_fs(url)[0])
    get, copied = store.get, []

    def failing(self, names, paths, **options):
        if len(copied) == 1:
            raise ConnectionError("reset by peer")
        copied.extend(names)
        return get(self, names, paths, **options)

    monkeypatch.setattr(store, "get", failing)
    assert copy_inputs.main(url, str(checkout)) == copy_inputs.TRANSIENT
    copied[:] = []
    monkeypatch.setattr(
        store, "get", lambda self, *args, **options: (copied.extend(args[0]), get(self, *args, **options))
    )
    assert copy_inputs.main(url, str(checkout)) == 0
    assert len(copied) == 2 and len(files(checkout)) == 3


def test_a_file_of_the_users_is_kept(bucket, capsys):
    url, checkout = bucket
    (checkout / "data").mkdir()
    (checkout / "data/list.txt").write_text("my own list")
    assert copy_inputs.main(url, str(checkout)) == copy_inputs.INVALID
    assert "data/list.txt is there already and differs" in capsys.readouterr().err
    assert files(checkout) == {"data/list.txt": "my own list"}


def test_what_will_not_pass(bucket, monkeypatch, capsys):
    url, checkout = bucket
    assert copy_inputs.main(url + "/absent", str(checkout)) == copy_inputs.INVALID
    assert "absent is not a folder there" in capsys.readouterr().err
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, copy_inputs.SPARE + 40))
    assert copy_inputs.main(url, str(checkout)) == copy_inputs.INVALID
    message = capsys.readouterr().err
    assert "GB to copy" in message and "--boot-disk" in message and len(message.splitlines()) == 1
    assert files(checkout) == {}
    assert copy_inputs.lasting(OSError(28, "No space left on device")) and not copy_inputs.lasting(TimeoutError())
