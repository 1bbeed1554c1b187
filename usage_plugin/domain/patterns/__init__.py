"""Patterns: notable findings in the history, with their numbers, their cost and their confidence.

Pure functions over sums that the caller has read: by model, by hour, of single users, of accounts. They report nothing
rather than a finding that chance can cause; each threshold has its reason at its definition. docs/patterns.md describes
the meaning of patterns and their blind spots.
"""

from usage_plugin.domain.patterns.everybody import Days, patterns_of_everybody
from usage_plugin.domain.patterns.failures import CostlyFailures
from usage_plugin.domain.patterns.limits import LimitState, limits_ahead
from usage_plugin.domain.patterns.models import Use
from usage_plugin.domain.patterns.pattern import PATTERN_TYPES, Pattern, PatternType, by_impact
from usage_plugin.domain.patterns.surprises import loud_hours
from usage_plugin.domain.patterns.times import HourUse, at_hours, sudden_changes, sudden_changes_by_hour
from usage_plugin.domain.patterns.users import UsersOfModels

__all__ = [
    "PATTERN_TYPES",
    "CostlyFailures",
    "Days",
    "HourUse",
    "LimitState",
    "Pattern",
    "PatternType",
    "Use",
    "UsersOfModels",
    "at_hours",
    "by_impact",
    "limits_ahead",
    "loud_hours",
    "patterns_of_everybody",
    "sudden_changes",
    "sudden_changes_by_hour",
]
