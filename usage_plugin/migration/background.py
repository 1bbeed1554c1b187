"""Migrating beside a running proxy: the keeper starts the command in another process, and says what becomes of it.

The work is heavy in Python, so it must not share an interpreter with requests. The two talk by a note in the ledger,
which `status` reads as well. A migration that failed is tried again, since it goes on where it was.
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
    from usage_plugin.domain.ledger import Ledger

NOTE = "migration"
RUNNING, DONE, FAILED = "running", "done", "failed"
_FIRST_PAUSE, _LONGEST_PAUSE = 30.0, 600.0
_TELL_EVERY = 30.0
_LAST_WORDS = 2_000
_PATIENCE = 5.0

log = get_logger()


class Report(NamedTuple):
    """How a migration stands.

    Attributes:
        directory: resolved.
        state: `running`, `done` or `failed`.
        text: for people.
        at: when, in microseconds since 1970 UTC.
    """

    directory: str
    state: str
    text: str
    at: int


def report(ledger: Ledger, how: Report) -> None:
    """Leave word of how it stands."""
    ledger.note(NOTE, json.dumps(how._asdict()))


def reported(ledger: Ledger) -> Report | None:
    """Read how the last migration stands."""
    note = ledger.notes(NOTE).get(NOTE)
    return Report(**json.loads(note)) if note else None


class AutomaticMigration:
    """Sees to it, once a second, that a directory is migrated; only the keeper asks it."""

    def __init__(self, directory: Path, config: Path, log_file: Path, clock: Clock) -> None:
        """Take what the command needs.

        Args:
            directory: of the previous tracker.
            config: the proxy's YAML.
            log_file: takes what the command says of errors.
            clock: for what is written down.
        """
        self._clock = clock
        self._directory = directory.expanduser().resolve()
        self._config = config
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._is_done = False
        self._not_before = 0.0
        self._pause = _FIRST_PAUSE
        self._told_at = 0.0

    def see_to_it(self, ledger: Ledger) -> None:
        """Start the command if it is needed, and look after it; never waits."""
        if self._is_done:
            return
        if self._process is not None:
            self._look_after(self._process, ledger)
        elif time.monotonic() >= self._not_before:
            self._begin(ledger)

    def _begin(self, ledger: Ledger) -> None:
        last = reported(ledger)
        if last and (last.directory, last.state) == (str(self._directory), DONE):
            self._is_done = True
            return
        if not find_sources(self._directory)[0]:
            log.info("migration.nothing_there", directory=str(self._directory))
            self._is_done = True
            return
        command = [sys.executable, "-m", "usage_plugin.cli", "migrate", str(self._directory)]
        command += ["--config", str(self._config), "--in-background", "--format", "json"]
        self._log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._log_file.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603  # our own words
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
            )
        self._told_at = time.monotonic()
        log.info("migration.started", directory=str(self._directory), pid=self._process.pid)

    def _look_after(self, process: subprocess.Popen[bytes], ledger: Ledger) -> None:
        code = process.poll()
        last = reported(ledger)
        text = last.text if last else ""
        if code is None:
            if time.monotonic() - self._told_at >= _TELL_EVERY:
                self._told_at = time.monotonic()
                log.info("migration.running", directory=str(self._directory), progress=text)
            return
        if last and (last.directory, last.state) == (str(self._directory), DONE):
            self._process = None
            self._is_done = True
            log.info("migration.done", directory=str(self._directory), outcome=text)
            return
        message = self._last_words()
        # Also for a command that was killed, and left no word itself.
        report(ledger, Report(str(self._directory), FAILED, message, self._clock.now()))
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
        """End the command; what it has done is not lost."""
        process, self._process = self._process, None
        self._is_done = True
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
