"""Facts: what a program says of a request, checked as strictly as what the proxy reads of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypedDict, get_args

from usage_plugin.api.results import Money, nano_of
from usage_plugin.domain.money import LARGEST_REQUEST, format_usd
from usage_plugin.domain.subjects import ANONYMOUS, MOST_TAGS, Subjects, clean_name
from usage_plugin.domain.usage import MOST_TOKENS, Status, TokenUsage
from usage_plugin.errors import MoneyError, SubjectNameError, UsagePluginError
from usage_plugin.tracking.recorder import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.config import IdentityConfig
    from usage_plugin.domain.money import Nano

_TOKENS = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens")


class Belonging(TypedDict, total=False):
    """The other parties that a request belongs to; limits and reports know these words, agent only reports."""

    session_id: str
    team: str
    api_key: str
    end_user: str
    organization: str
    tags: Iterable[str]
    agent: str


class Facts(TypedDict, total=False):
    """What a request used, and how it ended. Cached and cache-write tokens are part of input, reasoning of output."""

    model: str
    provider: str
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    status: Status
    error: str


class UsageFacts(Facts, Belonging, total=False):
    """Everything that can be said of a request that is over; `request_id` is the program's own name for it."""

    seconds: float
    request_id: str


def given(cost: Money | None, facts: Facts) -> Outcome:
    """Make the outcome that a program tells; a cost of None is one that nobody knows.

    Raises:
        MoneyError: the cost is no amount.
        SubjectNameError: model or provider is not a valid name.
        UsagePluginError: there is no such fact, or one cannot be stored.
    """
    _refuse_unknown(facts, Facts.__annotations__)
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
    """Read what one request costs, in USD.

    Raises:
        MoneyError: it is no amount, or more than any request costs.
    """
    nano = nano_of(cost)
    if nano > LARGEST_REQUEST:
        raise MoneyError(f"expected at most {format_usd(LARGEST_REQUEST)} USD for one request; found {cost!r}.")
    return nano


def text_of(name: str, value: object) -> str | None:
    """Check a text that is kept as it is given; None is none.

    Raises:
        UsagePluginError: it cannot be stored.
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


def belonging(config: IdentityConfig, user_id: str | None, others: Belonging) -> Subjects:
    """Clean the names as those of requests to the proxy are cleaned.

    Raises:
        SubjectNameError: a name cannot be taken, or there is none and `identity.on_missing` is `deny`.
        UsagePluginError: there is no such dimension.
    """
    _refuse_unknown(others, Belonging.__annotations__)
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
    """Clean a user's name; the nameless share one.

    Raises:
        SubjectNameError: it cannot be taken, or there is none and `identity.on_missing` is `deny`.
    """
    if user_id == ANONYMOUS:
        return user_id
    name = clean_name(user_id, what="user", casefold=config.casefold)
    if name is None and config.on_missing == "deny":
        raise SubjectNameError("No user is named, and identity.on_missing is deny.")
    return name or ANONYMOUS


def _items(name: str, value: object) -> Iterable[object]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise UsagePluginError(f"{name}: expected a list of texts; found {value!r}.")
    return value


def count_of(name: str, count: object) -> int:
    """Check a number of tokens.

    Raises:
        UsagePluginError: it is none.
    """
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MOST_TOKENS:
        raise UsagePluginError(f"{name}: found {count!r}, which is no number of tokens.")
    return count


def _refuse_unknown(facts: Mapping[str, object], known: Mapping[str, object]) -> None:
    for name in facts:
        if name not in known:
            raise UsagePluginError(f"There is no {name}; there are {', '.join(known)}.")
