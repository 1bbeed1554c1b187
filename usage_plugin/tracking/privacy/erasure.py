"""Export and erase all records of a person.

A person is a set of names: the real name and its pseudonym, since records may have either. A record with one of these
names belongs to the person only if the name is a user's or an end user's. A team may have the same name.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.alerts import decode_alert
from usage_plugin.domain.erasure import NameMatches
from usage_plugin.domain.store import LeavesTraces
from usage_plugin.domain.subjects import split_subject
from usage_plugin.errors import NotFlushedError, NotForgottenError
from usage_plugin.tracking.ledger_retry import wait_while_busy
from usage_plugin.tracking.maintenance.flusher import Flusher

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Collection, Iterable

    from usage_plugin.domain.erasure import Erasable
    from usage_plugin.domain.limit_set import LimitSet
    from usage_plugin.domain.limits import Limit
    from usage_plugin.domain.liveness import Workers
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.domain.store import UsageStore
    from usage_plugin.tracking.maintenance.flusher import Unstorable
    from usage_plugin.tracking.notifications.publishers import Hooked

SLICE = 1_000
WORKERS_TIMEOUT = 60.0
_REST = 0.01
_LOOK_EVERY = 0.1


class Person(NamedTuple):
    """A person by all names, and the limits that determine which parts of a subject are a person's name."""

    names: frozenset[str]
    limits: LimitSet

    def matches(self, erasable: Erasable) -> NameMatches:
        """Return the records of this person."""
        found = [erasable.find(name) for name in sorted(self.names)]
        by_key = {limit.key: limit for limit in self.limits.limits}
        by_name = {limit.name: limit for limit in self.limits.limits}
        return NameMatches(
            accounts=[
                a for one in found for a in one.accounts if self._has(by_key.get(a.key.limit_key), a.key.subject)
            ],
            alerts=[a for one in found for a in one.alerts if self._has(by_key.get(a.key.limit_key), a.key.subject)],
            refusal_counts=[
                r for one in found for r in one.refusal_counts if self._has(by_name.get(r.limit), r.subject)
            ],
            refusals=[(ref, details) for one in found for ref, details in one.refusals if self._was_refused(details)],
            adjustments=[a for one in found for a in one.adjustments if self._has(by_name.get(a.limit), a.subject)],
            entries=[entry for one in found for entry in one.entries if self._has_event(json.loads(entry.event))],
        )

    def _has(self, limit: Limit | None, subject: str) -> bool:
        """Whether a subject includes this person. For a removed limit, any part of the subject may be a person's."""
        parts = split_subject(subject)
        if limit is not None and len(limit.per) == len(parts):
            parts = [
                part for dimension, part in zip(limit.per, parts, strict=True) if dimension in ("user", "end_user")
            ]
        return not self.names.isdisjoint(parts)

    def _was_refused(self, details: str) -> bool:
        facts = json.loads(details)
        subject = facts.get("subject", {})
        return not self.names.isdisjoint({facts.get("user"), subject.get("user"), subject.get("end_user")})

    def _has_event(self, record: object) -> bool:
        found = record if isinstance(record, dict) else {}
        return not self.names.isdisjoint({found.get("user"), found.get("end_user")})

    def was_set_aside(self, line: dict[str, Any]) -> bool:
        """Whether a line of the file of unstorable events belongs to this person."""
        return self._has_event(line.get("event"))


async def bring_to_store(opened: OpenLedger, store: UsageStore, unstorable: Unstorable, workers: Workers) -> None:
    """Wait until the store has every event that is settled now. Without living workers, flush the outbox here.

    Raises:
        NotFlushedError: the store did not take the events in time.
        StorageError: the same, if this process flushes: the store's own error.
    """
    ledger = opened.ledger
    waiting = ledger.waiting().events
    newest = ledger.acknowledged() + waiting
    if waiting and not workers.living() and workers.try_to_keep():
        try:
            flusher = Flusher(ledger, opened.operations, store, unstorable)
            await flusher.begin()
            await flusher.flush_all()
        finally:
            workers.stop_keeping()
        return
    deadline = time.monotonic() + WORKERS_TIMEOUT
    while ledger.acknowledged() < newest:
        if time.monotonic() > deadline:
            raise NotFlushedError(hint="usage-plugin status says what is wrong with the store. Nothing was forgotten.")
        await asyncio.sleep(_LOOK_EVERY)


async def forget(
    person: Person,
    opened: OpenLedger,
    store: UsageStore,
    unstorable: Unstorable,
    *,
    now: int,
    open_windows: bool,
    counts: Counter[str],
    progress: Callable[[str, int], None],
) -> None:
    """Delete all records of a person. This can be repeated safely. If interrupted, `counts` has the deletions so far.

    Args:
        person: the person to erase.
        opened: the ledger, with profiles.
        store: the history, including all settled events (see `bring_to_store`).
        unstorable: the file of events that the store never took.
        now: the time at which windows count as ended, in microseconds since 1970 UTC.
        open_windows: whether to delete also the accounts of open windows and the active adjustments.
        counts: the counter of deleted records by kind, which is added to.
        progress: called for each chunk with a kind and a number.

    Raises:
        StorageError: the store failed to delete; the deletion is incomplete, as after a LedgerError.
    """

    def done(kind: str, count: int) -> None:
        if count:
            counts[kind] += count
            progress(kind, count)

    for name in sorted(person.names):
        # Profiles first: until then the keeper may copy one into the store, and the copy is deleted with the history.
        dropped = wait_while_busy(lambda name=name: opened.profiles.remove(name))  # type: ignore[misc]
        done("profiles", int(dropped))
        while deleted := await store.forget(name, most=SLICE):
            done("history", deleted)
            # Other writers of the store get their turn.
            await asyncio.sleep(_REST)
    done("unstorable", unstorable.blank(person.was_set_aside))
    found = _over(person.matches(opened.erasable), now, open_windows=open_windows)
    wait_while_busy(lambda: opened.erasable.erase(found))
    for kind, records in found._asdict().items():
        done("outbox" if kind == "entries" else kind, len(records))


def _over(found: NameMatches, now: int, *, open_windows: bool) -> NameMatches:
    """Leave out the records that limits still need: accounts and alerts of open windows, and active adjustments."""
    return found._replace(
        accounts=[a for a in found.accounts if not a.balance.reserved and (open_windows or a.window_end <= now)],
        alerts=[a for a in found.alerts if open_windows or decode_alert(a.details).window.end <= now],
        adjustments=[a for a in found.adjustments if open_windows or a.until <= now or (a.ended_at or now + 1) <= now],
    )


def tell_plugins(person: Person, hooked: Iterable[Hooked], progress: Callable[[str, int], None]) -> None:
    """Have plugins erase a person, by each name. Erase the history first: some plugins derive their data from it.

    Raises:
        NotForgottenError: some plugins failed; all others have erased the person.
    """
    failed = {}
    for plugin, function in hooked:
        progress("plugins", 1)
        try:
            for name in sorted(person.names):
                function(name)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # a plugin may raise anything
            failed[plugin] = f"{type(error).__name__}: {error}"
    if failed:
        raise NotForgottenError(
            "; ".join(f"The plugin {plugin} did not forget them: {why}" for plugin, why in failed.items()),
            hint="Everything else is forgotten. Mend it and repeat the command.",
        )


async def leave_no_trace(erasable: Erasable, store: UsageStore, progress: Callable[[str, int], None]) -> None:
    """Rewrite the files without traces of deleted records.

    Raises:
        StorageError: the store was being read all the time, as after a LedgerBusyError. It is safe to retry.
    """
    if isinstance(store, LeavesTraces):
        progress("files", 1)
        await store.compact()
    progress("files", 1)
    wait_while_busy(erasable.compact)


def names_in(text: str, names: Collection[str]) -> bool:
    """Whether a text contains one of the names, ignoring case."""
    return any(name.casefold() in text.casefold() for name in names)
