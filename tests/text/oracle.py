"""What a completion says, with `re` and `json` and nothing of the package: the definition the graph is held to."""

import json
import re
from fractions import Fraction

import numpy as np

OK, ABSENT, TOO_LONG, NO_ANSWER, BAD_JSON, MISSING, BAD_TIME, BAD_LIST, RANGE = range(9)
MARK = "\U0010fffe"
SHORTEST_PIECE = '{"start_time":"0:0.0","end_time":"0:0.0","description":""}'


class Lexeme:
    """A number's text."""

    def __init__(self, text):
        self.text = text


def _refuse(_):
    raise ValueError


def _loads(text):
    return json.loads(
        text, parse_int=Lexeme, parse_float=Lexeme, parse_constant=_refuse, object_pairs_hook=lambda pairs: pairs
    )


def _deep(value, left):
    return isinstance(value, list) and (left == 0 or any(_deep(v, left - 1) for v in value))


def parse(group):
    """[(spelled key, spelled value, value)] of a good object, else None. An escape is spelled with MARK."""
    try:
        pairs = _loads(group)
    except (ValueError, RecursionError):
        return None
    if any(_deep(value, 16) for _, value in pairs):
        return None
    plain = re.sub(r"\\(.)", lambda m: MARK + {'"': "Q", "\\": "B"}.get(m[1], m[1]), group, flags=re.DOTALL)
    spelled = _loads(plain)
    return [(k, raw, value) for (k, raw), (_, value) in zip(spelled, pairs)]


def field(pairs, key):
    """Spelled and decoded value of the last field of that name; None where it is absent or null."""
    found = [(raw, value) for k, raw, value in pairs if k == key]
    return found[-1] if found and found[-1][1] is not None else None


def centiseconds(raw):
    if not isinstance(raw, str) or MARK in raw:
        return None
    found = re.match(r"([0-9]+):([0-9]+)\.([0-9]+)", raw)
    if not found:
        return None
    low = lambda digits, cap: min(int(digits[-4000:]), cap) if not digits[:-4000].strip("0") else cap
    return 6000 * low(found[1], 10**5) + 100 * low(found[2], 10**6) + low(found[3], 10**8)


def number(text):
    """(float32, truncated) or None: 18 decimals, then the nearest float32."""
    mantissa, _, exponent = text.lower().partition("e")
    exponent = max(-(10**5), min(10**5, int(exponent.replace("+", "") or 0)))
    whole, _, rest = mantissa.lstrip("-").partition(".")
    units = Fraction(int(whole + rest)) * Fraction(10) ** (exponent - len(rest)) * 10**18
    units = units.numerator // units.denominator
    if units > 10**24:
        return None
    value = Fraction(units, 10**18)
    guess = np.float32(float(value))
    near = [guess, np.nextafter(guess, np.float32(-1)), np.nextafter(guess, np.float32(2e6))]
    best = min(near, key=lambda f: (abs(Fraction(float(f)) - value), int(f.view(np.int32)) & 1))
    sign = -1 if text[0] == "-" else 1
    return sign * float(best), sign * (units // 10**18)


def numbers(found, k):
    if found is None:
        return MISSING, None
    value = found[1]
    if not (isinstance(value, list) and len(value) == k and all(isinstance(v, Lexeme) for v in value)):
        return BAD_LIST, None
    read = [number(v.text) for v in value]
    return (RANGE, None) if None in read else (OK, read)


def answer(text):
    found = re.search(r"<answer>[ \t\n\r\f\v]*(.*?)[ \t\n\r\f\v]*</answer>", text, re.DOTALL)
    return found[1] if found else None


def formatted(text):
    return bool(re.fullmatch(r"<think>.*?</think>[ \t\n\r\f\v]*<answer>.*?</answer>", text, re.DOTALL))


def fit(text, size):
    while len(text.encode()) > size:
        text = text[:-1]
    return text.encode()


def plan(text, frames, slots, size):
    """Dict of what readers.Plan holds, for one completion."""
    out = dict(
        failure=[ABSENT] * slots,
        complete=[False] * slots,
        valid=[False] * slots,
        start=[0] * slots,
        end=[0] * slots,
        first_frame=[0] * slots,
        last_frame=[0] * slots,
        description=[b""] * slots,
        cut=[False] * slots,
    )
    ans = answer(text)
    groups = re.findall(r"\{.*?\}", ans or "", re.DOTALL)
    short = [group for group in groups if len(group.encode()) < len(SHORTEST_PIECE)]
    assert all(isinstance(piece(group, frames, size), int) for group in short)
    unread = max(len(groups) - slots, 0)
    out.update(formatted=formatted(text), answered=ans is not None)
    out.update(count=len(groups) - unread, short=0, unread=unread)
    if ans is None:
        out["failure"] = [NO_ANSWER] * slots
    for i, group in enumerate(groups[:slots]):
        fields = piece(group, frames, size)
        for name, value in ({"failure": fields} if isinstance(fields, int) else fields).items():
            out[name][i] = value
    return out


def piece(group, frames, size):
    """The fields of a complete piece of a plan, or why it is none."""
    pairs = parse(group)
    if pairs is None:
        return BAD_JSON
    start, end, described = (field(pairs, k) for k in ("start_time", "end_time", "description"))
    if None in (start, end, described) or not isinstance(described[1], str):
        return MISSING
    a, b = centiseconds(start[0]), centiseconds(end[0])
    if a is None or b is None:
        return BAD_TIME
    text = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in described[1])
    out = dict(failure=RANGE, complete=True, start=a, end=b)
    out.update(description=fit(text, size), cut=len(text.encode()) > size)
    if a <= b and b <= 50 * frames:
        frame = lambda cs: min(cs // 50, frames - 1)
        out.update(failure=OK, valid=True, first_frame=frame(a), last_frame=frame(b))
    return out


def boxes(text, slots):
    groups = re.findall(r"\{.*?\}", text, re.DOTALL)
    failure, box = [ABSENT] * slots, [[-1.0] * 4 for _ in range(slots)]
    for i, group in enumerate(groups[:slots]):
        pairs = parse(group)
        failure[i], read = (BAD_JSON, None) if pairs is None else numbers(field(pairs, "bbox_2d"), 4)
        if read:
            box[i] = [value for value, _ in read]
    return dict(count=len(groups), failure=failure, box=box)


def box_and_points(text):
    block = answer(text)
    found = re.search(r"\{[^}]+\}", block or "")
    pairs = parse(found[0]) if found else None
    kind = NO_ANSWER if block is None else ABSENT if found is None else BAD_JSON if pairs is None else OK
    out = dict(formatted=formatted(text), failure=kind, box_failure=kind, point_failure=[kind] * 2, strict=False)
    out.update(box=[-1.0] * 4, points=[[-1, -1], [-1, -1]])
    if pairs is None:
        return out
    names = [k for k in dict.fromkeys(k for k, _, _ in pairs) if MARK not in k]
    bbox = [k for k in names if "bbox" in k.lower()][:1]
    pointed = ([k for k in names if "points" in k.lower()] + [None, None])[:2]
    out["box_failure"], read = numbers(field(pairs, bbox[0]) if bbox else None, 4)
    if read:
        out["box"] = [value for value, _ in read]
    for i, key in enumerate(pointed):
        out["point_failure"][i], read = numbers(field(pairs, key), 2)
        if read:
            out["points"][i] = [whole for _, whole in read]
    strict = [numbers(field(pairs, k), n)[0] for k, n in (("bbox_2d", 4), ("points_1", 2), ("points_2", 2))]
    out["strict"] = strict == [OK, OK, OK]
    return out
