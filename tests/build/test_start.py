"""What a start does before its first step: nothing is compiled for what is read."""

import importlib.util

import jax
import pytest

from omnir1_jax.build import models
from tests.runs import ROOT


@pytest.fixture
def toy():
    spec = importlib.util.spec_from_file_location("toy", ROOT / "configs/toy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.fixture
def compiled():
    """Names of the programs that are compiled, or read from the cache of compiled programs."""
    names = []

    def heard(event: str, seconds: float, **of) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(of["fun_name"])

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(heard)
    yield names
    jax.monitoring.unregister_event_duration_listener(heard)


def test_weights_and_tables_that_are_read_need_no_program(toy, compiled):
    jax.random.key(0)  # SAM 2's parameters have the shapes of those that a key gives
    assert compiled
    compiled.clear()
    models.frozen(toy, models.load(toy, models.sizes(toy)))
    assert compiled == []
