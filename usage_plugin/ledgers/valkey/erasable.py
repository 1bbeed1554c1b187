"""Records of a name on a Valkey server: find them for an export, and erase them from the server and its files."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from usage_plugin.domain.erasure import Erasable, NameMatches
from usage_plugin.domain.subjects import split_subject
from usage_plugin.encoding import encode_record
from usage_plugin.errors import LedgerError
from usage_plugin.ledgers.valkey import batch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usage_plugin.domain.ledger import OutboxEntry
    from usage_plugin.ledgers.valkey.ledger import ValkeyLedger
    from usage_plugin.ledgers.valkey.server import ValkeyServer

_SLICE = 500
_PAUSE = 0.05
_REWRITE_TIMEOUT = 600.0


class ValkeyErasable(Erasable):
    """The records of a core on a server."""

    def __init__(self, server: ValkeyServer, ledger: ValkeyLedger) -> None:
        """Use the connection of a ledger."""
        self._server = server
        self._ledger = ledger

    def find(self, name: str) -> NameMatches:
        """List all accounts and acknowledged entries that contain this name, page after page."""
        # In JSON with its quotes, so that it does not match a part of another name.
        written = json.dumps(name, ensure_ascii=False)
        return NameMatches(
            accounts=[one for one in self._ledger.every_account() if name in split_subject(one.key.subject)],
            entries=[entry for entry in self._acknowledged_entries() if written in entry.event],
        )

    def _acknowledged_entries(self) -> Iterator[OutboxEntry]:
        last, after = self._ledger.acknowledged(), 0
        while page := self._ledger.outbox(after, _SLICE):
            for entry in page:
                if entry.seq > last:
                    return
                yield entry
            after = page[-1].seq

    def erase(self, matches: NameMatches) -> None:
        """Delete all matches in slices; an account with a hold stays."""
        self._server.check_term()
        fields = [batch.field_of(account.key) for account in matches.accounts]
        numbers = [str(entry.seq) for entry in matches.entries]
        for verb, texts in ("erase_accounts", fields), ("erase_entries", numbers):
            for at in range(0, len(texts), _SLICE):
                self._server.run(*batch.encode(verb, encode_record(texts[at : at + _SLICE])))
        if numbers:
            self._server.run(*batch.encode("rewrite_outbox"))

    def compact(self) -> None:
        """Rewrite the append-only file and the snapshot, and wait until they are written.

        Raises:
            LedgerError: the server could not write them.
        """
        self._server.check_term()
        self._rewrite("BGREWRITEAOF", "aof_rewrite")
        if self._server.information().get("rdb_saves", "1") != "0":
            self._rewrite("BGSAVE", "rdb_bgsave")

    def _rewrite(self, command: str, name: str) -> None:
        self._wait(name)
        self._server.command(command)
        state = self._wait(name)
        if (
            state.get({"aof_rewrite": "aof_last_bgrewrite_status", "rdb_bgsave": "rdb_last_bgsave_status"}[name])
            != "ok"
        ):
            raise LedgerError(f"The Valkey server at {self._server.location} could not rewrite its files ({command}).")

    def _wait(self, name: str) -> dict[str, str]:
        deadline = time.monotonic() + _REWRITE_TIMEOUT
        while True:
            state = self._server.information()
            if state.get(f"{name}_in_progress") == "0" and state.get(f"{name}_scheduled", "0") == "0":
                return state
            if time.monotonic() > deadline:
                raise LedgerError(f"The Valkey server at {self._server.location} is still rewriting its files.")
            time.sleep(_PAUSE)
