"""Progress of long operations: bars at a terminal, and a note in the ledger for `status` and the log."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from usage_plugin.cli.output import escape_control
from usage_plugin.errors import LedgerError
from usage_plugin.migration.background import RUNNING, Report, report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.operations import OperationsLog

_NOTE_EVERY = 1.0


@contextmanager
def status_line(*, is_seen: bool = True) -> Iterator[Callable[[str], None]]:
    """Yield a function that replaces a status text on stderr; without a terminal it does nothing."""
    screen = Console(stderr=True)
    if not (is_seen and screen.is_terminal):
        yield lambda _text: None
        return
    with screen.status("") as status:
        yield status.update


@contextmanager
def counting_bar(text: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function that takes the completed and the total number of items; the bar disappears at the end."""
    with Progress(
        TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True, quiet=not sys.stderr.isatty()), transient=True,
    ) as progress:  # fmt: skip
        task = progress.add_task("", total=None)

        def advance(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total)

        yield advance


class Bar:
    """A progress bar on stderr, shown at a terminal only."""

    def __init__(self, *, is_seen: bool = True) -> None:
        """Create a bar without a task; `is_seen` is False if other output goes to the same terminal."""
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
        """Show the bar for the length of the context, and leave its last state on the screen."""
        # A disabled bar would leave an empty line.
        with nullcontext() if self._bar.disable else self._bar:
            yield

    def begin(self, text: str, total: int | None) -> None:
        """Begin a task, and complete the previous one."""
        if self._task is not None:
            done = self._bar.tasks[-1].completed
            self._bar.update(self._task, total=done or 1, completed=done or 1)
        self._task = self._bar.add_task(escape_control(text), total=total)

    def advance(self, steps: int) -> None:
        """Advance the task by a number of steps."""
        if self._task is not None:
            self._bar.advance(self._task, steps)


class BarInTime(Bar):
    """A progress bar for records in order of time, whose number is unknown."""

    def __init__(self, end: int, *, is_seen: bool) -> None:
        """Set the time of the last record, in the unit of `reach`."""
        super().__init__(is_seen=is_seen)
        self._end = end
        self._at = 0

    def reach(self, text: str, start: int, at: int) -> None:
        """Show that the records from `start` to `at` are done, with a text."""
        if self._task is None:
            self.begin(text, max(self._end - start, 1))
            self._at = start
        self.advance(at - self._at)
        self._at = at
        if self._task is not None:
            self._bar.update(self._task, description=escape_control(text))


class NotedBar(Bar):
    """A progress bar that also records a note in the ledger, once a second."""

    def __init__(self, operations: OperationsLog, clock: Clock, directory: str) -> None:
        """Set the operations log, and the directory that the note names."""
        super().__init__()
        self._operations = operations
        self._clock = clock
        self._directory = directory
        self._noted = 0.0
        self._text = ""
        self._total: int | None = None
        self._done = 0

    def begin(self, text: str, total: int | None) -> None:
        """Begin a task."""
        super().begin(text, total)
        self._text, self._total, self._done = text, total, 0

    def advance(self, steps: int) -> None:
        """Advance the task by a number of steps."""
        super().advance(steps)
        self._done += steps
        if time.monotonic() - self._noted >= _NOTE_EVERY:
            self._noted = time.monotonic()
            share = f" {100 * self._done // self._total} %" if self._total else f" {self._done:,}"
            self.note(RUNNING, f"{self._text}:{share}")

    def note(self, state: str, text: str) -> None:
        """Record the note; if the ledger is busy, the next note replaces this one."""
        with suppress(LedgerError):
            report(self._operations, Report(self._directory, state, text, self._clock.now()))
