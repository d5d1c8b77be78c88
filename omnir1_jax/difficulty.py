"""`python -m omnir1_jax.difficulty --config CONFIG --out LIST.jsonl`: which prompts are worth a group of completions.

Samples `--config.step.group` completions of every prompt of the config's datasets and writes their rewards, one line
per prompt with mean and spread (standard deviation). Lines are appended batch by batch; if interrupted, rerun the
command to resume. Training selects prompts by `data.<task>.difficulty`, `least_spread` and `order`.
"""

import pathlib

import jax
from absl import logging

from omnir1_jax import cli
from omnir1_jax.config import settings
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders
from omnir1_jax.parallel import start
from omnir1_jax.training import difficulty

_CONFIG = settings.define()
_OUT = cli.flag.string("out", None, "File of the list, a new one or an earlier list, which is completed.")
_WORKDIR = cli.flag.string("workdir", "", "A run whose policy samples; default the config's weights.")
_STEP = cli.flag.string("step", "", "Which of its checkpoints: best, last (default), or a number.")
_LIMIT = cli.flag.integer("limit", 0, "Prompts of each task, drawn at random; 0: all.", lower_bound=0)
_JOIN = start.flags()


def main(_) -> None:
    cli.need(config=_CONFIG, out=_OUT)
    logging.set_verbosity(logging.WARNING)
    out = pathlib.Path(_OUT.value)
    if "://" in _OUT.value or folders.is_link(out) or out.is_dir():
        raise InputError(f"--out: {_OUT.value} is an address, a link or a folder; name a file")
    _JOIN()
    with start.ends_together():
        start.check()
        run, digest = difficulty.build(_CONFIG.value, _WORKDIR.value, _STEP.value)
        lines = difficulty.complete(out, run, digest, _LIMIT.value)
    if jax.process_index() == 0:
        flat = sum(line["spread"] == 0 for line in lines)
        print(f"{out}: {len(lines)} prompts, {flat} of them flat: all completions earn the same")


if __name__ == "__main__":
    cli.run(main, settings.parse)
