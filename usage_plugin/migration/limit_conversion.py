"""Convert old limits to a file for `limits_from`: one limit for each kind, with an override for each user.

The limits themselves are unlimited: a user without an old limit has none. The previous tracker had no window for
providers and models; here these limits count by the month. Nothing else is added.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.globs import glob_of
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.subjects import clean_name
from usage_plugin.errors import SubjectNameError
from usage_plugin.migration.legacy_records import ImportFinding, LegacyLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from usage_plugin.domain.money import Nano


class _Kind(NamedTuple):
    """One limit of the file: the old name, and the new scope."""

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
    limits: Callable[[], Iterable[tuple[str, LegacyLimits]]], tell: Callable[[ImportFinding], None], origin: str
) -> Iterator[str]:
    """Yield the lines of the file; none if there is no limit.

    Args:
        limits: Returns the limits with the new names of their users, the newest of a user first; called several times.
        tell: Receives a finding for each limit that is left out.
        origin: The directory, for the header of the file.
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
            yield "# You may edit this file: a migration does not overwrite changes.\nlimits:\n"
            begun = True
        yield f"  - name: {kind.name}\n    per: {kind.per}\n    window: {kind.window}\n    max_cost: unlimited\n"
        if thresholds and kind.alerts:
            yield f"    alert_at: [{', '.join(map(str, thresholds))}]\n"
        yield f"    overrides:\n{first}"
        yield from overrides


def _look_through(
    limits: Iterable[tuple[str, LegacyLimits]], tell: Callable[[ImportFinding], None]
) -> tuple[int, ...] | None:
    """Report the limits that the file leaves out, and return the thresholds if all users have the same."""
    seen: dict[str, str] = {}
    thresholds: Counter[tuple[int, ...] | None] = Counter()
    for user, old in limits:
        if user in seen:
            if seen[user] != old.user:
                text = f"Its limits: its name here is {user}, and that user has other limits."
                tell(ImportFinding("left_out", "limits", old.user, "", text))
            continue
        seen[user] = old.user
        if not old.enabled:
            tell(ImportFinding("left_out", "limits", old.user, "", "Its limits were disabled."))
            continue
        thresholds[old.thresholds] += 1
        for kind in _KINDS:
            for name in old.named.get(kind.named, ()) if kind.named else ():
                if _clean(name, kind.old) is None:
                    tell(ImportFinding("left_out", "limits", old.user, "", f"Invalid name of a {kind.old}: {name!r}."))
    if len(thresholds) > 1 or None in thresholds:
        counts = ", ".join(f"{list(found) if found else 'none that is valid'}: {n}" for found, n in thresholds.items())
        text = f"alert_thresholds: expected the same for all users; found {counts}."
        tell(ImportFinding("left_out", "limits", "", "", text))
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
    # Strings of JSON are valid in YAML too, as long as they are printable.
    conditions = ", ".join(f"{key}: {json.dumps(glob_of(name), ensure_ascii=False)}" for key, name in match.items())
    return f'      - {{match: {{{conditions}}}, max_cost: "{format_usd(amount)}"}}\n'


def _clean(name: str, what: str) -> str | None:
    try:
        return clean_name(name, what=what)
    except SubjectNameError:
        return None
