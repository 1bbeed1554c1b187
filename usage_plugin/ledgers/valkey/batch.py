"""Verbs as arguments of the script `ledger.lua`, and its answers as answers of the ledger.

An account is one text: 16 hexadecimal digits of the limit, the subject, a line feed, and 16 digits of the window's
start. So the order of these texts is by limit, subject and time. All numbers are decimal texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from usage_plugin.domain.ledger import Account, AccountKey, Balance, NotSettled, Reserved, Settled
from usage_plugin.domain.ledger_batch import MOST_CLOCK_DIFFERENCE, Free, Reassert, Record, Release, Reserve, Settle
from usage_plugin.encoding import encode_record
from usage_plugin.errors import LedgerBusyError, LedgerError, ReservationConflictError, WorkerLostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usage_plugin.domain.ledger import Charge, Hold
    from usage_plugin.domain.ledger_batch import Answer, Verb

PRESENT = ""
"""Instead of an incarnation: accept the present one."""

_DIGITS = 16
_OFFSET = 2**63
_MOST = 2**63 - 1
_MOST_SECONDS = MOST_CLOCK_DIFFERENCE // 1_000_000

Reply = Any
"""An answer of the script: an array of bytes and of such arrays."""


class Header(NamedTuple):
    """The first arguments of the script.

    Attributes:
        accepted: The incarnation that the client has accepted; `PRESENT`, or "-" if it does not matter.
        term: That of a keeper that writes; empty for all others.
        sender: The name of the sender of a batch; empty for the synchronous ports.
        number: The number of the batch.
        sent_at: The time of its sender, in microseconds since 1970 UTC.
    """

    accepted: str = "-"
    term: str = ""
    sender: str = ""
    number: str = "0"
    sent_at: str = "0"


def encode(*arguments: str) -> list[bytes]:
    """Return a verb and its arguments as bytes.

    Raises:
        LedgerError: a text cannot be encoded.
    """
    try:
        return [argument.encode() for argument in arguments]
    except UnicodeError as error:
        raise LedgerError(f"A text cannot be encoded: {error}.") from error


def text_of(number: int) -> str:
    """Return a number as text.

    Raises:
        LedgerError: it has more than 64 bits.
    """
    if not -_OFFSET <= number <= _MOST:
        raise LedgerError(f"expected a number of 64 bits; found {number}") from OverflowError()
    return str(number)


def field_of(account: AccountKey) -> str:
    """Return the text of an account."""
    limit_key, window_start, subject = account
    if not 0 <= limit_key <= _MOST or not -_OFFSET <= window_start <= _MOST:
        raise LedgerError(f"expected numbers of 64 bits; found {account}") from OverflowError()
    return f"{limit_key:016x}{subject}\n{window_start + _OFFSET:016x}"


def account_of(field: bytes) -> AccountKey:
    """Return the account of a text."""
    limit_key, start = int(field[:_DIGITS], 16), int(field[-_DIGITS:], 16)
    return AccountKey(limit_key, start - _OFFSET, field[_DIGITS : -_DIGITS - 1].decode())


def range_of(limit_key: int, since: int, subject: str | None) -> tuple[bytes, bytes]:
    """Return the bounds, as of ZRANGEBYLEX, of the accounts of a limit, or of one subject under it."""
    if subject is None:
        return f"[{limit_key:016x}".encode(), f"({limit_key + 1:016x}".encode()
    first = field_of(AccountKey(limit_key, since, subject))
    first_bytes, last_bytes = encode(f"[{first}", f"({first[: -_DIGITS - 1]}\x0b")
    return first_bytes, last_bytes


def account_with_value(field: bytes, value: bytes) -> Account:
    """Return an account with its stored end and amounts."""
    end, spent, reserved = map(int, value.split())
    return Account(account_of(field), end, Balance(spent, reserved))


def balance_of(value: bytes) -> Balance:
    """Return the balance of a stored value, which is empty for an account that does not exist."""
    return Balance(*map(int, value.split()[1:]))


def charges_of(charges: Iterable[Charge]) -> str:
    """Encode charges as one flat array."""
    flat: list[str] = []
    for account, end, amount in charges:
        flat += (field_of(account), text_of(end), text_of(amount))
    return encode_record(flat)


def fields_of(accounts: Iterable[AccountKey]) -> str:
    """Encode accounts as an array."""
    return encode_record([field_of(account) for account in accounts])


def holds_in(content: bytes | str) -> list[str]:
    """Return the parts of a reservation: worker, start, and for each hold its field, end, amount and charge if lost."""
    return list(orjson.loads(content))


def arguments_of(verb: Verb) -> list[bytes]:
    """Return the arguments of a verb of the request path.

    Raises:
        LedgerError: it can never be done.
    """
    if isinstance(verb, Reserve):
        content, conditions = _content_and_conditions(verb)
        return encode("reserve", verb.event_id, content, verb.event, conditions)
    if isinstance(verb, Reassert):
        content, _ = _content_and_conditions(verb)
        return encode("reassert", verb.event_id, content, verb.event)
    if isinstance(verb, Settle | Record):
        has_event, event = ("0", "") if verb.event is None else ("1", verb.event)
        name = "settle" if isinstance(verb, Settle) else "record"
        return encode(name, verb.event_id, verb.key, has_event, event, charges_of(verb.charges))
    if isinstance(verb, Free):
        return encode("free", verb.event_id, fields_of(verb.accounts))
    return encode("release" if isinstance(verb, Release) else "abandon", verb.event_id)


def _content_and_conditions(verb: Reserve | Reassert) -> tuple[str, str]:
    content = [verb.worker, text_of(verb.started_at)]
    conditions: list[str] = []
    for account, end, amount, maximum, if_lost, since in verb.holds:
        content += (field_of(account), text_of(end), text_of(amount), text_of(if_lost))
        # A larger maximum than an account can have is none.
        conditions += (
            "" if maximum is None or maximum > _MOST else text_of(maximum),
            "" if since is None else field_of(account._replace(window_start=since)),
        )
    return encode_record(content), encode_record(conditions)


def answer_of(verb: Verb, reply: Reply) -> Answer:
    """Return the answer to a verb of the request path."""
    if isinstance(verb, Reserve | Reassert) and reply and reply[0] in _REJECTIONS:
        return _rejected(reply[0], verb.worker)
    if isinstance(verb, Reserve):
        return _reserved(verb.holds, reply, verb.event_id)
    if isinstance(verb, Settle | Record):
        return settled_of(reply)
    return None


_REJECTIONS = {b"lost", b"closed", b"clock"}


def _rejected(reason: bytes, worker: str) -> LedgerError:
    if reason == b"lost":
        return lost(worker)
    if reason == b"closed":
        return LedgerBusyError("The ledger waits until all workers have sent their reservations again.")
    return LedgerError(
        f"The clock of this host differs from that of the Valkey server by more than {_MOST_SECONDS} s.",
        hint="Synchronize the clocks of all hosts, for example with chrony.",
    )


def lost(worker: str) -> WorkerLostError:
    """Return the error for a worker that is not a member of the fleet."""
    return WorkerLostError(f"The worker {worker} is not a member of the fleet: it was declared dead, or never joined.")


def _reserved(holds: Sequence[Hold], reply: Reply, event_id: str) -> Reserved | LedgerError:
    if reply[0] == b"conflict":
        return ReservationConflictError(f"{event_id} is reserved already, with other content.")
    numbers = list(map(int, reply[1].split()))
    balances = tuple(Balance(*numbers[at : at + 2]) for at in range(0, len(numbers), 2))
    if reply[0] == b"reserved":
        return Reserved(True, balances)
    buckets: dict[AccountKey, Sequence[Account]] = {}
    for number, *values in reply[2]:
        accounts = [account_with_value(*values[at : at + 2]) for at in range(0, len(values), 2)]
        buckets[holds[int(number)].account] = accounts
    return Reserved(False, balances, buckets)


def settled_of(reply: Reply) -> Settled | NotSettled:
    """Return the answer to a settlement."""
    if reply[0] != b"settled":
        return NotSettled.BEFORE if reply[0] == b"before" else NotSettled.UNKNOWN
    balances = {
        account_of(reply[at]): Balance(int(reply[at + 1]), int(reply[at + 2])) for at in range(2, len(reply), 3)
    }
    return Settled(int(reply[1]), balances)
