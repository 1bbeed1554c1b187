"""The liveness port: detect live workers and elect the keeper."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Workers(ABC):
    """The workers of one ledger, seen from one of them.

    A stalled worker is alive: it keeps its reservations until it is known to be dead.

    Attributes:
        name: of this worker, different for each process and start.
    """

    name: str

    @abstractmethod
    def join(self) -> None:
        """Register this worker as alive, until it leaves or dies."""

    @abstractmethod
    def leave(self) -> None:
        """Deregister this worker, also as keeper."""

    @abstractmethod
    def living(self) -> list[str]:
        """Return the names of the live workers."""

    def living_here(self) -> list[str]:
        """Return the names of the live workers on this host."""
        return self.living()

    def have_reasserted(self) -> bool:
        """Whether the ledger has everything that the live workers know: none sends it again after a restart."""
        return True

    @abstractmethod
    def is_dead(self, name: str) -> bool:
        """Whether a worker is dead; an unknown worker is dead, this one never."""

    @abstractmethod
    def sweep(self) -> None:
        """Delete the remains of dead workers."""

    @abstractmethod
    def try_to_keep(self) -> bool:
        """Become the keeper if there is none; return whether this worker is the keeper. It need not have joined."""

    @property
    @abstractmethod
    def keeps(self) -> bool:
        """Whether this worker is the keeper."""

    @property
    def term(self) -> int:
        """A number that changes whenever this worker becomes the keeper; 0 while it is not."""
        return int(self.keeps)

    @abstractmethod
    def stop_keeping(self) -> None:
        """Let another worker become the keeper."""
