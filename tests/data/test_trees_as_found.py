"""Trees as users have them: links (the Hugging Face cache, folders on another disk), byte order marks."""

import codecs
import hashlib
import os
import pathlib

import numpy as np
import pytest

from omnir1_jax.data import clips, registry
from omnir1_jax.data.tfds_builders import builders
from omnir1_jax.errors import InputError
from tests.data import trees

DECODE = clips.DecodeConfig(frames=4, objects=8, sound="optional")


def hub_cache(tree: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
    """The tree as huggingface_hub keeps it: `snapshots/<revision>/...` are relative links into `blobs/<sha>`."""
    snapshot = cache / "snapshots" / "0123abc"
    (cache / "blobs").mkdir(parents=True)
    for file in filter(pathlib.Path.is_file, tree.rglob("*")):
        blob = cache / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        if not blob.exists():
            os.link(file, blob)
        link = snapshot / file.relative_to(tree)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def other_disk(tree: pathlib.Path, disk: pathlib.Path) -> pathlib.Path:
    """The tree with each folder at its top moved elsewhere and linked to."""
    root = disk / "root"
    root.mkdir(parents=True)
    for path in tree.iterdir():
        (root / path.name).symlink_to(path)
    return root


def marked(tree: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """The tree with a byte order mark before every text, as some editors and spreadsheets write it."""
    for file in filter(pathlib.Path.is_file, tree.rglob("*")):
        copy = out / file.relative_to(tree)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in (".json", ".jsonl", ".csv") and not tree.name.startswith("tfds_"):
            copy.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
        else:
            copy.symlink_to(file)
    return out


def contents(name: str, root: pathlib.Path) -> list[tuple]:
    """Ids, frames, sound and masks of the first and the last item."""
    reader = registry.open_dataset(trees.dataset_of(name), str(root), trees.split_of(name))
    out = []
    for position in (0, len(reader) - 1):
        clip = clips.decode(reader[position], DECODE, np.random.default_rng(0))
        out.append((reader.ids[position], clip.frames, clip.audio, clip.masks))
    return out


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, pathlib.Path]:
    base = tmp_path_factory.mktemp("trees")
    for name, build in trees.BUILD.items():
        build(base / name)
    builders.build("revos", base / "revos", base / "built").rename(base / "tfds_revos")
    return {name: base / name for name in (*trees.BUILD, "tfds_revos")}


def test_every_dataset_is_tried(originals):
    assert {trees.dataset_of(name) for name in originals} == set(registry.DATASETS) - {"synthetic"}


@pytest.mark.parametrize("layout", [hub_cache, other_disk, marked])
def test_trees_as_found_are_read_like_the_originals(originals, tmp_path, layout):
    for name, tree in originals.items():
        items = contents(name, layout(tree, tmp_path / name))
        for found, wanted in zip(items, contents(name, tree), strict=True):
            assert found[0] == wanted[0]
            for one, other in zip(found[1:], wanted[1:]):
                assert (one is None and other is None) or np.array_equal(one, other), name


def test_a_link_that_leads_nowhere_is_named(originals, tmp_path):
    """A disk that is not mounted; a blob that was not fetched."""
    root = other_disk(originals["revos"], tmp_path)
    (root / "JPEGImages").unlink()
    (root / "JPEGImages").symlink_to(tmp_path / "unmounted")
    with pytest.raises(InputError, match=r"have no frames; .*/JPEGImages is a link to .*/unmounted, which is not"):
        registry.open_dataset("revos", str(root))
    root = hub_cache(originals["videomme"], tmp_path / "hub")
    os.remove((root / "data" / "vid1.mp4").resolve())
    with pytest.raises(InputError, match=r"vid1\.mp4 is a link to .*blobs/\w+, which is not there \(2 of 6 items"):
        registry.open_dataset("videomme", str(root))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere, which is not there; give the directory"):
        registry.open_dataset("mevis", str(tmp_path / "link"))
