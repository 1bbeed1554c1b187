"""A ledger on a server, and the test module of its author."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from typing_extensions import assert_type

from usage_plugin.plugins.ledger import (
    MOST_CLOCK_DIFFERENCE,
    Abandon,
    Answer,
    BackendContext,
    Balance,
    Clock,
    Fleet,
    FleetRegister,
    Free,
    KeeperReplacedError,
    LedgerError,
    LedgerReplacedError,
    LedgerTransport,
    Member,
    NoOptions,
    OpenLedger,
    Reassert,
    Record,
    Release,
    Reserve,
    Reserved,
    Settle,
    Settled,
    SharedLedgerBackend,
    Verb,
    WorkerLostError,
)
from usage_plugin.testing import FleetContract, KeeperTermContract, LedgerTransportContract


class OneMemberRegister(FleetRegister):
    """A fleet of one."""

    def join(self, name: str, host: str, details: str, *, has_reasserted: bool = True) -> Fleet:
        return Fleet(0, "first", has_reasserted, (Member(name, host, 0, details, has_reasserted),), None, 0)

    def beat(self, name: str, details: str) -> Fleet:
        raise WorkerLostError(f"{name}: {details}")

    def view(self) -> Fleet:
        fleet = self.join("one", "host", "{}")
        assert_type(fleet.member("one"), Member | None)
        return fleet

    def leave(self, name: str) -> None:
        del name

    def bury(self, name: str, beats: int) -> bool:
        return len(name) == beats

    def keep(self, name: str, term: int) -> bool:
        return self.view().term == term and self.view().keeper != name

    def stop_keeping(self, name: str) -> None:
        raise KeeperReplacedError(name)

    def close(self) -> None:
        pass


class RefusingTransport(LedgerTransport):
    """Refuses all reservations; the contract would fail it, mypy does not."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.now = now

    async def send(self, batch: Sequence[Verb]) -> Sequence[Answer]:
        if abs(self.now()) > MOST_CLOCK_DIFFERENCE:
            raise LedgerReplacedError
        return [self.answer(verb) for verb in batch]

    def answer(self, verb: Verb) -> Answer:
        if isinstance(verb, Reserve):
            return Reserved(False, tuple(Balance() for _ in verb.holds))
        if isinstance(verb, Settle | Record):
            return Settled(1, {charge.account: Balance(charge.amount) for charge in verb.charges})
        if isinstance(verb, Free | Reassert):
            return LedgerError(verb.event_id)
        assert_type(verb, Release | Abandon)
        return None

    def accept(self) -> None:
        pass

    async def reasserted(self, worker: str) -> None:
        raise WorkerLostError(worker)

    async def close(self) -> None:
        pass


class ServerBackend(SharedLedgerBackend[NoOptions]):
    name = "server"
    options_model = NoOptions

    def exists(self, options: NoOptions, context: BackendContext) -> bool:
        return context.data_dir.exists()

    def open(self, options: NoOptions, context: BackendContext) -> OpenLedger:
        raise LedgerError(f"{context.data_dir} has no server")

    def transport(self, options: NoOptions, context: BackendContext, clock: Clock) -> LedgerTransport:
        return RefusingTransport(clock.now)

    def register(self, options: NoOptions, context: BackendContext) -> FleetRegister:
        return OneMemberRegister()

    def open_as_keeper(self, options: NoOptions, context: BackendContext, term: Callable[[], int]) -> OpenLedger:
        assert_type(term(), int)
        return self.open(options, context)

    def trouble(self, options: NoOptions, context: BackendContext) -> list[str]:
        return []


class TestServerFleet(FleetContract):
    __test__ = False
    backend = ServerBackend()


class TestServerTransport(LedgerTransportContract):
    __test__ = False
    backend = ServerBackend()


class TestServerKeeper(KeeperTermContract):
    __test__ = False
    backend = ServerBackend()
