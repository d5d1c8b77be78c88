"""Seeded completions: well-made, nearly well-made, mutated, prose, raw bytes, UTF-8 cut in the middle."""

import json
import random

SAYINGS = (
    "the red circle that enters last, left of the tall man; a dog barking — schräg gegenüber; девушка в пальто;"
    " 穿红色外套的人 在左边; 🎸🐕\u200d🦺 señor niño façade Ünïcödé ÅÉ ﷽ e\u0301 \u00a0 \u2028 İ ſ \u212a"
    ' \\ C:\\new\\ "so-called" \\\\ a/b'
)
WORDS = SAYINGS.split(" ")
SPACES = ["", "", "", " ", "\n", "\t", "\r\n", "  ", "\f", "\v", "\u00a0", "\x85"]
KEYS = (
    *("start_time", "end_time", "description", "bbox_2d", "points_1", "points_2", "label", "", "Points", "BBox"),
    *("point", "bbox", "my_points_bbox", "start_time ", "Start_Time", "start_t\\u0069me", "bb\\u006fx", 'a\\"b', "é"),
)
PIECES = [
    *("{", "}", "[", "]", '"', "\\", ",", ":", "-", ".", "0", "1", "9", "e", "E", "+", "u", "null", "true", "NaN"),
    *("<answer>", "</answer>", "<think>", "</think>", "Infinity", "\\u", "\\ud83d", "\\udc00", "\\n", "\n", "\x00"),
    *(
        " ",
        "\x1f",
        "\x7f",
        "\u2003",
        "٣",
        "{}",
        '""',
        "bbox_2d",
        '"description"',
        "start_time",
        "\t",
        "é",
        "\U0001f600",
    ),
]


class Dice(random.Random):
    """Random choices; `level` scales how often something is odd."""

    level = 1.0

    def odd(self, chance):
        return self.random() < chance * self.level


def prose(r, most=12):
    return " ".join(r.choice(WORDS) for _ in range(r.randrange(most)))


def escaped(r, text):
    out = []
    for c in text:
        kind = r.random()
        if kind < 0.85 and c >= " " and c not in '"\\':
            out.append(c)
        elif kind < 0.9 and c in '"\\/\b\f\n\r\t':
            out.append({"/": "\\/"}.get(c, json.dumps(c)[1:-1]))
        else:
            code = c.encode("utf-16-be", "surrogatepass").hex()
            spelled = "".join("\\u" + code[i : i + 4] for i in range(0, len(code), 4))
            out.append(spelled if r.random() < 0.5 else "\\u".join(p.upper() for p in spelled.split("\\u")))
    if r.odd(0.1):
        odd = (
            "\\ud83d",
            "\\ude00",
            "\\ud83d\\ud83d\\ude00",
            "\\udc00\\ud800",
            "\\ud800x",
            "\\\\u0041",
            "\\u0000",
            "\\x",
        )
        out.insert(r.randrange(len(out) + 1), r.choice(odd))
    return "".join(out)


def time(r):
    if not r.odd(0.3):
        seconds = r.randrange(20) if r.random() < 0.9 else r.randrange(60)
        return f"{r.choice([0, 0, 0, 0, 1]):02d}:{seconds:02d}.{r.randrange(100):02d}"
    return r.choice(
        [
            *("0:1.5", "00:03.500", "00:02", "", ":1.2", "1:.5", "1:2.", " 00:01.00", "00:01.00 s", "00:01.0\\u0030"),
            *("٠٠:٠١.٠٠", "-1:00.00", "0000000000000000000000:01.00", "99999999999999:00.00", "00:00.00000000000000"),
            *("00:99999999999.0", "00:01.00\\n", "00:01,00", "00:01.٣", "00:01.5é", "1:2:3.4", "00:00.00:"),
        ]
    )


def number(r):
    kind = r.randrange(10)
    if kind < 4 or not r.odd(0.7):
        return str(r.randrange(1300))
    if kind < 6:
        return repr(r.uniform(-10, 1300) if r.random() < 0.5 else round(r.uniform(0, 1300), r.randrange(4)))
    if kind < 7:
        return f"{r.uniform(0, 9):.{r.randrange(9)}f}e{r.choice(['', '+', '-'])}{r.randrange(0, 9)}"
    if kind < 8:
        digits = "".join(r.choice("0123456789") for _ in range(r.randrange(1, 40)))
        at = r.randrange(len(digits) + 1)
        return f"{digits[:at].lstrip('0') or '0'}.{digits[at:]}0e{r.randrange(-30, 20)}"
    return r.choice(
        [
            *(
                "-1",
                "-0",
                "0.0",
                "1000000",
                "1000000.0000000000000000001",
                "1000000.000000000000000001",
                "1000001",
                "1e6",
            ),
            *(
                "1e7",
                "-1e6",
                "1e400",
                "1e-400",
                "0e999999999999",
                "0.000001e6",
                "00",
                "01",
                "1.",
                ".5",
                "+1",
                "1e",
                "--1",
            ),
            *("0x1", "1e5", "16777217e-3", "0.1", "8388608.5e-1", "9" * 30, "null", "true", '"3"', "[1]", "[]", "NaN"),
            *("-Infinity", "1E+2", "0.30000000000000004", "123456.7890625", "1 2", "-"),
        ]
    )


def gap(r):
    return r.choice(SPACES[:8]) if r.random() < 0.3 else r.choice(SPACES) if r.random() < 0.02 else ""


def array(r, count):
    if r.odd(0.06):
        depth = r.choice([1, 2, 15, 16, 17, 40])
        return "[" * depth + gap(r) + "]" * (depth - (r.random() < 0.1))
    items = [number(r) if r.random() < 0.7 else str(r.randrange(999)) for _ in range(count)]
    return "[" + gap(r) + ("," + gap(r)).join(items) + gap(r) + (r.choice([",]", ""]) if r.odd(0.1) else "]")


def value(r, key):
    if r.odd(0.12):
        return r.choice(["null", "true", "false", "3", "-1.5e3", '""', "[]", "nul", "{}", "[null]", '"x"', "Tru"])
    if "time" in key:
        return f'"{time(r)}"'
    if "bbox" in key.lower():
        return array(r, r.randrange(7) if r.odd(0.15) else 4)
    if "point" in key.lower():
        return array(r, r.randrange(5) if r.odd(0.15) else 2)
    return f'"{escaped(r, prose(r, 6))}"'


def group(r, keys):
    keys = [k for k in keys if not r.odd(0.06)]
    if r.random() < 0.5:
        r.shuffle(keys)
    for _ in range(r.choice([1, 2]) if r.odd(0.3) else 0):
        keys.insert(r.randrange(len(keys) + 1), r.choice(KEYS))
    parts = [f'{gap(r)}"{k}"{gap(r)}:{gap(r)}{value(r, k)}{gap(r)}' for k in keys]
    return "{" + gap(r) + ",".join(parts) + (r.choice(["", ",}", "]}", "}}"]) if r.odd(0.1) else "}")


def plan(r):
    groups = [group(r, ["start_time", "end_time", "description"]) for _ in range(r.choice([0, 1, 1, 2, 2, 3, 4, 6, 9]))]
    body = r.choice(["", " ", "\n", ", "]).join(groups)
    return f"<think>{gap(r)}{prose(r)}</think>{r.choice(SPACES)}<answer>{gap(r)}{body}{gap(r)}</answer>"


def spoken(r):
    return f"<think>{prose(r)}</think>{gap(r)}<answer>{r.choice(SPACES)}{prose(r, 20)}{r.choice(SPACES)}</answer>"


def grounding(r):
    groups = [group(r, ["bbox_2d", "label"]) for _ in range(r.choice([0, 1, 1, 1, 2, 3, 5, 8]))]
    return r.choice(["", "```json\n", prose(r, 4)]) + "[" + ", ".join(groups) + r.choice(["]", "]\n```", ""])


def pointing(r):
    keys = ["bbox_2d", "points_1", "points_2"] if r.random() < 0.6 else ["bbox", "Points", "my_points_2"]
    body = r.choice(["", "{}", "{ }", "{"]) * (r.random() < 0.15) + group(r, keys)
    outside = lambda: prose(r) + (group(r, keys) if r.random() < 0.2 else "")
    return f"<think>{outside()}</think>{gap(r)}<answer>{body}</answer>{outside() if r.random() < 0.2 else ''}"


def mutate(r, text):
    data = bytearray(text)
    for _ in range(r.randrange(1, 5)):
        at = r.randrange(len(data) + 1)
        kind = r.randrange(6)
        if kind == 0:
            del data[at : at + r.randrange(1, 4)]
        elif kind == 1:
            data[at:at] = r.choice(PIECES).encode()
        elif kind == 2:
            data[at:at] = bytes([r.randrange(256)])
        elif kind == 3 and data:
            data[at % len(data)] = r.randrange(256)
        elif kind == 4:
            span = data[at : at + r.randrange(30)]
            to = r.randrange(len(data) + 1)
            data[to:to] = span
        else:
            data[at : at + 1] = r.choice(PIECES).encode()
    return bytes(data)


def case(r, most):
    """One completion as bytes (not always UTF-8), at most `most` long but for a few."""
    make = r.choice([plan, plan, spoken, grounding, pointing])
    r.level = r.choice([0.05, 0.3, 1.0])
    kind = r.randrange(20)
    if kind < 9:
        data = make(r).encode("utf-8", "surrogatepass")
    elif kind < 15:
        data = mutate(r, make(r).encode())
    elif kind < 17:
        data = "".join(r.choice(PIECES) for _ in range(r.randrange(60))).encode()
    elif kind < 18:
        data = bytes(r.randrange(256) for _ in range(r.randrange(80)))
    elif kind < 19:
        data = (prose(r, 30) + r.choice(PIECES)).encode()
        data = data[: r.randrange(len(data) + 1)] + r.choice([b"", b"<answer>{}</answer>", "🎸".encode()[:2]])
    else:
        data = (make(r) + make(r)).encode()
    return data if r.random() < 0.02 else data[:most]


def cases(seed, count, most=600):
    r = Dice(seed)
    return [case(r, most) for _ in range(count)]
