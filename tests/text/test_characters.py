"""The stored tables of Unicode characters."""

import numpy as np

from omnir1_jax.text import characters


def test_stored_tables_are_what_the_tokenizers_library_says(monkeypatch):
    """If not: `python -c "from omnir1_jax.text import characters; characters.store()"`."""
    fresh = characters.work_out()
    with np.load(characters.STORED) as stored:
        version = str(stored["version"])
    assert version == characters.tokenizers.__version__
    for name, table in characters.host_tables().items():
        np.testing.assert_array_equal(table, fresh[name])
    monkeypatch.setattr(characters.tokenizers, "__version__", "0")
    monkeypatch.setattr(characters, "work_out", lambda: {"word": np.arange(3)})
    assert characters.host_tables.__wrapped__()["word"].size == 3
