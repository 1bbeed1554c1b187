"""Progress of what takes long: a bar for people at a terminal, and a note in the ledger for `status` and the log."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from usage_plugin.cli.output import harmless
from usage_plugin.errors import LedgerError
from usage_plugin.migration.background import RUNNING, Report, report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import Ledger

_NOTE_EVERY = 1.0


class Bar:
    """Shows how far it is, on stderr if somebody is there."""

    def __init__(self, *, is_seen: bool = True) -> None:
        """Begin with nothing; `is_seen`: nothing else is printed to the terminal meanwhile."""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (is_seen and sys.stderr.isatty()),
        )
        self._task: TaskID | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show it meanwhile, and leave the last state on the screen."""
        # A bar that nobody sees would leave an empty line.
        with nullcontext() if self._bar.disable else self._bar:
            yield

    def begin(self, what: str, total: int | None) -> None:
        """Begin with something; the one before is done."""
        if self._task is not None:
            done = self._bar.tasks[-1].completed
            self._bar.update(self._task, total=done or 1, completed=done or 1)
        self._task = self._bar.add_task(harmless(what), total=total)

    def advance(self, steps: int) -> None:
        """So many steps more are done."""
        if self._task is not None:
            self._bar.advance(self._task, steps)


class BarInTime(Bar):
    """Shows how far records have come that are in the order of time, where nobody knows how many there are."""

    def __init__(self, end: int, *, is_seen: bool) -> None:
        """Take the time at which they end, in the unit of `reach`."""
        super().__init__(is_seen=is_seen)
        self._end = end
        self._at = 0

    def reach(self, what: str, start: int, at: int) -> None:
        """Say in words how much there is so far, and that a stretch of time is done."""
        if self._task is None:
            self.begin(what, max(self._end - start, 1))
            self._at = start
        self.advance(at - self._at)
        self._at = at
        if self._task is not None:
            self._bar.update(self._task, description=harmless(what))


class NotedBar(Bar):
    """Also leaves word in the ledger, once a second."""

    def __init__(self, ledger: Ledger, clock: Clock, directory: str) -> None:
        """Take the ledger, and the directory that it is about."""
        super().__init__()
        self._ledger = ledger
        self._clock = clock
        self._directory = directory
        self._noted = 0.0
        self._what = ""
        self._total: int | None = None
        self._done = 0

    def begin(self, what: str, total: int | None) -> None:
        """Begin with something."""
        super().begin(what, total)
        self._what, self._total, self._done = what, total, 0

    def advance(self, steps: int) -> None:
        """So many steps more are done."""
        super().advance(steps)
        self._done += steps
        if time.monotonic() - self._noted >= _NOTE_EVERY:
            self._noted = time.monotonic()
            share = f" {100 * self._done // self._total} %" if self._total else f" {self._done:,}"
            self.note(RUNNING, f"{self._what}:{share}")

    def note(self, state: str, text: str) -> None:
        """Leave word; a busy ledger is told the next time."""
        with suppress(LedgerError):
            report(self._ledger, Report(self._directory, state, text, self._clock.now()))
