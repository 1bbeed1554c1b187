"""All records of a ledger, for comparisons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from usage_plugin.domain.open_ledger import OpenLedger

_MOST = 10_000


def contents_of_ledger(opened: OpenLedger) -> dict[str, Any]:
    """Return all records that the ports show, by kind."""
    ledger, operations, profiles = opened.ledger, opened.operations, opened.profiles
    return {
        "accounts": sorted(ledger.every_account()),
        "open": ledger.open_reservations(with_holds=True),
        "outbox": ledger.outbox(0, _MOST),
        "numbers": (ledger.snapshot([]).seq, ledger.acknowledged(), ledger.waiting()),
        "adjustments": (operations.adjustments_version(), operations.adjustments()),
        "alerts": operations.alerts(0, None),
        "refusals": (operations.refusal_counts(0), operations.refusals()),
        "anomalies": operations.anomalies(),
        "notes": operations.notes(""),
        "audit": operations.audited(),
        "profiles": (profiles.version(), profiles.page("", _MOST), profiles.changes(0, _MOST)),
    }
