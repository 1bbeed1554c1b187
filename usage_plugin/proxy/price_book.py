"""Prices: a model's prices from LiteLLM's router and price map, as the domain's `Price`.

LiteLLM's own look-ups turn a missing price into zero, and ask some providers over the network. So the raw entries are
read here, as described in `usage_plugin.pricing.sheets`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from functools import cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import litellm
from litellm.router_utils.fallback_event_handlers import get_fallback_model_group

from usage_plugin.domain.prices import NO_ADJUSTMENT, atto_each
from usage_plugin.domain.subjects import LONGEST_NAME
from usage_plugin.pricing.catalog import (
    adjustment_of,
    entry_name,
    location_of,
    picks_the_model,
    provider_of,
    residency_of,
)
from usage_plugin.pricing.price_map import with_container
from usage_plugin.pricing.sheets import NO_UPLIFT, is_priced_by_litellm, own_or_mapped, read_price, route_of, uplift_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from decimal import Decimal
    from types import ModuleType

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.prices import Price, PriceAdjustment
    from usage_plugin.pricing.sheets import Route

AnswerT = TypeVar("AnswerT")

_ATTO_PER_NANO = 10**9
_KEPT = 2_000
_KEPT_FOR_SECONDS = 5.0
_MOST_FALLBACKS = 32
_MOST_ANSWERING = 100
"""The maximum number of answering models whose prices are cached for one deployment."""
_PICKING_PROVIDERS = ("openrouter",)
"""Providers that choose among the models named in the request, each at its own price."""
FALLBACK_LISTS = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
_NAMING_FALLBACKS = frozenset({*FALLBACK_LISTS, "router_settings_override"})
_FALLBACKS = object()


class Deployment:
    """One deployment behind a `model_name`.

    Attributes:
        model: The billed `model_name`, after resolving an alias.
        served_model: The provider's model, as in `litellm_params.model`.
        sheet: The price sheet, in LiteLLM's form.
        states_price: Whether the YAML states a price of its own; then no other figure is charged.
        picks_model: Whether the provider chooses the answering model, so that its price is unknown before.
        adjustment: The operator's discount or surcharge on the provider's prices.
        context: The maximum input tokens; None if unknown.
        most_output: The maximum output tokens; None if unknown.
        service: The service tier that the deployment requests itself.
        parameters: The operator's parameters, which LiteLLM sends unless the client overrides them.
        bounds: The bounds of these parameters, by route, filled on first use.
        limits: The output limits, by route, filled on first use.
        reasons: Whether the model thinks before it answers.
    """

    __slots__ = (
        "_of_answers", "_prices", "_sheet_of", "_uplift", "adjustment", "bounds", "context", "deployment_id", "limits",
        "model", "most_output", "parameters", "picks_model", "provider", "reasons", "served_model", "service", "sheet",
        "states_price",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913  # what is known of a deployment
        self,
        model: str | None,
        *,
        deployment_id: str = "",
        provider: str | None = None,
        served_model: str = "",
        sheet: Mapping[str, Any] = MappingProxyType({}),
        states_price: bool = False,
        adjustment: PriceAdjustment = NO_ADJUSTMENT,
        uplift: Decimal = NO_UPLIFT,
        context: int | None = None,
        most_output: int | None = None,
        service: str | None = None,
        sheet_of: Callable[[str], Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Store the facts about the deployment.

        `uplift` is the region's multiplier for the prices of tokens. `sheet_of` returns the price sheet of another
        model of this provider; None if the YAML names the model for the prices.
        """
        self.model = model
        self.deployment_id = deployment_id
        self.provider = provider
        self.served_model = served_model
        self.sheet = sheet
        self.states_price = states_price
        self.picks_model = not states_price and picks_the_model(served_model)
        self.adjustment = adjustment
        self.context = context
        self.most_output = most_output
        self.service = service
        self._uplift = uplift
        self._sheet_of = sheet_of
        self.parameters: Mapping[str, Any] = MappingProxyType({})
        self.reasons = False
        self.bounds: dict[str, Any] = {}
        self.limits: dict[tuple[str, bool], Any] = {}
        self._prices: dict[Route, Price | None] = {}
        self._of_answers: dict[tuple[str, Route], Price | None] = {}

    def price_on(self, call_type: str) -> Price | None:
        """Return the price of a route; None if it is unknown or cannot be computed with."""
        route = route_of(call_type)
        if route not in self._prices:
            self._prices[route] = read_price(self.sheet, route, uplift=self._uplift)
        return self._prices[route]

    def price_of_answer(self, answered: str | None, call_type: str) -> Price | None:
        """Return the price of the model that an answer names; None if it is the requested one."""
        if answered is None or self._sheet_of is None or self._is_asked(answered):
            return None
        key = (answered, route_of(call_type))
        if key not in self._of_answers:
            if len(self._of_answers) >= _MOST_ANSWERING:
                self._of_answers.clear()
            sheet = self._sheet_of(answered)
            self._of_answers[key] = None if sheet is None else read_price(sheet, key[1], uplift=self._uplift)
        return self._of_answers[key]

    def _is_asked(self, answered: str) -> bool:
        """Whether this is the name of the requested model, or a shorter form of it."""
        return self.served_model == answered or self.served_model.rpartition("/")[2].startswith(
            answered.rpartition("/")[2]
        )

    def has_own_price(self, key: str) -> bool:
        """Whether the sheet has a price under this key."""
        return atto_each(self.sheet.get(key)) is not None

    def is_priced_on(self, call_type: str) -> bool:
        """Whether a price is known, to us or only to LiteLLM."""
        return self.price_on(call_type) is not None or is_priced_by_litellm(self.sheet, route_of(call_type))


class PriceBook:
    """Looks up models in the running router and caches the results for a few seconds."""

    def __init__(self) -> None:
        """Copy LiteLLM's current price map, since the router later writes custom prices into the shared one."""
        self._map = {name: dict(entry) for name, entry in litellm.model_cost.items() if isinstance(entry, dict)}
        self._kept: OrderedDict[tuple[str, object], tuple[float, Any]] = OrderedDict()

    def deployments(self, model: str, team: str | None) -> tuple[Deployment, ...]:
        """Return the deployments that can serve a `model_name`, an alias or a wildcard."""
        key = (model, team)
        found: tuple[Deployment, ...] | None = self._recent(key)
        return self._keep(key, tuple(self._look_up(model, team))) if found is None else found

    def fallbacks(self, model: str, body: Mapping[str, Any]) -> Sequence[str]:
        """Return every model that the router may fall back to from this one, directly or through other fallbacks."""
        if _NAMING_FALLBACKS.isdisjoint(body):
            key = (model, _FALLBACKS)
            found: list[str] | None = self._recent(key)
            return self._keep(key, self._find_fallbacks(model, {})) if found is None else found
        return self._find_fallbacks(model, body)

    def _recent(self, key: tuple[str, object]) -> Any:
        """Return the router's answer of the last few seconds; None if there is none."""
        kept = self._kept.get(key)
        return kept[1] if kept is not None and kept[0] >= time.monotonic() else None

    def _keep(self, key: tuple[str, object], answer: AnswerT) -> AnswerT:
        """Keep an answer of the router for a few seconds, and return it."""
        self._kept[key] = (time.monotonic() + _KEPT_FOR_SECONDS, answer)
        self._kept.move_to_end(key)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return answer

    @staticmethod
    def _find_fallbacks(model: str, body: Mapping[str, Any]) -> list[str]:
        router = _router()
        override = body.get("router_settings_override")
        holders = [body.get(name) for name in FALLBACK_LISTS]
        if isinstance(override, dict):
            # The operator's own, for a key or a team. A client's is rejected.
            holders += [override.get(name) for name in FALLBACK_LISTS]
        if router is not None:
            holders += [getattr(router, name) for name in FALLBACK_LISTS]
        lists = [fallbacks for fallbacks in holders if isinstance(fallbacks, list) and fallbacks]
        if not lists:
            return []
        found: list[str] = []
        queue = [model]
        while queue and len(found) < _MOST_FALLBACKS:
            name = queue.pop(0)
            for fallbacks in lists:
                for target in _targets(fallbacks, name):
                    if target != model and target not in found:
                        found.append(target)
                        queue.append(target)
        return found

    def mapped(self, provider: str | None, model: str) -> Deployment | None:
        """Return a model that a provider may choose itself, with its price in the map; None if the map lacks it."""
        if provider not in _PICKING_PROVIDERS:
            return None
        name = f"{provider}/{model}"
        sheet = self._entry(name, provider)
        return Deployment(name, provider=provider, served_model=name, sheet=sheet) if sheet else None

    def in_map(
        self, provider: str, model: str, *, called: str, api_base: str | None, location: str | None
    ) -> Deployment | None:
        """Return a provider's model that no deployment serves, with its price in the map; None if the map lacks it.

        Args:
            provider: LiteLLM's name of the provider.
            model: The provider's name of the model.
            called: The name under which it is recorded.
            api_base: The URL of the call, which may name a region.
            location: The region of Vertex AI.
        """
        sheet = self._entry(model, provider)
        if sheet is None:
            return None
        place = location_of(provider, {"vertex_location": location}, model)
        return Deployment(
            called,
            provider=provider,
            served_model=f"{provider}/{model}",
            sheet=sheet,
            adjustment=adjustment_of(provider),
            uplift=uplift_of(sheet, residency=residency_of(provider, api_base), location=place),
            sheet_of=partial(self._entry, provider=provider),
        )

    @staticmethod
    def search(tool: object) -> tuple[str, Nano] | None:
        """Return the provider of a search tool and the maximum cost of a query; None if either is unknown.

        A provider has a price for each search method, and sometimes for each number of results.
        """
        listed = getattr(_router(), "search_tools", None) or ()
        named = [found.get("litellm_params") or {} for found in listed if found.get("search_tool_name") == tool]
        providers = {parameters.get("search_provider") for parameters in named}
        costs = [cost for provider in providers for cost in _search_costs(provider)]
        if not costs or len(providers) > 1:
            return None
        return str(providers.pop()), max(costs)

    @staticmethod
    def is_listed(model: str) -> bool:
        """Whether the proxy's YAML lists exactly this name."""
        router = _router()
        return router is not None and model in router.model_names

    def _entry(self, model: str, provider: str | None) -> Mapping[str, Any] | None:
        """Return the entry of LiteLLM's map that prices a model; None if it has none."""
        name = entry_name(self._map, model, provider)
        return None if name is None else with_container(self._map, self._map[name], provider)

    def _look_up(self, model: str, team: str | None) -> Iterable[Deployment]:
        router = _router()
        if router is None:
            return
        alias = router.model_group_alias.get(model)
        billed = alias.get("model") if isinstance(alias, dict) else alias
        listed = router.get_model_list(model_name=model, team_id=team)
        for entry in listed or _by_another_name(router, model, team):
            parameters = dict(entry.get("litellm_params") or {})
            info = dict(entry.get("model_info") or {})
            served = str(parameters.get("model") or "")
            if "*" in served:
                served = model if model.startswith(served.split("*", 1)[0]) else served.replace("*", model)
            own = {key: value for key, value in {**parameters, **info}.items() if value is not None}
            name, provider = provider_of(served, own.get("custom_llm_provider"), own.get("api_base"))
            base_model = own.get("base_model")
            mapped = self._entry(str(base_model or name), provider) or {}
            facts = {**mapped, **own}
            sheet = own_or_mapped(own, mapped)
            service = own.get("service_tier")
            states_price = sheet is not mapped
            deployment = Deployment(
                str((billed or model) if listed else entry.get("model_name")),
                deployment_id=str(info.get("id") or ""),
                provider=provider or (served.split("/", 1)[0] if "/" in served else None),
                served_model=served,
                sheet=sheet,
                states_price=states_price,
                adjustment=adjustment_of(provider),
                uplift=uplift_of(
                    sheet,
                    residency=residency_of(provider, own.get("api_base")),
                    location=location_of(provider, own, name),
                ),
                sheet_of=None if states_price or base_model else partial(self._entry, provider=provider),
                context=_count(facts.get("max_input_tokens")),
                most_output=_count(facts.get("max_output_tokens")),
                service=service.lower() if isinstance(service, str) else None,
            )
            deployment.parameters = {key: value for key, value in parameters.items() if value is not None}
            deployment.reasons = facts.get("supports_reasoning") is True
            yield deployment


def _by_another_name(router: Any, model: str, team: str | None) -> list[Any]:  # litellm.Router
    """Return the deployments with this id or provider's model. LiteLLM serves these too, billed by their own names."""
    return [
        entry
        for entry in router.get_model_list() or ()
        if model in ((entry.get("model_info") or {}).get("id"), (entry.get("litellm_params") or {}).get("model"))
        and (entry.get("model_info") or {}).get("team_id") in (None, team)
    ]


def _targets(fallbacks: list[Any], model: str) -> list[str]:
    """Return one model's fallbacks from one of the router's lists; a body's list may also be a plain list of names."""
    if all(isinstance(item, str) or (isinstance(item, dict) and "model" in item) for item in fallbacks):
        chosen: list[Any] = fallbacks
    else:
        chosen = get_fallback_model_group(fallbacks, model)[0] or []
    names = [item.get("model") if isinstance(item, dict) else item for item in chosen]
    return [name for name in names if isinstance(name, str) and len(name) <= LONGEST_NAME and name.isprintable()]


def _search_costs(provider: object) -> list[Nano]:
    """Return the possible costs of a search provider's query, rounded up."""
    begin = f"{provider}/"
    sheets = [
        sheet
        for name, sheet in litellm.model_cost.items()
        if name.startswith(begin) and isinstance(sheet, dict) and sheet.get("mode") == "search"
    ]
    tiers = [tier for sheet in sheets for tier in (sheet, *(sheet.get("tiered_pricing") or ()))]
    prices = [atto_each(tier.get("input_cost_per_query")) for tier in tiers]
    return [-(-price // _ATTO_PER_NANO) for price in prices if price is not None]


def _router() -> Any:  # litellm.Router, rebound whenever the proxy loads its config
    return _proxy_server().llm_router


@cache
def _proxy_server() -> ModuleType:
    """Import it once, only in a running proxy: even a repeated import has a cost."""
    from litellm.proxy import proxy_server  # noqa: PLC0415

    return cast("ModuleType", proxy_server)


def overriding_fallbacks(fallbacks: object) -> bool:
    """Whether a body's fallbacks have parameters of their own, which LiteLLM merges over the request."""
    if isinstance(fallbacks, dict):
        if "model" in fallbacks:
            return len(fallbacks) > 1
        return any(overriding_fallbacks(value) for value in fallbacks.values())
    return isinstance(fallbacks, list) and any(overriding_fallbacks(item) for item in fallbacks)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
