"""The handler: translate LiteLLM's hooks into admission and recording.

Which hook is called when was found by experiment (`docs/how-it-works.md`). These rules shape this file:

- A request is admitted in the pre-call hook.
- A whole answer is settled before it is sent, and a stream when its success is logged.
- A failure is settled only in the post-call failure hook, since the failure callback is called on the first failed
  attempt.
- The first terminal event wins.
- A bug of the plugin never becomes the client's 500.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import ProxyException

from usage_plugin.domain.money import format_usd
from usage_plugin.domain.subjects import Subjects
from usage_plugin.errors import IdentityRequiredError, ResolverFailedError, SubjectNameError, UsagePluginError
from usage_plugin.log import get_logger
from usage_plugin.proxy import output_limits, request_scope
from usage_plugin.proxy.client_response import bad_request, negotiated_headers, refusal_error, status_headers
from usage_plugin.proxy.client_rules import client_set_timeout, with_usage
from usage_plugin.proxy.deferred import LOOK_UPS, Deferred
from usage_plugin.proxy.gate import Gate
from usage_plugin.proxy.identity import Identification
from usage_plugin.proxy.inflight import InflightRequests, is_free
from usage_plugin.proxy.inflight_request import InflightRequest
from usage_plugin.proxy.litellm_metadata import model_group
from usage_plugin.proxy.outgoing_check import OutgoingCheck, StoppedError, ask_for_usage
from usage_plugin.proxy.pass_through_prices import reads_bytes
from usage_plugin.proxy.pass_through_usage import PassThroughReport
from usage_plugin.proxy.request_admission import RequestAdmission, RequestDecision
from usage_plugin.proxy.request_plan import RequestPlanner
from usage_plugin.proxy.routes import PASS_THROUGH, rule_of
from usage_plugin.proxy.settlement import Settlement
from usage_plugin.proxy.streams import NATIVE, Report
from usage_plugin.proxy.unmetered import UNMETERED, UnmeteredAdmission
from usage_plugin.tracking.admission.decisions import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from usage_plugin.domain.usage import Status
    from usage_plugin.proxy.price_book import PriceBook
    from usage_plugin.runtime import Runtime

log = get_logger()


class UsageHandler_PROXY_(CustomLogger):  # noqa: N801  # LiteLLM lets a client's `no-log` silence every class without _PROXY_
    """The one object that is registered with LiteLLM.

    LiteLLM looks up some hooks in the registered object's own class and never calls inherited ones. So this class
    cannot be subclassed.
    """

    def __init__(self, runtime: Runtime, prices: PriceBook) -> None:
        """Create the handler from the worker's runtime and the price book."""
        super().__init__()
        config, clock, limits = runtime.active_config, runtime.clock, runtime.rules
        self._config = config
        self._clock = clock
        self._refusals = runtime.refusals
        self._anomalies = runtime.anomalies
        self._identification = Identification(config, runtime.pseudonyms, runtime.resolvers)
        planner = RequestPlanner(prices, limits, config, clock)
        self._admission = RequestAdmission(runtime.admission, planner, limits, config)
        self._unmetered = UnmeteredAdmission(runtime.admission, config, clock)
        self._gate = Gate(self._admission, self._unmetered, self._identification, prices, clock)
        self._outgoing_check = OutgoingCheck(self._admission, planner, runtime.request_ledger, runtime.refusals)
        self._inflight = InflightRequests()
        deferred = Deferred(runtime.ledger_thread, runtime.recorder, clock)
        self._settlement = Settlement(
            self._inflight, deferred, prices, runtime.recorder, runtime.anomalies, config, clock
        )

    def __init_subclass__(cls) -> None:
        """Reject subclasses: LiteLLM would silently not call inherited hooks."""
        raise UsagePluginError("UsageHandler_PROXY_ cannot be subclassed: LiteLLM would not call its hooks.")

    # ── admission ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def authenticated(self, key: Any, request: Any, body: Any, route: str) -> None:  # LiteLLM's; Starlette's
        """Record the parties of an authenticated request, and admit it on routes where LiteLLM calls no pre-call hook.

        Raises:
            ProxyException: The refusal that LiteLLM sends to the client.
        """
        scope = request_scope.current.get()
        if scope is None:
            return
        _stop_if_refused(scope)
        try:
            if not self._gate.register(scope, key, request, body, route):
                return
            started = self._clock.monotonic()
            decided = await self._gate.decide(scope, request, body)
            if decided is not None:
                # No hook gets this body, so a stamp would not be read. Hooks find the request by its scope.
                self._begin(decided, {}, scope, started, owns_all_calls=True)
        except Exception as error:  # noqa: BLE001  # none may become a 500 of ours
            answer = _as_answer(error, scope.path)
            scope.refuse(answer, replace=True)
            raise answer from None

    async def async_pre_call_hook(
        self,
        user_api_key_dict: Any,  # LiteLLM's
        cache: Any,  # noqa: ARG002  # LiteLLM's
        data: dict[str, Any],
        call_type: Any,  # a string or an enum of strings, depending on LiteLLM's version
    ) -> dict[str, Any] | None:
        """Admit a request, or raise the error that LiteLLM turns into the refusal."""
        kind = str(getattr(call_type, "value", call_type))
        scope = request_scope.current.get()
        _stop_if_refused(scope)
        if scope is not None and kind in LOOK_UPS:
            scope.looked_up = data
        try:
            if is_free(kind) or _is_free_route(scope, kind) or self._inflight.of_hook(data) is not None:
                # The call or its route is free, or the request is admitted already: by the gate, by this callback if it
                # is listed twice, or before a fallback.
                return None
            await self._admit(user_api_key_dict, data, kind, scope)
        except Exception as error:  # noqa: BLE001  # none may become a 500 of ours
            answer = _as_answer(error, kind)
            if scope is not None:
                scope.refuse(answer)
            raise answer from None
        return data

    async def _admit(self, key: Any, data: dict[str, Any], kind: str, scope: request_scope.RequestScope | None) -> None:
        started = self._clock.monotonic()
        subjects = self._identification.subjects_of(key, data)
        if kind in UNMETERED:
            decision = await self._unmetered.admit(subjects, data, kind)
            decided = RequestDecision(subjects, decision, is_unmetered=True)
        else:
            decision, plan = await self._admission.admit(subjects, data, kind)
            decided = RequestDecision(subjects, decision, held_bounds=plan.held_bounds, apply=partial(plan.apply, data))
        self._begin(decided, data, scope, started)

    def _begin(
        self,
        decided: RequestDecision,
        data: dict[str, Any],
        scope: request_scope.RequestScope | None,
        started: int,
        *,
        owns_all_calls: bool = False,
    ) -> InflightRequest:
        """Change and start an admitted request, or raise the refusal."""
        subjects, decision, unmetered, held_bounds, apply = decided
        self._refusals.add_all(decision)
        outcome = decision.outcome
        if isinstance(outcome, Refusal):
            # The reason quotes the client's own fields, so it is only sent to the client and never stored.
            fields = held_bounds.bound.unknown if held_bounds is not None and outcome.reason == "unbounded" else ()
            raise refusal_error(replace(outcome, user=subjects.called, fields=fields), self._config.current)
        request = InflightRequest(outcome, started, unmetered=unmetered, owns_all_calls=owns_all_calls)
        request.held_bounds = held_bounds
        try:
            if apply is not None:
                apply(outcome)
            self._inflight.add(request, data, scope)
            if scope is not None and outcome.event.call_type in NATIVE:
                scope.report = request.report = Report()
            elif unmetered and scope is not None and reads_bytes(scope):
                scope.report = request.report = PassThroughReport(scope.path)
            if scope is not None:
                scope.account_status = outcome.account_status
                scope.headers |= negotiated_headers(outcome.event)
            for name in outcome.warnings:
                log.warning("limit.exceeded", limit=name, user=subjects.user, action="warn")
        except Exception as error:
            # A bug of the plugin: the request does not start, so it must not keep a hold.
            self._settlement.failed(request, error, client_set_timeout=False)
            raise
        return request

    # ── recording ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> None:
        """Stop a request that exceeds its hold; else record that it is now sent to a provider.

        From here on the request may cost something, even if it is stopped later.
        """
        request, scope = self._inflight.of_hook(kwargs), request_scope.current.get()
        _stop_if_refused(scope)
        if request is None and scope is not None and scope.subjects is None and not scope.requests:
            request = await self._notice(scope)
        if request is None:
            return
        kind = str(getattr(call_type, "value", call_type))
        ask_for_usage(kwargs, kind, request.admitted.event.call_type)
        if request.owns_all_calls and not request.unmetered and "messages" in kwargs and scope is not None:
            if request.admitted.without_fallbacks and model_group(kwargs) not in request.models:
                raise bad_request("Only the model asked for fits, and no fallback.", param="model")
            if kwargs.get("stream"):
                kwargs["stream_options"] = with_usage(kwargs.get("stream_options"))
            output_limits.write_missing(kwargs, scope.output_limit)
        if request.held_bounds is not None:
            refusal = await self._outgoing_check.check(request, kwargs, kind)
            if refusal is not None:
                raise self._stopped(refusal)
        request.is_at_provider, request.broken = True, False
        request.answer = request.stream = None

    def _stopped(self, refusal: Refusal) -> StoppedError:
        error = refusal_error(refusal, self._config.current)
        scope = request_scope.current.get()
        if scope is not None:
            scope.refuse(error)
        return StoppedError(error)

    async def _notice(self, scope: request_scope.RequestScope) -> InflightRequest | None:
        """Admit a call that the gate never saw, on a route that LiteLLM authenticates in its own way."""
        scope.rule = rule = rule_of(scope.method, scope.path)
        if rule.verdict in ("free", "held"):
            return None
        started = self._clock.monotonic()
        decision = await self._unmetered.admit(Subjects(), {}, rule.call_type or PASS_THROUGH)
        try:
            return self._begin(RequestDecision(Subjects(), decision, is_unmetered=True), {}, scope, started)
        except ProxyException as answer:
            scope.refuse(answer, replace=True)
            raise

    async def async_post_call_failure_deployment_hook(
        self,
        request_data: Mapping[str, Any],
        exception: Exception,  # noqa: ARG002  # LiteLLM's
        call_type: Any,  # noqa: ARG002  # LiteLLM's
        fallback_depth: int | None = None,  # noqa: ARG002  # LiteLLM's
    ) -> None:
        """Record that a provider rejected the request; a retry or a fallback may follow."""
        request = self._inflight.of_hook(request_data)
        if request is not None:
            request.is_at_provider = False

    async def async_post_call_success_deployment_hook(
        self,
        request_data: dict[str, Any],
        response: Any,  # LiteLLM's
        call_type: Any,  # noqa: ARG002  # LiteLLM's
    ) -> None:
        """Record that a provider answered."""
        request = self._inflight.of_hook(request_data)
        if request is not None:
            await self._settlement.provider_answered(request, request_data, response)

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:  # noqa: ARG002  # LiteLLM's
        """Settle a whole answer before it is sent, so that neither SIGTERM nor a slow logger can lose it."""
        with _NothingRaised("async_post_call_success_hook"):
            request = self._inflight.of_hook(data)
            if request is None and data.get("response_id"):
                await self._settlement.looked_up(data, response)
            recorded = self._settlement.answered(request, data, response) if request is not None else None
            scope = request_scope.current.get()
            if scope is not None and recorded is not None:
                scope.account_status = recorded.account_status or scope.account_status
                scope.cost = recorded.event.cost
        return response

    async def async_log_success_event(
        self,
        kwargs: dict[str, Any],
        response_obj: Any,  # LiteLLM's
        start_time: Any,  # noqa: ARG002  # LiteLLM's
        end_time: Any,  # noqa: ARG002  # LiteLLM's
    ) -> None:
        """Settle a stream, and each answer that the inline hook could not settle."""
        with _NothingRaised("async_log_success_event"):
            await self._settlement.logged(kwargs, response_obj)

    async def async_log_failure_event(
        self,
        kwargs: dict[str, Any],
        response_obj: Any,  # noqa: ARG002  # LiteLLM's
        start_time: Any,  # noqa: ARG002  # LiteLLM's
        end_time: Any,  # noqa: ARG002  # LiteLLM's
    ) -> None:
        """Record the delivered part of a broken stream; it is settled only if the request really fails."""
        with _NothingRaised("async_log_failure_event"):
            request = self._inflight.of_log(kwargs)
            if request is not None:
                self._settlement.partly_delivered(request, kwargs)

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: Any,  # noqa: ARG002  # LiteLLM's
        traceback_str: str | None = None,  # noqa: ARG002  # LiteLLM's
    ) -> None:
        """Settle a request that failed finally, after all retries and fallbacks."""
        with _NothingRaised("async_post_call_failure_hook"):
            request = self._inflight.of_hook(request_data)
            if request is not None:
                self._settlement.failed(
                    request, original_exception, client_set_timeout=client_set_timeout(request_data)
                )
            elif self._inflight.repetition(request_data, by="failure"):
                self._anomalies.count("duplicate", str(request_data.get("model") or ""))

    # ── the HTTP request ──────────────────────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def answer_begins(scope: request_scope.RequestScope) -> None:
        """Write the headers of an answer at the last moment, since only then are their values known."""
        with _NothingRaised("answer_begins"):
            if scope.account_status is not None:
                scope.headers |= status_headers(scope.account_status)
            if scope.cost is not None:
                scope.headers["x-usage-cost"] = format_usd(scope.cost)

    def request_ended(self, request: InflightRequest, ending: Status) -> None:
        """Process the end of a request on the wire."""
        with _NothingRaised("request_ended"):
            self._settlement.over(request, ending)

    @property
    def has_unsettled(self) -> bool:
        """Whether any request is not settled yet."""
        return bool(self._inflight.left())

    def close(self) -> None:
        """Settle the remaining requests when the worker ends."""
        with _NothingRaised("close"):
            self._settlement.close()


def _stop_if_refused(scope: request_scope.RequestScope | None) -> None:
    """Raise the gate's refusal again, since LiteLLM lets some tool requests continue without a user to refuse."""
    if scope is not None and scope.refused is not None:
        raise scope.refused


def _is_free_route(scope: request_scope.RequestScope | None, kind: str) -> bool:
    """Whether the route costs nothing, although LiteLLM calls its hook there."""
    return scope is not None and scope.rule is not None and scope.rule.verdict == "free" and kind not in UNMETERED


class _NothingRaised:
    """Keeps a bug of the plugin from becoming the client's 500; requests left unsettled are charged when they end.

    A class, since each request enters several, and a generator costs many times as much.
    """

    __slots__ = ("_hook",)

    def __init__(self, hook: str) -> None:
        self._hook = hook

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        log.error("hook.failed", hook=self._hook, exc_info=error)
        return True


def _as_answer(error: Exception, kind: str) -> ProxyException:
    """Map an error during admission to the error for the client; only bugs of the plugin are logged."""
    if isinstance(error, ProxyException):
        return error
    if isinstance(error, IdentityRequiredError):
        return bad_request(str(error), param="user", kind="user_required")
    if isinstance(error, SubjectNameError):
        return bad_request(str(error), param="user")
    if isinstance(error, ResolverFailedError):
        return _not_now(str(error), kind="identity_unavailable")
    log.error("admission.failed", call_type=kind, exc_info=error)
    return _not_now("The usage plugin failed to admit this request; its log says why.", kind="ledger_unavailable")


def _not_now(message: str, *, kind: str) -> ProxyException:
    return ProxyException(message=message, type=kind, param=None, code=503, headers={"Retry-After": "1"})
