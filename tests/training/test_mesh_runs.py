"""The training command on one mesh, killed, and going on over another."""

import contextlib
import os
import signal

import pytest

from tests.data import qwen_oracle
from tests.runs import Runs, done, printed, rows, same, until

FLAGS = (
    "--config.steps=6",
    "--config.data.qa.batch_size=8",
    "--config.checkpoint.every=2",
    "--config.optimizer.eps=1e-4",  # so that a gradient of nothing but rounding does not become a step
)


CHOICES = {
    "full": (),
    "adapter": ("--config.lora.rank=2",),
    "staged": ("--config.step.mode=staged",),
    "supervised": ("--config.objective=sft",),
}
SLOW = [pytest.param(flags, id=name, marks=pytest.mark.slow) for name, flags in CHOICES.items() if name != "full"]


@pytest.mark.parametrize("choices", [pytest.param(CHOICES["full"], id="full"), *SLOW])
def test_a_run_of_eight_devices_goes_on_over_another_mesh(tmp_path, choices):
    tokenizer = qwen_oracle.save_tokenizer(tmp_path / "tokenizer")
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    with contextlib.closing(Runs(tokenizer, tmp_path / "cache", devices=8)) as runs:
        eight, two_by_four = ("--config.mesh.fsdp=8",), ("--config.mesh.data=2", "--config.mesh.fsdp=4")
        assert runs.wait(runs.start(alone, *FLAGS, *choices, *eight)) == 0, printed(alone)
        run = runs.start(moved, *FLAGS, *choices, *eight)
        until(lambda: done(moved) >= 3 and (moved / "checkpoints/2").is_dir())
        os.kill(run, signal.SIGKILL)
        assert runs.wait(run) == 128 + signal.SIGKILL and done(moved) < 6
        assert runs.wait(runs.start(moved, *FLAGS, *choices, *two_by_four)) == 0, printed(moved)
    same(moved, alone)
    assert [row["step"] for row in rows(moved)] == [1, 2, 3, 4, 5, 6]
