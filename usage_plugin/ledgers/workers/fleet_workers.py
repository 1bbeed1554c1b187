"""The workers of a ledger that many hosts share: members of the fleet's register, and file locks on each host.

A thread of its own raises this worker's counter and looks at those of the others. A worker is declared dead

- by another one of its host, as soon as its file lock is free: within two seconds;
- by the keeper, once its counter has not changed for `lost_after` seconds;
- by any worker, in the same way, if it is the keeper.

That time is measured by the own monotonic clock, and only between two answers of the server: while the server hangs,
no counter is raised. A worker that was declared dead joins again under another name.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.liveness import Workers
from usage_plugin.errors import LedgerError, WorkerLostError
from usage_plugin.log import get_logger, short_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from usage_plugin.domain.clock import ServerClock
    from usage_plugin.domain.fleet import Fleet, FleetRegister, Member
    from usage_plugin.ledgers.workers.file_locked_workers import FileLockedWorkers

_LONGEST_BEAT = 1.0
_BEATS_UNTIL_LOST = 4
_NEXT_NAME = "~"
"""Separates the name of the file lock from the number of a later name of the same worker."""

log = get_logger()


class _Unchanged(NamedTuple):
    beats: int
    seconds: float


class FleetWorkers(Workers):
    """The members of a fleet, seen from one of them, or from a command that is not one."""

    def __init__(
        self, local: FileLockedWorkers, register: Callable[[], FleetRegister], clock: ServerClock, *, lost_after: float
    ) -> None:
        """Set the parts; `join` makes this worker a member.

        Args:
            local: the workers of this host.
            register: connects to the register.
            clock: follows the server's time.
            lost_after: the seconds after which a worker of another host is declared dead.
        """
        self._local = local
        self._connect = register
        self._clock = clock
        self._lost_after = lost_after
        self._beat_every = min(_LONGEST_BEAT, lost_after / _BEATS_UNTIL_LOST)
        self._details: Callable[[], str] = lambda: "{}"
        self._reassert: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        """Only one thread at a time uses the register."""
        self._register: FleetRegister | None = None
        self._fleet: Fleet | None = None
        self._answered_at = 0.0
        self._measured_at = time.monotonic()
        self._unchanged: dict[str, _Unchanged] = {}
        self._names = 0
        self._is_member = self._may_keep = False
        self._is_failing = False
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="usage-plugin-fleet", daemon=True)
        self.name = local.name

    # ── the port ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def join(self) -> None:
        """Take this worker's file lock, and become a member.

        Raises:
            LedgerError: the server does not answer.
        """
        self._local.join()
        with self._lock:
            self._join()

    def watch(self, details: Callable[[], str], reassert: Callable[[], None]) -> None:
        """Start the thread.

        Args:
            details: returns JSON about this worker, for people.
            reassert: has the request path send everything again; called in the thread.
        """
        self._details, self._reassert, self._may_keep = details, reassert, True
        self._thread.start()

    def leave(self) -> None:
        """Stop the thread, and be a member no longer."""
        self._leaving.set()
        if self._thread.is_alive():
            self._thread.join(self._lost_after)
        # A worker that cannot say that it leaves is declared dead, which is the same but takes longer.
        with suppress(LedgerError), self._lock:
            if self._is_member:
                self._is_member = False
                self._registered().leave(self.name)
        with self._lock:
            if self._register is not None:
                self._register.close()
                self._register = None
        self._local.leave()

    def living(self) -> list[str]:
        """List the members, except those of this host without a file lock."""
        return [member.name for member in self.view().members if self._is_alive(member)]

    def living_here(self) -> list[str]:
        """List the members of this host."""
        return [member.name for member in self.view().members if self._is_here(member) and self._is_alive(member)]

    def have_reasserted(self) -> bool:
        """Whether the ledger is open for reservations."""
        return self.view().is_open

    def is_dead(self, name: str) -> bool:
        """Whether a worker is dead. No worker counts as dead while members send their reservations again."""
        if name == self.name or (self._fleet is not None and self._fleet.member(name) is not None):
            return False
        fleet = self.view()
        return fleet.is_open and fleet.member(name) is None

    def sweep(self) -> None:
        """Declare the dead workers of this host dead, and remove their file locks."""
        self._bury_dead(self.view())
        self._local.sweep()

    def try_to_keep(self) -> bool:
        """Become the keeper if there is none; a command becomes a member for that time."""
        if self._thread.is_alive():
            return self.keeps
        with self._lock:
            if not self._is_member:
                self._join()
            self._keep(self._fleet or self._view())
        return self.keeps

    @property
    def members(self) -> tuple[Member, ...]:
        """The members, as of the last answer of the server."""
        return self._fleet.members if self._fleet is not None else ()

    @property
    def keeps(self) -> bool:
        """Whether this worker is the keeper, by an answer of the server that is not too old."""
        fleet = self._fleet
        return (
            fleet is not None
            and fleet.keeper == self.name
            and time.monotonic() - self._answered_at < self._lost_after / 2
        )

    @property
    def term(self) -> int:
        """The term in which this worker is the keeper, which every write of the keeper carries; 0 if it is not."""
        fleet = self._fleet
        return fleet.term if fleet is not None and fleet.keeper == self.name else 0

    def stop_keeping(self) -> None:
        """Let another worker become the keeper."""
        self._may_keep = False
        with suppress(LedgerError), self._lock:
            if self._is_member and self._fleet is not None and self._fleet.keeper == self.name:
                self._registered().stop_keeping(self.name)
                self._fleet = self._view()

    # ── the register ─────────────────────────────────────────────────────────────────────────────────────────────────

    def view(self) -> Fleet:
        """Return the fleet as it is now.

        Raises:
            LedgerError: the server does not answer.
        """
        with self._lock:
            return self._view()

    def _view(self) -> Fleet:
        return self._note(lambda: self._registered().view())

    def _join(self, *, has_reasserted: bool = True) -> None:
        self._note(
            lambda: self._registered().join(self.name, self._local.host, self._details(), has_reasserted=has_reasserted)
        )
        self._is_member = True

    def _registered(self) -> FleetRegister:
        if self._register is None:
            self._register = self._connect()
        return self._register

    def _note(self, ask: Callable[[], Fleet]) -> Fleet:
        """Return an answer of the register, after setting the clock by it."""
        self._registered()
        sent = self._clock.monotonic()
        fleet = ask()
        self._clock.synchronise(fleet.now, sent, self._clock.monotonic())
        self._fleet, self._answered_at = fleet, time.monotonic()
        return fleet

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        while not self._leaving.wait(self._beat_every):
            try:
                self._beat()
                self._is_failing = False
            except LedgerError as error:
                if not self._is_failing:
                    self._is_failing = True
                    log.warning("fleet.unreachable", worker=self.name, **short_error(error))
            except Exception:
                # Our own bug. Without this thread the worker would be declared dead.
                log.exception("fleet.failed", worker=self.name)

    def _beat(self) -> None:
        """Raise the counter, and act upon the others' state."""
        with self._lock:
            try:
                fleet = self._note(lambda: self._registered().beat(self.name, self._details()))
            except WorkerLostError:
                self._join_again()
                return
        now = time.monotonic()
        self._measure(fleet, now - self._measured_at)
        self._measured_at = now
        self._bury_dead(fleet)
        self._bury_lost(fleet)
        mine = fleet.member(self.name)
        if mine is not None and not mine.has_reasserted:
            self._reassert()
        if self._may_keep:
            with self._lock:
                self._keep(fleet)

    def _join_again(self) -> None:
        self._names += 1
        lost, self.name = self.name, f"{self._local.name}{_NEXT_NAME}{self._names}"
        self._join(has_reasserted=False)
        log.error("fleet.joined_again", lost=lost, worker=self.name)
        self._reassert()

    def _keep(self, fleet: Fleet) -> None:
        if fleet.keeper is None and self._registered().keep(self.name, fleet.term):
            self._view()
            log.info("fleet.keeper", worker=self.name, term=self.term)

    def _measure(self, fleet: Fleet, elapsed: float) -> None:
        """Measure how long each counter has not changed, between answers of the server in quick succession."""
        elapsed = min(elapsed, 2 * self._beat_every)
        measured: dict[str, _Unchanged] = {}
        for member in fleet.members:
            known = self._unchanged.get(member.name)
            is_unchanged = known is not None and known.beats == member.beats
            measured[member.name] = _Unchanged(member.beats, known.seconds + elapsed if known and is_unchanged else 0.0)
        self._unchanged = measured

    def _bury_dead(self, fleet: Fleet) -> None:
        for member in fleet.members:
            if not self._is_alive(member):
                self._bury(member, "its process has ended")

    def _bury_lost(self, fleet: Fleet) -> None:
        for member in fleet.members:
            if (
                member.name != self.name
                and self._unchanged[member.name].seconds >= self._lost_after
                and fleet.keeper in (self.name, member.name)
            ):
                self._bury(member, f"no sign for {self._lost_after:g} s")

    def _bury(self, member: Member, reason: str) -> None:
        with self._lock:
            is_dead = self._registered().bury(member.name, member.beats)
        if is_dead:
            log.warning("fleet.worker_lost", worker=member.name, host=member.host, reason=reason)

    def _is_here(self, member: Member) -> bool:
        return member.host == self._local.host

    def _is_alive(self, member: Member) -> bool:
        """Whether a member may be alive: one of this host has its file lock."""
        lock = member.name.partition(_NEXT_NAME)[0]
        return member.name == self.name or not self._is_here(member) or not self._local.is_dead(lock)
