"""The reference page of all settings, docs/settings.md, from their sections: `python -m omnir1_jax.config`."""

import dataclasses
from collections.abc import Iterator

from omnir1_jax.config import schema
from omnir1_jax.config.sections import Settings, Task

HEAD = """# Settings

Made by `python -m omnir1_jax.config` from `omnir1_jax/config/sections.py`; edit that file.

A config file sets them in Python (`c.step.group = 8`), the command line one by one (`--config.step.group=8`). Wherever
a setting takes a registered name, it also takes an object of your own, as `module:object` or `file.py:object`.
"""


def page() -> str:
    """The page as Markdown: one table per section."""
    kinds = {name: rule for name, rule in schema.rules(Settings).items() if isinstance(rule, type)}
    parts = [HEAD, *_section("The run", "", Settings)]
    for name, kind in kinds.items():
        parts += _section(f"`{name}`", f"{name}.", kind)
    return "\n".join([*parts, *_section("`data.<task>`", "data.<task>.", Task)]) + "\n"


def _section(title: str, prefix: str, kind: type[schema.Section]) -> Iterator[str]:
    yield f"\n## {title}\n\n{' '.join(str(kind.__doc__).split())}\n"
    yield "| setting | values | default | meaning |\n|---|---|---|---|"
    yield from _rows(prefix, kind)


def _rows(prefix: str, kind: type) -> Iterator[str]:
    for field in dataclasses.fields(kind):
        rule = schema.rules(kind)[field.name]
        if isinstance(rule, type):
            continue
        default = "{}" if field.default is dataclasses.MISSING else repr(field.default)
        cells = (f"`{prefix}{field.name}`", str(rule), f"`{default}`", field.metadata["doc"])
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        if isinstance(rule, schema.Fields) and rule.kind is not None:
            yield from _rows(f"{prefix}{field.name}.", rule.kind)
