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
from usage_plugin.errors import SubjectNameError, UsagePluginError
from usage_plugin.log import get_logger
from usage_plugin.proxy import exchange, outcomes
from usage_plugin.proxy.asking import Asking
from usage_plugin.proxy.identity import IdentityRequiredError, resolve
from usage_plugin.proxy.refusing import bad_request, refusal_error, standing_headers
from usage_plugin.tracking.admission import Refusal
from usage_plugin.tracking.recorder import OpenRequest, Outcome, Recorded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.domain.usage import Status
    from usage_plugin.proxy.prices import PriceBook
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
        self._asking = Asking(runtime, prices)
        self._cross_check = outcomes.CrossCheck()
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
        ask = self._asking.ask(subjects, data, kind)
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
        response_obj: Any,  # LiteLLM's
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
                outcomes.served_logged(kwargs, response_obj),
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
        self._cross_check.look(outcome)
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
