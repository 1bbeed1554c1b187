"""Records of a name on the server: find them for an export, and erase them from the tables.

Copies in the server's write-ahead log, in its replicas and in its backups are not erased.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from usage_plugin.domain.erasure import Erasable, NameMatches
from usage_plugin.domain.ledger import Account, AccountKey, Balance, OutboxEntry
from usage_plugin.domain.operations import Adjustment, AlertKey, NotedAlert, RefusalCount
from usage_plugin.domain.subjects import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.postgres.server import Server

_SLICE = 500
_COMPACTING = 3_600.0
_IS_NAMED = f"strpos(chr({ord(SEPARATOR)}) || subject || chr({ord(SEPARATOR)}), %s) > 0"
_TABLES = ("accounts", "requests", "outbox", "refusal_counts", "refusals", "adjustments", "alerts", "profiles")
"""The tables with names of persons."""


class PostgresErasable(Erasable):
    """The records on a server. Each verb scans whole tables, so none is for the request path."""

    def __init__(self, server: Server) -> None:
        """Use an open connection."""
        self._server = server
        self._schema = server.schema

    def find(self, name: str) -> NameMatches:
        """List all records whose subject contains this name, at one instant."""
        named = f"{SEPARATOR}{name}{SEPARATOR}"
        # In JSON with its quotes, so that it does not match a part of another name.
        written = json.dumps(name, ensure_ascii=False)
        with self._server.reading():
            return NameMatches(
                accounts=[
                    Account(AccountKey(*key), end, Balance(spent, reserved))
                    for *key, end, spent, reserved in self._rows(
                        "limit_key, window_start, subject, window_end, spent, reserved", "accounts", _IS_NAMED, named
                    )
                ],
                alerts=[
                    NotedAlert(number, AlertKey(*key), at, details, seen_at, seen_by)
                    for number, *key, at, details, seen_at, seen_by in self._rows(
                        "number, limit_key, subject, window_start, threshold, at, details, acknowledged_at,"
                        " acknowledged_by",
                        "alerts",
                        _IS_NAMED,
                        named,
                    )
                ],
                refusal_counts=[
                    RefusalCount(*row)
                    for row in self._rows(
                        "minute, limit_name, subject, reason, count", "refusal_counts", _IS_NAMED, named
                    )
                ],
                refusals=[
                    (ref, details)
                    for ref, details in self._rows("ref, details", "refusals", "strpos(details, %s) > 0", written)
                ],
                adjustments=[
                    Adjustment(*row)
                    for row in self._rows(
                        "number, limit_name, subject, amount, before, made_at, until, actor, reason, ended_at",
                        "adjustments",
                        _IS_NAMED,
                        named,
                    )
                ],
                entries=[
                    OutboxEntry(*row)
                    for row in self._rows(
                        "seq, event",
                        "outbox",
                        f"strpos(event, %s) > 0 AND seq <= (SELECT acknowledged FROM {self._schema}.ledger)",
                        written,
                    )
                ],
            )

    def _rows(self, columns: str, table: str, where: str, value: str) -> Sequence[Any]:
        return self._server.read(f"SELECT {columns} FROM {self._schema}.{table} WHERE {where}", (value,)).fetchall()

    def erase(self, matches: NameMatches) -> None:
        """Delete all matches, in slices."""
        self._erase(
            "DELETE FROM {schema}.accounts AS one USING unnest(%s::bigint[], %s::bigint[], %s::text[])"
            " AS old (limit_key, window_start, subject) WHERE (one.limit_key, one.window_start, one.subject)"
            " = (old.limit_key, old.window_start, old.subject) AND one.reserved = 0",
            [account.key for account in matches.accounts],
        )
        self._erase(
            "DELETE FROM {schema}.alerts WHERE number = ANY (%s)", [(alert.number,) for alert in matches.alerts]
        )
        self._erase(
            "DELETE FROM {schema}.refusal_counts AS one USING unnest(%s::bigint[], %s::text[], %s::text[], %s::text[])"
            " AS old (minute, limit_name, subject, reason) WHERE (one.minute, one.limit_name, one.subject, one.reason)"
            " = (old.minute, old.limit_name, old.subject, old.reason)",
            [count[:4] for count in matches.refusal_counts],
        )
        self._erase("DELETE FROM {schema}.refusals WHERE ref = ANY (%s)", [(ref,) for ref, _ in matches.refusals])
        self._erase(
            "DELETE FROM {schema}.adjustments WHERE number = ANY (%s)", [(one.number,) for one in matches.adjustments]
        )
        # The number stays, so that it is never used again.
        self._erase(
            "UPDATE {schema}.outbox SET event = '' WHERE seq = ANY (%s)", [(entry.seq,) for entry in matches.entries]
        )
        self._server.run(f"UPDATE {self._schema}.ledger SET adjustments_version = adjustments_version + 1")

    def _erase(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        for start in range(0, len(rows), _SLICE):
            columns = [list(column) for column in zip(*rows[start : start + _SLICE], strict=True)]
            self._server.run(statement.replace("{schema}", self._schema), columns)

    def compact(self) -> None:
        """Rewrite the tables with names; others wait for each in turn."""
        for table in _TABLES:
            self._server.run_alone(f"VACUUM (FULL) {self._schema}.{table}", patience=_COMPACTING)
