"""Validation of the facts that a program passes for a request, as strict as for requests to the proxy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypedDict, get_args

from usage_plugin.api.results import Money, nano_of
from usage_plugin.domain.money import LARGEST_REQUEST, format_usd
from usage_plugin.domain.subjects import ANONYMOUS, MOST_TAGS, Subjects, clean_name
from usage_plugin.domain.usage import MOST_TOKENS, Status, TokenUsage
from usage_plugin.errors import MoneyError, SubjectNameError, UsagePluginError
from usage_plugin.tracking.admission.recorder import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.config import IdentityConfig
    from usage_plugin.domain.money import Nano

_TOKENS = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens")


class Attribution(TypedDict, total=False):
    """The parties of a request other than the user; limits and reports know them, `agent` is for reports only."""

    session_id: str
    team: str
    api_key: str
    end_user: str
    organization: str
    tags: Iterable[str]
    agent: str


class Facts(TypedDict, total=False):
    """The usage and the outcome of a request. Input includes cached and cache-write tokens, output reasoning tokens."""

    model: str
    provider: str
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    status: Status
    error: str


class UsageFacts(Facts, Attribution, total=False):
    """All facts of a completed request; `request_id` is the program's own id of it."""

    seconds: float
    request_id: str


def outcome_of(cost: Money | None, facts: Facts) -> Outcome:
    """Return the outcome of a request; a cost of None is unknown.

    Raises:
        MoneyError: the cost is not a valid amount.
        SubjectNameError: model or provider is not a valid name.
        UsagePluginError: a fact is unknown or cannot be stored.
    """
    reject_unknown(facts, Facts.__annotations__)
    status = facts.get("status", "success")
    if status not in get_args(Status):
        raise UsagePluginError(f"status: expected one of {', '.join(get_args(Status))}; found {status!r}.")
    return Outcome(
        status=status,
        model=clean_name(facts.get("model"), what="model"),
        provider=clean_name(facts.get("provider"), what="provider"),
        tokens=TokenUsage(**{name: count_of(name, facts.get(name, 0)) for name in _TOKENS}),
        cost=None if cost is None else cost_of(cost),
        cost_source="unpriced" if cost is None else "given",
        error=text_of("error", facts.get("error")),
    )


def cost_of(cost: Money) -> Nano:
    """Return the cost of one request in nano-dollars.

    Raises:
        MoneyError: the cost is not a valid amount, or exceeds the maximum of one request.
    """
    nano = nano_of(cost)
    if nano > LARGEST_REQUEST:
        raise MoneyError(f"expected at most {format_usd(LARGEST_REQUEST)} USD for one request; found {cost!r}.")
    return nano


def text_of(name: str, value: object) -> str | None:
    """Return a text that is stored unchanged, or None.

    Raises:
        UsagePluginError: the value is not a valid Unicode string.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise UsagePluginError(f"{name}: expected text; found {value!r}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsagePluginError(
            f"{name}: expected valid Unicode; found {value!r}, with half a surrogate pair."
        ) from None
    return value


def subjects_of(config: IdentityConfig, user_id: str | None, others: Attribution) -> Subjects:
    """Return the names in the form that requests to the proxy have.

    Raises:
        SubjectNameError: a name is not valid, or the user is missing and `identity.on_missing` is `deny`.
        UsagePluginError: a dimension is unknown.
    """
    reject_unknown(others, Attribution.__annotations__)
    fold = config.casefold
    tags = [clean_name(tag, what="tag") for tag in _items("tags", others.get("tags", ()))]
    return Subjects(
        user=user_name(config, user_id),
        team=clean_name(others.get("team"), what="team", casefold=fold),
        api_key=clean_name(others.get("api_key"), what="api key"),
        end_user=clean_name(others.get("end_user"), what="end user", casefold=fold),
        organization=clean_name(others.get("organization"), what="organization", casefold=fold),
        session=clean_name(others.get("session_id"), what="session"),
        tags=tuple(dict.fromkeys(filter(None, tags)))[:MOST_TAGS],
        agent=clean_name(others.get("agent"), what="agent"),
    )


def user_name(config: IdentityConfig, user_id: str | None) -> str:
    """Return a user's name in the form that requests have; requests without a user share `(anonymous)`.

    Raises:
        SubjectNameError: the name is not valid, or missing and `identity.on_missing` is `deny`.
    """
    if user_id == ANONYMOUS:
        return user_id
    name = clean_name(user_id, what="user", casefold=config.casefold)
    if name is None and config.on_missing == "deny":
        raise SubjectNameError("user_id: expected a name, since identity.on_missing is deny; found none.")
    return name or ANONYMOUS


def _items(name: str, value: object) -> Iterable[object]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise UsagePluginError(f"{name}: expected a list of texts; found {value!r}.")
    return value


def count_of(name: str, count: object) -> int:
    """Return a number of tokens.

    Raises:
        UsagePluginError: the value is not a valid number of tokens.
    """
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MOST_TOKENS:
        raise UsagePluginError(f"{name}: expected a number of tokens from 0 to {MOST_TOKENS}; found {count!r}.")
    return count


def reject_unknown(given: Mapping[str, object], known: Mapping[str, object]) -> None:
    """Reject names of keyword arguments that do not exist.

    Raises:
        UsagePluginError: a name is unknown.
    """
    for name in given:
        if name not in known:
            raise UsagePluginError(f"expected some of {', '.join(known)}; found {name}.")
