"""The gate: what becomes of a request before LiteLLM serves it, decided by its route.

LiteLLM calls its pre-call hook on most routes that cost something, but not on all: here every request passes, since
each is authenticated by one function, which `lifecycle` wraps. What the hook decides on passes on. What no hook sees,
or may not see, is held, recorded or refused here, for the user whom LiteLLM has authenticated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from usage_plugin.domain.subjects import Subjects
from usage_plugin.domain.usage import new_ref
from usage_plugin.proxy import routes
from usage_plugin.proxy.identity import resolve
from usage_plugin.proxy.refusing import bad_request
from usage_plugin.proxy.unmetered import admit_unmetered
from usage_plugin.tracking.admission import Admitted, Decision, Refusal
from usage_plugin.tracking.demands import Demand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.domain.limits import Matched
    from usage_plugin.proxy.asking import Sending
    from usage_plugin.proxy.exchange import Exchange
    from usage_plugin.proxy.negotiating import Negotiator
    from usage_plugin.proxy.prices import PriceBook
    from usage_plugin.runtime import Runtime

_RAG = "rag/query"
_LONGEST_PATH = 100
_COUNTS = ("requests", "parallel_requests")


class Passage(NamedTuple):
    """What the gate decided: `decision` is None where there is nothing to hold or to record."""

    subjects: Subjects
    decision: Decision | None
    is_unmetered: bool = False
    output_limit: int | None = None
    sending: Sending | None = None


class Gate:
    """Decides by route; one for each handler."""

    def __init__(self, runtime: Runtime, prices: PriceBook, negotiator: Negotiator) -> None:
        """Take the running parts."""
        self._runtime = runtime
        self._prices = prices
        self._negotiator = negotiator

    def arrive(self, here: Exchange, key: Any, request: Any, body: Any, route: str) -> bool:  # LiteLLM's; Starlette's
        """Note whose request it is; returns whether the gate has to decide on it.

        A request is authenticated more than once on some routes, and noted once.
        """
        if here.subjects is not None:
            return False
        rule = routes.rule_of(here.method, here.path, request.scope.get("endpoint"))
        if rule.verdict == "unclassified":
            # The proxy may be mounted under more than one path, which LiteLLM has taken away.
            rule = routes.rule_of(here.method, route)
        here.rule = rule
        here.subjects = lambda: self._subjects(key, request, body)
        return rule.verdict in ("metered", "refused", "unclassified") or rule.is_gated

    async def pass_through(self, here: Exchange, request: Any, body: Any) -> Passage:  # Starlette's
        """Decide on a request that LiteLLM has authenticated.

        Raises:
            ProxyException: the request cannot be admitted as it is written.
            SubjectNameError: its user cannot be named.
            ResolverFailedError: a resolver does not answer.
        """
        rule = here.rule
        subjects = here.subjects() if here.subjects is not None else Subjects()
        body = body if isinstance(body, dict) else {}
        if rule is None:
            return Passage(subjects, None)
        if rule.is_gated:
            return await self._hold(rule, subjects, request, body)
        if rule.verdict != "metered":
            refusal = self._refuse(rule, here, subjects, body.get("model") or request.query_params.get("model"))
            if refusal is not None:
                return Passage(subjects, Decision(refusal, ()))
        if rule.call_type is None:
            return Passage(subjects, None)
        decision = await admit_unmetered(self._runtime, subjects, body, rule.call_type)
        return Passage(subjects, decision, is_unmetered=True)

    async def _hold(self, rule: routes.Rule, subjects: Subjects, request: Any, body: dict[str, Any]) -> Passage:
        """Admit a completion as the hook would, and put what was changed into the request that LiteLLM reads."""
        if not isinstance(body.get("model"), str):
            raise bad_request("Name the model in the body.", param="model")
        call_type = rule.call_type or ""
        if _RAG in rule.patterns[0]:
            # Of the body, LiteLLM hands on the messages alone; what the search finds is not known yet.
            completion = {"model": body["model"], "messages": body.get("messages"), "vector_store_ids": True}
            reranking = body.get("rerank")
            if reranking and not (isinstance(reranking, dict) and not reranking.get("enabled")):
                completion["background"] = True  # Another model, which nothing prices beforehand.
            # What is sent has the texts that were found: another request than the one that is held.
            decision, _ = await self._negotiator.admit(subjects, completion, call_type)
            sending = None
            changed = {**body, "model": completion["model"]}
            limit = completion.get("max_tokens")
        else:
            if request.query_params.get("model") or _default_model():
                # LiteLLM would put it in place of the one in the body.
                raise bad_request("This route takes its model from the body only.", param="model")
            changed, limit = dict(body), None
            if changed.get("stream"):
                options = changed.get("stream_options")
                changed["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
            decision, sending = await self._negotiator.admit(subjects, changed, call_type)
            if isinstance(decision.outcome, Admitted) and decision.outcome.without_fallbacks:
                changed["disable_fallbacks"] = True
        if changed != body:
            _rewrite(request, changed)
        return Passage(subjects, decision, output_limit=limit, sending=sending)

    def _refuse(self, rule: routes.Rule, here: Exchange, subjects: Subjects, model: object) -> Refusal | None:
        """Find a limit under which this route is refused."""
        if not self._runtime.enforce:
            return None
        name = model if isinstance(model, str) and model else None
        now = self._runtime.clock.now()
        is_free = name is not None and self._is_free(name, subjects)
        for matched in self._runtime.limits.matching(subjects, name, None):
            demand = Demand.of(matched, now, 0)
            if demand.maximum is None or not _refuses(rule, matched, is_free=is_free):
                continue
            route = f"{here.method} {here.path[:_LONGEST_PATH]}"
            return Refusal(
                reason="unbounded", ref=new_ref(), at=now, user=subjects.user, model=name, demand=demand, route=route
            )
        return None

    def _is_free(self, model: str, subjects: Subjects) -> bool:
        prices = [way.price_on("") for way in self._prices.deployments(model, subjects.team)]
        return bool(prices) and all(price is not None and price.is_free for price in prices)

    def _subjects(self, key: Any, request: Any, body: Any) -> Subjects:  # LiteLLM's; Starlette's
        named = dict(body) if isinstance(body, dict) else {}
        named["proxy_server_request"] = {"headers": dict(request.headers)}
        runtime = self._runtime
        return runtime.pseudonyms.keep(resolve(runtime.config.identity, key, named, runtime.resolvers))


def _refuses(rule: routes.Rule, matched: Matched, *, is_free: bool) -> bool:
    """Whether a limit keeps requests of a route from starting, because nothing bounds them."""
    limit = matched.limit
    if not matched.can_stop or limit.allow_unbounded:
        return False
    if rule.verdict == "unclassified":
        return True
    return limit.unit not in _COUNTS and not (limit.unit == "usd" and is_free)


def _default_model() -> bool:
    """Whether the proxy has a model of its own that it puts in place of the one in the body."""
    from litellm.proxy import proxy_server  # noqa: PLC0415  # it is there when a request is, and costs seconds before

    return bool(proxy_server.user_model or (proxy_server.general_settings or {}).get("completion_model"))


def _rewrite(request: Any, body: Mapping[str, Any]) -> None:  # Starlette's
    """Replace the body of a request: LiteLLM reads it again, out of one of these places."""
    request.scope.pop("parsed_body", None)
    vars(request).pop("_json", None)
    vars(request)["_body"] = orjson.dumps(body)  # where Starlette keeps it once it is read
