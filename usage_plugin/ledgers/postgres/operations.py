"""The operations log on the server: refusals, anomalies, alerts, adjustments, notes and the audit."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from usage_plugin.domain.operations import (
    Adjustment,
    AlertKey,
    Anomaly,
    AuditEntry,
    NotedAlert,
    OperationsLog,
    RefusalCount,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from usage_plugin.postgres.server import Server

_KEPT_REFUSALS = 10_000
_KEPT_ANOMALIES = 2_000
_KEPT_REFUSAL_MINUTES = 7 * 24 * 60
_OTHERS = "(others)"
_YEAR = 366 * 86_400_000_000
_SLICE = 500


class PostgresOperationsLog(OperationsLog):
    """The operations log on a server."""

    def __init__(self, server: Server) -> None:
        """Use an open connection."""
        self._server = server
        self._schema = server.schema

    def count_refusals(self, counts: Sequence[RefusalCount], details: Sequence[tuple[str, int, str]]) -> None:
        """Add to the counts of refusals, and keep the details of the most recent ones for look-up."""
        added: Counter[tuple[int, str, str, str]] = Counter()
        for minute, limit, subject, reason, times in counts:
            added[minute, limit, subject, reason] += times
        newest = {ref: (at, text) for ref, at, text in details}
        with self._server.writing():
            # All in the order of their key: two workers that add the same rows must not wait for each other.
            self._server.run(
                f"INSERT INTO {self._schema}.refusal_counts AS counted (minute, limit_name, subject, reason, count)"
                " SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::bigint[])"
                " ON CONFLICT (minute, limit_name, subject, reason)"
                " DO UPDATE SET count = counted.count + excluded.count",
                _columns([(*key, times) for key, times in sorted(added.items())], 5),
            )
            self._server.run(
                f"INSERT INTO {self._schema}.refusals (ref, at, details)"
                " SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[])"
                " ON CONFLICT (ref) DO UPDATE SET (at, details) = (excluded.at, excluded.details)",
                _columns([(ref, *row) for ref, row in sorted(newest.items())], 3),
            )
            self._server.run(
                f"DELETE FROM {self._schema}.refusals WHERE number <="
                f" (SELECT max(number) FROM {self._schema}.refusals) - %s",
                (_KEPT_REFUSALS,),
            )

    def refusal_counts(self, since_minute: int) -> list[RefusalCount]:
        """List the refusals counted from this minute on."""
        rows = self._server.read(
            f"SELECT minute, limit_name, subject, reason, count FROM {self._schema}.refusal_counts WHERE minute >= %s"
            " ORDER BY minute, limit_name, subject, reason",
            (since_minute,),
        )
        return [RefusalCount(*row) for row in rows]

    def refusal(self, ref: str) -> str | None:
        """Return the details of a refusal by the ref that the client received."""
        row = self._server.one(f"SELECT details FROM {self._schema}.refusals WHERE ref = %s", (ref,))
        return None if row is None else str(row[0])

    def refusals(self) -> list[tuple[str, int, str]]:
        """List the kept details of refusals, oldest first."""
        rows = self._server.read(f"SELECT ref, at, details FROM {self._schema}.refusals ORDER BY number")
        return [(ref, at, details) for ref, at, details in rows]

    def count_anomalies(self, anomalies: Sequence[Anomaly]) -> None:
        """Add to the counts of anomalies; beyond 2,000 rows, new ones are counted as `(others)` of their kind."""
        with self._server.writing():
            known = set(self._server.read(f"SELECT kind, concerns FROM {self._schema}.anomalies").fetchall())
            sums: dict[tuple[str, str], Anomaly] = {}
            for anomaly in anomalies:
                key = (anomaly.kind, anomaly.concerns)
                if key not in known and len(known) >= _KEPT_ANOMALIES:
                    key = (anomaly.kind, _OTHERS)
                known.add(key)
                sums[key] = _sum(sums[key], anomaly) if key in sums else anomaly._replace(concerns=key[1])
            self._server.run(
                f"INSERT INTO {self._schema}.anomalies AS counted"
                " (kind, concerns, times, amount, first_at, last_at) SELECT * FROM"
                " unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])"
                " ON CONFLICT (kind, concerns) DO UPDATE SET"
                " times = counted.times + excluded.times, amount = counted.amount + excluded.amount,"
                " first_at = least(counted.first_at, excluded.first_at),"
                " last_at = greatest(counted.last_at, excluded.last_at)",
                _columns(sorted(sums.values()), 6),
            )

    def anomalies(self) -> list[Anomaly]:
        """List all counted anomalies, by kind and concern."""
        rows = self._server.read(
            f"SELECT kind, concerns, times, amount, first_at, last_at FROM {self._schema}.anomalies"
            " ORDER BY kind, concerns"
        )
        return [Anomaly(*row) for row in rows]

    def alert(self, key: AlertKey, at: int, details: str = "") -> bool:
        """Record that a threshold was crossed; only the first worker adds the row."""
        added = self._server.run(
            f"INSERT INTO {self._schema}.alerts (limit_key, subject, window_start, threshold, at, details)"
            # The first condition saves a number and a dead row for each repetition.
            f" SELECT v.* FROM (VALUES (%s::bigint, %s::text, %s::bigint, %s::bigint, %s::bigint, %s::text))"
            " AS v (limit_key, subject, window_start, threshold, at, details)"
            f" WHERE NOT EXISTS (SELECT FROM {self._schema}.alerts AS noted WHERE"
            " (noted.limit_key, noted.subject, noted.window_start, noted.threshold)"
            " = (v.limit_key, v.subject, v.window_start, v.threshold)) ON CONFLICT DO NOTHING",
            (*key, at, details),
        )
        return added.rowcount == 1

    def keep_alert(self, alert: NotedAlert) -> None:
        """Record an alert with its number."""
        with self._server.writing():
            self._keep(
                "alerts",
                "limit_key, subject, window_start, threshold, at, details, acknowledged_at, acknowledged_by",
                (alert.number, *alert.key, *alert[2:]),
            )

    def alerts(self, since: int, subjects: Collection[str] | None) -> list[NotedAlert]:
        """List the recorded alerts of these subjects."""
        rows = self._server.read(
            "SELECT number, limit_key, subject, window_start, threshold, at, details, acknowledged_at, acknowledged_by"
            f" FROM {self._schema}.alerts WHERE at >= %s AND (%s OR subject = ANY (%s::text[]))"
            " ORDER BY at DESC, number DESC",
            (since, subjects is None, list(subjects or ())),
        )
        return [NotedAlert(number, AlertKey(*rest[:4]), *rest[4:]) for number, *rest in rows]

    def acknowledge_alert(self, number: int, at: int, actor: str) -> bool:
        """Record the person that acknowledged an alert."""
        noted = self._server.run(
            f"UPDATE {self._schema}.alerts SET acknowledged_at = %s, acknowledged_by = %s"
            " WHERE number = %s AND acknowledged_at IS NULL",
            (at, actor, number),
        )
        return noted.rowcount == 1

    def adjust(self, adjustment: Adjustment) -> Adjustment:
        """Apply an adjustment."""
        with self._server.writing():
            # First the version: it lets one adjustment wait for another, so that their numbers have no gap.
            self._count_adjustment()
            columns = "limit_name, subject, amount, before, made_at, until, actor, reason, ended_at"
            if adjustment.number:
                self._keep("adjustments", columns, adjustment)
                return adjustment
            (number,) = self._server.one(
                f"INSERT INTO {self._schema}.adjustments ({columns})"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING number",
                adjustment[1:],
            )
        return adjustment._replace(number=number)

    def _keep(self, table: str, columns: str, row: Sequence[object]) -> None:
        """Insert a row with the number of another log, unless it is known, and have the next number follow it."""
        places = ", ".join(["%s"] * len(row))
        self._server.run(
            f"INSERT INTO {self._schema}.{table} (number, {columns}) OVERRIDING SYSTEM VALUE VALUES ({places})"
            " ON CONFLICT DO NOTHING",
            row,
        )
        sequence = f"{self._schema}.{table}_number_seq"
        self._server.run(
            f"SELECT setval('{sequence}', greatest(last_value, %s)) FROM {sequence}"
            # Only where it is behind: for a new sequence, 1 is the next number, and not the last.
            " WHERE last_value < %s OR NOT is_called",
            (row[0], row[0]),
        )

    def end_adjustment(self, number: int, at: int) -> bool:
        """End an adjustment early."""
        with self._server.writing():
            ended = self._server.run(
                f"UPDATE {self._schema}.adjustments SET ended_at = %s"
                " WHERE number = %s AND ended_at IS NULL AND until > %s",
                (at, number, at),
            ).rowcount
            if ended:
                self._count_adjustment()
        return ended == 1

    def _count_adjustment(self) -> None:
        self._server.run(f"UPDATE {self._schema}.ledger SET adjustments_version = adjustments_version + 1")

    def adjustments(self, since: int | None = None) -> list[Adjustment]:
        """List the adjustments in force at `since` or later; all stored ones if None."""
        rows = self._server.read(
            "SELECT number, limit_name, subject, amount, before, made_at, until, actor, reason, ended_at"
            f" FROM {self._schema}.adjustments"
            " WHERE %s::bigint IS NULL OR coalesce(ended_at, until) > %s::bigint ORDER BY number",
            (since, since),
        )
        return [Adjustment(*row) for row in rows]

    def adjustments_version(self) -> int:
        """Return the number that changes when an adjustment is made or ended."""
        (version,) = self._server.one(f"SELECT adjustments_version FROM {self._schema}.ledger")
        return int(version)

    def note(self, name: str, text: str | None) -> None:
        """Store a short text under a name, or delete it if None."""
        if text is None:
            self._server.run(f"DELETE FROM {self._schema}.notes WHERE name = %s", (name,))
        else:
            self._server.run(
                f"INSERT INTO {self._schema}.notes (name, text) VALUES (%s, %s)"
                " ON CONFLICT (name) DO UPDATE SET text = excluded.text",
                (name, text),
            )

    def notes(self, prefix: str) -> dict[str, str]:
        """Return the notes whose names start with a prefix."""
        rows = self._server.read(
            f"SELECT name, text FROM {self._schema}.notes WHERE starts_with(name, %s) ORDER BY name", (prefix,)
        )
        return dict(rows.fetchall())

    def audit(self, entry: AuditEntry) -> None:
        """Append an entry to the audit."""
        columns = "at, action, subject, actor, reason, counts"
        row = (*entry[1:-1], json.dumps(dict(entry.counts)))
        if entry.number:
            with self._server.writing():
                self._keep("audit", columns, (entry.number, *row))
            return
        self._server.run(f"INSERT INTO {self._schema}.audit ({columns}) VALUES (%s, %s, %s, %s, %s, %s)", row)

    def audited(self) -> list[AuditEntry]:
        """List the entries of the audit, oldest first."""
        rows = self._server.read(
            f"SELECT number, at, action, subject, actor, reason, counts FROM {self._schema}.audit ORDER BY number"
        )
        return [AuditEntry._make((*row, json.loads(counts))) for *row, counts in rows]

    def maintain(self, now: int) -> None:
        """Delete a slice of the records whose retention is over."""
        for table, column, before in (
            ("refusal_counts", "minute", now // 60_000_000 - _KEPT_REFUSAL_MINUTES),
            ("alerts", "at", now - _YEAR),
            ("anomalies", "last_at", now - _YEAR),
            # The audit promises adjustments for a year after they could be in force.
            ("adjustments", "until", now - _YEAR),
        ):
            self._server.delete_older(table, column, before, _SLICE)


def _sum(one: Anomaly, other: Anomaly) -> Anomaly:
    return one._replace(
        times=one.times + other.times,
        amount=one.amount + other.amount,
        first_at=min(one.first_at, other.first_at),
        last_at=max(one.last_at, other.last_at),
    )


def _columns(rows: Sequence[tuple[object, ...]], width: int) -> list[list[object]]:
    """Return rows as one list for each column, as `unnest` takes them."""
    return [[row[at] for row in rows] for at in range(width)]
