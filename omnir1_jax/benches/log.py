"""Steps of the toy's video segmentation with a run's log and without one, in turn.

The log is a run's: metrics, TensorBoard, all rollouts, now and then pictures, which a run makes every 50 steps and the
share of a step counts so. Its CPU seconds are those of its own thread and of the calls that the step's thread makes.
Whole steps with and without it are told too, but two equal steps differ by more than a log takes. Nothing is validated:
without `validate.every` a run has nothing of it. Needs a checkout (configs/toy.py).
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

PICTURED = 4  # steps from one picture to the next here, of which every second is logged


def run(quick: bool) -> dict:
    """Medians of CPU seconds of a step, of milliseconds of what is logged of it, and the log's share in percent."""
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
                kind = "pictured" if step % PICTURED == 0 else "plain"
                cpu[f"{kind}.thread"].append(threads[-1] - threads[-2])
                cpu[f"{kind}.step"].append(step_thread_seconds)
            if step:  # the first one compiles
                cpu["logged" if logged else "silent"].append(time.process_time() - started)
    stream.close()
    middle = {name: statistics.median(values) for name, values in cpu.items()}
    plain, pictured = (middle[f"{kind}.thread"] + middle[f"{kind}.step"] for kind in ("plain", "pictured"))
    return {f"step_cpu_s.{side}": middle[side] for side in ("silent", "logged")} | {
        "log_cpu_ms.of_the_steps_thread": 1e3 * middle["plain.step"],
        "log_cpu_ms.of_its_own": 1e3 * middle["plain.thread"],
        "log_cpu_ms.with_pictures": 1e3 * pictured,
        "percent_of_a_step": 100 * (plain + (pictured - plain) / Log().pictures_every) / middle["silent"],
    }
