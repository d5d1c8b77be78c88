"""Run lengths against pycocotools, label maps of every bit depth, json read a key at a time."""

import json
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from omnir1_jax.data import metadata, rle
from omnir1_jax.data.masks import decode_label_map, decode_masks
from omnir1_jax.data.refs import BadSample, PngMasks, RleMasks
from omnir1_jax.errors import InputError
from tests.data import trees


@settings(max_examples=150)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
def test_rle_equals_pycocotools(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    mask = cv2.dilate(mask.astype(np.uint8), np.ones((2, 2))).astype(bool) if seed % 2 else mask
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert rle.encode(mask) == {"size": [height, width], "counts": theirs["counts"].decode()}
    assert np.array_equal(rle.decode(rle.encode(mask)), mask)
    runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(mask.T.ravel(), prepend=False)), [mask.size]])).tolist()
    assert np.array_equal(rle.decode({"size": [height, width], "counts": runs}), mask)


@pytest.mark.parametrize("height, width", [(1080, 1920), (1, 1), (480, 854)])
def test_rle_of_long_runs(height, width):
    mask = np.zeros((height, width), bool)
    mask[height // 3 :, width // 2 :] = True
    assert np.array_equal(rle.decode(rle.encode(mask)), mask)


@settings(max_examples=300)
@given(st.text(max_size=30) | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12))
def test_damaged_run_lengths_are_refused(text):
    try:
        mask = rle.decode({"size": [5, 7], "counts": text})
    except ValueError:
        return
    assert np.array_equal(rle.decode(rle.encode(mask)), mask) and mask.shape == (5, 7)


@pytest.mark.parametrize(
    "value", [None, {}, {"size": [5, 7]}, {"size": [5, 7], "counts": [5, -5, 35]}, {"size": [2.0, 2], "counts": "4"}]
)
def test_what_is_no_run_lengths(value):
    source = RleMasks(((value or {"size": None},),), (5, 7))
    with pytest.raises(BadSample, match="x: mask of object 0, frame 0"):
        decode_masks(source, [0], "x")


def test_a_mask_of_another_size_is_a_bad_sample():
    source = RleMasks(((rle.encode(np.ones((5, 6), bool)),),), (5, 7))
    with pytest.raises(BadSample, match=r"is \(5, 6\), expected \(5, 7\)"):
        decode_masks(source, [0])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_images_read_as_indices(depth):
    indices = np.random.default_rng(depth).integers(0, 2**depth, (13, 21), np.uint8)
    assert np.array_equal(decode_label_map(trees.palette_png(indices, depth)), indices)


def test_gray_images_read_as_values():
    values = np.random.default_rng(0).integers(0, 256, (13, 21), np.uint8)
    assert np.array_equal(decode_label_map(cv2.imencode(".png", values)[1].tobytes()), values)


@settings(max_examples=150)
@given(st.data())
def test_damaged_mask_images_are_refused(data):
    indices = np.arange(60, dtype=np.uint8).reshape(6, 10)
    whole = trees.palette_png(indices)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError):
        decode_label_map(whole[:cut])
    changed = bytearray(whole)
    changed[cut] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError):  # every chunk has a checksum
        decode_label_map(bytes(changed))


def test_png_masks(tmp_path):
    labels = np.zeros((6, 8), np.uint8)
    labels[:2], labels[4:] = 1, 3
    paths = tuple(str(trees.write(tmp_path / f"{t}.png", trees.palette_png(np.roll(labels, t, 1)))) for t in range(2))
    source = PngMasks((*paths, None), (1, 3, None))
    found = decode_masks(source, [2, 0])
    assert not found[:, 0].any()
    assert np.array_equal(found[:, 1], [labels == 1, labels == 3, labels > 0])
    trees.write(tmp_path / "1.png", trees.palette_png(labels[:5]))
    with pytest.raises(BadSample, match="5x8, 6x8"):
        decode_masks(source, [0, 1])


def test_json_by_key(tmp_path):
    value = {"a": [1, {"b": None}], "vidéo/é": "ü", " ": {}, "n": -1.5e3, "": []}
    path = str(trees.write(tmp_path / "x.json", json.dumps(value, ensure_ascii=False, indent=1)))
    index = metadata.index_json(path)
    assert {key: index.read(key) for key in index.spans} == value


@settings(max_examples=200)
@given(st.data())
def test_damaged_json_is_refused_or_equal(tmp_path_factory, data):
    text = json.dumps({"12": [None, {"size": [3, 4], "counts": 'a\\b"]}'}], "13": {"x": "y"}})
    cut, bit = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(0, 6))
    changed = text[:cut] + chr(ord(text[cut]) ^ (1 << bit)) + text[cut + 1 :]
    path = str(trees.write(tmp_path_factory.getbasetemp() / "damaged.json", changed))
    try:
        expected = json.loads(changed)
    except ValueError:
        with pytest.raises(InputError, match=r"damaged\.json"):
            metadata.index_json(path)
        return
    index = metadata.index_json(path)
    assert {key: index.read(key) for key in index.spans} == expected


def test_an_indexed_file_stays_on_disk(tmp_path):
    """Masks of a whole dataset are gigabytes; what a worker holds of them is where they are."""
    entry = [{"size": [480, 854], "counts": "0" * 2000}] * 20
    path = str(trees.write(tmp_path / "mask_dict.json", json.dumps({str(n): entry for n in range(100)})))
    tracemalloc.start()
    index = metadata.index_json(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 200_000 and len(index.read("99")) == 20
    assert peak < 3.5 * 100 * 20 * 2000
