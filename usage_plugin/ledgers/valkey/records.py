"""Times as texts in the order of the times, as `records.lua` compares them, and records as JSON."""

from __future__ import annotations

import json
from typing import Any

from usage_plugin.encoding import encode_record
from usage_plugin.errors import LedgerError

DIGITS = 16
"""The length of a time."""

_OFFSET = 2**63


def sortable(number: int) -> str:
    """Return the text of a time, or of another number.

    Raises:
        LedgerError: it has more than 64 bits.
    """
    if not -_OFFSET <= number < _OFFSET:
        raise LedgerError(f"expected a number of 64 bits; found {number}") from OverflowError()
    return f"{number + _OFFSET:0{DIGITS}x}"


def number_of(text: bytes | str) -> int:
    """Return the number of a text."""
    return int(text, 16) - _OFFSET


def record_of(*values: object) -> str:
    """Return values as JSON."""
    return encode_record(values)


def values_in(record: bytes | str) -> Any:
    """Return the values in JSON: not by orjson, for which a number above 64 bits is a float."""
    return json.loads(record)


def pairs_in(reply: list[bytes]) -> dict[bytes, bytes]:
    """Return the fields and values of a hash, which the server sends one after the other."""
    return dict(zip(reply[::2], reply[1::2], strict=True))
