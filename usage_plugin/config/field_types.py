"""Types of single values in the YAML: their accepted spellings, and the errors for all others.

Pydantic validates each key with one of these types. YAML changes values that people forget to quote, so a value that
could mean two things is an error, never converted.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, PlainValidator, SecretStr

from usage_plugin.domain.limits import Match, MatchKey
from usage_plugin.domain.money import LARGEST_REQUEST, Nano, parse_usd
from usage_plugin.domain.pseudonyms import SECRET_FORM, parse_secret
from usage_plugin.domain.subjects import DIMENSIONS, Dimension
from usage_plugin.domain.windows import WINDOW_KINDS, WindowKind, WindowRule
from usage_plugin.errors import MoneyError

_MATCH_KEYS: tuple[str, ...] = (*(d for d in DIMENSIONS if d != "global"), "group")
_LARGEST_COUNT = 2**62
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DAYS = {"d": 1, "y": 366}
_MOST_DAYS = 36_600
_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_HOW_TO_MAKE = "`openssl rand -hex 32` makes one"
_NAMED_WINDOWS = tuple(kind for kind in WINDOW_KINDS if kind != "rolling")
WINDOW_REMEDY = f"expected one of {', '.join(_NAMED_WINDOWS)}, or {{rolling: 5h}}"


def _parse_zone(value: object) -> ZoneInfo:
    if isinstance(value, ZoneInfo):
        return value
    try:
        return ZoneInfo(str(value))
    except (KeyError, ValueError, OSError):
        raise ValueError(f"expected a time zone such as Europe/Berlin or UTC; found {value!r}") from None


def _parse_duration(value: object, least: str, most: str, example: str) -> timedelta:
    if isinstance(value, timedelta):
        return value
    found = _seconds(str(value))
    if found is None or not (_seconds(least) or 0) <= found <= (_seconds(most) or 0):
        raise ValueError(f"expected a duration between {least} and {most}, such as {example}; found {value!r}")
    return timedelta(seconds=found)


def _seconds(text: str) -> int | None:
    found = re.fullmatch(r"(\d{1,6})\s*([smhd])", text, re.ASCII)
    return int(found[1]) * _SECONDS[found[2]] if found else None


def duration(least: str, most: str, *, example: str) -> BeforeValidator:
    """Return the validator of a duration within bounds."""
    return BeforeValidator(lambda value: _parse_duration(value, least, most, example))


def _parse_retention(value: object) -> int | None:
    if value == "unlimited":
        return None
    found = _days(value)
    if not 1 <= found <= _MOST_DAYS:
        raise ValueError(f"expected days or years between 1d and 100y, such as 90d, or unlimited; found {value!r}")
    return found


def _days(value: object) -> int:
    found = re.fullmatch(r"(\d{1,5})\s*([dy])", str(value), re.ASCII)
    return int(found[1]) * _DAYS[found[2]] if found else 0


def _parse_days(value: object, most: int, example: str) -> int:
    found = _days(value)
    if not 1 <= found <= most:
        raise ValueError(f"expected days between 1d and {most}d, such as {example}; found {value!r}")
    return found


def days(most: int, *, example: str) -> PlainValidator:
    """Return the validator of a number of days, written as a duration."""
    return PlainValidator(lambda value: _parse_days(value, most, example))


def _parse_most_bytes(value: object) -> int | None:
    return None if value == "unlimited" else _parse_size(value)


def _parse_size(value: object) -> int:
    found = re.fullmatch(r"([1-9]\d{0,5})\s*([MGT]i?B)", str(value), re.ASCII)
    if not found:
        raise ValueError(f"expected a size of at least 1MB, a whole number with MB, GB, MiB or GiB; found {value!r}")
    return int(found[1]) * _BYTES[found[2]]


def parse_names(value: object) -> tuple[str, ...]:
    """Parse one name or a list of names; other types of YAML are names that lack quotes."""
    names: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    if not names:
        raise ValueError("expected at least one name; found []; add a name, or leave the key out")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"expected text; YAML read {name!r} as {type(name).__name__}; put quotes around it")
    return tuple(unicodedata.normalize("NFC", name.strip()) for name in names)


def _parse_name(value: object) -> str:
    if isinstance(value, list | tuple):
        raise ValueError(f"expected one name; found the list {value!r}")
    return parse_names(value)[0]


def _parse_model(value: object) -> str:
    name = _parse_name(value)
    if "*" in name:
        raise ValueError(f"expected one model_name, not a glob; found {name!r}")
    return name


def _parse_group(value: object) -> tuple[str, ...]:
    return () if value == [] else parse_names(value)


def _parse_cost(value: object) -> Nano | None:
    if value == "unlimited":
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise ValueError(f"expected USD such as 5 or 0.25, or unlimited; found {value!r}")
    try:
        return parse_usd(value)
    except MoneyError as error:
        raise ValueError(f"{error.message} Write USD such as 5 or 0.25, 0 to block, or unlimited") from None


def _parse_count(value: object) -> int | None:
    if value == "unlimited":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_COUNT:
        raise ValueError(f"expected a whole number, 0 to block, or unlimited; found {value}")
    return value


def _parse_unmetered(value: object) -> Literal["allow", "deny"] | Nano:
    if value == "allow" or value == "deny":  # noqa: PLR1714  # so that mypy sees which words these are
        return value
    with contextlib.suppress(MoneyError):
        if isinstance(value, int | Decimal | str) and not isinstance(value, bool):
            cost = parse_usd(value)
            if cost <= LARGEST_REQUEST:
                return cost
    raise ValueError(
        f"expected allow, deny, or the USD that each such request costs, such as 0.01; found {_plain(value)}"
    )


def _parse_percents(value: object) -> tuple[int, ...]:
    percents: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    right = all(isinstance(p, int) and not isinstance(p, bool) and 1 <= p <= 1000 for p in percents)
    if not right or not percents or percents != sorted(set(percents)):
        raise ValueError(
            "expected whole percents from 1 to 1000, ascending and each once, for example [50, 80, 100];"
            f" found {value!r}"
        )
    return tuple(percents)


def _parse_weekday(value: object) -> int:
    if isinstance(value, str) and value in WEEKDAYS:
        return WEEKDAYS.index(value)
    raise ValueError(f"expected one of {', '.join(WEEKDAYS)}; found {value!r}")


def _parse_window(value: object) -> WindowRule:
    if isinstance(value, WindowRule):
        return value
    if isinstance(value, Mapping) and set(value) == {"rolling"}:
        length = _parse_duration(value["rolling"], "10s", "3660d", "5h")
        return WindowRule("rolling", length=length // timedelta(microseconds=1))
    if not isinstance(value, str) or value not in _NAMED_WINDOWS:
        raise ValueError(f"{WINDOW_REMEDY}; found {value!r}")
    return WindowRule(cast("WindowKind", value))


def _parse_until(value: object) -> date | datetime:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.fromisoformat(value.replace("Z", "+00:00")) if "T" in value else date.fromisoformat(value)
    if not isinstance(value, date):
        raise ValueError(f"expected a date as YYYY-MM-DD (that day included); found {value!r}")
    return value


def _parse_per(value: object) -> tuple[str, ...]:
    names = () if value == [] else parse_names(value)
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown or not names:
        found = repr(unknown[0]) if unknown else "[]"
        raise ValueError(f"expected one of {', '.join(DIMENSIONS)}, or a list of them; found {found}")
    if len(set(names)) < len(names) or ("global" in names and len(names) > 1):
        raise ValueError(f"expected each dimension once, and global alone; found {list(names)}")
    return names


def _parse_match(value: object) -> Match:
    if isinstance(value, Match):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f'expected a condition such as {{user: ann}} or {{model: "o3*"}}; found {value!r}')
    conditions = []
    for key, names in value.items():
        if key not in _MATCH_KEYS:
            raise ValueError(f"expected one of {', '.join(_MATCH_KEYS)} as a key; found {key!r}")
        conditions.append((cast("MatchKey", key), parse_names(names)))
    return Match(tuple(conditions))


def _parse_secret(value: object) -> SecretStr:
    """Wrap a secret; no error shows the value, not even a wrong one: it may lack one digit only."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str):
        raise ValueError(f"expected {SECRET_FORM} in quotes; found another type; {_HOW_TO_MAKE}")
    if parse_secret(text) is None:
        raise ValueError(f"expected {SECRET_FORM}; found a text of {len(text)} characters; {_HOW_TO_MAKE}")
    return SecretStr(text.strip())


def _parse_secret_path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected the path of a file, such as /run/secrets/usage")
    if parse_secret(value) is not None:
        raise ValueError("expected the path of a file; found a secret; write it under secret")
    return Path(value)


def _plain(value: object) -> str:
    return str(value) if isinstance(value, Decimal) else repr(value)


SecretField = Annotated[SecretStr, BeforeValidator(_parse_secret)]
SecretPath = Annotated[Path, BeforeValidator(_parse_secret_path)]
Zone = Annotated[ZoneInfo, BeforeValidator(_parse_zone)]
Names = Annotated[tuple[str, ...], BeforeValidator(parse_names)]
Name = Annotated[str, BeforeValidator(_parse_name)]
Model = Annotated[str, BeforeValidator(_parse_model)]
Group = Annotated[tuple[str, ...], BeforeValidator(_parse_group)]
Cost = Annotated[int | None, BeforeValidator(_parse_cost)]
Count = Annotated[int | None, BeforeValidator(_parse_count)]
Size = Annotated[int, BeforeValidator(_parse_size)]
MostBytes = Annotated[int | None, BeforeValidator(_parse_most_bytes)]
Days = Annotated[int | None, BeforeValidator(_parse_retention)]
Percents = Annotated[tuple[int, ...], BeforeValidator(_parse_percents)]
Weekday = Annotated[int, PlainValidator(_parse_weekday)]
WindowField = Annotated[WindowRule, PlainValidator(_parse_window)]
Until = Annotated[date | datetime, BeforeValidator(_parse_until)]
Per = Annotated[tuple[Dimension, ...], BeforeValidator(_parse_per)]
MatchField = Annotated[Match, BeforeValidator(_parse_match)]
UnmeteredPolicy: TypeAlias = Literal["allow", "deny"] | Nano
Unmetered = Annotated[UnmeteredPolicy, PlainValidator(_parse_unmetered)]
