"""Prompts as small text files. Words in braces, such as {query}, are filled in; other braces stay as they are."""

import pathlib
import re

import numpy as np

from omnir1_jax.errors import InputError
from omnir1_jax.files import regular_file

FOLDER = pathlib.Path(__file__).parent / "templates"
FIELDS = {
    "system": (),
    "vos": ("query", "duration", "fps", "example"),
    "refavs": ("query",),
    "refcocog": ("query",),
    "qa": ("query", "options"),
    "qa_thinking": ("query", "options"),
    "question": ("query",),
    "yes_no": ("query",),
    "yes_no_thinking": ("query",),
    "grounding": ("system", "description"),
}
_FIELD = re.compile(r"\{(" + "|".join(sorted({field for fields in FIELDS.values() for field in fields})) + r")\}")


def load(name: str, path: str | None = None) -> str:
    """The template `name` of this package, or the user's own in its place; without the file's last newline.

    Raises:
      InputError: an unknown name, a file that cannot be read, or one that lacks a field or has one too many.
    """
    if name not in FIELDS:
        raise InputError(f"prompt {name!r}: there are {', '.join(FIELDS)}")
    file = pathlib.Path(path) if path else FOLDER / f"{name}.txt"
    try:
        text = regular_file.read_bytes(file).decode("utf-8-sig")
    except ValueError as error:
        raise InputError(f"prompts.{name}: {file} cannot be read ({error})") from error
    text = text.removesuffix("\n") if name != "grounding" else text
    found = {match[1] for match in _FIELD.finditer(text)}
    # The example and the clip's length help but may be left out by a user's own wording.
    lacking = set(FIELDS[name]) - found - {"example", "duration", "fps", "system"}
    if lacking or found - set(FIELDS[name]):
        odd = sorted(lacking or found - set(FIELDS[name]))[0]
        raise InputError(f"prompts.{name}: {file} {'lacks' if lacking else 'has the unknown field'} {{{odd}}}")
    return text


def render(template: str, **values: str) -> str:
    """The template with its fields filled in, in one pass: a value may hold braces."""
    return _FIELD.sub(lambda match: values.get(match[1], match[0]), template)


def clock(seconds: float) -> str:
    """Seconds as mm:ss.ff, the notation of plans."""
    hundredths = round(seconds * 100)
    return f"{hundredths // 6000:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"


def example(duration: float, rng: np.random.Generator) -> str:
    """Two made-up objects of a plan at random times within the clip, so that the model does not copy any."""
    starts = np.sort(rng.uniform(0.0, max(duration - 0.5, 0.0), 2))
    objects = (
        f'{{"start_time": "{clock(start)}", "end_time": "{clock(start + 0.5)}", "description": "..."}}'
        for start in starts
    )
    return " ".join(objects)
