"""`python -m omnir1_jax.toy --out DIR`: the toy's main job with what it taught, measured on clips it never saw.

    before/         the cold start on held-out clips, beside baselines
    runs/<name>/    the work directory of a training run for each reward and seed
    after/<name>/   the same clips after it, with System 2 as it was
    summary.json, table.md, curves.png, report.html

Without --config it is configs/toy_fleeting.py. If interrupted, rerun the command to resume; further seeds or rewards
are added to what is there. Only one command works in the directory at a time, and only names that it listed as its own
are written anew (`omnir1_jax.files.folders`).
"""

import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from omnir1_jax import cli
from omnir1_jax.build.run import keep_compiled
from omnir1_jax.config import settings, shipped
from omnir1_jax.errors import AGAIN, InputError
from omnir1_jax.files import folders, json_file, regular_file
from omnir1_jax.inference import benchmark, compare, from_checkpoint, load, store
from omnir1_jax.inference.load import Systems
from omnir1_jax.inference.run import Known
from omnir1_jax.inference.samples import SOUNDS
from omnir1_jax.inference.tasks import Options
from omnir1_jax.inference.validation import Validation
from omnir1_jax.planning import batches
from omnir1_jax.reporting import lines, toy_report
from omnir1_jax.reporting import names as metric_names
from omnir1_jax.reporting.before_after import Comparison
from omnir1_jax.reporting.log import METRICS
from omnir1_jax.training import loop, workdir

# The paper's ablation: what is left of the reward of segmentation.
REWARDS: dict[str, dict[str, float]] = {
    "all": {},
    "rk_ra": {"segmentation": 0.0},
    "rk_rg": {"alignment": 0.0},
    "rk": {"alignment": 0.0, "segmentation": 0.0},
}
SFT = "sft"  # in place of a reward: supervised training on plans made of the ground truth, the paper's baseline
SFT_RATE = 3  # times the learning rate of RL, at which 200 steps do not teach words that the cold start never says
NAMES = {  # of each family, by the names they have in the summary
    "vos": {"reward": "reward/total", "J": "reward/segmentation", "box IoU": "reward/alignment"},
    "refavs": {"reward": "reward/total", "box IoU": "reward/accuracy"},
}
FLAT = "reward/flat_groups"
BLIND = tuple(toy_report.BASELINES)  # rules for frames that know nothing
# Evaluations of segmentation by the folders that they have, and what is chosen in each: of the cold start, and then.
DEAF = {f"vos_{sound}": {"sound": sound} for sound in SOUNDS[1:]}
BEFORE: dict[str, dict[str, str]] = {
    **{rule: {"keyframes": rule} for rule in ("plan", *BLIND)},
    **{f"query_{rule}": {"keyframes": rule, "description": "query"} for rule in BLIND},
    **{f"boxes_{rule}": {"keyframes": rule, "system2": "oracle"} for rule in ("plan", "uniform", "best")},
    **DEAF,
}
AFTER: dict[str, dict[str, str]] = {
    "plan": {},
    "uniform": {"keyframes": "uniform"},
    "boxes_plan": {"system2": "oracle"},
    **DEAF,
}
BATCH = 16
KIND, FLAG = "toy", "--out"
OF, PHASES, SUMMARY, PAGE = "toy.json", "phases", "summary.json", ("table.md", "curves.png", "report.html")
FOLDERS = ("before", "runs", "after", PHASES, "cache")


def score(
    made: Systems, known: Known, folder: pathlib.Path, task: str, clips: int, label: str, **choices: Any
) -> dict[str, float]:
    """J&F in percent of one task's held-out clips, and by what their queries take; what was measured before is read."""
    options = Options(benchmark="synthetic", tasks=(task,), limit=clips, batch_size=BATCH, **choices)
    mean = benchmark.evaluate(made, options, folder / label, known=known)[""]["table"]["J&F"]
    return {label: mean} | {f"{label}/{kind}": value for kind, value in compare.by_kind(folder / label).items()}


def scores(
    made: Systems, folder: pathlib.Path, clips: int, of_vos: Mapping[str, dict[str, str]], **usual: str
) -> dict[str, dict[str, float]]:
    """Every evaluation of both tasks; of segmentation without sound only if there is any."""
    heard = made.config.data.vos.audio_seconds > 0
    out: dict[str, dict[str, float]] = {"vos": {}, "refavs": {}}
    known: Known = {}
    for label, choices in of_vos.items():
        if heard or label not in DEAF:
            out["vos"] |= score(made, known, folder, "vos", clips, label, **usual | choices)
    for sound in SOUNDS:
        out["refavs"] |= score(made, known, folder, "refavs", clips, sound, **usual | {"sound": sound})
    return out


def before(config: ConfigDict, folder: pathlib.Path, clips: int) -> dict[str, Any]:
    """The cold start: its plans, its descriptions in other frames, the query's own words, and what true boxes make."""
    return scores(load.load_systems(from_checkpoint.TOY, config), folder, clips, BEFORE)


def after(run: pathlib.Path, folder: pathlib.Path, clips: int) -> dict[str, Any]:
    """A trained System 1 with the frozen System 2 it was trained with."""
    return scores(load.load_systems(str(run), None, "frozen"), folder, clips, AFTER, system2="frozen")


def learnt(run: pathlib.Path) -> dict[str, Any]:
    """Means of a run's sampled answers over the first and the last fifth of each family's steps.

    No clip comes twice in a run of the toy, so that these are rewards on clips it had not trained on.
    """
    path = run / METRICS
    rows = list(lines.read_metrics(regular_file.read_bytes(path), str(path)))
    out = {}
    for family, names in NAMES.items():
        own = [metric_names.without_task(row) for row in rows if metric_names.task_of(row) == family]
        fifth = max(len(own) // 5, 1)
        mean = lambda part, key: statistics.fmean(row[key] for row in part if row.get(key) is not None)
        for name, key in (names | {"flat groups": FLAT}).items():
            if any(row.get(key) is not None for row in own):
                out[f"{family} {name}"] = {"first": mean(own[:fifth], key), "last": mean(own[-fifth:], key)}
    return out


def train_whole(config: ConfigDict, run: pathlib.Path) -> dict[str, Any] | None:
    """A whole training run and what it learnt; None where it was stopped."""
    return None if loop.train(config, run, validation=Validation, shapes=batches.of_run) is None else learnt(run)


def experiment(config: ConfigDict, reward: str, seed: int) -> ConfigDict:
    """The run's config."""
    own = config.copy_and_resolve_references()
    own.seed = seed
    with own.unlocked():
        if reward == SFT:
            own.objective = "sft"
            own.optimizer.learning_rate *= SFT_RATE
        else:
            own.reward.terms.update(REWARDS[reward])
    return own


def measure(
    config: ConfigDict, out: pathlib.Path, rewards: Sequence[str], seeds: Sequence[int], clips: int
) -> dict[str, Any] | None:
    """Every phase that is not complete yet. None where a run was stopped: the same call resumes it."""
    claim(out)
    check_parts(config, out, rewards, seeds)
    store.claim(pathlib.Path(folders.begin(out, OF, FLAG)), {"config": settings.plain(config), "clips": clips})
    for name in FOLDERS:
        folders.begin(out, name, FLAG)
    timed = _timer(out)
    cold = timed("before", lambda: before(config, out / "before", clips))
    for reward, seed in [(reward, seed) for reward in rewards for seed in seeds]:
        name = f"{reward}_{seed}"
        run = out / "runs" / name
        own = experiment(config, reward, seed)
        if timed(f"train_{name}", functools.partial(train_whole, own, run)) is None:
            return None
        timed(f"after_{name}", functools.partial(after, run, out / "after" / name, clips))
    seconds = {path.stem: _phase(path)["seconds"] for path in phases(out)}
    return {"clips": clips, "steps": config.steps, "before": cold["result"], "runs": finished(out), "seconds": seconds}


def claim(out: pathlib.Path) -> folders.Mark:
    """InputError where something in `out` is not this command's."""
    return folders.claim(out, KIND, FLAG, names=(OF, SUMMARY, *PAGE, *FOLDERS), adopt=adopt)


def adopt(out: epath.Path) -> list[str] | None:
    """What an older version of this command, without marks, wrote in `out`; None where it is not such a directory."""
    try:
        if folders.is_link(out / OF) or not json_file.read_object(out / OF).keys() >= {"config", "clips"}:
            return None
    except InputError:
        return None
    done = [f"{PHASES}/{path.name}" for path in (out / PHASES).glob("*.json")]
    return [*done, *(name for name in (OF, SUMMARY, *PAGE, *FOLDERS) if (out / name).exists())]


def check_parts(config: ConfigDict, out: pathlib.Path, rewards: Sequence[str], seeds: Sequence[int]) -> None:
    """InputError where something of the user's is in the way of any phase. Before anything is computed."""
    results = [out / "before" / label for label in (*BEFORE, *SOUNDS)]
    for name in (f"{reward}_{seed}" for reward in rewards for seed in seeds):
        workdir.check(out / "runs" / name, config)
        results += [out / "after" / name / label for label in (*AFTER, *SOUNDS)]
    for folder in results:
        folders.check(folder, store.KIND, FLAG, names=store.NAMES, adopt=store.adopt)


def phases(out: pathlib.Path) -> list[pathlib.Path]:
    """Files of the phases that are complete, those of earlier calls among them."""
    names = [name for name in folders.read(out).names if name.startswith(f"{PHASES}/")]
    return [out / name for name in sorted(names) if (out / name).exists()]


def finished(out: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Every run whose phases are complete."""
    results = {path.stem: _phase(path)["result"] for path in phases(out)}
    done = [name.removeprefix("after_").rsplit("_", 1) for name in results if name.startswith("after_")]
    runs = {}
    for reward, seed in sorted(done, key=lambda run: ([*REWARDS, SFT].index(run[0]), int(run[1]))):
        name = f"{reward}_{seed}"
        about = {"reward": reward, "seed": int(seed), "learnt": results[f"train_{name}"]}
        runs[name] = about | results[f"after_{name}"]
    return runs


def comparisons(out: pathlib.Path, run: str) -> list[Comparison]:
    """A run's answers to the clips with their own sound beside the cold start's, from what their evaluations stored."""
    labels = {"segmentation": ("vos", "plan"), "sounding shapes": ("refavs", "own")}
    stored = [
        compare.stored(title, task, out / "before" / label, out / "after" / run / label)
        for title, (task, label) in labels.items()
    ]
    return [comparison for comparison in stored if comparison is not None]


def _phase(path: pathlib.Path) -> dict[str, Any]:
    """What a phase that is done left in its file."""
    phase = json_file.read_object(path)
    if type(phase.get("seconds")) not in (int, float) or not isinstance(phase.get("result"), dict):
        raise InputError(f"{path}: not a phase of this command, which has seconds and a result; move the file away")
    return phase


def _timer(out: pathlib.Path) -> Callable[[str, Callable[[], Any]], dict[str, Any] | None]:
    """`timed(name, phase)`: the phase's result and seconds, kept in a file; None of a phase that was stopped."""

    def timed(name: str, phase: Callable[[], Any]) -> dict[str, Any] | None:
        path = pathlib.Path(folders.begin(out, f"{PHASES}/{name}.json", FLAG))
        if path.exists():
            return _phase(path)
        print(f"== {name}", flush=True)
        started = time.perf_counter()
        result = phase()
        if result is None:
            return None
        store.write_json(path, {"seconds": round(time.perf_counter() - started, 1), "result": result})
        return _phase(path)

    return timed


_CONFIG = settings.define()
_OUT = cli.flag.string("out", None, "Directory of all results; an earlier one is resumed.")
_SEEDS = cli.flag.list("seeds", ["0"], "Seeds to train with, one or several.")
_REWARDS = cli.flag.list("rewards", ["all"], f"Rewards: of {', '.join(REWARDS)}; or {SFT}.")
_CLIPS = cli.flag.integer("clips", 64, "Held-out clips of each family.", lower_bound=2)
_INSTALL = cli.flag.float("install_seconds", None, "What the installation took, for the summary.")


def main(_) -> None:
    cli.need(out=_OUT)
    for name in _REWARDS.value:
        if name not in (*REWARDS, SFT):
            raise InputError(f"--rewards: {name!r} is none of {', '.join((*REWARDS, SFT))}")
    if not all(seed.isdecimal() for seed in _SEEDS.value) or not _SEEDS.value:
        raise InputError(f"--seeds: {','.join(_SEEDS.value)!r} is not a list of numbers such as 0,1,2")
    logging.set_verbosity(logging.ERROR)
    config = _CONFIG.value if _CONFIG.value is not None else shipped.config("toy_fleeting", "--config")
    out = pathlib.Path(_OUT.value)
    with folders.hold(out, KIND, FLAG, adopt=adopt):
        claim(out)
        keep_compiled(folders.begin(out, "cache", FLAG))
        found = measure(config, out, _REWARDS.value, [int(seed) for seed in _SEEDS.value], _CLIPS.value)
        if found is None:
            sys.exit(AGAIN)
        if _INSTALL.value is not None:
            found["seconds"] = {"install": _INSTALL.value} | found["seconds"]
        store.write_json(pathlib.Path(folders.begin(out, SUMMARY, FLAG)), found)
        for name in PAGE:
            folders.begin(out, name, FLAG)
        print(toy_report.write(out, found, comparisons(out, next(iter(found["runs"])))))
    print(f"{out}: summary.json, table.md, curves.png, report.html")


if __name__ == "__main__":
    cli.run(main, settings.parse)
