"""Settlement: settle each request once, however it ends and however many hooks report the end.

A request ends in one of these ways, and the first that settles it wins. `over` may come before `logged`. Found by
experiment (`tests/proxy/test_endings.py`):

- `answered`: a whole answer is being sent to the client. It is settled here, so that a lost log event loses nothing.
- `logged`: a success was logged. Settles streams, also cut ones, and answers that report no usage themselves.
- `failed`: the client gets a final failure. The delivered part is charged. A request that no provider accepted, or that
  the provider rejected, costs nothing. A request that a provider is still processing waits for the result.
- `over`: the last byte is sent or the client has disconnected. A request that is not settled within
  `admission.orphan_grace` after that is charged as reserved.

LiteLLM's failure log settles nothing, since a retry may succeed. It only notes the delivered part
(`partly_delivered`).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import openai
from litellm.integrations.custom_logger import CustomLogger

from usage_plugin.domain.usage import UsageEvent, new_event_id
from usage_plugin.log import get_logger
from usage_plugin.proxy import charges, pass_through_prices, request_scope, usage_parsing
from usage_plugin.proxy.deferred import LOOK_UPS, finished_work, is_batch, work_of
from usage_plugin.proxy.inflight import is_free
from usage_plugin.proxy.litellm_metadata import metadata_in
from usage_plugin.proxy.pass_through_usage import PassThroughReport
from usage_plugin.proxy.streams import report_of
from usage_plugin.tracking.admission.decisions import unheld
from usage_plugin.tracking.admission.recorder import OpenRequest, Outcome, Recorded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.config import ActiveConfig
    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.usage import CostSource, Status
    from usage_plugin.proxy.deferred import Deferred, Work
    from usage_plugin.proxy.inflight import InflightRequests, Settler
    from usage_plugin.proxy.inflight_request import InflightRequest
    from usage_plugin.proxy.price_book import PriceBook
    from usage_plugin.tracking.admission.recorder import Recorder
    from usage_plugin.tracking.notifications.anomalies import Anomalies

CLIENT_GONE = 499
"""The status of LiteLLM's exception for a request whose client has disconnected."""

_ATTEMPTS_ARE_TOLD = hasattr(CustomLogger, "async_post_call_failure_deployment_hook")
"""Whether LiteLLM reports each failed attempt; versions before 1.103 do not."""

_NEVER_TOLD = frozenset({"atext_completion"})
"""For streams of these call types LiteLLM never reports a failed attempt."""

log = get_logger()


class Settlement:
    """Settles requests. The handler catches and logs any error here, so the answer still reaches the client."""

    def __init__(
        self,
        inflight: InflightRequests,
        deferred: Deferred,
        prices: PriceBook,
        recorder: Recorder,
        anomalies: Anomalies,
        config: ActiveConfig,
        clock: Clock,
    ) -> None:
        """Create it from the requests in progress and deferred, the price book, and the parts that record them."""
        self._inflight = inflight
        self._deferred = deferred
        self._prices = prices
        self._recorder = recorder
        self._anomalies = anomalies
        self._config = config
        self._clock = clock
        self._disputes = charges.CrossCheck()

    def answered(self, request: InflightRequest, data: Mapping[str, Any], response: Any) -> Recorded | None:
        """Settle a whole answer that reports its usage; others are settled when they are logged."""
        if request.owns_all_calls:
            # It has no stamp. If it were settled now, its later log event would be charged as a foreign call.
            return None
        # Use the provider's own answer, where LiteLLM has converted it for the client.
        answer = response if request.answer is None else request.answer
        served, usage = usage_parsing.read_answer(data, answer)
        return self._record(request, served, usage, by="inline") if usage else None

    async def provider_answered(self, request: InflightRequest, data: Mapping[str, Any], response: Any) -> None:
        """Keep a whole answer for settlement: a guardrail may still withhold it, but the provider must be paid."""
        request.is_at_provider = request.cut = False
        if request.answer is None:
            # Where one API is served through another, the inner call is reported first, and only that one is kept.
            request.answer = response
        # Read it only if it is needed: nearly always it is settled a moment later.
        request.delivered = partial(usage_parsing.read_answer, data, request.answer)
        if request.status_told:
            self._settle_delivered(request, request.status_told)
            return
        work = work_of(response)
        if work is not None and work.status is None and await self._deferred.hold(request, work):
            self._inflight.forget(request, "deferred")
            request.settled, request.delivered = True, None

    async def looked_up(self, data: Mapping[str, Any], response: Any) -> None:
        """Settle a deferred response when a look-up first shows that it is finished."""
        work = finished_work(response, data.get("response_id"))
        request = await self._deferred.find(work) if work is not None else None
        if work is not None and request is not None and not is_batch(response):
            served, usage = usage_parsing.served_inline(data, response), usage_parsing.inline_usage(response)
            await self._settle_work(request, work, served, usage, by="inline")

    async def _look_up_logged(self, kwargs: Mapping[str, Any], response: Any) -> None:
        """Settle a batch, whose cost only the log reports, or a response that was looked up as a stream."""
        scope = request_scope.current.get()
        looked_up = scope.looked_up if scope is not None else None
        response = getattr(response, "response", response)
        work = finished_work(response, looked_up.get("response_id") if looked_up is not None else None)
        request = await self._deferred.find(work) if work is not None else None
        if work is not None and request is not None:
            usage = usage_parsing.logged_usage(kwargs)
            usage = usage if any(usage.values()) else usage_parsing.inline_usage(response)
            await self._settle_work(request, work, usage_parsing.served_logged(kwargs, response), usage, by="success")

    async def _settle_work(
        self,
        request: InflightRequest,
        work: Work,
        served: usage_parsing.Served,
        usage: Mapping[str, Any],
        *,
        by: Settler,
    ) -> None:
        """Settle deferred work that has finished."""
        status = work.status or "success"
        if any(usage.values()) or served.litellm_cost:
            # When work is looked up, LiteLLM reports the deployment's id as the model. Use the requested model instead.
            served = served._replace(model=request.admitted.event.model)
            self._record(request, served, usage, by=by, status=status)
        elif status == "failure":
            self._settle(request, Outcome(status=status), by=by)
        else:
            self._settle_as_reserved(request, status, by=by)
        await self._deferred.forget(work)

    def partly_delivered(self, request: InflightRequest, kwargs: Mapping[str, Any]) -> None:
        """Keep the usage of the part of a stream that was delivered before it broke."""
        request.broken = True
        usage = usage_parsing.logged_usage(kwargs)
        if any(usage.values()):
            request.cut = True
            request.delivered = lambda: (usage_parsing.served_logged(kwargs), usage)

    async def logged(self, kwargs: Mapping[str, Any], response: Any = None) -> None:
        """Settle a request that LiteLLM logs as a success, unless it is settled. Commits before the first await."""
        request = self._inflight.of_log(kwargs)
        if request is None and kwargs.get("call_type") in LOOK_UPS:
            await self._look_up_logged(kwargs, response)
            return
        if request is None:
            repetition = self._inflight.repetition(kwargs, by="success")
            if repetition == "again":
                self._anomalies.count("duplicate", str(kwargs.get("model") or ""))
            elif repetition is None and self._inflight.is_foreign(kwargs):
                self._record_foreign(kwargs, response)
            return
        request.cut = _client_left(kwargs)
        if request.stream is None and request.report is not None and not (request.is_over or request.cut):
            # The log came before the last frame, and that frame has the usage. So `over` settles the request.
            request.logged = (kwargs, response)
        else:
            self._settle_logged(request, kwargs, response)

    def _settle_logged(self, request: InflightRequest, kwargs: Mapping[str, Any], response: Any) -> None:
        """Settle with the logged usage; for a stream, with the usage in the provider's own frames."""
        status: Status = request.status_told or ("cancelled" if request.cut else "success")
        if request.cut and self._charges_cut_as_reserved():
            self._settle_as_reserved(request, status, by="success")
            return
        served, usage = usage_parsing.served_logged(kwargs, response), usage_parsing.logged_usage(kwargs, response)
        report = report_of(request)
        if isinstance(report, PassThroughReport):
            self._settle_pass_through(request, report, served, usage, kwargs, status)
            return
        is_unreported = False
        if report is not None and not (request.cut or served.cache_hit):
            is_unreported = report.lacks_output or not (report.usage or _is_mocked(kwargs))
            served, usage = usage_parsing.served_streamed(served, report), report.usage or usage
        if is_unreported and request.admitted.holds:
            # LiteLLM only counts the text. Anything else that the provider bills, such as hidden reasoning, is unknown.
            self._settle_as_reserved(request, status, by="success")
            return
        self._record(
            request,
            served,
            usage,
            by="success",
            status=status,
            error=request.error,
            estimated=request.cut or is_unreported,
        )

    def _settle_pass_through(
        self,
        request: InflightRequest,
        report: PassThroughReport,
        served: usage_parsing.Served,
        usage: Mapping[str, Any],
        kwargs: Mapping[str, Any],
        status: Status,
    ) -> None:
        """Settle an answer that was forwarded unchanged, with the usage in its bytes, else with LiteLLM's."""
        is_whole = not (request.cut or request.status_told or report.lacks_output)
        event = request.admitted.event
        if pass_through_prices.is_free(kwargs, report.path):
            outcome = charges.read_outcome(
                pass_through_prices.Offer((), event), served, report.usage, event, status=status
            )
            self._settle(request, outcome._replace(cost=0, cost_source="litellm"), by="success")
            return
        if not report.usage:
            served = served._replace(litellm_cost=pass_through_prices.stated_cost(kwargs) or served.litellm_cost)
            is_counted = report.is_stream and any(usage.values())
            estimated = request.cut or is_counted
            self._record(request, served, usage, by="success", status=status, error=request.error, estimated=estimated)
            return
        served = usage_parsing.served_streamed(served, report)._replace(units=report.units)
        try:
            served, offer = pass_through_prices.priced(self._prices, served, event, report, kwargs)
            policy = self._config.current.admission.disputed_cost_of(served.model or event.model)
            outcome = charges.read_outcome(
                offer, served._replace(model=served.model or event.model or served.answered), report.usage, offer.event,
                status=status, error=request.error, estimated=not is_whole, on_disputed=policy,
            )  # fmt: skip
            self._cross_check(outcome)
        except Exception:
            log.exception("outcome.unreadable", hook="success", event_id=event.event_id)
            self._settle_unmetered(request, status)
            return
        if outcome.cost_source not in ("computed", "provider", "litellm"):
            outcome = self._flat(request, outcome)
        self._settle(request, outcome, by="success")

    def failed(self, request: InflightRequest, error: Exception, *, client_set_timeout: bool) -> None:
        """Settle a request that failed finally, or wait if a provider is still processing it.

        Args:
            request: The request that failed.
            error: The error that is sent to the client.
            client_set_timeout: Whether the client set the timeout itself.
        """
        gone = getattr(error, "status_code", None) == CLIENT_GONE
        status: Status = "cancelled" if gone else "failure"
        request.error = type(error).__name__
        late = isinstance(error, openai.APITimeoutError)
        from_provider = isinstance(error, openai.APIError)
        if from_provider and (not _ATTEMPTS_ARE_TOLD or request.admitted.event.call_type in _NEVER_TOLD):
            request.is_at_provider = False
        if request.delivered is not None:
            self._settle_delivered(request, status)
        elif isinstance(request.report, PassThroughReport) and request.report.usage:
            # The answer broke off after it had reported some usage.
            request.status_told = status
            self._settle_pass_through(request, request.report, usage_parsing.NOTHING_SERVED, {}, {}, status)
        elif late and not (client_set_timeout or self._charges_cut_as_reserved()):
            # The provider's bill is unknown, and a slow provider should not use up the caller's limit.
            self._settle(request, Outcome(status=status, error=request.error, estimated=True), by="failure")
        elif late or (request.is_at_provider and (gone or from_provider)):
            # Cut by the client, or broken in the middle of a stream: the provider's bill is unknown.
            self._settle_as_reserved(request, status, by="failure")
        elif request.is_at_provider:
            # Another plugin's hook refused it while the provider was processing it: the cost is not known yet.
            request.status_told = status
        else:
            self._settle(request, Outcome(status=status, error=request.error), by="failure")

    def over(self, request: InflightRequest, ending: Status) -> None:
        """Settle a request some time after its end on the wire, unless a hook settles it first: the log may be late.

        Args:
            request: The request that is over.
            ending: Its outcome on the wire.
        """
        request.is_over = True
        if request.report is not None:
            request.report.end()
        if isinstance(request.report, PassThroughReport):
            request.cut = request.cut or ending == "cancelled"
        if request.logged is not None and not request.settled:
            self._settle_logged(request, *request.logged)
        if not request.settled:
            self._recorder.free_slots(request)
            loop = asyncio.get_running_loop()
            half = self._config.current.admission.orphan_grace.total_seconds() / 2
            # In two halves: if the worker stalls, the second half starts afterwards, so pending log events are
            # processed first.
            loop.call_later(half, loop.call_later, half, self._settle_orphan, request, ending)

    def close(self) -> None:
        """Settle the remaining requests when the worker ends: by then all requests are over and logging is complete."""
        for request in self._inflight.left():
            self._settle_orphan(request, "cancelled")

    def _settle_orphan(self, request: InflightRequest, status: Status) -> None:
        if request.settled:
            return
        if request.logged is not None:
            self._settle_logged(request, *request.logged)
            return
        # Usually the client left before the first chunk. The provider's bill is unknown, so the hold is charged.
        event = request.admitted.event
        if request.unmetered:
            if isinstance(request.report, PassThroughReport) and request.report.usage:
                ended = request.status_told or status
                self._settle_pass_through(request, request.report, usage_parsing.NOTHING_SERVED, {}, {}, ended)
                return
            self._settle_unmetered(request, request.status_told or status)
            return
        log.warning("request.orphaned", event_id=event.event_id, user=event.user, model=event.model)
        self._anomalies.count("orphaned", event.model or event.call_type, event.cost or 0)
        if request.broken and status == "success":
            # LiteLLM ends some broken streams as if they were complete.
            status = "failure"
        self._settle_as_reserved(request, request.status_told or status, by="orphan")

    def _settle_unmetered(self, request: InflightRequest, status: Status) -> None:
        """Settle a request without any reported usage, as is usual on such routes: at its flat cost, if it has one."""
        if status == "failure" and not request.is_at_provider:
            self._settle(request, Outcome(status=status, error=request.error), by="orphan")
        else:
            outcome = self._flat(request, Outcome(status=status, error=request.error))
            self._settle(request, outcome, by="orphan")

    def _flat(self, request: InflightRequest, outcome: Outcome) -> Outcome:
        """Charge the flat cost that the operator configured for such requests; keep the rest of the outcome."""
        event = request.admitted.event
        flat = event.reserved
        self._anomalies.count("unmetered", event.model or event.call_type, flat)
        source: CostSource = "reserved" if flat else "unpriced"
        return outcome._replace(cost=flat or None, cost_source=source, as_reserved=False, estimated=True)

    def _settle_delivered(self, request: InflightRequest, status: Status) -> None:
        if request.delivered is None or (request.cut and self._charges_cut_as_reserved()):
            self._settle_as_reserved(request, status, by="failure")
            return
        try:
            served, usage = request.delivered()
        except Exception:
            log.exception("outcome.unreadable", hook="failure", event_id=request.event_id)
            self._settle_as_reserved(request, status, by="failure")
            return
        self._record(request, served, usage, by="failure", status=status, error=request.error, estimated=request.cut)

    def _charges_cut_as_reserved(self) -> bool:
        return self._config.current.admission.on_cut_stream == "reserved"

    def _record(
        self,
        request: InflightRequest,
        served: usage_parsing.Served,
        usage: Mapping[str, Any],
        *,
        by: Settler,
        **how: Any,  # status, error, estimated
    ) -> Recorded | None:
        """Settle with LiteLLM's report; if it is unreadable, settle as reserved and mark that on the event."""
        event = request.admitted.event
        try:
            policy = self._config.current.admission.disputed_cost_of(served.model or event.model)
            outcome = charges.read_outcome(self._prices, served, usage, event, on_disputed=policy, **how)
            self._cross_check(outcome)
        except Exception:
            log.exception("outcome.unreadable", hook=by, event_id=event.event_id)
            return self._settle_as_reserved(request, how.get("status", "success"), by=by)
        if request.unmetered and not outcome.cost:
            outcome = self._flat(request, outcome)
        return self._settle(request, outcome, by=by)

    def _cross_check(self, outcome: Outcome) -> None:
        """Count each cost on which LiteLLM's figure differs from ours, and log it once for each model."""
        if outcome.disputed_by:
            self._disputes.log_once(outcome)
            self._anomalies.count("disputed", outcome.model, outcome.disputed_by)

    def _settle_as_reserved(self, request: InflightRequest, status: Status, *, by: Settler) -> Recorded | None:
        return self._settle(request, Outcome(status=status, error=request.error, as_reserved=True), by=by)

    def _settle(self, request: InflightRequest, outcome: Outcome, *, by: Settler) -> Recorded | None:
        self._inflight.forget(request, by)
        # Drop the answer and the body: the scope, or the timer of `over`, may keep this object for another minute.
        request.delivered = request.answer = request.stream = request.logged = None
        return self._write(request, outcome)

    def _write(self, request: OpenRequest, outcome: Outcome) -> Recorded | None:
        try:
            recorded = self._recorder.record(request, outcome)
        except Exception:
            log.exception("record.failed", event_id=request.event_id)
            if outcome.as_reserved:
                # The reservation stays and is charged when this worker ends: an overcharge is safe, a 500 is not.
                return None
            request.settled = False
            return self._write(request, Outcome(status=outcome.status, error=outcome.error, as_reserved=True))
        if recorded is not None:
            self._anomalies.count_event(recorded.event)
        return recorded

    def _record_foreign(self, kwargs: Mapping[str, Any], response: Any) -> None:
        """Charge a call that was never admitted, such as a health check: it costs as much as any other."""
        served = usage_parsing.served_logged(kwargs, response)
        usage = usage_parsing.logged_usage(kwargs, response)
        logged = kwargs.get("standard_logging_object") or {}
        call_type = str(logged.get("call_type") or kwargs.get("call_type") or "")
        if served.cache_hit or is_free(call_type) or not (any(usage.values()) or served.litellm_cost):
            return
        subjects = request_scope.subjects_here()
        draft = UsageEvent(
            event_id=new_event_id(),
            started_at=self._clock.now(),
            status="success",
            call_type=call_type,
            **subjects.kept(),
            model=served.model or served.served_model,
        )
        policy = self._config.current.admission.disputed_cost_of(draft.model)
        outcome = charges.read_outcome(self._prices, served, usage, draft, on_disputed=policy)
        recorded = self._write(OpenRequest(unheld(draft, subjects), self._clock.monotonic()), outcome)
        if recorded is not None:
            self._anomalies.count("unheld", recorded.event.model or call_type, recorded.event.cost or 0)


def _is_mocked(kwargs: Mapping[str, Any]) -> bool:
    """Whether LiteLLM made up the answer, as `mock_response` requires: then no provider reports any usage."""
    return bool((kwargs.get("litellm_params") or {}).get("mock_response") or kwargs.get("mock_response"))


def _client_left(kwargs: Mapping[str, Any]) -> bool:
    return any(metadata.get("client_disconnected") for metadata in metadata_in(kwargs.get("litellm_params") or {}))
