"""Two processes, one work directory: each gets its own data back, both judge a checkpoint alike, both stop alike."""

import json
import os
import socket
import subprocess
import sys


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def test_two_processes(tmp_path):
    port, env = free_port(), os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "tests.training.two_processes", str(port)]
    both = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    for process, (_, said) in zip(both, outputs, strict=True):
        assert process.returncode == 0, said.decode()
    told = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    for rank in (0, 1):
        assert told[rank]["whole"] == [3, rank, 3]
        assert told[rank]["record of the other"] == [2, rank, 2]
        assert told[rank]["array of the other"] == [1, rank, 1]
    assert told[0]["stopped"] == told[1]["stopped"] < 499
