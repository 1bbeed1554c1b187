"""The operations log in the ledger's file: refusals, anomalies, alerts, adjustments, notes and the audit."""

from __future__ import annotations

import json
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
from usage_plugin.ledgers.sqlite.file import translated

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from usage_plugin.ledgers.sqlite.file import LedgerFile

KEPT_REFUSALS = 10_000
KEPT_ANOMALIES = 2_000
KEPT_REFUSAL_MINUTES = 7 * 24 * 60
OTHERS = "(others)"
_YEAR = 366 * 86_400_000_000


class SqliteOperationsLog(OperationsLog):
    """The operations log in an open file."""

    def __init__(self, file: LedgerFile) -> None:
        """Use an open file."""
        self._file = file
        self._path, self._execute, self._writing = file.path, file.execute, file.writing

    def count_refusals(self, counts: Sequence[RefusalCount], details: Sequence[tuple[str, int, str]]) -> None:
        """Add to the counts of refusals, and keep the details of the most recent ones for look-up."""
        with self._writing():
            self._file.connection.executemany(
                "INSERT INTO refusal_counts (minute, limit_name, subject, reason, count) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET count = count + excluded.count",
                counts,
            )
            self._file.connection.executemany(
                "INSERT OR REPLACE INTO refusals (ref, at, details) VALUES (?, ?, ?)", details
            )
            self._execute(
                "DELETE FROM refusals WHERE number <= (SELECT max(number) FROM refusals) - ?", (KEPT_REFUSALS,)
            )

    def refusal_counts(self, since_minute: int) -> list[RefusalCount]:
        """List the refusals counted from this minute on."""
        with translated(self._path):
            rows = self._execute(
                "SELECT minute, limit_name, subject, reason, count FROM refusal_counts WHERE minute >= ?",
                (since_minute,),
            )
            return [RefusalCount(*row) for row in rows]

    def refusal(self, ref: str) -> str | None:
        """Return the details of a refusal by the ref that the client received."""
        with translated(self._path):
            row = self._execute("SELECT details FROM refusals WHERE ref = ?", (ref,)).fetchone()
            return None if row is None else str(row[0])

    def refusals(self) -> list[tuple[str, int, str]]:
        """List the kept details of refusals, oldest first."""
        with translated(self._path):
            return self._execute("SELECT ref, at, details FROM refusals ORDER BY number").fetchall()

    def count_anomalies(self, anomalies: Sequence[Anomaly]) -> None:
        """Add to the counts of anomalies; beyond 2,000 rows, new ones are counted as `(others)` of their kind."""
        with self._writing():
            (known,) = self._execute("SELECT count(*) FROM imperfections").fetchone()
            for anomaly in anomalies:
                kind, concerns, *numbers = anomaly
                key = (kind, concerns)
                if not self._execute("SELECT 1 FROM imperfections WHERE (kind, concerns) = (?, ?)", key).fetchone():
                    if known >= KEPT_ANOMALIES:
                        key = (kind, OTHERS)
                    known += 1
                self._execute(
                    "INSERT INTO imperfections (kind, concerns, times, amount, first_at, last_at)"
                    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                    " times = times + excluded.times, amount = amount + excluded.amount,"
                    " first_at = min(first_at, excluded.first_at), last_at = max(last_at, excluded.last_at)",
                    (*key, *numbers),
                )

    def anomalies(self) -> list[Anomaly]:
        """List all counted anomalies, by kind and concern."""
        with translated(self._path):
            rows = self._execute("SELECT kind, concerns, times, amount, first_at, last_at FROM imperfections")
            return [Anomaly(*row) for row in sorted(rows)]

    def alert(self, key: AlertKey, at: int, details: str = "") -> bool:
        """Record that a threshold was crossed; an existing record is found without the write lock."""
        with translated(self._path):
            noted = self._execute(
                "SELECT 1 FROM alerts WHERE (limit_key, subject, window_start, threshold) = (?, ?, ?, ?)", key
            ).fetchone()
        if noted:
            return False
        with self._writing():
            added = self._execute(
                "INSERT OR IGNORE INTO alerts (limit_key, subject, window_start, threshold, at, details)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (*key, at, details),
            )
            return added.rowcount == 1

    def keep_alert(self, alert: NotedAlert) -> None:
        """Record an alert with its number."""
        with self._writing():
            self._execute(
                "INSERT OR IGNORE INTO alerts (number, limit_key, subject, window_start, threshold, at, details,"
                " acknowledged_at, acknowledged_by) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (alert.number, *alert.key, *alert[2:]),
            )

    def alerts(self, since: int, subjects: Collection[str] | None) -> list[NotedAlert]:
        """List the recorded alerts of these subjects."""
        chosen = None if subjects is None else json.dumps(list(subjects))
        with translated(self._path):
            rows = self._execute(
                "SELECT number, limit_key, subject, window_start, threshold, at, details, acknowledged_at,"
                " acknowledged_by FROM alerts WHERE at >= ?1"
                " AND (?2 IS NULL OR subject IN (SELECT value FROM json_each(?2))) ORDER BY at DESC, number DESC",
                (since, chosen),
            )
            return [NotedAlert(number, AlertKey(*rest[:4]), *rest[4:]) for number, *rest in rows]

    def acknowledge_alert(self, number: int, at: int, actor: str) -> bool:
        """Record the person that acknowledged an alert."""
        with self._writing():
            noted = self._execute(
                "UPDATE alerts SET acknowledged_at = ?, acknowledged_by = ?"
                " WHERE number = ? AND acknowledged_at IS NULL",
                (at, actor, number),
            )
            return noted.rowcount == 1

    def adjust(self, adjustment: Adjustment) -> Adjustment:
        """Apply an adjustment."""
        with self._writing():
            added = self._execute(
                "INSERT INTO adjustments"
                " (number, limit_name, subject, amount, before, made_at, until, actor, reason, ended_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (number) DO NOTHING",
                (adjustment.number or None, *adjustment[1:]),
            )
            self._execute("UPDATE ledger SET adjustments_version = adjustments_version + 1")
            return adjustment._replace(number=adjustment.number or added.lastrowid or 0)

    def end_adjustment(self, number: int, at: int) -> bool:
        """End an adjustment early."""
        with self._writing():
            ended = self._execute(
                "UPDATE adjustments SET ended_at = ?1 WHERE number = ?2 AND ended_at IS NULL AND until > ?1",
                (at, number),
            )
            if ended.rowcount:
                self._execute("UPDATE ledger SET adjustments_version = adjustments_version + 1")
            return ended.rowcount == 1

    def adjustments(self, since: int | None = None) -> list[Adjustment]:
        """List the adjustments in force at `since` or later; all stored ones if None."""
        with translated(self._path):
            rows = self._execute(
                "SELECT number, limit_name, subject, amount, before, made_at, until, actor, reason, ended_at"
                " FROM adjustments WHERE ?1 IS NULL OR coalesce(ended_at, until) > ?1 ORDER BY number",
                (since,),
            )
            return [Adjustment(*row) for row in rows]

    def adjustments_version(self) -> int:
        """Return the number that changes when an adjustment is made or ended."""
        with translated(self._path):
            (version,) = self._execute("SELECT adjustments_version FROM ledger").fetchone()
            return int(version)

    def note(self, name: str, text: str | None) -> None:
        """Store a short text under a name, or delete it if None."""
        with self._writing():
            if text is None:
                self._execute("DELETE FROM notes WHERE name = ?", (name,))
            else:
                self._execute("INSERT OR REPLACE INTO notes (name, text) VALUES (?, ?)", (name, text))

    def notes(self, prefix: str) -> dict[str, str]:
        """Return the notes whose names start with a prefix."""
        with translated(self._path):
            rows = self._execute(
                "SELECT name, text FROM notes WHERE substr(name, 1, length(?1)) = ?1 ORDER BY name", (prefix,)
            )
            return dict(rows.fetchall())

    def audit(self, entry: AuditEntry) -> None:
        """Append an entry to the audit."""
        with self._writing():
            self._execute(
                "INSERT INTO audit (number, at, action, subject, actor, reason, counts) VALUES (?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (number) DO NOTHING",
                (entry.number or None, *entry[1:-1], json.dumps(dict(entry.counts))),
            )

    def audited(self) -> list[AuditEntry]:
        """List the entries of the audit, oldest first."""
        with translated(self._path):
            rows = self._execute("SELECT number, at, action, subject, actor, reason, counts FROM audit ORDER BY number")
            return [AuditEntry._make((*row, json.loads(counts))) for *row, counts in rows]

    def maintain(self, now: int) -> None:
        """Delete a slice of the records whose retention is over."""
        with translated(self._path):
            delete_older = self._file.delete_older
            delete_older("refusal_counts", "minute", now // 60_000_000 - KEPT_REFUSAL_MINUTES)
            delete_older("alerts", "at", now - _YEAR)
            delete_older("imperfections", "last_at", now - _YEAR)
            # The audit promises adjustments for a year after they could be in force.
            delete_older("adjustments", "until", now - _YEAR)
