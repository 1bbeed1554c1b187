"""Records of the previous tracker: sums, profiles, limits, and findings.

Numbers are validated here, both from JSON and from databases. A float counts as its decimal text, and is rounded to the
nano-dollar.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from usage_plugin.domain.money import LARGEST_REQUEST, Nano
from usage_plugin.domain.profiles import UserProfile
from usage_plugin.domain.windows import to_instant
from usage_plugin.errors import RejectedError
from usage_plugin.migration.user_names import key_of, only_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from zoneinfo import ZoneInfo

UNKNOWN = "unknown"
MOST_REQUESTS = 10**12
MOST_TOKENS = 10**15
_FIRST_YEAR, _LAST_YEAR = 1970, 2199
_ROUNDED = Context(prec=200, rounding=ROUND_HALF_EVEN)
_LONGEST_TEXT = 200

ImportFindingKind = Literal["rejected", "broken", "disagreement", "renamed", "left_out"]


class ImportFinding(NamedTuple):
    """An observation for the report to people.

    Attributes:
        kind: `rejected` for an invalid record, which is not imported. `broken` for a file that ends early or cannot be
            read. `disagreement` for two places with different values. `renamed` for a user with a new name here.
            `left_out` for a value without a meaning here.
        where: The file.
        user: The user's name in the previous tracker, or empty.
        date: The day or month, or empty.
        text: The description.
    """

    kind: ImportFindingKind
    where: str
    user: str
    date: str
    text: str

    def plain(self) -> dict[str, str]:
        """Return plain values for programs: valid text of bounded length."""
        return {name: _short(value) for name, value in self._asdict().items() if value}


def _short(text: str) -> str:
    text = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}… ({len(text)} characters)"
    return text.encode("utf-8", "backslashreplace").decode()


class LegacySum(NamedTuple):
    """The usage of a user on a day, or in a month, in one place of the previous tracker.

    Attributes:
        user: The name, as `user_names.key_of` returns it.
        date: `YYYY-MM-DD`, or `YYYY-MM` for a month.
    """

    user: str
    date: str
    requests: int
    failed_requests: int
    input_tokens: int
    output_tokens: int
    cost: Nano
    model: str
    provider: str

    @property
    def sums(self) -> tuple[int, ...]:
        """The numbers of the sum."""
        return self[2:7]


class LegacyLimits(NamedTuple):
    """A user's limits: amounts in nano-dollars by kind, and by kind and name for providers and models."""

    user: str
    updated_at: int
    enabled: bool
    amounts: Mapping[str, Nano]
    named: Mapping[str, Mapping[str, Nano]]
    thresholds: tuple[int, ...] | None


WANTED = frozenset({
    "total_requests", "successful_requests", "failed_requests", "total_input_tokens", "total_output_tokens",
    "total_cost", "user_id", "date", "month",
})  # fmt: skip
"""The plain fields of a record that are imported."""
NAMED = ("models_used", "providers_used")
"""The fields of which only the names are imported: at most two, since several names are ambiguous."""


def parse_sum(user: object, when: object, fields: Mapping[str, Any], *, is_month: bool) -> LegacySum:
    """Return the sum of a record.

    Raises:
        RejectedError: A number or the date is invalid.
    """
    requests = fields.get("total_requests")
    failed = count(fields, "failed_requests", MOST_REQUESTS)
    if requests is None:
        all_requests = count(fields, "successful_requests", MOST_REQUESTS) + failed
    else:
        all_requests = count(fields, "total_requests", MOST_REQUESTS)
    return LegacySum(
        user=user_key(user),
        date=_checked_date(when, is_month=is_month),
        requests=all_requests,
        failed_requests=failed,
        input_tokens=count(fields, "total_input_tokens", MOST_TOKENS),
        output_tokens=count(fields, "total_output_tokens", MOST_TOKENS),
        cost=money(fields.get("total_cost"), "total_cost") or 0,
        model=only_name(fields.get("models_used") or [], "model") or UNKNOWN,
        provider=only_name(fields.get("providers_used") or [], "provider") or UNKNOWN,
    )


def user_key(user: object) -> str:
    """Return the key of any value in place of a user; a number counts as its text."""
    if user is None:
        return ""
    if isinstance(user, bytes):
        user = user.decode("utf-8", "backslashreplace")
    return key_of(user if isinstance(user, str) else str(user))


def _checked_date(when: object, *, is_month: bool) -> str:
    shape = r"\d{4}-\d{2}" if is_month else r"\d{4}-\d{2}-\d{2}"
    if not isinstance(when, str) or not re.fullmatch(shape, when, re.ASCII):
        raise RejectedError(f"expected a {'month' if is_month else 'day'}; found {when!r}")
    try:
        day = date.fromisoformat(f"{when}-01" if is_month else when)
    except ValueError:
        raise RejectedError(f"expected a date of the calendar; found {when}") from None
    if not _FIRST_YEAR <= day.year <= _LAST_YEAR:
        raise RejectedError(f"expected a year between {_FIRST_YEAR} and {_LAST_YEAR}; found {when}")
    return when


def count(fields: Mapping[str, Any], name: str, most: int) -> int:
    """Return a count; a missing one is 0.

    Raises:
        RejectedError: It is not a whole number, negative, or above the maximum.
    """
    value = fields.get(name)
    if value is None:
        return 0
    number = _number(value, name)
    if not 0 <= number <= most:
        raise RejectedError(f"{name}: found {_shown(value)}, which is out of range")
    if number != int(number):
        raise RejectedError(f"{name}: expected a whole number; found {_shown(value)}")
    return int(number)


def money(value: object, name: str) -> Nano | None:
    """Return an amount of USD, rounded to the nano-dollar; None if it is missing.

    Raises:
        RejectedError: It is not a number, negative, or above the maximum.
    """
    if value is None:
        return None
    number = _number(value, name)
    if not 0 <= number <= LARGEST_REQUEST:
        raise RejectedError(f"{name}: found {_shown(value)}, which is out of range")
    nano = int(_ROUNDED.scaleb(number, 9).to_integral_value(context=_ROUNDED))
    if nano > LARGEST_REQUEST:
        raise RejectedError(f"{name}: found {_shown(value)}, which is out of range")
    return nano


def _number(value: object, name: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise RejectedError(f"{name}: expected a number; found {_shown(value)}")
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if not number.is_finite():
        raise RejectedError(f"{name}: found {_shown(value)}, which is out of range")
    return number


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number with dozens of digits"
    return str(value) if isinstance(value, Decimal) else repr(value)


def parse_profile(record: object, zone: ZoneInfo) -> UserProfile:
    """Return the profile of a record, still under the old name.

    Raises:
        RejectedError: It has no user.
    """
    if not isinstance(record, dict) or not isinstance(record.get("user_id"), str | int):
        raise RejectedError("user_id is missing")
    active = record.get("is_active")
    return UserProfile(
        user=user_key(record["user_id"]),
        username=_text(record.get("username")),
        email=_text(record.get("email")),
        tier=_text(record.get("user_tier")) or UserProfile._field_defaults["tier"],
        is_active=active if isinstance(active, bool) else active != 0,
        preferences=_mapping(record.get("preferences")),
        metadata=_mapping(record.get("metadata")),
        created_at=instant_of(record.get("created_at"), zone),
        updated_at=instant_of(record.get("updated_at"), zone),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def instant_of(value: object, zone: ZoneInfo) -> int:
    """Return a time, in `zone` if it names none; 0, which is before all others, if it is invalid."""
    if not isinstance(value, str):
        return 0
    try:
        moment = datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
        return max(0, to_instant(moment if moment.tzinfo else moment.replace(tzinfo=zone)))
    except (ValueError, OverflowError):
        return 0


AMOUNTS = ("daily", "weekly", "monthly", "per_request", "per_session")
NAMED_AMOUNTS = ("provider", "model")
DEFAULT_THRESHOLDS = (50, 80, 95)


def parse_limits(record: object, zone: ZoneInfo) -> tuple[LegacyLimits, list[str]]:
    """Return the limits of a record, and an error for each invalid amount.

    Raises:
        RejectedError: It has no user.
    """
    if not isinstance(record, dict) or not isinstance(record.get("user_id"), str | int):
        raise RejectedError("user_id is missing")
    wrong: list[str] = []

    def amount(value: object, name: str) -> Nano | None:
        try:
            return money(value, name)
        except RejectedError as error:
            wrong.append(str(error))
            return None

    amounts = {kind: amount(record.get(f"{kind}_limit"), f"{kind}_limit") for kind in AMOUNTS}
    named = {
        kind: {
            str(name): found
            for name, value in _mapping(record.get(f"{kind}_limits")).items()
            if (found := amount(value, f"{kind}_limits.{name}")) is not None
        }
        for kind in NAMED_AMOUNTS
    }
    limits = LegacyLimits(
        user=user_key(record["user_id"]),
        updated_at=instant_of(record.get("updated_at"), zone),
        enabled=record.get("enabled") not in (False, 0),
        amounts={kind: found for kind, found in amounts.items() if found is not None},
        named=named,
        thresholds=_percents(record.get("alert_thresholds")),
    )
    return limits, wrong


def _percents(value: object) -> tuple[int, ...] | None:
    """Return thresholds as whole percents; None if they are invalid."""
    if value is None:
        return DEFAULT_THRESHOLDS
    if not isinstance(value, list):
        return None
    try:
        shares = [_number(share, "alert_thresholds") * 100 for share in value]
    except RejectedError:
        return None
    percents = sorted({int(share) for share in shares if share == int(share) and 1 <= share <= 1000})
    return tuple(percents) if len(percents) == len(value) else None
