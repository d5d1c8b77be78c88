"""Damaged datasets: opening raises InputError, an item raises BadSample, and nothing else ever escapes."""

import json
import os
import pathlib
import random
import shutil

import cv2
import numpy as np
import pytest

from omnir1_jax.data import audio, clips, masks, media, registry
from omnir1_jax.data.refs import BadSample, ClipRef, ImageFiles, PngMasks
from omnir1_jax.data.tfds_builders import builders
from omnir1_jax.errors import InputError
from tests.data import trees

CASES, GROUPS = 300, 20
ITEMS = 5
DECODE = clips.DecodeConfig(frames=8, objects=8, sound="optional")
JUNK = (
    None,
    True,
    -1,
    10**400,
    1e308,
    "",
    "x",
    "\ud800",
    "a" * 5000,
    "../secret",
    "/etc/passwd",
    "a\0b",
    "..",
    "gs://bucket/secret",
    [],
    [None],
    {},
    [[]],
    {"size": [0, -1], "counts": "~"},
)
TEXT = (".json", ".jsonl", ".csv")
IMAGES = (".jpg", ".png")


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Every kind of tree, whole."""
    base = tmp_path_factory.mktemp("whole")
    for name, build in trees.BUILD.items():
        build(base / name)
    for name in ("revos", "refavs"):
        builders.build(name, base / name, base / "built").rename(base / f"tfds_{name}")
    shutil.rmtree(base / "built")
    (base / "secret").mkdir()
    trees.write(base / "secret" / "secret.jpg", cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes())
    return {path.name: path for path in sorted(base.iterdir())}


def use(name: str, root: pathlib.Path) -> tuple[int, int]:
    """Opens and reads; gives how many items were good and how many bad. An InputError on opening passes through."""
    reader = registry.open_dataset(trees.dataset_of(name), str(root), trees.split_of(name))
    good = bad = 0
    picks = random.Random(0).sample(range(len(reader)), min(ITEMS, len(reader)))
    for position in picks:
        try:
            clip = reader[position]
            check_within(clip, root)
            clips.decode(clip, DECODE, np.random.default_rng(position))
            count = media.frame_count(clip.frames, clip.sample_id)
            frames = media.load_frames(clip.frames, range(count), sample_id=clip.sample_id)
            assert frames.dtype == np.uint8 and frames.ndim == 4
            for source in (clip.masks, clip.foreground):
                if source is not None:
                    assert masks.decode_masks(source, range(count), clip.sample_id).shape[1] == count
            if clip.audio is not None:
                audio.load_audio(clip.audio, sample_id=clip.sample_id)
            good += 1
        except BadSample as error:
            assert error.sample_id == reader.ids[position] and "\n" not in error.reason.strip(), error
            bad += 1
    return good, bad


def check_within(clip: ClipRef, root: pathlib.Path) -> None:
    sources = [clip.frames, clip.audio, clip.masks]
    listed = [p for s in sources if isinstance(s, ImageFiles | PngMasks) for p in s.paths if p is not None]
    listed += [s.path for s in sources if hasattr(s, "path")]
    for path in listed:  # by name: a link within the tree may lead anywhere
        assert path.startswith(f"{root}/") and ".." not in path.split("/"), path


def replace_in(value, rng: random.Random):
    """The json value with one place in it replaced, or one key or entry missing."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value)) if isinstance(value, dict) else rng.randrange(len(value))
        changed = value.copy()
        if rng.random() < 0.15:
            del changed[key]
        else:
            changed[key] = replace_in(value[key], rng)
        return changed
    return rng.choice(JUNK)


def damage(root: pathlib.Path, secret: pathlib.Path, rng: random.Random) -> str:
    """Breaks one thing in the tree; says what. Files are hard links, so they are replaced, not written into."""
    everything = sorted(path for path in root.rglob("*") if path.is_file())
    tables = [path for path in everything if path.suffix in TEXT or path.suffix == ".parquet"]
    path = rng.choice(tables if rng.random() < 0.5 else everything)
    data = path.read_bytes()
    how = rng.choice(
        ("delete", "cut", "cut", "flip", "empty", "swap", "link", "link_dir", "dir", "json", "json", "json")
    )
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.5:
        how = "json"
    if how in ("link_dir",):
        folder = path.parent if path.parent != root else path
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        folder.symlink_to(secret)
        return f"{how} {folder}"
    path.unlink()
    match how:
        case "cut":
            path.write_bytes(data[: rng.randrange(len(data))] if data else b"")
        case "flip":
            changed = bytearray(data or b"x")
            for _ in range(rng.choice((1, 10, 100))):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            path.write_bytes(bytes(changed))
        case "empty":
            path.write_bytes(b"")
        case "swap":  # an image of another size, another file's content for the rest
            image = cv2.imencode(path.suffix, np.full((33, 21, 3), 9, np.uint8))[1] if path.suffix in IMAGES else None
            path.write_bytes(image.tobytes() if image is not None else (secret / "secret.jpg").read_bytes())
        case "link":
            path.symlink_to(secret / "secret.jpg")
        case "dir":
            path.mkdir()
        case "json":
            path.write_bytes(damage_text(path, data, rng))
    return f"{how} {path}"


def damage_text(path: pathlib.Path, data: bytes, rng: random.Random) -> bytes:
    if path.suffix == ".json":
        return json.dumps(replace_in(json.loads(data), rng)).encode()
    lines = data.split(b"\n")
    n = rng.randrange(max(1, len(lines) - 1))
    if path.suffix == ".jsonl":
        lines[n] = json.dumps(replace_in(json.loads(lines[n]), rng)).encode()
    else:
        junk = [v for v in JUNK if isinstance(v, str) and v != "\ud800"]
        lines[n] = lines[n].replace(rng.choice(lines[n].split(b",")), rng.choice(junk).encode(), 1)
    return b"\n".join(lines)


@pytest.mark.parametrize("group", range(GROUPS))
def test_damage_is_named(originals, tmp_path, group):
    break_and_use(originals, tmp_path, range(group * CASES // GROUPS, (group + 1) * CASES // GROUPS))


@pytest.mark.slow
def test_much_damage_is_named(originals, tmp_path):
    break_and_use(originals, tmp_path, range(CASES, 2300))


def break_and_use(originals: dict[str, pathlib.Path], tmp_path: pathlib.Path, cases: range) -> None:
    names = [name for name in originals if name != "secret"]
    outcomes = []
    for case in cases:
        rng = random.Random(case)
        name = names[case % len(names)]
        root = tmp_path / str(case) / name
        shutil.copytree(originals[name], root, copy_function=os.link)
        what = damage(root, originals["secret"], rng)
        try:
            outcomes.append(use(name, root))
        except InputError as error:
            assert "\n" not in str(error) and str(error), what
            outcomes.append("refused")
        except Exception as error:
            raise AssertionError(f"case {case}, {name}: {what}: {type(error).__name__}: {error}") from error
        shutil.rmtree(root)
    assert any(o == "refused" or o[1] for o in outcomes), "nothing was noticed at all"


def test_whole_trees_are_read_without_complaint(originals):
    for name, root in originals.items():
        if name != "secret":
            good, bad = use(name, root)
            assert good and not bad, name


def test_frames_of_another_size_than_their_masks(originals, tmp_path):
    root = tmp_path / "revos"
    shutil.copytree(originals["revos"], root)
    for path in (root / "JPEGImages").rglob("*.jpg"):
        path.write_bytes(cv2.imencode(".jpg", np.zeros((48, 66, 3), np.uint8))[1].tobytes())
    assert use("revos", root) == (0, ITEMS)
