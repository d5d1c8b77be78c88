"""ReVOS on 8 chips of 16 GiB: Qwen2.5-Omni-7B with an adapter, otherwise the paper's sizes, SAM 2.1 large in the loop.

Planned: 8 chips of v5e at 10.2 GiB each, 15.3 s per step, 1.4 hours for the epoch. To expect: nothing is published
with an adapter; the full decoder's row is in revos.py.

Put the weights and the dataset where the paths of revos.py say, or name yours with --config.thinker.path=DIRECTORY,
--config.sam2.path=DIRECTORY and --config.data_root=DIRECTORY.
"""

import pathlib
import runpy


def get_config():
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "revos.py"))["get_config"]()
    c.name = "revos_lora"
    c.lora.rank = 64
    c.lora.alpha = 128.0
    c.optimizer.learning_rate = 1e-5
    c.optimizer.warmup_steps = 10
    c.optimizer.weight_decay = 0.0
    c.sam2.object_chunk = 2
    c.step.score_chunk = 128
    return c
