"""Keep a vector of each user and week in Chroma, to find similar users and changed behaviour; docs/similar.md.

    plugins:
      - {name: chroma, options: {path: ./vectors, weeks: 26}}

It is off unless the YAML names it, since it profiles people. An event only signals that the history has grown. The
plugin then updates the vectors in another process, since that is CPU-bound Python and chromadb is large.

This module is the plugin. `indexer` derives vectors from the history, `vector_store` keeps them, and `similarity`
queries them.
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

from usage_plugin.contrib.chroma.vector_store import Vectors, check_installed, open_vectors
from usage_plugin.errors import ConfigError, VectorsError
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins import interface as ours
from usage_plugin.plugins.interface import BackendContext  # noqa: TC001  # as above

UPDATE_INTERVAL = 3600.0
"""The minimum seconds between two updates of the vectors; a command that queries them makes one of its own."""

_LAST_WORDS = 1_000


class Options(ours.Options):
    """The options of the plugin.

    Attributes:
        path: The folder of the vectors; a relative one starts in the folder of the YAML.
        weeks: The number of weeks to keep, the current one included.
    """

    path: Annotated[Path | None, Field(strict=False)] = None
    weeks: Annotated[int, Field(ge=2, le=520)] = 26


class Plugin:
    """The plugin, which starts the command that updates the vectors: after an event, and at most once an hour.

    Attributes:
        folder: The folder of the vectors.
        weeks: The number of weeks to keep.
    """

    def __init__(self, options: Options, context: BackendContext) -> None:
        """Validate the options; open no file.

        Raises:
            PluginError: chromadb is not installed.
            ConfigError: There is no YAML for another process to read.
        """
        check_installed()
        if context.config_file is None:
            raise ConfigError(
                "usage_plugin.plugins: chroma requires a configuration file, which another process can read.",
                hint="Pass the path of a YAML in place of the section itself, or leave the plugin out.",
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
        """Open the vectors; wait until no other process has them open."""
        return open_vectors(self.folder)

    @hookimpl
    def usage_event_recorded(self) -> None:
        """Start an update of the vectors, if it is time.

        Raises:
            VectorsError: The last update failed.
        """
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self._process = None
            if code:
                raise VectorsError(f"The update of the vectors failed: {self._last_words()}")
        if time.monotonic() >= self._not_before:
            self._not_before = time.monotonic() + UPDATE_INTERVAL
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
        """Delete a user's vectors."""
        if self.folder.exists():
            with self.open_vectors() as vectors:
                vectors.forget(user)

    @property
    def _log(self) -> Path:
        return self.folder / "following.log"

    def _last_words(self) -> str:
        return " ".join(self._log.read_bytes()[-_LAST_WORDS:].decode("utf-8", "replace").split())
