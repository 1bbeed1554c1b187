"""Migrate while the proxy runs: the keeper starts the command in another process, and reports its progress.

The work is CPU-bound Python, so it must not share an interpreter with requests. The processes communicate by a note in
the ledger, which `status` reads too. A failed migration is retried, since it resumes where it stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.log import get_logger
from usage_plugin.migration.legacy_sources import find_sources

if TYPE_CHECKING:
    from pathlib import Path

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.operations import OperationsLog

NOTE = "migration"
RUNNING, DONE, FAILED = "running", "done", "failed"
_FIRST_PAUSE, _LONGEST_PAUSE = 30.0, 600.0
_REPORT_INTERVAL = 30.0
_LAST_WORDS = 2_000
_PATIENCE = 5.0

log = get_logger()


class Report(NamedTuple):
    """The progress of a migration.

    Attributes:
        directory: The resolved path of the directory.
        state: `running`, `done` or `failed`.
        text: A description for people.
        at: The time of the report, in microseconds since 1970 UTC.
    """

    directory: str
    state: str
    text: str
    at: int


def report(operations: OperationsLog, how: Report) -> None:
    """Record the progress of the migration."""
    operations.note(NOTE, json.dumps(how._asdict()))


def reported(operations: OperationsLog) -> Report | None:
    """Return the progress of the last migration; None if there was none."""
    note = operations.notes(NOTE).get(NOTE)
    return Report(**json.loads(note)) if note else None


class AutomaticMigration:
    """Start and supervise the migration of a directory; only the keeper calls it, once a second."""

    def __init__(self, directory: Path, config: Path, log_file: Path, clock: Clock) -> None:
        """Prepare the command.

        Args:
            directory: The directory of the previous tracker.
            config: The proxy's YAML.
            log_file: The file for the command's errors.
            clock: The clock of the reports.
        """
        self._clock = clock
        self._directory = directory.expanduser().resolve()
        self._config = config
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._is_done = False
        self._not_before = 0.0
        self._pause = _FIRST_PAUSE
        self._reported_at = 0.0

    def supervise(self, operations: OperationsLog) -> None:
        """Start the command if it is needed, and check on it; never block."""
        if self._is_done:
            return
        if self._process is not None:
            self._check(self._process, operations)
        elif time.monotonic() >= self._not_before:
            self._begin(operations)

    def _begin(self, operations: OperationsLog) -> None:
        last = reported(operations)
        if last and (last.directory, last.state) == (str(self._directory), DONE):
            self._is_done = True
            return
        if not find_sources(self._directory)[0]:
            log.info("migration.nothing_to_import", directory=str(self._directory))
            self._is_done = True
            return
        command = [sys.executable, "-m", "usage_plugin.cli", "migrate", str(self._directory)]
        command += ["--config", str(self._config), "--in-background", "--format", "json"]
        self._log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._log_file.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603  # our own words
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
            )
        self._reported_at = time.monotonic()
        log.info("migration.started", directory=str(self._directory), pid=self._process.pid)

    def _check(self, process: subprocess.Popen[bytes], operations: OperationsLog) -> None:
        code = process.poll()
        last = reported(operations)
        text = last.text if last else ""
        if code is None:
            if time.monotonic() - self._reported_at >= _REPORT_INTERVAL:
                self._reported_at = time.monotonic()
                log.info("migration.running", directory=str(self._directory), progress=text)
            return
        if last and (last.directory, last.state) == (str(self._directory), DONE):
            self._process = None
            self._is_done = True
            log.info("migration.done", directory=str(self._directory), outcome=text)
            return
        message = self._last_words()
        # Also for a command that was killed, and made no report itself.
        report(operations, Report(str(self._directory), FAILED, message, self._clock.now()))
        self._process = None
        log.error(
            "migration.failed",
            directory=str(self._directory),
            exit_code=code,
            message=message,
            again_in_seconds=self._pause,
        )
        self._not_before = time.monotonic() + self._pause
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause)

    def _last_words(self) -> str:
        text = self._log_file.read_bytes()[-_LAST_WORDS:].decode("utf-8", "replace")
        return " ".join(text.split())

    def stop(self) -> None:
        """Stop the command; its completed work is kept."""
        process, self._process = self._process, None
        self._is_done = True
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
