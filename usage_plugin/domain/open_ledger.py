"""An open ledger with its parts, as a backend opens it for one thread.

Each function takes only the port that it uses. Only code that opens a ledger, or passes its parts on, takes the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from usage_plugin.domain.erasure import ErasableParts

if TYPE_CHECKING:
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
        """Keep the write-ahead log short; called four times a second by the keeper."""


@dataclass(frozen=True, slots=True)
class OpenLedger:
    """The parts of an open ledger.

    Attributes:
        file: maintenance of its file; None if it has no file.
        lender: the open ledger that provides the parts other than the core.
    """

    ledger: Ledger
    operations: OperationsLog
    profiles: ProfileStore
    erasable: Erasable
    file: LedgerFileUpkeep | None = None
    lender: OpenLedger | None = None

    def with_core(self, ledger: Ledger, erasable: Erasable, *, file: LedgerFileUpkeep | None = None) -> OpenLedger:
        """Return an open ledger with another core and its `erasable`, and this ledger's operations log and profiles."""
        return OpenLedger(
            ledger, self.operations, self.profiles, ErasableParts(erasable, self.erasable), file, lender=self
        )

    def close(self) -> None:
        """Close all parts. Nothing is lost by not calling this."""
        self.ledger.close()
        if self.lender is not None:
            self.lender.close()
