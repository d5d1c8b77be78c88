"""The toy in the fleeting world (docs/toy_world.md): one frame of 16 is shown to System 2, queries go by sound too.

Two CPU cores, 5 GiB: 2.5 s per step, 9 minutes for all of them, 15 with install and evaluations. To expect: J&F 69.3
from 45.8, and more in docs/quickstart.md.
"""

import pathlib
import runpy

from omnir1_jax.config.settings import datasets, task


def get_config():
    c = runpy.run_path(str(pathlib.Path(__file__).parent / "toy.py"))["get_config"]()
    c.name = "toy_fleeting"
    c.thinker.path = str(pathlib.Path(__file__).parent / "toy_weights" / "thinker_fleeting")
    c.sam2.path = str(pathlib.Path(__file__).parent / "toy_weights" / "sam2_fleeting")
    c.sam2.side = 128
    c.sam2.direction = "both"  # as it was taught: a mask from the middle of a clip is carried to both ends
    c.steps = 200
    world = dict(config="fleeting", clips=2000)
    c.data = dict(
        vos=task(
            datasets=datasets(synthetic=world | dict(family="vos", mixed=True)), batch_size=4, weight=0.6,
            frames=16, sound="required", audio_seconds=8.0, target="some_frame",
        ),
        refavs=task(
            datasets=datasets(synthetic=world | dict(family="refavs", heard=True)), batch_size=8, weight=0.4,
            frames=1, sampling="first", sound="required", audio_seconds=4.0, target="first_frame",
        ),
    )  # fmt: skip
    c.step.keyframes = 1
    c.step.max_tokens = 88  # plans tell the timeline and the query first
    # Of the size of the other family's reward, which is an IoU: advantages are not divided by their spread, and both
    # families share a learning rate. One frame is shown, the earliest of a plan: further pieces choose nothing.
    c.reward.terms = dict(
        saliency=0.25, closeness=0.25, alignment=1.0, segmentation=1.0, diversity=0.0, length_bonus=0.0, target_pieces=1
    )
    # Most samples miss: divided by its spread, a group that differs in form alone counts like one that has found it.
    c.grpo.advantage = "centred"
    c.optimizer.learning_rate = 3e-4
    c.grpo.beta = 0.04  # holds the timelines that it tells
    return c
