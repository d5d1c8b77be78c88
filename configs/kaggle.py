"""Kaggle's TPU, 8 chips of 16 GiB: Qwen2.5-Omni-7B in 8 bits with an adapter, the paper's sizes, SAM 2.1 large.

Planned: 8 chips of v5e at 8.0 GiB each, 13.7 s per step, 1.2 hours for the epoch. To expect: nothing is published with
an adapter; the full decoder's row is in revos.py.

A session ends by itself after some hours: checkpoints are those of the adapter, and the next session resumes.

Put the weights and the dataset where the paths of revos.py say, or name yours with --config.thinker.path=DIRECTORY,
--config.sam2.path=DIRECTORY and --config.data_root=DIRECTORY.
"""

import pathlib
import runpy


def get_config():
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "revos_lora.py"))["get_config"]()
    c.name = "kaggle"
    c.thinker.frozen = "int8"
    return c
