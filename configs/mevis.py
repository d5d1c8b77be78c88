"""As revos.py, on MeViS: expressions about motion.

Planned: the shapes are those of revos.py, so are memory and seconds. To expect: the paper's only row of Omni-R1 on
MeViS is with Sa2VA-1B as System 2, J&F 55.4 on valid_u; the base by itself has 33.6.
"""

import pathlib
import runpy

from omnir1_jax.config.settings import datasets


def get_config():
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "revos.py"))["get_config"]()
    c.name = "mevis"
    c.steps = 200
    c.data.vos.datasets = datasets(mevis=dict(root="MeViS", split="train"))
    return c
