"""Limits: rules of the YAML, and which of them a request meets.

`LimitSet.matching` answers, for a request and the model that will be billed, which limits count it, for which
subject, and with which amount. It decides nothing: `tracking.admission` does, with the ledger.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from fnmatch import translate
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from usage_plugin.domain.subjects import OWN_DIMENSIONS, SEPARATOR, Dimension, Subjects
from usage_plugin.domain.windows import Window, WindowKind, window_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from zoneinfo import ZoneInfo

Unit = Literal["usd", "total_tokens", "input_tokens", "output_tokens", "requests"]
"""What a limit counts. Amounts in `usd` are nano-dollars."""
UNITS: tuple[Unit, ...] = get_args(Unit)

Action = Literal["block", "warn"]

MatchKey = Literal[Dimension, "group"]

_REMEMBERED = 4096


@functools.lru_cache(maxsize=1024)
def _glob(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Compile globs into one expression; `*` also matches what has slashes in it."""
    return re.compile("|".join(translate(pattern) for pattern in patterns))


@dataclass(frozen=True, slots=True)
class Match:
    """Conditions on a request, all of which must hold: a dimension and the globs one of which must fit."""

    conditions: tuple[tuple[MatchKey, tuple[str, ...]], ...] = ()

    def holds(self, names: Mapping[str, tuple[str, ...]]) -> bool:
        """Say whether each condition fits at least one name of its dimension."""
        return all(any(_glob(patterns).match(name) for name in names.get(key, ())) for key, patterns in self.conditions)


class Override(NamedTuple):
    """Another amount for those who match, until an instant (exclusive) if one is given."""

    match: Match
    amount: int | None
    until: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A rule: at most `amount` of `unit`, for each subject of `per`, in each `window`.

    Attributes:
        amount: in the unit; 0 blocks, None never does.
        allow_unpriced: globs of models that a cost limit lets pass although no price is known.
        dry_run: evaluated, counted and reported, never felt.
        key: identifies this limit's accounts; derived from all that decides what is counted, no amounts.
        is_callers_own: whether its amounts may be shown to the caller.
    """

    name: str
    per: tuple[Dimension, ...]
    unit: Unit
    amount: int | None
    window: WindowKind
    zone: ZoneInfo
    match: Match = Match()
    overrides: tuple[Override, ...] = ()
    action: Action = "block"
    dry_run: bool = False
    allow_unpriced: tuple[str, ...] = ()
    key: int = field(init=False, default=0)
    is_callers_own: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Derive what is asked for with each request."""
        conditions = sorted((key, sorted(globs)) for key, globs in self.match.conditions)
        identity = [self.name, self.per, conditions, self.unit, self.window, str(self.zone)]
        digest = hashlib.blake2b(json.dumps(identity).encode(), digest_size=8).digest()
        object.__setattr__(self, "key", int.from_bytes(digest, "big") >> 1)
        object.__setattr__(self, "is_callers_own", bool(OWN_DIMENSIONS.intersection(self.per)))

    @property
    def blocks(self) -> bool:
        """Whether this limit can refuse a request."""
        return self.action == "block" and not self.dry_run

    def names_of(self, subject: str) -> dict[str, str]:
        """Take a subject of this limit apart, dimension by dimension; `global` has no name."""
        return (
            {}
            if self.per == ("global",)
            else dict(zip(self.per, subject.split(SEPARATOR, len(self.per) - 1), strict=True))
        )

    def lets_unpriced_pass(self, model: str) -> bool:
        """Say whether a model without a price may be used under this cost limit."""
        return bool(self.allow_unpriced) and _glob(self.allow_unpriced).match(model) is not None


class Matched(NamedTuple):
    """A limit that counts a request.

    Attributes:
        subject: the names of the limit's dimensions, joined by `subjects.SEPARATOR`.
        amounts: overrides that match, with their ends, and last the limit's own amount.
    """

    limit: Limit
    subject: str
    amounts: tuple[tuple[int | None, int | None], ...]

    def amount_at(self, instant: int) -> int | None:
        """Find the amount in force at an instant; None if nothing is refused."""
        return next(amount for until, amount in self.amounts if until is None or instant < until)

    def window_at(self, instant: int) -> Window:
        """Find the window an instant belongs to."""
        return window_at(self.limit.window, instant, self.limit.zone)


class LimitSet:
    """The limits in force, with the groups they speak of. Immutable, apart from what it remembers."""

    def __init__(self, limits: Iterable[Limit], groups: Mapping[str, tuple[str, ...]] | None = None) -> None:
        """Take the limits in the order of the YAML; groups map a name to globs of users."""
        self.limits = tuple(limits)
        self._groups = dict(groups or {})
        used: set[MatchKey] = set()
        for limit in self.limits:
            used.update(limit.per)
            for match in (limit.match, *(override.match for override in limit.overrides)):
                used.update(key for key, _ in match.conditions)
        if "group" in used:
            used.add("user")
        self._used = tuple(sorted(used))
        self._remembered: OrderedDict[tuple[tuple[str, ...], ...], tuple[Matched, ...]] = OrderedDict()

    def matching(self, subjects: Subjects, model: str | None, provider: str | None) -> tuple[Matched, ...]:
        """Find every limit that counts a request of these subjects billed to this model.

        A dimension that is missing makes the limits on it not apply. A request with several tags counts on
        one account for each of them.
        """
        names = {
            "user": (subjects.user,),
            "team": _one(subjects.team),
            "api_key": _one(subjects.api_key),
            "end_user": _one(subjects.end_user),
            "organization": _one(subjects.organization),
            "session": _one(subjects.session),
            "tag": subjects.tags,
            "model": _one(model),
            "provider": _one(provider),
        }
        key = tuple(names.get(dimension, ()) for dimension in self._used)
        found = self._remembered.get(key)
        if found is None:
            found = self._match(names)
            self._remembered[key] = found
            if len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    def account(self, limit: Limit, subject: str) -> Matched:
        """Find the amounts of an account from its subject alone; overrides on anything else do not count."""
        names = {dimension: (name,) for dimension, name in limit.names_of(subject).items()}
        return Matched(limit, subject, self._amounts(limit, self._known(names)))

    def may_count(self, limit: Limit, user: str) -> bool:
        """Say whether a limit can count requests of a user, as far as users and groups decide."""
        known = self._known({"user": (user,)})
        conditions = tuple(condition for condition in limit.match.conditions if condition[0] in ("user", "group"))
        return Match(conditions).holds(known)

    def groups_of(self, user: str) -> tuple[str, ...]:
        """List the groups a user is in."""
        return tuple(name for name, globs in self._groups.items() if globs and _glob(globs).match(user))

    def _match(self, names: Mapping[str, tuple[str, ...]]) -> tuple[Matched, ...]:
        known = self._known(names)
        return tuple(
            Matched(limit, subject, self._amounts(limit, known))
            for limit in self.limits
            if limit.match.holds(known)
            for subject in _subjects_of(limit, names)
        )

    def _known(self, names: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
        users = names.get("user", ())
        return {**names, "group": tuple(group for user in users for group in self.groups_of(user))}

    @staticmethod
    def _amounts(limit: Limit, known: Mapping[str, tuple[str, ...]]) -> tuple[tuple[int | None, int | None], ...]:
        overrides = [(o.until, o.amount) for o in limit.overrides if o.match.holds(known)]
        return (*overrides, (None, limit.amount))


def _one(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)


def _subjects_of(limit: Limit, names: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Join the names of the dimensions, once for each tag that the limit counts where tags are counted."""
    wanted = dict(limit.match.conditions)
    subjects = [""]
    for at, dimension in enumerate(limit.per):
        values = ("",) if dimension == "global" else names[dimension]
        if dimension in wanted:
            values = tuple(value for value in values if _glob(wanted[dimension]).match(value))
        subjects = [f"{left}{SEPARATOR}{value}" if at else value for left in subjects for value in values]
    return subjects
