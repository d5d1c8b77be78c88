"""What can be seen in frames of a lesson's clip, and the lessons that System 2 is taught about them.

The clips come from the synthetic reader with `lessons=True`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from omnir1_jax.data import canvas
from omnir1_jax.data.clips import DecodedClip
from omnir1_jax.data.preprocess import tokens
from omnir1_jax.data.synthetic.world import COLOURS, KINDS
from omnir1_jax.tasks import examples
from omnir1_jax.tasks.examples import Arrays
from omnir1_jax.tasks.targets import Target, TargetConfig, pack

CLEAR = 24  # pixels, the least of a shape that is asked for
TURN = "<|im_end|>\n<|im_start|>assistant\n"
KIND = "{kind}"
FORMS = ("{colour} {kind}", KIND, KIND, KIND, "{colour} shape")
EVENLY = ("{colour} {kind}", KIND, "{colour} shape")


def asked(words: str, answer: str) -> Target:
    return Target(answer, f"{words}{TURN}")


def looks(clip: DecodedClip, shapes: Sequence[int] | np.ndarray) -> str:
    """ "red circle, blue star": in the order of the world's colours."""
    names = [clip.ref.extra["looks"][n] for n in shapes]
    return ", ".join(sorted(names, key=lambda name: list(COLOURS).index(name.split()[0])))


def seen(clip: DecodedClip) -> Bool[np.ndarray, "n t"]:
    """Which shapes can be made out in which frames."""
    return clip.masks.sum(axis=(2, 3)) >= CLEAR


def draw(rng: np.random.Generator, options: Sequence[Any] | np.ndarray) -> Any:
    return options[int(rng.integers(len(options)))]


def wording(name: str, rng: np.random.Generator, forms: Sequence[str] = FORMS) -> str:
    """A description of a shape that has no like: its looks, or one of them."""
    colour, kind = name.split()
    form = draw(rng, forms).format(colour=colour, kind=kind)
    return form if rng.random() < 0.5 else f"the {form}"


@examples.named
def grounding(clip: DecodedClip, config: TargetConfig) -> Arrays:
    """Frames of a clip as System 2 sees them, with descriptions and their boxes; an empty list for what is not there.

    Arrays have a leading axis of prompts, one for every other frame.
    """
    return _grounding(clip, config, _ask_plainly(clip, config, FORMS))


@examples.named
def kinds(clip: DecodedClip, config: TargetConfig) -> Arrays:
    """As `grounding`, where shapes are asked for by their kinds alone: colours first, and kinds are never learnt."""
    return _grounding(clip, config, _ask_plainly(clip, config, (KIND,)))


@examples.named
def named(clip: DecodedClip, config: TargetConfig) -> Arrays:
    """As `grounding`, among shapes that share colours and kinds: by whatever names one of them alone in its frame."""
    return _grounding(clip, config, _ask_among_others(clip, config))


def _grounding(clip: DecodedClip, config: TargetConfig, ask: Callable[[int, np.ndarray], list[Target]]) -> Arrays:
    """`ask`: targets about a frame, with its shapes' boxes (n, 4) in pixels as System 2 sees it."""
    rng = clip.rng
    frames = rng.permutation(len(clip.frames))[: config.frames // 2]
    sharp = examples.sharp_arrays(clip.frames[frames], clip.size, config)
    sharp = {key.removeprefix("sharp/"): value for key, value in sharp.items()}
    scale = np.tile(sharp["resized"] / sharp["original"], 2)
    boxes = canvas.boxes(clip.masks)
    targets = [pack(ask(int(t), boxes[:, t] * scale), config) for t in frames]
    count = len(frames)
    every = lambda value: np.repeat(np.asarray(value)[None], count, axis=0)
    shared = ("tokens", "mask", "positions", "next_position", "vision_index")
    return {
        **{f"policy/{name}": every(sharp[name]) for name in shared},
        "policy/audio_index": np.full((count, len(sharp["tokens"])), -1, np.int32),
        "policy/vision/pixels": np.repeat(sharp["cells"][:count, :, None], 2, axis=2),
        **{f"policy/vision/{name}": every(sharp[name]) for name in ("rows_cols", "windows", "frames")},
        **{key: np.stack([one[key] for one in targets]) for key in targets[0]},
    }


def _ask_plainly(
    clip: DecodedClip, config: TargetConfig, forms: Sequence[str]
) -> Callable[[int, np.ndarray], list[Target]]:
    rng, clear, there = clip.rng, seen(clip), clip.masks.any(axis=(2, 3))
    names = clip.ref.extra["looks"]
    head, tail = _around_description(config)

    def ask(t: int, boxes: np.ndarray) -> list[Target]:
        targets = [
            asked_for(wording(names[n], rng, forms), head, tail, [boxes[n]])
            for n in rng.permutation(np.flatnonzero(clear[:, t]))
        ]
        targets = targets[: config.targets - 1]
        targets.append(asked("What:", looks(clip, np.flatnonzero(there[:, t])) or "nothing"))
        absent = [names[n] for n in np.flatnonzero(~there[:, t])]
        while len(targets) < config.targets:
            other = draw(rng, absent) if absent and rng.random() < 0.7 else draw(rng, _strangers(names))
            targets.append(asked_for(other, head, tail, []))
        return targets

    return ask


def in_row(clip: DecodedClip, t: int, shapes: np.ndarray) -> str:
    """ "red circle, blue star": shapes of a frame, from left to right."""
    row = sorted(shapes, key=lambda n: middle(clip.masks[n, t]))
    return ", ".join(clip.ref.extra["looks"][n] for n in row) or "nothing"


def middle(mask: Bool[np.ndarray, "h w"]) -> float:
    """Of a shape in a frame, from the left, in pixels."""
    return float(np.flatnonzero(mask.any(0)).mean())


def lit(clip: DecodedClip) -> Bool[np.ndarray, "n t"]:
    """Which shapes have their colours in which frames."""
    shadows = np.array(clip.ref.extra["shadows"])
    t = clip.frame_indices
    return ~((shadows[:, :1] <= t) & (t < shadows[:, 1:]))


def fitting(form: str, name: str, names: Sequence[str], there: np.ndarray, light: np.ndarray) -> list[int]:
    """The shapes of a frame that a form of a look fits; colours are seen in light only."""
    match = lambda m: [a == b for a, b in zip(names[m].split(), name.split())]
    fits = lambda colour, kind, m: ((colour and light[m]) or "{colour}" not in form) and (kind or KIND not in form)
    return [int(m) for m in np.flatnonzero(there) if fits(*match(m), m=m)]


def names_alone(
    n: int, names: Sequence[str], there: np.ndarray, light: np.ndarray, forms: Sequence[str] = EVENLY
) -> list[str]:
    """The forms that name the n-th shape alone in a frame."""
    return [form for form in forms if fitting(form, names[n], names, there, light) == [n]]


def _ask_among_others(clip: DecodedClip, config: TargetConfig) -> Callable[[int, np.ndarray], list[Target]]:
    rng, clear, light, there = clip.rng, seen(clip), lit(clip), clip.masks.any(axis=(2, 3))
    names = clip.ref.extra["looks"]
    head, tail = _around_description(config)

    def ask(t: int, boxes: np.ndarray) -> list[Target]:
        targets = []
        for n in rng.permutation(np.flatnonzero(clear[:, t])):
            if forms := names_alone(int(n), names, there[:, t], light[:, t]):
                targets.append(asked_for(wording(names[n], rng, forms), head, tail, [boxes[n]]))
        targets = targets[: max(config.targets - 2, 1)]
        targets.append(asked("Tell:", f" {in_row(clip, t, np.flatnonzero(clear[:, t] & light[:, t]))}"))
        shown = [names[n] for n in np.flatnonzero(there[:, t] & light[:, t])]
        kinds_there = {names[n].split()[1] for n in np.flatnonzero(there[:, t])}
        strangers = [f"{c} {k}" for c in COLOURS for k in KINDS if f"{c} {k}" not in shown]
        near = [name for name in strangers if name.split()[1] in kinds_there or name in names]
        # What is not there is asked for in all forms too, or the form would tell by itself that nothing is.
        of_nobody = lambda name: [f for f in EVENLY if not fitting(f, name, names, there[:, t], light[:, t])]
        while len(targets) < config.targets:
            other = draw(rng, near) if near and rng.random() < 0.7 else draw(rng, strangers)
            targets.append(asked_for(wording(other, rng, of_nobody(other)), head, tail, []))
        return targets

    return ask


def _strangers(names: Sequence[str]) -> list[str]:
    """Looks of which neither the colour nor the kind is there: a colour alone is enough to find a shape by."""
    return [f"{c} {k}" for c in COLOURS for k in KINDS if not any(word in name for word in (c, k) for name in names)]


def _around_description(config: TargetConfig) -> tuple[str, str]:
    """System 2's prompt after the frame: before the description and after it."""
    before, after = config.grounding.split("{description}")
    ends = [before.rfind(token) + len(token) for token in tokens.SPELLING.values() if token in before]
    return before[max(ends) :], after


def asked_for(description: str, head: str, tail: str, boxes: Sequence[np.ndarray]) -> Target:
    """System 2's question and its answer, boxes in whole pixels of the resized frame."""
    objects = ",".join('{"bbox_2d": [' + ",".join(str(round(float(v))) for v in box) + "]}" for box in boxes)
    return Target(f"[{objects}]", f"{head}{description}{tail}")
