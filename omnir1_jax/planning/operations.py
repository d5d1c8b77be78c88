"""Operations of a program by phase: matrix products and convolutions, loops multiplied by their trips.

An operation is a multiplication or an addition of a product (2 per multiply-accumulate), whatever the precision.
Elementwise work, which the products outweigh by far, is not counted. Phases and loops are identified by the named
scopes that the program was traced under.
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
    """Assumptions for what depends on data. Keys are regular expressions that are searched for in a scope's path.

    Attributes:
      trips: trip counts of loops whose end depends on data.
      shares: how often each branch of a conditional is taken; without an entry the costliest counts.
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
    """Every instruction that runs, including those of loops and calls.

    Args:
      fused: enter fusions too. Otherwise a fusion is one instruction, as for memory traffic.

    Raises:
      InputError: a loop whose trips are neither known nor assumed and that has products inside.
    """
    heavy = _heavy(module)

    def walk(name: str, prefix: str, times: float) -> Iterator[Executed]:
        computation = module.computations[name]
        for op in computation:
            path = _join(prefix, op.path)
            yield Executed(module, computation, op, path, times)
            if op.opcode == "while":
                (body,) = op.called()
                yield from walk(body, path, times * _trips(module, op, path, assumptions, body in heavy))
            elif op.opcode == "conditional":
                for branch, share in _branches(module, op, path, assumptions, heavy):
                    yield from walk(branch, path, times * share)
            elif op.opcode in ("call", "async-start", "custom-call") or (op.opcode == "fusion" and fused):
                for called in op.called():
                    yield from walk(called, path, times)

    yield from walk(module.entry, "", 1.0)


def _join(prefix: str, path: str) -> str:
    """The full path: compiled instructions carry theirs, lowered ones only the part below their caller's."""
    if not prefix or (path.startswith("jit(") and prefix.startswith("jit(")):
        return path or prefix
    return f"{prefix}/{path}" if path else prefix


def _heavy(module: Module) -> set[str]:
    """Computations that hold a product, directly or in a computation that they call."""
    holds_product: dict[str, bool] = {}

    def visit(name: str) -> bool:
        if name not in holds_product:
            holds_product[name] = False
            holds_product[name] = any(
                op.opcode in ("dot", "convolution")
                or kernel(op) is not None
                or any(visit(called) for called in op.called())
                for op in module.computations[name]
            )
        return holds_product[name]

    return {name for name in module.computations if visit(name)}


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
    module: Module, op: Instruction, path: str, assumptions: Assumptions, heavy: set[str]
) -> list[tuple[str, float | int]]:
    branches = op.called()
    if op.attribute("true_computation"):  # printed before the false one, which is branch 0
        branches = branches[::-1]
    shares = _lookup(assumptions.shares, path)
    if shares is not None:
        if len(shares) != len(branches):
            raise InputError(f"operations: {path} has {len(branches)} branches, not {len(shares)}")
        return list(zip(branches, shares))
    costly = [branch for branch in branches if branch in heavy] or branches[:1]
    if len(costly) == 1:
        return [(costly[0], 1.0)]
    branch_module = lambda branch: dataclasses.replace(module, entry=branch)
    return [(max(costly, key=lambda branch: total(branch_module(branch), assumptions)), 1.0)]


def total(module: Module, assumptions: Assumptions = Assumptions()) -> float:
    """Operations of the whole program."""
    return float(sum(by_path(module, assumptions).values()))


def by_path(module: Module, assumptions: Assumptions = Assumptions()) -> dict[str, float]:
    """Operations by scope path, trips multiplied in."""
    amounts: dict[str, float] = defaultdict(float)
    for execution in executed(module, assumptions):
        amount = operations(execution.computation, execution.instruction, execution.path)
        if amount:
            amounts[execution.path] += execution.times * amount
    return dict(amounts)


def by_phase(paths: Mapping[str, float], phases: Sequence[str]) -> dict[str, float]:
    """Sums over the paths of each phase; "other" takes the rest. See `phase_of`."""
    amounts = dict.fromkeys(phases, 0.0) | {"other": 0.0}
    for path, amount in paths.items():
        amounts[phase_of(path, phases)] += amount
    return amounts


def phase_of(path: str, phases: Sequence[str]) -> str:
    """The first of the phases whose scopes ("learn" or "learn/backward") all occur in the path, in any order."""
    return next((phase for phase in phases if set(phase.split("/")) <= scopes(path)), "other")


def scopes(path: str) -> set[str]:
    """Names of a path, with "backward" for operations of differentiation and "recompute" for rematerialised ones."""
    names = set(re.split(r"[/()]", path))
    if "transpose" in names:
        names.add("recompute" if "rematted_computation" in names else "backward")
    return names


def operations(computation: hlo.Computation, op: Instruction, path: str = "") -> int:
    """Operations of one instruction, without those of computations that it calls."""
    shape = lambda index: computation.instructions[op.operands[index]].shape
    if op.opcode == "dot":
        return 2 * op.shape.size * math.prod(shape(0).dims[i] for i in op.integers("lhs_contracting_dims"))
    if op.opcode == "convolution":
        return 2 * _convolution(op, shape(0).dims, shape(1).dims)
    return _attention(computation, op, path) if kernel(op) else 0


def _convolution(op: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Multiply-accumulates; positions in the padding or between dilated elements do none."""
    first, second, out = re.split(r"_|->", op.attribute("dim_labels"))
    window = dict(re.findall(r"(\w+)=(\S+)", _window(op)))
    pick = lambda labels, dims, label: dims[labels.index(label)]
    positions, spatial = 1, sorted((label for label in out if label.isdigit()), key=int)
    for i, label in enumerate(spatial):
        field = lambda name, default, i=i: window[name].split("x")[i] if name in window else default
        positions *= _pairs(
            pick(first, left, label),
            pick(second, right, label),
            pick(out, op.shape.dims, label),
            stride=int(field("stride", 1)),
            low=int(field("pad", "0_0").split("_")[0]),
            left_dilation=int(field("lhs_dilate", 1)),
            right_dilation=int(field("rhs_dilate", 1)),
        )
    groups = int(op.attribute("batch_group_count") or 1)
    batch = pick(first, left, "b") // groups
    return batch * pick(out, op.shape.dims, "f") * pick(second, right, "i") * positions


def _window(op: Instruction) -> str:
    match = re.search(r"\bwindow=\{([^}]*)\}", op.attributes)
    return match[1] if match else ""


def _pairs(size: int, kernel: int, out: int, *, stride: int, low: int, left_dilation: int, right_dilation: int) -> int:
    """Pairs of output and kernel positions along one axis that meet an element of the input."""
    if kernel == 1 and low == 0 and left_dilation == 1:
        return min(out, -(-size // stride))
    indices = np.arange(out, dtype=np.int64)[:, None] * stride + np.arange(kernel) * right_dilation - low
    return int(np.count_nonzero((indices >= 0) & (indices % left_dilation == 0) & (indices // left_dilation < size)))


# Products of each attention kernel, in multiply-accumulates per pair and channel of queries and of values: scores and
# sum; the backward passes recompute the scores, then dp, and then dq, or dv and dk.
_KERNELS = {"fwd": (1, 1), "dq": (2, 1), "dkv": (2, 2)}


def kernel(op: Instruction) -> str | None:
    """Which of the splash kernels an instruction is, of "fwd", "dq" and "dkv"."""
    if op.opcode != "custom-call" or op.attribute("custom_call_target") != '"tpu_custom_call"':
        return None
    match = re.search(r"splash_m[hq]a_(fwd|dq|dkv)", op.path + op.name + op.attributes[:400])
    return match[1] if match else None


def kernel_operands(computation: hlo.Computation, op: Instruction) -> list[hlo.Shape]:
    """Queries, keys and values [..., tokens, channels], and further floating operands, of the queries' tokens.

    Sums over keys are among these in the backward kernels: [..., sublanes, tokens].
    """
    shapes = (computation.instructions[name].shape for name in op.operands)
    return [shape for shape in shapes if shape.dtype.startswith(("bf", "f")) and len(shape.dims) >= 3]


def _attention(computation: hlo.Computation, op: Instruction, path: str) -> int:
    """Operations of a splash kernel: on the pairs that the scope names, else on all of them."""
    query, key, value = kernel_operands(computation, op)[:3]
    scope_pairs = KERNEL_PAIRS.search(path)
    pairs = int(scope_pairs[1]) if scope_pairs else query.dims[-2] * key.dims[-2]
    of_queries, of_values = _KERNELS[kernel(op)]
    return 2 * pairs * math.prod(query.dims[:-2]) * (of_queries * query.dims[-1] + of_values * value.dims[-1])
