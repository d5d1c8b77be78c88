"""What a thinker is taught from scratch in the synthetic world, before RL teaches it to choose.

Grounding (`sight`), seeing, hearing and telling are taught from the truth. Plans are taught in form: which shape is
meant has little to do with the query, and the frames nothing. The clips come from the synthetic reader with
`lessons=True`. All questions about one clip or image stand behind one prompt that ends with the medium.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from omnir1_jax.data.clips import DecodedClip
from omnir1_jax.data.frame_sampling import SAMPLED_FPS
from omnir1_jax.data.preprocess import bucket, prompt
from omnir1_jax.data.synthetic.world import COLOURS, KINDS, TONES
from omnir1_jax.errors import InputError
from omnir1_jax.systems import prompts
from omnir1_jax.tasks import examples
from omnir1_jax.tasks.examples import Arrays
from omnir1_jax.tasks.targets import Target, TargetConfig, pack, piece, thought
from omnir1_jax.toy import sight
from omnir1_jax.toy.sight import FORMS, TURN, asked, draw, lit, looks, middle, names_alone, seen, wording

STORY = 48  # tokens, the most of a timeline that stands in a prompt
UNSEEN = [{"type": "text", "text": "Tell:"}]  # where a medium would be
NEEDS = ("sound", "video", "image")  # what it takes to understand a sentence
# Of System 1's plans do what is asked for; the others choose any shape, or by habit the first of their timeline and the
# middle of the clip. RL makes more of what is there now and then: a habit hides it, where among chance it is the most
# probable already.
TOLD = 1 / 5


def media_prompt(content: list[dict[str, Any]], config: TargetConfig, **room: Any) -> Arrays:
    """System 1's prompt up to the end of its medium, so that each target brings its own question."""
    messages = [{"role": "system", "content": config.system}, {"role": "user", "content": content}]
    made = prompt.prepare(
        messages, config.tokenizer, sizes=config.sizes, budget=config.policy_budget, add_generation_prompt=False
    )
    end = len(config.tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"])
    made = made._replace(
        tokens=made.tokens[:-end],
        positions=made.positions[:, :-end],
        next_position=made.next_position - end,
        vision_index=made.vision_index[:-end],
        audio_index=made.audio_index[:-end],
    )
    size = bucket.bucket_for(
        text_tokens=config.text_tokens,
        budget=config.policy_budget,
        sizes=config.sizes,
        max_aspect=config.max_aspect,
        **room,
    )
    return examples.padded(made, size, config)


def _video(clip: DecodedClip, config: TargetConfig, text: str = "") -> Arrays:
    """A clip with its sound, and a text about it; without sound the text alone."""
    if text and not config.audio_seconds:
        return media_prompt([{"type": "text", "text": text}], config)
    sound = examples.waveform(clip, config)
    content = [{"type": "video", "video": clip.frames, "fps": SAMPLED_FPS, **(sound or {})}]
    content += [{"type": "text", "text": text}] if text else []
    heard = [] if sound is None else [config.audio_seconds]
    return media_prompt(content, config, video_frames=[config.frames], audio_seconds=heard)


def _heard(clip: DecodedClip, config: TargetConfig, there: Sequence[int] | np.ndarray) -> Target:
    """The tones in their order, with the looks of the shapes of `there`."""
    extra = clip.ref.extra
    heard = sorted(
        (span[0], f"{tone} {look}" if n in there else tone)
        for n, (span, tone, look) in enumerate(zip(extra["sounds"], extra["tones"], extra["looks"]))
        if span and span[0] < config.audio_seconds
    )
    return asked("Hear:", ", ".join(who for _, who in heard) or "nothing")


def entries(clip: DecodedClip, shapes: Sequence[int] | np.ndarray) -> dict[int, str]:
    """What a timeline tells of each shape, in the order of their coming, by the shapes' numbers.

    From which to which second each is there, as a speck too, and the tone of those that sound with its seconds. A
    picture is told from left to right, and only tones have seconds: "blue star high 1-2".
    """
    extra, there, visible = clip.ref.extra, clip.masks.any((2, 3)), seen(clip)
    ordered = []
    for n in shapes:
        if not visible[n].any():
            continue
        first, last = (int(t) for t in np.flatnonzero(there[n])[[0, -1]] // SAMPLED_FPS)
        words = extra["looks"][n]
        order = (first, last, middle(clip.masks[n, np.flatnonzero(visible[n])[0]]))
        words += f" {first}-{last}" if len(clip.frames) > 1 else ""
        if extra["tones"][n]:
            begun, ended = extra["sounds"][n]
            words += f" {extra['tones'][n]} {int(begun)}-{int(np.ceil(ended)) - 1}"
        ordered.append((order, words, int(n)))
    return {n: words for _, words, n in sorted(ordered)}


def timeline(clip: DecodedClip, shapes: Sequence[int] | np.ndarray) -> str:
    """ " red circle 0-3, blue star 2-5 high 4-4"."""
    return told(entries(clip, shapes).values())


def told(shapes: Iterable[str]) -> str:
    """A timeline as it is said; looks are one token (`tokenizer.WORDS`) behind a space only."""
    return f" {', '.join(shapes)}"


def first_told(story: str) -> str:
    """The look of a timeline's first shape."""
    return " ".join(story.split(",")[0].split()[:2])


def _needs(config: TargetConfig) -> tuple[str, ...]:
    """What it may take to understand a sentence that no frame explains."""
    return ("video", "sound") if config.audio_seconds else ("video",)


def _about(clip: DecodedClip, needs: tuple[str, ...], most: int) -> list[dict[str, Any]]:
    """Sentences of the clip in random order, with at most `most` targets."""
    sentences = [s for s in clip.ref.extra["sentences"] if s["needs"] in needs and 1 <= len(s["obj_id"]) <= most]
    return [sentences[i] for i in clip.rng.permutation(len(sentences))]


def _about_one(clip: DecodedClip) -> list[dict[str, Any]]:
    """Sentences about one shape, in turn by sound, order and looks, from any of them on."""
    chosen = [s for s in _about(clip, NEEDS, 1) if s["mixes"]]
    turns = [[s for s in chosen if s["needs"] == NEEDS[k]] for k in clip.rng.permutation(len(NEEDS))]
    return [s for turn in itertools.zip_longest(*turns) for s in turn if s]


@examples.named
def timelines(clip: DecodedClip, config: TargetConfig) -> Arrays:
    """A clip: its timeline, and whom of it sentences mean; and what is heard, when a shape can be recognised, or plans.

    The plans do what is asked, all of them; the true timeline stands before and is not learnt again.
    """
    every = range(len(clip.masks))
    story = entries(clip, every)
    tell = _packed([asked("Tell:", told(story.values())), *_retold(clip, story)], config)[0]
    others = [_heard(clip, config, every), *_whens(clip, clip.rng, 1), *_meant_by(clip, story, 2)]
    targets = [tell, *(others[i] for i in clip.rng.permutation(len(others))[: config.targets - 1])]
    return {**_video(clip, config), **pack(targets, config)}


@examples.named
def stories(clip: DecodedClip, config: TargetConfig) -> Arrays:
    """What many sentences about a clip mean, from its true timeline, which is read once; without sound from it alone.

    Words and seconds are looked up in a text, which takes much practice. Questions follow one another in a target.
    """
    story = entries(clip, range(len(clip.masks)))
    room = replace(config, text_tokens=config.text_tokens + STORY)
    targets = _packed(_retold(clip, story), config)[: config.targets]
    return {**_video(clip, room, told(story.values())), **pack(targets, config)}


def _retold(clip: DecodedClip, story: dict[int, str]) -> list[Target]:
    """Sentences about one shape, with what the timeline says of it."""
    sentences = [s for s in _about_one(clip) if s["obj_id"][0] in story]
    return [Target(f" {_in_short(story[s['obj_id'][0]])}", again(s["text"])) for s in sentences]


def _packed(parts: Sequence[Target], config: TargetConfig) -> list[Target]:
    """Questions with their answers, one behind another, in as few targets as hold them."""
    rows, used = [[]], 1
    for part in parts:
        length = len(config.tokenizer(part.question + part.answer)["input_ids"])
        if rows[-1] and used + length > config.target_tokens:
            rows, used = [*rows, []], 1
        rows[-1].append(part)
        used += length
    return [replace(last, before=tuple(before)) for *before, last in rows]


def again(query: str) -> str:
    """Between a timeline and what it says of the shape that is meant: the query, so that it stands nearby."""
    return f". {query}:"


@examples.named
def recalls(clip: DecodedClip, config: TargetConfig) -> Arrays:
    """Timelines that are made up, and their shapes with their seconds again in another order, to be copied.

    Practice for little: a text as long as one of `stories` asks for several shapes instead of one, and short ones are
    learnt first.
    """
    rng, targets = clip.rng, []
    for _ in range(config.targets):
        story = _made_up(rng, int(len(clip.frames) / SAMPLED_FPS))
        shuffled = told(_in_short(story[n]) for n in rng.permutation(len(story)))
        targets.append(Target(shuffled, f"Again:{TURN}<think>{told(story)}:"))
    return {**media_prompt(UNSEEN, config), **pack(targets, config)}


def _made_up(rng: np.random.Generator, seconds: int) -> list[str]:
    """A timeline's entries for shapes of any looks, stays and tones, in the order of their coming."""
    names = [f"{colour} {kind}" for colour in COLOURS for kind in KINDS]
    spans = sorted(sorted(rng.integers(seconds, size=2).tolist()) for _ in range(int(rng.integers(1, 7))))
    story = [f"{names[n]} {first}-{last}" for n, (first, last) in zip(rng.permutation(len(names)), spans)]
    tones = [f" {draw(rng, list(TONES))} {_span(rng, first, last + 1)}" for first, last in spans]
    return [entry + tone if rng.random() < 0.4 else entry for entry, tone in zip(story, tones)]


def _span(rng: np.random.Generator, start: int, end: int) -> str:
    """Some seconds from `start` on, before `end`."""
    first, last = sorted(rng.integers(start, end, 2).tolist())
    return f"{first}-{last}"


def _in_short(entry: str) -> str:
    """Of a timeline's entry what a plan tells again: "blue star 2-5"."""
    return " ".join(entry.split()[:3])


def _meant_by(clip: DecodedClip, story: dict[int, str], most: int) -> list[Target]:
    """Plans that answer sentences rightly, without the timeline with which they begin: it is only read."""
    targets = []
    for sentence in _about_one(clip)[:most]:
        plan = _plan(clip, story, sentence, knowing=True)
        name_at = plan.index(asked_again := again(sentence["text"])) + len(asked_again)
        targets.append(Target(plan[name_at:], f"Which: {sentence['text']}{TURN}{plan[:name_at]}"))
    return targets


def _which(query: str, story: str, name: str) -> Target:
    """Only the name is learnt, from the medium and what was told of it."""
    return Target(f" {name}", f"Which: {query}{TURN}{story}:")


def _whens(clip: DecodedClip, rng: np.random.Generator, count: int) -> list[Target]:
    """When some shapes, named by their looks, can be recognised."""
    clear, names, targets = seen(clip) & lit(clip), clip.ref.extra["looks"], []
    every = np.ones(len(clear), bool)
    for n in rng.permutation(len(clear))[:count]:
        times = np.flatnonzero(clear[n])
        if len(times) and (forms := names_alone(int(n), names, every, every, FORMS)):
            when = piece(int(times[0]), int(times[-1]), names[n])
            targets.append(asked(f"When: {wording(names[n], rng, forms)}", when))
    return targets


@examples.named
def questions(clip: DecodedClip, config: TargetConfig) -> Arrays:
    """A clip: what is in it and heard, when it can be recognised, and which shape a sentence means."""
    every = range(len(clip.masks))
    targets = [asked("What:", looks(clip, every))]
    if config.audio_seconds:
        targets.append(_heard(clip, config, every))
    targets += _whens(clip, clip.rng, config.targets // 3)
    for sentence in _about(clip, ("image", *_needs(config)), 2)[: config.targets - len(targets)]:
        targets.append(asked(f"Which: {sentence['text']}", looks(clip, sentence["obj_id"])))
    return {**_video(clip, config), **pack(targets, config)}


def _meant(query: str, names: Sequence[str], rng: np.random.Generator) -> str:
    """What an answer that knows nothing takes for meant: any shape, or now and then the words of a short query."""
    words = query.removeprefix("the ")
    return words if len(words.split()) <= 2 and rng.random() < TOLD else draw(rng, names)


@examples.named
def plans(clip: DecodedClip, config: TargetConfig) -> Arrays:
    """A clip with plans of the right form that did not look for what is asked: any shape or the words of the query."""
    rng, count = clip.rng, len(clip.frames)
    targets = []
    plain = _about(clip, ("image",), 1)[: config.targets // 2]
    for sentence in (plain + _about(clip, _needs(config), 3))[: config.targets]:
        name = _meant(sentence["text"], clip.ref.extra["looks"], rng)
        spans = [np.sort(rng.integers(0, count, 2)) if rng.random() < 0.5 else [rng.integers(0, count)] * 2]
        for _ in range(int(rng.integers(0, 3))):
            spans.append([rng.integers(0, count)] * 2 if rng.random() < 0.7 else np.sort(rng.integers(0, count, 2)))
        plan = "".join(piece(int(a), int(b), name) for a, b in spans)
        query = prompts.render(config.template, query=sentence["text"])
        targets.append(asked(query, thought(name, plan)))
    return {**_video(clip, config), **pack(targets, config)}


@examples.named
def habits(clip: DecodedClip, config: TargetConfig) -> Arrays:
    """A clip with plans that tell its timeline and choose a shape and a frame by habit, now and then by the query."""
    story, targets = entries(clip, range(len(clip.masks))), []
    for sentence in _about_one(clip)[: config.targets]:
        query = prompts.render(config.template, query=sentence["text"])
        targets.append(asked(query, _plan(clip, story, sentence, knowing=clip.rng.random() < TOLD)))
    return {**_video(clip, config), **pack(targets, config)}


def _plan(clip: DecodedClip, story: dict[int, str], sentence: dict[str, Any], knowing: bool) -> str:
    """A plan that tells the clip's `entries`, the query and one of the shapes again, and looks at a frame.

    `knowing` takes the shape that the sentence means, and the time at which it can be recognised that is nearest to the
    middle of its stay; the others take the first shape of the timeline and the middle of the clip, whatever is asked.
    """
    frame = len(clip.frames) // 2
    shape = sentence["obj_id"][0] if knowing else next(iter(story), 0)
    times = np.flatnonzero((seen(clip) & lit(clip))[shape])
    if knowing and len(times):
        first, last = np.flatnonzero(clip.masks[shape].any((1, 2)))[[0, -1]]
        frame = int(min(times, key=lambda t: abs(t - (first + last + 1) // 2)))
    name = clip.ref.extra["looks"][shape]
    meant = _in_short(story.get(shape, "")) or name
    return thought(f"{told(story.values())}{again(sentence['text'])} {meant}", piece(frame, frame, name))


@examples.named
def sounds(clip: DecodedClip, config: TargetConfig) -> Arrays:
    """A first frame with sound: what is seen, who is heard, which shape a sentence means, and answers that name any.

    Now and then it is the one that is meant: enough for RL to find out that it pays.
    """
    which = lambda query, story, name: asked(f"Which: {query}", name)
    any_of = lambda story, there: draw(clip.rng, [clip.ref.extra["looks"][n] for n in there])
    return _recording(clip, config, "What:", looks, which, lambda story, name: name, any_of)


@examples.named
def recordings(clip: DecodedClip, config: TargetConfig) -> Arrays:
    """As `sounds`; what is seen is told with its tones, also by answers, before they name a shape, most the first."""
    by_habit = lambda story, there: first_told(story)
    return _recording(clip, config, "Tell:", timeline, _which, lambda story, name: f"{story}: {name}", by_habit)


def _recording(
    clip: DecodedClip,
    config: TargetConfig,
    question: str,
    tell: Callable[[DecodedClip, np.ndarray], str],
    which: Callable[[str, str, str], Target],
    think: Callable[[str, str], str],
    guess: Callable[[str, np.ndarray], str],
) -> Arrays:
    rng, extra = clip.rng, clip.ref.extra
    sound = examples.waveform(clip, config)
    there = np.flatnonzero(seen(clip)[:, 0])
    if sound is None or not len(there):
        raise InputError("nothing to see or hear in the first frame")
    content = [{"type": "image", "image": clip.frames[0]}, {"type": "audio", **sound}]
    story = tell(clip, there)
    targets = [asked(question, story), _heard(clip, config, there)]
    known = [s for s in _about(clip, ("image", "sound"), 1) if s["obj_id"][0] in there]
    known.sort(key=lambda sentence: sentence["needs"] != "sound")
    targets += [which(s["text"], story, looks(clip, s["obj_id"])) for s in known[: config.targets - 3]]
    for sentence in clip.rng.permutation(np.array(known, object))[: config.targets - len(targets)]:
        meant = extra["looks"][sentence["obj_id"][0]]
        name = meant if rng.random() < TOLD else guess(story, there)
        query = prompts.render(config.template, query=sentence["text"])
        targets.append(asked(query, thought(think(story, name), name)))
    arrays = media_prompt(content, config, images=1, audio_seconds=[config.audio_seconds])
    return {**arrays, **pack(targets, config)}


EXAMPLES: dict[str, Callable[[DecodedClip, TargetConfig], Arrays]] = {
    "lessons_grounding": sight.grounding,
    "lessons_kinds": sight.kinds,
    "lessons_named": sight.named,
    "lessons_questions": questions,
    "lessons_timelines": timelines,
    "lessons_stories": stories,
    "lessons_recalls": recalls,
    "lessons_plans": plans,
    "lessons_habits": habits,
    "lessons_sounds": sounds,
    "lessons_recordings": recordings,
}
