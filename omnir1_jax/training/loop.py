"""The training loop: from the newest good checkpoint to the last step, and the outputs of a run."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from omnir1_jax import signals
from omnir1_jax.build import data, facts, models, optimizer, valid
from omnir1_jax.build.run import Run, batches, build, keep_compiled, step_key
from omnir1_jax.config import settings
from omnir1_jax.config.sections import Profile
from omnir1_jax.config.settings import section
from omnir1_jax.data.batching import Batch
from omnir1_jax.data.stream import Prefetch
from omnir1_jax.errors import InputError
from omnir1_jax.files import regular_file
from omnir1_jax.files.folders import Mark, begin, file
from omnir1_jax.parallel import agree
from omnir1_jax.reporting import lines, names, trackers
from omnir1_jax.reporting.log import METRICS, RunLog
from omnir1_jax.reporting.train_report import write_report
from omnir1_jax.rl import grpo
from omnir1_jax.rl.learn import TrainState
from omnir1_jax.training import attempts, checkpoint_steps, checkpointing, export, measure, rollout_log, workdir
from omnir1_jax.training.attempts import Progress
from omnir1_jax.training.trace import Tracer
from omnir1_jax.training.watch import Watch
from omnir1_jax.training.workdir import CACHE, CONFIG, FLAG, REPORT, SUMMARY


class Validated(NamedTuple):
    """The result of a validation.

    Attributes:
      metrics: by name; empty in all processes but the first.
      score: the same in all processes.
    """

    metrics: dict[str, float]
    score: checkpointing.Score


# From a run to a function of the trained parameters: `inference.validation.Validation`, of a later room.
MakeValidation = Callable[[Run], Callable[[Any], Validated]]
# From a run to a function of a task, a batch's shapes and its lowered step, which gives one of a step's metrics and
# seconds to further metrics: `planning.rates.counter`, of a later room.
MakeRates = Callable[[Run], Callable[[str, Any, jax.stages.Lowered], Callable[[Mapping, float], dict[str, float]]]]
# From a run to a function of a task, which gives the shapes of its batches: `planning.batches.of_run`, of a later room.
MakeShapes = Callable[[Run], Callable[[str], Any]]
# With fewer cores than this, the first task's step is compiled and run before others are compiled: it comes sooner.
SHARED_CORES = 4


def train(
    config: ConfigDict,
    path: epath.PathLike,
    *,
    quiet: bool = False,
    validation: MakeValidation | None = None,
    rates: MakeRates | None = None,
    shapes: MakeShapes | None = None,
) -> TrainState | None:
    """Runs `config.steps` steps, from the newest good checkpoint of the work directory `path` if there is one.

    Args:
      quiet: nothing on the terminal.
      validation: makes the validation of `config.validate`.
      rates: makes the counter of a step's operations.
      shapes: knows the shapes of batches, so that the tasks' steps are compiled side by side.

    Returns:
      the state after the last step; None if a signal ended the run earlier, its state saved.

    Raises:
      InputError: a setting that is invalid, or a work directory that is not this run's (see `workdir.hold`); the
        processes differ in command, package or data; the disk is full; the same step crashed before.
      Interrupted: a step crashed, for the first time.
    """
    valid.check(config)
    trackers.check(config.log.trackers)
    folder, peers = epath.Path(path), agree.joined()
    agree.same(peers, "settings", lambda: facts.of_settings(config))
    if config.validate.every and validation is None:
        raise InputError("validate.every: this caller of training.loop.train gives no validation; set it to 0")
    with workdir.hold(folder, config) as mark, attempts.attempt(folder, peers) as progress:
        return _train(config, folder, mark, progress, quiet, validation, rates, shapes)


def _train(
    config: ConfigDict,
    folder: epath.Path,
    mark: Mark | None,
    progress: Progress,
    quiet: bool,
    validation: MakeValidation | None,
    rates: MakeRates | None,
    shapes: MakeShapes | None,
) -> TrainState | None:
    """`train` in a work directory that is held; `mark` is its mark in the first process, None in the others."""
    plain = settings.saved_form(config)
    keep_compiled(folder / CACHE)  # a resumed run does not compile again
    run = build(config)
    validate = validation(run) if validation is not None and config.validate.every else None
    manager_to_close = checkpointing.manager(folder, config.checkpoint.keep)
    # Whatever ends the loop, no thread puts data on devices while the process ends.
    with (
        _closed(manager_to_close) as manager,
        signals.stop_flag() as stop,
        contextlib.closing(batches(run)) as stream,
        futures.ThreadPoolExecutor(1, "count") as count_thread,
        _cancelled(futures.ThreadPoolExecutor(1, "compile")) as compile_thread,
    ):
        target = checkpointing.like(run.state)
        # Committed to its devices like a restored one, so that both use the same compiled program.
        state, steps_done = jax.device_put(run.state, jax.tree.map(lambda x: x.sharding, target)), 0
        run = run._replace(state=None)  # donated by the first step, or replaced
        if manager.all_steps():
            del state  # there is room for one
            restored = restore(manager, target, config, folder)
            state, steps_done = restored.state, restored.step
            stream.set_state(restored.stream)
            logging.info("resuming after step %d", steps_done)
        if jax.process_index() == 0:
            with file(folder, CONFIG, FLAG) as scratch:
                scratch.write_text(json.dumps(plain, indent=2) + "\n")
        log = None
        if mark is not None:
            log_options = dict(tensorboard=config.log.tensorboard, trackers=config.log.trackers, config=plain)
            log = RunLog(folder, config.steps, steps_done, owner=mark.id, quiet=quiet, **log_options)
        for note in valid.notes(config) if log is not None else ():
            log.say(f"note: {note}")
        step, saved, key = steps_done, steps_done, step_key(config, run.mesh)
        tracer, compiled, saving = Tracer(folder, section(Profile, config.profile)), set(), 0.0
        planned = config.objective == "grpo"  # the planner knows no others
        counting = rates(run) if rates is not None and log is not None and planned else None
        rate, counted = measure.learning_rate(config), {}
        traced: dict[str, futures.Future] = {}
        ahead: dict[str, futures.Future] = {}
        watch = Watch(config.step.updates if config.objective == "grpo" else 1, int(jax.device_get(state.skipped)))
        if validate is not None and config.validate.at_start and not steps_done:
            validated, _ = timed(validate, state.trainable)
            if log is not None:
                log.start(validated)
        for step in range(steps_done + 1, config.steps + 1):
            started, progress.step = time.perf_counter(), step
            batch = next(stream)
            waited = time.perf_counter() - started
            inputs = run.to_batch(batch.family, batch.arrays)
            program = run.steps[batch.family]
            if shapes is not None and planned and not compiled:
                traced = trace_ahead(run, shapes(run), batch.family, (state, run.frozen, key), compile_thread)
                if (os.cpu_count() or 1) >= SHARED_CORES:
                    ahead, traced = compile_ahead(traced, compile_thread), {}
            if batch.family in ahead:
                await_compiled(ahead.pop(batch.family))
            with tracer.step(step, batch.family, program, state, run.frozen, inputs, key):
                state, metrics, rollout = program(state, run.frozen, inputs, key)
                metrics = jax.device_get(metrics)
            seconds = time.perf_counter() - started
            if traced:
                ahead, traced = compile_ahead(traced, compile_thread), {}
            metrics |= data_metrics(stream, waited) | measure.speed(config, inputs, metrics, seconds)
            metrics |= {"learn/learning_rate": rate(step, watch.skipped)}
            metrics |= {"time/save": saving} if saving else {}
            if batch.family not in compiled:
                compiled.add(batch.family)
                metrics["time/compile"] = seconds - waited
                if counting is not None and hasattr(program, "lower"):
                    lowered = program.lower(state, run.frozen, inputs, key)  # cached, since it was compiled
                    like = jax.eval_shape(lambda inputs=inputs: inputs)
                    counted[batch.family] = count_thread.submit(count, counting, log, batch.family, like, lowered)
            elif batch.family in counted:
                metrics |= counted[batch.family].result()(metrics, seconds)
            if config.loader.rest_after:
                stream.report(batch, grpo.flat_groups(rollout_log.fetch(rollout.rewards.total)).tolist())
            watch.step(int(jax.device_get(state.skipped)), metrics.get("learn/flat_groups"))
            validated, score, saving = {}, None, 0.0
            stopped = stop(step)  # asked once per step, so that no stop goes unsaved
            # A stop does not wait for the validation of its step.
            if validate is not None and not stopped and (due(step, config.validate.every) or step == config.steps):
                validated, score = timed(validate, state.trainable)
            if log is not None:
                log.step(step, metrics, seconds, batch.family, validated)
                log_examples(log, run, step, batch, inputs, rollout)
                rollout = inputs = None  # the log's thread holds them as long as it needs them
                if note := watch.note():
                    log.say(f"note: {note}")
            if not manager.is_saving_in_progress():
                manager.wait_until_finished()  # raises errors of the background write before the next save
            last = stopped or step == config.steps
            if config.optimizer.max_skipped and watch.in_a_row >= config.optimizer.max_skipped:
                if log is not None:
                    log.close()
                raise InputError(diverged(config, folder, step, watch.in_a_row, max(manager.all_steps(), default=0)))
            # A state after skipped updates may be their cause: it must not displace a good checkpoint.
            better = score is not None and checkpointing.any_process(beats(score, manager))
            if not watch.in_a_row and (last or better or due(step, config.checkpoint.every)):
                started = time.perf_counter()
                if log is not None:
                    log.flush()
                if checkpointing.save(manager, step, state, stream.get_state(), plain, wait=last, score=score):
                    saved = step
                saving = time.perf_counter() - started
            if last:
                break
        tracer.close()
    if log is not None:
        log.close()
    if step < config.steps:
        if jax.process_index() == 0:
            print(f"stopped after step {saved}; run the same command again to resume")
        return None
    finish(folder, mark, run, state)
    return state


@contextlib.contextmanager
def _closed(manager: ocp.CheckpointManager) -> Iterator[ocp.CheckpointManager]:
    """Waits for the last write at the end; after an error only if there is no other process to wait for."""
    try:
        yield manager
    except BaseException:
        if jax.process_count() == 1:
            manager.close()
        raise
    manager.close()


@contextlib.contextmanager
def _cancelled(thread: futures.ThreadPoolExecutor) -> Iterator[futures.ThreadPoolExecutor]:
    """At the end, however it comes, drops what the thread has not begun."""
    try:
        yield thread
    finally:
        thread.shutdown(cancel_futures=True)


def restore(
    manager: ocp.CheckpointManager, target: TrainState, config: ConfigDict, folder: epath.Path
) -> checkpointing.Restored:
    """The newest good checkpoint of a run with these settings, or an older version of them.

    Raises:
      InputError: none is good, or the run has other settings; the first is named.
    """
    endless = config.optimizer.schedule in optimizer.ENDLESS
    advice = (
        f"the {config.optimizer.schedule} schedule is spread over all steps, so that they cannot change. "
        f"{train_on(config, folder)}"
    )
    return checkpointing.restore(
        manager,
        target,
        settings.plain(config),
        (*checkpointing.MAY_DIFFER, *(["steps"] * endless)),
        upgrade=settings.upgraded,
        advice={"steps": advice},
    )


def diverged(config: ConfigDict, folder: epath.Path, step: int, in_a_row: int, newest_step: int) -> str:
    """The message of a run that ends since its updates are not finite; `good` is the newest checkpoint's step or 0."""
    skipped = f"step {step}: {in_a_row} updates in a row were skipped, since their loss or gradient is not finite"
    if not newest_step:
        return f"{skipped}; there is no checkpoint yet: take a smaller --config.optimizer.learning_rate"
    newest = folder / checkpointing.FOLDER / str(newest_step)
    return f"{skipped}; the last good checkpoint is {newest}. {train_on(config, folder)}, and a smaller learning rate"


def train_on(config: ConfigDict, folder: epath.Path) -> str:
    """How to begin another run from the weights of this one."""
    section = "sam2" if config.objective == "masks" else "thinker"
    return (
        f"To train on from what was learned: python -m omnir1_jax.convert export {folder} DIRECTORY, then train with "
        f"--config.{section}.path=DIRECTORY, another --workdir"
    )


def timed(validate: Callable[[Any], Validated], trainable: Any) -> tuple[dict[str, float], checkpointing.Score | None]:
    """Metrics of a validation with its seconds, and its score if there is one."""
    started = time.perf_counter()
    metrics, score = validate(trainable)
    metrics = {**metrics, "time/validate": time.perf_counter() - started}
    return metrics, score if math.isfinite(score.value) else None


def beats(score: checkpointing.Score, manager: checkpointing.Manager) -> bool:
    """Whether a score is better than that of every checkpoint with the same validation."""
    manager.wait_until_finished()  # so that the newest is compared too
    steps = manager.all_steps()
    scores = [checkpoint_steps.score(manager.directory, step) for step in steps]
    return all(other.value < score.value for other in scores if other is not None and other.of == score.of)


def due(step: int, every: int) -> bool:
    """Whether a step is a multiple of `every`; 0: never."""
    return bool(every) and step % every == 0


def data_metrics(stream: Prefetch, waited: float) -> dict[str, float]:
    """Metrics of the data: samples skipped since the first step, seconds waited for this batch."""
    counts = stream.get_state()["counts"]
    return {f"data/{name}": float(value) for name, value in counts.items()} | {"time/data": waited}


def trace_ahead(
    run: Run, shapes: Callable[[str], Any], first: str, arguments: tuple[TrainState, Any, Any], thread: futures.Executor
) -> dict[str, futures.Future[jax.stages.Lowered]]:
    """Traces the steps of all tasks but `first` in a thread, while that one is compiled by its step.

    Args:
      arguments: the step's state, what is frozen, and the key.
    """
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    state, frozen, key = arguments
    state = jax.tree.map(like, state)  # the first step donates its arrays
    trace = lambda task, lower: lower(state, frozen, shapes(task), key)
    lowers = {task: getattr(step, "lower", None) for task, step in run.steps.items() if task != first}
    return {task: thread.submit(trace, task, lower) for task, lower in lowers.items() if lower is not None}


def compile_ahead(
    traced: Mapping[str, futures.Future[jax.stages.Lowered]], thread: futures.Executor
) -> dict[str, futures.Future]:
    """Compiles traced steps in the thread that traced them.

    A step that finds its program compiled for its shapes does not compile it again.
    """
    return {task: thread.submit(lambda lowered=lowered: lowered.result().compile()) for task, lowered in traced.items()}


def await_compiled(done: futures.Future) -> None:
    """Waits for a step that is compiled ahead; one whose shapes are not known is compiled by the step itself."""
    with contextlib.suppress(InputError):
        done.result()


def count(
    counting: Callable[..., Any], log: RunLog, task: str, batch: Any, lowered: Any
) -> Callable[[Mapping, float], dict[str, float]]:
    """The counter of a task's operations; an empty one, with a note, if they cannot be counted.

    Reading a program takes seconds, so that it is done in a thread.

    Args:
      batch: its shapes. lowered: its step.
    """
    try:
        return counting(task, batch, lowered)
    except InputError as error:
        log.say(f"note: no operations per second are logged: {error}")
        return lambda metrics, seconds: {}


def log_examples(log: RunLog, run: Run, step: int, batch: Batch, inputs: Any, rollout: Any) -> None:
    """Logs completions, some of them with pictures; in the log's thread, while the next step is computed."""
    options = run.config.log
    last = step == run.config.steps
    pictured = bool(options.pictures_every and options.pictures) and (last or due(step, options.pictures_every))
    if rollout is None or not (pictured or due(step, options.rollouts_every)):
        return
    choices = models.step_config(run.config, run.loaded.models.thinker.config.tokens)
    clips = options.pictures if pictured else 0
    task = data.task_of(run.config, batch.family)

    def write() -> None:
        examples = rollout_log.examples(
            task, inputs, rollout, batch.sample_ids, batch.queries, run.loaded.tokenizer, choices, clips=clips
        )
        log.rollouts(step, examples)
        log.pictures(step, examples)

    log.later(write)


def finish(folder: epath.Path, mark: Mark | None, run: Run, state: TrainState) -> None:
    """The trained weights, the summary and the report. Called by every process, written by the first."""
    owner = mark.id if mark is not None else ""
    step = int(jax.device_get(state.step))
    export.save(folder / "weights", run.config, run.loaded, state.trainable, step=step, owner=owner, flag=FLAG)
    if mark is None:
        return
    rows = list(lines.read_metrics(regular_file.read_bytes(folder / METRICS), str(folder / METRICS)))
    with file(folder, SUMMARY, FLAG) as scratch:
        scratch.write_text(json.dumps(summary(run.config, rows) | best(folder, step), indent=2) + "\n")
    begin(folder, REPORT, FLAG)
    write_report(folder)
    print(f"{folder}: weights/ (of step {step}), summary.json, report.html")


def best(folder: epath.Path, last: int) -> dict[str, Any]:
    """For the summary: the steps of `weights/` and of the best checkpoint, if any was validated."""
    steps = folder / checkpointing.FOLDER
    best_step = checkpoint_steps.best(steps, checkpoint_steps.finished(steps))
    if best_step is None:
        return {"weights": {"step": last}}
    if best_step != last:
        print(f"best is step {best_step}: python -m omnir1_jax.convert export {folder} DIRECTORY --step=best")
    score = checkpoint_steps.score(steps, best_step).value
    return {"weights": {"step": last}, "best": {"step": best_step, "score": score}}


def summary(config: ConfigDict, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    """A run's summary: seconds, and each metric's mean over the first and the last tenth of its steps."""
    series: dict[str, list[float]] = {}
    for row in rows:
        for name in row.keys() - {"step", "seconds", names.TASK}:
            series.setdefault(name, []).extend([] if row[name] is None else [row[name]])
    ends = {name: max(len(values) // 10, 1) for name, values in series.items()}
    mean = lambda values: sum(values) / len(values) if values else None

    return {
        "name": config.name,
        "objective": config.objective,
        "steps": sum("seconds" in row for row in rows),
        "seconds": sum(row.get("seconds") or 0.0 for row in rows),
        "first": {name: mean(series[name][: ends[name]]) for name in sorted(series)},
        "last": {name: mean(series[name][-ends[name] :]) for name in sorted(series)},
        "goodput": measure.goodput(rows),
    }
