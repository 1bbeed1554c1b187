"""What stands in the files: lines of events and sums, and the records that are derived from them.

A day's lines are the truth: an event each, or an imported sum, with the writer and its number; or, first in the file,
what is kept of events that were deleted. A tally is what lines add up to. A record is a tally as the previous system
wrote it, with further keys, so that nothing is lost in it: money exactly, and sums by every combination of names.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import date
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.money import NANO_PER_USD
from usage_plugin.domain.store import ROLLUP_DIMENSIONS, DailySum, daily_sum
from usage_plugin.domain.usage import UsageEvent, UsageTotals, from_record, to_record, totals_of
from usage_plugin.domain.windows import start_of_day, to_datetime
from usage_plugin.encoding import encode_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from zoneinfo import ZoneInfo

VERSION = 1
MOST_SESSIONS = 1_000
"""So many sessions are listed for a day or a month; one more, and the record says that it is cut."""

_LARGEST = 2**63 - 1
_NAMES = tuple(name for name in ROLLUP_DIMENSIONS if name != "user")
_SUMS = UsageTotals._fields
_NOTHING = UsageTotals()
_NONE: Mapping[str, int] = MappingProxyType({})

Names = tuple[str | None, ...]
"""Of one user's sum: its names but the user's, in the order of `ROLLUP_DIMENSIONS`."""


class Entry(NamedTuple):
    """One line: a record that a writer sent, with its number.

    Attributes:
        instead_of: of a sum that was given away, for each writer the number of the last line that is in it and gone.
    """

    writer: str
    seq: int
    record: UsageEvent | DailySum
    instead_of: Mapping[str, int] = _NONE

    @property
    def user(self) -> str:
        """Whose it is."""
        return self.record.user or ""

    def day(self, zone: ZoneInfo) -> date:
        """Say on which day it counts."""
        record = self.record
        return record.day if isinstance(record, DailySum) else daily_sum(record, zone).day


def encode_entry(entry: Entry) -> bytes:
    """Write an entry as a line.

    Raises:
        ValueError: a number that does not fit into 64 bits, or text that is none.
    """
    record = entry.record
    totals = record.totals if isinstance(record, DailySum) else totals_of(record)
    if max(totals) > _LARGEST or min(totals) < -_LARGEST:
        raise ValueError("a number does not fit into 64 bits")
    fields = _sum_fields(record) if isinstance(record, DailySum) else to_record(record)
    if entry.instead_of:
        fields["instead_of"] = dict(sorted(entry.instead_of.items()))
    return f"{encode_record({'writer': entry.writer, 'seq': entry.seq, **fields})}\n".encode()


def decode_entry(fields: Mapping[str, Any]) -> Entry:
    """Read what `encode_entry` wrote."""
    record: UsageEvent | DailySum
    record = _read_sum(fields) if "day" in fields else from_record(fields)
    return Entry(fields["writer"], fields["seq"], record, fields.get("instead_of", _NONE))


def _sum_fields(one: DailySum) -> dict[str, Any]:
    named: dict[str, Any] = {
        name: value for name, value in zip(ROLLUP_DIMENSIONS, one.names, strict=True) if value is not None
    }
    return {"day": one.day.isoformat(), **named, **_totals_fields(one.totals)}


def _read_sum(fields: Mapping[str, Any]) -> DailySum:
    names = (fields.get(name) for name in ROLLUP_DIMENSIONS)
    return DailySum._make((date.fromisoformat(fields["day"]), *names, _read_totals(fields)))


def _totals_fields(totals: UsageTotals) -> dict[str, int]:
    fields = {name: value for name, value in zip(_SUMS, totals, strict=True) if value}
    if "cost" in fields:
        fields["cost_nano"] = fields.pop("cost")
    return fields


def _read_totals(fields: Mapping[str, Any]) -> UsageTotals:
    get = fields.get
    return UsageTotals._make((*(get(name, 0) for name in _SUMS[:-1]), get("cost_nano", 0)))


class Tally:
    """What one user's lines of a day or a month add up to.

    Attributes:
        user: whose lines they are.
        sums: by names.
        watermarks: for each writer the number of its last line that is in it.
        duration_us: of all requests that have one, and `timed` how many those are.
        sessions: of which there were requests, at most `MOST_SESSIONS`; `sessions_cut` if there were more.
        newest: when the newest event was admitted, and `latest` when the last one ended; 0 if there is none.
        oldest_kept: when the oldest event was admitted that has a line; None if there is none.
    """

    __slots__ = (
        "duration_us", "latest", "newest", "oldest_kept", "sessions", "sessions_cut", "sums", "timed", "user",
        "watermarks",
    )  # fmt: skip

    def __init__(self) -> None:
        """Start with nothing."""
        self.user = ""
        self.sums: dict[Names, UsageTotals] = {}
        self.watermarks: dict[str, int] = {}
        self.duration_us = 0
        self.timed = 0
        self.sessions: dict[str, None] = {}
        self.sessions_cut = False
        self.newest = 0
        self.latest = 0
        self.oldest_kept: int | None = None

    def add(self, entry: Entry, zone: ZoneInfo) -> None:
        """Add a line."""
        record = entry.record
        self.user = entry.user
        self._mark(entry.writer, entry.seq)
        for writer, seq in entry.instead_of.items():
            self._mark(writer, seq)
        if isinstance(record, DailySum):
            self.add_sum(record)
            return
        self.add_sum(daily_sum(record, zone))
        if record.duration_us:
            self.duration_us += record.duration_us
            self.timed += 1
        if record.session is not None:
            self._note_session(record.session)
        self.newest = max(self.newest, record.started_at)
        self.latest = max(self.latest, record.started_at + record.duration_us)
        if self.oldest_kept is None or record.started_at < self.oldest_kept:
            self.oldest_kept = record.started_at

    def add_sum(self, one: DailySum) -> None:
        """Add a sum, of whatever day and user."""
        names = one.names[1:]
        self.sums[names] = self.sums.get(names, _NOTHING).plus(one.totals)

    def merge(self, other: Tally) -> None:
        """Add what other lines add up to."""
        self.user = other.user
        for names, totals in other.sums.items():
            self.sums[names] = self.sums.get(names, _NOTHING).plus(totals)
        for writer, seq in other.watermarks.items():
            self._mark(writer, seq)
        self.duration_us += other.duration_us
        self.timed += other.timed
        for session in other.sessions:
            self._note_session(session)
        self.sessions_cut = self.sessions_cut or other.sessions_cut
        self.newest = max(self.newest, other.newest)
        self.latest = max(self.latest, other.latest)
        if other.oldest_kept is not None:
            self.oldest_kept = min(other.oldest_kept, self.oldest_kept or other.oldest_kept)

    def _mark(self, writer: str, seq: int) -> None:
        self.watermarks[writer] = max(seq, self.watermarks.get(writer, 0))

    def _note_session(self, session: str) -> None:
        if session in self.sessions:
            return
        if len(self.sessions) < MOST_SESSIONS:
            self.sessions[session] = None
        else:
            self.sessions_cut = True

    def within(self, watermarks: Mapping[str, int]) -> bool:
        """Say whether it holds nothing beyond these watermarks."""
        return all(seq <= watermarks.get(writer, 0) for writer, seq in self.watermarks.items())

    def daily_sums(self, day: date) -> Iterator[DailySum]:
        """List its sums, of a day."""
        for names, totals in self.sums.items():
            yield DailySum._make((day, self.user, *names, totals))

    def fields(self) -> dict[str, Any]:
        """Write it down, losing nothing."""
        rows = [
            {name: value for name, value in zip(_NAMES, names, strict=True) if value is not None}
            | _totals_fields(totals)
            for names, totals in sorted(self.sums.items(), key=lambda item: [name or "" for name in item[0]])
        ]
        return {
            "v": VERSION,
            "sums": rows,
            "watermarks": dict(sorted(self.watermarks.items())),
            "duration_us": self.duration_us,
            "timed_requests": self.timed,
            "newest": self.newest,
            "latest": self.latest,
            "oldest_kept": self.oldest_kept,
        }

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Tally:
        """Read what `fields` or `record` wrote.

        Raises:
            KeyError: it was not one of these.
        """
        tally = cls()
        tally.user = fields["user_id"]
        for row in fields["sums"]:
            tally.sums[tuple(row.get(name) for name in _NAMES)] = _read_totals(row)
        tally.watermarks = dict(fields["watermarks"])
        tally.duration_us, tally.timed = fields["duration_us"], fields["timed_requests"]
        tally.sessions = dict.fromkeys(fields["unique_sessions"])
        tally.sessions_cut = fields.get("sessions_cut", False)
        tally.newest, tally.latest = fields["newest"], fields["latest"]
        tally.oldest_kept = fields["oldest_kept"]
        return tally

    def kept(self) -> bytes:
        """Write it as the first line of a day, in place of lines that are gone."""
        kept = {"user_id": self.user, **self.fields(), **self._session_fields()}
        return f"{encode_record({'kept': kept})}\n".encode()

    def _session_fields(self) -> dict[str, Any]:
        fields = {"session_count": len(self.sessions), "unique_sessions": list(self.sessions)}
        return fields | ({"sessions_cut": True} if self.sessions_cut else {})

    def record(self, day: date, zone: ZoneInfo, **of: Any) -> bytes:
        """Write the record of a day or month.

        Args:
            day: the day, or the first of the month: what it was changed at if nothing in it has a time.
            zone: whose time it is written in.
            of: which day or month it is, and what the files that it is derived from were like.
        """
        total = _NOTHING
        providers: Counter[str] = Counter()
        models: Counter[str] = Counter()
        for names, totals in self.sums.items():
            total = total.plus(totals)
            *_, model, provider = names
            if model is not None:
                models[model] += totals.requests
            if provider is not None:
                providers[provider] += totals.requests
        fields = {
            "user_id": self.user,
            **of,
            "total_requests": total.requests,
            "successful_requests": total.requests - total.failed_requests,
            "failed_requests": total.failed_requests,
            "total_input_tokens": total.input_tokens,
            "total_output_tokens": total.output_tokens,
            # For programs of the previous system; ours is the next.
            "total_cost": total.cost / NANO_PER_USD,
            "total_cost_nano": total.cost,
            "avg_latency_ms": self.duration_us / self.timed / 1000 if self.timed else 0.0,
            "providers_used": dict(sorted(providers.items())),
            "models_used": dict(sorted(models.items())),
            **self._session_fields(),
            # Of what is in it and not of the writing, so that the same lines always make the same record.
            "updated_at": to_datetime(self.latest or start_of_day(day, zone), zone).isoformat(),
            **self.fields(),
        }
        return encode_record(fields).encode()


def read_tally(fields: Mapping[str, Any] | None) -> Tally | None:
    """Read a record of ours; None if it is none."""
    try:
        return Tally.read(fields) if fields is not None else None
    except (KeyError, TypeError, AttributeError):
        return None


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Read a line; None if it is not whole."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
