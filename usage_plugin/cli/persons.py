"""`usage-plugin forget`, `export --user` and `audit`: what is kept of a person, deleted or handed out, and by whom.

Both are audited under the person's pseudonym: the audit must not keep the name of somebody who was forgotten.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from usage_plugin.cli.adjust import actor, plain_adjustment
from usage_plugin.cli.events import plain_event
from usage_plugin.cli.export.columns import DAYS
from usage_plugin.cli.export.target import prints_to_terminal, target
from usage_plugin.cli.output import Column, Output, console, harmless, table, thousands
from usage_plugin.domain.operations import AuditEntry
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.subjects import SEPARATOR, clean_name
from usage_plugin.domain.windows import to_datetime
from usage_plugin.tracking.flusher import until_free
from usage_plugin.tracking.persons import Person, bring_to_store, forget, leave_no_trace, names_in, tell_plugins
from usage_plugin.tracking.refusals import plain_amount

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

    from usage_plugin.domain.ledger import Account
    from usage_plugin.domain.limits import Limit
    from usage_plugin.runtime import Reader

_LONGEST_REASON = 500
_PATIENCE = 10.0
_PUT_ASIDE = ("*.damaged-*", "*.before-restore-*", "migration_report.jsonl", "import_report.jsonl")


EVERYBODY = "(everybody)"
"""Whose records were exported, where no user was named."""


async def run_forget(
    reader: Reader, *, output: Output, user: str, reason: str, open_windows: bool, confirmed: bool
) -> None:
    """Delete what is kept of a person, and say how much that was."""
    name = clean(reader, user)
    person = reader.person(name)
    why = clean_reason(reason, person)
    if not confirmed:
        if not can_ask():
            raise click.UsageError("This cannot be undone: write --yes where nobody can be asked.")
        click.confirm(f"Forget everything that is kept of {name} in {reader.config.data_dir}?", abort=True, err=True)
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
        # What was deleted is audited, whether all of it was or not.
        audit(reader, "forget", reader.pseudonym(name), why, counts)
    with _progress() as progress:
        tell_plugins(person, reader.plugins.listeners("usage_user_forgotten"), progress)
        await leave_no_trace(reader.erasable, reader.store, progress)
    left = person.matches(reader.erasable)
    not_reached = [str(path) for path in _not_reached(reader.config.data_dir)]
    facts = {
        "deleted": dict(counts),
        "left_in_open_windows": len(left.accounts) + len(left.adjustments),
        "not_reached": not_reached,
    }
    if not output.is_table:
        output.document(facts, [facts])
        return
    deleted = ", ".join(f"{thousands(count)} {kind.replace('_', ' ')}" for kind, count in counts.items()) or "nothing"
    console().print(Text(f"Forgotten: {deleted}."))
    if facts["left_in_open_windows"]:
        console().print(
            Text("What limits count in windows that are open stays until they end; --open-windows takes it, too.")
        )
    if not_reached:
        console().print(
            Text("Not touched, though the name may stand in them; nothing reads them any more, so delete them:")
        )
        for path in not_reached:
            console().print(Text(harmless(f"  {path}")), soft_wrap=True)


async def run_export(reader: Reader, *, user: str, to: Path | None, force: bool, reason: str) -> None:
    """Write everything that is kept of a person, a JSON object a line."""
    name = clean(reader, user)
    person = reader.person(name)
    why = clean_reason(reason, person)
    counts: Counter[str] = Counter()
    with target(to, force=force) as file, _progress(is_seen=not prints_to_terminal(to)) as progress:
        try:
            async for kind, facts in _everything(reader, person):
                file.write(f"{json.dumps({'kind': kind, **facts}, ensure_ascii=False)}\n".encode())
                counts[kind] += 1
                progress(kind, 1)
        finally:
            # Before the file is in place, and also what was handed out before somebody had enough of it.
            audit(reader, "export", reader.pseudonym(name), why, counts)
    if to is not None:
        kinds = ", ".join(f"{thousands(count)} {kind}" for kind, count in counts.items()) or "nothing is kept"
        console().print(Text(harmless(f"{to}: {kinds}.")))


async def run_audit(reader: Reader, *, output: Output, user: str | None) -> None:
    """List who forgot or exported whom."""
    wanted = None if user is None else {reader.pseudonym(clean(reader, user)), EVERYBODY}
    found = [one for one in reader.operations.audited() if wanted is None or one.subject in wanted]
    rows = [
        {**one._asdict(), "at": to_datetime(one.at).isoformat(timespec="seconds"), "counts": dict(one.counts)}
        for one in found
    ]
    if not output.is_table:
        output.document({"audit": rows}, rows)
        return
    table(
        "Forgotten and exported",
        [Column("number", number=True), *map(Column, ("at", "action", "subject", "actor", "reason", "records"))],
        [
            [str(row["number"]), row["at"], row["action"], row["subject"], row["actor"], row["reason"], _words(row)]
            for row in rows
        ],
    )  # fmt: skip


def _not_reached(data_dir: Path) -> list[Path]:
    """Find files of the data folder that were put aside or written for people, and that nothing reads any more."""
    return sorted(path for pattern in _PUT_ASIDE for path in data_dir.glob(pattern) if path.is_file())


def can_ask() -> bool:
    """Say whether somebody sits before a terminal."""
    return sys.stdin.isatty()


def _words(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{kind} {thousands(count)}" for kind, count in row["counts"].items())


def clean(reader: Reader, user: str) -> str:
    """Take a name as requests have it."""
    name = clean_name(user, what="user", casefold=reader.config.identity.folds("user"))
    if name is None:
        raise click.BadParameter("The user is empty.")
    return name


def clean_reason(reason: str, person: Person | None) -> str:
    """Take a reason that can be kept for good."""
    text = " ".join(reason.split())
    if person is not None and names_in(text, person.names):
        raise click.BadParameter("--reason: leave the name out; the reason is kept for good.")
    if len(text) > _LONGEST_REASON:
        raise click.BadParameter(f"--reason: at most {_LONGEST_REASON} characters.")
    return text


def audit(reader: Reader, action: str, subject: str, reason: str, counts: Counter[str]) -> None:
    """Write down who did something with the records of a person, by their pseudonym, or of `EVERYBODY`."""
    entry = AuditEntry(0, reader.clock.now(), action, subject, actor(), reason, dict(counts))
    until_free(lambda: reader.operations.audit(entry), _PATIENCE)


async def _everything(reader: Reader, person: Person) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Go through everything that is kept of a person."""
    for name in sorted(person.names):
        profile = reader.profiles.get(name)
        if profile is not None:
            yield "profile", _plain_profile(profile._asdict())
    async for kind, facts in _in_the_store(reader, person):
        yield kind, facts
    for kind, facts in _in_the_ledger(reader, person):
        yield kind, facts
    for line in reader.unstorable.kept():
        if person.was_set_aside(line):
            yield "unstorable", line


async def _in_the_store(reader: Reader, person: Person) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    for usage_filter, is_again in _filters(sorted(person.names)):
        async for event in reader.tracker.events(usage_filter=usage_filter):
            if not (is_again and event.user in person.names):
                yield "event", plain_event(event)
        async for sums in reader.store.daily(date.min, date.max, usage_filter):
            for one in sums:
                if not (is_again and one.user in person.names):
                    yield "day", DAYS.plain(one)


def _in_the_ledger(reader: Reader, person: Person) -> Iterator[tuple[str, dict[str, Any]]]:
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
    """Give an account as JSON has it; of a limit that is gone, bare numbers."""
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
    """Look for a person as user, and then as end user of others: what is both was seen already."""
    for name in names:
        yield UsageFilter(user=name), False
    for name in names:
        yield UsageFilter(end_user=name), True


def _plain_profile(profile: dict[str, Any]) -> dict[str, Any]:
    times = {name: to_datetime(profile[name]).isoformat() for name in ("created_at", "updated_at")}
    return {**profile, **times, "preferences": dict(profile["preferences"]), "metadata": dict(profile["metadata"])}


@contextmanager
def _progress(*, is_seen: bool = True) -> Iterator[Callable[[str, int], None]]:
    """Say how far it is, where somebody sits before a terminal."""
    screen = Console(stderr=True)
    if not (is_seen and screen.is_terminal):
        yield lambda _kind, _count: None
        return
    done: Counter[str] = Counter()
    with screen.status("Looking …") as status:

        def tell(kind: str, count: int) -> None:
            done[kind] += count
            status.update(", ".join(f"{thousands(done[kind])} {kind.replace('_', ' ')}" for kind in done))

        yield tell
