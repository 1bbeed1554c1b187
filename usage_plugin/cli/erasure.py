"""`usage-plugin forget`, `export --user` and `audit`: delete and export a person's records, and log both.

The audit log names the person by pseudonym: it must not keep the name of an erased person.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from usage_plugin.cli.adjustments import LEDGER_WAIT, LONGEST_REASON, actor, plain_adjustment
from usage_plugin.cli.events import plain_event
from usage_plugin.cli.export.columns import DAYS
from usage_plugin.cli.export.destination import destination, prints_to_terminal
from usage_plugin.cli.output import Column, Output, console, escape_control, table, thousands
from usage_plugin.cli.progress import status_line
from usage_plugin.domain.amounts import plain_amount
from usage_plugin.domain.operations import AuditEntry
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.subjects import SEPARATOR, clean_name
from usage_plugin.domain.windows import to_datetime
from usage_plugin.tracking.ledger_retry import wait_while_busy
from usage_plugin.tracking.privacy.erasure import Person, bring_to_store, forget, leave_no_trace, names_in, tell_plugins

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

    from usage_plugin.domain.ledger import Account
    from usage_plugin.domain.limits import Limit
    from usage_plugin.runtime import Reader

_LEFTOVER_FILES = ("*.damaged-*", "*.before-restore-*", "migration_report.jsonl", "import_report.jsonl")


EVERYBODY = "(everybody)"
"""The audited subject of an export without `--user`."""


async def run_forget(
    reader: Reader, *, output: Output, user: str, reason: str, open_windows: bool, confirmed: bool
) -> None:
    """Delete a person's records, and print their number."""
    name = clean_user(reader, user)
    person = reader.person(name)
    cleaned_reason = clean_reason(reason, person)
    if not confirmed:
        if not is_interactive():
            raise click.UsageError("The deletion cannot be undone: without a terminal to confirm at, add --yes.")
        click.confirm(f"Delete all records of {name} in {reader.config.data_dir}?", abort=True, err=True)
    counts: Counter[str] = Counter()
    now = reader.clock.now()
    try:
        with _progress() as progress:
            await bring_to_store(reader.opened, reader.store, reader.unstorable, reader.workers)
            await forget(
                person, reader.opened, reader.store, reader.unstorable,
                now=now, open_windows=open_windows, counts=counts, progress=progress,
            )  # fmt: skip
    finally:
        # Audited also after a failure: some records may be deleted.
        audit(reader, "forget", reader.pseudonym(name), cleaned_reason, counts)
    with _progress() as progress:
        tell_plugins(person, reader.plugins.listeners("usage_user_forgotten"), progress)
        await leave_no_trace(reader.erasable, reader.store, progress)
    left = person.matches(reader.erasable)
    not_reached = [str(path) for path in _leftover_files(reader.config.data_dir)]
    facts = {
        "deleted": dict(counts),
        "left_in_open_windows": len(left.accounts) + len(left.adjustments),
        "not_reached": not_reached,
    }
    if not output.is_table:
        output.document(facts, [facts])
        return
    deleted = ", ".join(f"{thousands(count)} {kind.replace('_', ' ')}" for kind, count in counts.items()) or "nothing"
    console().print(Text(f"Deleted: {deleted}."))
    if facts["left_in_open_windows"]:
        console().print(Text("Counts of open windows stay until the windows end; --open-windows deletes them as well."))
    if not_reached:
        console().print(
            Text("Not changed, but they may contain the name. Nothing reads these files any more; delete them:")
        )
        for path in not_reached:
            console().print(Text(escape_control(f"  {path}")), soft_wrap=True)


async def run_export(reader: Reader, *, user: str, to: Path | None, force: bool, reason: str) -> None:
    """Write all records of a person, one JSON object per line."""
    name = clean_user(reader, user)
    person = reader.person(name)
    cleaned_reason = clean_reason(reason, person)
    counts: Counter[str] = Counter()
    with destination(to, force=force) as file, _progress(is_seen=not prints_to_terminal(to)) as progress:
        try:
            async for kind, facts in _all_records(reader, person):
                file.write(f"{json.dumps({'kind': kind, **facts}, ensure_ascii=False)}\n".encode())
                counts[kind] += 1
                progress(kind, 1)
        finally:
            # Audited before the file appears, and also after an interruption: records may have been written.
            audit(reader, "export", reader.pseudonym(name), cleaned_reason, counts)
    if to is not None:
        kinds = ", ".join(f"{thousands(count)} {kind}" for kind, count in counts.items()) or "nothing is kept"
        console().print(Text(escape_control(f"{to}: {kinds}.")))


async def run_audit(reader: Reader, *, output: Output, user: str | None) -> None:
    """Print the audit log of deletions and exports."""
    wanted = None if user is None else {reader.pseudonym(clean_user(reader, user)), EVERYBODY}
    found = [one for one in reader.operations.audited() if wanted is None or one.subject in wanted]
    rows = [
        {**one._asdict(), "at": to_datetime(one.at).isoformat(timespec="seconds"), "counts": dict(one.counts)}
        for one in found
    ]
    if not output.is_table:
        output.document({"audit": rows}, rows)
        return
    table(
        "Deletions and exports",
        [Column("number", number=True), *map(Column, ("at", "action", "subject", "actor", "reason", "records"))],
        [
            [str(row["number"]), row["at"], row["action"], row["subject"], row["actor"], row["reason"], _words(row)]
            for row in rows
        ],
    )  # fmt: skip


def _leftover_files(data_dir: Path) -> list[Path]:
    """Return files of the data folder that nothing reads any more: replaced databases and reports for people."""
    return sorted(path for pattern in _LEFTOVER_FILES for path in data_dir.glob(pattern) if path.is_file())


def is_interactive() -> bool:
    """Whether standard input is a terminal."""
    return sys.stdin.isatty()


def _words(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{kind} {thousands(count)}" for kind, count in row["counts"].items())


def clean_user(reader: Reader, user: str) -> str:
    """Return the user's name in the form that requests have.

    Raises:
        click.BadParameter: the name is empty.
    """
    name = clean_name(user, what="user", casefold=reader.config.identity.folds("user"))
    if name is None:
        raise click.BadParameter("The user must not be empty.")
    return name


def clean_reason(reason: str, person: Person | None) -> str:
    """Return a reason that can be kept permanently.

    Raises:
        click.BadParameter: it contains the person's name, or is too long.
    """
    text = " ".join(reason.split())
    if person is not None and names_in(text, person.names):
        raise click.BadParameter("--reason: must not contain the name, since the reason is kept permanently.")
    if len(text) > LONGEST_REASON:
        raise click.BadParameter(f"--reason: expected at most {LONGEST_REASON} characters; found {len(text)}.")
    return text


def audit(reader: Reader, action: str, subject: str, reason: str, counts: Counter[str]) -> None:
    """Record an action on the records of a person, named by pseudonym, or of `EVERYBODY`."""
    entry = AuditEntry(0, reader.clock.now(), action, subject, actor(), reason, dict(counts))
    wait_while_busy(lambda: reader.operations.audit(entry), LEDGER_WAIT)


async def _all_records(reader: Reader, person: Person) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield all records of a person."""
    for name in sorted(person.names):
        profile = reader.profiles.get(name)
        if profile is not None:
            yield "profile", _plain_profile(profile._asdict())
    async for kind, facts in _store_records(reader, person):
        yield kind, facts
    for kind, facts in _ledger_records(reader, person):
        yield kind, facts
    for line in reader.unstorable.kept():
        if person.was_set_aside(line):
            yield "unstorable", line


async def _store_records(reader: Reader, person: Person) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    for usage_filter, is_again in _filters(sorted(person.names)):
        async for event in reader.tracker.events(usage_filter=usage_filter):
            if not (is_again and event.user in person.names):
                yield "event", plain_event(event)
        async for sums in reader.store.daily(date.min, date.max, usage_filter):
            for one in sums:
                if not (is_again and one.user in person.names):
                    yield "day", DAYS.plain(one)


def _ledger_records(reader: Reader, person: Person) -> Iterator[tuple[str, dict[str, Any]]]:
    found = person.matches(reader.erasable)
    limits = {limit.key: limit for limit in reader.limits.limits}
    for account in found.accounts:
        yield "account", _plain_account(account, limits.get(account.key.limit_key))
    for adjustment in found.adjustments:
        yield "adjustment", plain_adjustment(reader, adjustment)
    for _, details in found.refusals:
        yield "refusal", json.loads(details)
    for count in found.refusal_counts:
        at = to_datetime(count.minute * 60_000_000).isoformat()
        yield "refusals", {"minute": at, "limit": count.limit, "reason": count.reason, "times": count.times}
    for alert in found.alerts:
        yield "alert", {**json.loads(alert.details), "at": to_datetime(alert.at).isoformat()}


def _plain_account(account: Account, limit: Limit | None) -> dict[str, Any]:
    """Return an account as JSON; if its limit no longer exists, its amounts are plain numbers."""
    subject, (spent, reserved) = account.key.subject, account.balance
    return {
        "limit": limit.name if limit else None,
        "subject": limit.names_of(subject) if limit else {"name": subject.replace(SEPARATOR, ", ")},
        "window_start": to_datetime(account.key.window_start).isoformat(),
        "unit": limit.unit if limit else None,
        "spent": plain_amount(limit.unit, spent) if limit else spent,
        "reserved": plain_amount(limit.unit, reserved) if limit else reserved,
    }


def _filters(names: list[str]) -> Iterator[tuple[UsageFilter, bool]]:
    """Yield filters for a person as user, and then as end user; the latter also match records already seen."""
    for name in names:
        yield UsageFilter(user=name), False
    for name in names:
        yield UsageFilter(end_user=name), True


def _plain_profile(profile: dict[str, Any]) -> dict[str, Any]:
    times = {name: to_datetime(profile[name]).isoformat() for name in ("created_at", "updated_at")}
    return {**profile, **times, "preferences": dict(profile["preferences"]), "metadata": dict(profile["metadata"])}


@contextmanager
def _progress(*, is_seen: bool = True) -> Iterator[Callable[[str, int], None]]:
    """Show the counts so far at a terminal."""
    done: Counter[str] = Counter()
    with status_line(is_seen=is_seen) as show:
        show("Reading …")

        def add(kind: str, count: int) -> None:
            done[kind] += count
            show(", ".join(f"{thousands(done[kind])} {kind.replace('_', ' ')}" for kind in done))

        yield add
