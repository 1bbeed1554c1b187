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
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from usage_plugin.domain.ledger import AccountKey
from usage_plugin.domain.pseudonyms import is_key, is_key_pseudonym, is_pseudonym
from usage_plugin.domain.subjects import OWN_DIMENSIONS, SEPARATOR, Dimension, Subjects
from usage_plugin.domain.windows import MICROSECONDS, Window, WindowRule, reset_of, since_at, window_at
from usage_plugin.errors import UnknownLimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.operations import Adjustment

Unit = Literal["usd", "total_tokens", "input_tokens", "output_tokens", "requests", "parallel_requests"]
"""What a limit counts. Amounts in `usd` are nano-dollars; `parallel_requests` are held, and never spent."""
UNITS: tuple[Unit, ...] = get_args(Unit)

Action = Literal["block", "warn", "downgrade"]

MatchKey = Literal[Dimension, "group"]

_REMEMBERED = 4096
_LONGEST_REQUEST = 86_400 * MICROSECONDS
"""How long an account of parallel requests is kept after its last request began."""


_BRACKETED = re.compile(r"\[([*?[])\]")
_SPECIAL = re.compile(r"[*?[]")


def literal_of(glob: str) -> str | None:
    """Give the one name that a glob fits, which is itself or has its signs in brackets: `a[*]b`; None if more fit."""
    return None if _SPECIAL.search(_BRACKETED.sub("", glob)) else _BRACKETED.sub(r"\1", glob)


def glob_of(name: str) -> str:
    """Write the glob that fits one name only."""
    return _SPECIAL.sub(r"[\g<0>]", name)


@functools.lru_cache(maxsize=1024)
def _checker(globs: tuple[str, ...]) -> Callable[[str], object]:
    names = [literal_of(glob) for glob in globs]
    if None not in names:
        # Compiling takes a hundred times as long, and there may be an override for each of many users.
        return frozenset(names).__contains__
    return re.compile("|".join(translate(glob) for glob in globs)).match


def fits(globs: tuple[str, ...], name: str) -> bool:
    """Say whether one of the globs fits the whole name; `*` also stands for what has slashes in it."""
    return bool(globs) and bool(_checker(globs)(name))


@dataclass(frozen=True, slots=True)
class Match:
    """Conditions on a request, all of which must hold: a dimension and the globs one of which must fit."""

    conditions: tuple[tuple[MatchKey, tuple[str, ...]], ...] = ()

    def holds(self, names: Mapping[str, tuple[str, ...]]) -> bool:
        """Say whether each condition fits at least one name of its dimension."""
        return all(any(fits(globs, name) for name in names.get(key, ())) for key, globs in self.conditions)


class Override(NamedTuple):
    """Another amount for those who match, until an instant (exclusive) if one is given."""

    match: Match
    amount: int | None
    until: int | None = None


class _OverrideIndex:
    """Finds the overrides that may match without looking at all of them: there can be one for each of many users.

    An override that asks for names, not globs, of a dimension is found under each of these names; all others are
    always looked at.
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
        """List the overrides that match, in their order."""
        candidates = set(self._always)
        for key in self._indexed:
            for name in known.get(key, ()):
                candidates.update(self._by_name.get((key, name), ()))
        return [o for at in sorted(candidates) if (o := self._overrides[at]).match.holds(known)]


def _entries(match: Match) -> list[tuple[MatchKey, str]]:
    """List the names of the first dimension of which a match asks for names only; none if there is no such one."""
    for key, globs in match.conditions:
        names = [name for glob in globs if (name := literal_of(glob)) is not None]
        if len(names) == len(globs):
            return [(key, name) for name in names]
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A rule: at most `amount` of `unit`, for each subject of `per`, in each `window`.

    Attributes:
        amount: in the unit; 0 blocks, None never does.
        downgrade_to: the model that a request gets that does not fit, with `action` downgrade.
        dry_run: evaluated, counted and reported, never felt.
        allow_unpriced: globs of models that a cost limit lets pass although no price is known.
        allow_unbounded: lets requests pass whose use nothing bounds; they are held with what is known.
        alert_at: shares of the amount that are worth an alert, in percent, ascending.
        counts_history: when the limit is new it counts what its windows already hold.
        key: identifies this limit's accounts; derived from all that decides what is counted, no amounts.
        is_callers_own: whether its amounts may be shown to the caller.
        has_accounts: whether anything is kept from one request to the next.
        is_charged: whether a request leaves anything on its account when it is over.
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
        """Derive what is asked for with each request."""
        kind = self.window.kind
        object.__setattr__(self, "has_accounts", kind != "request")
        object.__setattr__(self, "is_charged", self.has_accounts and self.unit != "parallel_requests")
        object.__setattr__(self, "has_fixed_windows", self.is_charged and kind not in ("rolling", "session"))
        conditions = sorted((key, sorted(globs)) for key, globs in self.match.conditions)
        # Spent amounts are kept under the key for ever: what says nothing new must not change it.
        window = kind if self.window == WindowRule(kind) else list(self.window)
        zone = str(self.zone) if self.has_fixed_windows else ""
        identity = [self.name, self.per, conditions, self.unit, window, zone]
        digest = hashlib.blake2b(json.dumps(identity).encode(), digest_size=8).digest()
        object.__setattr__(self, "key", int.from_bytes(digest, "big") >> 1)
        object.__setattr__(self, "is_callers_own", bool(OWN_DIMENSIONS.intersection(self.per)))
        object.__setattr__(self, "_index", _OverrideIndex(self.overrides))

    @property
    def match_keys(self) -> frozenset[MatchKey]:
        """The dimensions that the limit and its overrides ask for."""
        return self._index.keys.union(key for key, _ in self.match.conditions)

    def overrides_of(self, known: Mapping[str, tuple[str, ...]]) -> list[Override]:
        """List the overrides that match the names of a request, in their order."""
        return self._index.matching(known)

    @property
    def blocks(self) -> bool:
        """Whether this limit can refuse a request; one that downgrades does not."""
        return self.action == "block" and not self.dry_run

    def window_at(self, instant: int) -> Window:
        """Find the window, or the bucket, whose account a request at an instant counts on."""
        if self.unit == "parallel_requests":
            return Window(0, instant + _LONGEST_REQUEST)
        return window_at(self.window, instant, self.zone)

    def since_at(self, instant: int) -> int | None:
        """Find the start of the oldest bucket that counts for a request at an instant; None where one account does."""
        return since_at(self.window, instant)

    def reset_of(self, window: Window) -> datetime | None:
        """Say when nothing of what a window holds now will count any more; None where no date brings that.

        A rolling window gives way bit by bit before.
        """
        ends = self.window.kind != "session" and self.unit != "parallel_requests"
        return reset_of(window) if ends else None

    def names_of(self, subject: str) -> dict[str, str]:
        """Take a subject of this limit apart, dimension by dimension; `global` has no name."""
        return (
            {}
            if self.per == ("global",)
            else dict(zip(self.per, subject.split(SEPARATOR, len(self.per) - 1), strict=True))
        )

    def lets_unpriced_pass(self, model: str) -> bool:
        """Say whether a model without a price may be used under this cost limit."""
        return fits(self.allow_unpriced, model)


class Place(NamedTuple):
    """Where a request of an instant counts, and how much may be there.

    Attributes:
        window: of the account; where the limit's window rolls, its bucket.
        maximum: the amount in force, in the limit's unit; None if nothing is refused.
        since: the start of the oldest bucket that counts; None where one account does.
    """

    window: Window
    account: AccountKey
    maximum: int | None
    since: int | None


class Matched:
    """A limit that counts a request. Immutable, apart from what it remembers.

    Attributes:
        subject: the names of the limit's dimensions, joined by `subjects.SEPARATOR`.
        amounts: adjustments of this account, the newest first, and overrides that match, each with its end; last
            the limit's own amount.
        can_stop: whether it can keep a request from starting as it is.
    """

    __slots__ = ("_latest", "amounts", "can_stop", "limit", "subject")

    def __init__(self, limit: Limit, subject: str, amounts: tuple[tuple[int | None, int | None], ...]) -> None:
        """Remember nothing yet."""
        self.limit = limit
        self.subject = subject
        self.amounts = amounts
        has_amount = amounts[-1][1] is not None or any(amount is not None for _, amount in amounts)
        self.can_stop = has_amount and limit.action != "warn" and not limit.dry_run
        self._latest: tuple[int, int, Place] | None = None

    def amount_at(self, instant: int) -> int | None:
        """Find the amount in force at an instant; None if nothing is refused."""
        return next(amount for until, amount in self.amounts if until is None or instant < until)

    def place_at(self, instant: int) -> Place:
        """Find where a request of an instant counts; mostly it is where the one before did."""
        latest = self._latest
        if latest is not None and latest[0] <= instant < latest[1]:
            return latest[2]
        limit = self.limit
        window = limit.window_at(instant)
        account = AccountKey(limit.key, window.start, self.subject)
        place = Place(window, account, self.amount_at(instant), limit.since_at(instant))
        if limit.has_fixed_windows:
            begins, ends = window
            for until, _ in self.amounts:
                if until is not None:
                    begins, ends = (max(begins, until), ends) if until <= instant else (begins, min(ends, until))
            self._latest = begins, ends, place
        return place


class Membership(NamedTuple):
    """Who is in which groups, beside the globs of the YAML.

    Attributes:
        groups_of: names the groups of a user; raises nothing, and may be asked in any thread.
        version: differs whenever answers differ.
    """

    groups_of: Callable[[str], Iterable[str]]
    version: str


NO_MEMBERSHIP = Membership(lambda _: (), "")


class LimitSet:
    """The limits in force, with the groups they speak of. Immutable, apart from what it remembers."""

    def __init__(
        self,
        limits: Iterable[Limit],
        groups: Mapping[str, tuple[str, ...]] | None = None,
        adjustments: Iterable[Adjustment] = (),
        written: Mapping[str, str] | None = None,
        *,
        hides_persons: bool = False,
        membership: Membership = NO_MEMBERSHIP,
    ) -> None:
        """Take the limits in the order of the YAML.

        Args:
            limits: the rules.
            groups: map a name to globs of users.
            adjustments: those in force.
            written: maps pseudonyms to how the YAML writes those who have them, as far as that is known.
            hides_persons: whether persons are kept under pseudonyms.
            membership: adds to the groups.
        """
        self.limits = tuple(limits)
        self.groups = dict(groups or {})
        self.hides_persons = hides_persons
        self._adjustments = tuple(adjustments)
        self._written = dict(written or {})
        self.membership = membership
        self._adjusted: dict[tuple[str, str], list[tuple[int | None, int | None]]] = {}
        for adjustment in sorted(self._adjustments, key=lambda adjustment: adjustment.number, reverse=True):
            if adjustment.ended_at is None:
                amounts = self._adjusted.setdefault((adjustment.limit, adjustment.subject), [])
                amounts.append((adjustment.until, adjustment.amount))
        asked: set[MatchKey] = set().union(*[limit.match_keys for limit in self.limits])
        self._matches_names = bool(asked)
        """Whether it matters for any limit how somebody is called."""
        used: set[str] = {*asked, *[dimension for limit in self.limits for dimension in limit.per]}
        if "group" in used:
            used.add("user")
        self._uses_model = "model" in used
        self._uses_provider = "provider" in used
        if "tag" in used:
            used.add("tags")
        if "api_key" in used:
            used.add("api_key_alias")
        if not used.isdisjoint(("user", "end_user", "api_key")):
            used.add("real")
        fields = [name for name in Subjects._fields if name in used]
        self._deciding: Callable[[Subjects], object] = attrgetter(*fields) if fields else lambda _: None
        """Gives what of the subjects decides."""
        self._remembered: OrderedDict[tuple[object, ...], tuple[Matched, ...]] = OrderedDict()
        self._spending: OrderedDict[tuple[object, ...], bool] = OrderedDict()

    def find(self, name: str) -> Limit:
        """Find a limit in force by its name.

        Raises:
            UnknownLimitError: none has this name.
        """
        for limit in self.limits:
            if limit.name == name:
                return limit
        known = ", ".join(limit.name for limit in self.limits) or "none"
        raise UnknownLimitError(f"There is no limit {name}.", hint=f"The limits are: {known}.")

    def adjusted(self, adjustments: Iterable[Adjustment]) -> LimitSet:
        """Make the same set with these adjustments in force, and none from before.

        An account that is adjusted has that amount until the adjustment's end, whatever overrides say. The newest
        adjustment counts; when it ends, an older one that still runs.
        """
        return self._with(adjustments=adjustments)

    def knowing(self, written: Mapping[str, str], *, hides_persons: bool | None = None) -> LimitSet:
        """Make the same set that knows of more pseudonyms how the YAML writes who has them."""
        hides = self.hides_persons if hides_persons is None else hides_persons
        return self._with(written={**self._written, **written}, hides_persons=hides)

    def alone(self, limit: Limit) -> LimitSet:
        """Make a set of one limit, with the same groups and names, and without adjustments."""
        return self._with(limits=[limit], adjustments=())

    def _with(self, **changes: Any) -> LimitSet:
        same: dict[str, Any] = {
            "limits": self.limits,
            "groups": self.groups,
            "adjustments": self._adjustments,
            "written": self._written,
            "hides_persons": self.hides_persons,
            "membership": self.membership,
        }
        return LimitSet(**same | changes)

    def named(self, key: MatchKey) -> set[str]:
        """List the names that the limits match a dimension with, where they are written out; members of groups, too."""
        matches = [match for limit in self.limits for match in (limit.match, *(o.match for o in limit.overrides))]
        globs = {glob for match in matches for at, globs in match.conditions if at == key for glob in globs}
        if key == "user":
            globs = globs.union(*self.groups.values())
        return {name for glob in globs if (name := literal_of(glob)) is not None}

    def matching(self, subjects: Subjects, model: str | None, provider: str | None) -> tuple[Matched, ...]:
        """Find every limit that counts a request of these subjects billed to this model.

        A dimension that is missing makes the limits on it not apply. A request with several tags counts on
        one account for each of them.
        """
        key = (
            model if self._uses_model else None,
            provider if self._uses_provider else None,
            self._deciding(subjects),
        )
        found = self._remembered.get(key)
        if found is None:
            names = {**_names(subjects), "model": _one(model), "provider": _one(provider)}
            found = self._match(names, subjects)
            self._remembered[key] = found
            if len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    def may_stop_spending(self, subjects: Subjects) -> bool:
        """Whether a limit on money or tokens can refuse a request of these subjects, to any model."""
        key = ("", self._deciding(subjects))
        found = self._spending.get(key)
        if found is None:
            names = _names(subjects)
            known = self._known(names, self._called(subjects)) if self._matches_names else names
            found = self._spending[key] = any(_may_stop_spending(limit, known) for limit in self.limits)
            if len(self._spending) > _REMEMBERED:
                self._spending.popitem(last=False)
        return found

    def account(self, limit: Limit, subject: str) -> Matched:
        """Find the amounts of an account from its subject alone; overrides on anything else do not count."""
        names = {dimension: (name,) for dimension, name in limit.names_of(subject).items()}
        return self._matched(limit, subject, self._known(names, {}))

    def may_count(self, limit: Limit, names: Mapping[str, str]) -> bool:
        """Say whether a limit can count a subject, as far as these of its names decide."""
        known = self._known({dimension: (name,) for dimension, name in names.items()}, {})
        return Match(tuple(condition for condition in limit.match.conditions if condition[0] in known)).holds(known)

    def groups_of(self, user: str) -> tuple[str, ...]:
        """List the groups a user is in."""
        written = (name for name, globs in self.groups.items() if fits(globs, user))
        return (*written, *self.membership.groups_of(user))

    def _called(self, subjects: Subjects) -> Mapping[str, tuple[str, ...]]:
        """Find how those are called in the YAML whom it may call otherwise than they are kept."""
        real = subjects.real
        if real is None:
            return {"api_key": tuple(self._written.get(alias, alias) for alias in _one(subjects.api_key_alias))}
        return {"user": (real.user,), "end_user": _one(real.end_user), "api_key": _one(real.api_key_alias)}

    def _match(self, names: Mapping[str, tuple[str, ...]], subjects: Subjects) -> tuple[Matched, ...]:
        known = self._known(names, self._called(subjects)) if self._matches_names else {}
        return tuple(
            self._matched(limit, subject, known)
            for limit in self.limits
            if limit.match.holds(known)
            for subject in _subjects_of(limit, names)
        )

    def _known(
        self, names: Mapping[str, tuple[str, ...]], called: Mapping[str, tuple[str, ...]]
    ) -> Mapping[str, tuple[str, ...]]:
        """Name everybody as the YAML does, and add the groups they are in."""
        known = dict(names)
        for dimension in ("user", "end_user", "api_key"):
            if dimension in names:
                more = called.get(dimension, ())
                if dimension == "api_key":
                    # Whoever makes a key chooses its alias: it must not pass for another key.
                    more = tuple(alias for alias in more if not is_key(alias))
                kept = tuple(self._as_written(dimension, name) for name in names[dimension])
                known[dimension] = (*kept, *more)
        if "user" in known:
            known["group"] = tuple(group for user in known["user"] for group in self.groups_of(user))
        return known

    def _as_written(self, dimension: str, name: str) -> str:
        """Give a name as the YAML writes it. One that cannot be known is empty, so that of all globs only `*` fits."""
        if name in self._written:
            return self._written[name]
        is_hidden = is_key_pseudonym(name) if dimension == "api_key" else self.hides_persons and is_pseudonym(name)
        return "" if is_hidden else name

    def _matched(self, limit: Limit, subject: str, known: Mapping[str, tuple[str, ...]]) -> Matched:
        adjusted = self._adjusted.get((limit.name, subject), ())
        overrides = [(o.until, o.amount) for o in limit.overrides_of(known)]
        return Matched(limit, subject, (*adjusted, *overrides, (None, limit.amount)))


_OF_MODELS = ("model", "provider")
_NOT_SPENDING = ("requests", "parallel_requests")


def _may_stop_spending(limit: Limit, known: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a limit can refuse one of these names a request because of its possible cost or tokens."""
    if limit.unit in _NOT_SPENDING or limit.action == "warn" or limit.dry_run:
        return False
    if not all(dimension == "global" or dimension in _OF_MODELS or known.get(dimension) for dimension in limit.per):
        return False
    return Match(tuple(pair for pair in limit.match.conditions if pair[0] not in _OF_MODELS)).holds(known)


def _names(subjects: Subjects) -> dict[str, tuple[str, ...]]:
    """List whose a request is, by dimension."""
    return {
        "user": (subjects.user,),
        "team": _one(subjects.team),
        "api_key": _one(subjects.api_key),
        "end_user": _one(subjects.end_user),
        "organization": _one(subjects.organization),
        "session": _one(subjects.session),
        "tag": subjects.tags,
    }


def _one(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)


def _subjects_of(limit: Limit, names: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Join the names of the dimensions, once for each tag that the limit counts where tags are counted."""
    wanted = dict(limit.match.conditions)
    subjects = [""]
    for at, dimension in enumerate(limit.per):
        values = ("",) if dimension == "global" else names[dimension]
        if dimension == "tag" and dimension in wanted:
            values = tuple(value for value in values if fits(wanted[dimension], value))
        subjects = [f"{left}{SEPARATOR}{value}" if at else value for left in subjects for value in values]
    return subjects
