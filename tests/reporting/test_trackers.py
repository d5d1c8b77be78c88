"""Experiment trackers by a stand-in of their modules: the same numbers, and no failure of theirs stops a run."""

import json
import sys
import threading
import types

import pytest

from omnir1_jax.errors import InputError
from omnir1_jax.reporting import trackers
from omnir1_jax.reporting.log import RunLog


@pytest.fixture(params=trackers.TRACKERS)
def module(request, monkeypatch):
    """A tracker's module that keeps what it is given; `bad` raises in the calls named there."""
    made = types.SimpleNamespace(rows=[], bad=set(), begun=None, finished=0, name=request.param, threads=set())

    def call(name, keep):
        def run(*args, **options):
            made.threads.add(threading.current_thread())
            if name in made.bad:
                raise SystemExit("no\nnetwork")
            keep(*args, **options)
            return made

        return run

    def log(values, step):
        made.rows.append((step, values))

    module = types.ModuleType(request.param)
    module.init = call("init", lambda **options: setattr(made, "begun", options))
    module.log, module.finish = call("log", log), call("finish", lambda: setattr(made, "finished", made.finished + 1))
    monkeypatch.setitem(sys.modules, request.param, module)
    return made


def run(folder, module, steps=(1, 2)):
    options = dict(owner="1234567890", tensorboard=False, trackers=(module.name,), config={"name": "toy", "steps": 2})
    with RunLog(folder, 2, steps[0] - 1, **options) as log:
        if steps[0] == 1:
            log.start({"validate/vos/J&F": 50.0})
        for step in steps:
            log.step(step, {"reward/total": step / 2, "learn/kl": float("nan")}, 0.5, "vos")


def test_a_tracker_gets_what_the_log_has_from_a_thread_of_its_own(tmp_path, module):
    run(tmp_path, module)
    want = [(0, {"validate/vos/J&F": 50.0})]
    want += [(n, {"time/seconds": 0.5, "reward/vos/total": n / 2}) for n in (1, 2)]
    assert module.rows == want and module.finished == 1
    assert threading.current_thread() not in module.threads
    begun = module.begun
    assert begun["name"] == "toy-12345678" and begun["config"]["steps"] == 2 and begun["resume"] == "allow"
    run(tmp_path, module, (3,))
    assert module.begun == begun  # so that the tracker resumes the same run


@pytest.mark.parametrize("bad", ["init", "log", "finish"])
def test_a_failing_tracker_is_said_once_and_counted(tmp_path, module, capsys, bad):
    module.bad = {bad}
    run(tmp_path, module)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert said[0] == (
        f"note: tracker {module.name} fails (SystemExit: no network); the run continues, further failures are counted"
    )
    count = {"init": 4, "log": 3, "finish": 1}[bad]
    assert said[1:] == [f"note: tracker {module.name}: {count} failures; metrics.jsonl has everything"]
    assert [json.loads(row)["step"] for row in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_one_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"log.trackers: wandb is not installed; pip install 'omnir1_jax\[wandb\]'"):
        trackers.check(("wandb",))
