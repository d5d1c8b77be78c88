"""Items that teach nothing rest: after some flat groups in a row they sit out epochs of their family.

What rests in an epoch is decided at the first batch that reaches into it, from what was reported of the batches at
least `LAG` before that one. So it is the same however far ahead batches are made, and across a resume.
"""

import threading
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

LAG = 16


class Visit(NamedTuple):
    """An item's turn in an epoch: whether all its completions earned the same."""

    item: int
    epoch: int
    flat: bool


class Resting:
    """Used by the thread that makes batches and by the one that reports on them.

    Args:
      after: flat groups in a row after which an item rests: an epoch, and one more for each further flat group.
    """

    def __init__(self, after: int):
        self._after, self._changed, self._closed = after, threading.Condition(), False
        self.set_state({})

    def report(self, number: int, family: str, visits: Iterable[Visit]) -> None:
        """What became of the batch of this number; of every batch, in order."""
        with self._changed:
            self._waiting.append((number, family, tuple(visits)))
            self._changed.notify_all()

    def decide(self, family: str, epoch: int, number: int) -> bool:
        """Settles what rests in an epoch, which batch `number` is the first of; whether that is something new.

        Waits for the reports that count; RuntimeError where `close` is called meanwhile.
        """
        with self._changed:
            sets = self.sets.setdefault(family, {})
            if epoch in sets or epoch == 0:
                return False
            last = number - LAG
            self._changed.wait_for(lambda: self._closed or last < self._reported())
            if self._closed:
                raise RuntimeError("data: the stream was closed while it waited for a report")
            self._count(last)
            streaks = self._streaks.get(family, {})
            rests = lambda streak, seen: streak >= self._after and epoch - seen <= streak - self._after + 1
            sets[epoch] = tuple(sorted(item for item, own in streaks.items() if rests(*own)))
            return bool(sets[epoch])

    def _reported(self) -> int:
        """Batches of which there is a report."""
        return self._waiting[-1][0] + 1 if self._waiting else self._counted

    def _count(self, last: int) -> None:
        """Takes reports up to batch `last` into account."""
        while self._waiting and self._waiting[0][0] <= last:
            number, family, visits = self._waiting.pop(0)
            self._counted, streaks = number + 1, self._streaks.setdefault(family, {})
            for item, epoch, flat in visits:
                if flat:
                    streaks[item] = (streaks.get(item, (0, 0))[0] + 1, epoch)
                else:
                    streaks.pop(item, None)
            # No later batch reaches back before this one.
            oldest, sets = min((visit.epoch for visit in visits), default=0), self.sets.get(family, {})
            for epoch in [epoch for epoch in sets if epoch < oldest]:
                del sets[epoch]

    def close(self) -> None:
        """Ends a wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def open(self) -> None:
        with self._changed:
            self._closed = False

    def state(self) -> dict[str, Any]:
        """JSON-able; holds after the last report, whatever was decided ahead."""
        with self._changed:
            return {
                "counted": self._counted,
                "waiting": [[number, family, [list(v) for v in visits]] for number, family, visits in self._waiting],
                "streaks": {f: [[i, *own] for i, own in streaks.items()] for f, streaks in self._streaks.items()},
                "sets": {f: [[e, list(items)] for e, items in sets.items()] for f, sets in self.sets.items()},
            }

    def set_state(self, state: Mapping[str, Any]) -> None:
        with self._changed:
            self._counted = int(state.get("counted", 0))
            self._waiting = [(n, f, tuple(Visit(*v) for v in visits)) for n, f, visits in state.get("waiting", ())]
            self._streaks = {f: {i: (n, e) for i, n, e in own} for f, own in state.get("streaks", {}).items()}
            self.sets = {f: {e: tuple(items) for e, items in own} for f, own in state.get("sets", {}).items()}
