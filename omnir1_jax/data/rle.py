"""COCO run lengths: `{"size": [height, width], "counts": text}`, columns first, zeros before ones.

The text is a base-48 variant of LEB128 (5 bits per character, 32 continues, 16 is the sign); from the fourth count on
it holds differences to the count two before. Read here with every check, since data from disk may be damaged.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from omnir1_jax.errors import optional

MAX_PIXELS = 2**28


def encode(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """The run lengths of a mask, ready for json."""
    run_lengths = optional("pycocotools.mask", "eval").encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(n) for n in run_lengths["size"]], "counts": run_lengths["counts"].decode("ascii")}


def decode(run_lengths: Mapping[str, Any]) -> Bool[np.ndarray, "height width"]:
    """The mask. Raises ValueError if the run lengths are malformed or do not fill the size exactly."""
    height, width = mask_size(run_lengths)
    counts = run_lengths.get("counts")
    if isinstance(counts, str):
        runs = _parse(counts)
    elif isinstance(counts, list) and all(isinstance(c, int) for c in counts):
        runs = np.asarray(counts, np.int64) if all(0 <= c <= MAX_PIXELS for c in counts) else np.array([-1])
    else:
        raise ValueError("the run lengths have no 'counts'")
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"the run lengths do not fill {height}x{width}")
    values = np.zeros(len(runs), bool)
    values[1::2] = True
    return np.repeat(values, runs).reshape(width, height).T


def mask_size(run_lengths: Any) -> tuple[int, int]:
    """(height, width). Raises ValueError if it is not two positive whole numbers."""
    size = run_lengths.get("size") if isinstance(run_lengths, Mapping) else None
    is_valid = isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    if not is_valid or size[0] * size[1] > MAX_PIXELS:
        raise ValueError("the run lengths have no good 'size' [height, width]")
    return size[0], size[1]


def _parse(text: str) -> np.ndarray:
    try:
        digits = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError as error:
        raise ValueError("the run lengths' text is not ASCII") from error
    if len(digits) == 0 or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("the run lengths' text is damaged")
    last = (digits & 32) == 0
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digit_index = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if digit_index.max() > 6:
        raise ValueError("the run lengths' text is damaged")
    numbers = np.add.reduceat((digits & 31) << (5 * digit_index), starts)
    numbers -= np.where(digits[ends] & 16, 1 << (5 * (digit_index[ends] + 1)), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
