"""The mirror: write profiles and limits to a store that keeps copies, so that people find everything in one place.

The ledger's profiles and the YAML's limits are authoritative. A store gets all of them when it is opened, and then
only changes.
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
    """A limit that can be serialized as in the YAML."""

    def written(self) -> Mapping[str, Any]:
        """Return the limit's entry in the YAML."""


class Mirror:
    """The copies of profiles and limits in one open store."""

    def __init__(
        self,
        profiles: ProfileStore,
        store: UsageStore,
        limits: Callable[[], Sequence[WrittenLimit]],
        step: Callable[[], None],
    ) -> None:
        """Set the parts. `limits` returns the active limits; `step` is called before each call of the store."""
        self._profiles = profiles
        self._store = store
        self._limits = limits
        self._step = step
        self._kept_limits: Sequence[WrittenLimit] | None = None
        self._kept_profiles = 0

    async def bring_up_to_date(self) -> None:
        """Write changes to the store. Free if nothing has changed, or if the store does not keep copies.

        Raises:
            StorageError: it is safe to retry, as after a LedgerError.
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
