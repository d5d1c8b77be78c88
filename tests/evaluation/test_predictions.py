"""Prediction trees: round trip, what is missing or wrong, and the servers' archives."""

import pathlib
import zipfile

import numpy as np
import pytest

from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import predictions

NAMES = ["00005", "00010"]


@pytest.fixture
def tree(tmp_path):
    rng = np.random.default_rng(0)
    masks = rng.random((2, 6, 9)) < 0.5
    predictions.write(str(tmp_path / "p"), "UVO/all/-x", "12", NAMES, masks)
    return str(tmp_path / "p"), masks


def test_round_trip(tree):
    root, masks = tree
    read = predictions.read(root, "UVO/all/-x", "12", NAMES)
    np.testing.assert_array_equal(read, masks * np.uint8(255))
    assert predictions.read(root, "UVO/all/-x", "13", NAMES) is None


def test_what_is_wrong_is_named(tree, tmp_path):
    root, masks = tree
    with pytest.raises(InputError, match=r"00015\.png is missing"):
        predictions.read(root, "UVO/all/-x", "12", [*NAMES, "00015"])
    (tmp_path / "p/UVO/all/-x/12/00010.png").write_bytes(b"\x89PNG\r\n\x1a\n...")
    with pytest.raises(InputError, match=r"00010\.png: the PNG is cut short"):
        predictions.read(root, "UVO/all/-x", "12", NAMES)
    with pytest.raises(InputError, match="leaves the dataset's root"):
        predictions.read(root, "../../etc", "12", NAMES)
    with pytest.raises(InputError, match="2 masks for 1 frames"):
        predictions.write(root, "v", "0", NAMES[:1], masks)
    predictions.write(root, "v", "0", NAMES[:1], masks[:1])
    predictions.write(root, "w", "0", NAMES[1:], masks[:1, :3])
    (tmp_path / "p/w/0/00010.png").rename(tmp_path / "p/v/0/00010.png")
    with pytest.raises(InputError, match=r"00010\.png: \(3, 9\).*\(6, 9\)"):
        predictions.read(root, "v", "0", NAMES)


def test_server_archives(tree, tmp_path):
    root, _ = tree
    first, second = str(tmp_path / "a.zip"), str(tmp_path / "b.zip")
    (pathlib.Path(root) / "UVO/all/-x/12/._00005.png").write_bytes(b"no image")  # of a system, beside a copied file
    assert predictions.write_zip(root, first) == 2
    assert predictions.write_zip(root, second, predictions.REFYTVOS_PREFIX, [("UVO/all/-x", "12")]) == 2
    names = ["UVO/all/-x/12/00005.png", "UVO/all/-x/12/00010.png"]
    assert zipfile.ZipFile(first).namelist() == names
    assert zipfile.ZipFile(second).namelist() == [f"Annotations/{n}" for n in names]
    with pytest.raises(InputError, match="not a directory"):
        predictions.write_zip(root + "x", first)
