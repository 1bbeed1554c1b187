"""The handler: LiteLLM's hooks, translated into admission and recording.

Which hook fires when was found by experiment (`docs/how-it-works.md`). The rules that shape this file: a request is
admitted in the pre-call hook; a whole answer is settled before it is sent, a stream when its success is logged; a
failure only by the post-call failure hook, since the failure callback fires on the first failed attempt. First
terminal event wins. Our own bug never becomes the client's 500.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import ProxyException

from usage_plugin.domain.money import format_usd
from usage_plugin.domain.subjects import LONGEST_NAME
from usage_plugin.domain.usage import UsageEvent, new_event_id
from usage_plugin.errors import SubjectNameError, UsagePluginError
from usage_plugin.log import get_logger
from usage_plugin.proxy import bounds, exchange, outcomes
from usage_plugin.proxy.identity import IdentityRequiredError, resolve
from usage_plugin.proxy.prices import FALLBACK_LISTS, Deployment, PriceBook, overriding_fallbacks
from usage_plugin.proxy.refusing import bad_request, refusal_error, standing_headers
from usage_plugin.tracking.admission import Ask, Candidate, Refusal
from usage_plugin.tracking.recorder import OpenRequest, Outcome, Recorded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.domain.usage import Status
    from usage_plugin.runtime import Runtime

STAMP = "usage_plugin_event"
"""The key under which our id travels in the request's metadata; never sent to a provider."""

ORPHAN_GRACE = 60.0
"""Seconds after the end of an HTTP request before what no hook settled is settled: logging may be late."""

_FREE_CALLS = re.compile(
    r"^a?_?(get|list|delete|cancel|retrieve|upload|file_)|_(retrieve|list|delete|content|character|job)$"
    r"|create_(file|assistants|thread|container|sandbox)$|add_message$|^vector_store_file|^avector_store_file"
)
"""Call types of look-ups and of what only keeps things: LiteLLM calls the hook for them too. All others can cost."""

_WITHOUT_OUTPUT = frozenset({"aembedding", "moderation", "amoderation", "rerank", "arerank"})

_ON_RESPONSES = frozenset({"aresponses", "anthropic_messages"})
_LEAST_OUTPUT = 16

log = get_logger()


class UsageHandler_PROXY_(CustomLogger):  # noqa: N801  # LiteLLM lets a client's `no-log` silence every class without _PROXY_
    """The one object that is registered with LiteLLM.

    LiteLLM looks some hooks up in the class of the registered object itself: an inherited one is never called. So this
    class cannot be subclassed.
    """

    def __init__(self, runtime: Runtime, prices: PriceBook) -> None:
        """Take the running parts."""
        super().__init__()
        self._runtime = runtime
        self._prices = prices
        self._open: dict[str, OpenRequest] = {}

    def __init_subclass__(cls) -> None:
        """Refuse: LiteLLM would silently not call inherited hooks."""
        raise UsagePluginError("UsageHandler_PROXY_ cannot be subclassed: LiteLLM would not call its hooks.")

    # ── admission ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def async_pre_call_hook(
        self,
        user_api_key_dict: Any,  # LiteLLM's
        cache: Any,  # noqa: ARG002  # LiteLLM's
        data: dict[str, Any],
        call_type: Any,  # a string or an enum of strings, by version
    ) -> dict[str, Any] | None:
        """Admit a request, or raise what LiteLLM turns into the refusal."""
        kind = str(getattr(call_type, "value", call_type))
        if _FREE_CALLS.search(kind):
            return None
        here = exchange.current.get()
        if here is not None and here.request is not None and self._request_of(data) is here.request:
            return None  # The callback is listed twice: the request is admitted already.
        try:
            await self._admit(user_api_key_dict, data, kind, here)
        except Exception as error:  # noqa: BLE001  # none may become a 500 of ours
            answer = _as_answer(error, kind)
            if here is not None:
                here.status, here.headers = int(answer.code), answer.headers
            raise answer from None
        return data

    async def _admit(self, key: Any, data: dict[str, Any], kind: str, here: exchange.Exchange | None) -> None:
        runtime = self._runtime
        started = runtime.clock.monotonic()
        subjects = resolve(runtime.config.identity, key, data)
        ask = self._ask(subjects, data, kind)
        decision, unfelt = await runtime.admission.admit(ask)
        for refusal in unfelt:
            runtime.refusals.add(refusal)
        if isinstance(decision, Refusal):
            runtime.refusals.add(decision)
            raise refusal_error(decision, runtime.config)
        for name in decision.warnings:
            log.warning("limit.passed", limit=name, user=subjects.user, action="warn")
        request = OpenRequest(decision, started)
        self._open[decision.event.event_id] = request
        _metadata(data)[STAMP] = decision.event.event_id
        if decision.without_fallbacks:
            data["disable_fallbacks"] = True
        if here is not None:
            here.request = request
            here.standing = decision.standing

    def _ask(self, subjects: Subjects, data: dict[str, Any], kind: str) -> Ask:
        model = data.get("model")
        model = model if isinstance(model, str) and model else None
        if model and (len(model) > LONGEST_NAME or not model.isprintable()):
            raise bad_request(f"The model's name cannot be taken: {model[:100]!r}.", param="model")
        primary = self._deployments(model, subjects.team)
        if model and "," in model and not self._prices.is_listed(model):
            # LiteLLM would call every model of the list, and log one of them, at no cost.
            raise bad_request(f"One model a request, please: {model[:100]!r} names several.", param="model")
        _refuse_what_overrides(data)
        fallbacks = [
            deployment
            for name in (self._prices.fallbacks(model, data) if model else ())
            for deployment in self._deployments(name, subjects.team) or (_unknown(name),)
        ]
        if kind == "atext_completion" and data.get("stream"):
            # LiteLLM asks the provider for usage on chat streams only, and counts nothing without it.
            options = data.get("stream_options")
            data["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        ways = primary or (_unknown(model),)
        output, injected = self._output(data, kind, subjects, [*ways, *fallbacks])
        text_bound = bounds.input_bound(data)
        inputs = [_input(way, text_bound) for way in (*ways, *fallbacks)]
        return Ask(
            draft=UsageEvent(
                event_id=new_event_id(),
                started_at=self._runtime.clock.now(),
                status="recovered",
                call_type=kind,
                **subjects._asdict(),
                call_id=_short(data.get("litellm_call_id")),
                requested_model=model,
                model=ways[0].model,
                provider=ways[0].provider,
                injected_output_tokens=injected,
            ),
            subjects=subjects,
            primary=tuple(_candidates(ways, kind, text_bound, output)),
            fallbacks=tuple(_candidates(fallbacks, kind, text_bound, output)),
            input_tokens=None if None in inputs else max(filter(None, inputs), default=0),
            output_tokens=output,
        )

    def _deployments(self, model: str | None, team: str | None) -> Sequence[Deployment]:
        return self._prices.deployments(model, team) if model else ()

    def _output(
        self, data: dict[str, Any], kind: str, subjects: Subjects, ways: Sequence[Deployment]
    ) -> tuple[int | None, int | None]:
        """Bound the output, by a limit of our own where a limit depends on it and the client named none.

        Returns:
            The bound over all answers, None if there is none; and what was put into the request, if anything.
        """
        if kind in _WITHOUT_OUTPUT:
            return 0, None
        if not bounds.output_is_bounded(data):
            return None, None
        count = bounds.answers(data)
        asked = bounds.asked_output(data)
        if asked is not None:
            # LiteLLM raises a smaller number to what the Responses API takes.
            return max(asked, _LEAST_OUTPUT if kind in _ON_RESPONSES else 0) * count, None
        known = [way.most_output for way in ways if way.most_output is not None]
        most = min([self._runtime.config.admission.default_max_output_tokens, *known])
        if not self._depends_on_output(subjects, ways):
            return most * count, None
        return (most * count, most) if bounds.inject_output(kind, data, most) else (None, None)

    def _depends_on_output(self, subjects: Subjects, ways: Sequence[Deployment]) -> bool:
        """Say whether a limit that blocks counts what the output decides."""
        return self._runtime.enforce and any(
            matched.limit.blocks
            and any(amount is not None for _, amount in matched.amounts)
            and (
                matched.limit.unit in ("output_tokens", "total_tokens")
                or (matched.limit.unit == "usd" and way.price is not None and not way.price.is_free)
            )
            for way in ways
            for matched in self._runtime.limits.matching(subjects, way.model, way.provider)
        )

    # ── recording ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:  # noqa: ARG002  # LiteLLM's
        """Settle a whole answer before it is sent, so that neither SIGTERM nor a slow logger can lose it."""
        request = self._request_of(data)
        if request is not None:
            usage = outcomes.inline_usage(response)
            if usage:
                recorded = self._record(
                    request, outcomes.served_inline(data, response), usage, what="async_post_call_success_hook"
                )
                self._show(recorded)
        return response

    async def async_post_call_success_deployment_hook(
        self,
        request_data: dict[str, Any],
        response: Any,  # LiteLLM's
        call_type: Any,  # noqa: ARG002  # LiteLLM's
    ) -> None:
        """Remember what a provider answered: a guardrail may yet keep it from the client, but it is paid for."""
        request = self._request_of(request_data)
        if request is not None:
            # Read only if it is needed: nearly always the answer is settled a moment later.
            request.delivered = lambda: (
                outcomes.served_inline(request_data, response),
                outcomes.inline_usage(response),
            )

    async def async_log_success_event(
        self,
        kwargs: dict[str, Any],
        response_obj: Any,  # noqa: ARG002  # LiteLLM's
        start_time: Any,  # noqa: ARG002  # LiteLLM's
        end_time: Any,  # noqa: ARG002  # LiteLLM's
    ) -> None:
        """Settle a stream, and whatever the inline hook could not. Commits before its first await."""
        request = self._logged(kwargs)
        if request is not None:
            parameters = kwargs.get("litellm_params") or {}
            gone = any(
                (parameters.get(name) or {}).get("client_disconnected") for name in ("metadata", "litellm_metadata")
            )
            self._record(
                request,
                outcomes.served_logged(kwargs),
                outcomes.logged_usage(kwargs),
                what="async_log_success_event",
                status="cancelled" if gone else "success",
                estimated=bool(gone),
            )

    async def async_log_failure_event(
        self,
        kwargs: dict[str, Any],
        response_obj: Any,  # noqa: ARG002  # LiteLLM's
        start_time: Any,  # noqa: ARG002  # LiteLLM's
        end_time: Any,  # noqa: ARG002  # LiteLLM's
    ) -> None:
        """Remember what a stream had delivered when it broke; it is settled only if the request really failed."""
        request = self._logged(kwargs)
        usage = outcomes.logged_usage(kwargs)
        if request is not None and any(usage.values()):
            request.delivered = lambda: (outcomes.served_logged(kwargs), usage)

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: Any,  # noqa: ARG002  # LiteLLM's
        traceback_str: str | None = None,  # noqa: ARG002  # LiteLLM's
    ) -> None:
        """Settle a request that failed for good: what was delivered is charged, the rest let go."""
        request = self._request_of(request_data)
        if request is None:
            return
        error = type(original_exception).__name__
        if request.delivered is not None:
            served, usage = request.delivered()
            self._record(
                request,
                served,
                usage,
                what="async_post_call_failure_hook",
                status="failure",
                error=error,
                estimated=True,
            )
        else:
            self._settle(request, Outcome(status="failure", error=error))

    def request_ended(self, request: OpenRequest) -> None:
        """Settle a request later that is over on the wire and that no hook has settled."""
        if not request.settled:
            asyncio.get_running_loop().call_later(ORPHAN_GRACE, self._settle_orphan, request)

    def _settle_orphan(self, request: OpenRequest) -> None:
        if request.settled:
            return
        # The client left before the first chunk: what the provider billed is unknown, so what was held is charged.
        log.warning("request.orphaned", event_id=request.event_id, user=request.admitted.event.user)
        self._settle_as_reserved(request, "cancelled")

    def _record(
        self,
        request: OpenRequest,
        served: outcomes.Served,
        usage: Mapping[str, Any],
        *,
        what: str,
        **how: Any,  # status, error, estimated
    ) -> Recorded | None:
        """Settle with what LiteLLM tells; if that cannot be understood, with what was reserved, marked so."""
        event = request.admitted.event
        try:
            outcome = outcomes.read_outcome(self._prices, served, usage, event, **how)
        except Exception:
            log.exception("outcome.unreadable", hook=what, event_id=event.event_id)
            return self._settle_as_reserved(request, how.get("status", "success"))
        return self._settle(request, outcome)

    def _settle_as_reserved(self, request: OpenRequest, status: Status) -> Recorded | None:
        return self._settle(request, Outcome(status=status, as_reserved=True))

    def _settle(self, request: OpenRequest, outcome: Outcome) -> Recorded | None:
        self._open.pop(request.event_id, None)
        try:
            return self._runtime.recorder.record(request, outcome)
        except Exception:
            # The reservation stays, and is charged when this worker ends: too much is safe, a 500 is not.
            log.exception("record.failed", event_id=request.event_id)
            return None

    @staticmethod
    def _show(recorded: Recorded | None) -> None:
        here = exchange.current.get()
        if here is not None and recorded is not None:
            here.standing = recorded.standing or here.standing
            here.cost = recorded.event.cost

    @staticmethod
    def answer_begins(here: exchange.Exchange) -> None:
        """Write the headers of an answer, at the last moment: only then is it known what they say."""
        if here.standing is not None:
            here.headers |= standing_headers(here.standing)
        if here.cost is not None:
            here.headers["x-usage-cost"] = format_usd(here.cost)

    def _logged(self, kwargs: Mapping[str, Any]) -> OpenRequest | None:
        parameters = kwargs.get("litellm_params")
        holder = parameters if isinstance(parameters, dict) else {}
        return self._stamped(holder) or self._of_exchange(kwargs.get("litellm_call_id"))

    def _request_of(self, data: Mapping[str, Any]) -> OpenRequest | None:
        return self._stamped(data) or self._of_exchange(data.get("litellm_call_id"))

    def _stamped(self, holder: Mapping[str, Any]) -> OpenRequest | None:
        """Find the open request whose id travels in this metadata."""
        for name in ("litellm_metadata", "metadata"):
            metadata = holder.get(name)
            stamp = metadata.get(STAMP) if isinstance(metadata, dict) else None
            if isinstance(stamp, str) and stamp in self._open:
                return self._open[stamp]
        return None

    @staticmethod
    def _of_exchange(call_id: object) -> OpenRequest | None:
        """Find the request of this exchange; the call id tells it from calls that guardrails make meanwhile."""
        here = exchange.current.get()
        request = here.request if here is not None else None
        if request is None or request.settled or call_id is None or request.admitted.event.call_id != call_id:
            return None
        return request


def _as_answer(error: Exception, kind: str) -> ProxyException:
    """Turn whatever went wrong at admission into what the client is told; only our own bugs are logged."""
    if isinstance(error, ProxyException):
        return error
    if isinstance(error, IdentityRequiredError):
        return bad_request(str(error), param="user", kind="user_required")
    if isinstance(error, SubjectNameError):
        return bad_request(str(error), param="user")
    log.error("admission.failed", call_type=kind, exc_info=error)
    return ProxyException(
        message="The usage plugin failed to admit this request; its log says why.",
        type="ledger_unavailable",
        param=None,
        code=503,
        headers={"Retry-After": "1"},
    )


def _metadata(data: dict[str, Any]) -> dict[str, Any]:
    """Find the metadata that stays in the proxy: on some routes `metadata` is the provider's own parameter."""
    name = "litellm_metadata" if "litellm_metadata" in data else "metadata"
    if not isinstance(data.get(name), dict):
        data[name] = {}
    found: dict[str, Any] = data[name]
    return found


def _unknown(model: str | None) -> Deployment:
    """Stand in for a model the router does not list, or that is not named: LiteLLM may still serve it."""
    return Deployment(model, "", None, model or "", None, None, None, None)


def _refuse_what_overrides(data: dict[str, Any]) -> None:
    """Refuse what LiteLLM would lay over the request after it was bounded.

    Raises:
        ProxyException: `extra_body` names a model or is no object, or a fallback brings more than a model's name.
    """
    extra = data.get("extra_body")
    if extra is not None and not isinstance(extra, dict):
        raise bad_request("extra_body must be an object.", param="extra_body")
    if extra and "model" in extra:
        # LiteLLM would send this model to the provider, and bill the other one.
        raise bad_request("extra_body must not name a model; name it in model.", param="extra_body.model")
    for name in FALLBACK_LISTS:
        if overriding_fallbacks(data.get(name)):
            raise bad_request("A fallback may only name a model, without parameters of its own.", param=name)


def _input(way: Deployment, text_bound: int | None) -> int | None:
    return way.context if text_bound is None else text_bound


def _candidates(ways: Sequence[Deployment], kind: str, text_bound: int | None, output: int | None) -> list[Candidate]:
    """Price each way at its worst; ways that are billed alike are one, the dearest."""
    dearest: dict[tuple[str | None, str | None], Candidate] = {}
    for way in ways:
        price = way.price_on(kind)
        bound = _input(way, text_bound)
        worst = None
        if way.model is None or (price is not None and price.is_free):
            worst = 0
        elif price is not None and bound is not None and output is not None:
            worst = price.worst_case(bound, output)
        candidate = Candidate(way.model, way.provider, price is not None, worst)
        known = dearest.get(candidate[:2])
        if known is None or (known.worst_cost is not None and (worst is None or worst > known.worst_cost)):
            dearest[candidate[:2]] = candidate
    return list(dearest.values())


def _short(value: object) -> str | None:
    """Keep a text that somebody else chose to what can be stored: short, and valid Unicode."""
    return value[:256].encode("utf-8", "replace").decode() if isinstance(value, str) else None
