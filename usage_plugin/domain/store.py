"""The store port: the operations that the rest of the code needs from the history.

Few verbs, domain words, no query language. A store may be slow and may fail: the outbox waits for it.
This is safe because `append` is atomic and idempotent by writer and number.

A store keeps events and daily sums. The sums of its events remain when the events are pruned. The sums of days that
were imported from elsewhere never had events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

from usage_plugin.domain.subjects import FORGOTTEN
from usage_plugin.domain.usage import UsageTotals, totals_of
from usage_plugin.domain.windows import local_date, monday_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.profiles import UserProfile
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.domain.windows import Window

RollupDimension = Literal["user", "team", "api_key", "organization", "end_user", "model", "provider"]
"""The dimensions of daily sums."""
ROLLUP_DIMENSIONS: tuple[RollupDimension, ...] = get_args(RollupDimension)

Grouping = Literal[RollupDimension, "day", "week", "month"]
GROUPINGS: tuple[Grouping, ...] = (*ROLLUP_DIMENSIONS, "day", "week", "month")

EventDimension = Literal["session", "agent"]
"""Names that are in events but not in sums: grouping by them reads events, and stores do not provide it."""
EVENT_DIMENSIONS: tuple[EventDimension, ...] = get_args(EventDimension)

HourGrouping = Literal["hour", "model", "provider"]
"""The groupings of hourly sums, in stores that keep them."""
HOUR_GROUPINGS: tuple[HourGrouping, ...] = get_args(HourGrouping)


class DailySum(NamedTuple):
    """The usage of one combination of names on one day of the store's zone; None where a name is absent."""

    day: date
    user: str | None
    team: str | None
    api_key: str | None
    organization: str | None
    end_user: str | None
    model: str | None
    provider: str | None
    totals: UsageTotals

    @property
    def names(self) -> tuple[str | None, ...]:
        """The names, in the order of `ROLLUP_DIMENSIONS`."""
        return self[1:-1]

    def without(self, user: str) -> DailySum:
        """Return a copy with `FORGOTTEN` in place of a person."""
        return self._replace(
            user=FORGOTTEN if self.user == user else self.user,
            end_user=FORGOTTEN if self.end_user == user else self.end_user,
        )

    def group(self, by: Sequence[Grouping]) -> tuple[str | None, ...]:
        """Return the name of its group."""
        return tuple(_group_name(self, grouping) for grouping in by)


EMPTY_SUM = DailySum._make((date(1970, 1, 1), *[None] * len(ROLLUP_DIMENSIONS), UsageTotals()))
"""A sum that adds nothing: by sending it, a writer only raises its watermark."""


def daily_sum(event: UsageEvent, zone: ZoneInfo) -> DailySum:
    """Return the sum of one event, for the day of its admission in the zone."""
    names = (getattr(event, dimension) for dimension in ROLLUP_DIMENSIONS)
    return DailySum._make((local_date(event.started_at, zone), *names, totals_of(event)))


def _group_name(one: DailySum, grouping: Grouping) -> str | None:
    if grouping in ("day", "week", "month"):
        return bucket_name(one.day, grouping)
    name: str | None = getattr(one, grouping)
    return name


def bucket_name(day: date, bucket: Literal["day", "week", "month"]) -> str:
    """Return the name of a day's bucket: the ISO date of the day or of the week's Monday, or the month as `YYYY-MM`."""
    if bucket == "month":
        return f"{day:%Y-%m}"
    return (monday_of(day) if bucket == "week" else day).isoformat()


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Exact names that events must have; None accepts all."""

    user: str | None = None
    team: str | None = None
    api_key: str | None = None
    organization: str | None = None
    end_user: str | None = None
    model: str | None = None
    provider: str | None = None

    def wanted(self) -> dict[RollupDimension, str]:
        """Return the restricted dimensions with their names."""
        return {name: value for name in ROLLUP_DIMENSIONS if (value := getattr(self, name)) is not None}

    def takes(self, record: UsageEvent | DailySum) -> bool:
        """Whether a record has all the names."""
        return all(getattr(record, name) == value for name, value in self.wanted().items())


class Aggregate(NamedTuple):
    """Sums by group, and for each writer the number of its last event in the sums.

    A group is a tuple of names in the requested order: text, or None where the name is absent. `day` and `week` (its
    Monday) are ISO dates, `month` is `YYYY-MM`, `hour` is an ISO time with its offset.
    The caller owns `groups` and may change it.
    """

    groups: dict[tuple[str | None, ...], UsageTotals]
    watermarks: Mapping[str, int]


class Ranking(NamedTuple):
    """The most expensive groups, and the number of all groups."""

    groups: Mapping[tuple[str | None, ...], UsageTotals]
    in_all: int
    watermarks: Mapping[str, int]


class EventPosition(NamedTuple):
    """A position in a stream of events, which is ordered by time of admission, then id."""

    started_at: int
    event_id: str


class Sent(NamedTuple):
    """An event or sum that a writer sent, with its number."""

    writer: str
    seq: int
    record: UsageEvent | DailySum


LEFT_OVER = "(left over)"
"""The writer of sums whose events are deleted, when one store transfers everything to another."""


class UsageStore(ABC):
    """The history. It raises `StorageError`, never its driver's own errors."""

    @abstractmethod
    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add numbered events, all or none; durable on return.

        Numbers ascend. Events up to the writer's watermark are ignored, so a batch can be sent again.
        """

    @abstractmethod
    async def append_sums(self, writer: str, sums: Sequence[tuple[int, DailySum]]) -> None:
        """Add numbered sums of days that have no events here, all or none; durable on return.

        Numbers ascend, and are ignored up to the watermark as in `append`. A sum is added to the existing sums of its
        day. An empty sum adds nothing, but counts as sent.
        """

    @abstractmethod
    async def watermark(self, writer: str) -> int:
        """Return the number of the writer's last stored event or sum; 0 if there is none."""

    @abstractmethod
    async def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Return the sums by group over the days from first to last, both included, in the store's zone."""

    @abstractmethod
    def events(
        self,
        window: Window,
        usage_filter: UsageFilter,
        *,
        after: EventPosition | None = None,
        newest_first: bool = False,
    ) -> AsyncIterator[UsageEvent]:
        """Stream the events admitted in a window, in bounded memory; `after` continues behind a position."""

    @abstractmethod
    def daily(self, first: date, last: date, usage_filter: UsageFilter) -> AsyncIterator[Sequence[DailySum]]:
        """Stream the daily sums from first to last, both included, ordered by day, in chunks of bounded memory.

        Each combination of names occurs once for each day.
        """

    @abstractmethod
    async def prune(self, *, events_before: int, days_before: date, most: int) -> int:
        """Delete old records, at most `most`; return the number deleted, 0 when none remain.

        Each call is short: the keeper makes many calls, and other callers use the store in between. A store may delete
        a part that is too old as a whole at once, if that is as short; it counts as `most` records at most.

        Args:
            events_before: microseconds since 1970 UTC; events admitted earlier are deleted, and their sums remain.
            days_before: sums of earlier days are deleted, with their events.
            most: the maximum number of records for one call; others wait for the store meanwhile.
        """

    @abstractmethod
    async def forget(self, user: str, *, most: int) -> int:
        """Delete a user's events, and move their sums to `FORGOTTEN`, so that all other sums stay the same.

        Records that name the user as `end_user` are treated alike. Return the number of records changed, at most
        `most`; 0 when none remain.
        """

    @abstractmethod
    async def size(self) -> int:
        """Return the approximate number of bytes in use, without the space that deleted records left."""

    @abstractmethod
    async def health(self) -> None:
        """Raise `StorageError` if the store would not accept an event now."""


async def watermarks_of(store: UsageStore) -> Mapping[str, int]:
    """Return a store's watermark of every writer."""
    day = EMPTY_SUM.day
    return (await store.aggregate((), day, day, UsageFilter(user="\x1f"))).watermarks


@runtime_checkable
class Ranks(Protocol):
    """The ability of a store to find the most expensive of many groups without returning all of them."""

    async def ranking(
        self,
        by: Sequence[RollupDimension],
        first: date,
        last: date,
        usage_filter: UsageFilter,
        *,
        most: int,
        also: Collection[tuple[str | None, ...]] = (),
    ) -> Ranking:
        """Return the sums of the most expensive groups over the days from first to last, both included.

        Args:
            by: the dimensions of a group, at least one.
            first: a day of the store's zone.
            last: the same.
            usage_filter: the names that count.
            most: the maximum number of groups: by highest cost, then by more requests.
            also: further groups whose sums are returned at any rank, if they have any.

        Raises:
            StorageUnavailableError: not available now; `aggregate` may still answer.
        """


@runtime_checkable
class Sorts(Protocol):
    """The ability of a store to stream many groups in order of cost, without holding all of them in memory."""

    def in_order_of_cost(
        self, by: Sequence[RollupDimension], first: date, last: date, usage_filter: UsageFilter
    ) -> AsyncIterator[Aggregate]:
        """Sum the days from first to last as `aggregate` does, and stream all groups in pages.

        Args:
            by: the dimensions of a group, at least one.
            first: a day of the store's zone.
            last: the same.
            usage_filter: the names that count.

        Yields:
            At least one page; all pages show the same moment. Groups are ordered by highest cost, then by more
            requests, then by name; an absent name comes before all others.

        Raises:
            StorageUnavailableError: not available now; `aggregate` may still answer.
        """


@runtime_checkable
class KeepsHours(Protocol):
    """The ability of a store to keep hourly sums, of events only: imported days have no hours."""

    async def aggregate_hours(
        self, by: Sequence[HourGrouping], first: date, last: date, usage_filter: UsageFilter
    ) -> Aggregate:
        """Return the hourly sums of the days from first to last; the filter may name only a model and a provider.

        Raises:
            StorageUnavailableError: not available now; `events` may still answer.
        """


@runtime_checkable
class KeepsCopies(Protocol):
    """The ability of a store to hold a copy of profiles and limits, for a restore or for people to read.

    The ledger's are authoritative; the keeper copies them when they have changed.
    """

    async def keep_profiles(self, profiles: Sequence[UserProfile]) -> None:
        """Store profiles; of two profiles of one user, the one with the newer `updated_at` counts."""

    def profiles(self) -> AsyncIterator[UserProfile]:
        """Stream the stored profiles, ordered by user."""

    async def keep_limits(self, limits: Sequence[Mapping[str, Any]]) -> None:
        """Replace the stored limits by those in force, each as written in the YAML."""


@runtime_checkable
class LeavesTraces(Protocol):
    """The ability of a store to rewrite its files, which keep traces of deleted records until then."""

    async def compact(self) -> None:
        """Rewrite the files. Slow; appending waits for it."""


@runtime_checkable
class HandsOut(Protocol):
    """The ability of a store to return the records it was sent, so that another store can catch up with it."""

    async def watermarks(self) -> Mapping[str, int]:
        """Return the number of every writer's last event or sum."""

    def sent(self, after: Mapping[str, int], upto: Mapping[str, int]) -> AsyncIterator[Sent]:
        """Stream the records of each writer above `after` and up to `upto`, by writer and number, in bounded memory.

        If `after` is empty, sums whose events are deleted come first, with `LEFT_OVER` as their writer.

        Raises:
            StoragePrunedError: some of the records are deleted; only a transfer of everything is possible.
        """


@runtime_checkable
class Reports(Protocol):
    """The ability of a store to accept events and answer while a part of it is unavailable."""

    @property
    def trouble(self) -> str | None:
        """The unavailable part, and the reason; None if all parts are available."""


ABILITIES: tuple[type, ...] = (Ranks, Sorts, KeepsHours, KeepsCopies, LeavesTraces, HandsOut, Reports)
"""All abilities that a store may have."""
