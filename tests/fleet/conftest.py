"""A fleet on a real server of either engine: its hosts, and a look at what they share."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import uuid
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.fleet.hosts import SECRET, HostProcess
from tests.proxy.conftest import noon_zone
from tests.support.postgres import PostgresServer, binaries
from tests.support.valkey import RunningServer, valkey_server
from usage_plugin.config import config_of
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.windows import ALWAYS
from usage_plugin.errors import LedgerError
from usage_plugin.ledgers.workers.fleet_workers import FleetWorkers
from usage_plugin.runtime import Parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from usage_plugin.domain.fleet import Fleet as FleetState
    from usage_plugin.domain.ledger import OpenReservation
    from usage_plugin.domain.usage import UsageEvent


class Server(Protocol):
    """A server that a test may stop and kill."""

    def ledger(self) -> dict[str, Any]:
        """Return the section `ledger` for a new ledger."""

    def pause(self) -> None:
        """Let it answer nothing more."""

    def resume(self) -> None:
        """Let it go on."""

    def crash(self) -> None:
        """Kill it, and start it with its files."""

    def save(self) -> None:
        """Restart it, with a copy of its files in between."""

    def restore(self) -> None:
        """Kill it, and start it with the copy."""


def _copy(folder: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    # With the owner of the files.
    subprocess.run(["cp", "-a", str(folder), str(target)], check=True)


class Postgres:
    """A PostgreSQL server of our own."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._copied = server.data.with_name("copied")

    def ledger(self) -> dict[str, Any]:
        return {"backend": "postgres", "options": {"url": self.server.url, "schema": f"fleet_{uuid.uuid4().hex[:12]}"}}

    def _signal(self, number: signal.Signals) -> None:
        main = self.server.main_process
        # The main process first: it starts no more then.
        os.kill(main, number)
        for process in map(int, Path(f"/proc/{main}/task/{main}/children").read_text().split()):
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def crash(self) -> None:
        self._signal(signal.SIGKILL)
        self.server.stop()
        self.server.start()

    def save(self) -> None:
        self.server.stop()
        _copy(self.server.data, self._copied)
        self.server.start()

    def restore(self) -> None:
        self._signal(signal.SIGKILL)
        self.server.stop()
        _copy(self._copied, self.server.data)
        self.server.start()


class Valkey:
    """A Valkey server of our own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copied = folder.with_name(f"{folder.name}-copied")
        self._stack = ExitStack()
        self.start()

    def start(self) -> None:
        self.server: RunningServer = self._stack.enter_context(valkey_server(self._folder))

    def stop(self) -> None:
        self._stack.close()

    def ledger(self) -> dict[str, Any]:
        return {"backend": "valkey", "options": {"url": self.server.url, "prefix": f"fleet-{uuid.uuid4().hex[:12]}"}}

    def pause(self) -> None:
        os.kill(self.server.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.server.pid, signal.SIGCONT)

    def crash(self) -> None:
        os.kill(self.server.pid, signal.SIGKILL)
        self.stop()
        self.start()

    def save(self) -> None:
        self.server.command("SHUTDOWN")
        self.stop()
        _copy(self._folder, self._copied)
        self.start()

    def restore(self) -> None:
        os.kill(self.server.pid, signal.SIGKILL)
        self.stop()
        _copy(self._copied, self._folder)
        self.start()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """Return a function that gives the server of an engine; each is started once."""
    started: dict[str, Server] = {}
    with ExitStack() as stack:

        def server_of(engine: str) -> Server:
            if engine not in started:
                folder = tmp_path_factory.mktemp(engine)
                if engine == "postgres":
                    server = PostgresServer(binaries(), folder)
                    stack.callback(server.stop)
                    server.start()
                    started[engine] = Postgres(server)
                else:
                    started[engine] = valkey = Valkey(folder)
                    stack.callback(valkey.stop)
            return started[engine]

        yield server_of


class Fleet:
    """The hosts of one ledger. All have one limit of 1.00 USD a day, over all users."""

    def __init__(self, server: Server, folder: Path, stack: ExitStack) -> None:
        self.server = server
        self.folder = folder
        self._stack = stack
        self._hosts = 0
        self.section = {
            "ledger": server.ledger(),
            "timezone": noon_zone(),
            "privacy": {"secret": SECRET},
            "limits": [{"name": "company", "per": "global", "window": "day", "max_cost": 1}],
        }
        self.parts = Parts(config_of({"data_dir": str(folder / "look"), **self.section}))

    def lose_workers_after(self, seconds: int) -> None:
        """Let later hosts declare others dead sooner than a busy machine might let a living one be silent."""
        self.section["admission"] = {"worker_lost_after": f"{seconds}s"}

    def host(self, same_as: HostProcess | None = None) -> HostProcess:
        """Start a worker on a new host, or on that of another worker."""
        self._hosts += 1
        data_dir = Path(same_as.section["data_dir"]) if same_as is not None else None
        started = HostProcess(self.folder / f"host-{self._hosts}", self.section, data_dir)
        self._stack.callback(started.close)
        return started

    def view(self) -> FleetState:
        """Return the register's view; while the server does not answer, that is an AssertionError."""
        workers = self.parts.workers()
        assert isinstance(workers, FleetWorkers)
        try:
            return workers.view()
        except LedgerError as error:
            raise AssertionError from error
        finally:
            workers.leave()

    def members(self) -> list[str]:
        return [member.name for member in self.view().members]

    def term(self) -> int:
        return self.view().term

    def open_reservations(self) -> list[OpenReservation]:
        with closing(self.parts.open_ledger()) as opened:
            return opened.ledger.open_reservations()

    def notes(self, prefix: str) -> dict[str, str]:
        with closing(self.parts.open_ledger()) as opened:
            return opened.operations.notes(prefix)

    def stored(self) -> list[UsageEvent]:
        """Return the events in the store."""

        async def read() -> list[UsageEvent]:
            parts = Parts(config_of({"data_dir": str(self.folder / "look"), **self.section}))
            async with parts.open_store() as store:
                return [event async for event in store.events(ALWAYS, UsageFilter())]

        return asyncio.run(read())

    def unstored(self) -> int:
        """Return the number of events that the store lacks."""
        with closing(self.parts.open_ledger()) as opened:
            return opened.ledger.waiting().events

    def spent(self) -> int:
        """Return the spend of the limit in nano-dollars."""
        (limit,) = self.parts.config.limit_set().limits
        with closing(self.parts.open_ledger()) as opened:
            return sum(account.balance.spent for account in opened.ledger.accounts(limit.key, 0))


@pytest.fixture(params=["postgres", "valkey"])
def fleet(request: pytest.FixtureRequest, servers: Callable[[str], Server], tmp_path: Path) -> Iterator[Fleet]:
    """A fleet without hosts."""
    with ExitStack() as stack:
        made = Fleet(servers(request.param), tmp_path, stack)
        yield made
        with closing(made.parts.open_ledger()) as opened:
            assert opened.ledger.verify() == []
