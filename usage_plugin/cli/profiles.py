"""`usage-plugin profiles` and `profile`: names, email addresses and tiers of users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from usage_plugin.cli.adjustments import LEDGER_WAIT, actor
from usage_plugin.cli.output import Column, Output, table
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.profiles import ProfileStore, UserProfile
from usage_plugin.domain.subjects import clean_name
from usage_plugin.domain.windows import to_datetime
from usage_plugin.errors import UnknownProfileError
from usage_plugin.runtime import Parts
from usage_plugin.tracking.ledger_retry import wait_while_busy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from zoneinfo import ZoneInfo

    from usage_plugin.config import Config
    from usage_plugin.runtime import Reader

_PAGE = 1_000

_LONGEST = 256
CHANGED_BY = "changed_by"
"""The metadata key of the actor who last changed a profile on the command line."""
_COLUMNS = tuple(map(Column, ("user", "name", "email", "tier", "active", "updated")))


async def run(reader: Reader, *, output: Output, user: str | None) -> None:
    """Print all profiles, or one user's."""
    zone = reader.config.timezone
    if user is not None:
        found = reader.profiles.get(reader.kept("user", _name(user, casefold=reader.config.identity.casefold)))
        if found is None:
            raise UnknownProfileError(f"{user} has no profile.", hint="usage-plugin profile USER --tier … creates one.")
        _show(output, iter([found]), zone)
    else:
        _show(output, _all(reader.profiles), zone)


def change(
    config: Config, name: str, *, output: Output, username: str | None, email: str | None, tier: str | None,
    is_active: bool | None,
) -> None:  # fmt: skip
    """Create or change a user's profile."""
    parts = Parts(config)
    cleaned = _name(name, casefold=config.identity.casefold)
    given = {"username": username, "email": email, "tier": tier}
    fields: dict[str, Any] = {key: _text(key, value) for key, value in given.items() if value is not None}
    if is_active is not None:
        fields["is_active"] = is_active
    if not fields:
        raise click.UsageError("Give at least one of --username, --email, --tier, --active and --inactive.")
    now = SystemClock().now()
    opened = parts.open_ledger()
    try:
        user = parts.pseudonyms_for(opened.operations).kept(cleaned)
        known = opened.profiles.get(user) or UserProfile(user, created_at=now)
        changed = known.changed(now, **fields, metadata={**known.metadata, CHANGED_BY: actor()})
        wait_while_busy(lambda: opened.profiles.put([changed]), LEDGER_WAIT)
    finally:
        opened.close()
    _show(output, iter([changed]), config.timezone)


def _name(name: str, *, casefold: bool) -> str:
    cleaned = clean_name(name, what="user", casefold=casefold)
    if cleaned is None:
        raise click.BadParameter("USER must not be empty.")
    return cleaned


def _text(key: str, value: str) -> str | None:
    """Return the cleaned text; an empty text clears the field."""
    value = value.strip()
    if not value.isprintable() or len(value) > _LONGEST:
        raise click.BadParameter(f"--{key}: expected at most {_LONGEST} printable characters.")
    if key == "tier" and not value:
        raise click.BadParameter("--tier: expected a word, such as free, premium or enterprise.")
    return value or None


def _all(profiles: ProfileStore) -> Iterator[UserProfile]:
    after = ""
    while page := profiles.page(after, _PAGE):
        yield from page
        after = page[-1].user


def _show(output: Output, profiles: Iterator[UserProfile], zone: ZoneInfo) -> None:
    if output.is_table:
        table("Profiles", _COLUMNS, (_cells(profile, zone) for profile in profiles))
    elif output.kind == "jsonl":
        for profile in profiles:
            output.line(_plain(profile))
    else:
        rows = [_plain(profile) for profile in profiles]
        output.document({"profiles": rows}, rows)


def _cells(profile: UserProfile, zone: ZoneInfo) -> list[str]:
    updated = f"{to_datetime(profile.updated_at, zone):%Y-%m-%d %H:%M}" if profile.updated_at else "-"
    return [
        profile.user, profile.username or "-", profile.email or "-", profile.tier,
        "yes" if profile.is_active else "no", updated,
    ]  # fmt: skip


def _plain(profile: UserProfile) -> dict[str, Any]:
    times = {
        name: to_datetime(at).isoformat() if (at := getattr(profile, name)) else None
        for name in ("created_at", "updated_at")
    }
    fields = {name: dict(value) if isinstance(value, Mapping) else value for name, value in profile._asdict().items()}
    return {**fields, **times}
