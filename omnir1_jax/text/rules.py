"""Limits and failure kinds of the in-graph parsers, where Python's behaviour is not feasible on a device.

The rules, beside `re` and `json` (strict) on the text that `decode(ids, skip_special_tokens=True)` gives:

* A text longer than its static buffer is not read at all: TOO_LONG.
* White space is the ASCII space, \\t, \\n, \\v, \\f, \\r; digits are 0-9; letters are lower-cased where ASCII.
* `NaN`, `Infinity` and arrays nested deeper than MAX_NESTING make an object bad.
* A key with an escape is not recognised. A time with an escape is a bad time.
* A null field is missing; so is a description that is not a string.
* A lone surrogate escape in a description reads as U+FFFD. A description is truncated to the characters that fit
  its buffer, then lower-cased and stripped where a prompt is built.
* Each part of a time saturates (MAX_MINUTES, MAX_SECONDS, MAX_FRACTION), far beyond any clip.
* A number is its decimal value truncated at DECIMALS decimals, rounded once to float32 (so equal to
  float32(float(text)) but for its double rounding); magnitudes above MAX_COORDINATE are out of range.
  Its integer part is that of the decimal.
"""

import enum
from typing import NamedTuple

MAX_NESTING = 16
MAX_MINUTES = 100_000
MAX_SECONDS = 1_000_000
MAX_FRACTION = 100_000_000
MAX_COORDINATE = 1_000_000
DECIMALS = 18

WHITE = b" \t\n\v\f\r"

PLAN_KEYS = ("start_time", "end_time", "description")
BOX_KEYS = ("bbox_2d",)
BOX_AND_POINTS_KEYS = ("bbox_2d", "points_1", "points_2")

# A group with fewer bytes cannot be a complete piece of a plan.
MIN_PIECE_BYTES = len('{"start_time":"0:0.0","end_time":"0:0.0","description":""}')
SHORT_SLOTS = 8  # shorter groups of a plan whose failures are distinguished


class Failure(enum.IntEnum):
    """Why a group gave no result; the first that applies, in the order of reading."""

    OK = 0
    ABSENT = 1  # fewer groups than slots
    TOO_LONG = 2  # the text does not fit its static buffer
    NO_ANSWER = 3  # no <answer> block
    BAD_JSON = 4
    MISSING_FIELD = 5  # absent or null; a description that is not a string
    BAD_TIME = 6  # not a string that begins digits:digits.digits
    BAD_LIST = 7  # not a list of exactly so many numbers
    OUT_OF_RANGE = 8  # start after end, end after the clip's end, or a coordinate beyond MAX_COORDINATE


class Limits(NamedTuple):
    """Static sizes.

    Attributes:
      groups: maximum number of groups of a plan that are read; those beyond it are not counted either. 0: as many as
        the text buffer can hold, and of those that are too short to be a piece the first SHORT_SLOTS.
      description: bytes.
    """

    groups: int = 0
    description: int = 256


DEFAULT = Limits()


def plan_slots(text_bytes: int, limits: Limits) -> int:
    """Slots for the groups of a plan in a text of at most `text_bytes` bytes."""
    answer_bytes = text_bytes - len("<answer></answer>")
    return limits.groups or SHORT_SLOTS + max(answer_bytes // MIN_PIECE_BYTES, 0)
