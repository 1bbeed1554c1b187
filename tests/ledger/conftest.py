"""The servers on which the ledgers `postgres` and `valkey` are tested, and a new PostgreSQL ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.postgres import PostgresOpening, PostgresServer, new_schema, postgres
from tests.support.valkey import RunningServer, free_port, valkey_server
from usage_plugin.domain.ledger import Ledger
from usage_plugin.ledgers.postgres import PostgresLedgerBackend
from usage_plugin.testing.transport_repetition import OTHER, WORKER

__all__ = ["postgres"]


@pytest.fixture
def opening(postgres: PostgresServer, tmp_path: Path) -> PostgresOpening:
    return PostgresOpening(PostgresLedgerBackend(), tmp_path, {"url": postgres.url, "schema": new_schema()})


@pytest.fixture
def ledger(opening: PostgresOpening) -> Iterator[Ledger]:
    opened = opening.open()
    yield opened.ledger
    assert opened.ledger.verify() == []
    opened.close()


@pytest.fixture
def fleet(opening: PostgresOpening) -> PostgresOpening:
    """A ledger of which two workers are members."""
    with closing(opening.register()) as register:
        for name in (WORKER, OTHER):
            register.join(name, "host", "{}")
    return opening


@pytest.fixture
def bare(postgres: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    """A connection that is not the ledger's."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A suitable Valkey server, which all tests of a process share: each uses keys of its own."""
    with valkey_server(tmp_path_factory.mktemp("valkey"), port=str(free_port())) as server:
        yield server
