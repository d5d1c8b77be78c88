"""Referring expressions of a scene. A sentence is made only if it picks out exactly its targets.

A sentence is a noun phrase ("the red circle", "the shape") and perhaps a clause ("that grows"). Its domain is what
the noun phrase fits; the clause must be certain, yes or no, for every shape of the domain.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from omnir1_jax.data.synthetic.facts import DIRECTIONS, ShapeFacts, Truth
from omnir1_jax.data.synthetic.world import COLOURS, KINDS, TONES

REFERRING, REASONING, NOTHING = 0, 1, 2
Number = int | float
PLURALS = {kind: "crosses" if kind == "cross" else f"{kind}s" for kind in (*KINDS, "shape", "one")}


@dataclass(frozen=True)
class Expression:
    text: str
    targets: tuple[int, ...]  # shapes of the scene; empty for a sentence that fits nothing
    type_id: int  # REFERRING, REASONING or NOTHING, as ReVOS counts
    needs: str  # what is needed to understand it: "image", "video" or "sound"
    topic: str  # its topic: "look", "grows", "enters_last", ...
    among: tuple[int, ...] = field(default=(), repr=False)  # shapes that its noun fits, of which the rest picks


@dataclass(frozen=True)
class _Noun:
    one: str  # "red circle"
    many: str  # "red circles"
    domain: tuple[int, ...]
    sure: bool = True  # whether it fits exactly `domain`, no shape being doubtful


@dataclass(frozen=True)
class _Clause:
    topic: str
    needs: str
    one: tuple[str, ...]  # wordings, "that grows"
    many: tuple[str, ...]  # "that grow"
    judge: Callable[[Sequence[int]], dict[int, Truth]]  # truth for every shape of a domain
    type_id: int = REASONING


def describe(facts: Sequence[ShapeFacts], rng: np.random.Generator, relations: bool = False) -> tuple[Expression, ...]:
    """Every kind of true sentence about the scene, one wording of each, and one that fits nothing.

    `relations`: also order and sound by way of another shape.
    """
    expressions: list[Expression] = []
    nouns = list(_nouns(facts))
    for noun in nouns:
        if noun.sure:
            expressions += _say(noun, None, noun.domain, rng)
    clauses = list(_clauses(facts))
    for noun in nouns:
        if not noun.sure or (len(noun.domain) < 2 and len(facts) > 1):
            continue
        for clause in clauses:
            truths = clause.judge(noun.domain)
            if None in truths.values():
                continue
            targets = tuple(n for n in noun.domain if truths[n])
            if targets and (len(targets) < len(noun.domain) or len(facts) == 1):
                expressions += _say(noun, clause, targets, rng)
    expressions += _relations(facts, nouns)
    if relations:
        expressions += _in_time(facts, nouns)
    expressions += _nothing(facts, rng)
    unique: dict[str, Expression] = {}
    for expression in expressions:
        unique.setdefault(expression.text, expression)
    return tuple(unique.values())


def choose(
    expressions: Sequence[Expression],
    rng: np.random.Generator,
    count: int,
    needs: tuple[str, ...],
    nothing: bool = False,
) -> tuple[Expression, ...]:
    """At most `count` of the expressions that need no more than `needs`, spread over topics and targets.

    `nothing`: also ones without a target.
    """
    pool = [e for e in expressions if e.needs in needs and (nothing or e.targets)]
    order = [pool[i] for i in rng.permutation(len(pool))]
    chosen: list[Expression] = []
    while order and len(chosen) < count:
        topics, targets = [e.topic for e in chosen], [e.targets for e in chosen]
        types = [e.type_id for e in chosen]
        best = min(order, key=lambda e: (topics.count(e.topic), types.count(e.type_id), targets.count(e.targets)))
        order.remove(best)
        chosen.append(best)
    return tuple(chosen)


def _say(
    noun: _Noun, clause: _Clause | None, targets: tuple[int, ...], rng: np.random.Generator
) -> Iterator[Expression]:
    single = len(targets) == 1
    if clause is None:
        if targets and not (noun.one == "shape" and single):
            text = f"the {noun.one}" if single else f"all the {noun.many}"
            yield Expression(text, targets, REFERRING, "image", "look", noun.domain)
        return
    wordings = clause.one if single else clause.many
    if wordings:
        wording = wordings[int(rng.integers(len(wordings)))]
        word = noun.one if single else noun.many
        if word in ("shape", "shapes") and rng.random() < 0.4:
            word = {"shape": "one", "shapes": "ones"}[word]
        yield Expression(f"the {word} {wording}", targets, clause.type_id, clause.needs, clause.topic, noun.domain)


def _nouns(facts: Sequence[ShapeFacts]) -> Iterator[_Noun]:
    all_shapes = tuple(range(len(facts)))
    yield _Noun("shape", "shapes", all_shapes)
    looks = [(f.shape.colour, f.shape.kind) for f in facts]
    for kind in dict.fromkeys(kind for _, kind in looks):
        yield _Noun(kind, PLURALS[kind], tuple(n for n in all_shapes if looks[n][1] == kind))
    for colour in dict.fromkeys(colour for colour, _ in looks):
        domain = tuple(n for n in all_shapes if looks[n][0] == colour)
        yield _Noun(f"{colour} shape", f"{colour} shapes", domain)
    for colour, kind in dict.fromkeys(looks):
        domain = tuple(n for n in all_shapes if looks[n] == (colour, kind))
        yield _Noun(f"{colour} {kind}", f"{colour} {PLURALS[kind]}", domain)
    for kind in dict.fromkeys(kind for _, kind in looks):
        same_kind = [n for n in all_shapes if looks[n][1] == kind]
        domain = tuple(n for n in same_kind if facts[n].striped)
        if domain:
            sure = all(facts[n].striped is not None for n in same_kind)
            yield _Noun(f"striped {kind}", f"striped {PLURALS[kind]}", domain, sure)


def _clauses(facts: Sequence[ShapeFacts]) -> Iterator[_Clause]:
    def each(truth: Callable[[ShapeFacts], Truth]):
        return lambda domain: {n: truth(facts[n]) for n in domain}

    def most(value: Callable[[ShapeFacts], Number | None], gap: Number, ratio: Number = 1):
        return lambda domain: _most({n: value(facts[n]) for n in domain}, gap, ratio)

    length = len(facts[0].clear)
    yield _Clause("grows", "video", ("that grows", "that gets bigger"), ("that grow",), each(lambda f: f.grows))
    yield _Clause(
        "shrinks", "video", ("that shrinks", "that gets smaller"), ("that shrink",), each(lambda f: f.shrinks)
    )
    if length > 1:
        stays = ("that stays where it is", "that does not move")
        yield _Clause("still", "video", stays, ("that do not move",), each(lambda f: f.still))
        moves = each(lambda f: None if f.still is None else not f.still)
        yield _Clause("moves", "video", ("that moves", "that is moving"), ("that move",), moves)
        for way in DIRECTIONS:
            judge = each(lambda f, way=way: _goes(f, way, f.extent[0 if way in ("left", "right") else 1]))
            to = way if way in ("up", "down") else f"to the {way}"
            yield _Clause(f"goes_{way}", "video", (f"that moves {to}",), (f"that move {to}",), judge, REFERRING)
        whole_time = each(lambda f: not f.enters and not f.leaves)
        yield _Clause(
            "stays", "video", ("that is there from start to end",), ("that are there from start to end",), whole_time
        )
    enters = ("that is not there at the beginning", "that comes into the picture")
    yield _Clause("enters", "video", enters, ("that come into the picture",), each(lambda f: f.enters))
    leaves = ("that leaves the picture", "that is gone at the end")
    yield _Clause("leaves", "video", leaves, ("that leave the picture",), each(lambda f: f.leaves))
    entry_frame, exit_frame = (lambda f: f.first if f.enters else None), (lambda f: f.last if f.leaves else None)
    yield _Clause("enters_last", "video", ("that enters last", "that comes in last"), (), most(entry_frame, 2))
    yield _Clause("enters_first", "video", ("that is the first to come in",), (), most(_negative(entry_frame), 2))
    yield _Clause(
        "leaves_first", "video", ("that leaves first", "that is the first to go"), (), most(_negative(exit_frame), 2)
    )
    yield _Clause("leaves_last", "video", ("that is the last to go",), (), most(exit_frame, 2))
    yield _Clause("fastest", "video", ("that moves fastest",), (), most(lambda f: f.speed, 1.0, 1.5))
    yield from _place_clauses(facts, most)
    yield from _sound_clauses(facts, each, most)
    hides = each(lambda f: _any(f.behind.values()))
    if length > 1:
        behind = ("that passes behind another shape", "that is partly hidden at times")
        yield _Clause("behind", "video", behind, ("that are partly hidden at times",), hides)
    else:
        yield _Clause("behind", "image", ("that is partly hidden",), ("that are partly hidden",), hides)


def _place_clauses(facts: Sequence[ShapeFacts], most) -> Iterator[_Clause]:
    """Where and how large shapes are; of those that can be compared."""
    length = len(facts[0].clear)
    when, needs = (" at the start", "video") if length > 1 else ("", "image")
    reach = max(max(map(abs, position)) for f in facts for position in f.places)
    for side, (dx, dy) in {**DIRECTIONS}.items():
        value = lambda f, dx=dx, dy=dy: f.places[0][0] * dx + f.places[0][1] * dy if f.clear[0] else float("nan")
        end = {
            "left": "farthest to the left",
            "right": "farthest to the right",
            "up": "at the top",
            "down": "at the bottom",
        }
        text = f"that is {end[side]}{when}"
        yield _Clause(f"place_{side}", needs, (text,), (), most(value, 0.12 * reach), REFERRING)
    largest = lambda domain: _separate({n: (min(facts[n].radii), max(facts[n].radii)) for n in domain}, True)
    smallest = lambda domain: _separate({n: (min(facts[n].radii), max(facts[n].radii)) for n in domain}, False)
    yield _Clause("largest", "image", ("that is the largest",), (), largest, REFERRING)
    yield _Clause("smallest", "image", ("that is the smallest",), (), smallest, REFERRING)


def _sound_clauses(facts: Sequence[ShapeFacts], each, most) -> Iterator[_Clause]:
    tone = lambda f: None if f.shape.tone is None else TONES[f.shape.tone]
    began = lambda f: None if f.shape.sounds is None else f.shape.sounds[0]
    lasted = lambda f: None if f.shape.sounds is None else f.shape.sounds[1] - f.shape.sounds[0]
    singular, plural = ("that makes a sound", "that can be heard"), ("that make a sound",)
    yield _Clause("sounds", "sound", singular, plural, each(lambda f: f.shape.sounds is not None))
    singular, plural = ("that never makes a sound", "that stays silent"), ("that stay silent",)
    yield _Clause("silent", "sound", singular, plural, each(lambda f: f.shape.sounds is None))
    yield _Clause("high", "sound", ("that makes the high tone", "with the highest sound"), (), most(tone, 100))
    yield _Clause("low", "sound", ("that makes the low tone", "with the lowest sound"), (), most(_negative(tone), 100))
    yield _Clause("sounds_first", "sound", ("that is heard first",), (), most(_negative(began), 1))
    yield _Clause("sounds_last", "sound", ("that is heard last",), (), most(began, 1))
    yield _Clause("longest", "sound", ("that sounds longest",), (), most(lasted, 1, 1.5))


def _goes(fact: ShapeFacts, direction: str, length: int) -> Truth:
    """Whether it goes one way, of the frame's `length` along it; a shape that drifts that way a little is doubtful."""
    if fact.direction == direction or fact.still:
        return fact.direction == direction
    dx, dy = DIRECTIONS[direction]
    (x0, y0), (x1, y1) = fact.places[0], fact.places[-1]
    return False if (x1 - x0) * dx + (y1 - y0) * dy <= 0.08 * length else None


def _any(truths) -> Truth:
    truths = list(truths)
    return True if True in truths else None if None in truths else False


def _negative(value):
    def negated(fact):
        number = value(fact)
        return None if number is None else -number

    return negated


def _most(values: dict[int, Number | None], gap: Number, ratio: Number) -> dict[int, Truth]:
    """The one with the largest value, ahead of the next by `gap` and `ratio`, among at least two that have a value."""
    having = sorted((v, n) for n, v in values.items() if v is not None)
    if any(v != v for v, _ in having):
        return dict.fromkeys(values)  # one could not be compared
    if len(having) < 2:
        return dict.fromkeys(values, False)
    (second, _), (best, winner) = having[-2:]
    if best - second < gap or (ratio > 1 and best < ratio * second):
        return dict.fromkeys(values)
    return {n: n == winner for n in values}


def _separate(ranges: dict[int, tuple[Number, Number]], largest: bool) -> dict[int, Truth]:
    """The one that is at all times larger (smaller) than all others ever are, by a quarter."""
    if len(ranges) < 2:
        return dict.fromkeys(ranges, False)
    for n, (low, high) in ranges.items():
        other_ranges = [r for m, r in ranges.items() if m != n]
        if all(low >= 1.25 * r[1] if largest else high * 1.25 <= r[0] for r in other_ranges):
            return {m: m == n for m in ranges}
    return dict.fromkeys(ranges)


def _names(nouns: Sequence[_Noun]) -> dict[int, str]:
    """The shortest sure name of each shape that has one."""
    names: dict[int, str] = {}
    for noun in sorted(nouns, key=lambda noun: len(noun.one)):
        if noun.sure and len(noun.domain) == 1 and noun.one != "shape":
            names.setdefault(noun.domain[0], noun.one)
    return names


def _in_time(facts: Sequence[ShapeFacts], nouns: Sequence[_Noun]) -> Iterator[Expression]:
    """Sentences about the one shape that comes after another, is gone before it, or is heard as it comes or goes."""
    for other, name in _names(nouns).items():
        rest, landmark = tuple(n for n in range(len(facts)) if n != other), facts[other]
        # Seen when it first appears, and when it was last there.
        first, last = (tuple(n for n in rest if facts[n].seen[t]) for t in (landmark.first, landmark.last))
        entry_gaps = {n: facts[n].first - landmark.first for n in rest if facts[n].enters}
        exit_gaps = {n: landmark.last - facts[n].last for n in rest if facts[n].leaves}
        candidates = []
        if landmark.enters:
            candidates += [("comes_after", "video", f"that comes in right after the {name}", _next(entry_gaps), rest)]
            clause, sounding = f"that is heard while the {name} comes in", _heard(facts, landmark.first)
            candidates += [("heard_at", "sound", clause, sounding, first)]
        if landmark.leaves:
            candidates += [("goes_before", "video", f"that leaves right before the {name}", _next(exit_gaps), rest)]
            clause, sounding = f"that is heard while the {name} leaves", _heard(facts, landmark.last)
            candidates += [("heard_at", "sound", clause, sounding, last)]
        for topic, needs, clause, target, domain in candidates:
            if target is not None and target in domain and len(domain) > 1:
                yield Expression(f"the shape {clause}", (target,), REASONING, needs, topic, domain)


def _next(gaps: dict[int, int]) -> int | None:
    """The one with the smallest gap above 0, by 2 frames away from 0 and from the next; None if not for sure."""
    ahead = sorted((gap, n) for n, gap in gaps.items() if gap > -2)
    if not ahead or ahead[0][0] < 2 or (len(ahead) > 1 and ahead[1][0] < ahead[0][0] + 2):
        return None
    return ahead[0][1]


def _heard(facts: Sequence[ShapeFacts], moment: int) -> int | None:
    """The shape that sounds through a moment and the frames around it."""
    spans = {n: f.shape.sounds for n, f in enumerate(facts) if f.shape.sounds}
    window = (max(0, moment - 1), min(len(facts[0].clear), moment + 2))
    return next((n for n, (start, end) in spans.items() if start <= window[0] and window[1] <= end), None)


def _relations(facts: Sequence[ShapeFacts], nouns: Sequence[_Noun]) -> Iterator[Expression]:
    """Sentences about one shape by way of another, and about several at once."""
    all_shapes = tuple(range(len(facts)))
    names = _names(nouns)
    for other, name in names.items():
        truths = {n: facts[n].behind.get(other, False) for n in all_shapes if n != other}
        targets = tuple(n for n in truths if truths[n])
        if len(targets) == 1 and None not in truths.values():
            does, needs = ("passes", "video") if len(facts[0].clear) > 1 else ("is", "image")
            yield Expression(
                f"the shape that {does} behind the {name}", targets, REASONING, needs, "behind", all_shapes
            )
        colour, kind = facts[other].shape.colour, facts[other].shape.kind
        targets = tuple(n for n in all_shapes if n != other and facts[n].shape.colour == colour)
        if len(targets) == 1 and colour not in name:
            text = f"the shape that has the same colour as the {name}"
            yield Expression(text, targets, REASONING, "image", "same_colour", all_shapes)
        rest = tuple(n for n in all_shapes if n != other)
        if len(rest) >= 2:
            yield Expression(f"every shape except the {name}", rest, REASONING, "image", "except")
        other_kinds = {facts[n].shape.kind for n in rest}
        if len(rest) >= 2 and len(other_kinds) == 1 and kind not in other_kinds:
            text = f"the only shape that is not a {other_kinds.pop()}"
            yield Expression(text, (other,), REASONING, "image", "odd_one", all_shapes)
    pairs = [(a, b) for a in names for b in names if a < b]
    for a, b in pairs:
        yield Expression(f"the {names[a]} and the {names[b]}", (a, b), REFERRING, "image", "pair")


def _nothing(facts: Sequence[ShapeFacts], rng: np.random.Generator) -> Iterator[Expression]:
    """The name of a shape that is not there, near to one that is: its colour and kind are there, but not together."""
    looks = {(f.shape.colour, f.shape.kind) for f in facts}
    absent = [(c, k) for c in COLOURS for k in KINDS if (c, k) not in looks and any(c == d for d, _ in looks)]
    colour, kind = absent[int(rng.integers(len(absent)))]
    yield Expression(f"the {colour} {kind}", (), NOTHING, "image", "nothing")
