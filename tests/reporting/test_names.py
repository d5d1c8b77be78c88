"""Metrics of a mixture carry their task, in the file, the curves and the summary; older files without are read too."""

import json

from hypothesis import given
from hypothesis import strategies as st

from omnir1_jax.config import settings
from omnir1_jax.reporting import names
from omnir1_jax.reporting.log import RunLog
from omnir1_jax.reporting.train_report import write_report
from omnir1_jax.toy import __main__ as toy
from omnir1_jax.training.loop import summary

METRICS = {"reward/total": 1.0, "failure/answer/absent": 2.0, "completion/length": 3.0, "learn/loss": 4.0, "loss": 5.0}


@given(st.text("abv/_", min_size=1, max_size=5), st.dictionaries(st.sampled_from(sorted(METRICS)), st.floats(0, 1)))
def test_names_come_back(task, metrics):
    row = {"step": 1, names.TASK: task} | names.with_task(task, metrics)
    assert names.without_task(row) == {"step": 1} | metrics
    assert names.without_task({"step": 1} | metrics) == {"step": 1} | metrics


def test_a_mixture_has_a_curve_a_task(tmp_path):
    with RunLog(tmp_path, 6, tensorboard=False, quiet=True) as log:
        for step in range(1, 7):
            task, value = ("vos", 1.0) if step % 2 else ("qa", 0.0)
            log.step(step, METRICS | {"reward/total": value}, 1.0, task)
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "step": 1, "task": "vos", "seconds": 1.0, "reward/vos/total": 1.0, "failure/vos/answer/absent": 2.0,
        "completion/vos/length": 3.0, "learn/loss": 4.0, "loss": 5.0,
    }  # fmt: skip
    page = write_report(tmp_path).read_text()
    assert "reward/vos/total" in page and "reward/qa/total" in page and "reward/total" not in page
    assert "reward of vos, first to last</dt><dd>1 → 1" in page and "failures a step of qa, first to last" in page
    found = summary(settings.defaults(), rows)
    (tmp_path / "summary.json").write_text(json.dumps(found | {"weights": {"step": 6}, "best": {"step": 3}}))
    table = write_report(tmp_path).read_text()
    assert ">first</th>" in table and "first / reward" not in table  # side by side with the last
    assert (found["last"]["reward/vos/total"], found["last"]["reward/qa/total"]) == (1.0, 0.0)
    assert found["first"]["learn/loss"] == 4.0 and "task" not in found["first"]


def test_the_toy_reads_rows_with_and_without_tasks(tmp_path):
    for folder, named in (("new", names.with_task), ("old", lambda task, metrics: metrics)):
        (tmp_path / folder).mkdir()
        with (tmp_path / folder / "metrics.jsonl").open("w") as file:
            for step in range(1, 11):
                task = "vos" if step % 2 else "refavs"
                terms = {"reward/accuracy": step / 10, "reward/total": step / 10}
                terms |= {"reward/alignment": step / 10} if task == "vos" else {}  # no masks: no segmentation
                row = {"step": step} | ({names.TASK: task} if folder == "new" else {}) | named(task, terms)
                file.write(json.dumps(row) + "\n")
    assert toy.learnt(tmp_path / "new") == toy.learnt(tmp_path / "old")
    assert toy.learnt(tmp_path / "new")["vos box IoU"] == {"first": 0.1, "last": 0.9}
    assert "vos J" not in toy.learnt(tmp_path / "new")
