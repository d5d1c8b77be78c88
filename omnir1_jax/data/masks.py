"""From a `MaskSource` to boolean arrays."""

import io
import struct
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from omnir1_jax.data import paths, rle
from omnir1_jax.data.refs import BadSample, MaskSource, PngMasks, RleMasks
from omnir1_jax.errors import InputError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decode_masks(
    source: MaskSource, frame_indices: Sequence[int], sample_id: str = "?"
) -> Bool[np.ndarray, "objects time height width"]:
    """Masks of the chosen frames (positions in the clip, any order, repeats allowed).

    Raises `BadSample` if a mask is missing, cannot be decoded, or differs in size from the others.
    A caller that has the frames compares their size with the masks' itself.
    """
    match source:
        case RleMasks():
            return _from_rle(source, frame_indices, sample_id)
        case PngMasks():
            return _from_png(source, frame_indices, sample_id)
    raise TypeError(f"not a mask source: {type(source).__name__}")


def _from_rle(source: RleMasks, frame_indices: Sequence[int], sample_id: str) -> np.ndarray:
    if source.size[0] * source.size[1] > rle.MAX_PIXELS:
        raise BadSample(sample_id, f"masks of {source.size[0]}x{source.size[1]} pixels")
    out = np.zeros((len(source.objects), len(frame_indices), *source.size), bool)
    for n, track in enumerate(source.objects):
        for k, t in enumerate(frame_indices):
            if not 0 <= t < len(track):
                raise BadSample(sample_id, f"no mask for frame {t}: object {n} has masks for {len(track)} frames")
            run_lengths = track[t]
            if run_lengths is None:
                continue
            try:
                mask = rle.decode(run_lengths)
            except ValueError as error:
                raise BadSample(sample_id, f"mask of object {n}, frame {t}: {error}") from error
            if mask.shape != tuple(source.size):
                raise BadSample(sample_id, f"mask of object {n}, frame {t} is {mask.shape}, expected {source.size}")
            out[n, k] = mask
    return out


def _from_png(source: PngMasks, frame_indices: Sequence[int], sample_id: str) -> np.ndarray:
    maps: dict[int, np.ndarray] = {}
    for t in sorted(set(frame_indices)):
        if not 0 <= t < len(source.paths):
            raise BadSample(sample_id, f"no mask for frame {t}: there are masks for {len(source.paths)} frames")
        path = source.paths[t]
        if path is None:
            continue
        try:
            maps[t] = decode_label_map(paths.read_bytes(path))
        except (OSError, ValueError) as error:
            raise BadSample(sample_id, f"mask image {path}: {error}") from error
    sizes = {labels.shape for labels in maps.values()} | ({tuple(source.size)} if source.size else set())
    if not sizes and source.size_from is not None:
        try:
            sizes = {image_size(source.size_from)}
        except InputError as error:
            raise BadSample(sample_id, str(error)) from error
    if len(sizes) != 1:
        seen = ", ".join(f"{h}x{w}" for h, w in sorted(sizes)) or "none"
        raise BadSample(sample_id, f"the mask images of a clip share one size; found {seen}")
    out = np.zeros((len(source.values), len(frame_indices), *sizes.pop()), bool)
    for k, t in enumerate(frame_indices):
        if t in maps:
            for n, value in enumerate(source.values):
                out[n, k] = maps[t] > 0 if value is None else maps[t] == value
    return out


def decode_label_map(data: bytes) -> UInt8[np.ndarray, "height width"]:
    """A mask image's labels: the indices of a palette PNG, the gray values of any other image.

    Raises ValueError for a truncated or unreadable image.
    """
    if not data:
        raise ValueError("the file is empty")
    palette = data.startswith(PNG_SIGNATURE) and _check_png(data)
    try:
        if palette:  # OpenCV would look the colours up
            return np.asarray(Image.open(io.BytesIO(data)))
        labels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except (cv2.error, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("not a readable image") from error
    if labels is None:
        raise ValueError("not a readable image")
    return labels


def _check_png(data: bytes) -> bool:
    """Whether the PNG has a palette. Raises ValueError if a chunk is truncated or its checksum wrong, or one lacks."""
    offset, kind, header = len(PNG_SIGNATURE), b"", data[16:29]
    while kind != b"IEND":
        if offset + 12 > len(data):
            raise ValueError("the PNG is cut short")
        (length,) = struct.unpack_from(">I", data, offset)
        if offset + 12 + length > len(data):
            raise ValueError("the PNG is cut short")
        begins, kind = not kind, data[offset + 4 : offset + 8]
        if zlib.crc32(data[offset + 4 : offset + 8 + length]) != struct.unpack_from(">I", data, offset + 8 + length)[0]:
            raise ValueError(f"the PNG's {kind!r} chunk is damaged")
        if begins and (kind != b"IHDR" or length != 13):
            raise ValueError("the PNG has no header")
        offset += 12 + length
    return header[9] == 3


def image_size(path: str) -> tuple[int, int]:
    """(height, width) of an image file. Raises `InputError` if it cannot be decoded."""
    try:
        image = cv2.imdecode(np.frombuffer(paths.read_bytes(path), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error) as error:
        raise InputError(f"{path}: not a readable image") from error
    if image is None:
        raise InputError(f"{path}: not a readable image")
    return image.shape[0], image.shape[1]
