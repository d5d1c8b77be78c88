"""A grounder of your own, in the graph: the box around all pixels of the colour that a description names.

python -m omnir1_jax.train --config configs/toy.py --config.step.grounder=docs/examples/grounder.py:GROUNDER
"""

import jax.numpy as jnp

from omnir1_jax.systems.grounders import GroundedBoxes

COLOURS = {
    b"red": (214, 34, 40),
    b"green": (44, 160, 54),
    b"blue": (36, 70, 214),
    b"yellow": (246, 222, 48),
    b"purple": (138, 50, 176),
    b"orange": (244, 128, 22),
    b"cyan": (70, 208, 220),
}
DISTANCE = 60.0  # of a pixel's colour from the named one


class ColourGrounder:
    """One box for each description with a colour in it, none for others."""

    host = False  # it is part of the compiled step

    def load(self, config):
        """Its parameters: arrays that the step is called with, as the weights of a detector would be."""
        return {"colours": jnp.array(list(COLOURS.values()), jnp.float32)}

    def ground(self, params, frames, requests, slots):
        """Boxes of every colour in every frame; each request takes its own."""
        pixels = frames.rgb().astype(jnp.float32)  # [b t h w 3]; black beyond the frame
        near = [jnp.linalg.norm(pixels - colour, axis=-1) < DISTANCE for colour in params["colours"]]
        boxes, there = zip(*map(extent, near))
        boxes, there = jnp.stack(boxes, axis=2), jnp.stack(there, axis=2)  # [b t c 4], [b t c]

        named = jnp.stack([contains(requests.description.bytes, word) for word in COLOURS], axis=-1)  # [b g k c]
        colour, b = jnp.argmax(named, axis=-1), jnp.arange(len(pixels))[:, None, None]
        found = named.any(axis=-1) & there[b, requests.frame, colour]
        first = jnp.arange(slots) == 0
        box = jnp.broadcast_to(boxes[b, requests.frame, colour][..., None, :], (*found.shape, slots, 4))
        return GroundedBoxes.of(frames, requests, box, found[..., None] & first)


def extent(mask):
    """The inclusive box around each mask [... h w], and whether there is anything in it."""
    rows, columns = mask.any(axis=-1), mask.any(axis=-2)
    low = lambda hit: jnp.argmax(hit, axis=-1)
    high = lambda hit: hit.shape[-1] - 1 - jnp.argmax(hit[..., ::-1], axis=-1)
    return jnp.stack([low(columns), low(rows), high(columns), high(rows)], axis=-1), rows.any(axis=-1)


def contains(text, word):
    """Whether the UTF-8 buffers [... d] hold a word."""
    count = text.shape[-1] - len(word) + 1
    return jnp.stack([text[..., i : i + count] == byte for i, byte in enumerate(word)]).all(axis=0).any(axis=-1)


GROUNDER = ColourGrounder()


def on_host(frames, descriptions):
    """The same as a plain function: RGB frames [n h w 3] and a description for each, to lists of boxes.

    Evaluation and inference take it as --system2, training as step.grounder with step.mode=staged.
    """
    out = []
    for frame, text in zip(frames, descriptions):
        colour = next((value for word, value in COLOURS.items() if word.decode() in text), None)
        near = jnp.linalg.norm(frame - jnp.array(colour or (-999,) * 3, jnp.float32), axis=-1) < DISTANCE
        box, there = extent(near)
        out.append([box.tolist()] if there else [])
    return out
