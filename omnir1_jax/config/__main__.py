"""Writes the reference page of all settings: `python -m omnir1_jax.config`, in a checkout."""

import pathlib

from omnir1_jax.config import reference

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs/settings.md"

if __name__ == "__main__":
    PAGE.write_text(reference.page())
    print(PAGE)
