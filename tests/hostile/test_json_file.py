"""JSON and files that a user names: whatever is wrong with them is one line."""

import json
import os
import socket

import pytest

from omnir1_jax.errors import InputError, printable
from omnir1_jax.files import json_file, regular_file


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value at column 1"),
        (b'{"a": 1,\n"b": }', "Expecting value at line 2 column 6"),
        (b"\xff\xfe{}", "utf-8"),
        (b"[" * 100_000, "nested deeper"),
        (b"[" * 100 + b"]" * 100, "nested deeper"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested deeper"),
        (b"1" * 5000, "digits"),
    ],
)
def test_what_is_no_json_is_one_line(tmp_path, data, reason):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=reason) as error:
        json_file.read(path, "--flag")
    assert str(error.value).startswith(f"--flag: {path}") and "\n" not in str(error.value)


def test_values_are_those_of_json(tmp_path):
    value = {"a": [1, -2.5, None, True, "ü\u2028"], "b": {"c": [[]] * 3}}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        for mark in ("", "\ufeff"):
            path = tmp_path / "x.json"
            path.write_text(mark + text, encoding="utf-8")
            assert json_file.read(path) == json_file.read_object(path) == value
            assert json_file.parse(mark + text, "x") == value
    assert json_file.parse("[" * 64 + "]" * 64, "x")
    rows = b'\xef\xbb\xbf{"a": 1}\n\n[2]\r\n3'
    assert list(json_file.lines(rows, "f")) == [("f line 1", {"a": 1}), ("f line 3", [2]), ("f line 4", 3)]


@pytest.mark.parametrize(("text", "said"), [("[]", "a list"), ("1" * 400, "400 digits"), ('"x"', "'x'")])
def test_an_object_is_asked_for(text, said):
    with pytest.raises(InputError, match=f"where is not a JSON object, but .*{said}"):
        json_file.parse_object(text, "where")


def test_only_regular_files_are_opened(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"x")
    link.symlink_to(file)
    assert regular_file.read_bytes(link) == b"x"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(tmp_path / "socket"))
    reasons = {
        "fifo": "FIFO",
        "socket": "socket",
        "none": "missing",
        "dangling": "missing",
        "loop": "cannot be read",
        "file/below": "cannot be read",
        "": "directory",
        "a\0b": "cannot be read",
        "n" * 300: "cannot be read",
    }
    for name, reason in reasons.items():
        path = f"{tmp_path}/{name}"
        with pytest.raises(InputError, match=reason) as error:
            regular_file.read_bytes(path, "--flag")
        assert str(error.value).startswith(f"--flag: {printable(path)}")
    with pytest.raises(InputError, match="device"):
        regular_file.require("/dev/zero")
    bound.close()
