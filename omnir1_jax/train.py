"""`python -m omnir1_jax.train --config configs/toy.py --workdir DIR`: trains, and resumes where it was stopped.

The work directory gets `config.json`, `metrics.jsonl`, `rollouts.jsonl`, `pictures/`, `tensorboard/`, `checkpoints/`,
and at the end `weights/` (Hugging Face layout), `summary.json` and `report.html`.

Every process ends with 0 (finished), 2 (invalid, or a failure that would come again) or 42 (run again to resume).
"""

import sys

from absl import logging

from omnir1_jax import cli
from omnir1_jax.config import settings
from omnir1_jax.errors import AGAIN
from omnir1_jax.inference.validation import Validation
from omnir1_jax.parallel import start
from omnir1_jax.planning import rates
from omnir1_jax.training.loop import train

COUNTER = rates.counter
_CONFIG = settings.define()
_WORKDIR = cli.flag.string("workdir", None, "Directory of the run; an earlier run there is resumed.")
_COORDINATOR = cli.flag.string(
    "coordinator",
    "",
    "Joins the processes of one run: 'auto' on TPU pods, GKE, Slurm and MPI; elsewhere HOST:PORT of process 0, with "
    "--processes and --process.",
)
_PROCESSES = cli.flag.integer("processes", 0, "How many processes the run has, with --coordinator=HOST:PORT.")
_PROCESS = cli.flag.integer("process", -1, "Which of them this is, from 0, with --coordinator=HOST:PORT.")


def main(_) -> None:
    cli.need(config=_CONFIG, workdir=_WORKDIR)
    logging.set_verbosity(logging.WARNING)  # orbax tells of every step
    start.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    with start.ends_together():
        start.check()
        finished = train(_CONFIG.value, _WORKDIR.value, validation=Validation, rates=COUNTER) is not None
    if not finished:
        sys.exit(AGAIN)


if __name__ == "__main__":
    cli.run(main, settings.parse)
