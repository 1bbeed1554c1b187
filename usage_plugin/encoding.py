"""The encoding: the only serialized form of events and of our other records, one line of JSON each.

The outbox, reservations and stores that keep text use it. A reservation carries the event that is written if the worker
dies. Each request is encoded twice; therefore orjson is used, which takes a fifth of the standard library's time.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import orjson

from usage_plugin.domain.usage import from_record, to_record

if TYPE_CHECKING:
    from usage_plugin.domain.usage import UsageEvent

_encode_anything = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def encode_record(record: object) -> str:
    """Return whole numbers and texts, in lists and mappings of any depth, as one line of JSON."""
    try:
        return orjson.dumps(record).decode()
    except orjson.JSONEncodeError:
        # Half a surrogate pair, or a number of more than 64 bits: the code that stores it reports the error.
        return _encode_anything(record)


def encode_event(event: UsageEvent) -> str:
    """Return an event as one line of JSON."""
    return encode_record(to_record(event))


def decode_event(text: str | bytes) -> UsageEvent:
    """Return the event that `encode_event` wrote."""
    return from_record(orjson.loads(text))
