"""What a synthetic world rewards, with oracles and no training: `python -m omnir1_jax.toy.headroom --preset fleeting`.

An oracle's answer is a shape, or none. The ideal tracker follows a shape through the whole clip from any frame in which
enough of it is seen. System 2 takes one of the shapes that fit its description and can be recognised in its frame. So
tables say how much there is to gain by frames, by descriptions and by sound; how much of it a model gains is another
question.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import cv2
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Bool, Float

from omnir1_jax import cli
from omnir1_jax.data import canvas
from omnir1_jax.data.synthetic import facts, reader, writers
from omnir1_jax.data.synthetic.expressions import Expression
from omnir1_jax.data.synthetic.scenes import Clip, make_clip
from omnir1_jax.data.synthetic.world import PRESETS, VOICES, WorldConfig
from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import davis
from omnir1_jax.inference import from_checkpoint, run, segment
from omnir1_jax.inference.answer import Prompts

RULES = ("best", "uniform", "random", "first")
NEEDS = ("image", "video", "sound")
DRAWS = 8  # of a System 2 that has several shapes to choose from
SPLIT = "valid"
SIDES = (64, 128, 256)  # of SAM 2's input, whose masks have a quarter of it
Score = tuple[float, float]  # J&F in percent: over all frames, and over those in which the target is visible


class Item(NamedTuple):
    """A clip with a query about one shape.

    Attributes:
      seen: a shape in a frame can be followed from there. clear: and recognised. (objects, time)
      fits: the shapes that System 2 takes the query's own words for, in any one frame.
      deaf: the shapes that may be meant for who sees the clip and does not hear it.
    """

    clip: Clip
    target: int
    needs: str
    seen: Bool[np.ndarray, "n t"]
    clear: Bool[np.ndarray, "n t"]
    fits: tuple[int, ...]
    deaf: tuple[int, ...]


def item(clip: Clip, e: Expression, recording: bool) -> Item:
    """`recording`: only the first frame is shown."""
    found = facts.observe(clip.scene)
    seen, clear = (np.array([getattr(fact, name) for fact in found]) for name in ("seen", "clear"))
    (target,), shapes = e.targets, clip.scene.shapes
    deaf = [n for n in e.among if not recording or clip.masks[n, 0].any()]
    if clip.scene.config.rims and not recording:
        deaf = [n for n in deaf if (shapes[n].tone is None) == (shapes[target].tone is None)]
    if clip.scene.config.voices and e.topic in ("high", "low"):
        deaf = [n for n in deaf if VOICES[shapes[n].colour] == VOICES[shapes[target].colour]]
    fits = e.targets if e.needs == "image" else e.among
    return Item(clip, target, e.needs, seen, clear, fits, tuple(deaf))


def items(config: WorldConfig, family: str, clips: int, seed: int) -> list[Item]:
    """One query of each clip, as evaluation has them: of a clip's queries in turn the first, the second, ... ."""
    out = []
    for k in range(clips):
        number, of = k % 4, writers.clip_seed(seed, SPLIT, k)
        if family == "refavs":
            clip, chosen = reader.heard_in(config.recorded(), of, number)
        else:
            clip = make_clip(config, of)
            chosen = writers.mixed(clip, 1 + number)
        if chosen:
            out.append(item(clip, chosen[number % len(chosen)], family == "refavs"))
    return out


def alike(one: Item, named: int) -> list[int]:
    shapes = one.clip.scene.shapes
    look = lambda n: (shapes[n].colour, shapes[n].kind)
    return [n for n in range(len(shapes)) if look(n) == look(named)]


def frames(one: Item, rule: str, budget: int, named: int, rng: np.random.Generator) -> list[int]:
    """At most `budget` frames. "best": where the named shape is recognised, is the only one of its look, is largest."""
    total = one.seen.shape[1]
    if rule == "first":
        return [0]
    if rule == "uniform":
        return [(2 * place + 1) * total // (2 * budget) for place in range(budget)]
    if rule == "random":
        return [int(t) for t in np.sort(rng.permutation(total)[:budget])]
    area = one.clip.masks[named].sum((1, 2))
    alone = one.clear[alike(one, named)].sum(0) == 1
    worth = [(bool(one.clear[named, t] and alone[t]), bool(one.clear[named, t]), int(area[t])) for t in range(total)]
    order = sorted(range(total), key=lambda t: worth[t], reverse=True)
    return [t for t in order[:budget] if worth[t][:2] == worth[order[0]][:2]]


def find(one: Item, at: Sequence[int], fits: Iterable[int], rng: np.random.Generator) -> frozenset[int]:
    """The shapes that System 2 takes in these frames: in each one of those that fit."""
    pools = [[n for n in fits if one.clear[n, t]] for t in at]
    return frozenset(int(rng.choice(pool)) for pool in pools if pool)


def score(one: Item, predicted: Bool[np.ndarray, "t h w"]) -> Score:
    truth = one.clip.masks[one.target]
    both = 50 * (davis.jaccard(truth, predicted) + davis.contour(truth, predicted))
    return float(both.mean()), float(both[truth.any((1, 2))].mean())


def scorer(one: Item) -> Callable[[frozenset[int]], Score]:
    """The score of an answer, of the ideal tracker."""
    return functools.cache(lambda shapes: score(one, one.clip.masks[sorted(shapes)].any(0)))


def oracles(one: Item, budget: int, rules: Sequence[str], rng: np.random.Generator) -> dict[tuple[str, str], Score]:
    """Scores by (frames, description), each the mean of several draws."""
    of, out = scorer(one), {}
    everyone = range(len(one.seen))
    mean = lambda answers: tuple(np.mean([of(answer) for answer in answers], 0))
    described = {"true look": alike(one, one.target), "query's words": one.fits, "any look": everyone}
    for rule in rules:
        drawn = [frames(one, rule, budget, one.target, rng) for _ in range(DRAWS)]
        follow = lambda at: frozenset([one.target] if one.seen[one.target, at].any() else [])
        out[rule, "perfect boxes"] = mean([follow(at) for at in drawn])
        for name, fits in described.items():
            out[rule, name] = mean([find(one, at, fits, rng) for at in drawn])
    if one.needs == "sound":
        guesses = [int(rng.choice(one.deaf)) for _ in range(DRAWS)]
        for name, guess in (("heard", [one.target] * DRAWS), ("not heard", guesses)):
            answers = [find(one, frames(one, rules[0], budget, n, rng), alike(one, n), rng) for n in guess]
            out[rules[0], name] = mean(answers)
    return out


def tracked(
    found: Sequence[Item], budget: int, rng: np.random.Generator, checkpoint: str, room: int = 16
) -> dict[str, Score]:
    """Scores by rule of perfect boxes with the SAM 2 of a checkpoint."""
    config = from_checkpoint.config_of(checkpoint)
    made = from_checkpoint.in_place(config, from_checkpoint.load(checkpoint, config))
    side, out = config.sam2.side, {}
    for rule in RULES:
        scores: list[Score] = []
        for start in range(0, len(found), room):
            batch = (list(found[start : start + room]) * room)[:room]
            height, width = batch[0].clip.frames.shape[1:3]
            at = [frames(one, rule, budget, one.target, rng) for one in batch]
            at = np.array([(times * budget)[:budget] for times in at], np.int32)
            boxes = np.stack([canvas.boxes(one.clip.masks[one.target][None])[:, t] for one, t in zip(batch, at)])
            small = [[cv2.resize(frame, (side, side)) for frame in one.clip.frames] for one in batch]
            small, original = np.array(small, np.uint8), np.tile(np.array([width, height], np.int32), (room, 1))
            prompts = Prompts(jnp.asarray(boxes, jnp.float32), jnp.asarray(boxes[..., 0] >= 0), jnp.asarray(at))
            valid = np.ones(small.shape[:2], bool)
            logits = run.SEGMENT(made.models.segmenter, made.segmenter_params, small, valid, original, prompts)
            masks = np.asarray(segment.lift(logits, jnp.asarray(original), segment.canvas([(height, width)])))
            scores += [score(one, mask[:, :height, :width]) for one, mask in zip(batch, masks)]
        out[rule] = tuple(np.mean(scores[: len(found)], 0))
    return out


def grained(found: Sequence[Item], side: int) -> Score:
    """Of perfect masks as a segmenter of this side has them: the covered share of its pixels, raised to the clip's."""
    scores, coarse = [], (side // 4, side // 4)
    for one in found:
        truth = one.clip.masks[one.target]
        height, width = truth.shape[1:]
        small = [cv2.resize(mask.astype(np.float32), coarse, interpolation=cv2.INTER_AREA) for mask in truth]
        logits, size = jnp.asarray(small)[None, None] - 0.5, jnp.array([[width, height]])
        lifted = np.asarray(segment.lift(logits, size, segment.canvas([(height, width)])))
        scores.append(score(one, lifted[0, :, :height, :width]))
    return tuple(np.mean(scores, 0))


def cell(scores: Sequence[Score] | Float[np.ndarray, "n 2"]) -> str:
    return " / ".join(f"{value:.1f}" for value in np.mean(scores, 0))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)) + "\n"


def measure(config: WorldConfig, family: str, clips: int, seed: int, budget: int, sam2: str) -> str:
    """The tables of one family, as markdown: J&F over all frames / over frames in which the target is visible."""
    found, rng = items(config, family, clips, seed), np.random.default_rng(seed)
    rules = RULES if family == "vos" else ("first",)
    scored = [oracles(one, budget, rules, rng) for one in found]
    seen = {} if not sam2 or family != "vos" else tracked(found, budget, rng, sam2)
    columns = ("perfect boxes", "true look", "query's words", "any look")
    header = ("frames", *columns, *(["perfect boxes, SAM 2"] if seen else []))
    rows = [
        (rule, *(cell([s[rule, c] for s in scored]) for c in columns), *([cell([seen[rule]])] if seen else []))
        for rule in rules
    ]
    parts = [table(header, rows)]
    if seen:
        values = [cell([grained(found, side)]) for side in SIDES]
        parts.append(table(("SAM 2 at", *(f"{side} pixels" for side in SIDES)), [("perfect masks", *values)]))
    own = [n for n in NEEDS if any(one.needs == n for one in found)]
    of = {need: [s for one, s in zip(found, scored) if one.needs == need] for need in own}
    header = (f"queries, {rules[0]} frames", "number", *columns[1:])
    rows = [(f"by {n}", str(len(of[n])), *(cell([s[rules[0], c] for s in of[n]]) for c in columns[1:])) for n in own]
    parts += [table(header, rows)] if len(own) > 1 else []
    if "sound" in own:
        ears = [cell([s[rules[0], ear] for s in of["sound"]]) for ear in ("heard", "not heard")]
        parts.append(table(("queries by sound", "heard", "not heard"), [("", *ears)]))
    return "\n".join(parts)


_PRESET = cli.flag.enum("preset", "fleeting", sorted(PRESETS), "World that is measured.")
_CLIPS = cli.flag.integer("clips", 256, "Clips of each family.", lower_bound=1)
_SEED = cli.flag.integer("seed", 1, "Seed of the clips.", lower_bound=0)
_BUDGET = cli.flag.integer("keyframes", 1, "Frames that System 2 is asked about.", lower_bound=1)
_SAM2 = cli.flag.bool("sam2", False, "Also perfect boxes with SAM 2 in place of the ideal tracker.")
_CHECKPOINT = cli.flag.string("checkpoint", from_checkpoint.TOY, "Whose SAM 2: a run's work directory, or toy.")


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # orbax logs every step
    config = PRESETS[_PRESET.value]
    if _BUDGET.value > config.frames:
        raise InputError(f"--keyframes: a clip of {_PRESET.value} has {config.frames} frames")
    about = f"{_CLIPS.value} clips of {config.frames} frames, {_BUDGET.value} of them shown to System 2"
    sam2 = _CHECKPOINT.value if _SAM2.value else ""
    for family, said in (("vos", about), ("refavs", f"{_CLIPS.value} recordings, the first frame of each")):
        print(f"{family}: {said}; J&F over all frames / over frames in which the target is visible\n")
        print(measure(config, family, _CLIPS.value, _SEED.value, _BUDGET.value, sam2), flush=True)


if __name__ == "__main__":
    cli.run(main)
