"""A dataset of one's own: pictures of one to four squares, made when they are asked for.

In a config: datasets(squares=dict(name="docs/examples/squares.py:open_squares", clips=100))
"""

import cv2
import numpy as np

from omnir1_jax.data.reader import TableReader, make_reader
from omnir1_jax.data.refs import ClipRef, ImageBytes


def open_squares(root: str = "", split: str = "train", clips: int = 100) -> TableReader:
    """The reader: ids, clips and rows of all items, and a function that makes a `ClipRef` of an id and a row."""
    items = ((str(n), n, 1 + n % 4) for n in range(clips))
    return make_reader("squares", split, items, squares, "squares")


def squares(sample_id: str, count: int) -> ClipRef:
    """Where frames, masks and sound are, and what else is known; here the frame itself, and the shapes in it."""
    frame = np.zeros((64, 96, 3), np.uint8)
    for n in range(count):
        frame[24:40, 4 + 24 * n : 20 + 24 * n] = 255
    frames = ImageBytes((cv2.imencode(".png", frame)[1].tobytes(),), ("0",))
    return ClipRef("squares", sample_id, "vos", "the squares", frames, extra={"looks": ["white square"] * count})
