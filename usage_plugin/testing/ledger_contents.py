"""All records of a ledger, for comparisons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usage_plugin.domain.open_ledger import OpenLedger

_MOST = 10_000


def contents_of_ledger(
    opened: OpenLedger, *, limit_keys: Iterable[int] = (1, 2, 3), subjects: Iterable[str] = ("ann",)
) -> dict[str, Any]:
    """Return all records that the ports show, by kind; of accounts and alerts, those of some limits and subjects."""
    ledger, operations, profiles = opened.ledger, opened.operations, opened.profiles
    return {
        "accounts": [account for limit_key in limit_keys for account in ledger.accounts(limit_key, 0)],
        "open": ledger.open_reservations(),
        "outbox": ledger.outbox(0, _MOST),
        "numbers": (ledger.snapshot([]).seq, ledger.acknowledged(), ledger.waiting()),
        "adjustments": (operations.adjustments_version(), operations.adjustments()),
        "alerts": operations.alerts(0, list(subjects)),
        "refusals": operations.refusal_counts(0),
        "anomalies": operations.anomalies(),
        "notes": operations.notes(""),
        "audit": operations.audited(),
        "profiles": (profiles.version(), profiles.page("", _MOST), profiles.changes(0, _MOST)),
    }
