"""What the last steps say about whether a run still learns: updates skipped in a row, steps without any advantage."""

from dataclasses import dataclass
from typing import SupportsFloat

FLAT_STEPS = 5  # in a row, before a note


@dataclass
class Watch:
    """Counts over the last steps.

    Attributes:
      updates: of each step.
      skipped: updates that were skipped since the run began, as its state counts them.
      row: updates skipped in a row.
      flat: steps in a row in which every completion of each group earned the same.
    """

    updates: int
    skipped: int = 0
    row: int = 0
    flat: int = 0

    def step(self, skipped: int, flat_groups: SupportsFloat | None) -> None:
        """Counts a finished step.

        Args:
          skipped: updates since the run began.
          flat_groups: share of groups without an advantage; None where there are no groups.
        """
        new, self.skipped = skipped - self.skipped, skipped
        self.row = self.row + new if new == self.updates else 0
        self.flat = self.flat + 1 if flat_groups is not None and float(flat_groups) == 1 else 0

    def note(self) -> str | None:
        """A note for the terminal, once for each stretch of steps without advantage."""
        if self.flat != FLAT_STEPS:
            return None
        return (
            f"in the last {FLAT_STEPS} steps all completions of each group earned the same, so that only the KL term "
            "trained; see rollouts.jsonl for what they say and earn"
        )
