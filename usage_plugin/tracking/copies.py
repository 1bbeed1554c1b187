"""Copies: profiles and limits for a store that keeps them, so that people find everything in one place.

The ledger's profiles and the YAML's limits are the true ones. A store gets all of them when it is opened, and from then
on what has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from usage_plugin.domain.store import KeepsCopies

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from usage_plugin.domain.profiles import ProfileStore
    from usage_plugin.domain.store import UsageStore

_PAGE = 500


class WrittenLimit(Protocol):
    """A limit that knows how it stands in the YAML."""

    def written(self) -> Mapping[str, Any]:
        """Write it down."""


class Copies:
    """What one open store has of profiles and limits."""

    def __init__(
        self,
        profiles: ProfileStore,
        store: UsageStore,
        limits: Callable[[], Sequence[WrittenLimit]],
        step: Callable[[], None],
    ) -> None:
        """Take the ends; `limits` gives those in force, `step` is called before each call of the store."""
        self._profiles = profiles
        self._store = store
        self._limits = limits
        self._step = step
        self._kept_limits: Sequence[WrittenLimit] | None = None
        self._kept_profiles = 0

    async def bring_up_to_date(self) -> None:
        """Hand over what has changed; costs nothing if nothing has, or if the store keeps no copies.

        Raises:
            StorageError: nothing is lost by trying again, as after a LedgerError.
        """
        store = self._store
        if not isinstance(store, KeepsCopies):
            return
        limits = self._limits()
        if limits is not self._kept_limits:
            self._step()
            await store.keep_limits([limit.written() for limit in limits])
            self._kept_limits = limits
        while page := self._profiles.changes(self._kept_profiles, _PAGE):
            self._step()
            await store.keep_profiles([profile for _, profile in page])
            self._kept_profiles = page[-1][0]
