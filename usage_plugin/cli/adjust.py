"""`usage-plugin raise`, `pause`, `resume` and `adjustments`: changes of an amount that end by themselves.

Only amounts change, for one subject of one limit, and never what was spent. Every change is kept with its actor, its
reason and the amount before; running workers take it up within a second or two.
"""

from __future__ import annotations

import getpass
import os
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from usage_plugin.cli.output import Column, Output, console, harmless, table
from usage_plugin.cli.spans import read_duration
from usage_plugin.cli.standings import amount_words, plain, resets_words, subject_words
from usage_plugin.domain.money import parse_usd
from usage_plugin.domain.operations import Adjustment
from usage_plugin.domain.pseudonyms import is_key
from usage_plugin.domain.subjects import SEPARATOR, clean_name
from usage_plugin.domain.windows import to_datetime
from usage_plugin.errors import MoneyError, UsagePluginError
from usage_plugin.tracking.flusher import until_free
from usage_plugin.tracking.refusals import plain_amount
from usage_plugin.tracking.standings import Standings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.domain.limits import Limit
    from usage_plugin.runtime import Reader

LONGEST_DAYS = 90
_LONGEST_REASON = 500
_PATIENCE = 10.0

ADJUSTMENT_COLUMNS = (
    Column("number", number=True), Column("limit"), Column("subject"), Column("before", number=True),
    Column("after", number=True), Column("from"), Column("until"), Column("actor"), Column("reason"), Column("ended"),
)  # fmt: skip


class AdjustmentError(UsagePluginError):
    """This amount cannot be changed so."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What somebody asks for.

    Attributes:
        to: the amount as it was typed; None: nothing is refused.
        duration: how long, as it was typed.
    """

    limit: str
    names: Mapping[str, str | None]
    to: str | None
    duration: str
    reason: str


async def change(reader: Reader, *, output: Output, wanted: Change) -> None:
    """Put another amount in force for a while."""
    limit, subject = find_account(reader, wanted.limit, wanted.names)
    if limit.amount is None and not limit.overrides and wanted.to is None:
        raise AdjustmentError(f"The limit {limit.name} refuses nobody, so there is nothing to pause.")
    amount = None if wanted.to is None else _read_amount(limit, wanted.to)
    reason = " ".join(wanted.reason.split())
    if not reason or len(reason) > _LONGEST_REASON:
        raise click.BadParameter(f"--reason: say why, in at most {_LONGEST_REASON} characters; it is kept.")
    now = reader.clock.now()
    length = read_duration(wanted.duration, "--for", LONGEST_DAYS)
    before = Standings(reader.ledger, reader.operations, reader.limits, now).of(reader.limits.account(limit, subject))
    made = until_free(
        lambda: reader.operations.adjust(
            Adjustment(
                number=0,
                limit=limit.name,
                subject=subject,
                amount=amount,
                before=before.amount,
                made_at=now,
                until=now + length,
                actor=actor(),
                reason=reason,
            )
        ),
        _PATIENCE,
    )
    _show(reader, output, [made], f"The limit {limit.name} of {subject_words(limit.names_of(subject))}")


async def resume(reader: Reader, *, output: Output, limit_name: str, names: Mapping[str, str | None]) -> None:
    """End every adjustment of an account, so that the YAML's amount is in force again."""
    limit, subject = find_account(reader, limit_name, names)
    now = reader.clock.now()
    in_force = [
        found
        for found in reader.operations.adjustments(now)
        if (found.limit, found.subject, found.ended_at) == (limit.name, subject, None)
    ]
    ended = [
        found
        for found in in_force
        if until_free(partial(reader.operations.end_adjustment, found.number, now), _PATIENCE)
    ]
    whom = subject_words(limit.names_of(subject))
    if not ended:
        raise AdjustmentError(
            f"No adjustment of the limit {limit.name} is in force for {whom}.",
            hint="usage-plugin adjustments lists those that are.",
        )
    reader.limits = reader.limits.adjusted(reader.operations.adjustments(now))
    _show(reader, output, [found._replace(ended_at=now) for found in ended], f"The limit {limit.name} of {whom}")


async def show(reader: Reader, *, output: Output, everything: bool) -> None:
    """List the adjustments in force, or all that are kept."""
    found = reader.operations.adjustments(None if everything else reader.clock.now())
    rows = [plain_adjustment(reader, one) for one in found]
    if not output.is_table:
        output.document({"adjustments": rows}, rows)
        return
    table(
        "Adjustments" if everything else "Adjustments in force",
        ADJUSTMENT_COLUMNS,
        [adjustment_cells(reader, one) for one in found],
    )  # fmt: skip


def find_account(reader: Reader, name: str, names: Mapping[str, str | None]) -> tuple[Limit, str]:
    """Find the limit and the subject that are meant.

    Raises:
        UnknownLimitError: there is no such limit.
        AdjustmentError: it does not count that subject.
        click.UsageError: the options do not name what the limit counts by.
    """
    limit = reader.limits.find(name)
    wanted: list[str] = [dimension for dimension in limit.per if dimension != "global"]
    given = [dimension for dimension, value in names.items() if value is not None]
    if set(given) != set(wanted):
        options = " and ".join(f"--{dimension.replace('_', '-')}" for dimension in wanted)
        raise click.UsageError(
            f"The limit {name} counts per {', '.join(limit.per)}: give {options or 'no name'}"
            f"{' and nothing else' if wanted else ', since it is everybody’s'}."
        )
    cleaned = {dimension: clean_option(reader, dimension, names[dimension]) for dimension in wanted}
    if not reader.limits.may_count(limit, cleaned):
        conditions = ", ".join(f"{key} {' or '.join(globs)}" for key, globs in limit.match.conditions)
        raise AdjustmentError(f"The limit {name} does not count {subject_words(cleaned)}: it is for {conditions}.")
    return limit, SEPARATOR.join(cleaned[dimension] for dimension in wanted)


def clean_option(reader: Reader, dimension: str, value: str | None) -> str:
    """Take a name as requests have it.

    Raises:
        SubjectNameError: no request can have this name.
        SecretError: its pseudonym cannot be made.
        click.BadParameter: it is empty.
    """
    if value in ("(anonymous)", None):
        return value or ""
    if dimension == "api_key":
        return _clean_key(reader, value)
    name = clean_name(value, what=dimension.replace("_", " "), casefold=reader.config.identity.folds(dimension))
    if name is None:
        raise click.BadParameter(f"--{dimension.replace('_', '-')} is empty.")
    return reader.kept(dimension, name)


def _clean_key(reader: Reader, value: str) -> str:
    """Take a key by itself, by LiteLLM's hash of it, or by what is kept; the key itself is written nowhere."""
    if not (value.startswith("sk-") or is_key(value)):
        raise click.BadParameter(
            f"--api-key {value}: write the key, LiteLLM's hash of it, or what usage-plugin events shows (k-…). An alias"
            " is no key: another may have it tomorrow."
        )
    return reader.kept("api_key", value)


def _read_amount(limit: Limit, text: str) -> int:
    if text == "unlimited":
        raise click.BadParameter("--to unlimited: write usage-plugin pause instead.")
    if limit.unit == "usd":
        try:
            return parse_usd(text)
        except MoneyError as error:
            raise click.BadParameter(f"--to {text}: {error.message} The limit {limit.name} counts USD.") from None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        unit = limit.unit.replace("_", " ")
        raise click.BadParameter(f"--to {text}: the limit {limit.name} counts {unit}; write a whole number.")
    return int(text)


def actor() -> str:
    """Name who gives the command: the user of the system, and who they were before sudo."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"user {os.getuid()}"
    before = os.environ.get("SUDO_USER")
    return f"{before} (as {name})" if before and before != name else name


def plain_adjustment(reader: Reader, one: Adjustment) -> dict[str, Any]:
    """Give an adjustment as JSON has it; amounts of a limit that is gone are bare numbers."""
    limit = _limit_of(reader, one)

    def amount(value: int | None) -> str | int | None:
        return value if value is None or limit is None else plain_amount(limit.unit, value)

    return {
        "number": one.number,
        "limit": one.limit,
        "subject": limit.names_of(one.subject) if limit else {"name": one.subject.replace(SEPARATOR, ", ")},
        "unit": limit.unit if limit else None,
        "before": amount(one.before),
        "after": amount(one.amount),
        "from": to_datetime(one.made_at).isoformat(),
        "until": to_datetime(one.until).isoformat(),
        "actor": one.actor,
        "reason": one.reason,
        "ended": None if one.ended_at is None else to_datetime(one.ended_at).isoformat(),
    }


def adjustment_cells(reader: Reader, one: Adjustment) -> list[str]:
    """Write an adjustment for people."""
    limit = _limit_of(reader, one)
    zone = limit.zone if limit else reader.config.timezone

    def amount(value: int | None) -> str:
        if limit is not None:
            return amount_words(limit, value)
        return "unlimited" if value is None else str(value)

    def when(instant: int | None) -> str:
        return "" if instant is None else f"{to_datetime(instant, zone):%Y-%m-%d %H:%M %Z}"

    subject = subject_words(limit.names_of(one.subject)) if limit else one.subject.replace(SEPARATOR, ", ")
    return [
        str(one.number), one.limit, subject, amount(one.before), amount(one.amount), when(one.made_at),
        when(one.until), one.actor, one.reason, when(one.ended_at),
    ]  # fmt: skip


def _limit_of(reader: Reader, one: Adjustment) -> Limit | None:
    """Find the limit, if it still counts by as many names as it did."""
    limit = next((limit for limit in reader.limits.limits if limit.name == one.limit), None)
    fits = limit is not None and len(limit.per) == one.subject.count(SEPARATOR) + 1
    return limit if fits else None


def _show(reader: Reader, output: Output, changed: list[Adjustment], title: str) -> None:
    """Say what was changed, and how the account stands now."""
    now = reader.clock.now()
    reader.limits = reader.limits.adjusted(reader.operations.adjustments(now))
    limit = next(limit for limit in reader.limits.limits if limit.name == changed[0].limit)
    standing = Standings(reader.ledger, reader.operations, reader.limits, now).of(
        reader.limits.account(limit, changed[0].subject)
    )
    rows = [plain_adjustment(reader, one) for one in changed]
    if not output.is_table:
        output.document({"adjustments": rows, "now": plain(standing)}, rows)
        return
    screen = console()
    for one in changed:
        until = f"{to_datetime(one.until, limit.zone):%Y-%m-%d %H:%M %Z}"
        what = "ended" if one.ended_at else f"in force until {until}, by {one.actor}"
        amounts = f"{amount_words(limit, one.before)} → {amount_words(limit, one.amount)}"
        screen.print(Text(harmless(f"Adjustment {one.number} ({amounts}) is {what}.")))
    unit = "USD" if limit.unit == "usd" else limit.unit.replace("_", " ")
    now_is = "unlimited now"
    if standing.amount is not None and standing.remaining is not None:
        left = amount_words(limit, standing.remaining)
        now_is = f"{amount_words(limit, standing.amount)} {unit} now, {left} left"
    screen.print(Text(harmless(f"{title} is {now_is}; resets: {resets_words(standing)}.")))
