"""Verbs and their answers as JSON, as the functions of the server take and return them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from usage_plugin.domain.ledger import Account, AccountKey, Balance, NotSettled, Reserved, Settled
from usage_plugin.domain.ledger_batch import Free, Reassert, Record, Release, Reserve, Settle
from usage_plugin.encoding import encode_record
from usage_plugin.errors import LedgerBusyError, LedgerError, ReservationConflictError, WorkerLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from usage_plugin.domain.ledger import Charge, Hold
    from usage_plugin.domain.ledger_batch import Answer, Verb

_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
_ZERO_CHARACTER = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""U+0000 in JSON, which PostgreSQL has in no text."""


def list_of_holds(holds: Sequence[Hold]) -> list[list[Any]]:
    """Return holds as lists; a maximum that no account can pass is none."""
    return [
        [*account, end, amount, None if maximum is None or maximum > _LARGEST else maximum, if_lost, since]
        for account, end, amount, maximum, if_lost, since in holds
    ]


def list_of_charges(charges: Sequence[Charge]) -> list[list[Any]]:
    """Return charges as lists."""
    return [[*account, end, amount] for account, end, amount in charges]


def text_of(verb: Verb) -> str:
    """Return a verb as JSON.

    Raises:
        LedgerError: it can never be done. In a batch it would stop all others, with each repetition.
    """
    listed = _list_of(verb)
    text = encode_record(listed)
    if not _fits(listed):
        raise LedgerError(f"{verb.event_id!r}: expected numbers of 64 bits.")
    if "\\u0000" in text and _ZERO_CHARACTER.search(text):
        raise LedgerError(f"{verb.event_id!r}: found the character U+0000, which PostgreSQL does not store.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LedgerError(f"{verb.event_id!r}: found text that is not valid Unicode: {error.reason}.") from None
    return text


def _list_of(verb: Verb) -> list[Any]:
    if isinstance(verb, Reserve | Reassert):
        name = "reserve" if isinstance(verb, Reserve) else "reassert"
        return [name, verb.event_id, verb.worker, verb.started_at, list_of_holds(verb.holds), verb.event]
    if isinstance(verb, Settle | Record):
        name = "settle" if isinstance(verb, Settle) else "record"
        return [name, verb.event_id, list_of_charges(verb.charges), verb.event, verb.key]
    if isinstance(verb, Free):
        return ["free", verb.event_id, [[*account] for account in verb.accounts]]
    return ["release" if isinstance(verb, Release) else "abandon", verb.event_id]


def _fits(part: list[Any]) -> bool:
    """Whether all numbers of a list, and of lists in it, have at most 64 bits."""
    return all(
        _fits(one) if isinstance(one, list) else not isinstance(one, int) or _SMALLEST <= one <= _LARGEST
        for one in part
    )


def answer_of(verb: Verb, answer: Any) -> Answer:
    """Return the answer to a verb of a batch."""
    if isinstance(answer, dict):
        if "error" in answer:
            return _REFUSALS[answer["error"]]()
        if "invalid" in answer:
            return LedgerError(f"{verb.event_id!r} cannot be done: {answer['invalid']}.")
    if isinstance(verb, Reserve):
        return reserved_of(verb.event_id, verb.holds, answer)
    if isinstance(verb, Settle | Record):
        return settled_of(answer)
    return None


_REFUSALS: dict[str, Callable[[], LedgerError]] = {
    "worker": WorkerLostError,
    "closed": lambda: LedgerBusyError("The server of the ledger was replaced, and workers send again what it lacks."),
    "clock": lambda: LedgerError(
        "The clock of this host is more than 5 s off that of the ledger's server.",
        hint="Check that both hosts synchronize their clocks, for example with chrony.",
    ),
}


def reserved_of(event_id: str, holds: Sequence[Hold], answer: Any) -> Reserved | LedgerError:
    """Return the answer to a reservation."""
    if "conflict" in answer:
        return ReservationConflictError(f"{event_id} is reserved already, with other content.")
    buckets = {
        account: [
            Account(account._replace(window_start=start), end, Balance(spent, reserved))
            for start, end, spent, reserved in accounts
        ]
        for number, accounts in answer["buckets"]
        for account in [holds[number - 1].account]
    }
    return Reserved(answer["admitted"], tuple(Balance(*one) for one in answer["balances"]), buckets)


def settled_of(answer: Any) -> Settled | NotSettled:
    """Return the answer to a settlement."""
    if "state" in answer:
        return NotSettled.BEFORE if answer["state"] == "ended" else NotSettled.UNKNOWN
    balances = {AccountKey(*key): Balance(spent, reserved) for *key, spent, reserved in answer["balances"]}
    return Settled(answer["seq"], balances)
