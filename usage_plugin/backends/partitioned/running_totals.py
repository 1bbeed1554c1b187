"""The format of the files: lines of events and sums, and the records derived from them.

A day's lines are the source of truth: an event each, or an imported sum, with the writer and its number. The first line
of a file may hold the sums of deleted events. A tally is the sum of lines. A record is a tally in the previous system's
format. Further keys make it lossless: they hold exact money, and sums by every combination of names.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import date
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.money import NANO_PER_USD
from usage_plugin.domain.store import ROLLUP_DIMENSIONS, DailySum, EventPosition, daily_sum
from usage_plugin.domain.usage import UsageEvent, UsageTotals, from_record, to_record, totals_of
from usage_plugin.domain.windows import start_of_day, to_datetime
from usage_plugin.encoding import encode_record
from usage_plugin.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.store import UsageFilter

VERSION = 1
MOST_SESSIONS = 1_000
"""The maximum number of sessions in the record of a day or month; the record is marked if there are more."""

_LARGEST = 2**63 - 1
_NAMES = tuple(name for name in ROLLUP_DIMENSIONS if name != "user")
_SUMS = UsageTotals._fields
_NOTHING = UsageTotals()
_NONE: Mapping[str, int] = MappingProxyType({})

Names = tuple[str | None, ...]
"""The names of one user's sum, except the user's, in the order of `ROLLUP_DIMENSIONS`."""


class Entry(NamedTuple):
    """One line: a record that a writer sent, with its number.

    Attributes:
        instead_of: For the sum of an erased user, the number of each writer's last deleted line in it.
    """

    writer: str
    seq: int
    record: UsageEvent | DailySum
    instead_of: Mapping[str, int] = _NONE

    @property
    def user(self) -> str:
        """The user of the record."""
        return self.record.user or ""

    def day(self, zone: ZoneInfo) -> date:
        """Return the day of the record."""
        record = self.record
        return record.day if isinstance(record, DailySum) else daily_sum(record, zone).day


def encode_entry(entry: Entry) -> bytes:
    """Return an entry as a line.

    Raises:
        ValueError: A number exceeds 64 bits, or a text is not valid Unicode.
    """
    record = entry.record
    totals = record.totals if isinstance(record, DailySum) else totals_of(record)
    if max(totals) > _LARGEST or min(totals) < -_LARGEST:
        raise ValueError("expected numbers of at most 64 bits")
    fields = _sum_fields(record) if isinstance(record, DailySum) else to_record(record)
    if entry.instead_of:
        fields["instead_of"] = dict(sorted(entry.instead_of.items()))
    return f"{encode_record({'writer': entry.writer, 'seq': entry.seq, **fields})}\n".encode()


def decode_entry(fields: Mapping[str, Any]) -> Entry:
    """Return the entry of a line that `encode_entry` wrote."""
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


class RunningTotals:
    """The running totals of one user's lines of a day or a month.

    Attributes:
        user: The user.
        sums: The sums by names.
        watermarks: The number of each writer's last line in the totals.
        duration_us: The total duration of the requests that have one.
        timed: The number of those requests.
        sessions: The sessions of the requests, at most `MOST_SESSIONS`.
        sessions_cut: Whether there were more sessions.
        newest: The admission time of the newest event; 0 without events.
        latest: The end of the event that ended last; 0 without events.
        oldest_kept: The admission time of the oldest event that has a line; None without such events.
    """

    __slots__ = (
        "duration_us", "latest", "newest", "oldest_kept", "sessions", "sessions_cut", "sums", "timed", "user",
        "watermarks",
    )  # fmt: skip

    def __init__(self) -> None:
        """Create empty totals."""
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
        """Add a sum of any day and user."""
        names = one.names[1:]
        self.sums[names] = self.sums.get(names, _NOTHING).plus(one.totals)

    def merge(self, other: RunningTotals) -> None:
        """Add the totals of other lines."""
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
        """Whether all lines in the totals are within these watermarks."""
        return all(seq <= watermarks.get(writer, 0) for writer, seq in self.watermarks.items())

    def daily_sums(self, day: date) -> Iterator[DailySum]:
        """Yield the sums as sums of a day."""
        for names, totals in self.sums.items():
            yield DailySum._make((day, self.user, *names, totals))

    def fields(self) -> dict[str, Any]:
        """Return the totals as plain values, without loss."""
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
    def read(cls, fields: Mapping[str, Any]) -> RunningTotals:
        """Return the totals that `fields` or `record` wrote.

        Raises:
            KeyError: The fields are of another kind.
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
        """Return the first line of a day, which replaces the lines of deleted events."""
        kept = {"user_id": self.user, **self.fields(), **self._session_fields()}
        return f"{encode_record({'kept': kept})}\n".encode()

    def _session_fields(self) -> dict[str, Any]:
        fields = {"session_count": len(self.sessions), "unique_sessions": list(self.sessions)}
        return fields | ({"sessions_cut": True} if self.sessions_cut else {})

    def record(self, day: date, zone: ZoneInfo, **of: Any) -> bytes:
        """Return the record of a day or month.

        Args:
            day: The day, or the first of the month: the time of the last change if no event has a time.
            zone: The time zone of the written times.
            of: Fields of the day or month, and of the files that the record is derived from.
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
            # For programs of the previous system; the exact amount is the next key.
            "total_cost": total.cost / NANO_PER_USD,
            "total_cost_nano": total.cost,
            "avg_latency_ms": self.duration_us / self.timed / 1000 if self.timed else 0.0,
            "providers_used": dict(sorted(providers.items())),
            "models_used": dict(sorted(models.items())),
            **self._session_fields(),
            # The time of the content, not of the write, so that the same lines always give the same record.
            "updated_at": to_datetime(self.latest or start_of_day(day, zone), zone).isoformat(),
            **self.fields(),
        }
        return encode_record(fields).encode()


def matching_sums(tally: RunningTotals, day: date, usage_filter: UsageFilter) -> Iterator[DailySum]:
    """Return the sums of a tally that match a filter, as sums of a day."""
    return (one for one in tally.daily_sums(day) if usage_filter.takes(one))


def read_tally(fields: Mapping[str, Any] | None) -> RunningTotals | None:
    """Return the totals of a record; None if the record is not one of ours."""
    try:
        return RunningTotals.read(fields) if fields is not None else None
    except (KeyError, TypeError, AttributeError):
        return None


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line; None if the line is incomplete."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def parse_whole_line(line: bytes) -> dict[str, Any]:
    """Return the object of a complete line.

    Raises:
        StorageUnavailableError: The line is damaged.
    """
    fields = parse_line(line)
    if fields is None:
        raise StorageUnavailableError("A temporary file is damaged.")
    return fields


def position_of(line: bytes) -> EventPosition:
    """Return the position of an event's line, by which events are sorted."""
    fields = parse_whole_line(line)
    return EventPosition(fields["started_at"], fields["event_id"])


def number_of(fields: Mapping[str, Any]) -> tuple[str, int]:
    """Return the writer and the number of a line, by which sent records are sorted."""
    return fields["writer"], fields["seq"]
