"""Sections of settings: fields with a default, a sentence that explains them, and a rule."""

import dataclasses
import functools
import math
import typing
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from omnir1_jax.config import lookup
from omnir1_jax.errors import InputError

MAX = 2**31 - 1  # the range of an int32 on a device


@runtime_checkable
class Rule(Protocol):
    """The allowed values of a setting."""

    def fault(self, value: Any) -> str | None:
        """Why a value is invalid, as the end of a sentence that begins with it; None if it is valid."""


class Whole(NamedTuple):
    """A whole number; `also`: a further value with a special meaning, such as -1."""

    low: int = 0
    high: int = MAX
    multiple: int = 1
    also: int | None = None

    def fault(self, value: Any) -> str | None:
        is_valid = type(value) is int and self.low <= value <= self.high and value % self.multiple == 0
        if is_valid or (type(value) is int and value == self.also):
            return None
        return f"is not a {self}"

    def __str__(self) -> str:
        kind = "whole number" if self.multiple == 1 else f"multiple of {self.multiple}"
        limits = f"from {self.low}" if self.high == MAX else f"from {self.low} to {self.high}"
        return f"{kind} {limits}" + ("" if self.also is None else f", or {self.also}")


class Number(NamedTuple):
    """A finite number; `above`, `below`: the limit itself is excluded."""

    low: float = 0.0
    high: float = math.inf
    above: bool = False
    below: bool = False

    def fault(self, value: Any) -> str | None:
        is_valid = type(value) in (int, float) and math.isfinite(value) and self.low <= value <= self.high
        if is_valid and not (self.above and value == self.low) and not (self.below and value == self.high):
            return None
        return f"is not a finite {self}"

    def __str__(self) -> str:
        limits = [] if self.low == -math.inf else [f"{'above' if self.above else 'from'} {self.low:g}"]
        limits += [] if self.high == math.inf else [f"{'below' if self.below else 'to'} {self.high:g}"]
        return " ".join(["number", *limits])


class Flag(NamedTuple):
    """True or False."""

    def fault(self, value: Any) -> str | None:
        return None if isinstance(value, bool) else "is neither True nor False"

    def __str__(self) -> str:
        return "True or False"


class Text(NamedTuple):
    """A text."""

    empty: bool = True

    def fault(self, value: Any) -> str | None:
        if not isinstance(value, str):
            return "is not a text"
        return None if value or self.empty else "is empty"

    def __str__(self) -> str:
        return "text"


class Choice(NamedTuple):
    """One of some names; `user_defined`: or the user's own object, as module:object or file.py:object."""

    names: Collection[str]
    empty: bool = False
    user_defined: bool = False

    def fault(self, value: Any) -> str | None:
        if isinstance(value, str) and (value in self.names or (self.user_defined and lookup.is_path(value))):
            return None
        if value == "" and self.empty:
            return None
        or_path = ", nor module:object or file.py:object" * self.user_defined
        return f"is none of {self}{', nor empty' * self.empty}{or_path}"

    def __str__(self) -> str:
        return ", ".join(self.names)


class Each(NamedTuple):
    """A sequence of values of one rule."""

    rule: Any
    least: int = 0

    def fault(self, value: Any) -> str | None:
        if not isinstance(value, tuple | list):
            return "is not a sequence"
        if len(value) < self.least:
            return f"has fewer than {self.least} entries"
        return next((f"has an entry that {fault}" for entry in value if (fault := self.rule.fault(entry))), None)

    def __str__(self) -> str:
        return f"tuple: {self.rule}"


class Weights(NamedTuple):
    """User-defined objects, each with a number: pairs, since file names have dots, which keys may not."""

    def fault(self, value: Any) -> str | None:
        if not isinstance(value, tuple | list):
            return f"is not a sequence of {self}"
        for pair in value:
            if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
                return f"has an entry that is not one of {self}"
            if not lookup.is_path(pair[0]) or Number(-math.inf).fault(pair[1]):
                return f"has an entry that is not one of {self}"
        return None

    def __str__(self) -> str:
        return "pairs of module:object or file.py:object and a number"


class Rising(NamedTuple):
    """Two whole numbers, the second at least the first."""

    low: int = 0

    def fault(self, value: Any) -> str | None:
        if isinstance(value, tuple | list) and len(value) == 2 and not any(map(Whole(self.low).fault, value)):
            return None if value[0] <= value[1] else "falls: the least comes first"
        return f"is not {self}"

    def __str__(self) -> str:
        return f"two whole numbers from {self.low}"


class Fields(NamedTuple):
    """A mapping with some of a dataclass's fields, each of its type; counts are positive unless 0 is the default.

    Attributes:
      kind: the dataclass; None for a mapping whose keys are checked elsewhere.
      excluded: fields that are not settings here.
    """

    kind: type | None = None
    excluded: tuple[str, ...] = ()

    def fault(self, value: Any) -> str | None:
        return None if isinstance(value, Mapping) else "is not a section of settings"

    def __str__(self) -> str:
        return "section"


class Sections(NamedTuple):
    """A mapping of sections of one kind, by user-defined names."""

    kind: type["Section"]

    def fault(self, value: Any) -> str | None:
        return None if isinstance(value, Mapping) else f"is not a section of {self.kind.__name__.lower()}s"

    def read(self, entry: Any, name: str) -> "Section":
        if not isinstance(entry, Mapping) or rules(self.kind).keys() - entry.keys():
            raise InputError(
                f"{name}: is not a {self.kind.__name__.lower()}; see settings.{self.kind.__name__.lower()}"
            )
        return read(self.kind, entry, name)

    def __str__(self) -> str:
        return f"name: {self.kind.__name__.lower()}"


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of settings, whose values follow the rules of its fields."""

    def __post_init__(self):
        for name, rule in rules(type(self)).items():
            if isinstance(rule, Rule):
                check(f"{type(self).__name__.lower()}.{name}", getattr(self, name), rule)


S = TypeVar("S", bound=Section)


def setting(default: Any, doc: str, rule: Rule | None = None) -> Any:
    """A field of a section.

    Args:
      doc: what it is, for the reference page: a noun phrase, and what values mean that are not obvious.
      rule: its allowed values, if its type does not give them (`of_type`).
    """
    metadata = {"doc": doc, "rule": rule}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@functools.cache
def rules(kind: type) -> dict[str, Any]:
    """The rule of every field of a dataclass; the rule of a section is its class."""
    hints = typing.get_type_hints(kind)
    rule_of = lambda field: field.metadata.get("rule")
    return {
        f.name: of_type(hints[f.name], f.default) if rule_of(f) is None else rule_of(f)
        for f in dataclasses.fields(kind)
    }


def shared(kind: type, section: Section) -> dict[str, Any]:
    """The settings of a section that a dataclass has under the same names."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in vars(section).items() if name in names}


def flat(kind: type, prefix: str = "") -> dict[str, Rule]:
    """The rules of all settings of a section and those in it, by dotted name."""
    by_name: dict[str, Rule] = {}
    for name, rule in rules(kind).items():
        by_name |= flat(rule, f"{prefix}{name}.") if isinstance(rule, type) else {prefix + name: rule}
    return by_name


def of_type(hint: Any, default: Any) -> Any:
    """The rule of a field of this type; None where a type has none."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return hint if issubclass(hint, Section) else Fields(hint)
    if origin is tuple:
        return Each(of_type(parts[0], 0))
    if origin is Literal:
        return Choice(parts)
    if origin is Mapping:
        return Sections(parts[1]) if dataclasses.is_dataclass(parts[1]) else Fields()
    if hint is int:
        return Whole(1 if default is dataclasses.MISSING else min(default, 0))
    return {float: Number(-math.inf), bool: Flag(), str: Text(empty=default == "")}.get(hint)


def check(name: str, value: Any, rule: Rule) -> None:
    """Raises InputError, naming the setting, if the value breaks the rule."""
    if fault := rule.fault(value):
        raise InputError(f"{name}: {' '.join(repr(value).split())} {fault}")
    if isinstance(rule, Fields) and rule.kind is not None:
        known_rules = {key: inner for key, inner in rules(rule.kind).items() if key not in rule.excluded}
        for key, part in value.items():
            if key not in known_rules:
                raise InputError(f"{name}.{key}: no such setting; there are {', '.join(known_rules)}")
            check(f"{name}.{key}", part, known_rules[key])


def read(kind: type[S], values: Any, name: str = "") -> S:
    """A section from plain values, lists as tuples; all of its settings are given.

    Args:
      name: the section's own, dotted; empty for that of all settings.

    Raises:
      InputError: a value breaks its rule, a name is unknown or lacking; names the setting.
    """
    known_rules, arguments = rules(kind), {}
    if not isinstance(values, Mapping):
        raise InputError(f"{name}: {values!r} is not a section of settings")
    for key in (*known_rules, *values):
        full_name, rule = f"{name}.{key}" if name else key, known_rules.get(key)
        if rule is None:
            raise InputError(f"{full_name}: no such setting; there are {', '.join(known_rules)}")
        if key not in values:
            raise InputError(f"{full_name}: is not set")
        value = values[key]
        if isinstance(rule, type):
            value = read(rule, value, full_name)
        else:
            check(full_name, value, rule)
        if isinstance(rule, Sections):
            value = {label: rule.read(entry, f"{full_name}.{label}") for label, entry in value.items()}
        arguments[key] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)
