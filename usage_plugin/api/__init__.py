"""The Python API: record usage, hold budgets and read the history, in any program, with the proxy or without.

    from usage_plugin.api import open_tracker

    async with open_tracker("./data") as tracker:
        await tracker.record_usage("ann", cost="0.0123", model="gpt-4o", input_tokens=900, output_tokens=120)
        print(await tracker.get_user_daily_usage("ann"))

Money is returned as a `Decimal` in USD, and accepted as `Decimal`, string, integer or float. Only events have the
stored form, whole nano-dollars; `to_decimal` converts them to dollars.

Ranges are half-open: `start` and `since` are included, `end` and `until` are not.
"""

from usage_plugin.api.lifecycle import open_tracker
from usage_plugin.api.reservations import Reservation
from usage_plugin.api.results import (
    Forecast,
    PercentileRow,
    Session,
    Statistics,
    StreamedUsage,
    TopUsage,
    Usage,
    UsagePattern,
    UsageRow,
    UsageSummary,
    UserAlert,
    UserLimit,
)
from usage_plugin.api.tracker import UsageTracker
from usage_plugin.domain.money import to_decimal
from usage_plugin.domain.prices import Rates
from usage_plugin.domain.profiles import UserProfile
from usage_plugin.domain.usage import UsageEvent
from usage_plugin.errors import (
    BudgetExceededError,
    ConfigError,
    HistoryError,
    LedgerBusyError,
    LedgerError,
    MoneyError,
    NotAdmittedError,
    StorageError,
    StorageUnavailableError,
    SubjectNameError,
    UnknownLimitError,
    UsagePluginError,
)
from usage_plugin.pricing.model_list import configured_rates

__all__ = [
    "BudgetExceededError",
    "ConfigError",
    "Forecast",
    "HistoryError",
    "LedgerBusyError",
    "LedgerError",
    "MoneyError",
    "NotAdmittedError",
    "PercentileRow",
    "Rates",
    "Reservation",
    "Session",
    "Statistics",
    "StorageError",
    "StorageUnavailableError",
    "StreamedUsage",
    "SubjectNameError",
    "TopUsage",
    "UnknownLimitError",
    "Usage",
    "UsageEvent",
    "UsagePattern",
    "UsagePluginError",
    "UsageRow",
    "UsageSummary",
    "UsageTracker",
    "UserAlert",
    "UserLimit",
    "UserProfile",
    "configured_rates",
    "open_tracker",
    "to_decimal",
]
