"""refCOCOg_2k_840: images of 840x840 (aspect not kept), a phrase, and the box and points that answer it.

Columns: id, problem, solution, image, img_height, img_width (of the original image). As parquet files (at the root
or in `data/`), or as a folder: `metadata.jsonl` with `file_name` in place of `image`, beside the images. A folder is
read faster in shuffled order: parquet gives up an image only with the whole row group around it.

`solution` is `<box>(x0,y0),(x1,y1)</box><points>(x,y),(x,y)</points>`, or in newer files a json list of objects with
bbox_2d and point_2d. Both are integer pixels of the 840 square.
"""

import functools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow
import pyarrow.parquet

from omnir1_jax.data import metadata, paths
from omnir1_jax.data.reader import TableReader, check_source, make_reader
from omnir1_jax.data.refs import ClipRef, ImageBytes, ImageFiles
from omnir1_jax.errors import InputError
from omnir1_jax.text import tags

CANVAS = (840, 840)
TEXT_COLUMNS = ("id", "problem", "solution", "img_height", "img_width")

Box = tuple[int, int, int, int]
Point = tuple[int, int]
_PAIR = re.compile(r"\(\s*(-?\d{1,6})\s*,\s*(-?\d{1,6})\s*\)")


@dataclass(frozen=True)
class _ParquetImage:
    path: str
    group: int
    row: int


def parse_solution(text: str) -> tuple[tuple[Box, ...], tuple[Point, ...]]:
    """Boxes (x0, y0, x1, y1) and points (x, y) of a solution in either spelling.

    Raises ValueError if there is no box, a box is empty, or a coordinate lies outside the 840 square.
    """
    if text.lstrip().startswith("["):
        boxes, points = _parse_objects(text)
    else:
        corners = [_pairs(part) for part in tags.all_between(text, "box")]
        if any(len(c) % 2 for c in corners):
            raise ValueError("a box needs two corners")
        boxes = [(*c[i], *c[i + 1]) for c in corners for i in range(0, len(c), 2)]
        points = [p for part in tags.all_between(text, "points") for p in _pairs(part)]
    if not boxes:
        raise ValueError("no box")
    if any(x0 >= x1 or y0 >= y1 for x0, y0, x1, y1 in boxes):
        raise ValueError("an empty box")
    if any(not 0 <= c <= CANVAS[0] for item in (*boxes, *points) for c in item):
        raise ValueError(f"a coordinate outside the {CANVAS[0]} square")
    return tuple(boxes), tuple(points)


def _pairs(text: str) -> list[Point]:
    return [(int(x), int(y)) for x, y in _PAIR.findall(text)]


def _parse_objects(text: str) -> tuple[list[Box], list[Point]]:
    try:
        objects = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("damaged json") from error
    boxes, points = [], []
    for entry in objects:
        if not isinstance(entry, dict) or "bbox_2d" not in entry:
            raise ValueError("expected a list of objects with bbox_2d")
        boxes.append(_whole(entry["bbox_2d"], 4))
        if "point_2d" in entry:
            points.append(_whole(entry["point_2d"], 2))
    return boxes, points


def _whole(values: Any, count: int) -> tuple[int, ...]:
    is_valid = isinstance(values, list) and len(values) == count
    if not is_valid or any(type(v) not in (int, float) or not abs(v) < 1e6 for v in values):
        raise ValueError(f"expected {count} numbers, found {str(values)[:40]!r}")
    return tuple(round(v) for v in values)


def open(root: str, split: str = "train") -> TableReader:
    """One item per row. `extra`: id, boxes, points, solution, img_height, img_width. Raises `InputError`."""
    check_source("refcocog", root, split, ("train",))
    if paths.exists(f"{root}/metadata.jsonl"):
        path = paths.inside(root, "metadata.jsonl", "refcocog")
        items = _folder_rows(root, path)
    elif tables := parquet_files(root, split):
        path, items = tables[0], [row for table in tables for row in _parquet_rows(table)]
    else:
        raise InputError(f"refcocog: {root} holds neither metadata.jsonl nor {split}-*.parquet; give one of them")
    return make_reader("refcocog", split, items, functools.partial(_clip, root), path)


def parquet_files(root: str, split: str) -> list[str]:
    """The split's parquet files, at the root or in `data/`: `<split>-*.parquet`, or else every one there."""
    all_files = paths.matching(root, "*.parquet") or paths.matching(root, "data/*.parquet")
    return [path for path in all_files if os.path.basename(path).startswith(split)] or all_files


def _check(row: dict[str, Any], location: str) -> dict[str, Any]:
    identity = metadata.get(row, "id", (str, int), location)
    text = metadata.get(row, "solution", str, location)
    try:
        boxes, points = parse_solution(text)
    except ValueError as error:
        raise InputError(f"{location}.solution: {error}: {text[:80]!r}") from error
    return {
        "id": identity,
        "problem": metadata.get(row, "problem", str, location),
        "solution": text,
        "boxes": boxes,
        "points": points,
        "img_height": metadata.get(row, "img_height", int, location),
        "img_width": metadata.get(row, "img_width", int, location),
    }


def _folder_rows(root: str, path: str) -> Iterator[tuple[str, Any, Any]]:
    for number, row in enumerate(metadata.load_rows(path), 1):
        location = f"{path} row {number}"
        record = _check(row, location)
        name = metadata.get(row, "file_name", str, location)
        paths.inside(root, name, location)
        yield str(record["id"]), name, {**record, "image": name}


def _parquet_rows(path: str) -> Iterator[tuple[str, Any, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            missing = [c for c in (*TEXT_COLUMNS, "image") if c not in file.schema_arrow.names]
            if missing:
                raise InputError(f"{path}: the column '{missing[0]}' is missing")
            groups = [
                file.read_row_group(g, columns=list(TEXT_COLUMNS)).to_pylist() for g in range(file.num_row_groups)
            ]
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable parquet file") from error
    number = 0
    for group, rows in enumerate(groups):
        for position, row in enumerate(rows):
            record = _check(row, f"{path} row {number}")
            yield str(record["id"]), (path, number), {**record, "image": _ParquetImage(path, group, position)}
            number += 1


@functools.lru_cache(maxsize=2)
def _images_of_group(path: str, group: int) -> tuple[bytes, ...]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            images = file.read_row_group(group, columns=["image"]).column("image").to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: row group {group} cannot be read") from error
    out = tuple(image.get("bytes") if isinstance(image, dict) else image for image in images)
    if not all(isinstance(image, bytes) for image in out):
        raise InputError(f"{path}: the column 'image' does not hold encoded images")
    return out


def _clip(root: str, sample_id: str, row: dict[str, Any]) -> ClipRef:
    image = row["image"]
    if isinstance(image, str):
        folder, _, name = image.rpartition("/")
        frames = ImageFiles(paths.files(root, folder or ".", [name], sample_id), ("0",))
    else:
        frames = ImageBytes((_images_of_group(image.path, image.group)[image.row],), ("0",))
    return ClipRef(
        dataset="refcocog",
        sample_id=sample_id,
        family="refcocog",
        query=row["problem"],
        frames=frames,
        size=CANVAS,
        extra={key: row[key] for key in ("id", "boxes", "points", "solution", "img_height", "img_width")},
    )
