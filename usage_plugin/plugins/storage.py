"""The store port, for authors of storage backends: everything that a store imports, in one place.

The port itself is `UsageStore`; `Ranks`, `Sorts` and the other protocols are abilities that a store may have besides.
docs/writing-a-backend.md goes through a whole backend.
"""

from usage_plugin.domain.profiles import UserProfile
from usage_plugin.domain.store import (
    GROUPINGS,
    HOUR_GROUPINGS,
    LEFT_OVER,
    ROLLUP_DIMENSIONS,
    Aggregate,
    DailySum,
    EventPosition,
    Grouping,
    HandsOut,
    HourGrouping,
    KeepsCopies,
    KeepsHours,
    LeavesTraces,
    Ranking,
    Ranks,
    Reports,
    RollupDimension,
    Sent,
    Sorts,
    UsageFilter,
    UsageStore,
    bucket_name,
    daily_sum,
)
from usage_plugin.domain.subjects import FORGOTTEN
from usage_plugin.domain.usage import UsageEvent, UsageTotals
from usage_plugin.domain.windows import Window, local_date, start_of_day
from usage_plugin.encoding import decode_event, encode_event
from usage_plugin.errors import (
    ConfigError,
    StorageDamagedError,
    StorageError,
    StoragePrunedError,
    StorageUnavailableError,
    StorageVersionError,
)
from usage_plugin.plugins.interface import (
    BackendContext,
    NoOptions,
    Options,
    Renewable,
    Restorable,
    Restoration,
    StorageBackend,
)

__all__ = [
    "FORGOTTEN",
    "GROUPINGS",
    "HOUR_GROUPINGS",
    "LEFT_OVER",
    "ROLLUP_DIMENSIONS",
    "Aggregate",
    "BackendContext",
    "ConfigError",
    "DailySum",
    "EventPosition",
    "Grouping",
    "HandsOut",
    "HourGrouping",
    "KeepsCopies",
    "KeepsHours",
    "LeavesTraces",
    "NoOptions",
    "Options",
    "Ranking",
    "Ranks",
    "Renewable",
    "Reports",
    "Restorable",
    "Restoration",
    "RollupDimension",
    "Sent",
    "Sorts",
    "StorageBackend",
    "StorageDamagedError",
    "StorageError",
    "StoragePrunedError",
    "StorageUnavailableError",
    "StorageVersionError",
    "UsageEvent",
    "UsageFilter",
    "UsageStore",
    "UsageTotals",
    "UserProfile",
    "Window",
    "bucket_name",
    "daily_sum",
    "decode_event",
    "encode_event",
    "local_date",
    "start_of_day",
]
