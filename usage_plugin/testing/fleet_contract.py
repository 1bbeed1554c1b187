"""Promises of the register of a fleet: one promise, one test, one sentence.

    class TestMyFleet(FleetContract):
        backend = MyLedgerBackend()

The docstrings are the promises. They hold for every ledger on a server.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from operator import methodcaller
from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.fleet import Member
from usage_plugin.errors import WorkerLostError
from usage_plugin.testing.hostile_names import HostileNames
from usage_plugin.testing.shared_ledger_fixtures import OpensSharedLedger

if TYPE_CHECKING:
    from collections.abc import Callable

    from usage_plugin.domain.fleet import FleetRegister
    from usage_plugin.testing.openings import SharedLedgerOpening
    from usage_plugin.testing.shared_ledger_fixtures import Replacing

_RIVALS, _ROUNDS = 4, 12


class FleetContract(OpensSharedLedger, HostileNames):
    """The promises of members, the keeper and its terms."""

    # ── members ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def test_a_new_fleet_is_empty_and_open(self, register: FleetRegister) -> None:
        """A new fleet has no member, no keeper and no term, admits reservations, and has the server's time."""
        before = SystemClock().now()
        fleet = register.view()
        assert fleet[2:] == (True, (), None, 0)
        assert fleet.incarnation
        assert abs(fleet.now - before) < 60_000_000
        assert register.view().incarnation == fleet.incarnation
        assert before <= register.view().now

    def test_a_register_creates_the_ledger(self, opening: SharedLedgerOpening) -> None:
        """The first worker connects to the register before anything else."""
        assert not opening.exists()
        register = opening.register()
        assert register.view().members == ()
        assert opening.exists()
        register.close()

    def test_members_join_and_leave(self, register: FleetRegister, opening: SharedLedgerOpening) -> None:
        """All members are listed by name, for everyone, from their joining to their leaving."""
        other = opening.register()
        bo = register.join("bo", "host 2", '{"pid": 2}')
        assert bo.members == (Member("bo", "host 2", bo.members[0].beats, '{"pid": 2}', has_reasserted=True),)
        fleet = other.join("ann", "host 1", "{}")
        assert [member.name for member in fleet.members] == ["ann", "bo"]
        assert register.view()[1:] == fleet[1:]
        register.leave("ann")
        register.leave("ann")
        assert [member.name for member in other.view().members] == ["bo"]
        other.close()

    def test_joining_again_replaces_the_details_only(self, register: FleetRegister) -> None:
        """A member that joins again keeps its host, its counter and its place as keeper."""
        joined = register.join("ann", "host", "old")
        register.beat("ann", "old")
        assert register.keep("ann", joined.term)
        before = register.view()
        (member,) = before.members
        after = register.join("ann", "elsewhere", "new")
        assert after.members == (member._replace(details="new"),)
        assert after[3:] == (after.members, "ann", before.term)

    def test_a_beat_raises_the_counter(self, register: FleetRegister) -> None:
        """Each beat raises the counter of one member, and replaces its details."""
        first = register.join("ann", "host", "{}").members[0]
        bo = register.join("bo", "host", "{}").member("bo")
        for number in (1, 2, 3):
            fleet = register.beat("ann", f"details {number}")
            assert fleet.member("ann") == first._replace(beats=first.beats + number, details=f"details {number}")
            assert fleet.member("bo") == bo

    def test_only_members_beat(self, register: FleetRegister) -> None:
        """The beat of a worker that is not a member is an error, and does not make it one."""
        register.join("ann", "host", "{}")
        with pytest.raises(WorkerLostError):
            register.beat("bo", "{}")
        register.leave("ann")
        with pytest.raises(WorkerLostError):
            register.beat("ann", "{}")
        assert register.view().members == ()

    def test_only_a_member_that_stands_still_is_buried(self, register: FleetRegister) -> None:
        """A member whose counter has changed since it was read is not removed; any other one is, and beats no more."""
        seen = register.join("ann", "host", "{}").members[0].beats
        register.beat("ann", "{}")
        assert not register.bury("ann", seen)
        assert not register.bury("ann", seen + 2)
        assert register.view().member("ann") is not None
        assert register.bury("ann", seen + 1)
        assert register.bury("ann", seen + 1), "there is no such member any more"
        assert register.bury("never", 0)
        assert register.view().members == ()
        with pytest.raises(WorkerLostError):
            register.beat("ann", "{}")

    def test_a_name_may_join_again_after_its_burial(self, register: FleetRegister) -> None:
        """It is a new member then."""
        first = register.join("ann", "host", "{}").members[0]
        register.beat("ann", "{}")
        register.beat("ann", "{}")
        assert register.bury("ann", first.beats + 2)
        again = register.join("ann", "host 2", "{}").members[0]
        assert (again.host, again.has_reasserted) == ("host 2", True)

    def test_a_beat_or_a_burial_wins(self, register: FleetRegister, opening: SharedLedgerOpening) -> None:
        """Of a beat and a burial at the same time, exactly one succeeds."""

        def beats(register: FleetRegister) -> bool:
            try:
                register.beat("ann", "{}")
            except WorkerLostError:
                return False
            return True

        for _ in range(_ROUNDS):
            seen = register.join("ann", "host", "{}").members[0].beats
            won = _at_once(opening, [beats, methodcaller("bury", "ann", seen)])
            assert sum(won) == 1, "beat, burial"
            assert (register.view().member("ann") is not None) == won[0]
            register.leave("ann")

    def test_names_and_details_are_taken_as_they_are(self, register: FleetRegister, hostile: tuple[str, ...]) -> None:
        """No member is taken for another."""
        for name in hostile:
            register.join(name, name, name)
        for name in hostile[::2]:
            register.beat(name, f"{name}, raised")
        members = register.view().members
        assert [member.name for member in members] == sorted(hostile)
        assert [member.name for member in members if member.details != member.name] == [
            member.name for member in members if member.name in hostile[::2]
        ]
        assert all(member.host == member.name for member in members)

    # ── the keeper ───────────────────────────────────────────────────────────────────────────────────────────────────

    def test_there_is_one_keeper(self, register: FleetRegister) -> None:
        """A member becomes the keeper if there is none, with the next term; as keeper it does not become it again."""
        term = register.join("ann", "host", "{}").term
        register.join("bo", "host", "{}")
        assert register.keep("ann", term)
        assert register.view()[4:] == ("ann", term + 1)
        for name in ("bo", "ann"):
            assert not register.keep(name, term)
            assert not register.keep(name, term + 1)
        assert register.view()[4:] == ("ann", term + 1)

    def test_only_a_member_becomes_the_keeper(self, register: FleetRegister) -> None:
        """A worker that is not a member, or no longer one, does not become the keeper."""
        term = register.join("ann", "host", "{}").term
        register.leave("ann")
        for name in ("ann", "never"):
            assert not register.keep(name, term)
        assert register.view()[4:] == (None, term)

    @pytest.mark.parametrize("end", ["stops", "leaves", "is buried"])
    def test_another_keeper_has_a_higher_term(self, end: str, register: FleetRegister) -> None:
        """After a keeper has stopped, left or died, another member can be the keeper, if it knows the last term."""
        ann = register.join("ann", "host", "{}")
        register.join("bo", "host", "{}")
        assert register.keep("ann", ann.term)
        term = ann.term + 1
        ends: dict[str, Callable[[], object]] = {
            "stops": lambda: register.stop_keeping("ann"),
            "leaves": lambda: register.leave("ann"),
            "is buried": lambda: register.bury("ann", ann.members[0].beats),
        }
        ends[end]()
        assert register.view()[4:] == (None, term)
        for other in (term - 1, term + 1):
            assert not register.keep("bo", other)
        assert register.keep("bo", term)
        assert register.view()[4:] == ("bo", term + 1)

    def test_only_the_keeper_stops_keeping(self, register: FleetRegister) -> None:
        """Others that stop, leave or die do not end the keeper's term."""
        ann = register.join("ann", "host", "{}")
        bo = register.join("bo", "host", "{}").member("bo")
        assert bo is not None
        assert register.keep("ann", ann.term)
        register.stop_keeping("bo")
        register.stop_keeping("never")
        register.leave("never")
        assert register.bury("bo", bo.beats)
        assert register.view()[4:] == ("ann", ann.term + 1)

    def test_of_several_candidates_one_becomes_the_keeper(
        self, register: FleetRegister, opening: SharedLedgerOpening
    ) -> None:
        """Of members that try to be the keeper at the same time, exactly one succeeds, and terms ascend by one."""
        names = [f"worker {number}" for number in range(_RIVALS)]
        for name in names:
            register.join(name, "host", "{}")
        for _ in range(_ROUNDS):
            term = register.view().term
            won = _at_once(opening, [methodcaller("keep", name, term) for name in names])
            assert sum(won) == 1, won
            keeper = names[won.index(True)]
            assert register.view()[4:] == (keeper, term + 1)
            register.stop_keeping(keeper)

    # ── another incarnation ──────────────────────────────────────────────────────────────────────────────────────────

    def test_a_new_incarnation_is_closed_until_members_have_reasserted(
        self, register: FleetRegister, replaced: Replacing
    ) -> None:
        """After a restart the incarnation is another one, the members are the same, and reservations wait for them."""
        before = register.join("ann", "host", "{}")
        replaced()
        fleet = register.view()
        assert fleet.incarnation != before.incarnation
        assert not fleet.is_open
        assert fleet.members == (before.members[0]._replace(has_reasserted=False),)
        joined = register.join("bo", "host", "{}")
        assert [member.has_reasserted for member in joined.members] == [False, True]
        assert not joined.is_open
        assert not register.join("ann", "host", "{}").members[0].has_reasserted
        assert not register.beat("ann", "{}").is_open

    def test_a_member_with_reservations_keeps_a_closed_ledger_closed(
        self, register: FleetRegister, replaced: Replacing
    ) -> None:
        """A member that joins with reservations of a former name opens no ledger before it has sent them."""
        register.join("ann", "host", "{}")
        assert register.join("bo", "host", "{}", has_reasserted=False).is_open, "it has lost nothing"
        register.leave("bo")
        replaced()
        fleet = register.join("ann 2", "host", "{}", has_reasserted=False)
        assert [member.has_reasserted for member in fleet.members] == [False, False]
        register.leave("ann")
        assert not register.view().is_open
        register.leave("ann 2")
        assert register.view().is_open

    def test_a_new_incarnation_has_no_keeper(self, register: FleetRegister, replaced: Replacing) -> None:
        """It has no keeper and a term that is higher than all before, since it may have forgotten the last ones."""
        term = register.join("ann", "host", "{}").term
        assert register.keep("ann", term)
        replaced()
        fleet = register.view()
        assert fleet.keeper is None
        assert fleet.term > term + 100
        assert not register.keep("ann", term + 1)
        assert register.keep("ann", fleet.term)

    @pytest.mark.parametrize("end", ["leaves", "is buried"])
    def test_the_last_missing_member_opens_by_its_end(
        self, end: str, register: FleetRegister, replaced: Replacing
    ) -> None:
        """Members that leave or die do not keep a new incarnation closed."""
        register.join("ann", "host", "{}")
        bo = register.join("bo", "host", "{}").member("bo")
        assert bo is not None
        replaced()
        register.leave("ann")
        assert not register.view().is_open
        if end == "leaves":
            register.leave("bo")
        else:
            assert register.bury("bo", bo.beats)
        assert register.view().is_open

    def test_a_new_incarnation_without_members_is_open(self, register: FleetRegister, replaced: Replacing) -> None:
        """Nothing can be missing then."""
        before = register.view()
        replaced()
        fleet = register.view()
        assert fleet.incarnation != before.incarnation
        assert fleet.is_open


def _at_once(opening: SharedLedgerOpening, calls: list[Callable[[FleetRegister], bool]]) -> list[bool]:
    """Run each call in a thread with a register of its own, all at the same time."""
    meeting = threading.Barrier(len(calls))

    def run(call: Callable[[FleetRegister], bool]) -> bool:
        register = opening.register()
        try:
            meeting.wait(60)
            return call(register)
        finally:
            register.close()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))
