"""`python -m omnir1_jax.profile WORKDIR`: seconds by stage of the steps that a run traced (`config.profile`).

Seconds are those of the devices' operations, summed over all devices and threads. With `--json` as JSON.
"""

import argparse
import json
from collections.abc import Sequence

from absl.flags import argparse_flags

from omnir1_jax import cli
from omnir1_jax.planning import trace


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse_flags.ArgumentParser(prog="python -m omnir1_jax.profile", description=__doc__)
    parser.add_argument("trace", help="work directory of a run, or its folder profile")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv[1:])


def main(args: argparse.Namespace) -> None:
    tasks = trace.read(args.trace)
    if args.json:
        print(json.dumps({task: traced._asdict() for task, traced in tasks.items()}, indent=2))
    else:
        print(trace.table(tasks))


if __name__ == "__main__":
    cli.run(main, flags_parser=parse)
