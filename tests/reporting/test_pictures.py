"""Pictures: every mark where it belongs, in its colour, at any size of frame and in any script."""

import cv2
import numpy as np
import pytest

from omnir1_jax.reporting import draw, fonts, pictures
from omnir1_jax.reporting.example import Example
from omnir1_jax.tasks.description import Clip, Keyframe


def near(image, colour, tolerance: int = 40) -> np.ndarray:
    return (np.abs(image.astype(int) - np.array(colour)) <= tolerance).all(axis=-1)


def example(frames: int = 6, size: tuple[int, int] = (128, 96), keys=(1, 4), **changes) -> Example:
    """A grey clip; truth on the left half, prediction on the right, boxes within them."""
    w, h = size
    truth = np.zeros((frames, h, w), bool)
    truth[:, h // 4 : h // 2, w // 8 : w // 4] = True
    predicted = np.zeros((frames, 32, 32), bool)
    predicted[:, 8:16, 20:28] = True
    boxes = np.full((2, frames, 4), -1, np.float32)
    boxes[0] = [w // 8, h // 4, w // 4 - 1, h // 2 - 1]
    clip = Clip(np.full((frames, h, w, 3), 120, np.uint8), size, truth, predicted, boxes, tuple(np.arange(frames) / 2))
    guess = (w * 5 / 8, h / 4, w * 7 / 8 - 1, h / 2 - 1)
    looked = tuple(Keyframe(k, f"thing {k}", "", (guess,)) for k in keys)
    base = Example("id", "which one?", "", keyframes=looked, reward=1.0, rewards={"a": 0.5}, clip=clip)
    return base._replace(**changes)


def test_a_box_is_where_it_was_said():
    frame = np.full((200, 400, 3), 120, np.uint8)
    # In a clip a tenth as large: pixels 10 to 19 and 5 to 9, both ends included.
    out = draw.boxed(frame, (10, 5, 19, 9), (40, 20), draw.PREDICTED, 2)
    ys, xs = np.nonzero(near(out, draw.PREDICTED, 0))
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (100, 199, 50, 99)
    assert not near(out[54:96, 104:196], draw.PREDICTED).any()  # its inside is free
    assert (frame == 120).all()
    for odd in ((-1e9, -5, 1e9, 5), (30, 15, 10, 5), (0, 0, 0, 0), (39, 19, 39, 19)):
        assert near(draw.boxed(frame, odd, (40, 20), draw.TRUTH), draw.TRUTH, 0).any()
    assert (draw.boxed(frame, (np.nan, 0, 1, 1), (40, 20), draw.TRUTH) == frame).all()


def test_masks_are_filled_or_outlined_where_they_are():
    frame = np.full((80, 160, 3), 120, np.uint8)
    mask = np.zeros((8, 16), bool)
    mask[2:4, 4:8] = True  # pixels 20 to 39 and 40 to 79 of the frame
    out = draw.filled(frame, mask, (255, 0, 0), 0.5)
    np.testing.assert_array_equal(out[30, 60], [188, 60, 60])
    assert (out[26:34, 46:74] == [188, 60, 60]).all() and (out[:16] == 120).all() and (out[:, 84:] == 120).all()
    line = near(draw.outlined(frame, mask, (0, 255, 0)), (0, 255, 0), 60)
    ys, xs = np.nonzero(line)
    assert abs(xs.min() - 40) <= 2 and abs(xs.max() - 79) <= 2 and abs(ys.min() - 20) <= 2 and abs(ys.max() - 39) <= 2
    assert not line[25:35, 45:75].any()
    empty = np.zeros((8, 16), bool)
    assert (draw.filled(frame, empty) == 120).all() and (draw.outlined(frame, empty) == 120).all()


@pytest.mark.parametrize("size", [(128, 96), (854, 480), (480, 854), (28, 28), (640, 20)])
def test_a_picture_shows_clip_keyframes_and_both_masks(size):
    image = pictures.draw(example(size=size))
    assert image.dtype == np.uint8 and image.shape[1] == pictures.WIDTH and image.shape[0] < 2000
    fill = np.round(0.45 * 120 + 0.55 * np.array(draw.PREDICTED))
    for colour in (fill, draw.PREDICTED, draw.TRUTH, draw.KEYFRAME):
        assert near(image, colour, 3).any(), colour
    back = cv2.imdecode(np.frombuffer(pictures.png(image), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(back, image)


def test_small_frames_are_enlarged_and_their_boxes_stand_on_the_masks():
    """One keyframe, so that its place in the picture is known: left, below query and facts."""
    base = example(frames=1, keys=(0,))
    image = pictures.draw(base)
    ys, xs = np.nonzero(near(image[:, : pictures.WIDTH // 2], draw.KEYFRAME, 3))
    left, top, bottom = xs.min(), ys.min(), ys[xs < 22].max()
    scale = (bottom - top + 1 - 2 * pictures.FRAME) / 96
    assert scale > 3
    ys, xs = np.nonzero(near(image[top : bottom + 1], draw.PREDICTED, 3))
    inner = left + pictures.FRAME
    assert abs(xs.min() - (inner + 80 * scale)) <= 3 and abs(xs.max() - (inner + 112 * scale)) <= 3
    assert abs(ys.min() - (pictures.FRAME + 24 * scale)) <= 3 and abs(ys.max() - (pictures.FRAME + 48 * scale)) <= 3


def test_any_number_of_frames_and_nothing_found():
    assert pictures.draw(example(200, keys=(3, 150))).shape[0] < 1600
    for bare in (
        example(keys=()),
        example(1, keys=()),
        example(keys=(99, -1)),  # beyond the clip
        example(2, keys=(0,), query="", reward=None, rewards={}),
    ):
        assert pictures.draw(bare).shape[1] == pictures.WIDTH
    plain = example(3)
    plain = plain._replace(clip=Clip(plain.clip.frames, plain.clip.size), keyframes=())
    image = pictures.draw(plain)
    for colour in (draw.PREDICTED, draw.TRUTH, draw.KEYFRAME):
        assert not near(image, colour, 3).any()  # nor in the legend
    with pytest.raises(ValueError, match="no frame"):
        pictures.draw(plain._replace(clip=None))


def test_every_letter_has_a_shape_of_its_own():
    """A missing glyph is a box, the same for every letter."""
    shape = lambda letter: fonts.block(letter, 40, 24).tobytes()
    letters = "aäñßЖЯωλ→✓"
    assert len({shape(letter) for letter in letters}) == len(letters)
    assert shape("a") != fonts.block("a", 40, 24, bold=True).tobytes()


def test_text_keeps_to_its_room():
    words = "a rather long sentence " + "w" * 200
    lines = fonts.wrap(words, 150, 14)
    assert all(fonts.length(line, 14) <= 150 for line in lines)
    assert "".join(lines).replace(" ", "") == words.replace(" ", "")
    assert fonts.block(words, 150, 14, max_lines=2).shape == (2 * round(14 * fonts.LINE_HEIGHT), 150, 3)
    assert fonts.clean("a\n\tb\x00\ud800c\u2028d  ") == "a b c d" and len(fonts.clean("x" * 999)) == 400
