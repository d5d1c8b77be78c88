"""The toy's weights again: both recipes begin as the logs that ship say, and the thinker's second part goes on."""

import json
import runpy

import numpy as np
import pytest

from omnir1_jax.reporting import names
from tests.runs import ROOT, rows


def trained(commands, workdir, part, steps, *changes):
    """Metrics of the first steps of a recipe, on one device as the log."""
    flags = f"--config=configs/toy_pretrain.py:{part}", f"--config.steps={steps}", f"--workdir={workdir}"
    commands.run("omnir1_jax.train", *flags, *changes)
    return [names.without_task(row) for row in rows(workdir)]


def begins_as_logged(model, steps, loss):
    """The first line of the log that ships has the mean of the first steps."""
    log = ROOT / "configs" / "toy_weights" / model / "training.jsonl"
    first = json.loads(log.read_text().splitlines()[0])
    assert first["step"] == len(steps)
    # On another processor sums have another order.
    np.testing.assert_allclose(np.mean([step[loss] for step in steps]), first[loss], rtol=0.01)


def test_the_thinker_from_random_weights(commands, tmp_path):
    steps = trained(commands, tmp_path / "kinds", "thinker_kinds", 20)
    begins_as_logged("thinker", steps, "sft/loss")
    (after,) = trained(commands, tmp_path / "all", "thinker", 1, f"--config.thinker.path={tmp_path}/kinds/weights")
    assert after["sft/loss"] < steps[0]["sft/loss"] - 0.3  # of other lessons too


def test_the_segmenter_from_random_weights(commands, tmp_path):
    steps = trained(commands, tmp_path / "images", "sam2_images", 50)
    begins_as_logged("sam2", steps, "loss")


@pytest.mark.parametrize(
    "name, thinker, segmenter", [("toy", "thinker", "sam2"), ("toy_fleeting", "cold_start", "sam2_fleeting")]
)
def test_the_models_run_as_they_were_taught(name, thinker, segmenter):
    config = lambda name, *part: runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"](*part)
    used, taught = config(name), {part: config("toy_pretrain", part) for part in (thinker, segmenter)}
    for key in ("side", "direction", "dtype", "memory_dtype"):
        assert used.sam2[key] == taught[segmenter].sam2[key], key
    assert used.pixels == taught[thinker].pixels
    assert {**used.prompts, "text_tokens": 0} == {**taught[thinker].prompts, "text_tokens": 0}  # room alone
