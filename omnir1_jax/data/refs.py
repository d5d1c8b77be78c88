"""What a dataset's reader hands to the pipeline: a reference to one clip and its query, nothing decoded yet.

A `ClipRef` says where frames, sound and masks are. Masks are decoded by `omnir1_jax.data.masks.decode_masks`, frames
and sound by `omnir1_jax.data.media`. All are frozen dataclasses of plain values, so they pickle into worker processes.

Errors: opening a dataset raises `InputError` when its structure is wrong; decoding one sample raises `BadSample`,
which the pipeline counts, names and skips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from omnir1_jax.errors import printable

FAMILIES = ("vos", "refavs", "refcocog", "qa")


class BadSample(Exception):
    """The media or the masks of one sample cannot be read. The sample is skipped, counted and named."""

    def __init__(self, sample_id: str, reason: str):
        super().__init__(sample_id, reason)
        self.sample_id, self.reason = sample_id, printable(reason)

    def __str__(self) -> str:
        return f"{printable(self.sample_id)}: {self.reason}"


@dataclass(frozen=True)
class ImageFiles:
    """Frames as image files in time order. `names` are the datasets' own frame names (predictions are saved so)."""

    paths: tuple[str, ...]
    names: tuple[str, ...]
    fps: float | None = None  # None where the dataset does not say
    upright: bool = False  # after their EXIF rotation; as stored where masks belong to them

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class ImageBytes:
    """Frames as encoded images (JPEG or PNG) in time order."""

    blobs: tuple[bytes, ...] = field(repr=False)
    names: tuple[str, ...]
    fps: float | None = None

    def __len__(self) -> int:
        return len(self.blobs)


@dataclass(frozen=True)
class VideoFile:
    """A video file, or the part of it from `start` to `end` seconds. Its length is known only after opening it."""

    path: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class AudioFile:
    """A sound file, or a film whose track is meant."""

    path: str


@dataclass(frozen=True)
class AudioBytes:
    """A sound file's content."""

    data: bytes = field(repr=False)


@dataclass(frozen=True)
class VideoAudio:
    """The audio track of a video file, or the part of it from `start` to `end` seconds."""

    path: str
    start: float | None = None
    end: float | None = None
    required: bool = True  # False: a file without a track is a clip without sound, not a bad sample


@dataclass(frozen=True)
class RleMasks:
    """Masks as COCO run lengths: `objects[n][t]` is `{"size": [h, w], "counts": str}`, or None where n is absent."""

    objects: tuple[tuple[Mapping[str, Any] | None, ...], ...] = field(repr=False)
    size: tuple[int, int]  # height, width: what an absent object's empty mask measures


@dataclass(frozen=True)
class PngMasks:
    """Masks as one image per frame: object n is `pixel == values[n]`, or `pixel > 0` where `values[n]` is None.

    A palette image counts by its indices. A frame whose path is None has no object in it.
    """

    paths: tuple[str | None, ...]
    values: tuple[int | None, ...]
    size: tuple[int, int] | None = None  # height, width, where the dataset says it
    size_from: str | None = None  # an image to take the size from, for a clip without any mask image


FrameSource = ImageFiles | ImageBytes | VideoFile
AudioSource = AudioFile | AudioBytes | VideoAudio
MaskSource = RleMasks | PngMasks


@dataclass(frozen=True)
class ClipRef:
    """One clip (or image) and one query about it. Says where things are; decodes nothing."""

    dataset: str  # "revos", "mevis", "refavs", ...
    sample_id: str  # unique and stable: "revos/train/<video>/<expression>"
    family: str  # one of FAMILIES, which sets the static shapes of its batches
    query: str  # the referring expression or the question
    frames: FrameSource
    audio: AudioSource | None = None
    masks: MaskSource | None = None  # one row per object of the target; masks for every frame of `frames`
    foreground: MaskSource | None = None  # ReVOS: the union of all objects annotated in the video (metric R)
    size: tuple[int, int] | None = None  # height, width of the frames, where the dataset says it
    extra: Mapping[str, Any] = field(default_factory=dict)  # what else the dataset has, plain values by its own names


@runtime_checkable
class Reader(Protocol):
    """A split of a dataset: random access by position, cheap to open, picklable, fed to grain as a source."""

    name: str
    split: str

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> ClipRef:
        """The item at `position` in [0, len). Raises `IndexError` outside, `BadSample` where its entry is unusable."""
        ...

    def clips(self) -> Sequence[Sequence[int]]:
        """Positions of the items that share a clip, one group per clip: training draws one expression per clip."""
        ...
