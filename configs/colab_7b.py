"""One TPU chip of 16 GiB: Qwen2.5-Omni-7B in 4 bits with an adapter, groups of 4, 12 frames, SAM 2.1 small.

Planned: one chip of v5e at 10.0 GiB, 5.7 s per step, 20 minutes for all of them. To expect: nothing is published for
weights in 4 bits; the paper's 7B is in docs/reproduce.md.
"""

import pathlib
import runpy


def get_config():
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "colab.py"))["get_config"]()
    c.name = "colab_7b"
    c.thinker.path = "weights/Qwen2.5-Omni-7B"
    c.thinker.frozen = "int4"
    c.sam2.path = "weights/sam2.1-hiera-small"
    return c
