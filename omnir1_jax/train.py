"""`python -m omnir1_jax.train --config configs/toy.py --workdir DIR`: trains, and resumes an interrupted run.

The work directory gets `config.json`, `metrics.jsonl`, `rollouts.jsonl`, `pictures/`, `tensorboard/`, `checkpoints/`,
and at the end `weights/` (Hugging Face layout), `summary.json` and `report.html`.

Every process ends with 0 (finished), 2 (invalid, or a failure that a rerun would repeat) or 42 (rerun to resume).
"""

import sys

from absl import logging

from omnir1_jax import cli
from omnir1_jax.config import settings
from omnir1_jax.errors import AGAIN
from omnir1_jax.inference.validation import Validation
from omnir1_jax.parallel import start
from omnir1_jax.planning import batches, rates
from omnir1_jax.training.loop import train

COUNTER, SHAPES = rates.counter, batches.of_run
_CONFIG = settings.define()
_WORKDIR = cli.flag.string("workdir", None, "Directory of the run; an earlier run there is resumed.")
_JOIN = start.flags()


def main(_) -> None:
    cli.need(config=_CONFIG, workdir=_WORKDIR)
    logging.set_verbosity(logging.WARNING)  # orbax logs every step
    _JOIN()
    with start.ends_together():
        start.check()
        choices = dict(validation=Validation, rates=COUNTER, shapes=SHAPES)
        finished = train(_CONFIG.value, _WORKDIR.value, **choices) is not None
    if not finished:
        sys.exit(AGAIN)


if __name__ == "__main__":
    cli.run(main, settings.parse)
