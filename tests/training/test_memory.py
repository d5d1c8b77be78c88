"""Hundreds of steps leave memory as it was: the step by itself, and the whole command with its log and checkpoints."""

import contextlib
import gc
import pathlib
import resource

import jax
import numpy as np
import pytest

from omnir1_jax.rl.step import make_train_step
from omnir1_jax.tasks import vos
from tests.data import qwen_oracle
from tests.rl import small
from tests.runs import Runs, printed, rows

STEPS, WARM = 350, 150
# A step that kept its state, batch or rollout would keep MEGABYTES[0] of host memory within a few steps.
GROWTH = 4 << 20


def check(name: str, measured: list[tuple[int, float, float]]) -> None:
    """measured: step, bytes of the process, bytes of all arrays."""
    _, host, device = np.array([m for m in measured if m[0] >= WARM]).T
    early, late = np.median(host[: len(host) // 4]), np.median(host[-len(host) // 4 :])
    print(
        f"{name}: host {early / 2**20:.1f} -> {late / 2**20:.1f} MiB, arrays {device[0]:.0f} -> {device[-1]:.0f} bytes"
    )
    assert device.min() == device.max()
    assert late - early < GROWTH


def memory() -> tuple[float, float]:
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize(), sum(x.nbytes for x in jax.live_arrays())


@pytest.mark.slow
def test_of_the_step():
    """Video, both systems, reward and update."""
    step = make_train_step(vos.TASK, small.models(), small.optimizer(), small.step_config())
    state, frozen, batches = small.state(), small.frozen(), small.batches("vos", 1, 2)
    measured = []
    for n in range(STEPS):
        state, metrics, _ = step(state, frozen, batches[n % 2], jax.random.key(0))
        jax.device_get(metrics)
        if n % 5 == 0:
            measured.append((n, *memory()))
    check("step", measured)


@pytest.mark.slow
def test_of_the_command(tmp_path):
    """Steps alone: orbax takes some 15 MiB for good at the first checkpoint, and up to 2 more at each further one."""
    with contextlib.closing(Runs(qwen_oracle.save_tokenizer(tmp_path / "tokenizer"), tmp_path / "cache")) as runs:
        flags = ("--config.steps=300", "--config.checkpoint.every=300")
        assert runs.wait(runs.start(tmp_path / "run", *flags)) == 0, printed(tmp_path / "run")
    check(
        "command",
        [(r["step"], r["memory/host"], r["memory/device"]) for r in rows(tmp_path / "run") if "memory/host" in r],
    )
