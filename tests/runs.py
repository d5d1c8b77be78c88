"""Runs of the training command in processes of their own."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).parent.parent
CACHE = ROOT / ".cache/jax"  # of compiled programs, for the tests and the commands that they start
# Compiles in half the time; what runs is tiny. Fewer of LLVM's passes would leave it more code to translate.
QUICK = "--xla_backend_optimization_level=0"
if tuple(map(int, version("jax").split(".")[:2])) < (0, 11):  # the TPU compilers of later ones abort at the name
    QUICK += " --xla_cpu_use_fusion_emitters=false"

# The toy for a test of what surrounds it. All such tests say the same, so that its step is compiled once.
SMALL_TOY = (
    "--config.step.group=2",
    "--config.step.max_tokens=24",
    "--config.data.vos.batch_size=1",
    "--config.data.refavs.batch_size=1",
    "--config.log.pictures=1",
)


def environment(devices: int = 1, cache: pathlib.Path = CACHE) -> dict[str, str]:
    """Of a command: the CPU as `devices` devices, compiled quickly, once for all commands of one cache."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "PYTHONPATH": str(ROOT),
    }


def default_signals() -> None:
    """In a child: signals end it, also where the suite was started in the background or by nohup, which ignore some."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Runs:
    """Runs of the command, forked from one process that has imported everything."""

    def __init__(self, tokenizer: str, cache: pathlib.Path, devices: int = 1):
        self.tokenizer, self.cache = tokenizer, cache
        # What a cached program is found by includes the cache's own path, so all runs share one.
        env = environment(devices, cache)
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.tiny"], cwd=ROOT, env=env, preexec_fn=default_signals, **pipes
        )

    def _ask(self, **order) -> int:
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def start(self, workdir: pathlib.Path, *flags: str, log: str = "", omnibench: str = "", **faults: str | int) -> int:
        """Its process; what it prints goes to `log`, by default beside the work directory. See tests.tiny."""
        config = f"--config=tests/tiny.py:{self.tokenizer}{omnibench and f',{omnibench}'}"
        place = "workdir" if faults.get("command", "train") == "train" else "out"
        flags = [config, f"--{place}={workdir}", *flags]
        return self._ask(flags=flags, log=log or f"{workdir}.log", faults=faults)

    def wait(self, run: int) -> int:
        return self._ask(wait=run)

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def printed(workdir: pathlib.Path) -> str:
    return pathlib.Path(f"{workdir}.log").read_text()


def rows(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def until(condition, seconds: float = 900.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the run does not get there"
        time.sleep(0.005)


def done(workdir: pathlib.Path) -> int:
    """Steps in the log: a line each, but for the validation before the first."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b'"seconds"') if path.exists() else 0


def weights(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    return load_file(workdir / "weights/model.safetensors")


def same(workdir: pathlib.Path, alone: pathlib.Path) -> None:
    """Weights and metrics of two finished runs, to rounding."""
    found, wanted = weights(workdir), weights(alone)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)
    own = lambda name: name.split("/")[0] not in ("task", "seconds", "time", "memory", "data")
    for mine, other in zip(rows(workdir), rows(alone), strict=True):
        assert mine.get("task") == other.get("task")
        for name in filter(own, other):
            np.testing.assert_allclose(mine[name], other[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert max(row.get("learn/grad_norm", 0.0) for row in rows(workdir)) > 1e-2
