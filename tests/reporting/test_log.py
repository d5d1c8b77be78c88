"""The log of a run: every step once, whatever was cut off when."""

import io
import json
import math
import os
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog

from omnir1_jax.errors import InputError
from omnir1_jax.reporting import lines, log
from omnir1_jax.reporting.example import Example
from omnir1_jax.reporting.log import RunLog
from omnir1_jax.tasks.description import Clip, Keyframe, Piece


def metrics_of(step: int) -> dict:
    return {"reward/total": np.float32(step / 2), "learn/loss": 1.0 / step, "learn/skipped": 0}


def run(folder, first: int, last: int, total: int = 100, rollouts: bool = False) -> None:
    with RunLog(folder, total, first - 1, quiet=True) as opened:
        for step in range(first, last + 1):
            opened.step(step, metrics_of(step), 0.5)
            if rollouts:
                opened.rollouts(step, [example(step, n) for n in range(2)])


def example(step: int, n: int = 0) -> Example:
    return Example(
        f"clip/{step}",
        "which <b>one</b>\n\u2028 é",
        "<think>a</think>",
        pieces=(Piece(0.5, 1.0, (1, 2), "the disc"), Piece(0.0, 0.0, None, "", "bad_json")),
        keyframes=(Keyframe(1, "the disc", '[{"bbox_2d": [1, 2, 3, 4]}]', ((1.0, 2.0, 3.0, 4.0),)),),
        reward=1.5,
        rewards={"alignment": np.float32(0.25), "broken": math.nan},
        advantage=math.inf,
        failures=("plan/bad_json",),
    )


def steps(folder, name: str = "metrics.jsonl") -> list[int]:
    return [json.loads(row)["step"] for row in (folder / name).read_text().splitlines()]


def events(folder) -> list[Event]:
    """All TensorBoard events, record by record: length, its checksum, the event, its checksum."""
    out = []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            out.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return out


def test_every_number_of_a_step_is_in_the_files(tmp_path):
    with RunLog(tmp_path, 10, quiet=True) as opened:
        opened.step(1, {"reward/total": np.float32(0.5), "learn/kl": math.nan, "learn/grad_norm": -math.inf}, 2.0)
        opened.step(2, {"reward/total": np.array(0.75)}, 1.0)
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    strict = lambda row: json.loads(row, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict(first) == {"step": 1, "seconds": 2.0, "reward/total": 0.5, "learn/kl": None, "learn/grad_norm": None}
    assert strict(second) == {"step": 2, "seconds": 1.0, "reward/total": 0.75}

    scalars = {(v.tag, e.step): v.simple_value for e in events(tmp_path) for v in e.summary.value}
    assert scalars["reward/total", 1] == 0.5 and scalars["reward/total", 2] == 0.75
    assert scalars["time/seconds", 1] == 2.0 and math.isnan(scalars["learn/kl", 1])


def test_a_resume_cuts_what_lies_beyond_the_checkpoint(tmp_path):
    run(tmp_path, 1, 7, rollouts=True)
    run(tmp_path, 5, 9, rollouts=True)
    assert steps(tmp_path) == list(range(1, 10))
    assert steps(tmp_path, "rollouts.jsonl") == [n for n in range(1, 10) for _ in range(2)]
    # TensorBoard reads a START with a step as: forget what earlier files have from here on.
    starts = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts[-1] == 5
    run(tmp_path, 1, 2)  # killed before its first checkpoint
    assert steps(tmp_path) == [1, 2] and steps(tmp_path, "rollouts.jsonl") == []


@pytest.mark.parametrize("torn", [b'{"step": 4, "sec', b'{"st', b"\x00\x00\x00", b'{"step": 3}'])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path, torn):
    run(tmp_path, 1, 3)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    run(tmp_path, 4, 5)
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


def test_damage_elsewhere_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl line 2 "):
        RunLog(tmp_path, 10, 5, quiet=True)
    for row in ("nonsense", "[1]"):
        with pytest.raises(InputError, match="line 1 is not"):
            list(lines.read(f"{row}\n".encode(), "x"))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="--workdir"):
        RunLog(file, 10, quiet=True)


def test_steps_only_rise(tmp_path):
    with RunLog(tmp_path, 10, 4, quiet=True) as opened:
        with pytest.raises(ValueError, match="step 4 is logged after step 4"):
            opened.step(4, {}, 1.0)
        with pytest.raises(ValueError, match="may not be named"):
            opened.step(5, {"step": 1}, 1.0)


def test_a_killed_process_loses_no_step(tmp_path):
    code = (
        "import sys; from omnir1_jax.reporting.log import RunLog\n"
        "log = RunLog(sys.argv[1], 100, quiet=True)\n"
        "for n in range(1, 31): log.step(n, {'loss': float(n)}, 0.1)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == -9
    assert steps(tmp_path) == list(range(1, 31))


def test_rollouts_hold_everything_and_only_finite_numbers(tmp_path):
    with RunLog(tmp_path, 10, quiet=True) as opened:
        opened.rollouts(3, [example(3), example(3)._replace(query="\ud800 lone")])
    first, second = (tmp_path / "rollouts.jsonl").read_bytes().split(b"\n")[:-1]
    assert json.loads(first) == {
        "step": 3,
        "sample_id": "clip/3",
        "family": "vos",
        "query": "which <b>one</b>\n\u2028 é",
        "completion": "<think>a</think>",
        "plan": [
            {"start": 0.5, "end": 1.0, "frames": [1, 2], "description": "the disc", "failure": None},
            {"start": 0.0, "end": 0.0, "frames": None, "description": "", "failure": "bad_json"},
        ],
        "keyframes": [
            {
                "frame": 1,
                "description": "the disc",
                "answer": '[{"bbox_2d": [1, 2, 3, 4]}]',
                "boxes": [[1.0, 2.0, 3.0, 4.0]],
            }
        ],
        "answer": None,
        "gold": None,
        "reward": 1.5,
        "rewards": {"alignment": 0.25, "broken": None},
        "advantage": None,
        "failures": ["plan/bad_json"],
    }
    assert json.loads(second)["query"] == "? lone"


def test_pictures_stand_in_their_step_and_go_with_it(tmp_path):
    clip = Clip(np.zeros((2, 24, 32, 3), np.uint8), (32, 24))
    shown = [example(1)._replace(clip=clip, sample_id="../../a/b c"), example(1)]
    with RunLog(tmp_path, 10, quiet=True) as opened:
        opened.step(1, {}, 1.0)
        opened.pictures(1, shown)
        opened.step(2, {}, 1.0)
        opened.pictures(2, shown)
        opened.pictures(2, shown)  # again: replaced
        opened.pictures(3, [example(1)])  # nothing to see
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png")) == [
        "pictures/1/00_a_b_c.png",
        "pictures/2/00_a_b_c.png",
    ]
    images = [v.image for e in events(tmp_path) for v in e.summary.value if v.tag == "clips/0"]
    assert images[0].encoded_image_string == (tmp_path / "pictures/1/00_a_b_c.png").read_bytes()
    (tmp_path / "pictures" / ".3.99.part").mkdir()
    (tmp_path / "pictures/1/notes.txt").write_text("mine")
    RunLog(tmp_path, 10, 1, quiet=True).close()
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [".3.99.part", "1"]
    with pytest.raises(InputError, match="pictures/1 holds notes.txt, not written by this run; move it elsewhere"):
        RunLog(tmp_path, 10, 0, quiet=True)
    (tmp_path / "pictures/12").mkdir()
    with pytest.raises(InputError, match="pictures/12 was not written by this run; move it elsewhere"):
        RunLog(tmp_path, 10, 1, quiet=True)
    assert (tmp_path / "pictures/1/notes.txt").read_text() == "mine" and (tmp_path / "pictures/12").is_dir()


def test_a_picture_among_the_events_costs_next_to_nothing(tmp_path):
    with RunLog(tmp_path, 10, quiet=True) as opened:
        began = time.thread_time()
        opened._event(1, log._image("clips/0", (1, 1, 3), bytes(2**20)))
        assert time.thread_time() - began < 0.1  # a checksum byte by byte in Python takes 0.3 s


def test_a_line_a_step_on_the_terminal(tmp_path, monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with RunLog(tmp_path, 4, 1) as opened:
        opened.step(2, {**metrics_of(2), "learn/skipped": 1}, 30.0)
        opened.step(3, metrics_of(3), 10.0)
    assert out.getvalue().splitlines() == [
        "step 2/4  reward 1  loss 0.5  skipped 1  30.00 s/step  left ?",
        "step 3/4  reward 1.5  loss 0.3333  10.00 s/step  left 0:00:20",
    ]
    assert err.getvalue() == ""  # no bar where no terminal is
    out.truncate(0), out.seek(0)
    with RunLog(tmp_path / "two", 9) as opened:
        opened.start({"validate/vos/J&F": 40.0, "validate/vos/J": 41.0, "time/validate": 1.0})
        opened.step(1, metrics_of(1), 2.0, "vos")
        opened.step(2, metrics_of(2) | {"time/tflops_per_second": 0.25}, 2.0, "refavs")
        opened.step(3, metrics_of(3) | {"time/mfu": 0.4}, 2.0, "vos", {"validate/vos/J&F": 42.5})
        opened.step(4, metrics_of(4), 2.0, "vos")
    assert out.getvalue().splitlines() == [
        "step 0/9  vos/J&F 40  vos/J 41",
        "step 1/9  vos  reward 0.5  loss 1  2.00 s/step  left ?  vos/J&F 40 at 0",
        "step 2/9  refavs  reward 1 (vos 0.5)  loss 0.5  2.00 s/step  0.25 TFLOP/s  left 0:00:14  vos/J&F 40 at 0",
        "step 3/9  vos  reward 1.5 (refavs 1)  loss 0.3333  2.00 s/step  MFU 40.0%  left 0:00:12  vos/J&F 42.5",
        "step 4/9  vos  reward 2 (refavs 1)  loss 0.25  2.00 s/step  left 0:00:10  vos/J&F 42.5 at 3",
    ]


def test_a_remote_work_directory_gets_the_same_files(tmp_path, monkeypatch):
    """A bucket, played by a folder that only `epath` knows the way to."""
    bucket = tmp_path / "bucket"
    real = epath.Path
    monkeypatch.setattr(log.epath, "Path", lambda p: real(str(p).replace("gs://b", str(bucket))))
    clip = Clip(np.zeros((2, 24, 32, 3), np.uint8), (32, 24))
    for first, last in ((1, 3), (3, 4)):
        with RunLog("gs://b/run", 10, first - 1, quiet=True) as opened:
            assert "bucket" not in str(opened.path)
            for step in range(first, last + 1):
                opened.step(step, metrics_of(step), 1.0)
                opened.rollouts(step, [example(step)])
                opened.pictures(step, [example(step)._replace(clip=clip)])
        assert not opened.path.exists()
    run_dir = bucket / "run"
    assert steps(run_dir) == [1, 2, 3, 4] == steps(run_dir, "rollouts.jsonl")
    assert sorted(p.name for p in (run_dir / "pictures").iterdir()) == ["1", "2", "3", "4"]
    assert len(list((run_dir / "tensorboard").iterdir())) >= 1
    assert not [name for _, _, names in os.walk(bucket) for name in names if name.endswith(".part")]


def test_a_bucket_gets_what_is_new_as_parts_and_loses_nothing_to_a_kill(tmp_path, monkeypatch):
    bucket = tmp_path / "bucket"
    real = epath.Path
    monkeypatch.setattr(log.epath, "Path", lambda p: real(str(p).replace("gs://b", str(bucket))))
    opened = RunLog("gs://b/run", 10, quiet=True)
    for step in (1, 2, 3):
        opened.step(step, metrics_of(step), 1.0)
        opened.rollouts(step, [example(step)])
        opened.flush()
    parts = sorted((bucket / "run/rollouts_parts").iterdir())
    assert [steps(part.parent, part.name) for part in parts] == [[1], [2], [3]]  # and the process is killed here
    (bucket / "run/rollouts_parts/000000099999").write_bytes(b'{"step": 2}\n')  # stale: of an earlier start
    with RunLog("gs://b/run", 10, 2, quiet=True) as again:
        assert steps(bucket / "run", "rollouts.jsonl") == [1, 2] and not list((bucket / "run/rollouts_parts").iterdir())
        again.step(3, metrics_of(3), 1.0)
        again.rollouts(3, [example(3)])
    assert steps(bucket / "run", "rollouts.jsonl") == [1, 2, 3]
    assert not list((bucket / "run/rollouts_parts").iterdir())


def test_work_of_the_log_does_not_hold_up_a_step_and_its_failure_surfaces(tmp_path):
    with RunLog(tmp_path, 10, quiet=True) as opened:
        free = threading.Event()
        opened.later(lambda: (free.wait(60), opened.rollouts(1, [example(1)]))[0] and None)
        opened.step(1, metrics_of(1), 1.0)
        assert steps(tmp_path) == [1] and steps(tmp_path, "rollouts.jsonl") == []
        free.set()
        opened.later(lambda: opened.rollouts(2, [example(2)]))
        opened.flush()
        assert steps(tmp_path, "rollouts.jsonl") == [1, 2]

        def full() -> None:
            raise OSError(28, "No space left on device", "rollouts.jsonl")

        opened.later(full)
        with pytest.raises(OSError, match="No space left"):
            opened.flush()


def test_small_words():
    assert log.clock(3725.4) == "1:02:05"
    assert log.file_name("../x/é y") == "x_y" and log.file_name("///") == "clip"
    assert len(log.file_name("a" * 300)) == 80
