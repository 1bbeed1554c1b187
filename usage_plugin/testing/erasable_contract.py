"""Promises of a ledger's erasable records: one promise, one test, one sentence.

    class TestMyErasable(ErasableContract):
        backend = MyLedgerBackend()

The docstrings are the promises. They hold for every ledger; properties of one ledger are tested with that ledger.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from usage_plugin.domain.ledger import AccountKey, Balance, Charge, Hold
from usage_plugin.domain.operations import Adjustment, AlertKey, RefusalCount
from usage_plugin.encoding import decode_event, encode_event
from usage_plugin.testing.builders import END, make_event, record_new
from usage_plugin.testing.ledger_fixtures import OpensLedger

if TYPE_CHECKING:
    from usage_plugin.domain.open_ledger import OpenLedger


class ErasableContract(OpensLedger):
    """The promises of finding and erasing the records of a name."""

    def test_a_name_is_found_whole(self, opened: OpenLedger) -> None:
        """A name is found as a whole name of a subject, never as a part of another."""
        self._fill_with_names(opened)
        found = opened.erasable.find("eva")
        subjects = ["eva", "eva\x1fmodel", "team\x1feva"]
        assert sorted(one.subject for one in found.refusal_counts) == subjects
        assert sorted(one.subject for one in found.adjustments) == subjects
        assert sorted(one.key.subject for one in found.accounts) == subjects
        assert sorted(one.key.subject for one in found.alerts) == subjects
        assert [ref for ref, _ in found.refusals] == ["REF-eva"]
        assert [json.loads(entry.event) for entry in found.entries] == [{"user": "eva"}]
        assert not any(opened.erasable.find("nobody"))

    def test_a_name_is_found_as_json_has_it(self, opened: OpenLedger) -> None:
        """A name with characters that JSON escapes is found in events and erased there, and no similar one is."""
        names = ('zoë "名前" \\', 'zoë "名前"', "zoë", "Zoë")
        for name in names:
            record_new(opened.ledger, [], encode_event(make_event(user=name, end_user=None)))
        opened.ledger.acknowledge(len(names))
        for count, name in enumerate(names):
            assert [decode_event(entry.event).user for entry in opened.erasable.find(name).entries] == [name]
            opened.erasable.erase(opened.erasable.find(name))
            assert len(opened.ledger.outbox(0, 10)) == len(names) - 1 - count

    def test_what_is_erased_is_gone(self, opened: OpenLedger) -> None:
        """Erasing deletes all matches and nothing else, may be repeated, and gives no number out twice."""
        self._fill_with_names(opened)
        version, newest = opened.operations.adjustments_version(), opened.ledger.outbox(0, 100)[-1].seq
        found = opened.erasable.find("eva")
        for _ in range(2):
            opened.erasable.erase(found)
        assert not any(opened.erasable.find("eva"))
        assert [one.key.subject for one in opened.ledger.accounts(1, 0)] == ["evan", "medieval", "team\x1feva-2"]
        assert opened.operations.adjustments_version() > version
        assert record_new(opened.ledger, [], "{}").seq == newest + 1
        opened.erasable.compact()
        assert opened.ledger.verify() == []
        assert [one.key.subject for one in opened.ledger.accounts(1, 0)] == ["evan", "medieval", "team\x1feva-2"]

    def test_what_is_in_use_is_not_erased(self, opened: OpenLedger) -> None:
        """An account with a hold, and an event that the store lacks, stay."""
        account = AccountKey(1, 0, "eva")
        record_new(opened.ledger, [Charge(account, END, 5)], json.dumps({"user": "eva"}))
        opened.ledger.reserve("a", "w", 5, [Hold(account, END, 3, None, 3)], "{}")
        assert opened.erasable.find("eva").entries == []
        opened.erasable.erase(opened.erasable.find("eva"))
        assert opened.ledger.balances([account]) == {account: Balance(5, 3)}
        assert opened.ledger.settle("a", [Charge(account, END, 1)], "{}")
        opened.erasable.erase(opened.erasable.find("eva"))
        assert opened.erasable.find("eva").accounts == []

    @staticmethod
    def _fill_with_names(opened: OpenLedger) -> None:
        """Create records of each kind for subjects that have `eva` as one of their names, or as a part of one."""
        for subject in ("eva", "team\x1feva", "evan", "medieval", "team\x1feva-2", "eva\x1fmodel"):
            record_new(opened.ledger, [Charge(AccountKey(1, 0, subject), END, 5)], json.dumps({"user": subject}))
            count = RefusalCount(1, "daily", subject, "spent", 2)
            opened.operations.count_refusals([count], [(f"REF-{subject}", 1, json.dumps({"user": subject}))])
            opened.operations.alert(AlertKey(1, subject, 0, 50), 1, "{}")
            opened.operations.adjust(Adjustment(0, "daily", subject, 1, 2, 0, 10, "root", "why"))
        opened.ledger.acknowledge(opened.ledger.outbox(0, 100)[-1].seq)
