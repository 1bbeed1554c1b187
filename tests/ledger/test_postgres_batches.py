"""Verbs within a batch keep the contract of the core, as they do alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from tests.support.postgres import OnPostgres
from usage_plugin.domain.open_ledger import OpenLedger
from usage_plugin.encoding import encode_record
from usage_plugin.ledgers.postgres import PostgresLedgerBackend, PostgresOptions
from usage_plugin.ledgers.postgres.ledger import PostgresLedger
from usage_plugin.plugins.interface import BackendContext
from usage_plugin.testing import LedgerContract

IN_BATCHES = ("reserve", "settle", "record", "release", "abandon", "free")
OTHERS: list[list[Any]] = [
    ["reserve", "(refused)", "w", 5, [[99, 0, "(refused)", 1, 1, 0, 1, None]], "{}"],
    ["settle", "(refused)", [[99, 0, "(refused)", 1, 1]], "{}"],
    ["release", "(refused)"],
    ["free", "(refused)", [[99, 0, "(refused)"]]],
]
"""Verbs of another request, which is refused, so that they change nothing."""


class BatchedLedger(PostgresLedger):
    """Sends each verb of the request path in a batch, among those of another request."""

    def _call(self, verb: str, types: str, *values: object) -> Any:
        if verb not in IN_BATCHES:
            return super()._call(verb, types, *values)
        arguments = [
            json.loads(str(value)) if name == "jsonb" else value
            for name, value in zip(types.split(), values, strict=True)
        ]
        batch = encode_record([*OTHERS[:2], [verb, *arguments], *OTHERS[2:]])
        members = [str(values[1]), "w"] if verb == "reserve" else ["w"]
        answers = self._server.call(
            f"SELECT {self._server.schema}.usage_v1_do(%s::jsonb, gen_random_uuid(), 1, %s::text[], NULL)",
            batch,
            members,
        )
        assert [answers[0]["admitted"], answers[1], *answers[3:]] == [False, {"state": "unknown"}, False, False]
        return answers[2]


class BatchedBackend(PostgresLedgerBackend):
    """Opens it; it is pickled into other processes."""

    name = "batched"

    def open(self, options: PostgresOptions, context: BackendContext) -> OpenLedger:
        opened = super().open(options, context)
        assert isinstance(opened.ledger, PostgresLedger)
        return replace(opened, ledger=BatchedLedger(opened.ledger._server))


class TestBatchedLedger(OnPostgres, LedgerContract):
    backend = BatchedBackend()
    # It takes a minute, and runs in test_contract.py on the same functions.
    test_whatever_is_done_in_whatever_order = None  # type: ignore[assignment]
