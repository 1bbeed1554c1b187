"""Promises of a ledger's operations log: one promise, one test, one sentence.

    class TestMyOperationsLog(OperationsLogContract):
        backend = MyLedgerBackend()

The docstrings are the promises. They hold for every ledger; properties of one ledger are tested with that ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.operations import (
    Adjustment,
    AlertKey,
    Anomaly,
    AuditEntry,
    NotedAlert,
    OperationsLog,
    RefusalCount,
)
from usage_plugin.testing.builders import END
from usage_plugin.testing.hostile_names import HostileNames
from usage_plugin.testing.ledger_fixtures import OpensLedger

if TYPE_CHECKING:
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.testing.openings import LedgerOpening


class OperationsLogContract(OpensLedger, HostileNames):
    """The promises of an operations log."""

    @pytest.fixture
    def operations(self, opened: OpenLedger) -> OperationsLog:
        """The operations log of a new ledger."""
        return opened.operations

    def test_adjustments_are_kept_for_the_audit(self, operations: OperationsLog) -> None:
        """An adjustment that ends, by itself or early, is listed for a year; each change of them is noticed."""
        made = Adjustment(0, "daily", "ann", 50, 20, made_at=100, until=200, actor="root", reason="demo")
        first = operations.adjust(made)
        second = operations.adjust(made._replace(amount=None, before=None, until=400))
        assert [first, second] == [
            made._replace(number=1),
            made._replace(number=2, amount=None, before=None, until=400),
        ]
        assert operations.adjustments(199) == [first, second]
        assert operations.adjustments(200) == [second]
        version = operations.adjustments_version()
        assert not operations.end_adjustment(1, 200), "it ended by itself"
        assert not operations.end_adjustment(3, 200)
        assert operations.adjustments_version() == version
        assert operations.end_adjustment(2, 300)
        assert not operations.end_adjustment(2, 301)
        assert operations.adjustments_version() != version
        assert operations.adjustments(300) == []
        assert operations.adjustments() == [first, second._replace(ended_at=300)]
        operations.maintain(365 * END)
        assert len(operations.adjustments()) == 2
        operations.maintain(367 * END)
        assert operations.adjustments() == []
        assert operations.adjust(made).number == 3

    def test_a_threshold_is_alerted_once(self, operations: OperationsLog, opening: LedgerOpening) -> None:
        """Of several workers the first one alerts a threshold; the record may be deleted a year later."""
        key = AlertKey(1, "ann", 0, 80)
        another = opening.open()
        other = another.operations
        assert [
            operations.alert(key, 5),
            other.alert(key, 5),
            other.alert(key._replace(threshold=90), 6),
        ] == [
            True,
            False,
            True,
        ]
        operations.maintain(365 * END)
        assert not operations.alert(key, 6)
        operations.maintain(367 * END)
        assert operations.alert(key, 7)
        another.close()

    def test_alerts_are_listed_and_acknowledged_once(self, operations: OperationsLog, opening: LedgerOpening) -> None:
        """Alerts are listed by subject, newest first, with the first person to acknowledge each."""
        another = opening.open()
        other = another.operations
        for at, subject in ((5, "ann"), (6, "bo"), (7, "ann"), (8, "ann\x1fgpt")):
            assert operations.alert(AlertKey(1, subject, 0, at), at, f'{{"at": {at}}}')
        assert [
            (noted.key, noted.at, noted.details, noted.acknowledged_by) for noted in other.alerts(5, ["ann", "x"])
        ] == [
            (AlertKey(1, "ann", 0, 7), 7, '{"at": 7}', None),
            (AlertKey(1, "ann", 0, 5), 5, '{"at": 5}', None),
        ]
        assert other.alerts(5, []) == []
        assert [noted.at for noted in other.alerts(6, None)] == [8, 7, 6]
        (newest,) = other.alerts(6, ["ann"])
        assert [
            operations.acknowledge_alert(newest.number, 9, "kim"),
            other.acknowledge_alert(newest.number, 10, "lee"),
        ] == [
            True,
            False,
        ]
        assert not operations.acknowledge_alert(99, 9, "kim")
        assert other.alerts(6, ["ann"]) == [newest._replace(acknowledged_at=9, acknowledged_by="kim")]
        another.close()

    def test_notes_are_left_for_others(self, operations: OperationsLog, opening: LedgerOpening) -> None:
        """A later note replaces an earlier one; a prefix is not a pattern."""
        another = opening.open()
        other = another.operations
        for name, text in (("rules/b", "old"), ("rules/a", "x"), ("rules/b", "new"), ("rules%", "y"), ("store", "z")):
            other.note(name, text)
        assert operations.notes("rules/") == {"rules/a": "x", "rules/b": "new"}
        operations.note("rules/a", None)
        assert other.notes("rules") == {"rules/b": "new", "rules%": "y"}
        assert set(other.notes("")) == {"rules/b", "rules%", "store"}
        another.close()

    def test_anomalies_add_up(self, operations: OperationsLog) -> None:
        """Anomalies are counted by kind and by what they concern, with their first and last time."""
        unpriced = Anomaly("unpriced", "gpt", 1, 10, 50, 60)
        operations.count_anomalies([unpriced, Anomaly("gap", "store", 1, 7, 5, 6)])
        operations.count_anomalies([unpriced._replace(times=2, first_at=40, last_at=55)])
        assert operations.anomalies() == [
            Anomaly("gap", "store", 1, 7, 5, 6),
            Anomaly("unpriced", "gpt", 3, 20, 40, 60),
        ]
        operations.maintain(367 * END)
        assert operations.anomalies() == []

    def test_refusals_are_counted_and_looked_up(self, operations: OperationsLog) -> None:
        """Refusals add up by minute, and each of the last ones can be looked up by its ref."""
        row = RefusalCount(10, "daily", "ann", "spent", 2)
        operations.count_refusals([row], [("R1", 1, "{}")])
        operations.count_refusals([row._replace(times=3)], [("R2", 3, '{"a": 1}')])
        assert operations.refusal_counts(10) == [row._replace(times=5)]
        assert operations.refusal_counts(11) == []
        assert [operations.refusal(ref) for ref in ("R1", "R2", "R3")] == ["{}", '{"a": 1}', None]
        assert operations.refusals() == [("R1", 1, "{}"), ("R2", 3, '{"a": 1}')]

    def test_the_audit_is_kept(self, operations: OperationsLog) -> None:
        """Actions on a person's records are listed in their order, with all their facts."""
        entry = AuditEntry(0, 5, "forget", "p-abc", "root", "why", {"history": 3})
        operations.audit(entry)
        operations.audit(entry._replace(at=6, action="export"))
        first, second = operations.audited()
        assert first.number < second.number
        assert first._replace(number=0) == entry
        assert second._replace(number=0) == entry._replace(at=6, action="export")

    def test_records_of_another_log_keep_their_numbers(self, operations: OperationsLog) -> None:
        """An adjustment, an alert and an audit entry that have a number keep it, once; later ones follow it."""
        made = Adjustment(7, "daily", "ann", 2**62, None, 100, 200, "root", "why", ended_at=150)
        alert = NotedAlert(8, AlertKey(2**62, "ann", 0, 80), 5, "{}", 6, "kim")
        entry = AuditEntry(9, 5, "forget", "p-abc", "root", "why", {"history": 3})
        for _ in range(2):
            assert operations.adjust(made) == made
            operations.keep_alert(alert)
            operations.audit(entry)
        earlier = made._replace(number=3), alert._replace(number=4, key=alert.key._replace(threshold=90))
        operations.adjust(earlier[0])
        operations.keep_alert(earlier[1])
        operations.audit(entry._replace(number=5))
        assert operations.adjustments() == [earlier[0], made]
        assert operations.alerts(0, ["ann"]) == [alert, earlier[1]]
        assert not operations.alert(alert.key, 7)
        assert operations.audited() == [entry._replace(number=5), entry]
        assert operations.adjust(made._replace(number=0)).number == 8
        assert operations.alert(alert.key._replace(threshold=95), 7)
        assert operations.alerts(7, None)[0].number > 8
        operations.audit(entry._replace(number=0))
        assert operations.audited()[-1].number > 9

    def test_alerts_and_notes_keep_names_as_they_are(self, operations: OperationsLog, hostile: tuple[str, ...]) -> None:
        """No name is taken for another in alerts and notes."""
        for name in hostile:
            assert operations.alert(AlertKey(1, name, 0, 80), 5)
            operations.note(name, name)
        assert operations.notes("") == {name: name for name in hostile}
