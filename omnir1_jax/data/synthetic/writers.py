"""The synthetic world on disk, in exactly the layouts of the real datasets.

Every writer fills a directory (local or remote) and is a function of its arguments alone. Which clip goes where
depends on (seed, split, number), so a larger tree begins with the clips of a smaller one.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from etils import epath

from omnir1_jax.data.synthetic import encode, expressions, sound
from omnir1_jax.data.synthetic.expressions import Expression
from omnir1_jax.data.synthetic.scenes import Clip, make_clip
from omnir1_jax.data.synthetic.world import WorldConfig

SPLITS = ("train", "valid", "valid_u", "val", "test", "test_s", "test_u", "test_n")
SEEN, SEEN_HEARD = ("image", "video"), ("image", "video", "sound")
OPEN = 3
ORDER = ("enters", "enters_first", "enters_last", "leaves", "leaves_first", "leaves_last", "comes_after", "goes_before")
IN_TURN = ("sound", "video", "image", "video")  # what a clip's mixed sentences need, one after another


def clip_seed(seed: int, split: str, number: int) -> int:
    return (seed * len(SPLITS) + SPLITS.index(split)) * 10**6 + number


def clip_rng(seed: int) -> np.random.Generator:
    """What a writer draws for a clip: which of the true sentences it keeps."""
    return np.random.Generator(np.random.PCG64([seed, 10**6 + 1]))


def pick(clip: Clip, count: int, needs: tuple[str, ...], **options: Any) -> tuple[Expression, ...]:
    return expressions.choose(clip.expressions, clip_rng(clip.scene.seed), count, needs, **options)


def single(clip: Clip, count: int, needs: tuple[str, ...]) -> tuple[Expression, ...]:
    """Sentences about one shape each."""
    single_target = [e for e in clip.expressions if len(e.targets) == 1]
    return expressions.choose(single_target, clip_rng(clip.scene.seed), count, needs)


def mixes(e: Expression) -> bool:
    """Whether `mixed` may have a sentence: it is about one shape, and by looks, by sound, or by coming and going.

    The noun of one by sound or order fits at least `OPEN` shapes, so that it is not a description by itself.
    """
    hard = len(e.among) >= OPEN and (e.needs == "sound" or e.topic in ORDER)
    return len(e.targets) == 1 and (e.needs == "image" or hard)


def mixed(clip: Clip, count: int) -> tuple[Expression, ...]:
    """Sentences about one shape each, in turn by sound, by order and by looks, as far as there are such."""
    single_target = [e for e in clip.expressions if mixes(e)]
    remaining = {n: list(expressions.choose(single_target, clip_rng(clip.scene.seed), count, (n,))) for n in SEEN_HEARD}
    chosen = []
    for number in range(count):
        needs = (IN_TURN[number % len(IN_TURN)], *SEEN_HEARD)
        pool = next((remaining[need] for need in needs if remaining[need]), [])
        chosen += [pool.pop(0)] if pool else []
    return tuple(chosen)


def write_json(path: epath.Path, value: Any) -> None:
    write(path, json.dumps(value).encode())


def write(path: epath.Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def shares(clips: int) -> int:
    """How many clips an evaluation split has beside `clips` for training."""
    return max(1, clips // 5)


def revos(root: epath.PathLike, config: WorldConfig, clips: int, seed: int, tree: str = "official") -> None:
    """ReVOS. `tree`: "official" with the level JPEGImages, "flat" without it. Video names hold slashes; frame names
    start at different numbers and go in fives; expression ids have gaps."""
    root = epath.Path(root)
    frames_root = root / "JPEGImages" if tree == "official" else root
    mask_dict: dict[str, Any] = {}
    foreground: dict[str, Any] = {}
    for split, count in (("train", clips), ("valid", shares(clips))):
        videos = {}
        for number in range(count):
            clip = make_clip(config, clip_seed(seed, split, number))
            video = f"synthetic/{split}/clip_{number:05d}"
            names = [f"{10 * (number % 3) + 5 * t:05d}" for t in range(config.frames)]
            _write_frames(frames_root / video, names, clip)
            first = 3_000_000 + len(mask_dict)
            for n, masks in enumerate(clip.masks):
                mask_dict[str(first + n)] = encode.track(masks)
            union = clip.masks.any(0)
            foreground[video] = {
                "masks_rle": [encode.rle.encode(mask) for mask in union],
                "foreground_ratio": [float(mask.mean()) for mask in union],
            }
            chosen = pick(clip, 8, SEEN, nothing=True)
            videos[video] = {
                "vid_id": number,
                "height": config.height,
                "width": config.width,
                "frames": names,
                "expressions": {
                    str(j + j // 3): _expression(e, first) | {"type_id": e.type_id} for j, e in enumerate(chosen)
                },
            }
        write_json(root / f"meta_expressions_{split}_.json", {"videos": videos})
    write_json(root / "mask_dict.json", mask_dict)
    write_json(root / "mask_dict_foreground.json", foreground)


def mevis(root: epath.PathLike, config: WorldConfig, clips: int, seed: int) -> None:
    """MeViS: train, valid_u, and valid without masks. Motion comes first among its expressions."""
    root = epath.Path(root)
    for split, count in (("train", clips), ("valid_u", shares(clips)), ("valid", shares(clips))):
        labelled = split != "valid"
        mask_dict: dict[str, Any] = {}
        videos = {}
        for number in range(count):
            clip = make_clip(config, clip_seed(seed, split, number))
            video = hashlib.blake2b(f"{seed}/{split}/{number}".encode(), digest_size=6).hexdigest()
            names = [f"{t:05d}" for t in range(config.frames)]
            _write_frames(root / split / "JPEGImages" / video, names, clip)
            first = len(mask_dict)
            if labelled:
                mask_dict.update({str(first + n): encode.track(masks) for n, masks in enumerate(clip.masks)})
            chosen = (*pick(clip, 5, ("video",)), *pick(clip, 2, ("image",)))
            expressions = [_expression(e, first) if labelled else {"exp": e.text} for e in chosen]
            videos[video] = {
                "expressions": {str(j): e for j, e in enumerate(expressions)},
                "vid_id": number,
                "frames": names,
            }
        write_json(root / split / "meta_expressions.json", {"videos": videos})
        if labelled:
            write_json(root / split / "mask_dict.json", mask_dict)


def refavs_config(config: WorldConfig) -> WorldConfig:
    """Ref-AVS has ten frames and ten seconds of sound, whatever else is set."""
    return replace(config, frames=10, fps=1.0)


def refavs(root: epath.PathLike, config: WorldConfig, clips: int, seed: int) -> None:
    """Ref-AVS Bench, ten frames and ten seconds per clip. Rows without a target (fid 0) have directories of their own;
    they make up test_n, and some are in train and val. Some ids begin with a dash."""
    root, config = epath.Path(root), refavs_config(config)
    rows: list[dict[str, Any]] = []
    for split in ("train", "val", "test_s", "test_u", "test_n"):
        for number in range(clips if split == "train" else shares(clips)):
            clip = make_clip(config, clip_seed(seed, split, number))
            name = hashlib.blake2b(f"{seed}/{split}/{number}".encode(), digest_size=5).hexdigest()
            vid = f"{'-' if number % 3 == 1 else 's'}{name}_0_10000"
            if split != "test_n":
                _write_refavs_media(root, vid, clip)
                for j, e in enumerate(single(clip, 5, SEEN_HEARD)):
                    fid = e.targets[0] + 1
                    rows.append({"vid": vid, "uid": f"{vid}_{fid}_{j}", "split": split, "fid": fid, "exp": e.text})
                    _write_refavs_masks(root / "gt_mask" / vid / f"fid_{fid}", clip.masks[fid - 1])
            if split == "test_n" or (split in ("train", "val") and number % 4 == 0):
                directory = f"null_{'cm'[number % 2]}-{vid}"
                _write_refavs_media(root, directory, clip)
                (e,) = [e for e in clip.expressions if not e.targets]
                rows.append({"vid": vid, "uid": f"{directory}_0_0", "split": split, "fid": 0, "exp": e.text})
                _write_refavs_masks(root / "gt_mask" / directory / "fid_0", np.zeros_like(clip.masks[0]))
    text = io.StringIO()
    table = csv.DictWriter(text, ["vid", "uid", "split", "fid", "exp"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write(root / "metadata.csv", text.getvalue().encode())


def refcocog_config(config: WorldConfig) -> WorldConfig:
    """One still image, nothing to hear."""
    return replace(config, frames=1, sounding=(0, 0))


def refcocog_row(clip: Clip, expression: Expression, identity: str, spelling: str) -> dict[str, Any]:
    """A row without its image. `spelling`: "tags" or "json"."""
    box, points = encode.box_and_points(clip.masks[expression.targets[0], 0])
    if spelling == "json":
        solution = json.dumps([{"bbox_2d": list(box), "point_2d": list(points[0])}])
    else:
        x0, y0, x1, y1 = box
        pairs = ",".join(f"({x},{y})" for x, y in points)
        solution = f"<box>({x0},{y0}),({x1},{y1})</box><points>{pairs}</points>"
    config = clip.scene.config
    size = {"img_height": config.height, "img_width": config.width}
    return {"id": identity, "problem": expression.text, "solution": solution, **size}


def refcocog(
    root: epath.PathLike, config: WorldConfig, clips: int, seed: int, form: str = "folder", spelling: str = "tags"
) -> None:
    """refCOCOg_2k_840 with one phrase per image. `form`: "folder" or "parquet"."""
    root, config = epath.Path(root), refcocog_config(config)
    rows, images = [], []
    for number in range(clips):
        clip = make_clip(config, clip_seed(seed, "train", number))
        rows.append(refcocog_row(clip, single(clip, 1, ("image",))[0], f"synthetic_{number:05d}", spelling))
        images.append(encode.jpeg(encode.canvas(clip.frames[0])))
    if form == "folder":
        for number, (row, image) in enumerate(zip(rows, images)):
            row["file_name"] = f"images/{number:05d}.jpg"
            write(root / row["file_name"], image)
        write(root / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        return
    for row, image in zip(rows, images):
        row["image"] = {"bytes": image, "path": None}
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, row_group_size=100)
    write(root / "data" / "train-00000-of-00001.parquet", buffer.getvalue())


def mp4(root: epath.PathLike, config: WorldConfig, clips: int, seed: int) -> None:
    """A folder of videos with sound, and `<split>.jsonl` as `omnir1_jax.data.folder` reads it: what to segment, with
    masks, and what to answer."""
    root = epath.Path(root)
    for split, count in (("train", clips), ("valid", shares(clips))):
        lines = []
        for number in range(count):
            clip = make_clip(config, clip_seed(seed, split, number))
            name = f"{split}_{number:05d}"
            write(root / "videos" / f"{name}.mp4", encode.mp4(clip.frames, config.fps, clip.sound))
            for j, e in enumerate(pick(clip, 4, SEEN_HEARD)):
                masks = f"masks/{name}_{j}.json"
                write_json(root / masks, [encode.track(clip.masks[n]) for n in e.targets])
                item = {"id": f"{name}/{j}", "video": f"videos/{name}.mp4", "expression": e.text, "masks": masks}
                lines.append(item)
            for j, (question, options, answer) in enumerate(questions(clip)):
                item = {"id": f"{name}/q{j}", "video": f"videos/{name}.mp4", "question": question}
                lines.append(item | {"options": list(options), "answer": answer})
        write(root / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in lines).encode())


def questions(clip: Clip, count: int = 2) -> tuple[tuple[str, tuple[str, ...], str], ...]:
    """(question, options, answer) about which shape does something; none if shapes look alike or there is only one."""
    looks = [f"the {s.colour} {s.kind}" for s in clip.scene.shapes]
    if len(set(looks)) < len(looks) or len(looks) < 2:
        return ()
    expressions = [
        e for e in single(clip, 4 * count, ("video", "sound")) if e.text.startswith(("the shape ", "the one "))
    ]
    return tuple((f"Which is {e.text}?", tuple(sorted(looks)), looks[e.targets[0]]) for e in expressions[:count])


LAYOUTS: dict[str, Callable[..., None]] = {
    "revos": revos,
    "mevis": mevis,
    "refavs": refavs,
    "refcocog": refcocog,
    "mp4": mp4,
}


def _expression(e: Expression, first_anno_id: int) -> dict[str, Any]:
    return {"exp": e.text, "obj_id": list(e.targets), "anno_id": [first_anno_id + n for n in e.targets]}


def _write_frames(folder: epath.Path, names: list[str], clip: Clip) -> None:
    for name, frame in zip(names, clip.frames):
        write(folder / f"{name}.jpg", encode.jpeg(frame))


def _write_refavs_media(root: epath.Path, directory: str, clip: Clip) -> None:
    _write_frames(root / "media" / directory / "frames", [str(t) for t in range(len(clip.frames))], clip)
    write(root / "media" / directory / "audio.wav", sound.to_wav(clip.sound))


def _write_refavs_masks(folder: epath.Path, masks: np.ndarray) -> None:
    for t, mask in enumerate(masks):
        write(folder / f"{t:05d}.png", encode.png(mask.astype(np.uint8) * 255))
