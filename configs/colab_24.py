"""One TPU chip of 16 GiB: Qwen2.5-Omni-3B in 8 bits with an adapter, groups of 4, the paper's 24 frames.

Planned: one chip of v5e at 7.3 GiB, 4.6 s per step, 15 minutes for all of them. To expect: nothing is published at 3B.
"""

import pathlib
import runpy


def get_config():
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "colab.py"))["get_config"]()
    c.name = "colab_24"
    c.thinker.frozen = "int8"
    c.sam2.path = "weights/sam2.1-hiera-small"
    c.data.vos.frames = 24
    return c
