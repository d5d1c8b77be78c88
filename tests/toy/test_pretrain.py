"""The toy's weights again: both recipes begin as the logs that ship say, and the thinker's second part goes on."""

import json
import subprocess
import sys

import numpy as np

from omnir1_jax.reporting import names
from tests.runs import ROOT, environment, rows


def trained(workdir, part, steps, *changes):
    """Metrics of the first steps of a recipe, on one device as the log."""
    command = [sys.executable, "-m", "omnir1_jax.train", "--config", f"configs/toy_pretrain.py:{part}"]
    command += [f"--config.steps={steps}", *changes, "--workdir", str(workdir)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [names.without_task(row) for row in rows(workdir)]


def begins_as_logged(model, steps, loss):
    """The first line of the log that ships has the mean of the first steps."""
    log = ROOT / "configs" / "toy_weights" / model / "training.jsonl"
    first = json.loads(log.read_text().splitlines()[0])
    assert first["step"] == len(steps)
    # On another processor sums have another order.
    np.testing.assert_allclose(np.mean([step[loss] for step in steps]), first[loss], rtol=0.01)


def test_the_thinker_from_random_weights(tmp_path):
    steps = trained(tmp_path / "kinds", "thinker_kinds", 20)
    begins_as_logged("thinker", steps, "sft/loss")
    (after,) = trained(tmp_path / "all", "thinker", 1, f"--config.thinker.path={tmp_path}/kinds/weights")
    assert after["sft/loss"] < steps[0]["sft/loss"] - 0.3  # of other lessons too


def test_the_segmenter_from_random_weights(tmp_path):
    steps = trained(tmp_path / "images", "sam2_images", 50)
    begins_as_logged("sam2", steps, "loss")
