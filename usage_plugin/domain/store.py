"""The store port: what the rest of the code may ask of whatever keeps the history.

Few verbs, domain words, no query language. A store may be slow and may fail: the outbox waits for it.
What makes it safe is that `append` is atomic and idempotent by writer and number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from usage_plugin.domain.windows import local_date

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.usage import UsageEvent, UsageTotals
    from usage_plugin.domain.windows import Window

RollupDimension = Literal["user", "team", "api_key", "organization", "end_user", "model", "provider"]
"""What daily sums are kept by."""
ROLLUP_DIMENSIONS: tuple[RollupDimension, ...] = get_args(RollupDimension)

Grouping = Literal[RollupDimension, "day", "month"]
GROUPINGS: tuple[Grouping, ...] = (*ROLLUP_DIMENSIONS, "day", "month")


def group_name(event: UsageEvent, grouping: Grouping, zone: ZoneInfo) -> str | None:
    """Name the group that an event belongs to, in days and months of the zone."""
    if grouping in ("day", "month"):
        day = local_date(event.started_at, zone).isoformat()
        return day if grouping == "day" else day[:7]
    name: str | None = getattr(event, grouping)
    return name


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

    def takes(self, event: UsageEvent) -> bool:
        """Say whether an event has all the names."""
        return all(getattr(event, name) == value for name, value in self.wanted().items())


class Aggregate(NamedTuple):
    """Sums by group, and for each writer the number of its last event that they contain.

    A group is a tuple of names in the order asked for: text, None where there was no name, ISO dates for
    `day`, `YYYY-MM` for `month`.
    """

    groups: Mapping[tuple[str | None, ...], UsageTotals]
    watermarks: Mapping[str, int]


class EventPosition(NamedTuple):
    """Where a stream of events is: they are ordered by time of admission, then id."""

    started_at: int
    event_id: str


class UsageStore(ABC):
    """The history. Raises `StorageError` and nothing of its driver's."""

    @abstractmethod
    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        """Add numbered events, all or none; durable on return.

        Numbers ascend. Events up to the writer's watermark are passed over, so the same batch can be sent again.
        """

    @abstractmethod
    async def watermark(self, writer: str) -> int:
        """Give the number of the writer's last event that is stored; 0 if there is none."""

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
    async def health(self) -> None:
        """Raise `StorageError` if the store would not take an event now."""
