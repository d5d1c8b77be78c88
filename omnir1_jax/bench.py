"""`python -m omnir1_jax.bench --only NAME[,NAME]`: speed and memory, both sides measured in one run.

Each benchmark is a module of `omnir1_jax.benches` with `run(quick) -> dict`: figures by name, JSON-ready.
"""

import importlib
import json

from absl import flags

from omnir1_jax import cli
from omnir1_jax.errors import InputError

BENCHES = ("thinker", "sam2", "text", "data", "preprocess", "metrics", "operations", "evaluate")

_ONLY = flags.DEFINE_list("only", list(BENCHES), "Which benchmarks to run, by name.")
_QUICK = flags.DEFINE_bool("quick", False, "Few repeats at small sizes: checks the command, not the speed.")
_JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def main(_) -> None:
    unknown = [name for name in _ONLY.value if name not in BENCHES]
    if unknown:
        raise InputError(f"--only: no benchmark named {', '.join(unknown)}; there are {', '.join(BENCHES)}")
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
        with cli.atomic_path(_JSON.value) as scratch:
            scratch.write_text(json.dumps(results, indent=2, sort_keys=True))


if __name__ == "__main__":
    cli.run(main)
