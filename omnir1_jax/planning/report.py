"""A plan: the step compiled for a topology, and what the compiler and its program say of memory and time."""

import dataclasses
import math
import re
import time
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from omnir1_jax.errors import InputError
from omnir1_jax.parallel import make_mesh
from omnir1_jax.planning import abstract, hlo, lowering, operations, step, traffic
from omnir1_jax.planning.abstract import Program
from omnir1_jax.planning.step import Rollout
from omnir1_jax.planning.topology import GIB, Chip, chip_of, devices_of


@dataclasses.dataclass(frozen=True)
class Expected:
    """How far a step's loops go, where it is not to the limit: see `step.Rollout`."""

    completion: int | None = None
    answer: int | None = None
    frames: int | None = None

    def rollout(self, program: Program) -> Rollout:
        limits = step.longest(program)
        own = {name: value for name, value in dataclasses.asdict(self).items() if value}
        return limits._replace(**{name: min(value, getattr(limits, name)) for name, value in own.items()})


LIMITS = Expected()


def plan(config: ConfigDict, topology: str, *, hbm: float | None = None, expected: Expected = LIMITS) -> dict[str, Any]:
    """Compiles the step of the config's first video task, or of its first, for a topology. JSON-ready.

    Args:
      hbm: GiB of memory of a chip, where it is not the chip's own.

    Returns:
      fits: whether the program's memory is within the chip's.
      hbm_bytes_per_chip: total (None where the compiler gave up before it knew), capacity and parts.
      operations, bytes, collective_bytes: of a chip, by phase, each with a "total".
      seconds_estimate: of a step by roofline, by phase, with a "total".
      shrink: what to make smaller where it does not fit.

    Raises:
      InputError: a topology, mesh, or batch that will not do, naming the setting.
    """
    chip, devices = chip_of(topology), devices_of(topology)
    mesh = make_mesh(config.mesh.to_dict(), devices)
    task = next((name for name, entry in config.data.items() if (entry.example or name) == "vos"), None)
    task = task or next(iter(config.data), None)
    if task is None:
        raise InputError("data: names no task; see settings.task")
    check(config, task, mesh)
    program = abstract.program(config)
    capacity = int(hbm * GIB) if hbm else chip.memory
    start = time.monotonic()
    lowered = lowering.lower(program, task, mesh)
    parts = resident(program, task, mesh) | transient(program, config, task, mesh)
    about = {
        "topology": topology,
        "chips": len(devices),
        "task": task,
        "mesh": dict(mesh.shape),
        "batch_size": config.data[task].batch_size,
        "remat": config.thinker.remat,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(nn.unbox(program.trainable))),
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        total = _said(str(error))
        memory = {"total": total, "capacity": capacity, **parts}
        return about | {"fits": False, "hbm_bytes_per_chip": memory, "shrink": shrink(config, parts, capacity)}
    seen = compiled.memory_analysis()
    arguments, scratch = seen.argument_size_in_bytes, seen.temp_size_in_bytes
    total = arguments + scratch + seen.output_size_in_bytes - seen.alias_size_in_bytes
    parts["activations and other temporaries"] = max(scratch - sum(transient(program, config, task, mesh).values()), 0)
    fits = total <= capacity
    memory = {"total": total, "arguments": arguments, "temporaries": scratch, "capacity": capacity, **parts}
    costs = cost(hlo.parse(compiled.as_text()), program, expected.rollout(program), chip)
    spent = {"compile_seconds": round(time.monotonic() - start, 1)}
    said = {} if fits else {"shrink": shrink(config, parts, capacity)}
    rollout = {"rollout": expected.rollout(program)._asdict()}
    return about | {"fits": fits, "hbm_bytes_per_chip": memory} | said | rollout | costs | spent


def check(config: ConfigDict, task: str, mesh: Mesh) -> None:
    """InputError where the batch does not divide over the mesh."""
    rows, size = mesh.shape["data"] * mesh.shape["fsdp"], config.data[task].batch_size
    if size % rows:
        raise InputError(
            f"data.{task}.batch_size: {size} prompts do not divide over mesh.data x mesh.fsdp = {rows}; "
            f"take {math.ceil(size / rows) * rows} or more of mesh.tensor"
        )


def _bytes(tree: Any) -> int:
    """Of one device."""
    size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
    return sum(size(x) for x in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def resident(program: Program, task: str, mesh: Mesh) -> dict[str, int]:
    """Bytes of a chip that hold the step's arguments, by part."""
    given = lowering.arguments(program, task, mesh)
    frozen = given.frozen
    return {
        "weights trained": _bytes(given.state.trainable),
        "optimiser": _bytes(given.state.opt_state),
        "weights frozen": _bytes((frozen.towers, frozen.reference)),
        "SAM 2.1 weights": _bytes(frozen.sam2),
        "batch and tables": _bytes((given.batch, frozen.vocab, frozen.bpe, frozen.grounding)),
    }


def transient(program: Program, config: ConfigDict, task: str, mesh: Mesh) -> dict[str, int]:
    """Bytes of a chip that its largest temporaries would take if nothing were shared; they do not live all at once."""
    text, own = program.models.thinker.config.text, program.step
    batch = program.batches[task]
    rows = config.data[task].batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    width = np.dtype(program.models.thinker.config.dtype).itemsize
    token = (
        2
        * text.num_layers
        * text.num_kv_heads
        * text.head_dim
        * width
        // math.gcd(text.num_kv_heads, mesh.shape["tensor"])
    )
    prompt = batch.policy.tokens.shape[1]
    found = {"cache of rollouts": rows * token * (prompt + own.group * own.sampling.max_tokens)}
    if hasattr(batch, "sharp"):
        frames, sharp = batch.sharp.cells.shape[1], batch.sharp.tokens.shape[1]
        requests = own.group * own.keyframes
        answers = requests * (own.description_tokens + own.grounding.max_tokens)
        found["cache of keyframes"] = rows * token * (sharp * (min(frames, requests) + requests) + answers)
    return found


def _said(message: str) -> int | None:
    """Bytes that the compiler says it would need."""
    found = re.search(r"Used ([\d.]+)([KMG]) of", message)
    return int(float(found[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[found[2]]) if found else None


def shrink(config: ConfigDict, parts: dict[str, int], capacity: int) -> str:
    """The largest part and the setting that makes it smaller."""
    advice = {
        "weights trained": "mesh.fsdp: more chips, or lora.rank: an adapter",
        "optimiser": "mesh.fsdp: more chips, or lora.rank: an adapter",
        "weights frozen": "mesh.fsdp: more chips, or a smaller thinker.path",
        "SAM 2.1 weights": "sam2.path: a smaller segmenter",
        "batch and tables": "data.*.frames or pixels.sharp",
        "cache of rollouts": "step.group or step.max_tokens",
        "cache of keyframes": "step.keyframes or pixels.sharp",
    }
    activations = (
        "thinker.remat: 'full'" if config.thinker.remat != "full" else "step.max_tokens, step.group or step.score_chunk"
    )
    named = {name: size for name, size in parts.items() if name in advice}
    largest = max(named, key=lambda name: named[name])
    if named[largest] < capacity / 4:
        return f"activations: {activations}"
    return f"{largest} ({named[largest] / GIB:.1f} GiB): {advice[largest]}"


def cost(module: hlo.Module, program: Program, rollout: Rollout, chip: Chip) -> dict[str, Any]:
    """Operations, bytes and seconds of one chip by phase."""
    assumed = step.assumptions(program, rollout)
    counted = operations.by_phase(operations.by_path(module, assumed), step.PHASES)
    moved = traffic.by_phase(module, assumed, step.PHASES)
    seconds = {
        name: max(counted[name] / chip.operations, moved.memory[name] / chip.memory_rate)
        + moved.links[name] / chip.link_rate
        for name in counted
    }
    links = sum(moved.links.values()) / chip.link_rate
    total = lambda parts: {"total": sum(parts.values()), **parts}
    return {
        "operations": total(counted),
        "bytes": total(moved.memory),
        "collective_bytes": total(moved.links),
        "seconds_estimate": total(seconds),
        "collective_share": links / max(sum(seconds.values()), 1e-30),
    }
