"""Old limits as ordinary ones: a file for `limits_from`, with one limit for each kind and an override for each user.

The limits themselves are unlimited: who had none has none. Nothing is added to what the previous tracker knew, but for
providers and models it named no window; here they count by the month.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.limits import glob_of
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.subjects import clean_name
from usage_plugin.errors import SubjectNameError
from usage_plugin.migration.legacy_records import Finding, LegacyLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from usage_plugin.domain.money import Nano


class _Kind(NamedTuple):
    """One limit of the file: what the old one was called, and what counts here."""

    name: str
    old: str
    per: str
    window: str
    named: str | None = None
    alerts: bool = True


_KINDS = (
    _Kind("migrated-daily", "daily", "user", "day"),
    _Kind("migrated-weekly", "weekly", "user", "week"),
    _Kind("migrated-monthly", "monthly", "user", "month"),
    _Kind("migrated-request", "per_request", "user", "request", alerts=False),
    _Kind("migrated-session", "per_session", "[user, session]", "session"),
    _Kind("migrated-provider", "provider", "[user, provider]", "month", named="provider"),
    _Kind("migrated-model", "model", "[user, model]", "month", named="model"),
)


def lines_of(
    limits: Callable[[], Iterable[tuple[str, LegacyLimits]]], tell: Callable[[Finding], None], origin: str
) -> Iterator[str]:
    """Write the file, line by line; nothing if there is no limit.

    Args:
        limits: gives the limits with the new names of their users, the newest of a user first; asked several times.
        tell: takes what is left out.
        origin: the directory, to be named in the file.
    """
    thresholds = _look_through(limits(), tell)
    begun = False
    for kind in _KINDS:
        overrides = _overrides(kind, limits())
        first = next(overrides, None)
        if first is None:
            continue
        if not begun:
            yield f"# The limits of the previous usage tracker, imported from {json.dumps(origin)}.\n"
            yield "# Yours to change: a migration does not write over changes.\nlimits:\n"
            begun = True
        yield f"  - name: {kind.name}\n    per: {kind.per}\n    window: {kind.window}\n    max_cost: unlimited\n"
        if thresholds and kind.alerts:
            yield f"    alert_at: [{', '.join(map(str, thresholds))}]\n"
        yield f"    overrides:\n{first}"
        yield from overrides


def _look_through(
    limits: Iterable[tuple[str, LegacyLimits]], tell: Callable[[Finding], None]
) -> tuple[int, ...] | None:
    """Tell what has no place in the file, and give the thresholds if all have the same."""
    seen: dict[str, str] = {}
    thresholds: Counter[tuple[int, ...] | None] = Counter()
    for user, old in limits:
        if user in seen:
            if seen[user] != old.user:
                tell(Finding("left_out", "limits", old.user, "", f"Its limits: it is {user} here, who has others."))
            continue
        seen[user] = old.user
        if not old.enabled:
            tell(Finding("left_out", "limits", old.user, "", "Its limits were switched off."))
            continue
        thresholds[old.thresholds] += 1
        for kind in _KINDS:
            for name in old.named.get(kind.named, ()) if kind.named else ():
                if _clean(name, kind.old) is None:
                    tell(Finding("left_out", "limits", old.user, "", f"No {kind.old} can have the name {name!r}."))
    if len(thresholds) > 1 or None in thresholds:
        told = ", ".join(f"{list(found) if found else 'none that can be used'}: {n}" for found, n in thresholds.items())
        tell(Finding("left_out", "limits", "", "", f"alert_thresholds, which are not the same for all users ({told})."))
        return None
    return next(iter(thresholds), None)


def _overrides(kind: _Kind, limits: Iterable[tuple[str, LegacyLimits]]) -> Iterator[str]:
    seen = set()
    for user, old in limits:
        if user in seen:
            continue
        seen.add(user)
        if not old.enabled:
            continue
        if kind.named is None:
            if kind.old in old.amounts:
                yield _override({"user": user}, old.amounts[kind.old])
            continue
        for name, amount in old.named[kind.named].items():
            cleaned = _clean(name, kind.old)
            if cleaned is not None:
                yield _override({"user": user, kind.named: cleaned}, amount)


def _override(match: dict[str, str], amount: Nano) -> str:
    # JSON's strings are YAML's too, as long as nothing in them is unprintable.
    conditions = ", ".join(f"{key}: {json.dumps(glob_of(name), ensure_ascii=False)}" for key, name in match.items())
    return f'      - {{match: {{{conditions}}}, max_cost: "{format_usd(amount)}"}}\n'


def _clean(name: str, what: str) -> str | None:
    try:
        return clean_name(name, what=what)
    except SubjectNameError:
        return None
