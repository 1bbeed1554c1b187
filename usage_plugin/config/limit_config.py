"""The keys of a limit and their combinations; `LimitConfig.build` returns the domain's rule."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import singledispatch
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, model_validator

from usage_plugin.config.field_types import (
    WEEKDAYS,
    WINDOW_REMEDY,
    Cost,
    Count,
    MatchField,
    Model,
    Names,
    Per,
    Percents,
    Until,
    Weekday,
    WindowField,
    Zone,
)
from usage_plugin.domain.limits import Action, Limit, Match, Override, Unit
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.windows import MICROSECONDS, WindowRule, start_of_day, to_instant

_AMOUNTS: dict[str, Unit] = {
    "max_cost": "usd",
    "max_total_tokens": "total_tokens",
    "max_input_tokens": "input_tokens",
    "max_output_tokens": "output_tokens",
    "max_requests": "requests",
    "max_parallel_requests": "parallel_requests",
}
_BOUNDED = ("max_cost", "max_total_tokens", "max_input_tokens", "max_output_tokens")


class Section(BaseModel):
    """The base of all sections: unknown keys are errors, values are not converted, sections are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, strict=True)


class _Amount(Section):
    """Exactly one of the amounts."""

    max_cost: Cost = None
    max_total_tokens: Count = None
    max_input_tokens: Count = None
    max_output_tokens: Count = None
    max_requests: Count = None
    max_parallel_requests: Count = None

    @model_validator(mode="after")
    def _exactly_one(self) -> _Amount:
        given = [name for name in _AMOUNTS if name in self.model_fields_set]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"expected exactly one of {', '.join(_AMOUNTS)}; found {found}")
        return self

    def written(self) -> dict[str, Any]:
        """Return the given keys with plain values, as in the YAML."""
        return {
            name: _written(name, getattr(self, name))
            for name in type(self).model_fields
            if name in self.model_fields_set
        }

    @property
    def key(self) -> str:
        """The amount's key."""
        return next(name for name in _AMOUNTS if name in self.model_fields_set)

    @property
    def amount(self) -> int | None:
        """The amount, in its unit; None is unlimited."""
        value: int | None = getattr(self, self.key)
        return value


class OverrideConfig(_Amount):
    """Another amount for the matching subjects; the first matching override counts."""

    match: MatchField
    until: Until | None = None


class LimitConfig(_Amount):
    """One entry of `limits`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    per: Per
    window: WindowField | None = None
    week_starts: Weekday | None = None
    timezone: Zone | None = None
    match: MatchField = Match()
    overrides: Annotated[tuple[OverrideConfig, ...], Field(strict=False)] = ()
    action: Action = "block"
    downgrade_to: Model | None = None
    dry_run: bool = False
    alert_at: Percents = ()
    count_from: Literal["window", "now"] = "window"
    allow_unpriced: Names = ()
    on_unbounded: Literal["deny", "allow"] = "deny"

    @model_validator(mode="after")
    def _fits_together(self) -> LimitConfig:
        for override in self.overrides:
            if override.key != self.key:
                raise ValueError(f"expected {self.key} in each override, as in the limit; found {override.key}")
        if (self.action == "downgrade") != (self.downgrade_to is not None):
            raise ValueError("expected both or neither of action: downgrade and downgrade_to; found one")
        if self.allow_unpriced and self.key != "max_cost":
            raise ValueError("allow_unpriced requires max_cost; leave it out")
        if "on_unbounded" in self.model_fields_set and self.key not in _BOUNDED:
            raise ValueError(f"on_unbounded requires one of {', '.join(_BOUNDED)}; leave it out")
        return self

    @model_validator(mode="after")
    def _fits_its_window(self) -> LimitConfig:
        if self.key == "max_parallel_requests":
            self._refuse(
                ("window", "week_starts", "alert_at", "count_from"),
                "max_parallel_requests counts concurrent requests",
            )
            return self
        if self.window is None:
            raise ValueError(f"window is missing: {WINDOW_REMEDY}")
        kind = self.window.kind
        if kind == "request":
            if self.key == "max_requests":
                raise ValueError("expected a longer window for max_requests than request, which is always one request")
            self._refuse(("alert_at", "count_from"), "window: request has no spend across requests")
        if kind == "session" and "session" not in self.per:
            raise ValueError("window: session requires session in per; write for example per: [user, session]")
        if kind != "week":
            self._refuse(("week_starts",), "only window: week has a first day")
        return self

    def _refuse(self, names: tuple[str, ...], why: str) -> None:
        found = [name for name in names if name in self.model_fields_set]
        if found:
            raise ValueError(f"{why}; leave out {' and '.join(found)}")

    def build(self, zone: ZoneInfo, week_starts: int) -> Limit:
        """Return the domain's rule.

        Args:
            zone: The time zone of a limit without one.
            week_starts: The first day of the week of a limit without one.
        """
        mine = self.timezone or zone
        window = self.window or WindowRule("lifetime")
        if window.kind == "week":
            window = window._replace(week_starts=week_starts if self.week_starts is None else self.week_starts)
        return Limit(
            name=self.name,
            per=self.per,
            unit=_AMOUNTS[self.key],
            amount=self.amount,
            window=window,
            zone=mine,
            match=self.match,
            overrides=tuple(Override(o.match, o.amount, _end_of(o.until, mine)) for o in self.overrides),
            action=self.action,
            downgrade_to=self.downgrade_to,
            dry_run=self.dry_run,
            allow_unpriced=self.allow_unpriced,
            allow_unbounded=self.on_unbounded == "allow",
            alert_at=self.alert_at,
            counts_history=self.count_from == "window",
        )


def _written(name: str, value: Any) -> Any:  # any value of YAML
    if name in _AMOUNTS and value is None:
        return "unlimited"
    if name == "max_cost":
        return format_usd(value)
    return WEEKDAYS[value] if name == "week_starts" else _plain(value)


@singledispatch
def _plain(value: Any) -> Any:
    """Return a value as YAML has it."""
    return value


@_plain.register
def _(value: Match) -> dict[str, list[str]]:
    return {key: list(globs) for key, globs in value.conditions}


@_plain.register
def _(value: WindowRule) -> dict[str, str] | str:
    return {"rolling": f"{value.length // MICROSECONDS}s"} if value.kind == "rolling" else value.kind


@_plain.register
def _(value: date) -> str:
    return value.isoformat()


@_plain.register
def _(value: ZoneInfo) -> str:
    return str(value)


@_plain.register
def _(value: tuple) -> list[Any]:  # type: ignore[type-arg]  # a class, to be registered
    return [one.written() if isinstance(one, _Amount) else one for one in value]


def _end_of(until: date | datetime | None, zone: ZoneInfo) -> int | None:
    """Return the instant at which an override ends: after its last day, or at the given time."""
    if until is None:
        return None
    if isinstance(until, datetime):
        return to_instant(until if until.tzinfo else until.replace(tzinfo=zone))
    try:
        return start_of_day(until + timedelta(days=1), zone)
    except OverflowError:
        return None  # The last day of the calendar: practically never.
