"""Objects of the user's own by `module:object` and `file.py:object`."""

import pytest

from omnir1_jax.config import lookup
from omnir1_jax.errors import InputError


def test_a_registered_name_comes_first():
    assert lookup.registered("own", {"own": 3}, "step.x") == 3


def test_an_object_of_a_module():
    assert lookup.registered("json:dumps", {}, "step.x")([1]) == "[1]"


def test_an_object_of_a_file_is_imported_once(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("class Mine:\n    pass\n")
    assert lookup.load(f"{file}:Mine", "step.x") is lookup.load(f"{file}:Mine", "step.x")


@pytest.mark.parametrize(
    "name", ["absent", "no_such_module:x", "json:no_such", "absent.py:x", ":x", "json:", "bad.py:x"]
)
def test_what_is_not_there_is_one_line_that_names_the_setting(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match=r"^step\.x: ") as error:
        lookup.registered(name, {"own": 3}, "step.x")
    assert "\n" not in str(error.value)
