"""The limits in force, and the matching of requests to them.

For a request and the model that will be billed, `LimitSet.matching` returns the limits that count it, each with its
subject and amount. It decides nothing: `tracking.admission.decide` decides, with the ledger.
"""

from __future__ import annotations

from collections import OrderedDict
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.globs import fits, literal_of
from usage_plugin.domain.ledger import AccountKey
from usage_plugin.domain.limits import Match
from usage_plugin.domain.pseudonyms import is_key, is_key_pseudonym, is_pseudonym
from usage_plugin.domain.subjects import SEPARATOR, Subjects
from usage_plugin.errors import UnknownLimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from usage_plugin.domain.limits import Limit, MatchKey
    from usage_plugin.domain.operations import Adjustment
    from usage_plugin.domain.pseudonyms import Pseudonyms
    from usage_plugin.domain.windows import Window

_REMEMBERED = 4096


class Place(NamedTuple):
    """The account that counts a request at an instant, and its maximum.

    Attributes:
        window: of the account; for a rolling window, its bucket.
        maximum: the amount in force, in the limit's unit; None if nothing is refused.
        since: the start of the oldest bucket that counts; None if one account counts.
    """

    window: Window
    account: AccountKey
    maximum: int | None
    since: int | None


class Matched:
    """A limit that counts a request. Immutable, apart from a cache of one place.

    Attributes:
        subject: the names of the limit's dimensions, joined by `subjects.SEPARATOR`.
        amounts: this account's adjustments (newest first), then the matching overrides, then the limit's own amount;
            each with its end.
        can_stop: whether it can prevent a request from starting unchanged.
    """

    __slots__ = ("_latest", "amounts", "can_stop", "limit", "subject")

    def __init__(self, limit: Limit, subject: str, amounts: tuple[tuple[int | None, int | None], ...]) -> None:
        """Start with an empty cache."""
        self.limit = limit
        self.subject = subject
        self.amounts = amounts
        has_amount = amounts[-1][1] is not None or any(amount is not None for _, amount in amounts)
        self.can_stop = has_amount and limit.action != "warn" and not limit.dry_run
        self._latest: tuple[int, int, Place] | None = None

    def amount_at(self, instant: int) -> int | None:
        """Return the amount in force at an instant; None if nothing is refused."""
        return next(amount for until, amount in self.amounts if until is None or instant < until)

    def place_at(self, instant: int) -> Place:
        """Return the place that counts a request at an instant; cached, since it is mostly the previous one."""
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
    """Group membership from resolvers, in addition to the globs of the YAML.

    Attributes:
        groups_of: returns the names of a user's groups; raises nothing, and is safe in any thread.
        version: changes whenever an answer changes.
    """

    groups_of: Callable[[str], Iterable[str]]
    version: str


NO_MEMBERSHIP = Membership(lambda _: (), "")


class LimitSet:
    """The limits in force, with the groups that they use. Immutable, apart from its caches."""

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
        """Use the limits in the order of the YAML.

        Args:
            limits: the rules.
            groups: maps the name of a group to globs of users.
            adjustments: the adjustments in force.
            written: maps known pseudonyms to the names in the YAML.
            hides_persons: whether persons are kept under pseudonyms.
            membership: further members of groups.
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
        match_keys: set[MatchKey] = set().union(*[limit.match_keys for limit in self.limits])
        self._matches_names = bool(match_keys)
        """Whether any limit matches by names."""
        used: set[str] = {*match_keys, *[dimension for limit in self.limits for dimension in limit.per]}
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
        """The function that selects the names of the subjects that decide which limits match."""
        self._remembered: OrderedDict[tuple[object, ...], tuple[Matched, ...]] = OrderedDict()
        self._spending: OrderedDict[tuple[object, ...], bool] = OrderedDict()

    def find(self, name: str) -> Limit:
        """Return a limit in force by its name.

        Raises:
            UnknownLimitError: no limit has this name.
        """
        for limit in self.limits:
            if limit.name == name:
                return limit
        known = ", ".join(limit.name for limit in self.limits) or "none"
        raise UnknownLimitError(f"There is no limit {name}.", hint=f"The limits are: {known}.")

    def adjusted(self, adjustments: Iterable[Adjustment]) -> LimitSet:
        """Return a copy with these adjustments in force, and no earlier ones.

        An adjusted account has the adjustment's amount until the adjustment ends; overrides do not change that. The
        newest adjustment counts. When it ends, an older one that is still in force counts.
        """
        return self._with(adjustments=adjustments)

    def knowing(self, written: Mapping[str, str], *, hides_persons: bool | None = None) -> LimitSet:
        """Return a copy that knows the YAML's names for more pseudonyms."""
        hides = self.hides_persons if hides_persons is None else hides_persons
        return self._with(written={**self._written, **written}, hides_persons=hides)

    def under(self, pseudonyms: Pseudonyms) -> LimitSet:
        """Return the same set that knows the pseudonyms of all literal names in the YAML; globs have none."""
        written = {pseudonyms.of_key(name): name for name in self.named("api_key") if is_key(name)}
        if pseudonyms.hides_persons:
            names = {name for key in _PERSONS for name in self.named(key)}
            written |= {pseudonyms.of_person(name): name for name in names if not is_key(name)}
        return self.knowing(written, hides_persons=pseudonyms.hides_persons)

    def alone(self, limit: Limit) -> LimitSet:
        """Return a set of one limit, with the same groups and names, and without adjustments."""
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
        """Return the literal names, not globs, by which the limits match a dimension; also members of groups."""
        matches = [match for limit in self.limits for match in (limit.match, *(o.match for o in limit.overrides))]
        globs = {glob for match in matches for at, globs in match.conditions if at == key for glob in globs}
        if key == "user":
            globs = globs.union(*self.groups.values())
        return {name for glob in globs if (name := literal_of(glob)) is not None}

    def matching(self, subjects: Subjects, model: str | None, provider: str | None) -> tuple[Matched, ...]:
        """Return every limit that counts a request of these subjects billed to this model.

        If a dimension is absent, the limits on it do not apply. A request with several tags counts on one account for
        each of them.
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
        """Return the amounts of an account, from its subject alone; overrides on other dimensions do not count."""
        names = {dimension: (name,) for dimension, name in limit.names_of(subject).items()}
        return self._matched(limit, subject, self._known(names, {}))

    def may_count(self, limit: Limit, names: Mapping[str, str]) -> bool:
        """Whether a limit can count a subject with these names; conditions on other dimensions are ignored."""
        known = self._known({dimension: (name,) for dimension, name in names.items()}, {})
        return Match(tuple(condition for condition in limit.match.conditions if condition[0] in known)).holds(known)

    def groups_of(self, user: str) -> tuple[str, ...]:
        """Return the groups of a user."""
        written = (name for name, globs in self.groups.items() if fits(globs, user))
        return (*written, *self.membership.groups_of(user))

    def _called(self, subjects: Subjects) -> Mapping[str, tuple[str, ...]]:
        """Return the names in the YAML of users and keys, where they may differ from the stored names."""
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
        """Return the names, with the names of the YAML and the users' groups added."""
        known = dict(names)
        for dimension in ("user", "end_user", "api_key"):
            if dimension in names:
                more = called.get(dimension, ())
                if dimension == "api_key":
                    # The creator of a key chooses its alias, which must not impersonate another key.
                    more = tuple(alias for alias in more if not is_key(alias))
                kept = tuple(self._as_written(dimension, name) for name in names[dimension])
                known[dimension] = (*kept, *more)
        if "user" in known:
            known["group"] = tuple(group for user in known["user"] for group in self.groups_of(user))
        return known

    def _as_written(self, dimension: str, name: str) -> str:
        """Return a name as written in the YAML; "" for an unknown pseudonym, so that of all globs only `*` fits."""
        if name in self._written:
            return self._written[name]
        is_hidden = is_key_pseudonym(name) if dimension == "api_key" else self.hides_persons and is_pseudonym(name)
        return "" if is_hidden else name

    def _matched(self, limit: Limit, subject: str, known: Mapping[str, tuple[str, ...]]) -> Matched:
        adjusted = self._adjusted.get((limit.name, subject), ())
        overrides = [(o.until, o.amount) for o in limit.overrides_of(known)]
        return Matched(limit, subject, (*adjusted, *overrides, (None, limit.amount)))


_OF_MODELS = ("model", "provider")
_PERSONS: tuple[MatchKey, ...] = ("user", "end_user", "api_key")
_NOT_SPENDING = ("requests", "parallel_requests")


def _may_stop_spending(limit: Limit, known: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a limit can refuse a request with these names because of its possible cost or tokens."""
    if limit.unit in _NOT_SPENDING or limit.action == "warn" or limit.dry_run:
        return False
    if not all(dimension == "global" or dimension in _OF_MODELS or known.get(dimension) for dimension in limit.per):
        return False
    return Match(tuple(pair for pair in limit.match.conditions if pair[0] not in _OF_MODELS)).holds(known)


def _names(subjects: Subjects) -> dict[str, tuple[str, ...]]:
    """Return the names of a request's subjects, by dimension."""
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
    """Return the subjects: the joined names of the dimensions, once for each tag that the limit counts."""
    wanted = dict(limit.match.conditions)
    subjects = [""]
    for at, dimension in enumerate(limit.per):
        values = ("",) if dimension == "global" else names[dimension]
        if dimension == "tag" and dimension in wanted:
            values = tuple(value for value in values if fits(wanted[dimension], value))
        subjects = [f"{left}{SEPARATOR}{value}" if at else value for left in subjects for value in values]
    return subjects
