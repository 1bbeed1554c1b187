"""Promises of a ledger that a keeper writes to: one promise, one test, one sentence.

    class TestMyKeeper(KeeperTermContract):
        backend = MyLedgerBackend()

The docstrings are the promises. They hold for every ledger on a server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.erasure import Erasable
from usage_plugin.domain.ledger import AccountKey, Balance, Charge, Ledger
from usage_plugin.domain.operations import (
    Adjustment,
    AlertKey,
    Anomaly,
    AuditEntry,
    NotedAlert,
    OperationsLog,
    RefusalCount,
)
from usage_plugin.domain.profiles import ProfileStore, UserProfile
from usage_plugin.errors import KeeperReplacedError
from usage_plugin.testing.builders import ANN, END, hold, record_new
from usage_plugin.testing.ledger_contents import contents_of_ledger
from usage_plugin.testing.shared_ledger_fixtures import OpensSharedLedger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from usage_plugin.domain.fleet import FleetRegister
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.testing.openings import SharedLedgerOpening

_OLD = AccountKey(1, 0, "old")
_YEARS = 800 * END

WRITES: dict[tuple[type, str], Callable[[OpenLedger], object]] = {
    (Ledger, "reserve"): lambda opened: opened.ledger.reserve("new", "w", 5, [hold(ANN, 1, None)], "draft"),
    (Ledger, "settle"): lambda opened: opened.ledger.settle("open", [Charge(ANN, END, 1)], "event"),
    (Ledger, "release"): lambda opened: opened.ledger.release("open"),
    (Ledger, "abandon"): lambda opened: opened.ledger.abandon("open"),
    (Ledger, "free"): lambda opened: opened.ledger.free("open", [ANN]),
    (Ledger, "record"): lambda opened: opened.ledger.record("new", [Charge(ANN, END, 1)], "event"),
    (Ledger, "recover"): lambda opened: opened.ledger.recover("open"),
    (Ledger, "correct"): lambda opened: opened.ledger.correct("correction", [Charge(ANN, END, 1)]),
    (Ledger, "acknowledge"): lambda opened: opened.ledger.acknowledge(2),
    (Ledger, "agree"): lambda opened: opened.ledger.agree(7),
    (Ledger, "maintain"): lambda opened: opened.ledger.maintain(_YEARS),
    (OperationsLog, "adjust"): lambda opened: opened.operations.adjust(_adjustment()),
    (OperationsLog, "end_adjustment"): lambda opened: opened.operations.end_adjustment(1, 300),
    (OperationsLog, "alert"): lambda opened: opened.operations.alert(AlertKey(1, "ann", 0, 90), 5),
    (OperationsLog, "acknowledge_alert"): lambda opened: opened.operations.acknowledge_alert(
        opened.operations.alerts(0, ["ann"])[0].number, 6, "root"
    ),
    (OperationsLog, "count_refusals"): lambda opened: opened.operations.count_refusals(
        [RefusalCount(2, "daily", "ann", "spent", 1)], [("REF-2", 6, "{}")]
    ),
    (OperationsLog, "keep_alert"): lambda opened: opened.operations.keep_alert(
        NotedAlert(9, AlertKey(9, "bo", 0, 80), 5, "{}")
    ),
    (OperationsLog, "count_anomalies"): lambda opened: opened.operations.count_anomalies(
        [Anomaly("gap", "store", 1, 1, 5, 6)]
    ),
    (OperationsLog, "note"): lambda opened: opened.operations.note("name", "text"),
    (OperationsLog, "audit"): lambda opened: opened.operations.audit(
        AuditEntry(0, 5, "forget", "pseudonym", "root", "asked", {"events": 1})
    ),
    (OperationsLog, "maintain"): lambda opened: opened.operations.maintain(_YEARS),
    (ProfileStore, "put"): lambda opened: opened.profiles.put([UserProfile("bo", updated_at=5)]),
    (ProfileStore, "remove"): lambda opened: opened.profiles.remove("ann"),
    (Erasable, "erase"): lambda opened: opened.erasable.erase(opened.erasable.find("ann")),
    (Erasable, "compact"): lambda opened: opened.erasable.compact(),
}
"""The writing methods of each port, on a ledger as `_fill` leaves it."""

READS = {
    Ledger: {
        "open_reservations", "snapshot", "accounts", "every_account", "outbox", "waiting", "acknowledged", "verify",
        "close",
    },
    OperationsLog: {
        "adjustments", "adjustments_version", "alerts", "refusal_counts", "refusal", "refusals", "anomalies",
        "notes", "audited",
    },
    ProfileStore: {"get", "page", "changes", "version"},
    Erasable: {"find"},
}  # fmt: skip
"""The other methods of each port, which any worker may call."""

_INVISIBLE = {"compact"}
"""Methods that change no record."""


class KeeperTermContract(OpensSharedLedger):
    """The promises of `open_as_keeper`."""

    @pytest.fixture
    def terms(self, register: FleetRegister) -> tuple[int, int]:
        """The term of a former keeper, and the present one."""
        first = register.join("old", "host", "{}").term
        register.join("new", "host", "{}")
        assert register.keep("old", first)
        register.leave("old")
        assert register.keep("new", first + 1)
        return first + 1, first + 2

    @pytest.fixture
    def asked(self, terms: tuple[int, int]) -> list[int]:
        """The term that the ledger of the keeper asks for; tests replace it."""
        return [terms[1]]

    @pytest.fixture
    def kept(self, asked: list[int], opening: SharedLedgerOpening) -> Iterator[OpenLedger]:
        """The ledger, open for a thread of the keeper."""
        kept = opening.open_as_keeper(lambda: asked[0])
        yield kept
        kept.close()

    def test_every_method_is_known(self) -> None:
        """Each method of a port is in the list of those that write or of those that do not."""
        for port, reads in READS.items():
            writes = {name for of, name in WRITES if of is port}
            assert writes.isdisjoint(reads)
            assert writes | reads == port.__abstractmethods__, "a new method is missing in this contract"

    @pytest.mark.parametrize(
        ("port", "name"), WRITES, ids=lambda part: part if isinstance(part, str) else part.__name__
    )
    def test_a_former_keeper_writes_nothing(
        self, port: type, name: str, kept: OpenLedger, asked: list[int], terms: tuple[int, int], opened: OpenLedger
    ) -> None:
        """A writing method of a former term is an error and changes nothing; that of the present term works."""
        _fill(opened)
        before = contents_of_ledger(opened)
        for term in (terms[0], terms[1] + 1, 0):
            asked[0] = term
            with pytest.raises(KeeperReplacedError):
                WRITES[port, name](kept)
            assert contents_of_ledger(opened) == before
        asked[0] = terms[1]
        WRITES[port, name](kept)
        assert (contents_of_ledger(opened) != before) == (name not in _INVISIBLE)

    def test_a_former_keeper_reads(
        self, kept: OpenLedger, asked: list[int], terms: tuple[int, int], opened: OpenLedger
    ) -> None:
        """Reading does not need the present term."""
        _fill(opened)
        asked[0] = terms[0]
        assert contents_of_ledger(kept) == contents_of_ledger(opened)
        assert kept.ledger.verify() == []
        assert kept.ledger.balances([ANN]) == {ANN: Balance(0, 9)}
        assert kept.erasable.find("ann").accounts

    def test_the_term_is_that_of_each_call(
        self, kept: OpenLedger, asked: list[int], terms: tuple[int, int], register: FleetRegister
    ) -> None:
        """The same ledger is refused after its keeper was replaced, and works after it has become the keeper again."""
        assert kept.ledger.record("a", [], "event")
        register.stop_keeping("new")
        assert kept.ledger.record("b", [], "event"), "there is no other keeper yet"
        assert register.keep("new", terms[1])
        with pytest.raises(KeeperReplacedError):
            kept.ledger.record("c", [], "event")
        asked[0] = terms[1] + 1
        assert kept.ledger.record("c", [], "event") == (3, {})

    def test_a_ledger_that_is_not_the_keepers_has_no_term(self, opened: OpenLedger, terms: tuple[int, int]) -> None:
        """Other threads and commands write without a term."""
        del terms
        _fill(opened)
        for write in WRITES.values():
            write(opened)


def _adjustment() -> Adjustment:
    return Adjustment(0, "daily", "ann", 50, 20, made_at=100, until=400, actor="root", reason="demo")


def _fill(opened: OpenLedger) -> None:
    """Add records, such that each writing method changes some."""
    ledger, operations = opened.ledger, opened.operations
    ledger.reserve("open", "w", 5, [hold(ANN, 9, None)], "draft")
    for number in range(3):
        record_new(ledger, [Charge(_OLD, END, 1)], f'{{"user": "ann", "number": {number}}}')
    ledger.acknowledge(1)
    operations.adjust(_adjustment())
    operations.alert(AlertKey(1, "ann", 0, 50), 5)
    operations.count_refusals([RefusalCount(1, "daily", "ann", "spent", 1)], [("REF-1", 5, "{}")])
    operations.count_anomalies([Anomaly("estimated", "gpt", 1, 1, 5, 6)])
    opened.profiles.put([UserProfile("ann", updated_at=1)])
