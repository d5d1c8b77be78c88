"""Commands: one line for bad input; outputs that appear whole or not at all."""

import subprocess
import sys

import pytest

from omnir1_jax import cli


def bench(*args):
    return subprocess.run(
        [sys.executable, "-m", "omnir1_jax.bench", *args], capture_output=True, text=True, timeout=300
    )


def test_bad_input_is_one_line_and_status_2():
    done = bench("--only", "warp")
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "warp" in done.stderr and "Traceback" not in done.stderr


def test_help_lists_the_flags():
    done = bench("--help")
    assert "--only" in done.stdout and "--json" in done.stdout


def test_atomic_path_keeps_the_old_until_the_new_is_whole(tmp_path):
    target = tmp_path / "out"
    with cli.atomic_path(target) as scratch:
        scratch.write_text("first")
    with pytest.raises(RuntimeError), cli.atomic_path(target) as scratch:
        scratch.write_text("half")
        raise RuntimeError
    assert target.read_text() == "first"
    with cli.atomic_path(target) as scratch:
        scratch.write_text("second")
    assert target.read_text() == "second"
    assert list(tmp_path.iterdir()) == [target]


def test_films_decode_like_opencvs_reader():
    from omnir1_jax.benches import data

    figures = data.run(quick=True)
    assert figures["film_all_times_faster"] > 0


def test_the_usual_step_computes_the_same():
    from omnir1_jax.benches import step

    figures = step.run(quick=True)
    assert figures["equal_answers"] == 1 and figures["mask_iou"] > 0.99
    assert figures["logprob_gap"] < 1e-4 and figures["loss_gap"] < 1e-4 and figures["gradient_difference"] < 1e-3
    assert figures["step_cpu_times_faster"] > 0
