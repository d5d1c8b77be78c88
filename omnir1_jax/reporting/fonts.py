"""Text of any script into pictures: DejaVu, which comes with matplotlib, and system fonts for what it lacks."""

import functools
import pathlib
import re

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
LINE_HEIGHT = 1.35
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


# matplotlib is imported where text is drawn: a run's first step does not wait for it, nor for the list of the system's
# fonts, which it makes anew on a machine that has none yet.
def _dejavu(bold: bool) -> str:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", name))


@functools.lru_cache(maxsize=64)
def _covers(path: str) -> frozenset[int]:
    from matplotlib import ft2font

    return frozenset(ft2font.FT2Font(path).get_charmap())


@functools.cache
def _system_fonts() -> tuple[str, ...]:
    """Regular faces first, the likely ones first among them."""
    from matplotlib import font_manager

    is_styled = lambda path: any(word in path.lower() for word in ("bold", "italic", "oblique", "mono", "serif"))
    lacks_cjk = lambda path: "cjk" not in path.lower() and "noto" not in path.lower()
    return tuple(sorted(font_manager.findSystemFonts(), key=lambda path: (is_styled(path), lacks_cjk(path), path)))


@functools.cache
def _path_for(character: str, bold: bool) -> str:
    """The first font with the character; DejaVu, which draws a box for it, where none has."""
    first = _dejavu(bold)
    if ord(character) in _covers(first):
        return first
    for path in _system_fonts():
        try:
            if ord(character) in _covers(path):
                return path
        except (RuntimeError, OSError):  # FreeType cannot read every file that looks like a font
            continue
    return first


@functools.lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def clean(text: str, limit: int = 400) -> str:
    """One line that can be drawn: control characters become spaces, what is beyond `limit` characters an ellipsis."""
    text = " ".join(_UNSEEN.sub(" ", text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def runs(text: str, size: int, bold: bool = False) -> list[tuple[ImageFont.FreeTypeFont, str]]:
    """The text in stretches of one font."""
    out: list[tuple[str, str]] = []
    for character in text:
        # A space stays with the stretch that it follows.
        path = out[-1][0] if out and character == " " else _path_for(character, bold)
        if out and out[-1][0] == path:
            out[-1] = (path, out[-1][1] + character)
        else:
            out.append((path, character))
    return [(_font(path, size), stretch) for path, stretch in out]


def length(text: str, size: int, bold: bool = False) -> float:
    """Width in pixels."""
    return sum(font.getlength(stretch) for font, stretch in runs(text, size, bold))


def wrap(text: str, width: int, size: int, bold: bool = False) -> list[str]:
    """Lines no wider than `width`, broken at spaces; a word that is too wide is broken anywhere."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if length(joined, size, bold) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and length(lines[-1] + character, size, bold) > width:
                lines.append("")
            lines[-1] += character
    return lines


def block(
    text: str,
    width: int,
    size: int = 13,
    *,
    bold: bool = False,
    colour: Colour = (30, 30, 30),
    max_lines: int = 12,
) -> UInt8[np.ndarray, "h width 3"]:
    """A paragraph as a picture; lines beyond `max_lines` are truncated with an ellipsis."""
    lines = wrap(clean(text), width, size, bold)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], lines[max_lines - 1][:-1] + "…"]
    height = round(size * LINE_HEIGHT)
    image = Image.new("RGB", (width, height * len(lines)), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        x = 0.0
        for font, stretch in runs(line, size, bold):
            # One base line for all fonts of a line.
            pen.text((x, row * height + size), stretch, font=font, fill=colour, anchor="ls")
            x += font.getlength(stretch)
    return np.array(image)
