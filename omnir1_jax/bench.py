"""`python -m omnir1_jax.bench --only NAME[,NAME]`: speed and memory, both sides measured in one run.

Each benchmark is a module of `omnir1_jax.benches` with `run(quick) -> dict`: figures by name, JSON-ready.
"""

import importlib
from typing import Any

from absl import flags

from omnir1_jax import cli
from omnir1_jax.errors import InputError
from omnir1_jax.files import output_file

BENCHES = ("step", "log", "thinker", "quantised", "sam2", "data", "operations", "evaluate")

_ONLY = flags.DEFINE_list("only", list(BENCHES), "Which benchmarks to run, by name.")
_QUICK = flags.DEFINE_bool("quick", False, "Few repeats at small sizes: checks the command, not the speed.")
_JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def main(_) -> None:
    unknown = [name for name in _ONLY.value if name not in BENCHES]
    if unknown:
        raise InputError(f"--only: no benchmark named {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    if _JSON.value:
        output_file.check(_JSON.value, "--json", is_output)
    results = {}
    for name in _ONLY.value:
        print(f"== {name}", flush=True)
        results[name] = importlib.import_module(f"omnir1_jax.benches.{name}").run(_QUICK.value)
        for key, value in results[name].items():
            print(
                f"{name}.{key}: {value:.4g}" if isinstance(value, float) else f"{name}.{key}: {value}",
                flush=True,
            )
    if _JSON.value:
        output_file.write(_JSON.value, "--json", results, is_output)


def is_output(value: Any) -> bool:
    """Whether a file's content is what `--json` writes: figures by the names of benchmarks."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(name in BENCHES and isinstance(figures, dict) for name, figures in value.items())
    )


if __name__ == "__main__":
    cli.run(main)
