"""The active limits: the limits of the current YAML, with the adjustments of their amounts.

They are read for each request on the event loop, and replaced by the keeper's thread. So a change only assigns another
`LimitSet` to `limits`. Code that uses it in more than one line must read the attribute once.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.limit_set import LimitSet
    from usage_plugin.domain.operations import Adjustment, OperationsLog

NOTE = "rules:"
"""The prefix of a worker's note with the digest of its rules; the worker's name follows."""


class ActiveLimits:
    """The limits that are active now.

    Attributes:
        limits: the limits that admission and the recorder use.
        digest: identifies a set of rules, independent of adjusted amounts.
    """

    __slots__ = ("_adjustments", "_version", "_written", "digest", "limits")

    def __init__(self, limits: LimitSet) -> None:
        """Start with the limits of the YAML, without adjustments."""
        self._adjustments: Sequence[Adjustment] = ()
        self._version = -1
        self.replace(limits)

    def replace(self, limits: LimitSet) -> None:
        """Replace the limits. The adjustments stay."""
        self._written = limits
        self.digest = digest_of(limits)
        self._apply()

    def follow(self, operations: OperationsLog, now: int) -> None:
        """Apply the ledger's adjustments if they have changed. Adjustments expire without a call."""
        version = operations.adjustments_version()
        if version != self._version:
            self._adjustments = operations.adjustments(since=now)
            self._version = version
            self._apply()

    def _apply(self) -> None:
        self.limits = self._written.adjusted(self._adjustments) if self._adjustments else self._written


def digest_of(limits: LimitSet) -> str:
    """Return a digest of the accounts that the rules charge: two workers with the same digest charge the same ones."""
    facts = repr(
        (sorted(limit.key for limit in limits.limits), sorted(limits.groups.items()), limits.membership.version)
    )
    return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()
