"""TFDS: what is built reads back as what it was built from, and TensorFlow is never there."""

import json
import pickle
import shutil
import subprocess
import sys

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds

from omnir1_jax.data import audio, canvas, frame_sampling, media, registry
from omnir1_jax.data.clips import DecodeConfig, decode
from omnir1_jax.data.masks import decode_masks
from omnir1_jax.data.refs import BadSample
from omnir1_jax.data.tfds_builders import builders
from omnir1_jax.data.tfds_builders import reader as tfds_reader
from omnir1_jax.errors import InputError
from tests.data import trees


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    base = tmp_path_factory.mktemp("tfds")
    for name in builders.BUILDERS:
        trees.BUILD[name](base / name)
        builders.build(name, base / name, base / "built")
    return base


@pytest.mark.parametrize("name", builders.BUILDERS)
def test_round_trip(root, name):
    """Every split: same items by name, same words, frames, masks, sound and extras."""
    directory = root / "built" / name
    for split in builders.present_splits(builders.BUILDERS[name].module, str(root / name)):
        source = registry.open_dataset(name, str(root / name), split)
        built = pickle.loads(pickle.dumps(registry.open_dataset("tfds", str(directory), split)))
        assert sorted(source.ids) == sorted(built.ids) and built.name == name and built.split == split
        assert sorted(map(len, source.clips())) == sorted(map(len, built.clips()))
        place = {label: position for position, label in enumerate(built.ids)}
        for a in (source[i] for i in range(len(source))):
            b = built[place[a.sample_id]]
            same = ("dataset", "sample_id", "family", "query", "extra")
            assert [getattr(a, key) for key in same] == [getattr(b, key) for key in same]
            assert a.frames.names == b.frames.names and a.frames.fps == b.frames.fps
            assert a.size in (None, b.size)
            everything = range(len(a.frames))
            assert np.array_equal(media.load_frames(a.frames, everything), media.load_frames(b.frames, everything))
            for key in ("masks", "foreground"):
                x, y = getattr(a, key), getattr(b, key)
                assert (x is None) == (y is None)
                assert x is None or np.array_equal(decode_masks(x, everything), decode_masks(y, everything))
            assert (a.audio is None) == (b.audio is None) == (name != "refavs")
            assert a.audio is None or np.array_equal(audio.load_audio(a.audio), audio.load_audio(b.audio))


def test_files_are_array_record_and_open_by_data_source(root):
    source = tfds.data_source("revos", data_dir=str(root / "built"), split="train")
    assert len(source) == 2
    example = source[0]
    assert example["frames"][0] == (root / "revos/JPEGImages/synthetic/train/clip_00000/00000.jpg").read_bytes()
    assert json.loads(example["tracks"][0])[0]["size"] == [48, 64]
    assert list((root / "built" / "revos" / "1.0.0").glob("revos-train.array_record-*"))


def test_grain_takes_the_reader_as_a_source(root):
    reader = tfds_reader.open(root / "built" / "revos")
    stream = grain.MapDataset.source(reader).shuffle(seed=1).map(lambda ref: ref.sample_id)
    assert sorted(stream[i] for i in range(len(stream))) == sorted(reader.ids)


def test_tensorflow_is_never_imported(root, tmp_path):
    program = f"""
import sys
from omnir1_jax.data import media, registry
from omnir1_jax.data.tfds_builders import builders
directory = builders.build("refavs", {str(root / "refavs")!r}, {str(tmp_path / "built")!r})
reader = registry.open_dataset("tfds", str(directory), "test_s")
assert media.load_frames(reader[0].frames, range(10)).shape == (10, 48, 64, 3)
assert "tensorflow" not in sys.modules, "tensorflow was imported"
print("read", len(reader))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("read 5")


def test_a_clip_that_cannot_be_read_is_left_out_and_named(root, tmp_path):
    tree = shutil.copytree(root / "mevis", tmp_path / "mevis")
    shutil.rmtree(tree / "valid")
    video = sorted((tree / "train" / "JPEGImages").iterdir())[0]
    (video / "00002.jpg").unlink()
    directory = builders.build("mevis", tree, tmp_path / "built")
    told = json.loads((directory / "metadata.json").read_text())
    assert len(told["skipped"]["train"]) == 1 and "00002.jpg is missing" in told["skipped"]["train"][0]
    assert len(told["items"]["train"]) == 1 and set(told["items"]) == {"train", "valid_u"}
    assert len(tfds_reader.open(directory).clips()) == 1
    for folder in (tree / "train" / "JPEGImages").iterdir():
        (folder / "00000.jpg").unlink(missing_ok=True)
    with pytest.raises(InputError, match="not one clip"):
        builders.build("mevis", tree, tmp_path / "again")
    assert not list((tmp_path / "again").rglob("dataset_info.json"))


def test_errors(root, tmp_path):
    with pytest.raises(InputError, match="no split 'dev'; there are train, valid"):
        tfds_reader.open(root / "built" / "revos", "dev")
    with pytest.raises(InputError, match=r"no dataset_info\.json"):
        tfds_reader.open(tmp_path)
    with pytest.raises(InputError, match="no builder is called 'nope'"):
        builders.build("nope", tmp_path, tmp_path)
    copy = shutil.copytree(root / "built" / "revos", tmp_path / "revos")
    (record,) = copy.rglob("revos-train.array_record-*")
    data = bytearray(record.read_bytes())
    for at in range(len(data) // 2, len(data) // 2 + 64):
        data[at] ^= 0xFF
    record.write_bytes(data)
    reader = tfds_reader.open(copy)
    bad = []
    for i in range(len(reader)):
        try:
            reader[i]
        except BadSample as error:
            bad.append(error.sample_id)
    assert bad and set(bad) <= set(reader.ids)


def test_command(root, tmp_path):
    command = [
        sys.executable,
        "-m",
        "omnir1_jax.data.tfds_builders",
        "--dataset",
        "revos",
        "--out",
        str(tmp_path / "o"),
    ]
    done = subprocess.run([*command, "--root", str(root / "revos")], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().endswith("o/revos/1.0.0")
    done = subprocess.run([*command, "--root", str(root / "revos")], capture_output=True, text=True)
    assert done.returncode == 2 and "exists already" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(InputError, match="nothing"):
        builders.build("revos", root / "nothing", tmp_path / "other")


@pytest.mark.parametrize("name", ["revos", "refavs"])
def test_the_pipeline_gives_the_same_arrays_from_both(root, name):
    """Elements of every row, decoded from the tree and from array_record."""
    family = {"revos": "vos", "refavs": "refavs"}[name]
    config = DecodeConfig(frames=4, sampling="uniform", sound="ignore" if family == "vos" else "required")
    shapes, found = canvas.DetailConfig(4, 3, (64, 64), (16, 16)), []
    for source in (
        registry.open_dataset(name, str(root / name), "train"),
        registry.open_dataset("tfds", str(root / "built" / name), "train"),
    ):
        elements = {}
        for position in range(len(source)):
            ref = source[position]
            try:
                clip = decode(ref, config, frame_sampling.generator(0, 0, position))
                sound = {} if clip.audio is None else {"audio": clip.audio}
                elements[ref.sample_id] = canvas.element(clip, shapes) | sound
            except BadSample:  # of both forms, then
                elements[ref.sample_id] = {}
        found.append(elements)
    tree, built = found
    assert tree.keys() == built.keys() and any(tree.values())
    for sample_id, arrays in tree.items():
        for key, value in arrays.items():
            np.testing.assert_array_equal(value, built[sample_id][key], err_msg=f"{sample_id} {key}")
