"""Limits: a rule of the YAML, with its conditions and overrides.

`domain.limit_set` matches requests to the rules in force.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from usage_plugin.domain.globs import fits, literal_of
from usage_plugin.domain.subjects import OWN_DIMENSIONS, SEPARATOR, Dimension
from usage_plugin.domain.windows import MICROSECONDS, Window, WindowRule, reset_of, since_at, window_at

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from zoneinfo import ZoneInfo

Unit = Literal["usd", "total_tokens", "input_tokens", "output_tokens", "requests", "parallel_requests"]
"""The unit that a limit counts. Amounts in `usd` are nano-dollars; `parallel_requests` are held, and never spent."""
UNITS: tuple[Unit, ...] = get_args(Unit)

Action = Literal["block", "warn", "downgrade"]

MatchKey = Literal[Dimension, "group"]

_LONGEST_REQUEST = 86_400 * MICROSECONDS
"""The time that an account of parallel requests is kept after its last request began."""


@dataclass(frozen=True, slots=True)
class Match:
    """Conditions on a request, all of which must hold. Each is a dimension and globs, one of which must fit."""

    conditions: tuple[tuple[MatchKey, tuple[str, ...]], ...] = ()

    def holds(self, names: Mapping[str, tuple[str, ...]]) -> bool:
        """Whether each condition fits at least one name of its dimension."""
        return all(any(fits(globs, name) for name in names.get(key, ())) for key, globs in self.conditions)


class Override(NamedTuple):
    """A different amount for the subjects that match, until an instant (exclusive) if one is given."""

    match: Match
    amount: int | None
    until: int | None = None


class _OverrideIndex:
    """An index of overrides by name: there can be one for each of many users, too many to check each.

    An override that matches a dimension by names, not by globs, is indexed under each of these names. All other
    overrides are always checked.
    """

    def __init__(self, overrides: tuple[Override, ...]) -> None:
        self._overrides = overrides
        self._by_name: dict[tuple[MatchKey, str], list[int]] = {}
        self._always: list[int] = []
        self.keys: frozenset[MatchKey] = frozenset(key for o in overrides for key, _ in o.match.conditions)
        for at, override in enumerate(overrides):
            entries = _entries(override.match)
            for entry in entries:
                self._by_name.setdefault(entry, []).append(at)
            if not entries:
                self._always.append(at)
        self._indexed = sorted({key for key, _ in self._by_name})

    def matching(self, known: Mapping[str, tuple[str, ...]]) -> list[Override]:
        """Return the overrides that match, in their order."""
        candidates = set(self._always)
        for key in self._indexed:
            for name in known.get(key, ()):
                candidates.update(self._by_name.get((key, name), ()))
        return [o for at in sorted(candidates) if (o := self._overrides[at]).match.holds(known)]


def _entries(match: Match) -> list[tuple[MatchKey, str]]:
    """Return the names of the first dimension that a match restricts by names only; none if there is no such one."""
    for key, globs in match.conditions:
        names = [name for glob in globs if (name := literal_of(glob)) is not None]
        if len(names) == len(globs):
            return [(key, name) for name in names]
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A rule: at most `amount` of `unit`, for each subject of `per`, in each `window`.

    Attributes:
        amount: in the unit; 0 blocks everything, None never blocks.
        downgrade_to: with `action` downgrade, the model for a request that does not fit.
        dry_run: whether it is only evaluated, counted and reported, not enforced.
        allow_unpriced: globs of models that a cost limit admits although no price is known.
        allow_unbounded: whether requests without an upper bound of usage are admitted; holds cover the known part.
        alert_at: alert thresholds in percent of the amount, ascending.
        counts_history: whether a new limit counts the usage that its windows already contain.
        key: identifies this limit's accounts; derived from everything that decides which usage counts, no amounts.
        is_callers_own: whether its amounts may be shown to the caller.
        has_accounts: whether anything is kept from one request to the next.
        is_charged: whether a finished request leaves an amount on its account.
        has_fixed_windows: whether all requests between the start and the end of a window count in that window.
    """

    name: str
    per: tuple[Dimension, ...]
    unit: Unit
    amount: int | None
    window: WindowRule
    zone: ZoneInfo
    match: Match = Match()
    overrides: tuple[Override, ...] = ()
    action: Action = "block"
    downgrade_to: str | None = None
    dry_run: bool = False
    allow_unpriced: tuple[str, ...] = ()
    allow_unbounded: bool = False
    alert_at: tuple[int, ...] = ()
    counts_history: bool = True
    key: int = field(init=False, default=0)
    is_callers_own: bool = field(init=False, default=False)
    has_accounts: bool = field(init=False, default=True)
    is_charged: bool = field(init=False, default=True)
    has_fixed_windows: bool = field(init=False, default=True)
    _index: _OverrideIndex = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Derive the values that each request needs."""
        kind = self.window.kind
        object.__setattr__(self, "has_accounts", kind != "request")
        object.__setattr__(self, "is_charged", self.has_accounts and self.unit != "parallel_requests")
        object.__setattr__(self, "has_fixed_windows", self.is_charged and kind not in ("rolling", "session"))
        conditions = sorted((key, sorted(globs)) for key, globs in self.match.conditions)
        # Spent amounts are kept under the key for ever: a field with its default value must not change it.
        window = kind if self.window == WindowRule(kind) else list(self.window)
        zone = str(self.zone) if self.has_fixed_windows else ""
        identity = [self.name, self.per, conditions, self.unit, window, zone]
        digest = hashlib.blake2b(json.dumps(identity).encode(), digest_size=8).digest()
        object.__setattr__(self, "key", int.from_bytes(digest, "big") >> 1)
        object.__setattr__(self, "is_callers_own", bool(OWN_DIMENSIONS.intersection(self.per)))
        object.__setattr__(self, "_index", _OverrideIndex(self.overrides))

    @property
    def match_keys(self) -> frozenset[MatchKey]:
        """The dimensions that the limit and its overrides match by."""
        return self._index.keys.union(key for key, _ in self.match.conditions)

    def overrides_of(self, known: Mapping[str, tuple[str, ...]]) -> list[Override]:
        """Return the overrides that match the names of a request, in their order."""
        return self._index.matching(known)

    @property
    def blocks(self) -> bool:
        """Whether this limit can refuse a request; a limit that downgrades cannot."""
        return self.action == "block" and not self.dry_run

    def window_at(self, instant: int) -> Window:
        """Return the window, or the bucket, whose account counts a request at an instant."""
        if self.unit == "parallel_requests":
            return Window(0, instant + _LONGEST_REQUEST)
        return window_at(self.window, instant, self.zone)

    def since_at(self, instant: int) -> int | None:
        """Return the start of the oldest bucket that counts for a request at an instant; None if one account counts."""
        return since_at(self.window, instant)

    def reset_of(self, window: Window) -> datetime | None:
        """Return the time at which all current spend of a window has expired; None if it never expires by time alone.

        In a rolling window, spend expires bucket by bucket before that time.
        """
        ends = self.window.kind != "session" and self.unit != "parallel_requests"
        return reset_of(window) if ends else None

    def names_of(self, subject: str) -> dict[str, str]:
        """Split a subject of this limit into its names by dimension; `global` has no name."""
        return (
            {}
            if self.per == ("global",)
            else dict(zip(self.per, subject.split(SEPARATOR, len(self.per) - 1), strict=True))
        )

    def lets_unpriced_pass(self, model: str) -> bool:
        """Whether a model without a price may be used under this cost limit."""
        return fits(self.allow_unpriced, model)
