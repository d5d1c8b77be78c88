"""The settings that the old run saved, as a config file: `--config tests/old_run/resume.py`."""

import pathlib

from omnir1_jax.config import settings


def get_config():
    return settings.read(pathlib.Path(__file__).parent / "run/config.json")
