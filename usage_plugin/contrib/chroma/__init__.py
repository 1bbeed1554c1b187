"""Keeps a vector of each user and week in Chroma, to find who behaves alike and who has moved; docs/similar.md.

    plugins:
      - {name: chroma, options: {path: ./vectors, weeks: 26}}

Off unless it is named, since it profiles people. What it is told of events it only takes for a sign that the history
has grown: it then brings the vectors up to date, in another process, since that is heavy in Python and chromadb is
large. Here is the plugin; `following` makes vectors of the history, `vectors` keeps them, `comparing` asks them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager  # noqa: TC003  # part of a signature that is read at run time
from pathlib import Path  # noqa: TC003  # pydantic needs it at run time
from typing import Annotated

from pydantic import Field

from usage_plugin.contrib.chroma.vector_store import Vectors, VectorsError, check_installed, open_vectors
from usage_plugin.errors import ConfigError
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins import interface as ours
from usage_plugin.plugins.interface import BackendContext  # noqa: TC001  # as above

FOLLOW_EVERY = 3600.0
"""So many seconds pass at least between two looks at the history; a command that asks takes one of its own."""

_LAST_WORDS = 1_000


class Options(ours.Options):
    """Where the vectors are kept, from the folder of the YAML, and of how many weeks, this one included."""

    path: Annotated[Path | None, Field(strict=False)] = None
    weeks: Annotated[int, Field(ge=2, le=520)] = 26


class Plugin:
    """Starts, at most once an hour and when there is something new, the command that brings the vectors up to date.

    Attributes:
        folder: where they are.
        weeks: of how many weeks.
    """

    def __init__(self, options: Options, context: BackendContext) -> None:
        """Open nothing.

        Raises:
            PluginError: chromadb is not installed.
            ConfigError: there is no YAML that another process could read.
        """
        check_installed()
        if context.config_file is None:
            raise ConfigError(
                "usage_plugin.plugins: chroma works in another process, which needs the configuration in a file.",
                hint="Give the path of a YAML in place of the section itself, or leave the plugin out.",
            )
        self.folder = context.data_dir / "chroma" if options.path is None else context.config_dir / options.path
        self.weeks = options.weeks
        self._command = [
            *(sys.executable, "-m", "usage_plugin.cli"),
            *("--config", str(context.config_file), "outliers", "--in-background"),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before = 0.0

    def open_vectors(self) -> AbstractContextManager[Vectors]:
        """Open the vectors, once nobody else has them open."""
        return open_vectors(self.folder)

    @hookimpl
    def usage_event_recorded(self) -> None:
        """See to it that the vectors follow.

        Raises:
            VectorsError: they did not the last time.
        """
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self._process = None
            if code:
                raise VectorsError(f"The vectors could not be brought up to date: {self._last_words()}")
        if time.monotonic() >= self._not_before:
            self._not_before = time.monotonic() + FOLLOW_EVERY
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            try:
                self._process = subprocess.Popen(  # noqa: S603  # our own words
                    self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
                )
            finally:
                os.close(log)

    @hookimpl
    def usage_user_forgotten(self, user: str) -> None:
        """Drop a user's vectors."""
        if self.folder.exists():
            with self.open_vectors() as vectors:
                vectors.forget(user)

    @property
    def _log(self) -> Path:
        return self.folder / "following.log"

    def _last_words(self) -> str:
        return " ".join(self._log.read_bytes()[-_LAST_WORDS:].decode("utf-8", "replace").split())
