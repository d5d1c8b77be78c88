"""What the loop does when updates are skipped, groups are flat, steps are raised and settings are of another version.

The step is a stand-in that compiles in no time; checkpoints, log and settings are the real ones.
"""

import json
import time

import jax.numpy as jnp
import pytest

from omnir1_jax.build.run import Run
from omnir1_jax.config import settings
from omnir1_jax.data.batching import Batch
from omnir1_jax.data.stream import Prefetch
from omnir1_jax.errors import InputError
from omnir1_jax.rl.learn import TrainState
from omnir1_jax.training import checkpointing, loop

SAVE = checkpointing.save


class Stream(Prefetch):
    """Batches without content."""

    def __init__(self):
        self.step = 0

    def __next__(self):
        self.step += 1
        return Batch("vos", self.step, {}, (), (), (), (), 0, 0)

    def get_state(self):
        return {"next_batch": self.step, "counts": {}}

    def set_state(self, state):
        self.step = state["next_batch"]

    def close(self):
        pass


@pytest.fixture
def train(monkeypatch, tmp_path):
    """`train(bad=steps, flat=steps, **changes)`: a run in `tmp_path`; its checkpoints' steps."""

    def run(bad=(), flat=(), steps=12, schedule="constant", scores=None, count=None, **changes):
        config = settings.defaults()
        config.steps, config.optimizer.schedule = steps, schedule
        config.checkpoint.every, config.log.tensorboard = 2, False
        with config.unlocked():
            config.update_from_flattened_dict(changes)

        def step(state, frozen, batch, key):
            number = int(state.step) + 1
            skipped = state.skipped + (number in bad)
            metrics = {"learn/skipped": skipped, "learn/flat_groups": jnp.float32(number in flat)}
            metrics["completion/longest"] = jnp.float32(number)
            return state.replace(step=state.step + 1, skipped=skipped), metrics, None

        zero = jnp.zeros((), jnp.int32)
        state = TrainState(zero, {"w": jnp.ones(2)}, {"m": jnp.zeros(2)}, zero)
        made = Run(config, None, None, None, state, [], {"vos": step}, lambda family, arrays: None, None)
        # Steps take no time, so that the next checkpoint would come before the last is written.
        monkeypatch.setattr(checkpointing, "save", lambda *args, wait, score: SAVE(*args, wait=True, score=score))
        monkeypatch.setattr(loop, "build", lambda config: made)
        monkeypatch.setattr(loop, "batches", lambda run: Stream())
        monkeypatch.setattr(loop, "finish", lambda *_: None)
        made_of = iter(scores or ())
        validated = lambda value: loop.Validated({"validate/vos/J&F": value}, checkpointing.Score("these", value))
        validation = lambda run: lambda trainable: validated(next(made_of))
        step.lower = lambda state, frozen, batch, key: "lowered"
        of_step = lambda metrics, seconds: {"time/mfu": float(metrics["completion/longest"])}
        rates = lambda run: count or (lambda task, batch, lowered: of_step)
        assert loop.train(config, tmp_path / "run", validation=validation, rates=rates) is not None
        return kept(tmp_path)

    return run


def kept(folder):
    return sorted(int(path.name) for path in (folder / "run/checkpoints").iterdir() if path.name.isdecimal())


def test_a_diverged_run_ends_and_keeps_the_good_checkpoints(train, tmp_path):
    nan = range(5, 100)
    with pytest.raises(InputError) as caught:
        train(bad=nan, **{"optimizer.max_skipped": 3})
    message = str(caught.value)
    assert message.startswith("step 7: 3 updates in a row were skipped") and "\n" not in message
    assert f"the last good checkpoint is {tmp_path}/run/checkpoints/4. " in message
    assert f"convert export {tmp_path}/run DIRECTORY" in message and "--config.thinker.path=DIRECTORY" in message
    assert kept(tmp_path) == [2, 4]
    with pytest.raises(InputError, match="step 7: 3 updates"):  # again, from the good one
        train(bad=nan, **{"optimizer.max_skipped": 3})


def test_nothing_is_saved_within_a_row_of_skipped_updates(train):
    assert train(bad=(3, 6, 7, 12), steps=12) == [8, 10]
    assert train(bad=(), steps=14) == [12, 14]  # the last step was not saved, so that it is done again


def test_a_run_without_the_limit_goes_to_its_end(train):
    assert train(bad=range(5, 100), **{"optimizer.max_skipped": 0}) == [2, 4]


def test_the_best_validated_checkpoint_stays_beside_the_newest(train, tmp_path, capsys):
    every = {"validate.every": 3, "validate.at_start": False}
    # Saved at 3 and 6 since they are the best so far; 9 is neither best nor due.
    assert train(scores=(1.0, 5.0, 4.0, float("nan")), **every) == [6, 10, 12]
    assert checkpointing.named_step(tmp_path / "run", "best") == 6
    # Another validation is not compared with this one, and one that is better takes its place.
    assert train(steps=15, scores=(6.0,), **every) == [14, 15]
    assert checkpointing.named_step(tmp_path / "run", "best") == 15
    with pytest.raises(InputError, match="--step=best: no checkpoint in .* was validated"):
        checkpointing.named_step(tmp_path, "best")


def test_a_step_has_its_learning_rate_and_what_it_computed_per_second(train, tmp_path):
    schedule = {"optimizer.warmup_steps": 4, "optimizer.learning_rate": 8.0, "optimizer.accumulate": 2}
    train(bad=(3,), steps=8, **schedule)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    # The skipped update of step 3 moves nothing on.
    assert [row["learn/learning_rate"] for row in rows] == [0, 0, 2, 2, 2, 4, 4, 6]
    assert [row.get("time/mfu") for row in rows] == [None, *range(2, 9)]  # not of the step that compiled


def test_the_first_step_is_logged_while_its_operations_are_counted(train, tmp_path):
    metrics = tmp_path / "run/metrics.jsonl"

    def count(task, batch, lowered):
        late = time.monotonic() + 60.0
        while not (metrics.exists() and metrics.read_text()) and time.monotonic() < late:
            time.sleep(0.01)
        logged = metrics.read_text().count("\n")
        return lambda metrics, seconds: {"time/mfu": logged}

    train(steps=2, count=count)
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row.get("time/mfu") for row in rows] == [None, 1]  # the second waits for the count


def test_validation_needs_a_caller_that_brings_it(tmp_path):
    config = settings.defaults()
    config.validate.every = 1
    with pytest.raises(InputError, match="validate.every: this caller"):
        loop.train(config, tmp_path / "run")


def test_a_stretch_of_flat_groups_is_noted_once(train, capsys):
    train(flat=(1, 2, 3, 4, *range(6, 14), *range(15, 20)), steps=20)
    noted = [text for text in capsys.readouterr().out.splitlines() if text.startswith("note: in the last 5 steps")]
    assert len(noted) == 2


def test_steps_are_raised_where_the_schedule_does_not_depend_on_them(train):
    assert train(steps=4) == [2, 4]
    assert train(steps=8) == [6, 8]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_steps_of_a_falling_schedule_stay(train, schedule):
    train(steps=4, schedule=schedule)
    with pytest.raises(InputError, match=f"steps = 4, this run has 6; the {schedule} schedule .*convert export"):
        train(steps=6, schedule=schedule)


def test_settings_of_other_versions_resume(train, tmp_path, capsys):
    train(steps=4)
    (record,) = (tmp_path / "run/checkpoints/4/run").glob("process_0.json")
    saved = json.loads(record.read_text())
    assert saved["settings"].pop("version") == settings.VERSION
    del saved["settings"]["optimizer"]["max_skipped"], saved["settings"]["masks"]["remat"]
    saved["settings"]["grpo"]["temper"] = saved["settings"]["gone"] = 3
    record.write_text(json.dumps(saved))
    assert train(steps=6) == [4, 6]
    lines = [text for text in capsys.readouterr().err.splitlines() if text.startswith("note: ")]
    assert len(lines) == 1 and lines[0].endswith("ignores grpo.temper, gone, which this version does not know")
    saved["settings"]["masks"]["focus"] = 3.0
    (tmp_path / "run/checkpoints/6/run/process_0.json").write_text(json.dumps(saved | {"processes": 1}))
    with pytest.raises(InputError, match=r"masks.focus = 3.0, this run has 2.0; set it back"):
        train(steps=6)


def test_a_saved_config_is_read_under_todays_names(tmp_path, monkeypatch, capsys):
    second = {"version": 2, "sft": {"towers": True}}
    assert settings.upgraded(second, "config.json")["sft"]["encoders"] is True
    tasks = {name: {"weight": 1} for name in ("vos", "qa")}
    third = settings.upgraded({"version": 3, "grpo": {"keep": 0.5}, "data": tasks}, "config.json")
    assert [third["data"][name]["keep"] for name in ("vos", "qa")] == [0.5, 0.5]
    config = settings.defaults()
    config.data = dict(qa=settings.task(datasets=settings.datasets(synthetic=dict(clips=3))))
    saved = settings.saved_form(config)
    old = json.loads(json.dumps(saved))
    del old["version"], old["data"]["qa"]["weight"], old["grpo"]
    old["data"]["qa"]["colour"] = old["optimizer"]["speed"] = 1
    old["optimizer"].pop("learning_rate")
    (tmp_path / "config.json").write_text(json.dumps(old))
    monkeypatch.setattr(settings, "RENAMED", ({"optimizer/speed": "optimizer/learning_rate"},))
    found = settings.read(tmp_path / "config.json")
    assert found.optimizer.learning_rate == 1.0 and found.data.qa.weight == 1.0
    assert settings.plain(found.grpo) == settings.plain(settings.defaults().grpo)
    assert capsys.readouterr().err.count("data.qa.colour") == 1
    assert found.data.qa.datasets.synthetic.clips == 3
    (tmp_path / "config.json").write_text(json.dumps(old | {"sam2": 3}))
    with pytest.raises(InputError, match="config.json: sam2 is 3, not a section"):
        settings.read(tmp_path / "config.json")
