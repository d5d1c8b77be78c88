"""Reads what `builders` built, as the same clips the source tree gives, through `tfds.data_source`."""

import functools
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from omnir1_jax.data import metadata, paths, vos_json
from omnir1_jax.data.reader import TableReader, make_reader
from omnir1_jax.data.refs import AudioBytes, ClipRef, ImageBytes, RleMasks
from omnir1_jax.errors import InputError, first_line
from omnir1_jax.files import json_file

FAMILY = {"revos": "vos", "mevis": "vos", "refavs": "refavs"}
# What tensorflow-datasets and array_record raise on files that are damaged or not theirs (ImportError: damaged files
# that seem to ask for TensorFlow).
DAMAGE = (OSError, ImportError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, DecodeError)


def open(root: epath.PathLike, split: str = "train") -> TableReader:
    """One item per expression, clip by clip, with the names and contents that the source's own reader gives.

    `root` is the directory of a version (".../revos/1.0.0"), or one above it. Raises `InputError`.
    """
    directory = _version_directory(str(root))
    recorded = metadata.load_json(f"{directory}/metadata.json")
    location = f"{directory}/metadata.json"
    splits = metadata.get(recorded, "items", dict, location)
    if split not in splits:
        raise InputError(f"{location}: no split '{split}'; there are {', '.join(splits) or 'none'}")
    builder = _builder(directory)
    if builder.name not in FAMILY:
        raise InputError(f"{directory} holds the dataset '{builder.name}', not one of {', '.join(FAMILY)}")
    clips = [_check(entry, f"{location}.items['{split}'][{n}]") for n, entry in enumerate(splits[split])]
    length = len(_source(directory, split))
    if length != len(clips):
        raise InputError(f"{directory}: split '{split}' has {length} examples, metadata.json tells of {len(clips)}")
    items = (
        (label, clip, (index, position))
        for index, (clip, labels) in enumerate(clips)
        for position, label in enumerate(labels)
    )
    make = functools.partial(_clip, directory, builder.name, split)
    return make_reader(builder.name, split, items, make, directory)


def _version_directory(root: str) -> str:
    metadata.require_root(root)
    if paths.exists(f"{root}/dataset_info.json"):
        return root
    versions = sorted(str(path.parent) for path in epath.Path(root).glob("*/dataset_info.json"))
    if not versions:
        raise InputError(f"{root}: no dataset_info.json here or one directory below; give what the builder made")
    return versions[-1]


def _check(entry: Any, location: str) -> tuple[str, list[str]]:
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], list)):
        raise InputError(f"{location}: expected [clip, names of its items]")
    return entry[0], [metadata.check(label, str, location) for label in entry[1]]


@functools.lru_cache(maxsize=8)
def _builder(directory: str) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder_from_directory(directory)
    except (*DAMAGE, json_format.ParseError, SystemError) as error:  # protobuf raises the latter for a damaged key
        raise InputError(f"{directory}: not a whole tfds dataset ({first_line(error)})") from error


@functools.lru_cache(maxsize=16)
def _source(directory: str, split: str):
    try:
        return _builder(directory).as_data_source(split)
    except DAMAGE as error:
        raise InputError(f"{directory}: split '{split}' cannot be read ({first_line(error)})") from error


def _clip(directory: str, name: str, split: str, sample_id: str, row: tuple[int, int]) -> ClipRef:
    index, position = row
    location = f"{directory}: example {index} of '{split}'"
    try:
        example = _source(directory, split)[index]
        names = tuple(text.decode() for text in example["frame_names"])
        query, targets, extra = (example["items"][key][position].decode() for key in ("query", "targets", "extra"))
        size = (int(example["height"]), int(example["width"]))
        fps, tracks = float(example["fps"]), list(example["tracks"])
        frames = ImageBytes(tuple(example["frames"]), names, fps or None)
        audio = AudioBytes(example["audio"]) if example["audio"] else None
        foreground = example["foreground"]
    except DAMAGE as error:
        raise InputError(f"{location}: damaged ({first_line(error)})") from error

    def track(data: bytes):
        return vos_json.check_track(json_file.parse(data, location), len(names), location)

    chosen = json_file.parse(targets.encode(), location)
    masks = None
    if chosen is not None:
        if not isinstance(chosen, list) or any(type(n) is not int or not 0 <= n < len(tracks) for n in chosen):
            raise InputError(f"{location}: targets {targets[:40]!r} are not among its {len(tracks)} tracks")
        masks = RleMasks(tuple(track(tracks[n]) for n in chosen), size)
    has_size = min(size) > 0
    if not (has_size or masks is None) or not names or len(frames.blobs) != len(names):
        raise InputError(f"{location}: {len(frames.blobs)} frames, {len(names)} names, size {size}")
    return ClipRef(
        dataset=name,
        sample_id=sample_id,
        family=FAMILY[name],
        query=query,
        frames=frames,
        audio=audio,
        masks=masks,
        foreground=RleMasks((track(foreground),), size) if foreground else None,
        size=size if has_size else None,
        extra=metadata.check(json_file.parse(extra.encode(), location), dict, location),
    )
