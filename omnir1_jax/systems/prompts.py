"""Prompts as small text files. Words in braces, such as {query}, are filled in; other braces stay as they are."""

import pathlib
import re
from collections.abc import Collection

import numpy as np

from omnir1_jax.errors import InputError
from omnir1_jax.files import regular_file

FOLDER = pathlib.Path(__file__).parent / "templates"
GROUNDING = ("system", "description")  # fields of System 2's prompt; those of System 1's are the tasks'
OPTIONAL = ("system", "duration", "fps", "example")  # optional in a user's template
FIELDS = (*OPTIONAL, "query", "options", "description")


def load(name: str, fields: Collection[str], path: str | None = None) -> str:
    """The template `name` of this package, or a user's file; without the last newline.

    Args:
      fields: of the template.

    Raises:
      InputError: a file that cannot be read, or one with a missing or unknown field.
    """
    file = pathlib.Path(path) if path else FOLDER / f"{name}.txt"
    try:
        text = regular_file.read_bytes(file).decode("utf-8-sig")
    except ValueError as error:
        raise InputError(f"prompts.{name}: {file} cannot be read ({error})") from error
    text = text.removesuffix("\n") if name != "grounding" else text
    used = {field for field in FIELDS if f"{{{field}}}" in text}
    missing = {*fields} - used - {*OPTIONAL}
    if missing or used - {*fields}:
        field_name = sorted(missing or used - {*fields})[0]
        raise InputError(f"prompts.{name}: {file} {'lacks' if missing else 'has the unknown field'} {{{field_name}}}")
    return text


def render(template: str, **values: str) -> str:
    """The template with its fields filled in, in one pass: a value may hold braces."""
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template) if values else template


def clock(seconds: float) -> str:
    """Seconds as mm:ss.ff, the notation of plans."""
    hundredths = round(seconds * 100)
    return f"{hundredths // 6000:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"


def example(duration: float, rng: np.random.Generator) -> str:
    """Two example objects of a plan at random times within the clip, so that the model copies none."""
    starts = np.sort(rng.uniform(0.0, max(duration - 0.5, 0.0), 2))
    objects = (
        f'{{"start_time": "{clock(start)}", "end_time": "{clock(start + 0.5)}", "description": "..."}}'
        for start in starts
    )
    return " ".join(objects)
