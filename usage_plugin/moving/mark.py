"""The mark of a move: a note in both ledgers, without which two ledgers could count the same limits.

A ledger that has one is not used. A proxy that is started with the old YAML stops with an error that names the new one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal, NamedTuple

from usage_plugin.domain.windows import to_datetime
from usage_plugin.errors import LedgerMovedError
from usage_plugin.tracking.ledger_retry import wait_while_busy

if TYPE_CHECKING:
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.domain.operations import OperationsLog

NOTE = "move"

State = Literal["leaving", "moved", "arriving"]
"""`leaving`: the source of a move that has not ended. `moved`: the source of one that has. `arriving`: the target of
one that has not; that of one that has ended has no mark."""


class Mark(NamedTuple):
    """The mark of a ledger.

    Attributes:
        state: see `State`.
        writer: identifies the other ledger.
        place: the other ledger's location, for people.
        config: the YAML of the other ledger.
        at: the time of the mark, in microseconds since 1970 UTC.
    """

    state: State
    writer: str
    place: str
    config: str
    at: int


def read_mark(operations: OperationsLog) -> Mark | None:
    """Return the mark of a ledger; None if it may be used."""
    text = operations.notes(NOTE).get(NOTE)
    return None if text is None else Mark(**json.loads(text))


def write_mark(operations: OperationsLog, mark: Mark | None) -> None:
    """Replace the mark of a ledger; None removes it."""
    text = None if mark is None else json.dumps(mark._asdict())
    wait_while_busy(lambda: operations.note(NOTE, text))


def check_not_moved(opened: OpenLedger) -> None:
    """Check that a ledger may be used.

    Raises:
        LedgerMovedError: It was moved, or is being moved.
    """
    mark = read_mark(opened.operations)
    if mark is None:
        return
    here = opened.ledger.location
    since = f"{to_datetime(mark.at):%Y-%m-%d %H:%M} UTC"
    if mark.state == "moved":
        raise LedgerMovedError(
            f"The ledger {here} was moved to {mark.place} at {since}, and is not used any more.",
            hint=f"Use the YAML {mark.config}. To come back, run `usage-plugin move-ledger` from it to this one.",
        )
    if mark.state == "leaving":
        raise LedgerMovedError(
            f"The ledger {here} is being moved to {mark.place} since {since}.",
            hint=f"`usage-plugin move-ledger --to {mark.config}` completes the move; with --undo this ledger stays.",
        )
    raise LedgerMovedError(
        f"The ledger {here} is not complete: the move of {mark.place} to it began at {since}, and did not end.",
        hint=f"Complete it with `usage-plugin move-ledger` from the YAML {mark.config} to this one.",
    )
