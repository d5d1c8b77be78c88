"""Everything at the size of two CPU cores: the synthetic world, small models of the same code, both video families.

Two CPU cores, 4 GiB: 2.8 CPU seconds per step, 10 minutes for all of them. To expect: J&F 61.0 from 51.4. Its world
leaves little to reason about; the quickstart trains configs/toy_fleeting.py.
"""

import pathlib

from omnir1_jax.config.settings import datasets, defaults, task

WEIGHTS = pathlib.Path(__file__).parent / "toy_weights"
CELL = 16 * 16  # pixels of a visual token


def get_config():
    c = defaults()
    c.name = "toy"
    c.steps = 200

    c.thinker.path = str(WEIGHTS / "thinker")  # the cold start of configs/toy_pretrain.py
    c.thinker.dtype = c.thinker.param_dtype = "float32"
    c.sam2.path = str(WEIGHTS / "sam2")
    c.sam2.side = 64
    c.sam2.object_chunk, c.sam2.frame_chunk = 8, 64  # a group has one object each as a rule
    c.sam2.dtype = c.sam2.memory_dtype = "float32"

    # Short prompts and small frames: 24 visual tokens of a frame for System 2, of a pair of frames for System 1.
    for name in ("system", "vos", "refavs", "grounding"):
        c.prompts[name] = f"toy_{name}"
    c.prompts.text_tokens = 64
    c.prompts.max_aspect = 1.6
    c.pixels.policy_video = c.pixels.policy_image = c.pixels.sharp = (12 * CELL, 24 * CELL)

    # Plain queries name one shape by its looks; what is left to learn is which shape that is and when it can be seen.
    world = dict(config="toy", clips=2000)
    c.data = dict(
        vos=task(
            datasets=datasets(synthetic=world | dict(family="vos", plain=True)), batch_size=8, weight=0.5,
            frames=8, target="some_frame",
        ),
        refavs=task(
            datasets=datasets(synthetic=world | dict(family="refavs", heard=True)), batch_size=16, weight=0.5,
            frames=1, sampling="first", sound="required", audio_seconds=4.0, target="first_frame",
        ),
    )  # fmt: skip
    c.loader.threads = 1

    c.step.group = 8
    c.step.max_tokens = 96
    c.step.grounding_tokens = 32
    c.step.completion_bytes = 640
    c.step.grounding_bytes = 256
    c.step.description_bytes = 64
    c.step.description_tokens = 32
    # The paper's formula; boxes count most, since at this size they say most about what was chosen.
    c.reward.preset = "paper"
    c.reward.terms = dict(alignment=4.0, segmentation=4.0, length_bonus=0.0)
    c.grpo.beta = 0.02

    c.optimizer.learning_rate = 1e-3
    c.optimizer.clip_norm = 1.0
    c.checkpoint.every = 25
    c.log.pictures_every = 20
    return c
