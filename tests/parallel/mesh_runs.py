"""Three steps of small runs over meshes of 8 devices: `python -m tests.parallel.mesh_runs OUT TOKENIZER CASES`.

A case is {"name", "kind": "tiny" or "toy", "changes": settings, "mesh": axes or null for one device}. The run is built
as the training command builds it, and its step compiled before, so that a state or a batch that lies elsewhere than the
step wants it is an error. OUT/<name>.json gets what `run` returns, OUT/<name>.npy the weights after the steps.

A case with "from" also takes up that case's checkpoint of step 2; then OUT/<name>.resumed.npy are the weights after the
third step.
"""

import contextlib
import json
import pathlib
import sys
import tempfile
import zlib
from typing import Any
from unittest import mock

import jax
import numpy as np
from ml_collections import ConfigDict

from omnir1_jax.build import run as setup
from omnir1_jax.config import shipped
from omnir1_jax.planning import hlo, operations
from omnir1_jax.planning.step import TOGETHER
from omnir1_jax.systems.grounders.thinker import GATHERED
from omnir1_jax.training import checkpointing
from tests import tiny

STEPS, ROWS = 3, 8
PHASES = ("encode", "sample", "ground", "segment", "update")


def tiny_config(tokenizer: str) -> ConfigDict:
    c = tiny.get_config(tokenizer)
    with c.unlocked():
        c.thinker.sizes.text.update(vocab_size=512, num_heads=4, num_kv_heads=2, head_dim=8, mrope_section=(1, 1, 2))
    c.data.qa.batch_size = ROWS
    c.prompts.system, c.prompts.qa, c.prompts.text_tokens = "toy_system", "qa", 512
    return c


def toy_config() -> ConfigDict:
    """The toy's videos with its weights: plans that are read, boxes, masks, rewards that differ."""
    c = shipped.config("toy", "this run")
    with c.unlocked():
        del c.data["refavs"]
    c.data.vos.frames = 4
    c.step.group = 4
    c.optimizer.learning_rate = 1e-3
    return c


def config(case: dict, tokenizer: str) -> ConfigDict:
    c = tiny_config(tokenizer) if case["kind"] == "tiny" else toy_config()
    c.steps = STEPS
    # A larger epsilon than usual, so that a gradient of nothing but rounding does not become a step.
    c.optimizer.eps = 1e-4
    c.update_from_flattened_dict(case["changes"])
    c.mesh.update({"fsdp": 1} | (case["mesh"] or {}))
    return c


def compile_counted(lowered: jax.stages.Lowered, alone: bool) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """The compiled step, and operations of one device by phase; of loops that end by the data, one turn,
    of that over frames one frame (the toy has four).

    They are counted in the program as it was partitioned: what the CPU's compiler makes of small products later does
    not count as such.
    """
    with tempfile.TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partitioning", "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=None if alone else dump)
        if alone:
            text = lowered.as_text("hlo", debug_info=True)
        else:
            (found,) = pathlib.Path(folder).glob("*.after_spmd-partitioning.*")
            text = found.read_text()
    paths = operations.by_path(hlo.parse(text), operations.Assumptions(trips={TOGETHER: 1 / GATHERED, "": 1}))
    return compiled, operations.by_phase(paths, PHASES)


def cut(tree: Any) -> bool:
    """Whether every large array lies in pieces."""
    return all(not x.sharding.is_fully_replicated for x in jax.tree.leaves(tree) if x.size >= 512)


def weights(state: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.trainable)])


def run(case: dict, tokenizer: str, out: pathlib.Path) -> dict:
    c, alone = config(case, tokenizer), case["mesh"] is None
    with mock.patch.object(setup, "mesh_of", lambda config: None) if alone else contextlib.nullcontext():
        made = setup.build(c)
    state, key, stream, step, seen = made.state, setup.step_key(c, made.mesh), setup.batches(made), None, []
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    told = {"cut": alone or set(case["mesh"]) <= {"data", "slice"} or cut((state.trainable, moments))}
    context = contextlib.nullcontext() if alone else jax.set_mesh(made.mesh)
    settings = {"of": case["kind"], **case["changes"]}
    with context, checkpointing.manager(out / case["name"], 1) as manager:
        for number in range(1, STEPS + 1):
            batch = next(stream)
            arrays = made.to_batch(batch.family, batch.arrays)
            if step is None:
                own = made.steps[batch.family]
                jitted = own if alone else own.__wrapped__
                step, told["operations"] = compile_counted(jitted.lower(state, made.frozen, arrays, key), alone)
            if number == STEPS and "from" in case:
                with checkpointing.manager(out / case["from"], 1) as other:
                    found = checkpointing.restore(other, checkpointing.like(state), settings)
                assert found.stream["next_batch"] == found.step == STEPS - 1
                resumed, *_ = step(found.state, made.frozen, arrays, key)
                np.save(out / f"{case['name']}.resumed.npy", weights(resumed))
            state, metrics, rollout = step(state, made.frozen, arrays, key)
            seen.append(
                {
                    "samples": batch.sample_ids,
                    "data": [zlib.crc32(np.asarray(x).tobytes()) for x in jax.tree.leaves(arrays)],
                    "tokens": np.asarray(rollout.completions.tokens).tolist(),
                    "rows": not alone and rollout.completions.tokens.sharding.shard_shape((ROWS,) * 3)[0],
                    "metrics": {name: float(value) for name, value in metrics.items()},
                }
            )
            if number == STEPS - 1:
                checkpointing.save(manager, number, state, stream.get_state(), settings, wait=True)
    stream.close()
    np.save(out / f"{case['name']}.npy", weights(state))
    return told | {"steps": seen}


def main(out: str, tokenizer: str, cases: str) -> None:
    tiny.vary_rewards()
    for case in json.loads(cases):
        told = run(case, tokenizer, pathlib.Path(out))
        (pathlib.Path(out) / f"{case['name']}.json").write_text(json.dumps(told))
        print(case["name"], flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
