"""The progress of a move, as its steps report it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A receiver of progress reports."""

    def begin(self, text: str, total: int | None) -> None:
        """Start a phase of `total` steps, if that number is known."""

    def advance(self, steps: int) -> None:
        """Report the number of steps that were completed since the last call."""
