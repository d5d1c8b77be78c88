"""One process of tests/training/test_processes.py: `python -m tests.training.two_processes PORT RANK WORKDIR`."""

import json
import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from omnir1_jax.parallel import make_mesh
from omnir1_jax.rl import learn
from omnir1_jax.signals import stop_flag
from omnir1_jax.training import checkpointing

SETTINGS = {"seed": 1}


def main(port: str, rank: int, workdir: pathlib.Path) -> None:
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
    sharding = NamedSharding(make_mesh({"data": 1, "fsdp": 4, "tensor": 1}), PartitionSpec("fsdp"))
    whole = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    start = jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
    optimizer = optax.adam(0.1)
    state = jax.jit(lambda x: learn.init({"x": x}, optimizer))(start)
    target = checkpointing.like(state)
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)

    def newest():
        with checkpointing.manager(workdir, 5) as manager:
            found = checkpointing.restore(manager, target, SETTINGS)
        for shard in found.state.trainable["x"].addressable_shards:
            expected = whole
            for _ in range(found.step):
                expected = expected + 1
            np.testing.assert_array_equal(np.asarray(shard.data), expected[shard.index])
        return found.step, found.stream["rank"], int(found.state.step)

    with checkpointing.manager(workdir, 5) as manager:
        for step in (1, 2, 3):
            state = advance(state)
            assert checkpointing.save(manager, step, state, {"rank": rank}, SETTINGS, wait=True)
    told = {"whole": newest()}

    def damage(path: pathlib.Path) -> None:
        multihost_utils.sync_global_devices("before")
        if rank == 0:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        multihost_utils.sync_global_devices("after")

    damage(workdir / "checkpoints/3/run/process_1.json")
    told["record of the other"] = newest()
    largest = lambda folder: max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    damage(largest(workdir / "checkpoints/2/trainable/ocdbt.process_1"))
    told["array of the other"] = newest()
    with stop_flag() as stop:
        for step in range(1, 500):
            if step == 5 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            if stop(step):
                break
    told["stopped"] = step
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
