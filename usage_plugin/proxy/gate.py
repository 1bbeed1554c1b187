"""The gate: decide by its route, before LiteLLM serves it, whether and how a request is admitted.

LiteLLM calls its pre-call hook on most routes that cost something, but not on all. Every request passes the gate, since
one function authenticates each of them, and `lifecycle` wraps that one. Requests that the hook decides on pass
unchanged. The gate holds, records or refuses the rest, for the authenticated user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from usage_plugin.domain.subjects import Subjects
from usage_plugin.domain.usage import new_ref
from usage_plugin.proxy import routes
from usage_plugin.proxy.client_response import bad_request
from usage_plugin.proxy.client_rules import with_usage
from usage_plugin.proxy.litellm_metadata import metadata_in
from usage_plugin.proxy.request_admission import RequestDecision
from usage_plugin.tracking.admission.decisions import Admitted, Decision, Refusal
from usage_plugin.tracking.admission.demands import Demand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.limit_set import Matched
    from usage_plugin.proxy.identity import Identification
    from usage_plugin.proxy.price_book import PriceBook
    from usage_plugin.proxy.request_admission import RequestAdmission
    from usage_plugin.proxy.request_scope import RequestScope
    from usage_plugin.proxy.unmetered import UnmeteredAdmission

_RAG = "rag/query"
_LONGEST_PATH = 100
_COUNTS = ("requests", "parallel_requests")


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

    async def decide(self, scope: RequestScope, request: Any, body: Any) -> RequestDecision | None:  # Starlette's
        """Decide on a request that LiteLLM has authenticated; None if there is nothing to hold or to record.

        Raises:
            ProxyException: The request cannot be admitted as it is written.
            SubjectNameError: The user's name is invalid.
            ResolverFailedError: A resolver did not answer.
        """
        rule = scope.rule
        subjects = scope.subjects() if scope.subjects is not None else Subjects()
        body = body if isinstance(body, dict) else {}
        if rule is None:
            return None
        if rule.is_gated:
            return await self._hold(rule, scope, subjects, request, body)
        if rule.verdict != "metered":
            refusal = self._refuse(rule, scope, subjects, body.get("model") or request.query_params.get("model"))
            if refusal is not None:
                return RequestDecision(subjects, Decision(refusal, ()))
        if rule.call_type is None:
            return None
        decision = await self._unmetered.admit(subjects, body, rule.call_type)
        return RequestDecision(subjects, decision, is_unmetered=True)

    async def _hold(
        self, rule: routes.Rule, scope: RequestScope, subjects: Subjects, request: Any, body: dict[str, Any]
    ) -> RequestDecision:
        """Admit a completion as the hook would; its changes go into the request that LiteLLM reads."""
        if not isinstance(body.get("model"), str):
            raise bad_request("Name the model in the body.", param="model")
        call_type = rule.call_type or ""
        if _RAG in rule.patterns[0]:
            # LiteLLM forwards only the messages of the body. The results of the search are not known yet.
            completion = {"model": body["model"], "messages": body.get("messages"), "vector_store_ids": True}
            reranking = body.get("rerank")
            if reranking and not (isinstance(reranking, dict) and not reranking.get("enabled")):
                completion["background"] = True  # This calls another model, whose price is unknown before.
            decision, plan = await self._admission.admit(subjects, completion, call_type)

            def apply_to_completion(admitted: Admitted) -> None:
                plan.apply(completion, admitted)
                scope.output_limit = completion.get("max_tokens")
                _rewrite(request, body, {**body, "model": completion["model"]})

            # The outgoing request contains the texts found, so it is not compared with the one that is held.
            return RequestDecision(subjects, decision, apply=apply_to_completion)
        if request.query_params.get("model") or _default_model():
            # LiteLLM would replace the body's model by this one.
            raise bad_request("This route takes its model from the body only.", param="model")
        changed = dict(body)
        if changed.get("stream"):
            changed["stream_options"] = with_usage(changed.get("stream_options"))
        decision, plan = await self._admission.admit(subjects, changed, call_type)

        def apply(admitted: Admitted) -> None:
            plan.apply(changed, admitted)
            _rewrite(request, body, changed)

        return RequestDecision(subjects, decision, held_bounds=plan.held_bounds, apply=apply)

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


def _rewrite(request: Any, before: Mapping[str, Any], body: Mapping[str, Any]) -> None:  # Starlette's
    """Replace a changed body in all places from which LiteLLM may read it again.

    Nested metadata may have lost the router's names in both, so a body with metadata counts as changed.
    """
    if body == before and not any(metadata_in(body)):
        return
    request.scope.pop("parsed_body", None)
    vars(request).pop("_json", None)
    vars(request)["_body"] = orjson.dumps(body)  # Starlette's place for a body that was read
