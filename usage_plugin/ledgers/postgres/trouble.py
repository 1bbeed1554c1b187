"""Settings of the server that endanger the ledger, in words, each with its remedy."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.ledgers.postgres.ledger_failures import FAILURES
from usage_plugin.postgres.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usage_plugin.postgres.address import Address

_OLDEST = 130_000
_MOST_USED = 0.8
"""The part of the connections that may be in use without a warning."""
_SHORTEST_TIMEOUT_MS = 5_000

_SETTINGS = """
    SELECT
        current_setting('server_version_num')::integer,
        pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean,
        current_setting('fsync')::boolean,
        current_setting('full_page_writes')::boolean,
        current_setting('synchronous_commit'),
        current_setting('synchronous_standby_names') = ''
            AND EXISTS (SELECT FROM pg_stat_replication WHERE application_name NOT LIKE 'pg_%'),
        (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' OR backend_type IS NULL),
        current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer,
        (SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout')
"""


class _Settings(NamedTuple):
    version: int
    is_read_only: bool
    has_fsync: bool
    has_full_pages: bool
    synchronous_commit: str
    is_followed_asynchronously: bool
    used: int
    usable: int
    timeout: int


def trouble(address: Address, schema: str) -> list[str]:
    """Return the settings that endanger the ledger, as sentences.

    Raises:
        LedgerError: the server cannot be reached.
    """
    with closing(Server(address, schema, FAILURES)) as server:
        return [f"{server.location}: {sentence}" for sentence in _sentences(_Settings(*server.one(_SETTINGS)))]


def _sentences(found: _Settings) -> Iterator[str]:
    if found.version < _OLDEST:
        yield (
            f"expected PostgreSQL {_OLDEST // 10_000} or newer; found {found.version // 10_000}."
            " Use a version that PostgreSQL's developers still maintain."
        )
    if found.is_read_only:
        yield (
            "it accepts no changes: it is a replica, or default_transaction_read_only is on."
            " Name all hosts in the URL, with ?target_session_attrs=read-write."
        )
    if not found.has_fsync:
        yield "fsync is off, so a power cut can destroy the whole database. Run: ALTER SYSTEM SET fsync = on."
    if not found.has_full_pages:
        yield (
            "full_page_writes is off, so a power cut can damage the tables beyond repair."
            " Run: ALTER SYSTEM SET full_page_writes = on."
        )
    if found.synchronous_commit == "off":
        yield (
            "synchronous_commit is off, so a crash loses the last changes, for up to 0.6 s by default. Workers that"
            " still run send theirs again; what a worker and the server lose at once is lost."
            " To lose nothing, run: ALTER ROLE … SET synchronous_commit = on."
        )
    if found.is_followed_asynchronously:
        yield (
            "its replicas follow asynchronously, so a failover loses the last changes. Workers that still run send"
            " theirs again. To lose nothing, set synchronous_standby_names."
        )
    if found.used > _MOST_USED * found.usable:
        yield (
            f"{found.used} of {found.usable} connections are in use; each worker needs up to five."
            " Raise max_connections, or connect through a pooler such as PgBouncer."
        )
    if 0 < found.timeout < _SHORTEST_TIMEOUT_MS:
        yield (
            f"statement_timeout is {found.timeout} ms, which stops housekeeping on a busy server."
            f" Run: ALTER ROLE … SET statement_timeout = '{_SHORTEST_TIMEOUT_MS // 1000}s', or more."
        )
