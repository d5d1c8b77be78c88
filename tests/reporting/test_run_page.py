"""A run's page while the run is going: what is new is read once, filters mean what they say, nothing else is served."""

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest
from absl.testing import flagsaver
from etils import epath

from omnir1_jax import serve
from omnir1_jax.errors import InputError
from omnir1_jax.inference import serve_guard
from omnir1_jax.reporting import run_files, run_server
from omnir1_jax.reporting.log import RunLog
from omnir1_jax.reporting.parts import Copy, Parts
from omnir1_jax.reporting.rollouts_html import Query
from omnir1_jax.reporting.run_files import RunFiles
from tests.reporting.test_reports import HOSTILE, a_run, example
from tests.runs import environment


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Files are looked at whenever they are asked for."""
    monkeypatch.setattr(run_files, "LOCAL_SECONDS", 0)
    monkeypatch.setattr(run_files, "BLOCK", 700)  # lines span blocks


def row(step: int, sample: str = "s", reward: float | None = 1.0, failures: tuple[str, ...] = (), **more) -> bytes:
    value = {"step": step, "sample_id": sample, "family": "vos", "query": "é" * 40, "completion": "c", "reward": reward}
    return json.dumps(value | {"failures": failures} | more, ensure_ascii=False).encode() + b"\n"


def known(run: RunFiles) -> list[tuple[int, str, list]]:
    """Groups, after what the index says of each was compared with its lines."""
    run.refresh()
    for group in run.groups:
        rows = run.rollouts(group)
        assert {(r["step"], r["sample_id"]) for r in rows} == {(group.step, group.sample_id)}
        assert [r["reward"] for r in rows] == group.rewards
    return [(group.step, group.sample_id, group.rewards) for group in run.groups]


def test_what_is_new_is_read_once_and_what_was_cut_off_is_forgotten(tmp_path):
    path, run = tmp_path / "rollouts.jsonl", RunFiles(tmp_path)
    assert known(run) == [] and run.version == 0
    path.write_bytes(row(1) + row(1, reward=2.0) + row(1, "t")[:-5])
    assert known(run) == [(1, "s", [1.0, 2.0])]
    version = run.version
    assert known(run) == [(1, "s", [1.0, 2.0])] and run.version == version
    path.write_bytes(row(1) + row(1, reward=2.0) + row(1, "t") + row(2, reward=None))
    assert known(run) == [(1, "s", [1.0, 2.0]), (1, "t", [1.0]), (2, "s", [None])] and run.version > version
    # A resume truncates the file, and is further than it was before anybody looks again.
    path.write_bytes(row(1) + row(1, reward=2.0) + row(2, reward=7.0) + row(3, "u") * 20)
    assert known(run) == [(1, "s", [1.0, 2.0]), (2, "s", [7.0]), (3, "u", [1.0] * 20)]
    path.write_bytes(row(1))
    with pytest.raises(InputError, match="was truncated while it was read"):
        run.rollouts(run.groups[-1])
    path.write_bytes(b"")
    assert known(run) == []
    path.write_bytes(row(1) + b"[]\n")
    for _ in range(2):  # said again, and nothing read twice
        with pytest.raises(InputError, match=r"rollouts\.jsonl line 2 is not a JSON object"):
            run.refresh()
    path.write_bytes(row(1) + row(2))
    assert known(run) == [(1, "s", [1.0]), (2, "s", [1.0])]


@pytest.mark.parametrize(
    "change", [{"keyframes": {"frame": 1}}, {"failures": "x"}, {"rewards": {"a": "b"}}, {"plan": [3]}, {"reward": "x"}]
)
def test_a_rollout_of_another_shape_is_named(tmp_path, change):
    (tmp_path / "rollouts.jsonl").write_bytes(row(4, **change))
    with pytest.raises(InputError, match=r"rollouts\.jsonl: a rollout of step 4 has no"):
        RunFiles(tmp_path).refresh()


def test_filters_mean_what_they_say(tmp_path):
    rows = [
        row(1, "a", 1.0),
        row(1, "a", 3.0, ("plan/x",)),
        row(2, "b", 5.0),
        row(2, "b", None, ("y",)),
        row(3, "c", 0.0),
    ]
    (tmp_path / "rollouts.jsonl").write_bytes(b"".join(rows).replace(b'"c", "family": "vos"', b'"c", "family": "qa"'))
    run = RunFiles(tmp_path)
    run.refresh()
    named = lambda **asked: "".join(group.sample_id for group in Query.parse(asked).select(run.groups))
    assert named() == "cba" == named(order="newest", step_from="x", reward_to="nan", page="2", task="")
    assert named(task="vos") == "ba" and named(task="qa") == "c" and named(task="refavs") == ""
    assert named(step_from="2") == "cb" and named(step_to="1") == "a" and named(step_from="2", step_to="2") == "b"
    assert named(reward_from="1", reward_to="3") == "a" and named(reward_from="4") == "b"
    assert named(failure="*") == "ba" and named(failure="-") == "cba" and named(failure="plan/x") == "a"
    assert named(failure="y", reward_from="1") == ""  # the failure and the reward are of the same completion
    assert (
        named(order="oldest") == "abc" and named(order="best reward") == "bac" and named(order="worst reward") == "cab"
    )
    assert named(order="widest spread") == "abc"
    assert Query(failure="*").matches(run.groups[0]) == [False, True]
    asked = Query.parse({"failure": "plan/x", "reward_from": "-1.5"})
    assert asked.link(page=3) == "?failure=plan%2Fx&reward_from=-1.5&order=newest&page=3#rollouts"


@pytest.fixture
def served(tmp_path):
    """A run with hostile texts, a function that asks its server for a target, and the run's folder."""
    a_run(tmp_path, 3, HOSTILE)
    names = serve_guard.Names("127.0.0.1")
    refuse = lambda headers: "" if (headers.get("Host") or "").partition(":")[0] in names else "no"
    with run_server.opened(RunFiles(tmp_path), "127.0.0.1", 0, refuse) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()

        def ask(target: str, **more) -> tuple[int, dict, str | bytes]:
            request = urllib.request.Request(f"http://127.0.0.1:{server.server_address[1]}{target}", **more)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    body = answer.read()
                    return answer.status, dict(answer.headers), body if target.endswith("png") else body.decode()
            except urllib.error.HTTPError as error:
                return error.code, dict(error.headers), error.read().decode()

        yield tmp_path, ask
        server.shutdown()
        thread.join()


def test_the_page_shows_the_run_and_lets_nothing_in(served):
    folder, ask = served
    status, headers, page = ask("/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data: 'self'; ") and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    scripts = re.findall(r"<script[^>]*>", page)
    assert scripts == ["<script>"] and page.count("&lt;script&gt;alert(1)") > 100 and "<img src=http" not in page
    assert "1 of the 1 prompts" in page and "completion 4, reward 3" in page and "3 of 3" in page
    images = re.findall(r'<img [^>]*src="(/pictures/3/[^"]+)"', page)
    assert len(images) == 2
    for image in images:
        status, headers, body = ask(image)
        assert (status, headers["Content-Type"]) == (200, "image/png") and body.startswith(b"\x89PNG")
    assert "0 of the 1 prompts" in ask("/?failure=-")[2] and "1 of the 1 prompts" in ask("/?failure=*&page=99")[2]
    version, now = json.loads(ask("/version")[2])
    assert f'data-version="{version}"' in page and now == "The run has ended."
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "seconds": 1.0, "learn/learning_rate": 0.00025}\n{"step": 5')
    later, now = json.loads(ask("/version")[2])
    assert later > version and re.fullmatch(r"Last step 0:00:0\d ago\. This page follows the run\.", now)
    page = ask("/")[2]
    assert "4 of 3" in page and "0.00025" in page and "learn/learning_rate: last 0.00025" in page


def test_nothing_but_the_page_is_served(served):
    folder, ask = served
    (folder / "pictures/3/secret.png").symlink_to(folder / "config.json")
    (folder / "pictures/8").symlink_to(folder / "pictures/3")
    name = next(path.name for path in sorted((folder / "pictures/3").iterdir()) if path.name.startswith("00"))
    for target in (
        "/config.json", "/pictures/3/", "/pictures/3/../../config.json", "/pictures/3/..%2f..%2fconfig.json",
        "/pictures/3/secret.png", f"/pictures/8/{name}", "/pictures/9/a.png",
        "/pictures/3/.omnir1.json", "//etc/passwd",
    ):  # fmt: skip
        assert ask(target)[0] == 404, target
    for method in ("POST", "PUT", "DELETE", "HEAD"):
        assert ask("/", method=method)[0] == 501
    assert ask("/", headers={"Host": "evil.example"})[::2] == (403, "no")
    (folder / "rollouts.jsonl").write_text(f'{{"step": 1}}\n{HOSTILE}\n')
    status, headers, said = ask("/")
    assert status == 500 and headers["Content-Type"].startswith("text/plain") and "rollouts.jsonl line 2" in said


def test_a_copy_of_a_growing_file_on_a_bucket(tmp_path):
    local, remote, folder = tmp_path / "log", epath.Path(tmp_path / "remote"), epath.Path(tmp_path / "parts")
    copy = Copy(tmp_path / "copy", remote, folder)
    copy.update()
    parts = Parts(local, remote, folder)
    read = lambda: (copy.update(), (tmp_path / "copy").read_bytes())[1]
    for start in (b"", b"1\n2\n"):  # the second is a resume that has cut the last line off
        local.write_bytes(start)
        parts.open()
        assert read() == start
        folder.mkdir(exist_ok=True)
        stale = folder / f"{len(start):012d}"  # seen before the resume removes it
        stale.write_bytes(b"9\n")
        assert read() == start + b"9\n"
        stale.unlink()
        assert read() == start
        for line in (b"3\n", b"44\n"):
            with local.open("ab") as file:
                file.write(line)
            parts.send()
            assert read() == local.read_bytes() == read()
    parts.open()
    assert read() == b"1\n2\n3\n44\n" and not list(folder.iterdir())


def test_a_run_on_a_bucket_is_followed(tmp_path, monkeypatch):
    real = epath.Path
    monkeypatch.setattr(epath, "Path", lambda path: real(str(path).replace("gs://b", str(tmp_path))))
    monkeypatch.setattr(run_files, "REMOTE_SECONDS", 0)
    run = RunFiles("gs://b/run")
    with RunLog("gs://b/run", 9, quiet=True, tensorboard=False) as opened:
        for step in (1, 2, 3):
            opened.step(step, {"reward/total": 1.0}, 1.0)
            opened.rollouts(step, [example()])
            opened.flush()
            run.refresh()
            assert [row["step"] for row in run.steps] == list(range(1, step + 1))
            assert known(run) == [(n, "clip", [0.5]) for n in range(1, step + 1)]
    page = run_server.Page(run).answer("/").body.decode()
    assert "3 of the 3 prompts" in page


def test_the_command_serves_until_it_is_stopped_and_leaves_the_devices_to_the_run(tmp_path):
    with RunLog(tmp_path, 3, quiet=True, tensorboard=False) as opened:
        opened.step(1, {"reward/total": 0.5}, 1.0)
        opened.rollouts(1, [example()])
    command = [sys.executable, "-m", "omnir1_jax.serve", "--run", str(tmp_path), "--port=0"]
    missing = {"JAX_PLATFORMS": "none"}  # a device that is asked for is an error
    with subprocess.Popen(command, env=environment() | missing, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = re.fullmatch(r"the page is at (http://127\.0\.0\.1:\d+) .*\n", process.stdout.readline())[1]
            with urllib.request.urlopen(address, timeout=60) as answer:
                assert "1 of the 1 prompts" in answer.read().decode()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_a_folder_that_is_missing_is_named(tmp_path):
    missing = flagsaver.as_parsed((serve._RUN, str(tmp_path / "x")))
    with missing, pytest.raises(InputError, match="--run: .*x is missing, or not a folder"):
        serve.main([])
