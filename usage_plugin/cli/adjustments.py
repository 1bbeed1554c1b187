"""`usage-plugin raise`, `pause`, `resume` and `adjustments`: temporary changes of an amount.

Only the amount changes, for one subject of one limit; recorded spend does not. Every change is kept with its actor, its
reason and the previous amount. Running workers apply it within a second or two.
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

from usage_plugin.cli.balances import amount_words, plain, resets_words, subject_words, unit_words
from usage_plugin.cli.date_ranges import read_duration
from usage_plugin.cli.output import Column, Output, console, escape_control, table
from usage_plugin.domain.amounts import plain_amount
from usage_plugin.domain.money import parse_usd
from usage_plugin.domain.operations import Adjustment
from usage_plugin.domain.pseudonyms import is_key
from usage_plugin.domain.subjects import SEPARATOR, clean_name
from usage_plugin.domain.windows import to_datetime
from usage_plugin.errors import AdjustmentError, MoneyError
from usage_plugin.tracking.history.balances import AccountBalances
from usage_plugin.tracking.ledger_retry import wait_while_busy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.domain.limits import Limit
    from usage_plugin.runtime import Reader

LONGEST_DAYS = 90
LONGEST_REASON = 500
LEDGER_WAIT = 10.0
"""Seconds for which a command waits for a ledger that other processes are writing to."""

ADJUSTMENT_COLUMNS = (
    Column("number", number=True), Column("limit"), Column("subject"), Column("before", number=True),
    Column("after", number=True), Column("from"), Column("until"), Column("actor"), Column("reason"), Column("ended"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Change:
    """A requested adjustment.

    Attributes:
        to: the amount as typed; None for unlimited.
        duration: the duration as typed.
    """

    limit: str
    names: Mapping[str, str | None]
    to: str | None
    duration: str
    reason: str


async def change(reader: Reader, *, output: Output, wanted: Change) -> None:
    """Record an adjustment that changes an amount for a while."""
    limit, subject = find_account(reader, wanted.limit, wanted.names)
    if limit.amount is None and not limit.overrides and wanted.to is None:
        raise AdjustmentError(f"The limit {limit.name} is unlimited and has no overrides: there is nothing to pause.")
    amount = None if wanted.to is None else _read_amount(limit, wanted.to)
    reason = " ".join(wanted.reason.split())
    if not reason or len(reason) > LONGEST_REASON:
        raise click.BadParameter(f"--reason: expected 1 to {LONGEST_REASON} characters; it is kept.")
    now = reader.clock.now()
    length = read_duration(wanted.duration, "--for", LONGEST_DAYS)
    before = AccountBalances(reader.ledger, reader.operations, reader.limits, now).of(
        reader.limits.account(limit, subject)
    )
    made = wait_while_busy(
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
        LEDGER_WAIT,
    )
    _show(reader, output, [made], f"The limit {limit.name} of {subject_words(limit.names_of(subject))}")


async def resume(reader: Reader, *, output: Output, limit_name: str, names: Mapping[str, str | None]) -> None:
    """End every adjustment of an account, so that the YAML's amount applies again."""
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
        if wait_while_busy(partial(reader.operations.end_adjustment, found.number, now), LEDGER_WAIT)
    ]
    words = subject_words(limit.names_of(subject))
    if not ended:
        raise AdjustmentError(
            f"No adjustment of the limit {limit.name} is in force for {words}.",
            hint="usage-plugin adjustments lists the adjustments in force.",
        )
    reader.limits = reader.limits.adjusted(reader.operations.adjustments(now))
    _show(reader, output, [found._replace(ended_at=now) for found in ended], f"The limit {limit.name} of {words}")


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
    """Return the limit with this name, and its subject with these names.

    Raises:
        UnknownLimitError: the limit does not exist.
        AdjustmentError: the limit does not count the subject.
        click.UsageError: the names do not match the dimensions of the limit.
    """
    limit = reader.limits.find(name)
    wanted: list[str] = [dimension for dimension in limit.per if dimension != "global"]
    given = [dimension for dimension, value in names.items() if value is not None]
    if set(given) != set(wanted):
        options = " and ".join(f"--{dimension.replace('_', '-')}" for dimension in wanted)
        raise click.UsageError(
            f"The limit {name} counts per {', '.join(limit.per)}: expected {options or 'no name'}"
            f"{' and no other names' if wanted else ', since all requests share it'}."
        )
    cleaned = {dimension: clean_option(reader, dimension, names[dimension]) for dimension in wanted}
    if not reader.limits.may_count(limit, cleaned):
        conditions = ", ".join(f"{key} {' or '.join(globs)}" for key, globs in limit.match.conditions)
        raise AdjustmentError(f"The limit {name} does not count {subject_words(cleaned)}: it is for {conditions}.")
    return limit, SEPARATOR.join(cleaned[dimension] for dimension in wanted)


def clean_option(reader: Reader, dimension: str, value: str | None) -> str:
    """Return a name in the form that the ledger keeps.

    Raises:
        SubjectNameError: the name is not valid.
        SecretError: the secret for its pseudonym is not usable.
        click.BadParameter: the name is empty.
    """
    if value in ("(anonymous)", None):
        return value or ""
    if dimension == "api_key":
        return _clean_key(reader, value)
    name = clean_name(value, what=dimension.replace("_", " "), casefold=reader.config.identity.folds(dimension))
    if name is None:
        raise click.BadParameter(f"--{dimension.replace('_', '-')} must not be empty.")
    return reader.kept(dimension, name)


def _clean_key(reader: Reader, value: str) -> str:
    """Return the kept form of a key, of LiteLLM's hash of it, or of the kept form; the key itself is never stored."""
    if not (value.startswith("sk-") or is_key(value)):
        raise click.BadParameter(
            "--api-key: expected a key, LiteLLM's hash of it, or the form shown by usage-plugin events (k-…); found"
            f" {value}. An alias is not accepted: it may belong to another key tomorrow."
        )
    return reader.kept("api_key", value)


def _read_amount(limit: Limit, text: str) -> int:
    if text == "unlimited":
        raise click.BadParameter("--to: expected an amount; found unlimited. Use usage-plugin pause instead.")
    if limit.unit == "usd":
        try:
            return parse_usd(text)
        except MoneyError as error:
            raise click.BadParameter(f"--to: {error.message} The limit {limit.name} counts USD.") from None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise click.BadParameter(
            f"--to: expected a whole number of {unit_words(limit.unit)} for the limit {limit.name}; found {text}."
        )
    return int(text)


def actor() -> str:
    """Return the name of the system user, and of the user before sudo."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"user {os.getuid()}"
    before = os.environ.get("SUDO_USER")
    return f"{before} (as {name})" if before and before != name else name


def plain_adjustment(reader: Reader, one: Adjustment) -> dict[str, Any]:
    """Return an adjustment as JSON; if its limit no longer exists, its amounts are plain numbers."""
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
    """Return the table cells of an adjustment, in the order of `ADJUSTMENT_COLUMNS`."""
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
    """Return the limit if it exists and still counts by the same number of dimensions."""
    limit = next((limit for limit in reader.limits.limits if limit.name == one.limit), None)
    fits = limit is not None and len(limit.per) == one.subject.count(SEPARATOR) + 1
    return limit if fits else None


def _show(reader: Reader, output: Output, changed: list[Adjustment], title: str) -> None:
    """Print the changed adjustments and the current balance of the account."""
    now = reader.clock.now()
    reader.limits = reader.limits.adjusted(reader.operations.adjustments(now))
    limit = next(limit for limit in reader.limits.limits if limit.name == changed[0].limit)
    account = AccountBalances(reader.ledger, reader.operations, reader.limits, now).of(
        reader.limits.account(limit, changed[0].subject)
    )
    rows = [plain_adjustment(reader, one) for one in changed]
    if not output.is_table:
        output.document({"adjustments": rows, "now": plain(account)}, rows)
        return
    screen = console()
    for one in changed:
        until = f"{to_datetime(one.until, limit.zone):%Y-%m-%d %H:%M %Z}"
        state = "ended" if one.ended_at else f"in force until {until}, by {one.actor}"
        amounts = f"{amount_words(limit, one.before)} → {amount_words(limit, one.amount)}"
        screen.print(Text(escape_control(f"Adjustment {one.number} ({amounts}) is {state}.")))
    amount = "unlimited now"
    if account.amount is not None and account.remaining is not None:
        left = amount_words(limit, account.remaining)
        amount = f"{amount_words(limit, account.amount)} {unit_words(limit.unit)} now, {left} left"
    screen.print(Text(escape_control(f"{title} is {amount}; resets: {resets_words(account)}.")))
