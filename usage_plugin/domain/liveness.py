"""The liveness port: which workers are alive, and which one of them is the keeper."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Workers(ABC):
    """The workers of one ledger, seen from one of them.

    A worker that is stalled is alive: its reservations are its own until it is known to be gone.

    Attributes:
        name: of this worker, different for each process and start.
    """

    name: str

    @abstractmethod
    def join(self) -> None:
        """Make this worker known as alive, until it leaves or dies."""

    @abstractmethod
    def leave(self) -> None:
        """Make this worker known as gone, as keeper too."""

    @abstractmethod
    def living(self) -> list[str]:
        """List the names of the workers that are alive."""

    @abstractmethod
    def is_dead(self, name: str) -> bool:
        """Whether a worker is gone; an unknown one is, this one never."""

    @abstractmethod
    def sweep(self) -> None:
        """Delete what dead workers have left behind here."""

    @abstractmethod
    def try_to_keep(self) -> bool:
        """Become the keeper if there is none; True as long as this worker is. A worker need not have joined."""

    @property
    @abstractmethod
    def keeps(self) -> bool:
        """Whether this worker is the keeper."""

    @abstractmethod
    def stop_keeping(self) -> None:
        """Let another worker become the keeper."""
