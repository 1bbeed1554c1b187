"""What a ledger has of a person: found by name, erased, and gone from the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.ledger import AccountKey, Adjustment, AlertKey, Audited, Charge, Hold, RefusalCount
from usage_plugin.ledgers.sqlite.ledger import SqliteLedger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "eva"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    opened = SqliteLedger(tmp_path / "ledger.db")
    for subject in (NAME, f"team\x1f{NAME}", "evan", "medieval", "team\x1feva-2", f"{NAME}\x1fmodel"):
        opened.record([Charge(AccountKey(1, 0, subject), 10, 5)], json.dumps({"user": subject}))
        opened.count_refusals(
            [RefusalCount(1, "daily", subject, "spent", 2)], [(f"REF-{subject}", 1, json.dumps({"user": subject}))]
        )
        opened.alert(AlertKey(1, subject, 0, 50), 1, "{}")
        opened.adjust(Adjustment(0, "daily", subject, 1, 2, 0, 10, "root", "why"))
    opened.acknowledge(5)
    yield opened
    opened.close()


def test_a_name_is_found_whole(ledger: SqliteLedger) -> None:
    """What has the name as one of its names is found, and nothing that merely contains it."""
    found = ledger.naming(NAME)
    subjects = [NAME, f"{NAME}\x1fmodel", f"team\x1f{NAME}"]
    for records in (found.refusal_counts, found.adjustments):
        assert sorted(record.subject for record in records) == subjects
    for keys in (found.accounts, found.alerts):
        assert sorted(record.key.subject for record in keys) == subjects
    assert [ref for ref, _ in found.refusals] == [f"REF-{NAME}"]
    assert [json.loads(entry.event) for entry in found.entries] == [{"user": NAME}]
    assert ledger.naming("nobody") == ([], [], [], [], [], [])


def test_what_is_erased_is_gone(ledger: SqliteLedger, tmp_path: Path) -> None:
    """Erasing takes everything found, leaves everything else, gives no number out twice, and no byte stays behind."""
    version, newest = ledger.adjustments_version(), ledger.outbox(0, 100)[-1].seq
    ledger.erase(ledger.naming(NAME))
    ledger.erase(ledger.naming(NAME))
    assert ledger.naming(NAME) == ([], [], [], [], [], [])
    assert [account.key.subject for account in ledger.accounts(1, 0)] == ["evan", "medieval", "team\x1feva-2"]
    assert ledger.adjustments_version() > version
    assert ledger.record([], "{}").seq == newest + 1
    ledger.compact()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert f'"{NAME}"'.encode() not in content
    assert b"medieval" in content
    assert ledger.verify() == []


def test_what_a_request_holds_is_not_erased(ledger: SqliteLedger) -> None:
    """An account on which something is held stays until that is settled."""
    held = AccountKey(1, 0, NAME)
    ledger.reserve("a", "w", 5, [Hold(held, 10, 3, None, 3)], "{}")
    ledger.erase(ledger.naming(NAME))
    assert [account.key for account in ledger.naming(NAME).accounts] == [held]
    assert ledger.settle("a", [Charge(held, 10, 1)], "{}")
    ledger.erase(ledger.naming(NAME))
    assert ledger.naming(NAME).accounts == []


def test_events_that_the_store_lacks_are_not_erased(ledger: SqliteLedger) -> None:
    """What waits for the store is not touched, whatever it names."""
    waiting = ledger.record([], json.dumps({"user": NAME}))
    assert waiting.seq not in [entry.seq for entry in ledger.naming(NAME).entries]


def test_the_audit_is_kept(ledger: SqliteLedger) -> None:
    """What was done is listed in its order, with everything that was said of it."""
    entry = Audited(0, 5, "forget", "p-abc", "root", "why", {"history": 3})
    ledger.audit(entry)
    ledger.audit(entry._replace(at=6, action="export"))
    assert ledger.audited() == [entry._replace(number=1), entry._replace(number=2, at=6, action="export")]
