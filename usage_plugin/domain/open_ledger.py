"""An open ledger with its parts, as a backend opens it for one thread.

Each function takes only the port that it uses. Only code that opens a ledger, or passes its parts on, takes the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from usage_plugin.domain.erasure import ErasableParts
from usage_plugin.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from usage_plugin.domain.erasure import Erasable
    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.operations import OperationsLog
    from usage_plugin.domain.profiles import ProfileStore


class LedgerFileUpkeep(Protocol):
    """Maintenance of a ledger in a local file; a ledger on a server does not need it."""

    def check_place(self) -> None:
        """Check that the file was not deleted or replaced; called once a second, from any thread.

        Raises:
            LedgerError: the file is gone or replaced; processes that open the ledger now would count from zero.
        """

    def shorten_log(self) -> None:
        """Keep the write-ahead log short; called four times a second by the keeper.

        Raises:
            LedgerBusyError: another process is writing; the next call tries again.
        """


class LedgerFiles(LedgerFileUpkeep):
    """The files of several parts, for a ledger that combines them."""

    def __init__(self, *files: LedgerFileUpkeep) -> None:
        """Combine the files."""
        self._files = files

    def check_place(self) -> None:
        """Check the place of every file."""
        self._for_each(lambda file: file.check_place())

    def shorten_log(self) -> None:
        """Shorten the log of every file."""
        self._for_each(lambda file: file.shorten_log())

    def _for_each(self, maintain: Callable[[LedgerFileUpkeep], None]) -> None:
        """Maintain every file, also after the error of one: a busy core must not stop the upkeep of the others."""
        first: LedgerError | None = None
        for file in self._files:
            try:
                maintain(file)
            except LedgerError as error:
                first = first or error
        if first is not None:
            raise first


@dataclass(frozen=True, slots=True)
class OpenLedger:
    """The parts of an open ledger.

    Attributes:
        file: maintenance of its files, including those of the lender; None if it has no file.
        lender: the open ledger that provides the parts other than the core.
    """

    ledger: Ledger
    operations: OperationsLog
    profiles: ProfileStore
    erasable: Erasable
    file: LedgerFileUpkeep | None = None
    lender: OpenLedger | None = None

    def with_core(self, ledger: Ledger, erasable: Erasable, *, file: LedgerFileUpkeep | None = None) -> OpenLedger:
        """Return an open ledger with another core and its `erasable`, and this ledger's operations log and profiles.

        Args:
            ledger: the core.
            erasable: finds and erases the names in the core.
            file: maintenance of the core's file; None if it has no file. That of this ledger's file is added to it.
        """
        files = [one for one in (file, self.file) if one is not None]
        return OpenLedger(
            ledger,
            self.operations,
            self.profiles,
            ErasableParts(erasable, self.erasable),
            LedgerFiles(*files) if files else None,
            lender=self,
        )

    def close(self) -> None:
        """Close all parts, also if the core cannot be closed. Nothing is lost by not calling this."""
        try:
            self.ledger.close()
        finally:
            if self.lender is not None:
                self.lender.close()
