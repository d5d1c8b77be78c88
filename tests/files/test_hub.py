"""The hub's repositories: fetched from a stand-in of the hub on this machine, found in its cache by their ids."""

import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import zipfile

import pytest
from absl import flags
from absl.testing import flagsaver

from omnir1_jax.build import data
from omnir1_jax.config import settings
from omnir1_jax.errors import AGAIN, INVALID, InputError, Interrupted
from omnir1_jax.files import hub
from omnir1_jax.files.sources import DATASETS, MODELS
from omnir1_jax.inference import from_checkpoint
from tests.data import trees
from tests.runs import ROOT

SHA = "0123456789abcdef0123456789abcdef01234567"


def archive(kind: str) -> bytes:
    data, content = io.BytesIO(), b"frame"
    if kind == "zip":
        with zipfile.ZipFile(data, "w") as file:
            file.writestr("revos/clip/00000.jpg", content)
    else:
        with tarfile.open(fileobj=data, mode="w") as file:
            member = tarfile.TarInfo("Videos/a/a_video.mp4")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return data.getvalue()


REPOSITORIES = {
    "models/Haoz0206/Omni-R1": {
        "config.json": b'{"model_type": "qwen2_5_omni_thinker"}',
        "model-00001-of-00001.safetensors": bytes(range(256)) * 400,
        "pytorch_model.bin": b"not wanted",
    },
    "models/some/pickles": {"config.json": b"{}", "pytorch_model.bin": b"x"},
    "datasets/Dense-World/video-res": {"revos.zip": archive("zip"), "mevis.zip": b"another"},
    "datasets/liarliar/Daily-Omni": {"qa.json": b"[]", "Videos.tar": archive("tar")},
    "datasets/Ricky06662/refCOCOg_2k_840": {},  # see address()
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as downloads ask for: a repository's list of files, and the files, also from a byte on."""

    cut: set[str] = set()  # names whose next answer ends halfway

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            repo = f"{found[1]}/{found[2]}"
            if repo == "models/gated/weights":
                return self.send(403, b"", {"X-Error-Code": "GatedRepo"}, body)
            if repo not in REPOSITORIES:
                return self.send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
            files = [{"rfilename": name, "size": len(data)} for name, data in REPOSITORIES[repo].items()]
            return self.send(200, json.dumps({"id": found[2], "sha": SHA, "siblings": files}).encode(), {}, body)
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/.*", path):
            files = REPOSITORIES[f"{found[1]}/{found[2]}"]
            listed = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
            return self.send(200, json.dumps(listed).encode(), {}, body)
        found = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.*)", path)
        data = REPOSITORIES[f"{(found[1] or 'models/')}{found[2]}"][found[3]]
        start = int(re.search(r"\d+", self.headers.get("Range", "0"))[0])
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(206 if start else 200, data[start:], headers, body, cut=found[3] in self.cut)
        if body:
            self.cut.discard(found[3])

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if cut else data)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    tree = tmp_path_factory.mktemp("refcocog")
    trees.BUILD["refcocog_parquet"](tree)
    files = {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    REPOSITORIES["datasets/Ricky06662/refCOCOg_2k_840"] = files
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def fetch(address, tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        env = os.environ | {
            "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT),
            "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "omnir1_jax.fetch", *arguments],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    return run


def test_a_model_goes_into_the_cache_and_is_found_by_its_id(fetch, tmp_path, monkeypatch):
    done = fetch("model", "omni-r1")
    assert done.returncode == 0, done.stderr
    assert "BSD-2-Clause" in done.stdout and "--checkpoint=Haoz0206/Omni-R1" in done.stdout
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    folder = tmp_path / "hf/hub/models--Haoz0206--Omni-R1/snapshots" / SHA
    assert hub.located("Haoz0206/Omni-R1", "--checkpoint") == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model-00001-of-00001.safetensors"]
    argv = ["train", f"--config={ROOT}/configs/toy.py", "--config.thinker.path=Haoz0206/Omni-R1"]
    monkeypatch.setattr(sys, "argv", argv)
    with flagsaver.flagsaver():
        settings.define()
        settings.parse(argv)
        assert flags.FLAGS.config.thinker.path == str(folder)
    assert from_checkpoint.config_of("Haoz0206/Omni-R1", settings.defaults()).thinker.path == str(folder)
    with pytest.raises(
        InputError, match=r"--checkpoint: a/b is not a directory.* python -m omnir1_jax\.fetch model a/b$"
    ):
        hub.located("a/b", "--checkpoint")
    assert hub.located("runs/mine", "--checkpoint") == "runs/mine"  # of the user's own folders the command speaks


def test_a_download_that_breaks_off_is_resumed(fetch, tmp_path):
    name = "model-00001-of-00001.safetensors"
    Hub.cut.add(name)
    first = fetch("model", "Haoz0206/Omni-R1", "--out", "w")
    assert first.returncode in (0, AGAIN), first.stderr  # the client itself asks for the rest at times
    if first.returncode:
        assert "run the same command again" in first.stderr
        assert fetch("model", "Haoz0206/Omni-R1", "--out", "w").returncode == 0
    assert (tmp_path / "w" / name).read_bytes() == REPOSITORIES["models/Haoz0206/Omni-R1"][name]


def test_a_dataset_s_archives_are_unpacked_once(fetch, tmp_path):
    done = fetch("dataset", "revos")
    assert done.returncode == 0 and "unpacked revos.zip: " in done.stdout and "/data/revos/revos\n" in done.stdout
    assert (tmp_path / "data/revos/revos/clip/00000.jpg").read_bytes() == b"frame"
    assert not (tmp_path / "data/revos/mevis.zip").exists()
    again = fetch("dataset", "revos")
    assert again.returncode == 0 and "unpacked" not in again.stdout
    assert fetch("dataset", "dailyomni").returncode == 0
    assert (tmp_path / "data/dailyomni/Videos/a/a_video.mp4").is_file()


def test_a_dataset_by_its_id_goes_into_the_cache_and_is_read_from_there(fetch, tmp_path, monkeypatch):
    name, other = "Ricky06662/refCOCOg_2k_840", "liarliar/Daily-Omni"
    done = fetch("dataset", name)
    assert done.returncode == 0 and f"--root={name}" in done.stdout, done.stderr
    assert fetch("dataset", other).returncode == 0 and not (tmp_path / "data").exists()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    config = settings.defaults()
    config.data = dict(refcocog=settings.task(datasets=settings.datasets(refcocog=dict(root=name, split="train"))))
    (reader,) = data.readers(config, "refcocog")
    assert len(reader) == 3 and reader[0].family == "refcocog"
    assert (tmp_path / "hf" / data.root_of(config, other) / "Videos/a/a_video.mp4").read_bytes() == b"frame"
    assert str(data.root_of(config, "some/folder")) == "data/some/folder"  # as before
    with pytest.raises(InputError, match=r"root: data/a/b is not there; run python -m omnir1_jax\.fetch dataset a/b, "):
        config.data.refcocog.datasets.refcocog.root = "a/b"
        data.readers(config, "refcocog")


@pytest.mark.parametrize(
    "arguments, status, says",
    [
        (("model", "gated/weights"), INVALID, "licence has to be accepted"),
        (("model", "some/pickles"), INVALID, "holds no *.safetensors"),
        (("model", "no/such"), INVALID, "no such model"),
        (("dataset", "refavs"), INVALID, "by hand: curl -L -C - -O https://zenodo.org/"),
        (("model", "nonsense"), INVALID, "is none of qwen2.5-omni-7b, "),
    ],
)
def test_what_cannot_be_fetched_is_one_line(fetch, arguments, status, says):
    done = fetch(*arguments)
    assert done.returncode == status and says in done.stderr and "Traceback" not in done.stderr


def test_no_network_is_a_matter_of_trying_again(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise type("ConnectError", (Exception,), {"__module__": "httpx"})("Connection refused")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", refuse)
    with pytest.raises(Interrupted, match="some/model: Connection refused; run the same command again"):
        hub.fetch("some/model", "model", hub.MODEL_FILES, str(tmp_path))


def test_the_list_has_everything(fetch):
    lines = fetch().stdout.splitlines()
    assert len(lines) == len(MODELS) + len(DATASETS)
    assert any("Haoz0206/Omni-R1" in line for line in lines) and any("by hand" in line for line in lines)
