"""`python -m omnir1_jax.toy --out DIR`: the toy's main job with what it taught, measured on clips it never saw.

    before/         the cold start on held-out clips, beside baselines
    runs/<name>/    the work directory of a training run for each reward and seed
    after/<name>/   the same clips after it, with System 2 as it was
    summary.json, table.md, curves.png, report.html

Everything that is whole is kept: the same command goes on where it was stopped, and further seeds or rewards are added.
"""

import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from omnir1_jax import cli, json_file, settings, trained
from omnir1_jax.errors import AGAIN, InputError
from omnir1_jax.inference import benchmark, load
from omnir1_jax.inference.answer import KEYFRAMES
from omnir1_jax.inference.load import Systems
from omnir1_jax.inference.samples import SOUNDS
from omnir1_jax.inference.store import claim, write_json
from omnir1_jax.inference.tasks import Options
from omnir1_jax.reporting import lines, toy_report
from omnir1_jax.reporting.log import METRICS
from omnir1_jax.setup.run import keep_compiled
from omnir1_jax.training import loop

# The paper's ablation: what is left of the reward of segmentation.
REWARDS: dict[str, dict[str, float]] = {
    "all": {},
    "rk_ra": {"segmentation": 0.0},
    "rk_rg": {"alignment": 0.0},
    "rk": {"alignment": 0.0, "segmentation": 0.0},
}
NAMES = {  # of each family, by the names they have in the summary
    "vos": {"reward": "reward/total", "J": "reward/segmentation", "box IoU": "reward/alignment"},
    "refavs": {"reward": "reward/total", "box IoU": "reward/accuracy"},
}
BATCH = 16


def score(made: Systems, folder: pathlib.Path, task: str, clips: int, label: str, **choices: Any) -> float:
    """J&F in percent of one task's held-out clips; what was measured before is read."""
    options = Options(benchmark="synthetic", tasks=(task,), limit=clips, batch_size=BATCH, **choices)
    return benchmark.evaluate(made, options, folder / label)[""]["table"]["J&F"]


def before(config: ConfigDict, folder: pathlib.Path, clips: int) -> dict[str, Any]:
    """The cold start: its own plans, its first description in other frames, and its answers to what it hears."""
    made = load.from_checkpoint(trained.TOY, config)
    return {
        "vos": {rule: score(made, folder, "vos", clips, rule, keyframes=rule) for rule in KEYFRAMES},
        "refavs": {sound: score(made, folder, "refavs", clips, sound, sound=sound) for sound in SOUNDS},
    }


def after(run: pathlib.Path, folder: pathlib.Path, clips: int) -> dict[str, Any]:
    """A trained System 1 with the frozen System 2 it was trained with."""
    made = load.from_checkpoint(str(run), None, "frozen")
    choices = dict(system2="frozen")
    return {
        "vos": {"plan": score(made, folder, "vos", clips, "plan", **choices)},
        "refavs": {sound: score(made, folder, "refavs", clips, sound, sound=sound, **choices) for sound in SOUNDS},
    }


def learnt(run: pathlib.Path) -> dict[str, Any]:
    """Means of a run's sampled answers over the first and the last fifth of each family's steps.

    No clip comes twice in a run of the toy, so that these are rewards on clips it had not trained on.
    """
    path = run / METRICS
    rows = list(lines.read(path.read_bytes(), str(path)))
    out = {}
    for family, names in NAMES.items():
        own = [row for row in rows if ("reward/segmentation" in row) == (family == "vos")]
        fifth = max(len(own) // 5, 1)
        mean = lambda part, key: statistics.fmean(row[key] for row in part if row.get(key) is not None)
        for name, key in names.items():
            if own:
                out[f"{family} {name}"] = {"first": mean(own[:fifth], key), "last": mean(own[-fifth:], key)}
    return out


def train_whole(config: ConfigDict, run: pathlib.Path) -> dict[str, Any] | None:
    """A whole training run and what it learnt; None where it was stopped."""
    return None if loop.train(config, run) is None else learnt(run)


def experiment(config: ConfigDict, reward: str, seed: int) -> ConfigDict:
    """The run's config."""
    own = config.copy_and_resolve_references()
    own.seed = seed
    with own.unlocked():
        own.reward.terms.update(REWARDS[reward])
    return own


def measure(
    config: ConfigDict, out: pathlib.Path, rewards: Sequence[str], seeds: Sequence[int], clips: int
) -> dict[str, Any] | None:
    """Every phase that is not whole yet. None where a run was stopped: the same call goes on from there."""
    out.mkdir(parents=True, exist_ok=True)
    claim(out / "toy.json", {"config": settings.plain(config), "clips": clips})
    timed = _timer(out / "phases")
    cold = timed("before", lambda: before(config, out / "before", clips))
    for reward, seed in [(reward, seed) for reward in rewards for seed in seeds]:
        name = f"{reward}_{seed}"
        run = out / "runs" / name
        own = experiment(config, reward, seed)
        if timed(f"train_{name}", functools.partial(train_whole, own, run)) is None:
            return None
        timed(f"after_{name}", functools.partial(after, run, out / "after" / name, clips))
    runs = finished(out / "phases")
    seconds = {path.stem: _phase(path)["seconds"] for path in sorted((out / "phases").glob("*.json"))}
    return {"clips": clips, "steps": config.steps, "before": cold["result"], "runs": runs, "seconds": seconds}


def finished(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Every run whose phases are whole, those of earlier calls among them."""
    result = lambda name: _phase(folder / f"{name}.json")["result"]
    named = lambda reward: folder.glob(f"after_{reward}_[0-9]*.json")
    found = [(reward, int(path.stem.rsplit("_", 1)[1])) for reward in REWARDS for path in named(reward)]
    runs = {}
    for reward, seed in sorted(found, key=lambda run: (list(REWARDS).index(run[0]), run[1])):
        name = f"{reward}_{seed}"
        about = {"reward": reward, "seed": seed, "learnt": result(f"train_{name}")}
        runs[name] = about | result(f"after_{name}")
    return runs


def _phase(path: pathlib.Path) -> dict[str, Any]:
    """What a phase that is done left in its file."""
    phase = json_file.read_object(path)
    if type(phase.get("seconds")) not in (int, float) or not isinstance(phase.get("result"), dict):
        raise InputError(f"{path}: not a phase of this command, which has seconds and a result; move the file away")
    return phase


def _timer(folder: pathlib.Path) -> Callable[[str, Callable[[], Any]], dict[str, Any] | None]:
    """`timed(name, phase)`: the phase's result and seconds, kept in a file; None of a phase that was stopped."""

    def timed(name: str, phase: Callable[[], Any]) -> dict[str, Any] | None:
        path = folder / f"{name}.json"
        if path.exists():
            return _phase(path)
        print(f"== {name}", flush=True)
        started = time.perf_counter()
        result = phase()
        if result is None:
            return None
        write_json(path, {"seconds": round(time.perf_counter() - started, 1), "result": result})
        return _phase(path)

    return timed


_CONFIG = settings.define()
_OUT = flags.DEFINE_string(
    "out", None, "Directory of all results; an earlier one is gone on with.", allow_override=True
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds to train with, one or several.", allow_override=True)
_REWARDS = flags.DEFINE_list("rewards", ["all"], f"Rewards: of {', '.join(REWARDS)}.", allow_override=True)
_CLIPS = flags.DEFINE_integer("clips", 64, "Held-out clips of each family.", lower_bound=2, allow_override=True)
_INSTALL = flags.DEFINE_float(
    "install_seconds", None, "What the installation took, for the summary.", allow_override=True
)


def main(_) -> None:
    cli.need(out=_OUT)
    for name in _REWARDS.value:
        if name not in REWARDS:
            raise InputError(f"--rewards: {name!r} is none of {', '.join(REWARDS)}")
    if not all(seed.isdecimal() for seed in _SEEDS.value) or not _SEEDS.value:
        raise InputError(f"--seeds: {','.join(_SEEDS.value)!r} is not a list of numbers such as 0,1,2")
    logging.set_verbosity(logging.ERROR)
    config = _CONFIG.value if _CONFIG.value is not None else trained.config_of(trained.TOY)
    out = pathlib.Path(_OUT.value)
    keep_compiled(out / "cache")
    found = measure(config, out, _REWARDS.value, [int(seed) for seed in _SEEDS.value], _CLIPS.value)
    if found is None:
        sys.exit(AGAIN)
    if _INSTALL.value is not None:
        found["seconds"] = {"install": _INSTALL.value} | found["seconds"]
    write_json(out / "summary.json", found)
    print(toy_report.write(out, found))
    print(f"{out}: summary.json, table.md, curves.png, report.html")


if __name__ == "__main__":
    cli.run(main, settings.parse)
