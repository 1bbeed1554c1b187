"""What the readers give: sums of the previous tracker, profiles, limits, and what is worth telling of them.

Numbers are checked here, whether they come out of JSON or out of a database: floats count as the decimal text that was
written down, and are rounded to the nano-dollar.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from usage_plugin.domain.money import LARGEST_REQUEST, Nano
from usage_plugin.domain.profiles import UserProfile
from usage_plugin.domain.windows import to_instant
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

FindingKind = Literal["rejected", "broken", "disagreement", "renamed", "left_out"]


class Finding(NamedTuple):
    """Something that people must know of.

    Attributes:
        kind: `rejected`: not imported, because it cannot be right; `broken`: a file that ends early or cannot be read;
            `disagreement`: two places say different things; `renamed`: a user has another name here; `left_out`:
            means nothing here.
        where: the file.
        user: as the previous tracker had it, or empty.
        date: a day or a month, or empty.
    """

    kind: FindingKind
    where: str
    user: str
    date: str
    text: str

    def plain(self) -> dict[str, str]:
        """Write it for programs, with nothing in it that text cannot hold, and nothing endless."""
        return {name: _short(value) for name, value in self._asdict().items() if value}


def _short(text: str) -> str:
    text = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}… ({len(text)} characters)"
    return text.encode("utf-8", "backslashreplace").decode()


class RejectedError(Exception):
    """What stands there cannot be right; the message says why."""


class LegacySum(NamedTuple):
    """What a user used on a day, or in a month, as one place of the previous tracker has it.

    Attributes:
        user: as `names.key_of` writes it.
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
        """The numbers."""
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
"""The plain fields of a record that mean something here."""
NAMED = ("models_used", "providers_used")
"""The fields of which the names matter: lists of at most two, for more than one is no answer."""


def parse_sum(user: object, when: object, fields: Mapping[str, Any], *, is_month: bool) -> LegacySum:
    """Make a sum of a record.

    Raises:
        RejectedError: a number or the date cannot be right.
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
    """Take whatever stands where a user should; a number is one, as its text."""
    if user is None:
        return ""
    if isinstance(user, bytes):
        user = user.decode("utf-8", "backslashreplace")
    return key_of(user if isinstance(user, str) else str(user))


def _checked_date(when: object, *, is_month: bool) -> str:
    shape = r"\d{4}-\d{2}" if is_month else r"\d{4}-\d{2}-\d{2}"
    if not isinstance(when, str) or not re.fullmatch(shape, when, re.ASCII):
        raise RejectedError(f"{when!r} is no {'month' if is_month else 'day'}")
    try:
        day = date.fromisoformat(f"{when}-01" if is_month else when)
    except ValueError:
        raise RejectedError(f"there is no {when}") from None
    if not _FIRST_YEAR <= day.year <= _LAST_YEAR:
        raise RejectedError(f"{when} is not between {_FIRST_YEAR} and {_LAST_YEAR}")
    return when


def count(fields: Mapping[str, Any], name: str, most: int) -> int:
    """Read a number of things; nothing is 0.

    Raises:
        RejectedError: it is no whole number, negative, or more than there can be.
    """
    value = fields.get(name)
    if value is None:
        return 0
    number = _number(value, name)
    if not 0 <= number <= most:
        raise RejectedError(f"{name} is {_shown(value)}")
    if number != int(number):
        raise RejectedError(f"{name} is {_shown(value)}, not a whole number")
    return int(number)


def money(value: object, name: str) -> Nano | None:
    """Read USD, rounded to the nano-dollar; None if nothing stands there.

    Raises:
        RejectedError: it is no number, negative, or more than anybody spends.
    """
    if value is None:
        return None
    number = _number(value, name)
    if not 0 <= number <= LARGEST_REQUEST:
        raise RejectedError(f"{name} is {_shown(value)}")
    nano = int(_ROUNDED.scaleb(number, 9).to_integral_value(context=_ROUNDED))
    if nano > LARGEST_REQUEST:
        raise RejectedError(f"{name} is {_shown(value)}")
    return nano


def _number(value: object, name: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise RejectedError(f"{name} is {_shown(value)}, not a number")
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if not number.is_finite():
        raise RejectedError(f"{name} is {_shown(value)}")
    return number


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number with dozens of digits"
    return str(value) if isinstance(value, Decimal) else repr(value)


def parse_profile(record: object, zone: ZoneInfo) -> UserProfile:
    """Make a profile of a record, still under the old name.

    Raises:
        RejectedError: it names nobody.
    """
    if not isinstance(record, dict) or not isinstance(record.get("user_id"), str | int):
        raise RejectedError("it has no user_id")
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
    """Read a time, local where it names no zone; 0, which is before all others, if it is none."""
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
    """Make limits of a record, and say which of its amounts cannot be right.

    Raises:
        RejectedError: it names nobody.
    """
    if not isinstance(record, dict) or not isinstance(record.get("user_id"), str | int):
        raise RejectedError("it has no user_id")
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
    """Read thresholds as whole percents; None if they are none."""
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
