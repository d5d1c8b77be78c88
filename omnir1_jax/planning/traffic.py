"""Bytes that a compiled program moves: between memory and compute, and between devices. Estimates, by phase.

A fusion reads its operands and writes its result once; a sort does so for each doubling of its ordered runs. What is
cut out of or put into a large buffer counts with the size of the piece, as it happens in place. A kernel of attention
reads keys and values once for each block of queries.
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

# How often a device's share of the result passes its links, on a ring of many.
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
    """Both kinds of traffic of a compiled program; "other" takes what belongs to no phase."""
    memory: dict[str, float] = defaultdict(float)
    links: dict[str, float] = defaultdict(float)
    for run in executed(module, assumptions, fused=False):
        one = run.instruction
        kind = one.opcode.removesuffix("-start")
        if one.opcode.endswith("-done") or one.opcode in _FREE:
            continue
        phase = phase_of(run.path, phases)
        if kind in COLLECTIVES:
            links[phase] += run.times * COLLECTIVES[kind] * _moved(kind, run)
        elif kind == "fusion" and (inside := _collective(module, one)):
            links[phase] += run.times * COLLECTIVES[inside] * _moved(inside, run)
        if kind != "fusion" or _part(module.computations[one.called()[0]]) != "done":
            memory[phase] += run.times * _touched(run)
    every = (*phases, "other")
    return Traffic({name: memory[name] for name in every}, {name: links[name] for name in every})


def _collective(module: Module, one: Instruction) -> str | None:
    """The collective that a fusion holds or begins; an all-reduce of which each device keeps its part is a
    reduce-scatter."""
    inside = module.computations[one.called()[0]]
    found = next((each for each in inside if each.opcode in COLLECTIVES), None)
    if found is None or _part(inside) in ("between", "done"):
        return None
    return "reduce-scatter" if found.opcode == "all-reduce" and one.bytes < found.bytes else found.opcode


def _part(inside: Computation) -> str | None:
    """Which part a fusion has in an asynchronous collective, which the compiler writes into each: "start", "done", or
    "between", where something else is computed meanwhile."""
    if not any(each.opcode in COLLECTIVES and "chain_id=" in each.attributes for each in inside):
        return None
    targets = [each.attribute("custom_call_target") for each in inside if each.opcode == "custom-call"]
    named = (part for part in ("Start", "Done") if f'"AsyncCollective{part}"' in targets)
    return next(named, "between").lower()


def _moved(kind: str, run: Executed) -> int:
    """The larger of what goes in and what comes out; of a reduction what comes in."""
    inputs = [run.computation.instructions[name].bytes for name in run.instruction.operands]
    if kind in ("all-reduce", "reduce-scatter"):
        return sum(inputs)
    return max(sum(inputs), max((shape.bytes for shape in run.instruction.shapes), default=0))


def _touched(run: Executed) -> int:
    one, here = run.instruction, run.computation.instructions
    size = lambda at: here[one.operands[at]].bytes
    if one.opcode in ("dynamic-slice", "gather", "slice", "broadcast"):
        return 2 * one.bytes
    if one.opcode == "dynamic-update-slice":
        return 2 * size(1)
    if one.opcode == "scatter":
        return 2 * size(len(one.operands) - 1)
    if one.opcode == "fusion":
        return _fusion(run.module, one)
    if one.opcode == "sort":
        (axis,) = one.integers("dimensions")
        return 2 * one.bytes * (one.shape.dims[axis] - 1).bit_length()
    return one.bytes + sum(here[name].bytes for name in one.operands) + _read_again(run)


def _read_again(run: Executed) -> int:
    """Bytes of its operands that a kernel of attention reads beyond the first time."""
    kind, named = kernel(run.instruction), KERNEL_PAIRS.search(run.path)
    if kind is None or named is None:
        return 0
    pairs, query_block, key_block = map(int, named.groups())
    query, key, value, *others = kernel_operands(run.computation, run.instruction)
    heads, width = (
        math.prod(query.dims[:-2]),
        lambda *shapes: sum(one.bytes // math.prod(one.dims[:-1]) for one in shapes),
    )
    if kind == "dkv":  # goes over the queries, and what belongs to them, for each block of keys
        once = sum(one.bytes for one in (query, *others))
        return heads * (pairs // key_block) * width(query, *others) - once
    return heads * (pairs // query_block) * width(key, value) - key.bytes - value.bytes


def _fusion(module: Module, one: Instruction) -> int:
    """Result and operands of a fusion, in-place updates and cut-out operands with the size of the piece."""
    inside = module.computations[one.called()[0]]
    written, sources = one.bytes, [each for each in inside if each.opcode == "parameter"]
    if _part(inside) == "between":  # what continues the collective is neither read nor written here
        passed = lambda each: each.root or each.opcode in COLLECTIVES
        used = {name for each in inside if not passed(each) for name in each.operands}
        sources = [each for each in sources if each.name in used]
        results = (inside.instructions[name] for name in inside.root.operands)
        written = sum(each.bytes for each in results if each.opcode not in ("parameter", *COLLECTIVES))
    for each in inside:
        if each.opcode == "dynamic-update-slice" and each.bytes <= written:
            written += 2 * inside.instructions[each.operands[1]].bytes - each.bytes
    return written + sum(_read(module, inside, each) for each in sources)


def _read(module: Module, inside: Computation, source: Instruction) -> int:
    """Bytes that a fused computation reads of a value: all of it, or the pieces that its users cut out."""
    total = 0
    for use in inside:
        places = [i for i, name in enumerate(use.operands) if name == source.name]
        if not places:
            continue
        if use.opcode in ("dynamic-slice", "gather", "slice") and places == [0]:
            total += use.bytes
        elif use.opcode == "dynamic-update-slice" and places == [0]:
            continue
        elif use.opcode in ("bitcast", "reshape", "transpose", "convert", "copy"):
            total += _read(module, inside, use)
        elif use.opcode == "fusion":
            called = module.computations[use.called()[0]]
            if all(each.opcode in ("parameter", "copy", "bitcast") for each in called):  # in place: nothing is read
                total += _read(module, inside, use)
                continue
            at = {each.attribute("value"): each for each in called if each.opcode == "parameter"}
            total += sum(_read(module, called, at[str(place)]) for place in places)
        else:
            return source.bytes
    used = any(source.name in each.operands for each in inside)
    return min(total, source.bytes) if total or used else source.bytes
