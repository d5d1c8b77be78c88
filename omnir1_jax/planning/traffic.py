"""Bytes that a compiled program moves: between memory and compute, and between devices. Estimates, by phase.

A fusion reads its operands and writes its result once; a sort does so for each doubling of its ordered runs. Slices
and in-place updates of a large buffer count with the size of the slice. An attention kernel reads keys and values once
per block of queries.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from omnir1_jax.planning.hlo import Computation, Instruction, Module
from omnir1_jax.planning.operations import (
    KERNEL_PAIRS,
    Assumptions,
    Executed,
    executed,
    kernel,
    kernel_operands,
    phase_of,
)

# How often a device's share of the result passes its links, on a large ring.
COLLECTIVES = {
    "all-gather": 1.0,
    "all-reduce": 2.0,
    "reduce-scatter": 1.0,
    "all-to-all": 1.0,
    "ragged-all-to-all": 1.0,
    "collective-permute": 1.0,
    "collective-broadcast": 1.0,
}
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done", "copy-start",
    "copy-done", "iota", "domain", "add-dependency",
}  # fmt: skip


class Traffic(NamedTuple):
    """Bytes of one device by phase."""

    memory: dict[str, float]
    links: dict[str, float]


def by_phase(module: Module, assumptions: Assumptions, phases: Sequence[str]) -> Traffic:
    """Both kinds of traffic of a compiled program; "other" takes the rest."""
    memory: dict[str, float] = defaultdict(float)
    links: dict[str, float] = defaultdict(float)
    for execution in executed(module, assumptions, fused=False):
        op = execution.instruction
        kind = op.opcode.removesuffix("-start")
        if op.opcode.endswith("-done") or op.opcode in _FREE:
            continue
        phase = phase_of(execution.path, phases)
        if kind in COLLECTIVES:
            links[phase] += execution.times * COLLECTIVES[kind] * _moved(kind, execution)
        elif kind == "fusion" and (collective := _collective(module, op)):
            links[phase] += execution.times * COLLECTIVES[collective] * _moved(collective, execution)
        if kind != "fusion" or _part(module.computations[op.called()[0]]) != "done":
            memory[phase] += execution.times * _touched(execution)
    all_phases = (*phases, "other")
    return Traffic({name: memory[name] for name in all_phases}, {name: links[name] for name in all_phases})


def _collective(module: Module, op: Instruction) -> str | None:
    """The collective that a fusion holds or starts; an all-reduce of which each device keeps a shard is a
    reduce-scatter."""
    inside = module.computations[op.called()[0]]
    collective = next((fused for fused in inside if fused.opcode in COLLECTIVES), None)
    if collective is None or _part(inside) in ("between", "done"):
        return None
    return "reduce-scatter" if collective.opcode == "all-reduce" and op.bytes < collective.bytes else collective.opcode


def _part(inside: Computation) -> str | None:
    """A fusion's part in an asynchronous collective, which the compiler writes into each: "start", "done", or
    "between", which computes something else meanwhile."""
    if not any(fused.opcode in COLLECTIVES and "chain_id=" in fused.attributes for fused in inside):
        return None
    targets = [fused.attribute("custom_call_target") for fused in inside if fused.opcode == "custom-call"]
    parts = (part for part in ("Start", "Done") if f'"AsyncCollective{part}"' in targets)
    return next(parts, "between").lower()


def _moved(kind: str, execution: Executed) -> int:
    """The larger of input and output bytes; of a reduction the input bytes."""
    inputs = [execution.computation.instructions[name].bytes for name in execution.instruction.operands]
    if kind in ("all-reduce", "reduce-scatter"):
        return sum(inputs)
    return max(sum(inputs), max((shape.bytes for shape in execution.instruction.shapes), default=0))


def _touched(execution: Executed) -> int:
    op, instructions = execution.instruction, execution.computation.instructions
    size = lambda index: instructions[op.operands[index]].bytes
    if op.opcode in ("dynamic-slice", "gather", "slice", "broadcast"):
        return 2 * op.bytes
    if op.opcode == "dynamic-update-slice":
        return 2 * size(1)
    if op.opcode == "scatter":
        return 2 * size(len(op.operands) - 1)
    if op.opcode == "fusion":
        return _fusion(execution.module, op)
    if op.opcode == "sort":
        (axis,) = op.integers("dimensions")
        return 2 * op.bytes * (op.shape.dims[axis] - 1).bit_length()
    return op.bytes + sum(instructions[name].bytes for name in op.operands) + _read_again(execution)


def _read_again(execution: Executed) -> int:
    """Bytes of operands that an attention kernel reads after the first time."""
    kind, scope_pairs = kernel(execution.instruction), KERNEL_PAIRS.search(execution.path)
    if kind is None or scope_pairs is None:
        return 0
    pairs, query_block, key_block = map(int, scope_pairs.groups())
    query, key, value, *others = kernel_operands(execution.computation, execution.instruction)
    heads, tokens = math.prod(query.dims[:-2]), query.dims[-2]
    if kind == "dkv":  # reads the queries, and what belongs to them, for each block of keys
        read_once = sum(shape.bytes for shape in (query, *others))
        return read_once * (pairs // key_block) // tokens - read_once
    width = sum(shape.bytes // math.prod(shape.dims[:-1]) for shape in (key, value))
    return heads * (pairs // query_block) * width - key.bytes - value.bytes


def _fusion(module: Module, op: Instruction) -> int:
    """Bytes of a fusion's result and operands; in-place updates and sliced operands with the size of the slice."""
    inside = module.computations[op.called()[0]]
    written, sources = op.bytes, [fused for fused in inside if fused.opcode == "parameter"]
    if _part(inside) == "between":  # what continues the collective is neither read nor written here
        is_passed_on = lambda fused: fused.root or fused.opcode in COLLECTIVES
        used = {name for fused in inside if not is_passed_on(fused) for name in fused.operands}
        sources = [fused for fused in sources if fused.name in used]
        results = (inside.instructions[name] for name in inside.root.operands)
        written = sum(fused.bytes for fused in results if fused.opcode not in ("parameter", *COLLECTIVES))
    for fused in inside:
        if fused.opcode == "dynamic-update-slice" and fused.bytes <= written:
            written += 2 * inside.instructions[fused.operands[1]].bytes - fused.bytes
    return written + sum(_read(module, inside, fused) for fused in sources)


def _read(module: Module, inside: Computation, source: Instruction) -> int:
    """Bytes that a fused computation reads of a value: all of it, or the slices that its users take."""
    total = 0
    for use in inside:
        positions = [i for i, name in enumerate(use.operands) if name == source.name]
        if not positions:
            continue
        if use.opcode in ("dynamic-slice", "gather", "slice") and positions == [0]:
            total += use.bytes
        elif use.opcode == "dynamic-update-slice" and positions == [0]:
            continue
        elif use.opcode in ("bitcast", "reshape", "transpose", "convert", "copy"):
            total += _read(module, inside, use)
        elif use.opcode == "fusion":
            called = module.computations[use.called()[0]]
            if all(fused.opcode in ("parameter", "copy", "bitcast") for fused in called):  # in place: nothing is read
                total += _read(module, inside, use)
                continue
            parameters = {fused.attribute("value"): fused for fused in called if fused.opcode == "parameter"}
            total += sum(_read(module, called, parameters[str(position)]) for position in positions)
        else:
            return source.bytes
    used = any(source.name in fused.operands for fused in inside)
    return min(total, source.bytes) if total or used else source.bytes
