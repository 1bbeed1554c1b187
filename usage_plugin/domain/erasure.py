"""Erasure: find, delete and wipe the records of a name in a ledger and its operations log."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.ledger import Account, OutboxEntry
    from usage_plugin.domain.operations import Adjustment, NotedAlert, RefusalCount


class NameMatches(NamedTuple):
    """Records whose subject contains a name. The caller knows its owner: a team may have the same name.

    Attributes:
        refusals: refs and details, which are JSON as received. They contain the name as `entries` do.
        entries: the outbox entries that the store has, and whose JSON contains the name as a whole text. It is written
            there as `json.dumps(name, ensure_ascii=False)` writes it, in any field.
    """

    accounts: Sequence[Account] = ()
    alerts: Sequence[NotedAlert] = ()
    refusal_counts: Sequence[RefusalCount] = ()
    refusals: Sequence[tuple[str, str]] = ()
    adjustments: Sequence[Adjustment] = ()
    entries: Sequence[OutboxEntry] = ()


class Erasable(ABC):
    """Records that can be found by name and erased. Errors are the ledger's."""

    @abstractmethod
    def find(self, name: str) -> NameMatches:
        """Return all records whose subject contains a name, except profiles. Slow.

        A subject contains a name if it is one of its names (`split_subject`), never as a part of one.
        """

    @abstractmethod
    def erase(self, matches: NameMatches) -> None:
        """Delete all matches except accounts with holds, and in the outbox the text of the event, not its number.

        Matches of other parts, and records that no longer exist, are ignored.
        """

    @abstractmethod
    def compact(self) -> None:
        """Remove every trace of deleted records from all files. Slow; others wait for it."""


class ErasableParts(Erasable):
    """The records of several parts, for a ledger that combines them."""

    def __init__(self, *parts: Erasable) -> None:
        """Combine the parts."""
        self._parts = parts

    def find(self, name: str) -> NameMatches:
        """Return the matches of every part."""
        found = [part.find(name) for part in self._parts]
        return NameMatches(*([one for matches in kind for one in matches] for kind in zip(*found, strict=True)))

    def erase(self, matches: NameMatches) -> None:
        """Delete the records of every part."""
        for part in self._parts:
            part.erase(matches)

    def compact(self) -> None:
        """Compact every part."""
        for part in self._parts:
            part.compact()
