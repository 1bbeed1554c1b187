"""Pass-through prices: find the model and the price of an answer that LiteLLM forwards unchanged.

The usage comes from the answer's bytes (`pass_through_usage`). The price comes from LiteLLM's map, by the provider of
the host, of the route or of the model's name. Two prices have precedence:

- that of the router's deployment that served the answer, or whose stated price is for the same model of the same
  provider
- the operator's stated cost for an endpoint of their own
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from usage_plugin.pricing.catalog import provider_of
from usage_plugin.proxy.routes import PASS_THROUGH

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.proxy.pass_through_usage import PassThroughReport
    from usage_plugin.proxy.price_book import Deployment, PriceBook
    from usage_plugin.proxy.request_scope import RequestScope
    from usage_plugin.proxy.usage_parsing import Served

_ROUTES: Mapping[str, tuple[str, ...]] = {
    "openai_passthrough": ("openai",), "cohere": ("cohere", "cohere_chat"), "vertex-ai": ("vertex_ai",),
    "vllm": ("hosted_vllm", "vllm"),
}  # fmt: skip
"""Providers of routes whose first segment is not LiteLLM's name of the provider."""
_HOSTS = {
    "api.openai.com": "openai", "openrouter.ai": "openrouter", "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gemini", "api.cohere.com": "cohere", "api.cohere.ai": "cohere",
}  # fmt: skip
"""Hosts that LiteLLM does not recognize as endpoints in OpenAI's format."""
_MODEL_IN_PATH = re.compile(r"/(?:deployments|models?)/([^/:?]+)")
_LOCATION_IN_PATH = re.compile(r"/locations/([^/]+)/")
_CALL_TYPES = {
    "embedding": "aembedding", "image_generation": "image_generation", "image_edit": "image_edit",
    "audio_speech": "aspeech", "audio_transcription": "transcription", "rerank": "rerank", "moderation": "moderation",
}  # fmt: skip
"""LiteLLM's call types by a model's mode in its map; all others are billed as text."""
_UPSTREAM_COST = "_litellm_upstream_reported_usage"
"""LiteLLM's mark for a cost that the answer's headers reported."""


class Offer(NamedTuple):
    """The deployments that price one answer, instead of the router's, and the event to price."""

    ways: Sequence[Deployment]
    event: UsageEvent

    def deployments(self, model: str, team: str | None) -> Sequence[Deployment]:  # noqa: ARG002  # as `PriceBook` has it
        """Return the deployments, for any model name."""
        return self.ways


def reads_bytes(scope: RequestScope) -> bool:
    """Whether the answer's bytes are read: look-ups and cancellations concern work that has been charged before."""
    if scope.method != "POST" or scope.rule is None or scope.rule.call_type != PASS_THROUGH:
        return False
    return not scope.path.endswith("/cancel")


def priced(
    prices: PriceBook, served: Served, event: UsageEvent, report: PassThroughReport, kwargs: Mapping[str, Any]
) -> tuple[Served, Offer]:
    """Return the known facts and the prices of an answer with usage; the operator's stated cost has precedence.

    Args:
        prices: LiteLLM's map, and the router's deployments.
        served: The known facts about the answer.
        event: The event of the request.
        report: The report of the answer's bytes.
        kwargs: The arguments of LiteLLM's log.
    """
    stated = stated_cost(kwargs)
    if stated is not None:
        return served._replace(provider=None, litellm_cost=stated), Offer((), event)
    if "billed_units" in report.usage:
        # Cohere states the units it bills, but LiteLLM prices all the units that were counted.
        served = served._replace(litellm_cost=None)
    return served, _offer(prices, served, event, report.path, _target_of(kwargs))


def _offer(prices: PriceBook, served: Served, event: UsageEvent, path: str, url: str | None) -> Offer:
    """Return the prices of an answer that LiteLLM forwarded unchanged.

    Args:
        prices: LiteLLM's map, and the router's deployments.
        served: The known facts about the answer.
        event: The event of the request.
        path: The path of the route.
        url: The URL that the request was sent to; None if LiteLLM does not report it.
    """
    # A model in the path decides, since the body may name any other.
    asked = _model_in(url or path) or event.requested_model
    group = served.model or asked
    listed = prices.deployments(group, event.team) if group else ()
    own = [way for way in listed if served.deployment_id and way.deployment_id == served.deployment_id]
    if own:
        return Offer(own, _as_priced(own[0], event))
    names = list(dict.fromkeys(name for name in (asked, served.answered) if name))
    serving = _serving_providers(path, url)
    for provider, name in _candidates(names, serving):
        # A deployment of another provider may state a price for a model of the same name.
        own_price = [way for way in listed if way.states_price and way.provider == provider and _serves(way, name)]
        stated = next(iter(own_price), None) if provider in serving else None
        found = stated or prices.in_map(
            provider, name, called=group or name, api_base=url, location=_location_in(url or path)
        )
        if found is not None:
            return Offer((found,), _as_priced(found, event))
    return Offer((), event)


def stated_cost(kwargs: Mapping[str, Any]) -> object:
    """Return the cost that the operator states for an endpoint of their own, or that its server reported.

    None if neither exists. LiteLLM itself charges the operator's figure for whole answers only.
    """
    if kwargs.get(_UPSTREAM_COST) is not None:
        return kwargs.get("response_cost") or None
    return (kwargs.get("passthrough_logging_payload") or {}).get("cost_per_request") or None


def is_free(kwargs: Mapping[str, Any], path: str) -> bool:
    """Whether the YAML states a cost of zero for requests to an endpoint of the operator's own.

    LiteLLM itself writes a zero where an endpoint that was added at run time has no price.
    """
    payload = kwargs.get("passthrough_logging_payload") or {}
    if payload.get("cost_per_request") != 0:
        return False
    from litellm.proxy import proxy_server  # noqa: PLC0415  # it is there when a request is, and costs seconds before

    return any(
        endpoint.get("cost_per_request") == 0 and path.startswith(str(endpoint.get("path")))
        for endpoint in getattr(proxy_server, "config_passthrough_endpoints", None) or ()
    )


def _target_of(kwargs: Mapping[str, Any]) -> str | None:
    """Return the URL that a request was forwarded to; None if LiteLLM does not report it."""
    url = (kwargs.get("passthrough_logging_payload") or {}).get("url")
    return url if isinstance(url, str) else None


def _serving_providers(path: str, url: str | None) -> Sequence[str]:
    """Return the possible providers of an answer, by its host and its route, most likely first."""
    by_host = _provider_of_host(urlsplit(url).netloc, urlsplit(url).path) if url else None
    route = path.strip("/").partition("/")[0]
    return list(dict.fromkeys((*((by_host,) if by_host else ()), *_ROUTES.get(route, (route,)))))


def _candidates(names: Sequence[str], serving: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield providers with their names of the model, most likely first; last the providers that the names imply."""
    yield from ((provider, name) for provider in serving for name in names)
    for name in names:
        bare, provider = provider_of(name)
        if provider is not None:
            yield provider, bare


@lru_cache(maxsize=100)
def _provider_of_host(host: str, path: str) -> str | None:
    """Return the provider that a host belongs to; None if LiteLLM does not know it."""
    return _HOSTS.get(host) or provider_of("-", None, f"https://{host}{path}")[1]


def _serves(way: Deployment, name: str) -> bool:
    return way.served_model.rpartition("/")[2] == name.rpartition("/")[2]


def _as_priced(way: Deployment, event: UsageEvent) -> UsageEvent:
    """Return the event with the call type of the model's price, since a pass-through route has none."""
    return event._replace(call_type=_CALL_TYPES.get(str(way.sheet.get("mode")), "acompletion"))


def _model_in(path: str) -> str | None:
    found = _MODEL_IN_PATH.search(path)
    return unquote(found[1]) if found is not None else None


def _location_in(path: str) -> str | None:
    found = _LOCATION_IN_PATH.search(path)
    return found[1] if found is not None else None
