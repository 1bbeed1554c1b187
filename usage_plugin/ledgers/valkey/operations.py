"""The operations log on the server: refusals, anomalies, alerts, adjustments, notes and the audit.

Each writing method is one verb of `records.lua`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.domain.operations import (
    Adjustment,
    AlertKey,
    Anomaly,
    AuditEntry,
    NotedAlert,
    OperationsLog,
    RefusalCount,
)
from usage_plugin.ledgers.valkey.batch import encode, text_of
from usage_plugin.ledgers.valkey.records import DIGITS, number_of, pairs_in, record_of, sortable, values_in

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from usage_plugin.ledgers.valkey.batch import Reply
    from usage_plugin.ledgers.valkey.server import ValkeyServer

_KEPT_REFUSAL_MINUTES = 7 * 24 * 60
_OTHERS = "(others)"
_YEAR = 366 * 86_400_000_000
_PAGE = 1_000


class ValkeyOperationsLog(OperationsLog):
    """The operations log on a server."""

    def __init__(self, server: ValkeyServer) -> None:
        """Use a connection."""
        self._server = server
        self._keys = server.record_keys

    def _write(self, *arguments: str) -> Reply:
        return self._server.write_records(*encode(*arguments))

    def _read(self, *arguments: str) -> Reply:
        return self._server.read_records(*encode(*arguments))

    # ── adjustments ──────────────────────────────────────────────────────────────────────────────────────────────────

    def adjust(self, adjustment: Adjustment) -> Adjustment:
        """Apply an adjustment."""
        given, *values, until, actor, reason, ended_at = adjustment
        ended = "" if ended_at is None else sortable(ended_at)
        number = self._write("adjust", str(given), sortable(until), record_of(*values, actor, reason), ended)
        return adjustment._replace(number=int(number))

    def end_adjustment(self, number: int, at: int) -> bool:
        """End an adjustment early."""
        return bool(self._write("end_adjustment", str(number), sortable(at)))

    def adjustments(self, since: int | None = None) -> list[Adjustment]:
        """List the adjustments in force at `since` or later; all stored ones if None."""
        records, ends = map(pairs_in, self._read("adjustments"))
        found = sorted(adjustment_of(number, record, ends.get(number)) for number, record in records.items())
        return [one for one in found if since is None or (one.until if one.ended_at is None else one.ended_at) > since]

    def adjustments_version(self) -> int:
        """Return the number that changes when an adjustment is made or ended."""
        return int(self._server.command("HGET", self._keys["counters"], "adjustments-version") or 0)

    # ── alerts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def alert(self, key: AlertKey, at: int, details: str = "") -> bool:
        """Record that a threshold was crossed."""
        identity = alert_identity(key)
        # Most repetitions are found without the script, which a replica would have to confirm.
        if self._server.command("HEXISTS", self._keys["alert-keys"], *encode(identity)):
            return False
        return bool(self._write("alert", "0", identity, sortable(at), details))

    def keep_alert(self, alert: NotedAlert) -> None:
        """Record an alert with its number."""
        seen = () if alert.acknowledged_at is None else (record_of(alert.acknowledged_at, alert.acknowledged_by),)
        self._write("alert", str(alert.number), alert_identity(alert.key), sortable(alert.at), alert.details, *seen)

    def alerts(self, since: int, subjects: Collection[str] | None) -> list[NotedAlert]:
        """List the recorded alerts of these subjects."""
        if subjects is None:
            records, seen = map(pairs_in, self._read("every_alert"))
            found = [alert_of(number, record, seen.get(number)) for number, record in records.items()]
            found = [one for one in found if one.at >= since]
        else:
            rows = zip(*self._read("alerts", sortable(since), *dict.fromkeys(subjects)), strict=True)
            found = [alert_of(number, record, acknowledgement) for number, record, acknowledgement in rows]
        return sorted(found, key=lambda noted: (noted.at, noted.number), reverse=True)

    def acknowledge_alert(self, number: int, at: int, actor: str) -> bool:
        """Record the person that acknowledged an alert."""
        return bool(self._write("acknowledge_alert", str(number), record_of(at, actor)))

    # ── refusals and anomalies ───────────────────────────────────────────────────────────────────────────────────────

    def count_refusals(self, counts: Sequence[RefusalCount], details: Sequence[tuple[str, int, str]]) -> None:
        """Add to the counts of refusals, and keep the details of the most recent ones for look-up."""
        arguments = [part for count in counts for part in (refusal_field(count), text_of(count.times))]
        arguments += [part for ref, at, text in details for part in (ref, sortable(at), text)]
        self._write("count_refusals", str(len(counts)), *arguments)

    def refusal_counts(self, since_minute: int) -> list[RefusalCount]:
        """List the refusals counted from this minute on, page after page."""
        found: list[RefusalCount] = []
        first = b"[" + sortable(since_minute).encode()
        while True:
            fields, values = self._server.read_records(b"refusal_counts", first, str(_PAGE).encode())
            found += map(refusal_count_of, fields, values)
            if len(fields) < _PAGE:
                return found
            first = b"(" + fields[-1]

    def refusal(self, ref: str) -> str | None:
        """Return the details of a refusal by the ref that the client received."""
        details = self._server.command("HGET", self._keys["refusals"], *encode(ref))
        return None if details is None else details[DIGITS:].decode()

    def refusals(self) -> list[tuple[str, int, str]]:
        """List the kept details of refusals, oldest first."""
        rows = zip(*self._read("refusals"), strict=True)
        return [(ref.decode(), number_of(value[:DIGITS]), value[DIGITS:].decode()) for ref, value in rows]

    def count_anomalies(self, anomalies: Sequence[Anomaly]) -> None:
        """Add to the counts of anomalies; beyond 2,000, new ones are counted as `(others)` of their kind."""
        arguments: list[str] = []
        for kind, concerns, times, amount, first_at, last_at in anomalies:
            arguments += (record_of(kind, concerns), record_of(kind, _OTHERS), text_of(times), text_of(amount))
            arguments += (sortable(first_at), sortable(last_at))
        self._write("count_anomalies", *arguments)

    def anomalies(self) -> list[Anomaly]:
        """List all counted anomalies, by kind and concern."""
        fields = pairs_in(self._server.command("HGETALL", self._keys["anomalies"]))
        found = []
        for field, times in fields.items():
            name, _, concern = field.partition(b" ")
            if name == b"times":
                amount, first, last = (fields[b"%s %s" % (name, concern)] for name in (b"amount", b"first", b"last"))
                kind, concerns = values_in(concern)
                found.append(Anomaly(kind, concerns, int(times), int(amount), number_of(first), number_of(last)))
        return sorted(found)

    # ── notes, the audit, retention ──────────────────────────────────────────────────────────────────────────────────

    def note(self, name: str, text: str | None) -> None:
        """Store a short text under a name, or delete it if None."""
        self._write("note", name, *(() if text is None else (text,)))

    def notes(self, prefix: str) -> dict[str, str]:
        """Return the notes whose names start with a prefix."""
        fields = pairs_in(self._server.command("HGETALL", self._keys["notes"]))
        notes = {name.decode(): text.decode() for name, text in sorted(fields.items())}
        return {name: text for name, text in notes.items() if name.startswith(prefix)}

    def audit(self, entry: AuditEntry) -> None:
        """Append an entry to the audit."""
        self._write("audit", str(entry.number), record_of(*entry[1:-1], dict(entry.counts)))

    def audited(self) -> list[AuditEntry]:
        """List the entries of the audit, oldest first."""
        records = pairs_in(self._server.command("HGETALL", self._keys["audit"]))
        found = [AuditEntry._make((int(number), *values_in(record))) for number, record in records.items()]
        return sorted(found, key=lambda entry: entry.number)

    def maintain(self, now: int) -> None:
        """Delete a slice of the records whose retention is over."""
        # The audit promises adjustments for a year after they could be in force.
        self._write("maintain", sortable(now // 60_000_000 - _KEPT_REFUSAL_MINUTES), sortable(now - _YEAR))


def adjustment_of(number: bytes, record: bytes, ended: bytes | None) -> Adjustment:
    """Return an adjustment as the server has it."""
    limit, subject, amount, before, made_at, actor, reason = values_in(record[DIGITS:])
    until, ended_at = number_of(record[:DIGITS]), None if ended is None else number_of(ended)
    return Adjustment(int(number), limit, subject, amount, before, made_at, until, actor, reason, ended_at)


def alert_identity(key: AlertKey) -> str:
    """Return the text under which an alert is found."""
    limit_key, subject, *numbers = key
    return "".join(map(sortable, (limit_key, *numbers))) + subject


def alert_of(number: bytes, record: bytes, acknowledgement: bytes | None) -> NotedAlert:
    """Return an alert as the server has it."""
    at, (length, _, rest) = number_of(record[:DIGITS]), record[DIGITS:].partition(b"|")
    identity, details = rest[: int(length)], rest[int(length) :].decode()
    limit_key, window_start, threshold = (number_of(identity[at : at + DIGITS]) for at in range(0, 3 * DIGITS, DIGITS))
    key = AlertKey(limit_key, identity[3 * DIGITS :].decode(), window_start, threshold)
    seen: Sequence[Any] = values_in(acknowledgement) if acknowledgement else (None, None)
    return NotedAlert(int(number), key, at, details, *seen)


def refusal_field(count: RefusalCount) -> str:
    """Return the text under which refusals are counted."""
    return sortable(count.minute) + record_of(count.limit, count.subject, count.reason)


def refusal_count_of(field: bytes, times: bytes) -> RefusalCount:
    """Return the count of such a text."""
    limit, subject, reason = values_in(field[DIGITS:])
    return RefusalCount(number_of(field[:DIGITS]), limit, subject, reason, int(times))
