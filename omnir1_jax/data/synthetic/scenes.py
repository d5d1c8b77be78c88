"""Whole clips of the synthetic world: a scene that can be seen well, its pixels, sound, masks and sentences."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int16, UInt8

from omnir1_jax.data.synthetic import expressions, facts, render, sound
from omnir1_jax.data.synthetic.world import Scene, WorldConfig, draw_scene
from omnir1_jax.errors import InputError

ATTEMPTS = 100
WORDING = 10**6  # apart from every number of an attempt: the draws of a clip's sentences


@dataclass(frozen=True)
class Clip:
    scene: Scene
    frames: UInt8[np.ndarray, "time height width 3"] = field(repr=False)  # RGB
    masks: Bool[np.ndarray, "objects time height width"] = field(repr=False)  # what is seen of each shape
    sound: Int16[np.ndarray, "samples"] = field(repr=False)  # 16 kHz, mono
    expressions: tuple[expressions.Expression, ...]  # every true sentence; `expressions.choose` picks


def make_scene(config: WorldConfig, seed: int) -> Scene:
    """The scene of a seed: the first of its tries in which every shape can be seen well enough to be spoken of.

    Raises `InputError` if the settings leave no room for such a scene.
    """
    for attempt in range(ATTEMPTS):
        scene = draw_scene(config, seed, attempt)
        if scene is not None and facts.all_seen(facts.observe(scene)):
            return scene
    raise InputError("synthetic: no scene fits these settings; use fewer or smaller shapes, or more frames")


def make_clip(config: WorldConfig, seed: int) -> Clip:
    """The clip of a seed, the same on every run and platform. Raises `InputError` as `make_scene` does."""
    scene = make_scene(config, seed)
    whole_masks = render.whole_masks(scene)
    rng = np.random.Generator(np.random.PCG64([seed, WORDING]))
    sentences = expressions.describe(facts.observe(scene, whole_masks), rng, config.relations)
    return Clip(scene, render.frames(scene), render.visible_masks(whole_masks), sound.track(scene), sentences)
