"""The gate: decide by its route, before LiteLLM serves it, whether and how a request is admitted.

LiteLLM calls its pre-call hook on most routes that cost something, but not on all. Every request passes the gate, since
one function authenticates each of them, and `lifecycle` wraps that one. Requests that the hook decides on pass
unchanged. The gate holds, records or refuses the rest, for the authenticated user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from usage_plugin.domain.subjects import Subjects
from usage_plugin.domain.usage import new_ref
from usage_plugin.proxy import routes
from usage_plugin.proxy.client_rules import with_usage
from usage_plugin.proxy.refusal_response import bad_request
from usage_plugin.tracking.admission.decisions import Decision, Refusal
from usage_plugin.tracking.admission.demands import Demand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.limit_set import Matched
    from usage_plugin.proxy.identity import Identification
    from usage_plugin.proxy.price_book import PriceBook
    from usage_plugin.proxy.request_admission import RequestAdmission
    from usage_plugin.proxy.request_plan import OutgoingBounds
    from usage_plugin.proxy.request_scope import RequestScope
    from usage_plugin.proxy.unmetered import UnmeteredAdmission

_RAG = "rag/query"
_LONGEST_PATH = 100
_COUNTS = ("requests", "parallel_requests")


class GateDecision(NamedTuple):
    """The gate's decision: `decision` is None if there is nothing to hold or to record."""

    subjects: Subjects
    decision: Decision | None
    is_unmetered: bool = False
    output_limit: int | None = None
    outgoing: OutgoingBounds | None = None


class Gate:
    """Decides by route; each handler has one."""

    def __init__(
        self,
        admission: RequestAdmission,
        unmetered: UnmeteredAdmission,
        identification: Identification,
        prices: PriceBook,
        clock: Clock,
    ) -> None:
        """Create it from the two kinds of admission, the identification of parties, the price book and the clock."""
        self._admission = admission
        self._unmetered = unmetered
        self._identification = identification
        self._prices = prices
        self._clock = clock

    def register(
        self, scope: RequestScope, key: Any, request: Any, body: Any, route: str
    ) -> bool:  # LiteLLM's; Starlette's
        """Record the parties of a request, and return whether the gate must decide on it.

        On some routes a request is authenticated more than once; only the first time counts.
        """
        if scope.subjects is not None:
            return False
        rule = routes.rule_of(scope.method, scope.path, request.scope.get("endpoint"))
        if rule.verdict == "unclassified":
            # The proxy may be mounted under several prefixes, which LiteLLM has removed from `route`.
            rule = routes.rule_of(scope.method, route)
        scope.rule = rule
        scope.subjects = lambda: self._subjects(key, request, body)
        return rule.verdict in ("metered", "refused", "unclassified") or rule.is_gated

    async def decide(self, scope: RequestScope, request: Any, body: Any) -> GateDecision:  # Starlette's
        """Decide on a request that LiteLLM has authenticated.

        Raises:
            ProxyException: The request cannot be admitted as it is written.
            SubjectNameError: The user's name is invalid.
            ResolverFailedError: A resolver did not answer.
        """
        rule = scope.rule
        subjects = scope.subjects() if scope.subjects is not None else Subjects()
        body = body if isinstance(body, dict) else {}
        if rule is None:
            return GateDecision(subjects, None)
        if rule.is_gated:
            return await self._hold(rule, subjects, request, body)
        if rule.verdict != "metered":
            refusal = self._refuse(rule, scope, subjects, body.get("model") or request.query_params.get("model"))
            if refusal is not None:
                return GateDecision(subjects, Decision(refusal, ()))
        if rule.call_type is None:
            return GateDecision(subjects, None)
        decision = await self._unmetered.admit(subjects, body, rule.call_type)
        return GateDecision(subjects, decision, is_unmetered=True)

    async def _hold(self, rule: routes.Rule, subjects: Subjects, request: Any, body: dict[str, Any]) -> GateDecision:
        """Admit a completion as the hook would, and write the changes into the request that LiteLLM reads."""
        if not isinstance(body.get("model"), str):
            raise bad_request("Name the model in the body.", param="model")
        call_type = rule.call_type or ""
        if _RAG in rule.patterns[0]:
            # LiteLLM forwards only the messages of the body. The results of the search are not known yet.
            completion = {"model": body["model"], "messages": body.get("messages"), "vector_store_ids": True}
            reranking = body.get("rerank")
            if reranking and not (isinstance(reranking, dict) and not reranking.get("enabled")):
                completion["background"] = True  # This calls another model, whose price is unknown before.
            # The outgoing request contains the texts found, so it is not compared with the one that is held.
            decision, _ = await self._admission.admit(subjects, completion, call_type)
            outgoing = None
            changed = {**body, "model": completion["model"]}
            limit = completion.get("max_tokens")
        else:
            if request.query_params.get("model") or _default_model():
                # LiteLLM would replace the body's model by this one.
                raise bad_request("This route takes its model from the body only.", param="model")
            changed, limit = dict(body), None
            if changed.get("stream"):
                changed["stream_options"] = with_usage(changed.get("stream_options"))
            decision, outgoing = await self._admission.admit(subjects, changed, call_type)
        if changed != body:
            _rewrite(request, changed)
        return GateDecision(subjects, decision, output_limit=limit, outgoing=outgoing)

    def _refuse(self, rule: routes.Rule, scope: RequestScope, subjects: Subjects, model: object) -> Refusal | None:
        """Return a refusal if any limit forbids this route, else None."""
        if not self._admission.config.enforce:
            return None
        name = model if isinstance(model, str) and model else None
        now = self._clock.now()
        is_free = name is not None and self._is_free(name, subjects)
        for matched in self._admission.limits.limits.matching(subjects, name, None):
            demand = Demand.of(matched, now, 0)
            if demand.maximum is None or not _refuses(rule, matched, is_free=is_free):
                continue
            route = f"{scope.method} {scope.path[:_LONGEST_PATH]}"
            return Refusal(
                reason="unbounded", ref=new_ref(), at=now, user=subjects.user, model=name, demand=demand, route=route
            )
        return None

    def _is_free(self, model: str, subjects: Subjects) -> bool:
        prices = [deployment.price_on("") for deployment in self._prices.deployments(model, subjects.team)]
        return bool(prices) and all(price is not None and price.is_free for price in prices)

    def _subjects(self, key: Any, request: Any, body: Any) -> Subjects:  # LiteLLM's; Starlette's
        named = dict(body) if isinstance(body, dict) else {}
        named["proxy_server_request"] = {"headers": dict(request.headers)}
        return self._identification.subjects_of(key, named)


def _refuses(rule: routes.Rule, matched: Matched, *, is_free: bool) -> bool:
    """Whether a limit refuses a route's requests because they are unbounded."""
    limit = matched.limit
    if not matched.can_stop or limit.allow_unbounded:
        return False
    if rule.verdict == "unclassified":
        return True
    return limit.unit not in _COUNTS and not (limit.unit == "usd" and is_free)


def _default_model() -> bool:
    """Whether the proxy has a default model that replaces the one in the body."""
    from litellm.proxy import proxy_server  # noqa: PLC0415  # it is there when a request is, and costs seconds before

    return bool(proxy_server.user_model or (proxy_server.general_settings or {}).get("completion_model"))


def _rewrite(request: Any, body: Mapping[str, Any]) -> None:  # Starlette's
    """Replace a request's body in all places from which LiteLLM may read it again."""
    request.scope.pop("parsed_body", None)
    vars(request).pop("_json", None)
    vars(request)["_body"] = orjson.dumps(body)  # Starlette's place for a body that was read
