"""A plan: the step compiled for a topology, with memory and time estimated from the compiler's output."""

import dataclasses
import math
import pathlib
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from omnir1_jax.build import valid
from omnir1_jax.build.data import task_of
from omnir1_jax.errors import InputError
from omnir1_jax.parallel import batch_parts, make_mesh
from omnir1_jax.planning import abstract, hlo, lowering, memory, operations, step, traffic, validation
from omnir1_jax.planning.abstract import Program
from omnir1_jax.planning.operations import Assumptions
from omnir1_jax.planning.step import Rollout
from omnir1_jax.planning.topology import GIB, Chip, chip_of, devices_of

MEMORY_PHASES = tuple(name for name in step.STAGES if name != "other")


@dataclasses.dataclass(frozen=True)
class Expected:
    """Expected trips of a step's loops; None means the limit. See `step.Rollout`."""

    completion: int | None = None
    answer: int | None = None
    frames: int | None = None

    def rollout(self, program: Program, task: str) -> Rollout:
        limits = step.longest(program, task)
        given = {name: value for name, value in dataclasses.asdict(self).items() if value}
        return limits._replace(**{name: min(value, getattr(limits, name)) for name, value in given.items()})


LIMITS = Expected()


class CompiledProgram(NamedTuple):
    """A compiled program: whether it fits, bytes of its code on one chip, and the compiler's notes."""

    fits: bool
    code: int
    notes: memory.Notes

    def total(self, arguments: int = 0) -> int:
        """Bytes of one chip, with all arguments of the step, even those that this program does not use."""
        return max(self.notes.arguments, arguments) + self.notes.outputs + self.notes.scratch + self.code


def plan(
    config: ConfigDict,
    topology: str,
    *,
    hbm: float | None = None,
    expected: Expected = LIMITS,
    stages: Sequence[str] = (),
    effort: float = 0.0,
) -> dict[str, Any]:
    """Compiles the step of the config's first video task, or of its first, for a topology; weight 0 leaves one out.

    Args:
      hbm: GiB of memory per chip; default the chip's.
      stages: some of the step's stages, compiled one by one instead of the full step; memory is that of the largest,
        with the arguments of the full step. "validate" stands for the programs of a validation, which are not part of
        the step's operations and seconds.
      effort: of the compiler, -1 to 1; at -1 it takes a fraction of the time, and its program may be slower and take
        more memory.

    Returns:
      fits: whether the compiler accepts the program and its memory is within `hbm`.
      hbm_bytes_per_chip: total, capacity and parts.
      temporaries_by_phase: peak bytes in use beside the arguments during each phase.
      operations, bytes, collective_bytes: per chip, by phase, each with a "total".
      seconds_estimate: of a step by roofline, by phase, with a "total".
      validation: with "validate", see `validation.seconds`.
      largest_temporaries: bytes, shape and path of each.
      shrink: the setting to make smaller if it does not fit.

    Raises:
      InputError: an invalid topology, mesh or batch, naming the setting.
    """
    valid.check(config)
    chip, devices = chip_of(topology), devices_of(topology)
    mesh = make_mesh(config.mesh.to_dict(), devices)
    # The task with the largest step among those that are drawn.
    candidates = [name for name in config.data if config.data[name].weight] or list(config.data)
    task = next((name for name in candidates if task_of(config, name).segments), next(iter(candidates), None))
    if task is None:
        raise InputError("data: names no task; see settings.task")
    check(config, task, mesh)
    program = abstract.program(config)
    capacity = int(hbm * GIB) if hbm else chip.memory
    rollout, start = expected.rollout(program, task), time.monotonic()
    parts = resident(program, task, mesh)
    result = {
        "topology": topology,
        "chips": len(devices),
        "task": task,
        "mesh": dict(mesh.shape),
        "batch_size": config.data[task].batch_size,
        "remat": config.thinker.remat,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(nn.unbox(program.trainable))),
        "stages": list(stages),
        "effort": effort,
    }
    if stages:
        programs = lowering.lower_stages(program, task, mesh, [name for name in stages if name != validation.STAGE])
    else:
        programs = [("step", lowering.lower(program, task, mesh))]
    steps = [compiled(lowered, effort) for _, lowered in programs]
    arguments, compilations = sum(parts.values()), list(steps)
    if validation.STAGE in stages:
        # Besides the step's arguments, a copy of the trained decoder for the evaluation.
        validation_arguments = arguments + _bytes(lowering.arguments(program, task, mesh).frozen.reference)
        for lowered in validation.lower(program, config, task, mesh):
            c = compiled(lowered, effort)
            compilations.append(c._replace(notes=c.notes._replace(arguments=validation_arguments)))
        answering = validation.answering(program)
        assumed = validation.assumptions(answering, config, task, expected.rollout(answering, task))
        batch = sum(
            cost(c.notes.module, assumed, chip)["seconds_estimate"]["total"] for c in compilations[len(steps) :]
        )
        result |= {"validation": validation.seconds(config, task, mesh, batch)}
    largest = max(compilations, key=lambda c: c.total(arguments))
    peaks = {name: size for c in compilations for name, size in memory.peaks(c.notes, MEMORY_PHASES).items()}
    total = {
        "total": largest.total(arguments),
        "capacity": capacity,
        **parts,
        "temporaries": largest.notes.scratch,
        "program and results": largest.code + largest.notes.outputs,
    }
    result |= {
        "fits": all(c.fits for c in compilations) and largest.total(arguments) <= capacity,
        "hbm_bytes_per_chip": total,
        "temporaries_by_phase": peaks,
        "caches_bytes_per_chip": caches(program, config, task, mesh),
        "largest_temporaries": memory.largest(largest.notes, 8),
    }
    if not result["fits"]:
        busiest = max(peaks, key=lambda name: peaks[name], default=None)
        result |= {"shrink": shrink(config, task, mesh, parts, capacity, busiest)}
    if steps:
        assumed = step.assumptions(program, rollout)
        costs = (cost(c.notes.module, assumed, chip) for c in steps)
        result |= {"rollout": rollout._asdict()} | added(costs)
    return result | {"compile_seconds": round(time.monotonic() - start, 1)}


def compiled(lowered: jax.stages.Lowered, effort: float = 0.0) -> CompiledProgram:
    """Compiles a program, also one that does not fit the memory."""
    name, value = _effort_setting(effort)
    before = getattr(jax.config, name)
    with tempfile.TemporaryDirectory() as scratch:
        folder, program = pathlib.Path(scratch), None
        try:
            jax.config.update(name, value)
            program = lowered.compile(compiler_options=memory.options(folder))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
        finally:
            jax.config.update(name, before)
        code = 0 if program is None else program.memory_analysis().generated_code_size_in_bytes
        return CompiledProgram(program is not None, code, memory.read(folder))


def _effort_setting(effort: float) -> tuple[str, float | str]:
    """JAX's setting for how much the compiler optimises, and its value; newer versions have levels."""
    old = "jax_exec_time_optimization_effort"
    if hasattr(jax.config, old):
        return old, effort
    return "jax_optimization_level", "O1" if effort < 0 else "O3" if effort > 0 else "UNKNOWN"


def added(costs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Sums of the programs' costs, and the links' share of the time."""
    total: dict[str, Any] = {}
    for cost in costs:
        for kind, phases in cost.items():
            phase_sums = total.setdefault(kind, {})
            for name, amount in phases.items():
                phase_sums[name] = phase_sums.get(name, 0.0) + amount
    links, seconds = total.pop("collective_seconds")["total"], total["seconds_estimate"]["total"]
    return total | {"collective_share": links / max(seconds, 1e-30)}


def check(config: ConfigDict, task: str, mesh: Mesh) -> None:
    """InputError if the batch does not divide over the mesh."""
    rows, size = batch_parts(mesh), config.data[task].batch_size
    if size % rows:
        raise InputError(
            f"data.{task}.batch_size: {size} prompts do not divide over mesh.slice x data x fsdp = {rows}; "
            f"take {math.ceil(size / rows) * rows} or more of mesh.tensor"
        )


def _bytes(tree: Any) -> int:
    """Bytes of a tree on one device."""
    size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * jax.dtypes.itemsize_bits(x.dtype) // 8
    return sum(size(x) for x in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def resident(program: Program, task: str, mesh: Mesh) -> dict[str, int]:
    """Bytes of the step's arguments per chip, by part."""
    shapes = lowering.arguments(program, task, mesh)
    frozen = shapes.frozen
    return {
        "weights trained": _bytes(shapes.state.trainable),
        "optimiser": _bytes(shapes.state.opt_state),
        "weights frozen": _bytes((frozen.encoders, frozen.reference)),
        "SAM 2.1 weights": _bytes(frozen.segmenter),
        "batch and tables": _bytes((shapes.batch, frozen.vocab, frozen.bpe, frozen.grounder)),
    }


def caches(program: Program, config: ConfigDict, task: str, mesh: Mesh) -> dict[str, int]:
    """Bytes of keys and values per chip; they are among the temporaries, one cache after the other."""
    text, choices, grounder = program.models.thinker.config.text, program.step, program.models.grounder
    batch = program.batches[task]
    rows = config.data[task].batch_size // batch_parts(mesh)
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
    sizes = {"cache of rollouts": rows * token * (prompt + choices.group * choices.sampling.max_tokens)}
    if program.tasks[task].grounds:
        frames, frame_tokens = batch.sharp.cells.shape[1], batch.sharp.tokens.shape[1]
        requests = choices.group * choices.keyframes
        answers = requests * (grounder.description_tokens + grounder.sampling.max_tokens)
        sizes["cache of keyframes"] = rows * token * (frame_tokens * (min(frames, requests) + requests) + answers)
    return sizes


ADVICE = {
    "weights trained": "mesh.fsdp: more chips, or lora.rank: an adapter",
    "optimiser": "mesh.fsdp: more chips, or lora.rank: an adapter",
    "weights frozen": "mesh.fsdp: more chips, or a smaller thinker.path",
    "SAM 2.1 weights": "sam2.path: a smaller segmenter",
    "batch and tables": "data.*.frames or pixels.sharp",
    "encode": "data.*.frames or pixels.policy_video",
    "sample": "step.group or step.max_tokens",
    "ground": "step.keyframes, pixels.sharp or step.grounding_tokens",
    "segment": "sam2.object_chunk, sam2.frame_chunk or data.*.frames",
    "update": "step.score_chunk, step.max_tokens or step.group",
}


def shrink(
    config: ConfigDict, task: str, mesh: Mesh, parts: Mapping[str, int], capacity: int, stage: str | None = None
) -> str:
    """The setting to make smaller: of the largest resident part, or of the stage with the largest temporaries.

    Args:
      parts: of the arguments. stage: the one with the largest temporaries, if known.
    """
    largest = max(parts, key=lambda name: parts[name])
    if sum(parts.values()) > 0.6 * capacity or stage not in ADVICE:
        return f"{largest} ({parts[largest] / GIB:.1f} GiB): {ADVICE[largest]}"
    advice = ADVICE[stage]
    if stage == "update" and config.thinker.remat != "full":
        advice = f"thinker.remat: 'full', {advice}"
    prompts = config.data[task].batch_size // batch_parts(mesh)
    if prompts > 1:
        advice = f"data.{task}.batch_size: now {prompts} prompts a chip, or {advice}"
    return f"the {stage} stage's temporaries: {advice}"


def cost(module: hlo.Module, assumed: Assumptions, chip: Chip) -> dict[str, Any]:
    """Operations, bytes and seconds of one chip by phase."""
    counted = operations.by_phase(operations.by_path(module, assumed), step.PHASES)
    moved = traffic.by_phase(module, assumed, step.PHASES)
    seconds = {
        name: max(counted[name] / chip.operations, moved.memory[name] / chip.memory_rate)
        + moved.links[name] / chip.link_rate
        for name in counted
    }
    links = {name: moved.links[name] / chip.link_rate for name in counted}
    total = lambda parts: {"total": sum(parts.values()), **parts}
    return {
        "operations": total(counted),
        "bytes": total(moved.memory),
        "collective_bytes": total(moved.links),
        "seconds_estimate": total(seconds),
        "collective_seconds": total(links),
    }
