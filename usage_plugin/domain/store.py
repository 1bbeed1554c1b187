"""The store port: what the rest of the code may ask of whatever keeps the history.

Few verbs, domain words, no query language. A store may be slow and may fail: the outbox waits for it.
What makes it safe is that `append` is atomic and idempotent by writer and number.

Beside events a store keeps daily sums: of its events, which stay when the events are pruned, and of days that were
imported from elsewhere, of which there are no events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

from usage_plugin.domain.subjects import FORGOTTEN
from usage_plugin.domain.usage import totals_of
from usage_plugin.domain.windows import local_date, monday_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.profiles import UserProfile
    from usage_plugin.domain.usage import UsageEvent, UsageTotals
    from usage_plugin.domain.windows import Window

RollupDimension = Literal["user", "team", "api_key", "organization", "end_user", "model", "provider"]
"""What daily sums are kept by."""
ROLLUP_DIMENSIONS: tuple[RollupDimension, ...] = get_args(RollupDimension)

Grouping = Literal[RollupDimension, "day", "week", "month"]
GROUPINGS: tuple[Grouping, ...] = (*ROLLUP_DIMENSIONS, "day", "week", "month")

EventDimension = Literal["session", "agent"]
"""Names that events keep and sums do not: grouping by them reads events, and no store is asked for it."""
EVENT_DIMENSIONS: tuple[EventDimension, ...] = get_args(EventDimension)

HourGrouping = Literal["hour", "model", "provider"]
"""What sums by hour are kept by, where a store keeps them."""
HOUR_GROUPINGS: tuple[HourGrouping, ...] = get_args(HourGrouping)


class DailySum(NamedTuple):
    """What one combination of names used on one day of the store's zone; None where there is no name."""

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
        """Make the same with `FORGOTTEN` in place of a person."""
        return self._replace(
            user=FORGOTTEN if self.user == user else self.user,
            end_user=FORGOTTEN if self.end_user == user else self.end_user,
        )

    def group(self, by: Sequence[Grouping]) -> tuple[str | None, ...]:
        """Name the group that it belongs to."""
        return tuple(_group_name(self, grouping) for grouping in by)


def daily_sum(event: UsageEvent, zone: ZoneInfo) -> DailySum:
    """Take an event for a sum, of the day of its admission in the zone."""
    names = (getattr(event, dimension) for dimension in ROLLUP_DIMENSIONS)
    return DailySum._make((local_date(event.started_at, zone), *names, totals_of(event)))


def _group_name(one: DailySum, grouping: Grouping) -> str | None:
    if grouping in ("day", "week", "month"):
        return bucket_name(one.day, grouping)
    name: str | None = getattr(one, grouping)
    return name


def bucket_name(day: date, bucket: Literal["day", "week", "month"]) -> str:
    """Name the day, the week by its Monday, or the month that a day is in: ISO dates, and `YYYY-MM`."""
    if bucket == "month":
        return f"{day:%Y-%m}"
    return (monday_of(day) if bucket == "week" else day).isoformat()


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Exact names that events must have; None takes all."""

    user: str | None = None
    team: str | None = None
    api_key: str | None = None
    organization: str | None = None
    end_user: str | None = None
    model: str | None = None
    provider: str | None = None

    def wanted(self) -> dict[RollupDimension, str]:
        """List the dimensions that are restricted."""
        return {name: value for name in ROLLUP_DIMENSIONS if (value := getattr(self, name)) is not None}

    def takes(self, record: UsageEvent | DailySum) -> bool:
        """Say whether a record has all the names."""
        return all(getattr(record, name) == value for name, value in self.wanted().items())


class Aggregate(NamedTuple):
    """Sums by group, and for each writer the number of its last event that they contain.

    A group is a tuple of names in the order asked for: text, None where there was no name, ISO dates for
    `day` and for `week` (its Monday), `YYYY-MM` for `month`, an ISO time with its offset for `hour`.
    `groups` belongs to who has asked, and may be changed by them.
    """

    groups: dict[tuple[str | None, ...], UsageTotals]
    watermarks: Mapping[str, int]


class Ranking(NamedTuple):
    """The dearest groups, and how many there are in all."""

    groups: Mapping[tuple[str | None, ...], UsageTotals]
    in_all: int
    watermarks: Mapping[str, int]


class EventPosition(NamedTuple):
    """Where a stream of events is: they are ordered by time of admission, then id."""

    started_at: int
    event_id: str


class Sent(NamedTuple):
    """What a writer sent, with its number."""

    writer: str
    seq: int
    record: UsageEvent | DailySum


LEFT_OVER = "(left over)"
"""The writer of sums whose events are gone, when one store hands everything out to another."""


class UsageStore(ABC):
    """The history. Raises `StorageError` and nothing of its driver's."""

    @abstractmethod
    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add numbered events, all or none; durable on return.

        Numbers ascend. Events up to the writer's watermark are passed over, so the same batch can be sent again.
        """

    @abstractmethod
    async def append_sums(self, writer: str, sums: Sequence[tuple[int, DailySum]]) -> None:
        """Add numbered sums of days that have no events here, all or none; durable on return.

        Numbers ascend, and are passed over up to the watermark as in `append`. What a day has already is added to. A
        sum of nothing adds nothing, but counts as sent.
        """

    @abstractmethod
    async def watermark(self, writer: str) -> int:
        """Give the number of the writer's last event or sum that is stored; 0 if there is none."""

    @abstractmethod
    async def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Sum the days from first to last, both included, in the store's zone."""

    @abstractmethod
    def events(
        self,
        window: Window,
        usage_filter: UsageFilter,
        *,
        after: EventPosition | None = None,
        newest_first: bool = False,
    ) -> AsyncIterator[UsageEvent]:
        """Stream events admitted in a window, in bounded memory; `after` goes on behind a position."""

    @abstractmethod
    def daily(self, first: date, last: date, usage_filter: UsageFilter) -> AsyncIterator[Sequence[DailySum]]:
        """Stream the sums of the days from first to last, both included, by day, some at a time, in bounded memory.

        Each combination of names comes once for each day.
        """

    @abstractmethod
    async def prune(self, *, events_before: int, days_before: date, most: int) -> int:
        """Delete what is too old, at most so many records; give how many were deleted, 0 when there are no more.

        Each call is short: the keeper makes many of them, and lets others have the store in between.

        Args:
            events_before: microseconds since 1970 UTC; events admitted earlier go, and their sums stay.
            days_before: sums of earlier days go, with their events.
            most: bounds what one call does: others wait for it meanwhile.
        """

    @abstractmethod
    async def forget(self, user: str, *, most: int) -> int:
        """Delete a user's events, and give their sums to `FORGOTTEN`, so that all other sums stay what they are.

        What names them as `end_user` is treated alike. At most so many records; 0 when there are no more.
        """

    @abstractmethod
    async def size(self) -> int:
        """Say how many bytes are in use, roughly; space that deleted records left is not."""

    @abstractmethod
    async def health(self) -> None:
        """Raise `StorageError` if the store would not take an event now."""


@runtime_checkable
class Ranks(Protocol):
    """An ability of stores that can find the dearest of many groups without handing out all of them."""

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
        """Sum the days from first to last, both included, for the dearest groups.

        Args:
            by: what groups are made of, at least one.
            first: a day of the store's zone.
            last: the same.
            usage_filter: the names that count.
            most: so many groups, those of the highest cost, of equal cost those with more requests.
            also: groups whose sums are given wherever they stand, if there are any.

        Raises:
            StorageUnavailableError: not now; `aggregate` may answer all the same.
        """


@runtime_checkable
class Sorts(Protocol):
    """An ability of stores that can hand out many groups in order, without having all of them in memory."""

    def in_order_of_cost(
        self, by: Sequence[RollupDimension], first: date, last: date, usage_filter: UsageFilter
    ) -> AsyncIterator[Aggregate]:
        """Sum the days from first to last as `aggregate` does, and stream all groups by the page.

        Args:
            by: what groups are made of, at least one.
            first: a day of the store's zone.
            last: the same.
            usage_filter: the names that count.

        Yields:
            At least one page; all tell of the same moment. The groups of the highest cost come first, of equal cost
            those with more requests, and else they are in the order of their names, no name before any.

        Raises:
            StorageUnavailableError: not now; `aggregate` may answer all the same.
        """


@runtime_checkable
class KeepsHours(Protocol):
    """An ability of stores that keep sums by hour, of events only: imported days have no hours."""

    async def aggregate_hours(
        self, by: Sequence[HourGrouping], first: date, last: date, usage_filter: UsageFilter
    ) -> Aggregate:
        """Sum the hours of the days from first to last; the filter may name a model and a provider, nothing else.

        Raises:
            StorageUnavailableError: not now; `events` may answer all the same.
        """


@runtime_checkable
class KeepsCopies(Protocol):
    """An ability of stores that hold a copy of profiles and limits, to be restored from or read by people.

    The ledger's are the true ones; the keeper hands them over when they have changed.
    """

    async def keep_profiles(self, profiles: Sequence[UserProfile]) -> None:
        """Keep profiles; of two of one user, the one with the newer `updated_at` counts."""

    def profiles(self) -> AsyncIterator[UserProfile]:
        """Stream the profiles that are kept, by user."""

    async def keep_limits(self, limits: Sequence[Mapping[str, Any]]) -> None:
        """Keep the limits in force, in place of those before: each as it stands in the YAML."""


@runtime_checkable
class LeavesTraces(Protocol):
    """An ability of stores whose files keep traces of what was deleted, until they are written anew."""

    async def compact(self) -> None:
        """Write the files anew. Slow; appending waits for it."""


@runtime_checkable
class HandsOut(Protocol):
    """An ability of stores that can hand out what they were sent, so that another store can catch up with them."""

    async def watermarks(self) -> Mapping[str, int]:
        """Give the number of every writer's last event or sum."""

    def sent(self, after: Mapping[str, int], upto: Mapping[str, int]) -> AsyncIterator[Sent]:
        """Stream what writers sent beyond some numbers and up to others, by writer and number, in bounded memory.

        If `after` is empty, sums whose events are gone come first, as `LEFT_OVER`'s.

        Raises:
            StoragePrunedError: some of it is gone, so that only everything can be handed out.
        """


@runtime_checkable
class Reports(Protocol):
    """An ability of stores of which a part can be away while they take events and answer."""

    @property
    def trouble(self) -> str | None:
        """Say what is away, and why; None if nothing is."""
