"""The columns of events and daily sums, the same in every format; docs/exports.md lists them.

Columns are only added, at the end of the list, so that existing readers keep working.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from usage_plugin.domain.money import format_usd
from usage_plugin.domain.store import ROLLUP_DIMENSIONS
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import to_datetime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from usage_plugin.domain.store import DailySum
    from usage_plugin.domain.usage import UsageEvent

ColumnType = Literal["text", "integer", "number", "money", "time", "day", "boolean", "list", "counts"]
COLUMN_TYPES: tuple[ColumnType, ...] = get_args(ColumnType)


class RecordColumn(NamedTuple):
    """A column: its name, its type, and whether its value may be missing."""

    name: str
    type: ColumnType
    optional: bool = False


class RecordKind:
    """A kind of record: its name, its columns, and a function that returns a record's values."""

    def __init__(self, name: str, columns: Sequence[RecordColumn], values: Callable[[Any], list[Any]]) -> None:
        """Set the function `values`, which returns domain values: nano-dollars, microseconds since 1970 UTC."""
        self.name = name
        self.columns = columns
        self.values = values
        self._names = [column.name for column in columns]
        # Computed once: a record has dozens of columns, and few of them need a conversion.
        self._written = [(at, _WRITTEN[column.type]) for at, column in enumerate(columns) if column.type in _WRITTEN]

    def plain(self, record: Any) -> dict[str, Any]:
        """Return a record as JSON: times in RFC 3339, money as decimal strings."""
        values = self.values(record)
        for at, written in self._written:
            if values[at] is not None:
                values[at] = written(values[at])
        return dict(zip(self._names, values, strict=True))


def _written_time(instant: int) -> str:
    return to_datetime(instant).isoformat(timespec="microseconds")


_WRITTEN: dict[ColumnType, Callable[[Any], str]] = {
    "money": format_usd,
    "time": _written_time,
    "day": lambda day: day.isoformat(),
}


def _event_values(event: UsageEvent) -> list[Any]:
    return [
        event.event_id, event.started_at, event.duration_us / 1000, event.status,
        event.user, event.team, event.api_key, event.api_key_alias, event.end_user, event.organization, event.session,
        list(event.tags), event.call_id,
        event.requested_model, event.model, event.served_model, event.deployment, event.provider, event.call_type,
        event.input_tokens, event.output_tokens, event.cached_input_tokens, event.cache_write_tokens,
        event.reasoning_tokens,
        event.cost, event.cost_source, event.reserved, event.excess, event.estimated, event.cache_hit,
        event.injected_output_tokens, event.clamped_to, event.downgraded_by, event.degraded, event.service_tier,
        event.error, dict(event.usage) if event.usage else {}, event.agent, event.disputed,
    ]  # fmt: skip


def _day_values(one: DailySum) -> list[Any]:
    return [*one[:-1], *one.totals]


EVENTS = RecordKind(
    "event",
    (
        RecordColumn("event_id", "text"), RecordColumn("started_at", "time"), RecordColumn("duration_ms", "number"),
        RecordColumn("status", "text"), RecordColumn("user", "text"),
        *(RecordColumn(name, "text", optional=True)
          for name in ("team", "api_key", "api_key_alias", "end_user", "organization", "session")),
        RecordColumn("tags", "list"),
        *(RecordColumn(name, "text", optional=True)
          for name in ("call_id", "requested_model", "model", "served_model", "deployment", "provider")),
        RecordColumn("call_type", "text"),
        *(RecordColumn(f"{name}_tokens", "integer")
          for name in ("input", "output", "cached_input", "cache_write", "reasoning")),
        RecordColumn("cost", "money", optional=True), RecordColumn("cost_source", "text"),
        RecordColumn("reserved", "money"), RecordColumn("excess", "money"),
        RecordColumn("estimated", "boolean"), RecordColumn("cache_hit", "boolean"),
        RecordColumn("injected_output_tokens", "integer", optional=True),
        RecordColumn("clamped_to", "integer", optional=True), RecordColumn("downgraded_by", "text", optional=True),
        RecordColumn("degraded", "boolean"), RecordColumn("service_tier", "text", optional=True),
        RecordColumn("error", "text", optional=True), RecordColumn("usage", "counts"),
        RecordColumn("agent", "text", optional=True), RecordColumn("disputed", "boolean"),
    ),
    _event_values,
)  # fmt: skip

DAYS = RecordKind(
    "day",
    (
        RecordColumn("day", "day"),
        *(RecordColumn(name, "text", optional=True) for name in ROLLUP_DIMENSIONS),
        *(RecordColumn(name, "money" if name == "cost" else "integer") for name in UsageTotals._fields),
    ),
    _day_values,
)
