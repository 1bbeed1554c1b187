"""The fleet port: the workers of many hosts that share a ledger on a server, as the server knows them.

The server keeps one record for each worker, its member. A worker raises the counter of its member about once a second.
The server does not judge. A worker that sees no change of another one's counter declares it dead with `bury`. Which
worker does so, and after how long, is decided in `ledgers.workers.fleet_workers`, by that worker's own monotonic
clock. No clocks of hosts are compared.

A worker that was declared dead is fenced: the server admits no reservation of its name any more.

An incarnation identifies the server's state: it changes with every restart, restoration and failover, after which
recent changes may be missing. Then the ledger is closed for reservations until every member has sent its own ones and
its last settlements again (`ledger_batch.Reassert`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple


class Member(NamedTuple):
    """A worker as the server knows it.

    Attributes:
        name: Different for each process and start.
        host: Identifies the data folder. Workers with the same one watch each other by file locks.
        beats: The counter.
        details: JSON for people, as the worker has sent it last.
        has_reasserted: Whether it has sent its reservations to the present incarnation, or had none then.
    """

    name: str
    host: str
    beats: int
    details: str
    has_reasserted: bool


class Fleet(NamedTuple):
    """The fleet at one instant.

    Attributes:
        now: The server's time, in microseconds since 1970 UTC.
        incarnation: The present one.
        is_open: Whether reservations are admitted. False: some member has not sent its reservations again yet.
        members: Ordered by name.
        keeper: The name of the keeper, which is a member; None if there is none.
        term: Ascends with every keeper. A new incarnation has no keeper, and a term that is higher than those it may
            have forgotten.
    """

    now: int
    incarnation: str
    is_open: bool
    members: tuple[Member, ...]
    keeper: str | None
    term: int

    def member(self, name: str) -> Member | None:
        """Return the member of a name; None if there is none."""
        return next((member for member in self.members if member.name == name), None)


class FleetRegister(ABC):
    """The members of a fleet and its keeper, on the server that has the ledger.

    One thread at a time uses an object. Each method is one atomic step, and raises `LedgerError` if the server does not
    work. It takes a few seconds at most: a server that hangs counts as unreachable then.
    """

    @abstractmethod
    def join(self, name: str, host: str, details: str, *, has_reasserted: bool = True) -> Fleet:
        """Add a member. For an existing name, only the details are replaced.

        Args:
            name: The worker's name.
            host: Identifies the data folder.
            details: JSON for people.
            has_reasserted: False if it has reservations under a former name: if the ledger is closed, it stays so until
                they are sent again.
        """

    @abstractmethod
    def beat(self, name: str, details: str) -> Fleet:
        """Raise the counter of a member and replace its details.

        Raises:
            WorkerLostError: There is no such member.
        """

    @abstractmethod
    def view(self) -> Fleet:
        """Return the fleet; change nothing."""

    @abstractmethod
    def leave(self, name: str) -> None:
        """Remove a member; as keeper, too. Nothing happens if there is no such member."""

    @abstractmethod
    def bury(self, name: str, beats: int) -> bool:
        """Declare a member dead: remove it, as keeper too, unless its counter is another one than `beats`.

        Returns:
            Whether there is no such member any more.
        """

    @abstractmethod
    def keep(self, name: str, term: int) -> bool:
        """Become the keeper, of the next term, if there is none and the present term is `term`.

        Returns:
            Whether it did. False also if there is no such member.
        """

    @abstractmethod
    def stop_keeping(self, name: str) -> None:
        """Be the keeper no longer. Nothing happens if another member is."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""
