"""Records of a name in the ledger's file: find them for an export, and erase them from the file completely."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from usage_plugin.domain.erasure import Erasable, NameMatches
from usage_plugin.domain.ledger import Account, AccountKey, Balance, OutboxEntry
from usage_plugin.domain.operations import Adjustment, AlertKey, NotedAlert, RefusalCount
from usage_plugin.domain.subjects import SEPARATOR
from usage_plugin.errors import LedgerBusyError
from usage_plugin.ledgers.sqlite.file import translated

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usage_plugin.ledgers.sqlite.file import LedgerFile

_SLICE = 500
_BUSY_TIMEOUT_MS = 10_000
_IS_NAMED = f"instr(char({ord(SEPARATOR)}) || subject || char({ord(SEPARATOR)}), ?) > 0"


class SqliteErasable(Erasable):
    """The records in an open file. Each verb scans whole tables, so none is for the request path."""

    def __init__(self, file: LedgerFile) -> None:
        """Use an open file."""
        self._file = file
        self._path, self._execute, self._writing = file.path, file.execute, file.writing

    def find(self, name: str) -> NameMatches:
        """List all records whose subject contains this name, in one snapshot of the file."""
        named = (f"{SEPARATOR}{name}{SEPARATOR}",)
        # In JSON with its quotes, so that it does not match a part of another name.
        written = (json.dumps(name, ensure_ascii=False),)
        with self._file.reading():
            return NameMatches(
                accounts=[
                    Account(AccountKey(*key), end, Balance(spent, reserved))
                    for *key, end, spent, reserved in self._execute(
                        "SELECT limit_key, window_start, subject, window_end, spent, reserved FROM accounts"
                        f" WHERE {_IS_NAMED}",
                        named,
                    )
                ],
                alerts=[
                    NotedAlert(number, AlertKey(*key), at, details, seen_at, seen_by)
                    for number, *key, at, details, seen_at, seen_by in self._execute(
                        "SELECT number, limit_key, subject, window_start, threshold, at, details, acknowledged_at,"
                        f" acknowledged_by FROM alerts WHERE {_IS_NAMED}",
                        named,
                    )
                ],
                refusal_counts=[
                    RefusalCount(*row)
                    for row in self._execute(
                        f"SELECT minute, limit_name, subject, reason, count FROM refusal_counts WHERE {_IS_NAMED}",
                        named,
                    )
                ],
                refusals=[
                    (ref, details)
                    for ref, details in self._execute(
                        "SELECT ref, details FROM refusals WHERE instr(details, ?) > 0", written
                    )
                ],
                adjustments=[
                    Adjustment(*row)
                    for row in self._execute(
                        "SELECT number, limit_name, subject, amount, before, made_at, until, actor, reason, ended_at"
                        f" FROM adjustments WHERE {_IS_NAMED}",
                        named,
                    )
                ],
                entries=[
                    OutboxEntry(*row)
                    for row in self._execute(
                        "SELECT seq, event FROM outbox WHERE instr(event, ?) > 0"
                        " AND seq <= (SELECT acknowledged FROM ledger)",
                        written,
                    )
                ],
            )

    def erase(self, matches: NameMatches) -> None:
        """Delete all matches in slices, and the rows left by ended reservations."""
        self._erase(
            "DELETE FROM accounts WHERE limit_key = ? AND window_start = ? AND subject = ? AND reserved = 0",
            [account.key for account in matches.accounts],
        )
        self._erase("DELETE FROM alerts WHERE number = ?", [(alert.number,) for alert in matches.alerts])
        self._erase(
            "DELETE FROM refusal_counts WHERE minute = ? AND limit_name = ? AND subject = ? AND reason = ?",
            [count[:4] for count in matches.refusal_counts],
        )
        self._erase("DELETE FROM refusals WHERE ref = ?", [(ref,) for ref, _ in matches.refusals])
        self._erase("DELETE FROM adjustments WHERE number = ?", [(one.number,) for one in matches.adjustments])
        # The number stays, so that it is never used again.
        self._erase("UPDATE outbox SET event = '' WHERE seq = ?", [(entry.seq,) for entry in matches.entries])
        with self._writing():
            self._execute("UPDATE ledger SET adjustments_version = adjustments_version + 1")
            self._execute("DELETE FROM reservations WHERE NOT open")

    def _erase(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        rows = list(rows)
        for start in range(0, len(rows), _SLICE):
            with self._writing():
                self._file.connection.executemany(statement, rows[start : start + _SLICE])

    def compact(self) -> None:
        """Rewrite the file and empty its log; wait for other writers."""
        with translated(self._path):
            self._execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
            try:
                self._execute("VACUUM")
                (is_busy, _, _) = self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._execute("PRAGMA busy_timeout = 0")
        if is_busy:
            raise LedgerBusyError(f"{self._path} is being read, so its log could not be emptied.")
