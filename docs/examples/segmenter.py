"""Segmenters of your own.

`SEGMENTER` follows boxes in the graph: each object is its box, from the first keyframe on.

    python -m omnir1_jax.train --config configs/toy.py --config.step.segmenter=docs/examples/segmenter.py:SEGMENTER

`from_text` makes masks of descriptions on the host, as SAM 3 or Sa2VA would; no grounder is asked.

    python -m omnir1_jax.train --config configs/toy.py --config.step.mode=staged \
        --config.step.segmenter=docs/examples/segmenter.py:from_text
"""

import jax.numpy as jnp
import numpy as np

RED = np.array([214, 34, 40], np.float32)


class BoxSegmenter:
    """The last box that was given, as a mask."""

    def load(self, config):
        return None

    def logits(self, params, clip, frame_valid, original, prompts):
        """[b g n t y x]; original and boxes are in pixels of the clip, masks a quarter of the clip's square."""
        t, side = clip.shape[1], clip.shape[2] // 4
        place = (jnp.arange(side) + 0.5) / side
        x, y = (place * original[:, axis, None] for axis in (0, 1))  # [b side]
        box = prompts.boxes[..., None]  # [b g k n 4 1]
        across = (box[..., 0, :] <= x[:, None, None, None]) & (x[:, None, None, None] <= box[..., 2, :])
        down = (box[..., 1, :] <= y[:, None, None, None]) & (y[:, None, None, None] <= box[..., 3, :])
        drawn = down[..., :, None] & across[..., None, :] & prompts.used[..., None, None]  # [b g k n y x]
        passed = prompts.frame[..., None] <= jnp.arange(t)  # [b g k t]
        newest = jnp.argmax(jnp.where(passed, prompts.frame[..., None], -1), axis=2)  # [b g t]
        mask = jnp.take_along_axis(drawn, newest[:, :, :, None, None, None], axis=2)  # [b g t n y x]
        mask = jnp.swapaxes(mask & passed.any(axis=2)[:, :, :, None, None, None], 2, 3)
        return jnp.where(mask, 1.0, -1.0)


SEGMENTER = BoxSegmenter()


def from_text(frames, descriptions, keyframes):
    """Everything red in every frame [t h w 3], if a description names it: a mask [t h w]."""
    asked = any("red" in text for text in descriptions)
    return asked & (np.linalg.norm(frames - RED, axis=-1) < 60)
