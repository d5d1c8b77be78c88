"""Lines of results and logs as they are read back: another shape is one line that names the file and the key."""

import json

import pytest

from omnir1_jax.config import settings
from omnir1_jax.errors import InputError
from omnir1_jax.inference import result_lines
from omnir1_jax.reporting import lines, train_report
from tests.hostile.test_fuzz import SCORES, result

WRONG = {
    "position": [-1, 1.5, "3", None, True, 10**30],
    "sample_id": [None, 3, []],
    "fault": [3, {}],
    "completion": [None, []],
    "keyframes": [{}, [3], [{"frame": "x"}], [{"frame": 1, "description": "", "answer": "", "boxes": [[1, 2]]}]],
    "failures": ["x", [1], None],
    "predicted": [1, None],
    "scores": [[], {"J": "x"}, {"J": float("inf")}, 3],
    "type_id": ["x", 1.5, []],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_line_of_another_shape_names_the_key(key):
    good = result(3)
    assert result_lines.parse(json.dumps(good).encode(), "p") == good
    for value in WRONG[key]:
        with pytest.raises(InputError, match=rf"^FILE line 7 is damaged \({key} must be "):
            result_lines.parse(json.dumps(good | {key: value}).encode(), "FILE line 7")
    lacking = {k: v for k, v in good.items() if k != key}
    if key != "position":
        with pytest.raises(InputError, match=f"^FILE: the line of position 3 lacks {key}; "):
            result_lines.require([good, lacking], True, SCORES, "FILE")
        result_lines.require([lacking] if key in result_lines.MASKS else [good], False, (), "FILE")
    with pytest.raises(InputError, match="lacks scores of A, F, J"):
        result_lines.require([good], True, {**SCORES, "A": 0}, "FILE")


@pytest.mark.parametrize(
    "text", ["[]", "{}", "[" * 50_000, '{"a": ' * 90 + "1" + "}" * 90, '{"data": 3}', '{"data": [1]}']
)
def test_a_config_of_a_run_of_another_shape_is_one_line(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    try:
        settings.read(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert text == "{}"  # a setting that the file lacks takes its default


@pytest.mark.parametrize(
    "row",
    [
        "[]",
        "{}",
        '{"step": "1"}',
        '{"step": -1}',
        '{"step": 1, "failure/x": "a"}',
        '{"step": 1, "x": [1]}',
        '{"step": 1, "x": 1' + "0" * 400 + "}",
    ],
)
def test_metrics_of_another_shape_are_one_line(row, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 1.5, "task": "vos", "loss": null}\n')
    assert train_report.write_report(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        train_report.write_report(tmp_path)


def test_a_step_of_thousands_of_digits_is_no_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": ' + "1" * 5000 + "}\n")
    with pytest.raises(InputError, match="line 1 does not begin with its step"):
        lines.truncate(path, 3)
