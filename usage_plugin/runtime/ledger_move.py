"""Move the ledger and the history of one configuration to the place of another, in steps that can be repeated.

1. Check the two configurations, the secret, and that no proxy runs. Mark both ledgers, so that none can start.
2. Flush the outbox into the old store.
3. Copy the history, then the records of the ledger.
4. Compare both sides.
5. Mark the old ledger as moved, and then remove the mark of the new one.

A run that was killed is repeated. Until the last step no proxy starts on either side.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from usage_plugin.domain.money import format_usd
from usage_plugin.errors import ConfigError, MoveError, NothingRecordedError, SecretError
from usage_plugin.moving import history_copy, ledger_copy
from usage_plugin.moving.mark import Mark, read_mark, write_mark
from usage_plugin.runtime.data_folder import prepare_data_folder
from usage_plugin.runtime.idle_workers import keep_idle
from usage_plugin.tracking.maintenance.flusher import Flusher
from usage_plugin.tracking.privacy.secret import recorded_fingerprint

if TYPE_CHECKING:
    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.domain.store import UsageStore
    from usage_plugin.moving.mark import State
    from usage_plugin.moving.progress import Progress
    from usage_plugin.runtime.composition import Parts


@dataclass
class MoveOutcome:
    """The outcome of a move, or of a preview.

    Attributes:
        source: the location of the old ledger, for people.
        target: the location of the new one; None in a preview if it does not exist yet.
        is_moved: whether the new ledger is the one to use from now on.
        was_moved_before: whether there was nothing left to do.
        records: the number of records of each kind, on both sides if it was moved.
    """

    source: str
    target: str | None = None
    is_moved: bool = False
    was_moved_before: bool = False
    records: dict[str, int] = field(default_factory=dict)
    cost: str = "0.00"

    def plain(self) -> dict[str, Any]:
        """Return plain values, for programs."""
        return {
            "moved": self.is_moved,
            "moved_before": self.was_moved_before,
            "source": self.source,
            "target": self.target,
            "records": {name.replace(" ", "_"): number for name, number in self.records.items()},
            "cost": self.cost,
        }


class LedgerMove:
    """A move between the places of two configurations."""

    def __init__(self, source: Parts, target: Parts, clock: Clock, progress: Progress) -> None:
        """Check the configurations.

        Raises:
            ConfigError: They do not fit together.
        """
        self._source = source
        self._target = target
        self._clock = clock
        self._progress = progress
        if target.config.timezone != source.config.timezone:
            raise ConfigError(
                f"usage_plugin.timezone: expected {source.config.timezone}, as in {source.config.path}; found"
                f" {target.config.timezone} in {target.config.path}.",
                hint="Days of the history are days of that zone.",
            )
        if target.config.storage.backend == "memory":
            raise ConfigError(
                f"usage_plugin.storage.backend: memory in {target.config.path} loses the history at exit.",
                hint="Choose another backend.",
            )

    async def preview(self) -> MoveOutcome:
        """Return what would be moved; change and create nothing, whether proxies run or not.

        Raises:
            UsagePluginError: The move cannot be done.
        """
        self._check_source()
        with ExitStack() as stack:
            old = _opened(stack, self._source)
            outcome = MoveOutcome(old.ledger.location)
            self._check_secret(old)
            if self._target.has_ledger():
                new = _opened(stack, self._target)
                outcome.target = new.ledger.location
                outcome.was_moved_before = self._is_over(old, new)
            await self._count(old, outcome)
            return outcome

    async def run(self) -> MoveOutcome:
        """Move everything, or complete an interrupted move.

        Raises:
            UsagePluginError: The move cannot be done, or was interrupted. Both ledgers stay marked if anything was
                changed.
        """
        self._check_source()
        prepare_data_folder(self._target.config.data_dir)
        with ExitStack() as stack:
            old, new = _opened(stack, self._source), _opened(stack, self._target)
            outcome = MoveOutcome(old.ledger.location, new.ledger.location)
            self._check_secret(old)
            if self._is_over(old, new):
                outcome.is_moved = outcome.was_moved_before = True
                return outcome
            if damage := old.ledger.verify():
                raise MoveError(f"The ledger {old.ledger.location} is damaged: {damage[0]}", hint="Run the doctor.")
            before = read_mark(old.operations), read_mark(new.operations)
            check_idle = stack.enter_context(keep_idle([self._source, self._target]))
            try:
                if before[0] is None or before[0].state != "moved":
                    self._mark(old, "leaving", new, self._target)
                self._mark(new, "arriving", old, self._source)
                # Again: a worker that has started in between has not seen the marks, but is seen now.
                check_idle()
            except MoveError:
                write_mark(new.operations, before[1])
                write_mark(old.operations, before[0])
                raise
            await self._copy(old, new, is_older_copy=before[1] is not None)
            await self._count(old, outcome)
            self._mark(old, "moved", new, self._target)
            write_mark(new.operations, None)
            outcome.is_moved = True
            return outcome

    async def undo(self) -> MoveOutcome:
        """Let the old ledger be used again, unless the new one was used meanwhile.

        Raises:
            MoveError: There is nothing to undo, or the new ledger was used.
        """
        self._check_source()
        with ExitStack() as stack:
            old = _opened(stack, self._source)
            outcome = MoveOutcome(old.ledger.location)
            mark = read_mark(old.operations)
            if mark is None or mark.state == "arriving":
                raise MoveError(f"The ledger {old.ledger.location} was not moved; there is nothing to undo.")
            has_target = self._target.has_ledger()
            stack.enter_context(keep_idle([self._source, self._target] if has_target else [self._source]))
            if has_target:
                new = _opened(stack, self._target)
                outcome.target = new.ledger.location
                await self._give_up(old, new, mark)
            write_mark(old.operations, None)
            return outcome

    async def _give_up(self, old: OpenLedger, new: OpenLedger, mark: Mark) -> None:
        """Mark the new ledger as incomplete, so that it cannot be used at the same time as the old one.

        Raises:
            MoveError: It is another one, or was used.
        """
        if mark.writer != new.ledger.writer:
            raise MoveError(
                f"The ledger {old.ledger.location} was moved to {mark.place}, and not to {new.ledger.location}.",
                hint=f"Name the YAML of that place with --to, such as {mark.config}.",
            )
        if read_mark(new.operations) is None:
            found = ledger_copy.differing_records(old, new)
            if not found and not self._has_one_storage:
                async with AsyncExitStack() as stack:
                    found = await history_copy.differing_history(*await self._stores(stack), self._progress)
            if found or new.ledger.waiting().events:
                raise MoveError(
                    f"The ledger {new.ledger.location} was used since the move, so the old one lacks spend.",
                    hint=f"Move it back: run `usage-plugin move-ledger` from the YAML {self._target.config.path}"
                    f" with --to {self._source.config.path}.",
                )
            self._mark(new, "arriving", old, self._source)

    def _check_source(self) -> None:
        if not self._source.has_ledger():
            raise NothingRecordedError(
                f"There is no ledger to move in {self._source.config.path}.",
                hint="Name the YAML of the old ledger with --config.",
            )

    def _check_secret(self, old: OpenLedger) -> None:
        """Check that names and keys have the same pseudonyms at the new place.

        Raises:
            SecretError: They would have others.
        """
        expected = recorded_fingerprint(old.operations)
        pseudonyms = self._target.pseudonyms()
        if expected is None or (pseudonyms is not None and pseudonyms.fingerprint == expected):
            return
        found = "no secret" if pseudonyms is None else f"another one, with fingerprint {pseudonyms.fingerprint}"
        old_secret, new_secret = self._source.secret, self._target.secret
        if new_secret.is_configured:
            remedy = f"Set it to the content of {old_secret}: 64 hex digits."
        else:
            remedy = f"Copy the content of {old_secret} to the file {new_secret}, readable by its owner only."
        raise SecretError(
            f"{new_secret}: expected the secret with fingerprint {expected}, which the ledger {old.ledger.location} is"
            f" used with; found {found}.",
            hint=f"{remedy} Otherwise accounts per api key and per pseudonym would begin at zero.",
        )

    def _is_over(self, old: OpenLedger, new: OpenLedger) -> bool:
        """Whether this move has ended before.

        Raises:
            MoveError: The marks of the two ledgers are of another move, or the new one has records of its own.
        """
        if old.ledger.writer == new.ledger.writer:
            raise MoveError(
                f"Both YAMLs name the same ledger, {old.ledger.location}.",
                hint="Name the YAML of the old ledger with --config, and that of the new one with --to.",
            )
        leaving, arriving = read_mark(old.operations), read_mark(new.operations)
        is_leaving_here = leaving is not None and leaving.writer == new.ledger.writer
        if leaving is not None and (leaving.state == "arriving" or not is_leaving_here):
            raise MoveError(
                f"The ledger {old.ledger.location} cannot be moved: "
                + ("another move to it is not complete." if leaving.state == "arriving" else
                   f"it has been moved to {leaving.place}, or is being moved there."),
                hint=f"The other YAML of that move is {leaving.config}.",
            )  # fmt: skip
        if arriving is None:
            if leaving is not None and leaving.state == "moved":
                return True
            if not ledger_copy.is_unused(new):
                raise MoveError(
                    f"The ledger {new.ledger.location} has records of its own.",
                    hint="Move to an empty place: another data_dir, schema or database.",
                )
        elif arriving.writer != old.ledger.writer:
            raise MoveError(
                f"The ledger {new.ledger.location} belongs to a move from or to {arriving.place}.",
                hint="Move to an empty place: another data_dir, schema or database.",
            )
        return False

    def _mark(self, opened: OpenLedger, state: State, other: OpenLedger, parts: Parts) -> None:
        mark = Mark(state, other.ledger.writer, other.ledger.location, _path(parts), self._clock.now())
        write_mark(opened.operations, mark)

    @property
    def _has_one_storage(self) -> bool:
        """Whether both YAMLs name one storage in one data folder, so that the history stays where it is.

        Two storages on one server are found to be equal by comparing them.
        """
        old, new = self._source.config, self._target.config
        return (old.storage.backend, old.storage.options, old.data_dir.resolve()) == (
            new.storage.backend,
            new.storage.options,
            new.data_dir.resolve(),
        )

    async def _stores(self, stack: AsyncExitStack) -> tuple[UsageStore, UsageStore]:
        old = await stack.enter_async_context(self._source.open_store_for_import())
        return old, await stack.enter_async_context(self._target.open_store_for_import())

    async def _copy(self, old: OpenLedger, new: OpenLedger, *, is_older_copy: bool) -> None:
        """Copy everything, and compare both sides.

        Args:
            old: the source.
            new: the target.
            is_older_copy: whether the new place only has records of an earlier or interrupted move.
        """
        async with AsyncExitStack() as stack:
            if self._has_one_storage:
                await self._flush(old, await stack.enter_async_context(self._source.open_store_for_import()))
                found = []
            else:
                stores = await self._stores(stack)
                await history_copy.check_foreign(*stores)
                await self._flush(old, stores[0])
                is_copied = await history_copy.copy_history(*stores, self._progress)
                if not is_copied and is_older_copy:
                    await history_copy.empty_older_copy(*stores)
                    await history_copy.copy_history(*stores, self._progress)
                found = await history_copy.differing_history(*stores, self._progress)
        ledger_copy.copy_records(old, new, self._progress)
        self._progress.begin("comparing", None)
        found += ledger_copy.differing_records(old, new)
        if found:
            raise MoveError(
                f"The new place {new.ledger.location} differs from the old one after the move: {', '.join(found)}.",
                hint="Nothing uses the new ledger. Run the command again, or move to an empty place.",
            )

    async def _flush(self, old: OpenLedger, store: UsageStore) -> None:
        self._progress.begin("events of the outbox", old.ledger.waiting().events)
        flusher = Flusher(old.ledger, old.operations, store, self._source.unstorable(self._clock))
        await flusher.begin()
        while count := await flusher.flush():
            self._progress.advance(count)

    async def _count(self, old: OpenLedger, outcome: MoveOutcome) -> None:
        outcome.records = ledger_copy.count_records(old)
        async with self._source.open_store_for_reading() as store:
            totals = await history_copy.totals_of_history(store)
        outcome.records["requests in the history"] = totals.requests
        outcome.cost = format_usd(totals.cost)


def _path(parts: Parts) -> str:
    return str(parts.config.path.absolute())


def _opened(stack: ExitStack, parts: Parts) -> OpenLedger:
    opened = parts.open_marked_ledger()
    stack.callback(opened.close)
    return opened
