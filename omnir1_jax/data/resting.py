"""Resting items: an item whose groups were flat (no spread of rewards) several times in a row skips some epochs.

Which items rest in an epoch is decided at its first batch, from the reports on batches at least `LAG` before that one.
So the decision does not depend on how far ahead batches are made, and is the same after a resume.
"""

import threading
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

LAG = 16


class Visit(NamedTuple):
    """One visit of an item in an epoch: whether all its completions got the same reward."""

    item: int
    epoch: int
    flat: bool


class Resting:
    """Used by the thread that makes batches and by the one that reports on them.

    Args:
      after: flat groups in a row after which an item rests: for one epoch, and one more for each further flat group.
    """

    def __init__(self, after: int):
        self._after, self._changed, self._closed = after, threading.Condition(), False
        self.set_state({})

    def report(self, number: int, family: str, visits: Iterable[Visit]) -> None:
        """Reports the outcome of batch `number`; to be called for every batch, in order."""
        with self._changed:
            self._waiting.append((number, family, tuple(visits)))
            while self._waiting[0][0] <= number - 2 * LAG:  # every decision it came too late for is made
                _, reported_family, visits = self._waiting.pop(0)
                count(self._streaks.setdefault(reported_family, {}), visits)
                oldest, sets = min((visit.epoch for visit in visits), default=0), self._sets.get(reported_family, {})
                for epoch in [epoch for epoch in sets if epoch < oldest]:
                    del sets[epoch]
            self._reported = number + 1
            self._changed.notify_all()

    def decide(self, family: str, epoch: int, number: int) -> bool:
        """Decides which items rest in an epoch whose first batch is `number`.

        Returns whether any do; False if it was decided before.

        Waits for the reports it needs; RuntimeError if `close` is called meanwhile.
        """
        with self._changed:
            sets = self._sets.setdefault(family, {})
            if epoch in sets or epoch == 0:
                return False
            last = number - LAG
            self._changed.wait_for(lambda: self._closed or last < self._reported)
            if self._closed:
                raise RuntimeError("data: the stream was closed while it waited for a report")
            streaks = dict(self._streaks.get(family, {}))
            for waiting_number, waiting_family, visits in self._waiting:
                if waiting_number <= last and waiting_family == family:
                    count(streaks, visits)
            rests = lambda count, seen: count >= self._after and epoch - seen <= count - self._after + 1
            sets[epoch] = (number, tuple(sorted(item for item, streak in streaks.items() if rests(*streak))))
            return bool(sets[epoch][1])

    def sets(self) -> dict[str, dict[int, tuple[int, ...]]]:
        """Items that rest, by family and epoch."""
        with self._changed:
            return {family: {epoch: items for epoch, (_, items) in sets.items()} for family, sets in self._sets.items()}

    def close(self) -> None:
        """Ends a wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def open(self) -> None:
        with self._changed:
            self._closed = False

    def state(self) -> dict[str, Any]:
        """JSON-able state after the reported batches, without what was decided for later ones."""
        decided = lambda sets: [[e, n, list(items)] for e, (n, items) in sets.items() if n < self._reported]
        with self._changed:
            return {
                "reported": self._reported,
                "waiting": [[number, family, [list(v) for v in visits]] for number, family, visits in self._waiting],
                "streaks": {f: [[i, *streak] for i, streak in sorted(s.items())] for f, s in self._streaks.items()},
                "sets": {f: settled for f, sets in self._sets.items() if (settled := decided(sets))},
            }

    def set_state(self, state: Mapping[str, Any]) -> None:
        with self._changed:
            self._reported = int(state.get("reported", 0))
            self._waiting = [(n, f, tuple(Visit(*v) for v in visits)) for n, f, visits in state.get("waiting", ())]
            self._streaks = {f: {i: (n, e) for i, n, e in streak} for f, streak in state.get("streaks", {}).items()}
            self._sets = {
                f: {e: (n, tuple(streak)) for e, n, streak in sets} for f, sets in state.get("sets", {}).items()
            }


def count(streaks: dict[int, tuple[int, int]], visits: Iterable[Visit]) -> None:
    """Updates streaks: for items whose latest visits were flat, their number and the epoch of the last."""
    for item, epoch, flat in visits:
        if flat:
            streaks[item] = (streaks.get(item, (0, 0))[0] + 1, epoch)
        else:
            streaks.pop(item, None)
