"""Records of a name in the operations log on the server: find them for an export, and erase them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from usage_plugin.domain.erasure import Erasable, NameMatches
from usage_plugin.domain.subjects import split_subject
from usage_plugin.ledgers.valkey.batch import encode
from usage_plugin.ledgers.valkey.operations import adjustment_of, alert_of, refusal_count_of, refusal_field
from usage_plugin.ledgers.valkey.records import DIGITS, pairs_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usage_plugin.ledgers.valkey.server import ValkeyServer

_SLICE = 500


class ValkeyErasableRecords(Erasable):
    """The records of an operations log. Each verb scans all of them, page after page."""

    def __init__(self, server: ValkeyServer) -> None:
        """Use a connection."""
        self._server = server

    def find(self, name: str) -> NameMatches:
        """List all alerts, refusals and adjustments whose subject contains this name."""
        # In JSON with its quotes, so that it does not match a part of another name.
        written = json.dumps(name, ensure_ascii=False).encode(errors="surrogatepass")
        acknowledgements, ends = dict(self._all("acknowledgements")), dict(self._all("adjustments-ended"))
        alerts = (alert_of(number, record, acknowledgements.get(number)) for number, record in self._all("alerts"))
        counts = (refusal_count_of(field, times) for field, times in self._all("refusal-counts"))
        adjustments = (adjustment_of(number, record, ends.get(number)) for number, record in self._all("adjustments"))
        return NameMatches(
            alerts=sorted(one for one in alerts if name in split_subject(one.key.subject)),
            refusal_counts=sorted(one for one in counts if name in split_subject(one.subject)),
            refusals=[
                (ref.decode(), value[DIGITS:].decode()) for ref, value in self._all("refusals") if written in value
            ],
            adjustments=sorted(one for one in adjustments if name in split_subject(one.subject)),
        )

    def _all(self, key: str) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over the fields of a hash; some may come twice while others are written."""
        seen: set[bytes] = set()
        cursor = 0
        while True:
            reply, page = self._server.command("HSCAN", self._server.record_keys[key], cursor, "COUNT", _SLICE)
            for field, value in pairs_in(page).items():
                if field not in seen:
                    seen.add(field)
                    yield field, value
            cursor = int(reply)
            if not cursor:
                return

    def erase(self, matches: NameMatches) -> None:
        """Delete all matches in slices."""
        for verb, keys in (
            ("erase_alerts", [str(alert.number) for alert in matches.alerts]),
            ("erase_refusal_counts", list(map(refusal_field, matches.refusal_counts))),
            ("erase_refusals", [ref for ref, _ in matches.refusals]),
            ("erase_adjustments", [str(one.number) for one in matches.adjustments]),
        ):
            for at in range(0, len(keys), _SLICE):
                self._server.write_records(*encode(verb, *keys[at : at + _SLICE]))

    def compact(self) -> None:
        """Do nothing: the core of the same server rewrites the files for all."""
