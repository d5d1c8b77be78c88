"""One picture of one completion: the query, the keyframes with System 2's boxes, the clip with its masks."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from omnir1_jax.reporting import draw as marks
from omnir1_jax.reporting import fonts
from omnir1_jax.reporting.example import Example
from omnir1_jax.tasks.description import Clip, Keyframe

Image = UInt8[np.ndarray, "_ _ 3"]  # of any size

WIDTH, MARGIN, GAP = 1280, 20, 12
KEYFRAMES_A_ROW, KEYFRAME_SIZE = 4, (420, 320)  # maximum width and height of a tile
FRAME = 5  # around a keyframe: 4 pixels of colour, 1 of white
STRIP_A_ROW, STRIP_FRAMES, STRIP_HEIGHT = 8, 32, 160
WHITE, GREY = (255, 255, 255), (110, 110, 110)


def draw(example: Example) -> UInt8[np.ndarray, "h w 3"]:
    """The picture, `WIDTH` pixels wide. The example needs a clip with at least one frame."""
    clip = example.clip
    if clip is None or not len(clip.frames):
        raise ValueError(f"{example.sample_id}: no frame to draw")
    inner = WIDTH - 2 * MARGIN
    keyframes = [keyframe for keyframe in example.keyframes if 0 <= keyframe.frame < len(clip.frames)]
    rows = [fonts.block(example.query or "(no query)", inner, 22, bold=True, max_lines=4), _facts(example, inner)]
    if keyframes:
        per_row = min(KEYFRAMES_A_ROW, len(keyframes))
        width = (inner - GAP * (per_row - 1)) // per_row
        max_size = (min(width, KEYFRAME_SIZE[0]), KEYFRAME_SIZE[1])
        rows.append(_grid([_keyframe(clip, keyframe, max_size) for keyframe in keyframes], per_row))
    if len(clip.frames) > 1 or not keyframes:
        rows.append(_strip(clip, {keyframe.frame for keyframe in keyframes}, inner))
    rows += _legend(clip, keyframes, inner)
    if example.rewards or example.reward is not None:
        rows.append(fonts.block(_rewards(example), inner, 12, colour=GREY))
    page = _stack(rows, inner, GAP)
    return np.pad(page, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), constant_values=255)


def png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The picture as PNG."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise RuntimeError("OpenCV could not encode a PNG")
    return encoded.tobytes()


def marked(
    frame: UInt8[np.ndarray, "h w 3"],
    predicted: Bool[np.ndarray, "yp xp"] | None,
    truth: Bool[np.ndarray, "y x"] | None = None,
    thickness: int = 2,
) -> UInt8[np.ndarray, "h w 3"]:
    """A frame with the predicted mask filled and the true one outlined."""
    if predicted is not None:
        frame = marks.filled(frame, predicted)
    return frame if truth is None else marks.outlined(frame, truth, thickness=thickness)


def _sized(clip: Clip, index: int, width: int, height: int) -> Image:
    """Frame `index`, as large as fits, in the clip's own aspect, with its masks."""
    scale = min(width / clip.size[0], height / clip.size[1])
    size = (max(1, round(clip.size[0] * scale)), max(1, round(clip.size[1] * scale)))
    pick = lambda masks: None if masks is None else masks[index]
    frame = marks.fit(clip.frames[index], *size)
    return marked(frame, pick(clip.predicted), pick(clip.truth), 1 if max(size) < 240 else 2)


def _keyframe(clip: Clip, keyframe: Keyframe, max_size: tuple[int, int]) -> Image:
    tile = _sized(clip, keyframe.frame, max_size[0] - 2 * FRAME, max_size[1] - 2 * FRAME)
    for box in true_boxes(clip, keyframe.frame):
        tile = marks.boxed(tile, tuple(float(x) for x in box), clip.size, marks.TRUTH)
    for box in keyframe.boxes:
        tile = marks.boxed(tile, box, clip.size, marks.PREDICTED, 3)
    width = max(tile.shape[1] + 2 * FRAME, min(max_size[0], 240))
    description = keyframe.description or "(no description)"
    note = "" if keyframe.boxes else "no box was read"
    rows = [
        marks.framed(np.pad(tile, ((FRAME, FRAME), (FRAME, FRAME), (0, 0)), constant_values=255), marks.KEYFRAME),
        fonts.block(_when(clip, keyframe.frame), width, 12, colour=GREY),
        fonts.block(description, width, 14, max_lines=6),
    ]
    if note:
        rows.append(fonts.block(note, width, 12, colour=(190, 40, 20)))
    return _stack(rows, max_size[0], 3)


def true_boxes(clip: Clip, index: int) -> Float[np.ndarray, "n 4"]:
    """True boxes of the objects that are in a frame."""
    if clip.boxes is None:
        return np.zeros((0, 4), np.float32)
    return clip.boxes[:, index][~(clip.boxes[:, index] == -1).all(axis=1)]


def _strip(clip: Clip, keyframes: set[int], inner: int) -> Image:
    """All frames, or evenly chosen ones with the keyframes among them, small."""
    shown_frames = range(len(clip.frames))
    if len(shown_frames) > STRIP_FRAMES:
        sampled_count = max(STRIP_FRAMES - len(keyframes), 0)
        shown_frames = sorted(
            {*np.linspace(0, len(shown_frames) - 1, sampled_count).round().astype(int).tolist(), *keyframes}
        )
    per_row = min(STRIP_A_ROW, max(len(shown_frames), 4))
    width = (inner - 6 * (per_row - 1)) // per_row
    tiles = []
    for index in shown_frames:
        tile = _sized(clip, index, width, STRIP_HEIGHT)
        if index in keyframes:
            tile = marks.framed(tile, marks.KEYFRAME, 3)
        label = fonts.block(_when(clip, index), width, 11, colour=marks.KEYFRAME if index in keyframes else GREY)
        tiles.append(_stack([tile, label], width, 1))
    return _grid(tiles, per_row, gap=6)


def _when(clip: Clip, index: int) -> str:
    number = index if clip.numbers is None else clip.numbers[index]
    return f"frame {number}" if clip.seconds is None else f"frame {number}, {clip.seconds[index]:g} s"


def _facts(example: Example, inner: int) -> Image:
    parts = [example.sample_id]
    if example.answer is not None:
        parts.append(f"answer: {fonts.clean(example.answer, 160) or '(empty)'}")
    if example.gold is not None:
        parts.append(f"right answer: {fonts.clean(example.gold, 80)}")
    if example.failures:
        parts.append("failures: " + ", ".join(example.failures))
    return fonts.block("  |  ".join(parts), inner, 13, colour=GREY, max_lines=4)


def _rewards(example: Example) -> str:
    parts = [] if example.reward is None else [f"reward {example.reward:.3g}"]
    parts += [] if example.advantage is None else [f"advantage {example.advantage:+.3g}"]
    # Adding 0.0 turns -0.0 into 0.
    return "  ·  ".join(parts + [f"{name} {value + 0.0:.3g}" for name, value in example.rewards.items()])


def _legend(clip: Clip, keyframes: list[Keyframe], inner: int) -> list[Image]:
    """The marks that the picture has; empty without marks."""
    entries = []
    if clip.predicted is not None:
        entries.append(("predicted mask", marks.PREDICTED, True))
    if any(keyframe.boxes for keyframe in keyframes):
        entries.append(("predicted box", marks.PREDICTED, False))
    if clip.truth is not None or clip.boxes is not None:
        entries.append(("truth", marks.TRUTH, False))
    if keyframes:
        entries.append(("keyframe", marks.KEYFRAME, False))
    row = np.full((18, inner, 3), 255, np.uint8)
    x = 0
    for label, colour, solid in entries:
        cv2.rectangle(row, (x + 1, 3), (x + 13, 14), colour, -1 if solid else 2)
        image = fonts.block(label, round(fonts.length(label, 12)) + 4, 12, colour=GREY)[:18]
        row[1 : 1 + len(image), x + 20 : x + 20 + image.shape[1]] = image[: len(row) - 1]
        x += 20 + image.shape[1] + 20
    return [row] if entries else []


def _stack(rows: list[Image], width: int, gap: int) -> Image:
    """Stacks rows, left-aligned on white."""
    out = []
    for row in rows:
        out += [np.pad(row, ((0, 0), (0, max(width - row.shape[1], 0)), (0, 0)), constant_values=255)[:, :width]]
        out += [np.full((gap, width, 3), 255, np.uint8)]
    return np.concatenate(out[:-1])


def _grid(tiles: list[Image], per_row: int, gap: int = GAP) -> Image:
    """Tiles of one width, row by row, aligned at their tops."""
    rows = []
    for start in range(0, len(tiles), per_row):
        row_tiles = tiles[start : start + per_row]
        height = max(len(tile) for tile in row_tiles)
        cells = []
        for tile in row_tiles:
            cells += [np.pad(tile, ((0, height - len(tile)), (0, gap), (0, 0)), constant_values=255)]
        rows.append(np.concatenate(cells, axis=1)[:, :-gap])
    return _stack(rows, max(row.shape[1] for row in rows), gap)
