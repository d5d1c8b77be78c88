"""The reference page is that of the settings as they are."""

import pathlib

from omnir1_jax.config import reference

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs/settings.md"


def test_the_page_of_settings_is_current():
    assert PAGE.read_text() == reference.page(), "run `python -m omnir1_jax.config`"


def test_it_has_types_defaults_and_sentences():
    page = reference.page()
    assert "| `step.top_p` | number above 0 to 1 | `0.95` | probability mass that is sampled from; 1: all |" in page
    assert "| `data.<task>.sound` | ignore, optional, required | `'ignore'` |" in page
