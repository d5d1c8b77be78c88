"""Whether a run still learns: updates skipped in a row, steps without any advantage."""

from dataclasses import dataclass
from typing import SupportsFloat

FLAT_STEPS = 5  # in a row, before a note


@dataclass
class Watch:
    """Counts over the last steps.

    Attributes:
      updates: updates per step.
      skipped: updates skipped since the run began, as its state counts them.
      in_a_row: updates skipped in a row.
      flat: steps in a row in which all completions of each group had the same reward.
    """

    updates: int
    skipped: int = 0
    in_a_row: int = 0
    flat: int = 0

    def step(self, skipped: int, flat_groups: SupportsFloat | None) -> None:
        """Counts a finished step.

        Args:
          skipped: updates since the run began.
          flat_groups: share of groups without an advantage; None if there are no groups.
        """
        newly_skipped, self.skipped = skipped - self.skipped, skipped
        self.in_a_row = self.in_a_row + newly_skipped if newly_skipped == self.updates else 0
        self.flat = self.flat + 1 if flat_groups is not None and float(flat_groups) == 1 else 0

    def note(self) -> str | None:
        """A note for the terminal, once per sequence of steps without advantage."""
        if self.flat != FLAT_STEPS:
            return None
        return (
            f"in the last {FLAT_STEPS} steps all completions of each group earned the same, so that only the KL term "
            "trained; see rollouts.jsonl for what they say and earn"
        )
