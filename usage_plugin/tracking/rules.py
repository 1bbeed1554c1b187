"""The rules in force: the limits of the YAML as it is now, with the adjustments of their amounts.

Read for each request, on the event loop; put in force by the keeper's thread. So the one thing that changes is which
`LimitSet` stands in `limits`, and whoever works with it for longer than a line takes it once.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.limits import LimitSet
    from usage_plugin.domain.operations import Adjustment, OperationsLog

NOTE = "rules:"
"""Each worker leaves the digest of its rules under this prefix and its name."""


class RulesInForce:
    """Holds the limits that count now.

    Attributes:
        limits: what admission and the recorder go by.
        digest: tells two sets of rules apart, whatever their amounts are adjusted to.
    """

    __slots__ = ("_adjustments", "_version", "_written", "digest", "limits")

    def __init__(self, limits: LimitSet) -> None:
        """Begin with the limits as they are written."""
        self._adjustments: Sequence[Adjustment] = ()
        self._version = -1
        self.replace(limits)

    def replace(self, limits: LimitSet) -> None:
        """Put other limits in force; the adjustments stay."""
        self._written = limits
        self.digest = digest_of(limits)
        self._apply()

    def follow(self, operations: OperationsLog, now: int) -> None:
        """Put the ledger's adjustments in force if they have changed; those that end do so by themselves."""
        version = operations.adjustments_version()
        if version != self._version:
            self._adjustments = operations.adjustments(since=now)
            self._version = version
            self._apply()

    def _apply(self) -> None:
        self.limits = self._written.adjusted(self._adjustments) if self._adjustments else self._written


def digest_of(limits: LimitSet) -> str:
    """Name a set of rules by what it counts: two workers with the same digest charge the same accounts."""
    facts = repr(
        (sorted(limit.key for limit in limits.limits), sorted(limits.groups.items()), limits.membership.version)
    )
    return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()
