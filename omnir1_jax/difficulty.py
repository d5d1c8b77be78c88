"""`python -m omnir1_jax.difficulty --config CONFIG --out LIST.jsonl`: which prompts are worth a group of completions.

Samples `--config.step.group` completions of every prompt of the config's datasets and writes what they earn, a line a
prompt with mean and spread (standard deviation). Training takes those that spread by the settings
`data.<task>.difficulty` and `data.<task>.least_spread`.
"""

import json

from absl import logging
from etils import epath

from omnir1_jax import cli
from omnir1_jax.config import settings
from omnir1_jax.data import difficulty as lists
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders
from omnir1_jax.training import difficulty

_CONFIG = settings.define()
_OUT = cli.flag.string("out", None, "File of the list, a new one or an earlier list.")
_WORKDIR = cli.flag.string("workdir", "", "A run whose policy samples; default the config's weights.")
_STEP = cli.flag.string("step", "", "Which of its checkpoints: best, last (default), or a number.")
_LIMIT = cli.flag.integer("limit", 0, "Prompts of each task, drawn at random; 0: all.", lower_bound=0)


def main(_) -> None:
    cli.need(config=_CONFIG, out=_OUT)
    logging.set_verbosity(logging.WARNING)
    out = epath.Path(_OUT.value)
    if folders.is_link(out) or out.is_dir():
        raise InputError(f"--out: {out} is a link or a folder; name a file")
    if out.exists() and not lists.read(str(out), "--out"):
        raise InputError(f"--out: {out} was not written by this command; name another file")
    made = difficulty.build(_CONFIG.value, _WORKDIR.value, _STEP.value)
    count = flat = 0
    with cli.atomic_path(out) as scratch, scratch.open("w") as file:
        for line in difficulty.measured(made, _LIMIT.value):
            file.write(json.dumps(line) + "\n")
            count, flat = count + 1, flat + (line["spread"] == 0)
    print(f"{out}: {count} prompts, {flat} of them flat: all completions earn the same")


if __name__ == "__main__":
    cli.run(main, settings.parse)
