"""Times of both sides of a comparison, taken on one machine."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def median_seconds(runs: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Medians of the runs' times, taken in turns so that all sides run under the same conditions."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run_times, run in zip(times, runs, strict=True):
            start = time.perf_counter()
            run()
            run_times.append(time.perf_counter() - start)
    return [statistics.median(t) for t in times]


def fewest_seconds(run: Callable[[], Any], repeats: int = 1) -> None:
    """Sets torch's number of threads to the faster one for `run`: one, or all cores."""
    import torch

    times = {}
    for threads in {os.cpu_count() or 1, 1}:
        torch.set_num_threads(threads)
        times[threads] = median_seconds([run], repeats)[0]
    torch.set_num_threads(min(times, key=times.get))
