"""Meshes and processes that will not do: one line each that says which number to change."""

import subprocess
import sys

import jax
import pytest

from omnir1_jax.build import data
from omnir1_jax.build import run as setup
from omnir1_jax.errors import InputError
from omnir1_jax.parallel import start
from tests.data import qwen_oracle
from tests.parallel.mesh_runs import tiny_config
from tests.training.test_processes import free_port


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return qwen_oracle.save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"mesh.fsdp": 3}, "mesh.fsdp: 3 does not divide the 8 devices"),
        ({"mesh.slice": 3}, "mesh.slice: 3 does not divide the 8 devices"),
        (
            {"mesh.tensor": 4},
            "mesh.tensor: 4 does not divide the decoder's 2 key heads; take 1 or 2, and more of mesh.f",
        ),
        (
            {"data.qa.batch_size": 12},
            "data.qa.batch_size: 12 prompts do not divide over mesh.slice x mesh.data x mesh.fsdp = 8; take 8 or 16",
        ),
        (
            {"data.qa.batch_size": 4},
            "data.qa.batch_size: 4 prompts do not divide .* = 8; take 8, or more of mesh.tensor",
        ),
    ],
)
def test_a_run_on_a_mesh_that_does_not_fit(tokenizer, changes, line):
    config = tiny_config(tokenizer)
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=line):
        setup.build(config)


def test_one_process_loads_every_part():
    assert data.share_of(None) == ((0,), 1)
    mesh = setup.make_mesh({"slice": 2, "data": 2, "tensor": 2})
    assert data.share_of(mesh) == ((0, 1, 2, 3), 4)


@pytest.mark.parametrize(
    "given, line",
    [
        (("", 2, 0), "--coordinator: HOST:PORT of process 0 has to go with --processes and --process"),
        (("auto", 2, -1), "--coordinator: HOST:PORT of process 0"),
        (("machine", 2, 0), "--coordinator: 'machine' is neither HOST:PORT nor 'auto'"),
        (("machine:12²", 2, 0), "--coordinator: 'machine:12²' is neither HOST:PORT nor 'auto'"),
        (("machine:1234", 0, 0), "--processes: has to say how many"),
        (("machine:1234", 2, 2), "--process: 2 is not one of 0 to 1"),
    ],
)
def test_processes_that_cannot_be_joined(given, line):
    with pytest.raises(InputError, match=line):
        start.start(*given)


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_waits_in_vain(process):
    port = free_port()
    program = f"from omnir1_jax.parallel import start; start.start('localhost:{port}', 2, {process}, wait=2)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert found.returncode == 42
    line = f"error: --coordinator: not all of the processes came to localhost:{port} within 2 s"
    assert found.stderr.splitlines()[-1].startswith(line)


def test_processes_that_were_never_joined(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(InputError, match="these devices belong to 4 processes; set it to 'auto'"):
        start.check()


def test_an_ordinary_error_is_left_alone_where_there_is_one_process():
    with pytest.raises(ZeroDivisionError), start.ends_together():
        1 // 0  # noqa: B018
