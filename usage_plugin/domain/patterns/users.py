"""Users of models: the users that a pattern affects, and users with a low share of cached input."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from usage_plugin.domain.patterns.caches import poor_caches
from usage_plugin.domain.patterns.pattern import dearest_first
from usage_plugin.domain.usage import UsageTotals

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.patterns.models import Use
    from usage_plugin.domain.patterns.pattern import Pattern
    from usage_plugin.domain.prices import Rates


class UsersOfModels:
    """The usage of models and providers by user, for the users examined."""

    def __init__(self) -> None:
        """Start without users."""
        self._models: defaultdict[str, dict[str, UsageTotals]] = defaultdict(dict)
        self._providers: defaultdict[str, defaultdict[str, Nano]] = defaultdict(lambda: defaultdict(int))

    def add(self, user: str, uses: Iterable[Use]) -> None:
        """Add the usage of one user."""
        for use in uses:
            if use.model is not None:
                users = self._models[use.model]
                users[user] = users.get(user, UsageTotals()).plus(use.totals)
            if use.provider is not None:
                self._providers[use.provider][user] += use.totals.cost

    def named(self, pattern: Pattern) -> Pattern:
        """Return the pattern with the users of its model or provider, unless it already has users."""
        if pattern.affected_users or not (pattern.models or pattern.providers):
            return pattern
        if pattern.models:
            costs = {user: totals.cost for user, totals in self._models[pattern.models[0]].items()}
            return pattern._replace(affected_users=dearest_first(costs))
        return pattern._replace(affected_users=dearest_first(self._providers[pattern.providers[0]]))

    def poor_caches(self, rates: Mapping[str, Rates]) -> Iterator[Pattern]:
        """Find users with a far smaller share of cached input than other users of the same model."""
        for model, users in self._models.items():
            yield from poor_caches(model, users, "users", rates.get(model))
