"""Small trees in the layouts that the synthetic world does not write itself, for the tests of the readers."""

import csv
import json
import pathlib
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np

from omnir1_jax.data import mvbench
from omnir1_jax.data.synthetic import encode, sound, writers
from omnir1_jax.data.synthetic.scenes import Clip, make_clip
from omnir1_jax.data.synthetic.world import WorldConfig

SMALL = WorldConfig(height=48, width=64, frames=6, objects=(2, 3), radius=(0.2, 0.28), sounding=(1, 2))


def clip(seed: int) -> Clip:
    return make_clip(SMALL, seed)


def write(path: pathlib.Path, data: bytes | str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def palette_png(indices: np.ndarray, depth: int = 8) -> bytes:
    """A palette PNG of the indices with an arbitrary palette (so that colours say nothing about them)."""
    height, width = indices.shape
    per_byte = 8 // depth
    padded = np.zeros((height, -(-width // per_byte) * per_byte), np.uint8)
    padded[:, :width] = indices
    shifts = np.arange(per_byte - 1, -1, -1, dtype=np.uint8) * depth
    packed = (padded.reshape(height, -1, per_byte) << shifts).sum(-1).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    palette = np.random.default_rng(0).integers(0, 256, (2**depth, 3), np.uint8)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, 3, 0, 0, 0)
    parts = (
        (b"IHDR", header),
        (b"PLTE", palette.tobytes()),
        (b"tRNS", b"\0"),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in parts)


def labels(masks: np.ndarray) -> np.ndarray:
    """Label maps of visible masks [n, t, h, w]: object n has value n + 1."""
    return (masks * np.arange(1, len(masks) + 1, dtype=np.uint8)[:, None, None, None]).sum(0).astype(np.uint8)


def frames(folder: pathlib.Path, clip: Clip, names: list[str]) -> None:
    for name, frame in zip(names, clip.frames):
        write(folder / f"{name}.jpg", encode.jpeg(frame))


def expressions(clip: Clip, count: int) -> list:
    return list(writers.single(clip, count, writers.SEEN))


def ytvos(root: pathlib.Path) -> dict[str, Clip]:
    """Ref-YouTube-VOS: one video in train, two in valid of which one belongs to test."""
    clips = {"v_train": clip(1), "v_valid": clip(2), "v_test": clip(3)}
    names = [f"{5 * t:05d}" for t in range(SMALL.frames)]
    metas: dict[str, dict] = {"train": {}, "valid": {}, "test": {}}
    for video, c in clips.items():
        split = video.removeprefix("v_")
        frames(root / ("train" if split == "train" else "valid") / "JPEGImages" / video, c, names)
        told = {}
        for j, e in enumerate(expressions(c, 3)):
            told[str(j)] = {"exp": e.text} | ({"obj_id": str(e.targets[0] + 1)} if split == "train" else {})
        for listed in {split, "valid"} - ({"valid"} if split == "train" else set()):
            metas[listed][video] = {"expressions": told, "frames": names}
    for split, videos in metas.items():
        write(root / "meta_expressions" / split / "meta_expressions.json", json.dumps({"videos": videos}))
    c = clips["v_train"]
    for name, indices in zip(names, labels(c.masks)):
        write(root / "train" / "Annotations" / "v_train" / f"{name}.png", palette_png(indices))
    objects = {str(n + 1): {"category": s.kind, "frames": names} for n, s in enumerate(c.scene.shapes)}
    write(root / "train" / "meta.json", json.dumps({"videos": {"v_train": {"objects": objects}}}))
    return clips


def davis(root: pathlib.Path) -> dict[str, Clip]:
    """Ref-DAVIS17 with label maps and with a mask file: four expressions an object."""
    clips = {"bike-packing": clip(4), "aerobatics": clip(5)}
    names = [f"{t:05d}" for t in range(SMALL.frames)]
    videos, mask_dict, counter = {}, {}, 0
    for video, c in clips.items():
        frames(root / "valid" / "JPEGImages" / video, c, names)
        for name, indices in zip(names, labels(c.masks)):
            void = indices.copy()
            void[0, 0] = 255
            write(root / "Annotations_unsupervised" / "480p" / video / f"{name}.png", palette_png(void))
        told = {
            str(4 * n + a): {"exp": f"{s.colour} {s.kind}, told {a}"}
            for n, s in enumerate(c.scene.shapes)
            for a in range(4)
        }
        videos[video] = {"expressions": told, "frames": names}
    for video in sorted(videos):
        for exp_id in sorted(videos[video]["expressions"]):
            mask_dict[str(counter)] = encode.track(clips[video].masks[int(exp_id) // 4])
            counter += 1
    write(root / "meta_expressions" / "valid" / "meta_expressions.json", json.dumps({"videos": videos}))
    write(root / "valid" / "mask_dict.json", json.dumps(mask_dict))
    return clips


def reasonvos(root: pathlib.Path) -> dict[str, Clip]:
    """ReasonVOS: masks of every frame in one video, of every other frame in one (as of BURST), in the exact layout."""
    clips, videos = {"061_car": clip(60), "b-w": clip(61)}, {}
    names = [f"{t:05d}" for t in range(SMALL.frames)]
    for (video, c), source, step in zip(clips.items(), ("VIPSeg", "burst"), (1, 2)):
        frames(root / "JPEGImages" / video, c, names)
        told = {}
        for n in range(2):
            told[str(n)] = {"exp_text": f"Which shape is number {n}?", "obj_id": n + 1}
            for name, mask in list(zip(names, c.masks[n]))[::step]:
                png = encode.png(mask.astype(np.uint8) * 255)
                write(root / "Annotations" / f"{source.lower()}_{video}_{n + 1}" / f"{name}.png", png)
        videos[video] = {"source": source, "frames": names, "is_sent": True, "expressions": told}
    write(root / "meta_expressions.json", json.dumps({"videos": videos}))
    return clips


def dailyomni(root: pathlib.Path) -> None:
    """Daily-Omni: one video with its sound in the track, one with it beside."""
    rows = []
    for n, duration in enumerate(("30s", "60s")):
        c, name = clip(70 + n), f"vid-{n}"
        folder = root / "Videos" / name
        write(folder / f"{name}_video.mp4", encode.mp4(c.frames, SMALL.fps, None if n else c.sound))
        if n:
            write(folder / f"{name}_audio.wav", sound.to_wav(c.sound))
        rows.append(
            {
                "Question": "What sounds?", "Choice": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
                "Answer": "BD"[n], "video_id": name, "Type": "Reasoning", "content_parent_category": "Shapes",
                "content_fine_category": "Shapes", "video_category": "Film", "video_duration": duration,
            }
        )  # fmt: skip
    write(root / "qa.json", json.dumps(rows))


def omnibench(root: pathlib.Path) -> None:
    rows = []
    for n, kind in enumerate(("Speech", "Sound Event", "Music")):
        c = clip(10 + n)
        write(root / "mm_data" / "image" / f"{n}.jpg", encode.jpeg(c.frames[0]))
        write(root / "mm_data" / "audio" / f"{n}.wav", sound.to_wav(c.sound))
        rows.append(
            {
                "index": n,
                "task type": "Action and Activity",
                "audio type": kind,
                "question": "What sounds?",
                "options": ["a red shape", "a green shape", "a blue shape", "nothing"],
                "answer": ["a red shape", "nothing", " a blue shape"][n],
                "audio_path": f"{n}.wav",
                "image_path": f"{n}.jpg",
                "audio content": "a tone",
            }
        )
    write(root / "dataset" / "batch-5_1142_20240817.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n")


def video(path: pathlib.Path, seed: int) -> None:
    c = clip(seed)
    write(path, encode.mp4(c.frames, SMALL.fps, c.sound))


def videomme(root: pathlib.Path) -> None:
    rows = []
    for n, duration in enumerate(("short", "medium", "long")):
        video(root / "data" / f"vid{n}.mp4", 20 + n)
        for q in range(2):
            rows.append(
                {
                    "video_id": f"{n:03d}",
                    "duration": duration,
                    "domain": "Knowledge",
                    "sub_category": "Shapes",
                    "url": "https://example.org",
                    "videoID": f"vid{n}",
                    "question_id": f"{n:03d}-{q}",
                    "task_type": "Counting Problem",
                    "question": "How many shapes?",
                    "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
                    "answer": "ABCD"[n + q],
                }
            )
    write(root / "videomme" / "test.json", json.dumps(rows))


def mvbench_tree(root: pathlib.Path) -> None:
    for n, (task, folder) in enumerate(mvbench.FOLDERS.items()):
        row = {
            "video": f"{task}.mp4",
            "question": "Which?",
            "candidates": ["this", "that", "neither"],
            "answer": "that",
        }
        if task in mvbench.BOUNDED:
            row |= {"start": 0.5, "end": 2.0}
        if task == mvbench.FRAME_TASK:
            row["video"] = "castle_s01"
            frames(root / "video" / folder / "castle_s01", clip(30), [f"{t:05d}" for t in range(1, SMALL.frames + 1)])
        elif n < 2:
            video(root / "video" / folder / row["video"], 31 + n)
        else:  # one file will do for the rest
            write(
                root / "video" / folder / row["video"],
                (root / "video" / "ssv2_video" / "action_antonym.mp4").read_bytes(),
            )
        write(root / "json" / f"{task}.json", json.dumps([row, row | {"answer": "neither"}]))


def avhbench(root: pathlib.Path) -> None:
    tasks = (
        ("Audio-driven Video Hallucination", "Is the circle visible in the video?", "Yes"),
        ("Video-driven Audio Hallucination", "Is the circle making sound in the audio?", "No"),
        ("AV Matching", "Are the contexts of audio and visual content matching?", "Yes"),
        ("AV Captioning", "Describe what you see and hear.", "A circle hums."),
    )
    rows = [{"video_id": "00001", "task": task, "text": text, "label": label} for task, text, label in tasks]
    video(root / "videos" / "00001.mp4", 40)
    write(root / "QA.json", json.dumps(rows))


def videor1(root: pathlib.Path) -> None:
    video(root / "clips" / "a" / "one.mp4", 50)
    write(root / "images" / "two.png", cv2.imencode(".png", clip(51).frames[0])[1].tobytes())
    rows = [
        {
            "problem_id": 7,
            "problem": "Which shape grows?",
            "data_type": "video",
            "problem_type": "multiple choice",
            "options": ["A. the circle", "B. the star"],
            "solution": "<answer>B</answer>",
            "path": "./clips/a/one.mp4",
            "data_source": "shapes",
        },
        {
            "problem_id": 8,
            "problem": "How many shapes are there?",
            "data_type": "image",
            "problem_type": "numerical",
            "options": [],
            "solution": "<answer>3</answer>",
            "path": "./images/two.png",
            "data_source": "shapes",
        },
    ]
    write(root / "train.json", json.dumps(rows))


def refavs_quirks(root: pathlib.Path) -> None:
    """What the published table also has: a row to do, a junk expression, an id used twice."""
    path = root / "metadata.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    extra = [rows[0] | {"split": "TODO"}, rows[0] | {"exp": "[Error] no answer"}, rows[0] | {"exp": "another wording"}]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows + extra)


def refavs(root: pathlib.Path) -> None:
    writers.refavs(root, SMALL, 3, 0)
    refavs_quirks(root)


BUILD: dict[str, Callable[[pathlib.Path], object]] = {
    "revos": lambda root: writers.revos(root, SMALL, 2, 0),
    "revos_flat": lambda root: writers.revos(root, SMALL, 2, 0, tree="flat"),
    "mevis": lambda root: writers.mevis(root, SMALL, 2, 0),
    "refavs": refavs,
    "refytvos": ytvos,
    "refdavis": davis,
    "refcocog": lambda root: writers.refcocog(root, SMALL, 3, 0),
    "refcocog_parquet": lambda root: writers.refcocog(root, SMALL, 3, 0, form="parquet", spelling="json"),
    "omnibench": omnibench,
    "videomme": videomme,
    "mvbench": mvbench_tree,
    "avhbench": avhbench,
    "videor1": videor1,
    "reasonvos": reasonvos,
    "dailyomni": dailyomni,
    "folder": lambda root: writers.mp4(root, SMALL, 2, 0),
}
# A split of each tree that has everything the dataset can have.
TESTED = ("omnibench", "videomme", "mvbench", "avhbench", "reasonvos", "dailyomni")
SPLIT = {"refdavis": "valid"} | dict.fromkeys(TESTED, "test")


def dataset_of(tree: str) -> str:
    return tree.partition("_")[0]


def split_of(tree: str) -> str:
    return SPLIT.get(tree, "train")
