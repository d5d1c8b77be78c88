"""The toy's command with phases that take no time, in folders that are claimed as the real ones are."""

import json

from omnir1_jax.files import folders
from omnir1_jax.inference.answer import KEYFRAMES
from omnir1_jax.inference.samples import SOUNDS
from omnir1_jax.inference.store import KIND, NAMES
from omnir1_jax.toy import __main__ as toy


def evaluated(folder) -> None:
    with folders.hold(folder, KIND, "--out", names=NAMES), folders.file(folder, "results.json", "--out") as scratch:
        scratch.write_text("{}")


def before(config, folder, clips):
    for label in (*toy.BEFORE, *SOUNDS):
        evaluated(folder / label)
    return {"vos": dict.fromkeys(KEYFRAMES, 40.0), "refavs": dict.fromkeys(SOUNDS, 30.0)}


def after(run, folder, clips):
    for label in (*toy.AFTER, *SOUNDS):
        evaluated(folder / label)
    return {"vos": {"plan": 40.0}, "refavs": dict.fromkeys(SOUNDS, 30.0)}


def train(config, run, validation, shapes):
    with toy.workdir.hold(run, config):
        rows = [{"step": n, "reward/total": 1.0, "reward/accuracy": 1.0} for n in range(1, 21)]
        rows = [
            row | {"reward/segmentation": 1.0, "reward/alignment": 1.0} if n % 2 else row for n, row in enumerate(rows)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "state"


toy.before, toy.after, toy.loop.train = before, after, train
main, _CONFIG = toy.main, toy._CONFIG
