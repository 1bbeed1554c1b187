"""Ledgers with one deliberate fault each, and the promise whose test must detect it.

`test_sabotage.py` runs the contract on them in a separate pytest; this file is not collected otherwise.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from usage_plugin.domain.ledger import Charge, OutboxBacklog, Reserved, Settled
from usage_plugin.ledgers.sqlite import SqliteLedgerBackend
from usage_plugin.ledgers.sqlite.erasable import SqliteErasable
from usage_plugin.ledgers.sqlite.ledger import SqliteLedger
from usage_plugin.ledgers.sqlite.operations import SqliteOperationsLog
from usage_plugin.ledgers.sqlite.profiles import SqliteProfileStore
from usage_plugin.ledgers.workers.file_locked_workers import FileLockedWorkers
from usage_plugin.testing import (
    ErasableContract,
    LedgerContract,
    OperationsLogContract,
    ProfileStoreContract,
    WorkersContract,
)
from usage_plugin.testing.builders import END

if TYPE_CHECKING:
    from collections.abc import Callable

SABOTAGES: dict[str, set[str]] = {}
"""For each promise, the contract classes of the ledgers that break it."""

CONTRACTS = {
    SqliteLedger: LedgerContract,
    SqliteOperationsLog: OperationsLogContract,
    SqliteProfileStore: ProfileStoreContract,
    SqliteErasable: ErasableContract,
}


class SabotagedBackend(SqliteLedgerBackend):
    """Open a SQLite ledger, and sabotage one of its parts."""

    def __init__(self, part_class: type) -> None:
        self._class = part_class

    def open(self, options: Any, surroundings: Any) -> Any:
        opened = super().open(options, surroundings)
        for part in (opened.ledger, opened.operations, opened.profiles, opened.erasable):
            if issubclass(self._class, type(part)):
                part.__class__ = self._class
        return opened


class LooksByOpening(SabotagedBackend):
    def exists(self, options: Any, surroundings: Any) -> bool:
        existed = super().exists(options, surroundings)
        self.open(options, surroundings).close()
        return existed


class RenamesTheWriter(SabotagedBackend):
    def open(self, options: Any, surroundings: Any) -> Any:
        opened = super().open(options, surroundings)
        opened.ledger.writer = f"{time.monotonic_ns()}"
        return opened


def breaks(*tests: str, backend: type[SabotagedBackend] = SabotagedBackend) -> Callable[[type], type]:
    """Create the contract class of a broken part, and record the promises that it breaks."""

    def register(part_class: type) -> type:
        contract = f"Test{part_class.__name__}"
        promised = next(promised for part, promised in CONTRACTS.items() if issubclass(part_class, part))
        globals()[contract] = type(contract, (promised,), {"backend": backend(part_class), "__module__": __name__})
        for test in tests:
            SABOTAGES.setdefault(test, set()).add(contract)
        return part_class

    return register


@breaks("test_looking_creates_nothing", backend=LooksByOpening)
class IsMadeByLooking(SqliteLedger):
    pass


@breaks("test_everything_survives_reopening", backend=RenamesTheWriter)
class ChangesItsName(SqliteLedger):
    pass


@breaks("test_a_reservation_holds_on_every_account")
class HoldsOnTheFirst(SqliteLedger):
    def reserve(self, event_id, worker, started_at, holds, event):
        return super().reserve(event_id, worker, started_at, holds[:1], event)


@breaks("test_a_reservation_is_all_or_nothing")
class HoldsWhatItCan(SqliteLedger):
    def reserve(self, event_id, worker, started_at, holds, event):
        answer = super().reserve(event_id, worker, started_at, holds, event)
        if not answer.admitted:
            super().reserve(event_id, worker, started_at, holds[:1], event)
        return answer


@breaks("test_what_needs_nothing_always_fits")
class BlocksTheFree(SqliteLedger):
    def reserve(self, event_id, worker, started_at, holds, event):
        if any(hold.maximum == 0 for hold in holds):
            return Reserved(False, ())
        return super().reserve(event_id, worker, started_at, holds, event)


@breaks("test_settling_frees_charges_and_records_at_once")
class ChargesTheFirst(SqliteLedger):
    def settle(self, event_id, charges, event):
        return super().settle(event_id, charges[:1], event)


@breaks("test_the_first_settlement_wins")
class SettlesTwice(SqliteLedger):
    def settle(self, event_id, charges, event):
        return super().settle(event_id, charges, event) or super().record(f"{event_id} again", charges, event)


@breaks("test_recovery_charges_what_the_holds_say")
class RecoversForNothing(SqliteLedger):
    def recover(self, event_id):
        return self.settle(event_id, [], "draft")


@breaks("test_a_rolling_window_is_the_sum_of_its_buckets")
class SeesOneBucket(SqliteLedger):
    def reserve(self, event_id, worker, started_at, holds, event):
        return super().reserve(event_id, worker, started_at, [hold._replace(since=None) for hold in holds], event)


@breaks("test_an_account_lasts_as_long_as_its_last_use_says")
class EndsAsItBegan(SqliteLedger):
    def reserve(self, event_id, worker, started_at, holds, event):
        return super().reserve(event_id, worker, started_at, [hold._replace(window_end=100) for hold in holds], event)


@breaks("test_a_released_request_leaves_no_trace")
class RecordsReleases(SqliteLedger):
    def release(self, event_id):
        released = super().release(event_id)
        self.record(f"{event_id} released", [], "released")
        return released


@breaks("test_what_was_never_reserved_can_be_recorded")
class RecordsNothing(SqliteLedger):
    def record(self, event_id, charges, event):
        return super().record(event_id, charges, None)


@breaks("test_nothing_is_reserved_twice")
class ReservesAgain(SqliteLedger):
    def reserve(self, event_id, worker, started_at, holds, event):
        self.release(event_id)
        return super().reserve(event_id, worker, started_at, holds, event)


@breaks("test_an_unknown_reservation_can_be_recorded_once")
class RecordsAgain(SqliteLedger):
    def record(self, event_id, charges, event):
        return super().record(event_id, charges, event) or super().record(f"{event_id} again", charges, event)


@breaks("test_what_has_ended_is_known_for_a_while")
class ForgetsReleases(SqliteLedger):
    def release(self, event_id):
        released = super().release(event_id)
        with self._writing():
            self._execute("DELETE FROM ended")
        return released


@breaks("test_a_reservation_can_be_repeated")
class AnswersAnew(SqliteLedger):
    def reserve(self, event_id, worker, started_at, holds, event):
        answer = super().reserve(event_id, worker, started_at, holds, event)
        return answer._replace(balances=tuple(self.balances([hold.account for hold in holds]).values()))


@breaks("test_what_was_abandoned_holds_nothing")
class LeavesNoTombstone(SqliteLedger):
    def abandon(self, event_id):
        self.release(event_id)
        return True


@breaks("test_what_was_never_reserved_has_nothing_to_end")
class BuriesTheUnknown(SqliteLedger):
    def release(self, event_id):
        return self.abandon(event_id)


@breaks("test_a_request_without_limits_is_still_recorded")
class NeedsALimit(SqliteLedger):
    def reserve(self, event_id, worker, started_at, holds, event):
        return super().reserve(event_id, worker, started_at, holds, event) if holds else Reserved(False, ())


@breaks("test_acknowledging_goes_forward_only")
class AcknowledgesBackwards(SqliteLedger):
    def acknowledge(self, seq):
        self.agree(seq)


@breaks(
    "test_a_ledger_that_is_behind_goes_on_behind_the_store",
    "test_an_empty_ledger_gives_no_number_that_the_store_has_seen",
    "test_a_store_that_is_behind_gets_again_what_is_still_there",
)
class NeverAgrees(SqliteLedger):
    def agree(self, stored):
        self.acknowledge(stored)


@breaks("test_entries_with_new_numbers_follow_all_others")
class TurnsTheOutboxRound(SqliteLedger):
    def agree(self, stored):
        super().agree(stored)
        entries = self.outbox(stored, 10)
        with self._writing():
            for entry, other in zip(entries, entries[::-1], strict=True):
                self._execute("UPDATE outbox SET event = ? WHERE seq = ?", (other.event, entry.seq))


@breaks("test_accounts_are_listed_by_subject")
class ListsBackwards(SqliteLedger):
    def accounts(self, limit_key, since, subject=None):
        return super().accounts(limit_key, since, subject)[::-1]


@breaks("test_every_account_and_hold_is_listed")
class ListsUsedAccountsOnly(SqliteLedger):
    def every_account(self):
        return (account for account in super().every_account() if any(account.balance))


@breaks("test_every_account_and_hold_is_listed")
class ListsNoCharge(SqliteLedger):
    def open_reservations(self, *, with_holds=False):
        return [
            one._replace(holds=[hold._replace(if_lost=hold.amount) for hold in one.holds])
            for one in super().open_reservations(with_holds=with_holds)
        ]


@breaks("test_a_snapshot_is_of_one_instant")
class NumbersByWhatIsAcknowledged(SqliteLedger):
    def snapshot(self, keys):
        return super().snapshot(keys)._replace(seq=self.acknowledged())


@breaks("test_a_correction_counts_once")
class CorrectsAgain(SqliteLedger):
    def correct(self, correction_id, differences):
        corrected = super().correct(correction_id, differences)
        super().correct(f"{correction_id} again", differences)
        return corrected


@breaks("test_a_refusal_brings_the_buckets_that_it_is_about")
class BringsNoBuckets(SqliteLedger):
    def reserve(self, event_id, worker, started_at, holds, event):
        return super().reserve(event_id, worker, started_at, holds, event)._replace(buckets={})


@breaks("test_adjustments_are_kept_for_the_audit")
class EndsAnything(SqliteOperationsLog):
    def end_adjustment(self, number, at):
        super().end_adjustment(number, at)
        return True


@breaks("test_a_threshold_is_alerted_once")
class AlertsAlways(SqliteOperationsLog):
    def alert(self, key, at, details=""):
        super().alert(key, at, details)
        return True


@breaks("test_alerts_are_listed_and_acknowledged_once")
class ListsOldAlertsFirst(SqliteOperationsLog):
    def alerts(self, since, subjects):
        return super().alerts(since, subjects)[::-1]


@breaks("test_records_of_another_log_keep_their_numbers")
class NumbersAgain(SqliteOperationsLog):
    def audit(self, entry):
        super().audit(entry._replace(number=0))


@breaks("test_records_of_another_log_keep_their_numbers")
class LosesAcknowledgements(SqliteOperationsLog):
    def keep_alert(self, alert):
        super().keep_alert(alert._replace(acknowledged_at=None, acknowledged_by=None))


@breaks("test_notes_are_left_for_others")
class TakesPrefixesForPatterns(SqliteOperationsLog):
    def notes(self, prefix):
        return super().notes(prefix.rstrip("/"))


@breaks("test_closed_windows_go_and_open_ones_stay")
class TidiesTooEarly(SqliteLedger):
    def maintain(self, now):
        super().maintain(now + 20 * END)


@breaks("test_a_profile_comes_back_as_it_was_put")
class DropsAddresses(SqliteProfileStore):
    def put(self, profiles):
        super().put([profile._replace(email=None) for profile in profiles])


@breaks("test_the_newest_profile_counts")
class KeepsTheLastProfile(SqliteProfileStore):
    def put(self, profiles):
        for profile in profiles:
            self.remove(profile.user)
        super().put(profiles)


@breaks("test_pages_give_each_profile_once")
class SkipsAProfile(SqliteProfileStore):
    def page(self, after, most):
        return super().page(after, most)[1:]


@breaks("test_changes_can_be_followed")
class NoticesNoChange(SqliteProfileStore):
    def version(self):
        return 0


@breaks("test_what_was_freed_is_not_held")
class KeepsWhatWasFreed(SqliteLedger):
    def free(self, event_id, accounts):
        pass


@breaks("test_what_was_freed_is_not_charged_when_the_worker_dies")
class ChargesWhatWasFreed(SqliteLedger):
    def free(self, event_id, accounts):
        holds = self._own[event_id][1]
        vars(self)["freed"] = [Charge(one.account, END, one.if_lost) for one in holds if one.account in accounts]
        super().free(event_id, accounts)

    def recover(self, event_id):
        recovered = super().recover(event_id)
        self.correct(f"{event_id} freed", self.freed)
        return recovered


@breaks("test_names_are_taken_as_they_are")
class FoldsSubjects(SqliteLedger):
    def accounts(self, limit_key, since, subject=None):
        accounts = super().accounts(limit_key, since, subject)
        return [one._replace(key=one.key._replace(subject=one.key.subject.casefold())) for one in accounts]


@breaks("test_alerts_and_notes_keep_names_as_they_are")
class FoldsNames(SqliteOperationsLog):
    def note(self, name, text):
        super().note(name.casefold(), text)


@breaks("test_numbers_are_never_used_twice")
class BeginsAnew(SqliteLedger):
    def maintain(self, now):
        with self._writing():
            self._execute("DELETE FROM outbox")


@breaks("test_what_waits_for_the_store_is_measured")
class MeasuresCharacters(SqliteLedger):
    def waiting(self):
        entries = self.outbox(self.acknowledged(), 1_000)
        return OutboxBacklog(len(entries), sum(len(entry.event) for entry in entries))


@breaks("test_an_event_may_be_left_out")
class RecordsAnEmptyEvent(SqliteLedger):
    def settle(self, event_id, charges, event):
        return super().settle(event_id, charges, event or "lost")


@breaks("test_anomalies_add_up")
class CountsOnce(SqliteOperationsLog):
    def count_anomalies(self, anomalies):
        super().count_anomalies([one._replace(times=1) for one in anomalies])


@breaks("test_refusals_are_counted_and_looked_up")
class ForgetsDetails(SqliteOperationsLog):
    def refusal(self, ref):
        return super().refusal(ref) and "{}"


@breaks("test_a_name_is_found_whole")
class FindsOneNameOnly(SqliteErasable):
    def find(self, name):
        found = super().find(name)
        return found._replace(accounts=[one for one in found.accounts if one.key.subject == name])


@breaks("test_a_name_is_found_as_json_has_it")
class LooksForPlainText(SqliteErasable):
    def find(self, name):
        found = super().find(name)
        return found._replace(entries=[entry for entry in found.entries if name in entry.event])


@breaks("test_what_is_erased_is_gone")
class ErasesNoAlert(SqliteErasable):
    def erase(self, matches):
        super().erase(matches._replace(alerts=[]))


@breaks("test_what_is_in_use_is_not_erased")
class ErasesWhatIsHeld(SqliteErasable):
    def erase(self, matches):
        with self._writing():
            for account in matches.accounts:
                self._execute("DELETE FROM accounts WHERE subject = ?", (account.key.subject,))


@breaks("test_the_audit_is_kept")
class AuditsNoReason(SqliteOperationsLog):
    def audit(self, entry):
        super().audit(entry._replace(reason=""))


@breaks("test_whatever_is_done_in_whatever_order")
class RoundsCharges(SqliteLedger):
    def settle(self, event_id, charges, event):
        return super().settle(event_id, [one._replace(amount=one.amount // 10 * 10) for one in charges], event)


@breaks("test_a_hundred_ask_and_five_are_admitted")
class ChecksTooEarly(SqliteLedger):
    def reserve(self, event_id, worker, started_at, holds, event):
        before = self.balances([hold.account for hold in holds])
        time.sleep(0.005)
        if not all(hold.fits(before[hold.account]) for hold in holds):
            return Reserved(False, tuple(before.values()))
        return super().reserve(event_id, worker, started_at, [hold._replace(maximum=None) for hold in holds], event)


@breaks("test_processes_share_a_limit_exactly")
class LetsALittleMoreThrough(SqliteLedger):
    def reserve(self, event_id, worker, started_at, holds, event):
        generous = [hold._replace(maximum=(hold.maximum or 0) + 20) for hold in holds]
        return super().reserve(event_id, worker, started_at, generous, event)


@breaks("test_a_killed_process_loses_nothing")
class SettlesLater(SqliteLedger):
    def settle(self, event_id, charges, event):
        later = vars(self).setdefault("later", [])
        later.append((event_id, charges, event))
        if len(later) > 20:
            for one in later:
                super().settle(*one)
            later.clear()
        return Settled(1, {})


@breaks("test_a_failing_call_leaves_all_or_nothing")
class SettlesInTwoSteps(SqliteLedger):
    def settle(self, event_id, charges, event):
        settled = super().settle(event_id, charges, None)
        return settled and settled._replace(seq=self.record(f"{event_id} recorded", [], event).seq)


def breaks_liveness(test: str) -> Callable[[type], type]:
    """Create the contract class of broken liveness detection, and record the promise that it breaks."""

    def register(workers_class: type) -> type:
        contract = f"Test{workers_class.__name__}"
        members = {"see": lambda _, place: workers_class(place), "__module__": __name__}
        globals()[contract] = type(contract, (WorkersContract,), members)
        SABOTAGES.setdefault(test, set()).add(contract)
        return workers_class

    return register


@breaks_liveness("test_a_worker_lives_from_joining_to_leaving")
class StaysAfterLeaving(FileLockedWorkers):
    def leave(self):
        self.stop_keeping()


@breaks_liveness("test_a_killed_worker_is_dead")
class TrustsTheFile(FileLockedWorkers):
    def _is_alive(self, name):
        return self._path(name).exists()


@breaks_liveness("test_there_is_one_keeper")
class KeepsForEver(FileLockedWorkers):
    def stop_keeping(self):
        pass
