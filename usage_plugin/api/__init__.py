"""The Python API: record usage, hold budgets and read what was spent, in any program, with the proxy or without.

    from usage_plugin.api import open_tracker

    async with open_tracker("./data") as tracker:
        await tracker.record_usage("ann", cost="0.0123", model="gpt-4o", input_tokens=900, output_tokens=120)
        print(await tracker.get_user_daily_usage("ann"))

Money is a `Decimal` in USD wherever this package gives it, and anything exact, or a float that somebody else computed,
where it takes it. Only events are as they are stored: whole nano-dollars, which `to_decimal` turns into dollars.
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
from usage_plugin.domain.profiles import UserProfile
from usage_plugin.domain.usage import UsageEvent
from usage_plugin.errors import BudgetExceededError, NotAdmittedError, UsagePluginError

__all__ = [
    "BudgetExceededError",
    "Forecast",
    "NotAdmittedError",
    "PercentileRow",
    "Reservation",
    "Session",
    "Statistics",
    "StreamedUsage",
    "TopUsage",
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
    "open_tracker",
    "to_decimal",
]
