"""The synthetic world without a disk: clips are made when they are asked for. The default dataset of the project."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from omnir1_jax.data import qa, refcocog
from omnir1_jax.data.reader import TableReader, check_split, make_reader
from omnir1_jax.data.refs import FAMILIES, AudioBytes, ClipRef, ImageBytes, RleMasks
from omnir1_jax.data.synthetic import encode, sound, writers
from omnir1_jax.data.synthetic.expressions import Expression
from omnir1_jax.data.synthetic.scenes import Clip, make_clip
from omnir1_jax.data.synthetic.world import PRESETS, VOICES, WorldConfig
from omnir1_jax.errors import InputError, optional


def open(
    root: str = "",
    split: str = "train",
    family: str = "vos",
    clips: int = 256,
    seed: int = 0,
    config: WorldConfig | str = "default",
    per_clip: int = 4,
    lessons: bool = False,
    plain: bool = False,
    heard: bool = False,
    mixed: bool = False,
) -> TableReader:
    """A reader of `clips` clips with `per_clip` items each, of one family. `root` is not used. Raises `InputError`.

    vos: sentences about one or more shapes, to be seen. refavs: about one shape or, one in eight, about nothing, with
    sound. refcocog: still images. qa: which shape it is that does something, with sound.
    plain (vos): only sentences about one shape that any of its frames explains, such as "the red shape".
    mixed (vos): sentences about one shape, in turn by sound, by order and by looks; clips have their sound.
    heard (refavs): only sentences about a shape of the first frame that take the sound to understand.
    lessons (vos and refavs): one item per clip instead, with masks of every shape and no query; targets for
    supervised training are in `extra`: looks ("red circle") and sounds of the shapes, and all true sentences.
    `extra` of vos: type_id, obj_id; of refavs: fid, null; of both what the query takes to understand, and each shape's
    looks, tone and span of sound in seconds; of refcocog and qa: as those readers have it.
    """
    optional("pycocotools.mask", "train")  # for the masks of every item
    check_split("synthetic", split, writers.SPLITS)
    if family not in FAMILIES:
        raise InputError(f"synthetic.family is one of {', '.join(FAMILIES)}, not '{family}'")
    if isinstance(config, str):
        if config not in PRESETS:
            raise InputError(f"synthetic has no preset '{config}'; choose one of {', '.join(PRESETS)}")
        config = PRESETS[config]
    if clips < 1 or per_clip < 1:
        raise InputError(f"synthetic: at least one clip and one item a clip, not {clips} and {per_clip}")
    if family == "refavs":
        config = config.recorded()
    if family == "refcocog":
        config = writers.refcocog_config(config)
    if family == "qa":
        # Answers differ by looks, so there are no twins and at least two shapes.
        config = replace(config, twins=0.0, objects=tuple(max(2, n) for n in config.objects))
    if lessons:
        if family not in ("vos", "refavs"):
            raise InputError(f"synthetic.lessons: there are none of family '{family}', only of vos and refavs")
        items = ((f"lessons/{family}/{seed}/{k:06d}", k, writers.clip_seed(seed, split, k)) for k in range(clips))
        return make_reader("synthetic", split, items, functools.partial(_lesson, family, config), "synthetic")
    items = (
        (f"{family}/{seed}/{k:06d}/{j}", k, (writers.clip_seed(seed, split, k), j))
        for k in range(clips)
        for j in range(per_clip)
    )
    make = functools.partial(_MAKERS[family], config)
    for name, required_family, chosen in (("plain", "vos", plain), ("mixed", "vos", mixed), ("heard", "refavs", heard)):
        if chosen and (family != required_family or (plain and mixed)):
            raise InputError(f"synthetic.{name}: of {required_family} alone, not '{family}'; plain or mixed, not both")
        if chosen:
            make = functools.partial(make, **{name: True})
    return make_reader("synthetic", split, items, make, "synthetic")


@functools.lru_cache(maxsize=8)
def _clip(config: WorldConfig, seed: int) -> Clip:
    return make_clip(config, seed)


def _frames(clip: Clip) -> ImageBytes:
    blobs = tuple(encode.jpeg(frame) for frame in clip.frames)
    return ImageBytes(blobs, tuple(f"{t:05d}" for t in range(len(blobs))), clip.scene.config.fps)


def _masks(clip: Clip, targets: tuple[int, ...]) -> RleMasks:
    size = (clip.scene.config.height, clip.scene.config.width)
    return RleMasks(tuple(tuple(encode.track(clip.masks[n])) for n in targets), size)


def _first_with(make: Callable[[Clip], Any], config: WorldConfig, seed: int) -> tuple[Clip, Any]:
    """The clip of a seed, or the first of others in its place, of which something can be made, with that value."""
    for step in range(16):
        clip = _clip(config, seed + step * 10**12)
        if value := make(clip):
            break
    return clip, value


def _nth(chosen: tuple[Any, ...], number: int, sample_id: str) -> Any:
    if not chosen:
        raise InputError(f"{sample_id}: there is nothing to say about this clip")
    return chosen[number % len(chosen)]


def _vos(
    config: WorldConfig, sample_id: str, row: tuple[int, int], plain: bool = False, mixed: bool = False
) -> ClipRef:
    clip = _clip(config, row[0])
    count = 1 + row[1]
    if mixed:
        chosen = writers.mixed(clip, count)
    else:
        chosen = writers.single(clip, count, ("image",)) if plain else writers.pick(clip, count, writers.SEEN)
    e: Expression = _nth(chosen, row[1], sample_id)
    audio = AudioBytes(sound.to_wav(clip.sound)) if mixed else None
    extra = {"type_id": e.type_id, "obj_id": list(e.targets), "topic": e.topic, "needs": e.needs, **_shapes(clip)}
    size = (config.height, config.width)
    masks = _masks(clip, e.targets)
    return ClipRef("synthetic", sample_id, "vos", e.text, _frames(clip), audio, masks, None, size, extra)


def _refavs(config: WorldConfig, sample_id: str, row: tuple[int, int], heard: bool = False) -> ClipRef:
    clip = _clip(config, row[0])
    null = not heard and (row[0] + row[1]) % 8 == 7
    if heard:
        clip, chosen = heard_in(config, *row)
    elif null:
        chosen = tuple(e for e in clip.expressions if not e.targets)
    else:
        chosen = writers.single(clip, 1 + row[1], writers.SEEN_HEARD)
    e: Expression = _nth(chosen, row[1], sample_id)
    size = (config.height, config.width)
    empty = RleMasks(((None,) * config.frames,), size)
    extra = {"fid": 0 if null else e.targets[0] + 1, "null": null, "topic": e.topic, "needs": e.needs, **_shapes(clip)}
    return ClipRef(
        dataset="synthetic",
        sample_id=sample_id,
        family="refavs",
        query=e.text,
        frames=_frames(clip),
        audio=AudioBytes(sound.to_wav(clip.sound)),
        masks=empty if null else _masks(clip, e.targets),
        size=size,
        extra=extra,
    )


def heard_in(config: WorldConfig, seed: int, number: int) -> tuple[Clip, tuple[Expression, ...]]:
    """A clip with sentences that take the sound, about what the start shows."""

    def said(clip: Clip) -> tuple[Expression, ...]:
        chosen = writers.single(clip, 1 + number, ("sound",))
        chosen = tuple(e for e in chosen if clip.masks[e.targets[0], 0].any())
        return chosen if config.rims else tuple(e for e in chosen if _told_by_voice(clip, e))

    return _first_with(said, config, seed)


def _told_by_voice(clip: Clip, e: Expression) -> bool:
    """Whether the first frame and the sound tell which shape is meant: no other there, or heard, has its voice."""
    (target,), shapes = e.targets, clip.scene.shapes
    same_voice = [n for n, s in enumerate(shapes) if n != target and VOICES[s.colour] == VOICES[shapes[target].colour]]
    return e.topic != "heard_at" and not any(clip.masks[n, 0].any() or shapes[n].tone for n in same_voice)


def _shapes(clip: Clip) -> dict[str, list[Any]]:
    """What each shape looks like, its tone, and from when to when it sounds, in seconds."""
    shapes, fps = clip.scene.shapes, clip.scene.config.fps
    return {
        "looks": [f"{s.colour} {s.kind}" for s in shapes],
        "tones": [s.tone for s in shapes],
        "sounds": [None if s.sounds is None else [t / fps for t in s.sounds] for s in shapes],
    }


def _lesson(family: str, config: WorldConfig, sample_id: str, seed: int) -> ClipRef:
    clip = _clip(config, seed)
    shapes = clip.scene.shapes
    extra = {
        **_shapes(clip),
        "shadows": [list(s.shadow) for s in shapes],
        "sentences": [
            {"text": e.text, "obj_id": list(e.targets), "needs": e.needs, "mixes": writers.mixes(e)}
            for e in clip.expressions
        ],
    }
    audio = AudioBytes(sound.to_wav(clip.sound)) if family == "refavs" or not config.rims else None
    masks, size = _masks(clip, tuple(range(len(shapes)))), (config.height, config.width)
    return ClipRef("synthetic", sample_id, family, "", _frames(clip), audio, masks, None, size, extra)


def _refcocog(config: WorldConfig, sample_id: str, row: tuple[int, int]) -> ClipRef:
    clip = _clip(config, row[0])
    e: Expression = _nth(writers.single(clip, 1 + row[1], ("image",)), row[1], sample_id)
    record = writers.refcocog_row(clip, e, sample_id, "tags")
    boxes, points = refcocog.parse_solution(record["solution"])
    extra = {key: record[key] for key in ("id", "solution", "img_height", "img_width")}
    frames = ImageBytes((encode.jpeg(encode.canvas(clip.frames[0])),), ("0",))
    extra |= {"boxes": boxes, "points": points}
    return ClipRef("synthetic", sample_id, "refcocog", e.text, frames, size=refcocog.CANVAS, extra=extra)


def _qa(config: WorldConfig, sample_id: str, row: tuple[int, int]) -> ClipRef:
    # A clip whose shapes look alike, or that nothing can be asked about, gives way to another.
    clip, questions = _first_with(lambda clip: writers.questions(clip, 1 + row[1]), config, row[0])
    question, options, answer = _nth(questions, row[1], sample_id)
    index = qa.answer_index(options, answer, sample_id)
    audio = AudioBytes(sound.to_wav(clip.sound))
    extra = {"options": options, "answer": answer, "answer_index": index}
    return ClipRef("synthetic", sample_id, "qa", question, _frames(clip), audio, extra=extra)


_MAKERS = {"vos": _vos, "refavs": _refavs, "refcocog": _refcocog, "qa": _qa}
