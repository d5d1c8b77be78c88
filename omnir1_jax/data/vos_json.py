"""What ReVOS and MeViS share: meta_expressions json, folders of JPEG frames, masks as run lengths by annotation id."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omnir1_jax.data import metadata, paths, rle
from omnir1_jax.data.masks import image_size
from omnir1_jax.data.refs import ClipRef, ImageFiles, RleMasks
from omnir1_jax.errors import InputError


@dataclass(frozen=True)
class VosSplit:
    """One split on disk. `videos` is the checked content of meta_expressions."""

    dataset: str
    root: str
    frames_root: str  # directory of the videos' folders, within `root`; "" is the root itself
    videos: Mapping[str, Any] = field(repr=False)
    masks: metadata.JsonIndex | None  # annotation id -> run lengths per frame
    foreground: metadata.JsonIndex | None = None  # video -> union of all its annotations


def load_videos(path: str, root: str, frames_root: str, with_size: bool, with_objects: bool) -> dict[str, Any]:
    """The "videos" of a meta_expressions file, every record checked, every frame folder there.

    Raises `InputError` with the path of the offending key.
    """
    videos = metadata.get(metadata.load_json(path), "videos", dict, path)
    missing = []
    for video, record in videos.items():
        location = f"{path}: videos['{video}']"
        frames = metadata.get_list(record, "frames", str, location)
        if not frames:
            raise InputError(f"{location}.frames: the list is empty")
        for frame in frames:
            check_name(frame, f"{location}.frames")
        if with_size:
            for key in ("height", "width"):
                if not 0 < metadata.get(record, key, int, location) < 2**15:
                    raise InputError(f"{location}.{key}: expected a number of pixels, found {str(record[key])[:20]}")
        for exp_id, expression in metadata.get(record, "expressions", dict, location).items():
            expression_location = f"{location}.expressions['{exp_id}']"
            check_name(exp_id, expression_location)
            metadata.get(expression, "exp", str, expression_location)
            if with_objects:
                metadata.get_list(expression, "obj_id", int, expression_location)
                metadata.get_list(expression, "anno_id", int, expression_location)
                if len(expression["obj_id"]) != len(expression["anno_id"]):
                    raise InputError(f"{expression_location}: obj_id and anno_id differ in length")
        folder = paths.inside(root, f"{frames_root}/{video}".lstrip("/") if frames_root else video, location)
        if not paths.is_remote(root) and not paths.exists(folder):
            missing.append(folder)
    if missing:
        first = paths.missing(missing[0])
        raise InputError(f"{path}: {len(missing)} of {len(videos)} videos have no frames; {first}")
    return videos


def check_name(name: str, location: str) -> None:
    """Frame names and expression ids become file names: one plain part of a path each."""
    if not name or "/" in name or "\\" in name or name in (".", "..") or "\0" in name:
        raise InputError(f"{location}: {name!r} leaves its folder; expected a plain name")


def require_masks(index: metadata.JsonIndex, videos: Mapping[str, Any]) -> None:
    """Raises `InputError` if an expression's annotation has no entry in the mask file."""
    required = {a for record in videos.values() for e in record["expressions"].values() for a in e["anno_id"]}
    if missing := sorted(a for a in required if str(a) not in index):
        raise InputError(
            f"{index.path}: {len(missing)} of {len(required)} annotation ids are missing, first '{missing[0]}'"
        )


def expressions(videos: Mapping[str, Any], keep_empty: bool) -> Iterator[tuple[str, str, tuple[str, str]]]:
    """(name, clip, row) of every expression; those without a target only if `keep_empty`."""
    for video, record in videos.items():
        for exp_id, expression in record["expressions"].items():
            if keep_empty or (expression.get("obj_id") and expression.get("type_id") != 2):
                yield f"{video}/{exp_id}", video, (video, exp_id)


def images(root: str, folder: str, video: str, names: Sequence[str]) -> ImageFiles:
    """The frames `names` of a video below `folder` ("" is the root itself). Raises `InputError`."""
    directory = f"{folder}/{video}" if folder else video
    return ImageFiles(paths.files(root, directory, [f"{name}.jpg" for name in names], video), tuple(names))


def clip(split: VosSplit, sample_id: str, row: tuple[str, str]) -> ClipRef:
    """The clip of one expression. Raises `InputError` (a bad sample, to the reader) if its files or masks are off."""
    video, exp_id = row
    record = split.videos[video]
    expression = record["expressions"][exp_id]
    names = record["frames"]
    frames = images(split.root, split.frames_root, video, names)
    size = (record["height"], record["width"]) if "height" in record else None
    masks = foreground = None
    if split.masks is not None:
        keys = [str(a) for a in expression["anno_id"]]
        tracks = [check_track(split.masks.read(key), len(names), f"{split.masks.path}['{key}']") for key in keys]
        size = size or track_size(tracks, frames)
        masks = RleMasks(tuple(tracks), size)
    if split.foreground is not None:
        location = f"{split.foreground.path}['{video}']"
        tracks = [
            check_track(metadata.get(split.foreground.read(video), "masks_rle", list, location), len(names), location)
        ]
        foreground = RleMasks(tuple(tracks), size or track_size(tracks, frames))
    extra = {key: expression[key] for key in ("obj_id", "anno_id", "type_id") if key in expression}
    return ClipRef(
        dataset=split.dataset,
        sample_id=sample_id,
        family="vos",
        query=expression["exp"],
        frames=frames,
        masks=masks,
        foreground=foreground,
        size=size,
        extra={"video": video, "exp_id": exp_id, **extra},
    )


def check_track(track: Any, length: int, location: str) -> tuple[Mapping[str, Any] | None, ...]:
    """Run lengths of one object, one entry per frame. Raises `InputError`."""
    metadata.check(track, list, location)
    if len(track) != length:
        raise InputError(f"{location}: {len(track)} masks for {length} frames")
    for position, entry in enumerate(track):
        if entry is not None:
            metadata.check(entry, dict, f"{location}[{position}]")
    return tuple(track)


def track_size(tracks: list, frames: ImageFiles) -> tuple[int, int]:
    """Height and width where the metadata has none: of the first mask there is, else of the first frame."""
    for track in tracks:
        for entry in track:
            if entry is not None:
                try:
                    return rle.mask_size(entry)
                except ValueError as error:
                    raise InputError(str(error)) from error
    return image_size(frames.paths[0])
