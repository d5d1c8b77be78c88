"""The text of an HLO module as data: computations, their instructions, and what each one calls.

Compiled modules (`compiled.as_text()`) and lowered ones (`lowered.as_text("hlo", debug_info=True)`) are read alike.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

from omnir1_jax.errors import InputError

BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_TYPE = re.compile(r"([a-z]+[0-9a-z]*)\[([^\]]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation|called_computations)=%?([\w.\-]+)")
_MANY = re.compile(r"\b(?:branch_computations|calls|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array's type."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        bits = BITS.get(self.dtype)
        if bits is None:
            digits = re.search(r"\d+", self.dtype)
            bits = int(digits[0]) if digits else 8
        return self.size * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. `shapes` has one entry, or those of a flattened tuple; `operands` are names; `attributes` is text."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    path: str
    root: bool

    @property
    def shape(self) -> Shape:
        return self.shapes[0]

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    def attribute(self, name: str) -> str | None:
        """The text after `name=` up to the next comma outside brackets, without surrounding brackets."""
        match = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return match[1].strip("{}") if match else None

    def integers(self, name: str) -> tuple[int, ...]:
        """An attribute such as `dimensions={0,2}`; empty if it is absent."""
        text = self.attribute(name)
        return tuple(int(x) for x in text.split(",")) if text else ()

    def called(self) -> list[str]:
        """Computations that it runs, in the order of the attributes, without a loop's condition."""
        names = [name.strip().lstrip("%") for match in _MANY.findall(self.attributes) for name in match.split(",")]
        return names or _CALLED.findall(self.attributes)

    def trip_count(self) -> int | None:
        """A loop's trip count if the compiler knows it."""
        match = re.search(r'known_trip_count"?[=:]\{"n":"(\d+)"\}', self.attributes)
        return int(match[1]) if match else None


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: Mapping[str, Instruction]

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @property
    def root(self) -> Instruction:
        return next(op for op in self if op.root)


@dataclasses.dataclass(frozen=True)
class Module:
    computations: Mapping[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Parses a module. InputError names the line that cannot be parsed."""
    computations, entry, name, lines, types = {}, None, None, {}, {}
    for number, line in _whole_lines(text):
        if name is None:
            header = _HEADER.match(line)
            if header:
                name, lines, types = header[2], {}, {}
                entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name], name = Computation(name, lines), None
        else:
            match = _LINE.match(line)
            if not match:
                raise InputError(f"HLO text, line {number}: not an instruction: {line.strip()[:80]}")
            op = _instruction(match[2], match[3], bool(match[1]), number)
            for operand in op.operands:
                if "#" in operand and operand not in lines:
                    _add_element(operand, lines, types)
            lines[op.name], types[op.name] = op, match[3]
    if entry is None:
        raise InputError("HLO text: there is no ENTRY computation")
    return Module(computations, entry)


def _whole_lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines; an instruction whose attributes span several lines, as kernels' do, becomes one."""
    start, parts, depth = 0, [], 0
    for number, line in enumerate(text.splitlines(), 1):
        if not parts and not _LINE.match(line):
            yield number, line
            continue
        start = start if parts else number
        parts.append(line)
        if line.count("{") != line.count("}") or depth:
            bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", line)
            depth += bare.count("{") - bare.count("}")
        if depth <= 0:
            yield start, " ".join(parts)
            parts, depth = [], 0


def _instruction(name: str, text: str, root: bool, number: int) -> Instruction:
    type_text, rest = _split_type(text)
    opcode, bracket, rest = rest.partition("(")
    if not bracket:
        raise InputError(f"HLO text, line {number}: {name} has no operands")
    end = _closing(rest)
    operands, attributes = rest[:end], rest[end + 1 :]
    match = _OP_NAME.search(attributes)
    shapes = _shapes(type_text)
    if opcode in ("parameter", "constant", "iota"):
        names, attributes = (), f"value={operands}{attributes}"
    else:
        names = tuple(part.split()[-1].lstrip("%") for part in _commas(operands) if part.strip())
    return Instruction(name, opcode.strip(), shapes, names, attributes, match[1] if match else "", root)


def _add_element(name: str, lines: dict[str, Instruction], types: dict[str, str]) -> None:
    """The instruction that newer compilers leave out: `x#2` as an operand is element 2 of the tuple `x`."""
    source, _, index = name.rpartition("#")
    if source not in lines and "#" in source:
        _add_element(source, lines, types)
    if source not in lines or not index.isdecimal():
        raise InputError(f"HLO text: there is nothing that the operand {name[:80]} could be an element of")
    element_types = _commas(_split_type(types[source])[0][1:-1])
    if int(index) >= len(element_types):
        raise InputError(f"HLO text: {source} has no element {index}")
    type_text = types[name] = element_types[int(index)].strip()
    path = lines[source].path
    lines[name] = Instruction(name, "get-tuple-element", _shapes(type_text), (source,), f"index={index}", path, False)


def _shapes(type_text: str) -> tuple[Shape, ...]:
    return tuple(Shape(dtype, _dims(dims)) for dtype, dims in _TYPE.findall(type_text))


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(x.strip().lstrip("<=")) for x in text.split(",") if x.strip())


def _split_type(text: str) -> tuple[str, str]:
    """Type and remainder of `type opcode(...)`."""
    if text.startswith("("):
        end = 1 + _closing(text[1:])
        return re.sub(r"/\*.*?\*/", "", text[: end + 1]), text[end + 1 :].lstrip()
    type_text, _, rest = text.partition(" ")
    return type_text, rest


def _closing(text: str) -> int:
    """Index of the bracket that closes the one opened before `text`; brackets within strings do not count."""
    depth, quoted = 1, False
    for match in re.finditer(r'[()"]', text):
        if match[0] == '"':
            quoted = not quoted
        elif not quoted:
            depth += 1 if match[0] == "(" else -1
            if depth == 0:
                return match.start()
    raise InputError(f"HLO text: a bracket is not closed in {text[:80]}")


def _commas(text: str) -> list[str]:
    """Parts between commas outside brackets of any kind."""
    text = re.sub(r"/\*.*?\*/", "", text)
    if not re.search(r"[({\[]", text):
        return text.split(",")
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        if letter in "({[":
            depth += 1
        elif letter in ")}]":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def constant(computation: Computation, name: str) -> int | None:
    """The value of `name` if it is a constant integer."""
    op = computation.instructions[name]
    if op.opcode in ("copy", "convert", "bitcast"):
        return constant(computation, op.operands[0])
    if op.opcode != "constant" or op.shape.dims:
        return None
    match = re.match(r"value=(-?\d+)\b", op.attributes)
    return int(match[1]) if match else None


def trip_count(module: Module, loop: Instruction) -> int | None:
    """Trips of a while loop: the compiler's annotation, or the bound of a condition `i < constant` (counted from 0).

    None for a loop whose end depends on data.
    """
    known = loop.trip_count()
    if known is not None:
        return known
    condition = module.computations[loop.attribute("condition").lstrip("%")]
    root = condition.root
    if root.opcode == "fusion":
        called = module.computations[root.called()[0]]
        if called.root.opcode != "compare":
            return None
        passed = dict(zip((op.name for op in called if op.opcode == "parameter"), root.operands))
        operands = called.root.operands
        known = [constant(condition, passed[x]) if x in passed else constant(called, x) for x in operands]
        direction = called.root.attribute("direction")
    elif root.opcode == "compare":
        known = [constant(condition, name) for name in root.operands]
        direction = root.attribute("direction")
    else:
        return None
    if direction == "LT" and known[0] is None and known[1] is not None:
        return known[1]
    return None
