"""TFDS builders: one example per clip, with all of its expressions.

Frames and sound stay the encoded bytes of the source files; masks are COCO run lengths as json. Files are
array_record, written and read without TensorFlow. Sources are opened by the project's own readers, from
`DownloadConfig(manual_dir=...)`; `build` is the short way.
"""

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from omnir1_jax.data import media, metadata, mevis, paths, refavs, revos, rle
from omnir1_jax.data.masks import decode_masks
from omnir1_jax.data.reader import TableReader
from omnir1_jax.data.refs import AudioFile, BadSample, ClipRef, ImageFiles, MaskSource, RleMasks
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders, locks

BYTES = np.object_


def features() -> tfds.features.FeaturesDict:
    """What an example holds. `items` are the expressions: a name, the words, the json list of which `tracks` are
    meant (null where masks are not known) and the json of the reader's `extra`."""
    many = lambda: tfds.features.Sequence(tfds.features.Scalar(BYTES))
    return tfds.features.FeaturesDict(
        {
            "clip": tfds.features.Text(),
            "frames": many(),
            "frame_names": tfds.features.Sequence(tfds.features.Text()),
            "fps": tfds.features.Scalar(np.float32),  # 0: not known
            "height": tfds.features.Scalar(np.int32),  # 0: not known
            "width": tfds.features.Scalar(np.int32),
            "audio": tfds.features.Scalar(BYTES),  # empty: none
            "tracks": many(),  # json, one object each: run lengths or null for every frame
            "foreground": tfds.features.Scalar(BYTES),  # json of one track; empty: none
            "items": tfds.features.Sequence(
                {
                    "id": tfds.features.Text(),
                    "query": tfds.features.Text(),
                    "targets": tfds.features.Text(),
                    "extra": tfds.features.Text(),
                }
            ),
        }
    )


class _ClipBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What the three builders share; the module of the dataset is all that differs."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir is the root of the dataset as its authors publish it."
    # Said here, since finding it out takes tensorflow-datasets 4.9.10 a package that it does not install.
    code_path = epath.Path(__file__)
    module: ClassVar[Any]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.module.__doc__,
            features=features(),
            metadata=tfds.core.MetadataDict(items={}, skipped={}),
            disable_shuffling=True,  # positions in `items` are positions in the files
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        root = str(dl_manager.manual_dir)
        return {split: self._generate_examples(root, split) for split in present_splits(self.module, root)}

    def _generate_examples(self, root: str, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = self.module.open(root, split)
        written, skipped = [], []
        for key, group in enumerate(reader.clips()):
            try:
                example = _example(reader, group)
            except BadSample as error:
                logging.warning("left out: %s", error)
                skipped.append(str(error))
                continue
            written.append([example["clip"], [item["id"] for item in example["items"]]])
            yield key, example
        if not written:
            raise InputError(f"{self.name}/{split}: not one clip of {root} can be read; the first: {skipped[0]}")
        self.info.metadata["items"][split] = written
        self.info.metadata["skipped"][split] = skipped


class Revos(_ClipBuilder):
    """ReVOS."""

    name = "revos"
    module = revos


class Mevis(_ClipBuilder):
    """MeViS."""

    name = "mevis"
    module = mevis


class Refavs(_ClipBuilder):
    """Ref-AVS Bench."""

    name = "refavs"
    module = refavs


BUILDERS = {"revos": Revos, "mevis": Mevis, "refavs": Refavs}


def present_splits(module: Any, root: str) -> tuple[str, ...]:
    """The splits whose metadata are there: one may hold only a part of a dataset."""
    if module is revos:
        return tuple(s for s in revos.SPLITS if paths.exists(f"{root}/meta_expressions_{s}_.json"))
    if module is mevis:
        return tuple(s for s in mevis.SPLITS if paths.exists(f"{root}/{s}"))
    return refavs.SPLITS


def build(name: str, root: epath.PathLike, out: epath.PathLike) -> epath.Path:
    """Builds a dataset from its source tree into `out`; gives the directory to open. Raises `InputError`."""
    if name not in BUILDERS:
        raise InputError(f"no builder is called '{name}'; choose one of {', '.join(BUILDERS)}")
    metadata.require_root(str(root))
    if not present_splits(BUILDERS[name].module, str(root)):
        raise InputError(f"{name}: {root} holds none of its splits")
    folders.check_disjoint(out, "--out", {"--root": root})
    builder = BUILDERS[name](data_dir=str(out), file_format="array_record")
    target = epath.Path(builder.data_dir)
    _check_new(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locks.lock(target.parent, "--out"):
        _check_new(target)
        config = tfds.download.DownloadConfig(manual_dir=str(root))
        builder.download_and_prepare(download_config=config, file_format="array_record")
    return target


def _check_new(target: epath.Path) -> None:
    """InputError where the directory of a dataset is there. TFDS itself writes beside it and renames at the end."""
    if folders.exists(target, "--out"):
        raise InputError(f"--out: {target} exists already; build into another directory with --out")


def _example(reader: TableReader, group: tuple[int, ...]) -> dict[str, Any]:
    clips = [reader[position] for position in group]
    first = clips[0]
    tracks: dict[bytes, int] = {}
    items = []
    for clip in clips:
        targets = None
        if clip.masks is not None:
            texts = [json.dumps(track).encode() for track in _tracks(clip)]
            targets = [tracks.setdefault(text, len(tracks)) for text in texts]
        label = clip.sample_id.removeprefix(f"{reader.name}/{reader.split}/")
        texts = {"targets": json.dumps(targets), "extra": json.dumps(dict(clip.extra))}
        items.append({"id": label, "query": clip.query, **texts})
    size = first.size or _size(clips) or (0, 0)
    foreground = json.dumps(first.foreground.objects[0]).encode() if first.foreground is not None else b""
    return {
        "clip": str(reader.clip_of[group[0]]),
        "frames": [media.read(path, first.sample_id) for path in _images(first).paths],
        "frame_names": list(_images(first).names),
        "fps": _images(first).fps or 0.0,
        "height": size[0],
        "width": size[1],
        "audio": media.read(first.audio.path, first.sample_id) if isinstance(first.audio, AudioFile) else b"",
        "tracks": list(tracks),
        "foreground": foreground,
        "items": items,
    }


def _images(clip: ClipRef) -> ImageFiles:
    assert isinstance(clip.frames, ImageFiles), "these datasets are folders of images"
    return clip.frames


def _size(clips: list[ClipRef]) -> tuple[int, int] | None:
    for clip in clips:
        if isinstance(clip.masks, RleMasks):
            return clip.masks.size
        if clip.masks is not None:
            height, width = decode_masks(clip.masks, [0], clip.sample_id).shape[-2:]
            return height, width
    return None


def _tracks(clip: ClipRef) -> list[list[dict[str, Any] | None]]:
    """Run lengths of every object, decoded once so that what cannot be read is left out here and not in training."""
    masks: MaskSource = clip.masks
    decoded = decode_masks(masks, range(len(clip.frames)), clip.sample_id)
    return [[rle.encode(mask) if mask.any() else None for mask in track] for track in decoded]
