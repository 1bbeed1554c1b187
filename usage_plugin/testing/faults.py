"""Fault injection: the n-th low-level call of a store fails, or its process dies there.

A call is a function of the standard library that changes files, a statement of SQLite, or every few steps within one.
The tests of a backend can name further functions.
"""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FILE_CALLS = (
    "builtins.open",
    "io.open",
    "os.open",
    "os.write",
    "os.fsync",
    "os.fdatasync",
    "os.replace",
    "os.rename",
    "os.link",
    "os.unlink",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.ftruncate",
)
"""Functions that fail with an `OSError`; those that the system lacks are skipped."""

_STEPS = 30
"""The number of steps of SQLite's virtual machine that count as one call."""


class Faults:
    """Counts calls while it is armed, and injects a fault at one of them."""

    def __init__(self, points: Mapping[str, Exception]) -> None:
        """Watch the usual calls and further ones.

        Args:
            points: dotted names of functions, each with its driver's error that the fault raises.
        """
        disk_failed = OSError(errno.EIO, os.strerror(errno.EIO))
        usual = {name: disk_failed for name in FILE_CALLS if _is_there(name)}
        self._points = usual | dict(points)
        self._left: int | None = None
        self._is_lasting = False
        self._act: Callable[[Exception], None] = fail
        self.happened = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch the calls; files opened outside of this context are not watched."""
        with ExitStack() as patches:
            for name, error in self._points.items():
                module, _, function = name.rpartition(".")
                original = getattr(import_module(module), function)
                patches.enter_context(mock.patch(name, self._counted(original, error)))
            patches.enter_context(mock.patch("sqlite3.connect", self._counted_connect(sqlite3.connect)))
            yield

    @contextmanager
    def at(
        self, number: int, act: Callable[[Exception], None] | None = None, *, lasting: bool = False
    ) -> Iterator[None]:
        """Arm the call of this number, counted from 1; by default it fails.

        Args:
            number: the number of the call.
            act: called with the error that the call would raise.
            lasting: whether all later calls are affected too.
        """
        self._left, self._act, self._is_lasting, self.happened = number, act or fail, lasting, False
        try:
            yield
        finally:
            self._left = None

    def _tick(self, error: Exception) -> None:
        if self._left is None:
            return
        self._left -= 1
        if self._left == 0 or (self._is_lasting and self._left < 0):
            self.happened = True
            self._act(error)

    def _counted(self, original: Callable[..., Any], error: Exception) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._tick(error)
            return original(*args, **kwargs)

        return counted

    def _counted_connect(self, connect: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        error = sqlite3.OperationalError("disk I/O error")

        def tick() -> None:
            self._tick(error)

        def step() -> int:
            tick()
            return 0

        class Connection(sqlite3.Connection):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                # An exception in the handler interrupts the statement.
                self.set_progress_handler(step, _STEPS)

            def execute(self, *args: Any) -> sqlite3.Cursor:
                tick()
                return super().execute(*args)

            def executemany(self, *args: Any) -> sqlite3.Cursor:
                tick()
                return super().executemany(*args)

        def counted(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            tick()
            return connect(*args, **{"factory": Connection, **kwargs})

        return counted


def _is_there(name: str) -> bool:
    module, _, function = name.rpartition(".")
    return hasattr(import_module(module), function)


def fail(error: Exception) -> None:
    """Raise a new copy of the error: one that is raised twice keeps its first traceback."""
    raise type(error)(*error.args)


def die(_: Exception) -> None:
    """End the process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def growing() -> Iterator[int]:
    """Yield 1, 2, 3 … and later larger steps, so that a hundred calls need about thirty attempts."""
    number = 1
    while True:
        yield number
        number += 1 + number // 10
