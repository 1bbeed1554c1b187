"""The usage event, which is the immutable record of one request, and sums of events.

The record of `to_record` has a schema number, omits default values, and contains no prompt, no answer and no key.
`usage_plugin.encoding` serializes it.
"""

from __future__ import annotations

import os
import time
from functools import reduce
from operator import add, sub
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from usage_plugin.domain.subjects import ANONYMOUS, Subjects

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from usage_plugin.domain.money import Nano

SCHEMA = 1

Status = Literal["success", "failure", "cancelled", "recovered"]
"""The end of a request. `recovered`: its worker died, and the reserved amount was charged."""

CostSource = Literal["computed", "provider", "litellm", "reserved", "given", "unpriced", "none"]
"""The source of a cost.

`computed`: our arithmetic on a price sheet. `provider`: the provider's own figure. `litellm`: LiteLLM's figure.
`reserved`: the reserved amount. `given`: the program that recorded it. `unpriced`: no price is known. `none`: nothing
was billed."""


MOST_TOKENS = 10**9
"""The maximum number of tokens of one kind in a request; a larger number is wrong, and must not make sums overflow."""


class TokenUsage(NamedTuple):
    """The tokens of one request, for each kind with a price of its own.

    Cached, cache-write, audio, image, video and citation tokens are disjoint parts of the input. Reasoning, audio,
    image and video output are parts of the output. `cached_audio_tokens` are part of the cached tokens, and
    `cache_write_1h_tokens` of the cache-write tokens.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cached_audio_tokens: int = 0
    audio_input_tokens: int = 0
    image_input_tokens: int = 0
    audio_output_tokens: int = 0
    image_output_tokens: int = 0
    video_input_tokens: int = 0
    video_output_tokens: int = 0
    citation_tokens: int = 0


NO_TOKENS = TokenUsage()


class UsageEvent(NamedTuple):
    """The record of one request. A NamedTuple for speed: each request creates, changes and writes an event twice.

    Attributes:
        event_id: the reservation's id, a UUIDv7.
        started_at: admission, in microseconds since 1970 UTC; decides the windows and days that count the event.
        duration_us: from the monotonic clock.
        requested_model: the requested `model_name`, if another one was billed.
        model: the `model_name` that was billed.
        served_model: the provider's model.
        deployment: LiteLLM's id of the deployment.
        input_tokens: zero on a cache hit; `usage` keeps the replayed numbers.
        cost: nano-dollars; None if no price is known.
        reserved: the highest cost that was held, in nano-dollars.
        excess: the charge beyond `reserved`.
        estimated: whether tokens or cost are estimates, not a provider's report.
        injected_output_tokens: the output bound that we added to the request, if any.
        clamped_to: the reduced output bound, if the remaining money did not cover the requested one.
        downgraded_by: the limit that replaced the requested model by another one.
        degraded: whether it was admitted while the ledger did not work, without holds.
        service_tier: the tier under which it was billed, if not the ordinary one.
        usage: the provider's usage as received, numbers only.
        disputed: whether our cost and LiteLLM's differ by more than 1 % and a micro-dollar; `cost_source` names the
            charged one.
        agent: the client's agent that sent it, from the header that names one.
    """

    event_id: str
    started_at: int
    status: Status
    call_type: str
    duration_us: int = 0
    user: str = ANONYMOUS
    team: str | None = None
    api_key: str | None = None
    api_key_alias: str | None = None
    end_user: str | None = None
    organization: str | None = None
    session: str | None = None
    tags: tuple[str, ...] = ()
    call_id: str | None = None
    requested_model: str | None = None
    model: str | None = None
    served_model: str | None = None
    deployment: str | None = None
    provider: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost: Nano | None = 0
    cost_source: CostSource = "none"
    reserved: Nano = 0
    excess: Nano = 0
    estimated: bool = False
    cache_hit: bool = False
    injected_output_tokens: int | None = None
    clamped_to: int | None = None
    downgraded_by: str | None = None
    degraded: bool = False
    service_tier: str | None = None
    error: str | None = None
    usage: Mapping[str, int] | None = None
    disputed: bool = False
    agent: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the request counts as failed."""
        return self.status == "failure"

    def changed(self, **changes: Any) -> UsageEvent:
        """Return a copy with some fields changed; `_replace` visits all 38 fields, which takes three times as long."""
        values = list(self)
        for name, value in changes.items():
            values[_POSITIONS[name]] = value
        return UsageEvent._make(values)


def subjects_of(event: UsageEvent) -> Subjects:
    """Return the subjects of an event, under their stored names."""
    return Subjects(*(getattr(event, name) for name in _SUBJECT_FIELDS))


_SUBJECT_FIELDS = tuple(name for name in Subjects._fields if name in UsageEvent._fields)
_NOT_SET = object()
_DEFAULTS = tuple(UsageEvent._field_defaults.get(name, _NOT_SET) for name in UsageEvent._fields)
_NAMES = frozenset(UsageEvent._fields)
_POSITIONS = {name: at for at, name in enumerate(UsageEvent._fields)}


def to_record(event: UsageEvent) -> dict[str, Any]:
    """Return a flat record of the fields that differ from their defaults, with the schema's number as `v`."""
    record: dict[str, Any] = {"v": SCHEMA}
    for name, value, default in zip(UsageEvent._fields, event, _DEFAULTS, strict=True):
        # Most values are the default object itself; a comparison by value takes longer.
        if value is not default and value != default:
            record[name] = value  # noqa: PERF403  # twice for each request, and a union takes a third more
    return record


def from_record(record: Mapping[str, Any]) -> UsageEvent:
    """Return the event of a record; fields of a newer schema are ignored."""
    known = {name: value for name, value in record.items() if name in _NAMES}
    if "tags" in known:
        known["tags"] = tuple(known["tags"])
    return UsageEvent(**known)


class UsageTotals(NamedTuple):
    """Sums over events. `cost` is in nano-dollars; events without a price add nothing to it."""

    requests: int = 0
    failed_requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost: Nano = 0

    def plus(self, other: UsageTotals) -> UsageTotals:
        """Return the sum of two."""
        return UsageTotals._make(map(add, self, other))

    def minus(self, other: UsageTotals) -> UsageTotals:
        """Return this sum without a part of it."""
        return UsageTotals._make(map(sub, self, other))


def sum_totals(sums: Iterable[UsageTotals]) -> UsageTotals:
    """Return the sum of many sums."""
    return reduce(UsageTotals.plus, sums, UsageTotals())


def totals_of(event: UsageEvent) -> UsageTotals:
    """Return the sums of a single event."""
    return UsageTotals(
        requests=1,
        failed_requests=int(event.failed),
        input_tokens=event.input_tokens,
        output_tokens=event.output_tokens,
        cached_input_tokens=event.cached_input_tokens,
        cache_write_tokens=event.cache_write_tokens,
        reasoning_tokens=event.reasoning_tokens,
        cost=event.cost or 0,
    )


class _Randomness:
    """Unpredictable bytes, read from the system in pages: each read can lose the interpreter's lock to a thread."""

    def __init__(self) -> None:
        self._left = b""
        # A forked child must not use the same bytes as its parent.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._left = b""

    def take(self, count: int) -> bytes:
        if len(self._left) < count:
            self._left = os.urandom(4096)
        taken, self._left = self._left[:count], self._left[count:]
        return taken


_randomness = _Randomness()
_REF_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_ref() -> str:
    """Return a ref for a refusal: 40 random bits in Crockford's base 32, readable over the telephone."""
    return "".join(_REF_ALPHABET[byte & 31] for byte in _randomness.take(8))


def new_event_id() -> str:
    """Return a UUIDv7 (RFC 9562): ordered by time, with 74 unpredictable random bits."""
    bits = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << 80 | int.from_bytes(_randomness.take(10), "big")
    bits = bits & ~(0xF000 << 64) | 0x7000 << 64
    bits = bits & ~(0xC000 << 48) | 0x8000 << 48
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
