"""Reading metadata: json, jsonl, csv and parquet tables, and checks that name the offending file and key."""

import codecs
import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow
import pyarrow.parquet
from etils import epath

from omnir1_jax.data import paths
from omnir1_jax.errors import InputError, first_line
from omnir1_jax.files import json_file

NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    bool: "true or false",
}


def load_bytes(path: str) -> bytes:
    """Raises `InputError` if the file is missing or unreadable."""
    try:
        return paths.read_bytes(path)
    except FileNotFoundError as error:
        raise InputError(paths.missing(path)) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error


def load_json(path: str) -> Any:
    """The value in a json file. Raises `InputError` naming the file, and the line of a syntax error."""
    return json_file.parse(load_bytes(path), path)


def get(record: Any, key: str, kind: type | tuple[type, ...], location: str) -> Any:
    """`record[key]`, checked to be of `kind`. `location` names the record. Raises `InputError`."""
    if not isinstance(record, Mapping):
        raise InputError(f"{location}: expected an object, found {type(record).__name__}")
    if key not in record:
        raise InputError(f"{location}: the key '{key}' is missing")
    return check(record[key], kind, f"{location}.{key}")


def check(value: Any, kind: type | tuple[type, ...], location: str) -> Any:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(NAMES[k] for k in kinds)
        raise InputError(f"{location}: expected {expected}, found {str(value)[:60]!r}")
    return value


def get_texts(record: Any, keys: Iterable[str], location: str) -> dict[str, str]:
    """`record[key]` of several keys, each checked to be a string. Raises `InputError`."""
    return {key: get(record, key, str, location) for key in keys}


def get_number(record: Any, key: str, location: str) -> float:
    """`record[key]` as a finite float. Raises `InputError`."""
    value = get(record, key, (int, float), location)
    if not abs(value) < 1e300:
        raise InputError(f"{location}.{key}: expected a number, found {str(value)[:20]!r}")
    return float(value)


def get_list(record: Any, key: str, kind: type | tuple[type, ...], location: str) -> list:
    """`record[key]`, checked to be a list whose every entry is of `kind`."""
    values = get(record, key, list, location)
    for position, value in enumerate(values):
        check(value, kind, f"{location}.{key}[{position}]")
    return values


def load_rows(path: str, columns: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """The rows of a table: .json (a list of objects), .jsonl, .csv (with a header) or .parquet (`columns` of it)."""
    data = load_bytes(path)
    if path.endswith(".parquet"):
        return _parquet_rows(data, path, columns)
    if path.endswith(".csv"):
        return _csv_rows(data, path)
    if path.endswith(".jsonl"):
        rows = [row for _, row in json_file.lines(data, path)]
    else:
        rows = check(json_file.parse(data, path), list, path)
    for position, row in enumerate(rows):
        check(row, dict, f"{path}: row {position}")
    return rows


def _parquet_rows(data: bytes, path: str, columns: tuple[str, ...] | None) -> list[dict[str, Any]]:
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        names = file.schema_arrow.names
        if missing := [c for c in columns or () if c not in names]:
            raise InputError(f"{path}: the column '{missing[0]}' is missing; there are {', '.join(names)}")
        return file.read(columns=list(columns) if columns else None).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable parquet file ({first_line(error)})") from error


def _csv_rows(data: bytes, path: str) -> list[dict[str, Any]]:
    try:
        lines = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        header = next(lines, None)
        if not header:
            raise InputError(f"{path}: the file is empty; its first line names the columns")
        rows = []
        for fields in lines:
            if len(fields) not in (0, len(header)):
                raise InputError(f"{path} line {lines.line_num}: {len(fields)} columns, the header has {len(header)}")
            if fields:
                rows.append(dict(zip(header, fields)))
        return rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable csv file ({error})") from error


def find(root: str, candidates: tuple[str, ...], location: str) -> str:
    """The first of `candidates` (names within `root`) that exists. Raises `InputError` listing them."""
    for name in candidates:
        path = paths.inside(root, name, location)
        if paths.exists(path):
            return path
    raise InputError(f"{location}: {root} holds none of {', '.join(candidates)}")


def require_root(root: str) -> None:
    if not paths.exists(root):
        raise InputError(f"{paths.missing(root)}; give the directory that holds the dataset")


@dataclass(frozen=True)
class JsonIndex:
    """A large json object on disk, read one key at a time: mask files would fill the memory of every worker."""

    path: str
    spans: Mapping[str, tuple[int, int]] = field(repr=False)  # byte offsets of every key's value

    def __contains__(self, key: str) -> bool:
        return key in self.spans

    def read(self, key: str) -> Any:
        """The value of a key. Raises `InputError` if the file has changed under us."""
        start, end = self.spans[key]
        try:
            with epath.Path(self.path).open("rb") as file:
                file.seek(start)
                data = file.read(end - start)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read ({error.strerror or error})") from error
        return json_file.parse(data, f"{self.path}['{key}']")


def index_json(path: str) -> JsonIndex:
    """Checks that the file is one well-formed json object and notes the offset of each of its values."""
    # Every byte is one character in latin-1, so positions in the text are positions in the file.
    text = load_bytes(path).decode("latin-1")
    decoder = json.JSONDecoder()
    spans: dict[str, tuple[int, int]] = {}
    bom = codecs.BOM_UTF8.decode("latin-1")
    offset = _expect(text, len(bom) if text.startswith(bom) else 0, "{", path)
    while text[offset : offset + 1] != "}":
        if spans:
            offset = _expect(text, offset, ",", path)
        try:
            key, offset = decoder.raw_decode(text, offset)
            if not isinstance(key, str):
                raise InputError(f"{path} is not JSON: expected a key at byte {offset}")
            start = _expect(text, offset, ":", path)
            _, end = decoder.raw_decode(text, start)
            spans[key.encode("latin-1").decode("utf-8")] = (start, end)
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is not JSON: damaged near byte {offset}") from error
        offset = _skip_space(text, end)
    if text[offset + 1 :].strip():
        raise InputError(f"{path} is not JSON: more text follows the object at byte {offset + 1}")
    return JsonIndex(path, spans)


def _skip_space(text: str, offset: int) -> int:
    while text[offset : offset + 1] in (" ", "\t", "\r", "\n"):
        offset += 1
    return offset


def _expect(text: str, offset: int, character: str, path: str) -> int:
    offset = _skip_space(text, offset)
    if text[offset : offset + 1] != character:
        raise InputError(f"{path} is not JSON: expected '{character}' at byte {offset}")
    return _skip_space(text, offset + 1)
