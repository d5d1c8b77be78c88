"""Steps of the toy's video segmentation with and without a run's log, in turn.

The log is a run's: metrics, TensorBoard, all rollouts, and sometimes pictures, which count as in a run, once in 50
steps. Its CPU seconds are those of its own thread and of the calls in the step's thread. Full steps with and without it
are measured too, but two equal steps differ by more than a log takes. Needs a checkout (configs/toy.py).
"""

import statistics
import tempfile
import time
from collections import defaultdict

import jax

from omnir1_jax.benches.step import toy
from omnir1_jax.build import run as setup
from omnir1_jax.config.sections import Log
from omnir1_jax.reporting.log import RunLog
from omnir1_jax.training import loop, measure

PICTURED = 4  # steps between pictures here; every second step is logged


def run(quick: bool) -> dict:
    """Medians of a step's CPU seconds and of its log's milliseconds, and the log's share in percent."""
    config = toy(batch=1, group=2, tokens=6, grounding=4, keyframes=2) if quick else toy()
    with config.unlocked():
        config.data.refavs.weight, config.log.pictures_every = 0.0, PICTURED
    training, steps = setup.build(config), (1 if quick else 5) * PICTURED
    state, stream, key = training.state, setup.batches(training), setup.step_key(config)
    rate, cpu = measure.learning_rate(config), defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, RunLog(folder, config.steps, quiet=True) as log:
        threads = [0.0]  # CPU seconds of the log's thread so far
        for step in range(steps + 1):
            began, started, logged = time.perf_counter(), time.process_time(), step > 0 and step % 2 == 0
            batch = next(stream)
            waited = time.perf_counter() - began
            inputs = training.to_batch(batch.family, batch.arrays)
            state, metrics, rollout = training.steps[batch.family](state, training.frozen, inputs, key)
            metrics, seconds = jax.device_get(metrics), time.perf_counter() - began
            if logged:
                began_thread = time.thread_time()
                metrics |= loop.data_metrics(stream, waited) | measure.speed(config, inputs, metrics, seconds)
                log.step(step, metrics | {"learn/learning_rate": rate(step, 0)}, seconds, batch.family)
                loop.log_examples(log, training, step, batch, inputs, rollout)
                step_thread_seconds = time.thread_time() - began_thread
                log.later(lambda: threads.append(time.thread_time()))
                log.flush()
                label = "pictured" if step % PICTURED == 0 else "plain"
                cpu[f"{label}.thread"].append(threads[-1] - threads[-2])
                cpu[f"{label}.step"].append(step_thread_seconds)
            if step:  # the first one compiles
                cpu["logged" if logged else "silent"].append(time.process_time() - started)
    stream.close()
    medians = {name: statistics.median(values) for name, values in cpu.items()}
    plain, pictured = (medians[f"{label}.thread"] + medians[f"{label}.step"] for label in ("plain", "pictured"))
    return {f"step_cpu_s.{side}": medians[side] for side in ("silent", "logged")} | {
        "log_cpu_ms.of_the_steps_thread": 1e3 * medians["plain.step"],
        "log_cpu_ms.of_its_own": 1e3 * medians["plain.thread"],
        "log_cpu_ms.with_pictures": 1e3 * pictured,
        "percent_of_a_step": 100 * (plain + (pictured - plain) / Log().pictures_every) / medians["silent"],
    }
