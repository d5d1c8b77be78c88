"""Operations of a program by phase: matrix products and convolutions, loops multiplied by their trips.

An operation is a multiplication or an addition of a product (2 per multiply-accumulate), whatever the precision.
Elementwise work, which the products outweigh by far, is not counted. Phases and loops are told by the named scopes
that the program was traced under.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from omnir1_jax.errors import InputError
from omnir1_jax.planning import hlo
from omnir1_jax.planning.hlo import Instruction, Module

# Scope around a kernel: query-key pairs that it computes, of one head, and its blocks of queries and of keys.
KERNEL_PAIRS = re.compile(r"\bpairs_(\d+)_blocks_(\d+)_(\d+)\b")


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What the program leaves to the data. Keys are regular expressions that are searched for in a scope's path.

    Attributes:
      trips: of loops whose end depends on data.
      shares: of a conditional's branches, how often each is taken; without an entry the costliest counts.
    """

    trips: Mapping[str, float | int] = dataclasses.field(default_factory=dict)
    shares: Mapping[str, Sequence[float | int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction of the program with the scope that it runs in and how often it runs."""

    module: Module
    computation: hlo.Computation
    instruction: Instruction
    path: str
    times: float


def executed(module: Module, assumptions: Assumptions, fused: bool = True) -> Iterator[Executed]:
    """Every instruction that runs, loops and calls entered.

    Args:
      fused: enter fusions too. Without it a fusion is one instruction, as far as memory is concerned.

    Raises:
      InputError: a loop whose trips are neither known nor assumed and that has products inside.
    """
    heavy = _heavy(module)

    def walk(name: str, prefix: str, times: float) -> Iterator[Executed]:
        computation = module.computations[name]
        for one in computation:
            path = _join(prefix, one.path)
            yield Executed(module, computation, one, path, times)
            if one.opcode == "while":
                (body,) = one.called()
                yield from walk(body, path, times * _trips(module, one, path, assumptions, body in heavy))
            elif one.opcode == "conditional":
                for branch, share in _branches(module, one, path, assumptions, heavy):
                    yield from walk(branch, path, times * share)
            elif one.opcode in ("call", "async-start", "custom-call") or (one.opcode == "fusion" and fused):
                for called in one.called():
                    yield from walk(called, path, times)

    yield from walk(module.entry, "", 1.0)


def _join(prefix: str, path: str) -> str:
    """Whole path: compiled instructions carry theirs, lowered ones only what lies below their caller's."""
    if not prefix or (path.startswith("jit(") and prefix.startswith("jit(")):
        return path or prefix
    return f"{prefix}/{path}" if path else prefix


def _heavy(module: Module) -> set[str]:
    """Computations that hold a product, their own or that of one they call."""
    found: dict[str, bool] = {}

    def look(name: str) -> bool:
        if name not in found:
            found[name] = False
            found[name] = any(
                one.opcode in ("dot", "convolution")
                or kernel(one) is not None
                or any(look(called) for called in one.called())
                for one in module.computations[name]
            )
        return found[name]

    return {name for name in module.computations if look(name)}


def _lookup(table: Mapping[str, object], path: str):
    return next((value for key, value in table.items() if re.search(key, path)), None)


def _trips(module: Module, loop: Instruction, path: str, assumptions: Assumptions, heavy: bool) -> float | int:
    known = hlo.trip_count(module, loop)
    if known is not None:
        return known
    assumed = _lookup(assumptions.trips, path)
    if assumed is None:
        if heavy:
            raise InputError(f"operations: how often the loop {path} runs depends on data; give its trips")
        return 1
    return assumed


def _branches(
    module: Module, one: Instruction, path: str, assumptions: Assumptions, heavy: set[str]
) -> list[tuple[str, float | int]]:
    branches = one.called()
    if one.attribute("true_computation"):  # printed before the false one, which is branch 0
        branches = branches[::-1]
    shares = _lookup(assumptions.shares, path)
    if shares is not None:
        if len(shares) != len(branches):
            raise InputError(f"operations: {path} has {len(branches)} branches, not {len(shares)}")
        return list(zip(branches, shares))
    busy = [branch for branch in branches if branch in heavy] or branches[:1]
    if len(busy) == 1:
        return [(busy[0], 1.0)]
    inside = lambda branch: dataclasses.replace(module, entry=branch)
    return [(max(busy, key=lambda branch: total(inside(branch), assumptions)), 1.0)]


def total(module: Module, assumptions: Assumptions = Assumptions()) -> float:
    """Operations of the whole program."""
    return float(sum(by_path(module, assumptions).values()))


def by_path(module: Module, assumptions: Assumptions = Assumptions()) -> dict[str, float]:
    """Operations by scope path, trips multiplied in."""
    found: dict[str, float] = defaultdict(float)
    for run in executed(module, assumptions):
        amount = operations(run.computation, run.instruction, run.path)
        if amount:
            found[run.path] += run.times * amount
    return dict(found)


def by_phase(paths: Mapping[str, float], phases: Sequence[str]) -> dict[str, float]:
    """Sums over the paths of each phase; "other" takes what belongs to none. See `phase_of`."""
    found = dict.fromkeys(phases, 0.0) | {"other": 0.0}
    for path, amount in paths.items():
        found[phase_of(path, phases)] += amount
    return found


def phase_of(path: str, phases: Sequence[str]) -> str:
    """The first of the phases whose scopes ("learn" or "learn/backward") all occur in the path, in any order."""
    return next((phase for phase in phases if set(phase.split("/")) <= scopes(path)), "other")


def scopes(path: str) -> set[str]:
    """Names of a path; with "backward" in what differentiation made and "recompute" in what rematerialisation did."""
    names = set(re.split(r"[/()]", path))
    if "transpose" in names:
        names.add("recompute" if "rematted_computation" in names else "backward")
    return names


def operations(computation: hlo.Computation, one: Instruction, path: str = "") -> int:
    """Operations of one instruction, what it calls not counted."""
    shape = lambda at: computation.instructions[one.operands[at]].shape
    if one.opcode == "dot":
        return 2 * one.shape.size * math.prod(shape(0).dims[i] for i in one.integers("lhs_contracting_dims"))
    if one.opcode == "convolution":
        return 2 * _convolution(one, shape(0).dims, shape(1).dims)
    return _attention(computation, one, path) if kernel(one) else 0


def _convolution(one: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Multiply-accumulates; positions in the padding or between dilated elements do none."""
    first, second, out = re.split(r"_|->", one.attribute("dim_labels"))
    window = dict(re.findall(r"(\w+)=(\S+)", _window(one)))
    pick = lambda labels, dims, label: dims[labels.index(label)]
    places, spatial = 1, sorted((label for label in out if label.isdigit()), key=int)
    for i, label in enumerate(spatial):
        field = lambda name, default, i=i: window[name].split("x")[i] if name in window else default
        places *= _places(
            pick(first, left, label),
            pick(second, right, label),
            pick(out, one.shape.dims, label),
            stride=int(field("stride", 1)),
            low=int(field("pad", "0_0").split("_")[0]),
            left_dilation=int(field("lhs_dilate", 1)),
            right_dilation=int(field("rhs_dilate", 1)),
        )
    groups = int(one.attribute("batch_group_count") or 1)
    batch = pick(first, left, "b") // groups
    return batch * pick(out, one.shape.dims, "f") * pick(second, right, "i") * places


def _window(one: Instruction) -> str:
    found = re.search(r"\bwindow=\{([^}]*)\}", one.attributes)
    return found[1] if found else ""


def _places(size: int, kernel: int, out: int, *, stride: int, low: int, left_dilation: int, right_dilation: int) -> int:
    """Pairs of output and kernel positions along one axis that meet an element of the input."""
    if kernel == 1 and low == 0 and left_dilation == 1:
        return min(out, -(-size // stride))
    at = np.arange(out, dtype=np.int64)[:, None] * stride + np.arange(kernel) * right_dilation - low
    return int(np.count_nonzero((at >= 0) & (at % left_dilation == 0) & (at // left_dilation < size)))


# Products of each of the attention kernels, in multiply-accumulates a pair and channel of queries and of values: scores
# and sum; the backward passes make the scores again, dp, and then dq, or dv and dk.
_KERNELS = {"fwd": (1, 1), "dq": (2, 1), "dkv": (2, 2)}


def kernel(one: Instruction) -> str | None:
    """Which of the splash kernels an instruction is, of "fwd", "dq" and "dkv"."""
    if one.opcode != "custom-call" or one.attribute("custom_call_target") != '"tpu_custom_call"':
        return None
    found = re.search(r"splash_m[hq]a_(fwd|dq|dkv)", one.path + one.name + one.attributes[:400])
    return found[1] if found else None


def kernel_operands(computation: hlo.Computation, one: Instruction) -> list[hlo.Shape]:
    """Queries, keys, values and what follows them: the floating ones of rank 3 and more [..., tokens, channels]."""
    shapes = (computation.instructions[name].shape for name in one.operands)
    return [shape for shape in shapes if shape.dtype.startswith(("bf", "f")) and len(shape.dims) >= 3]


def _attention(computation: hlo.Computation, one: Instruction, path: str) -> int:
    """Operations of a splash kernel: on the pairs that the scope names, else on all of them."""
    query, key, value = kernel_operands(computation, one)[:3]
    named = KERNEL_PAIRS.search(path)
    pairs = int(named[1]) if named else query.dims[-2] * key.dims[-2]
    of_queries, of_values = _KERNELS[kernel(one)]
    return 2 * pairs * math.prod(query.dims[:-2]) * (of_queries * query.dims[-1] + of_values * value.dims[-1])
