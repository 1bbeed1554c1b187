"""The second line of defense: compare the outgoing request to a provider with its hold.

Between admission and sending, later callbacks, the router and its fallbacks may have changed the model, the messages or
the output limit. Usually nothing has changed: the body is read once more, and its numbers are at most those of the
hold.

Otherwise the hold is released and the request is admitted again in its new form, for the chosen deployment. If that is
refused, or the ledger does not release the hold, it is not sent, and neither are its retries and fallbacks.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from operator import le
from typing import TYPE_CHECKING, Any

import litellm
from fastapi import HTTPException
from litellm.proxy._types import ProxyException

from usage_plugin.domain.usage import new_ref
from usage_plugin.log import get_logger
from usage_plugin.pricing.catalog import unprinted
from usage_plugin.pricing.sheets import route_of
from usage_plugin.proxy import bounds, output_limits
from usage_plugin.proxy.litellm_metadata import chosen_deployment
from usage_plugin.tracking.admission.decisions import Refusal, unheld

if TYPE_CHECKING:
    from usage_plugin.domain.prices import PriceExposure
    from usage_plugin.domain.request_ledger import RequestLedger
    from usage_plugin.proxy.inflight_request import InflightRequest
    from usage_plugin.proxy.price_book import Deployment
    from usage_plugin.proxy.request_admission import RequestAdmission
    from usage_plugin.proxy.request_plan import HeldBounds, RequestPlanner
    from usage_plugin.tracking.admission.refusals import RefusalLog

log = get_logger()


class StoppedError(ProxyException, HTTPException):  # type: ignore[misc]  # LiteLLM's class is untyped
    """The request is not sent.

    LiteLLM treats an `HTTPException` with status 400 as a guardrail's decision: it neither retries nor falls back. As a
    `ProxyException` it carries the message, the type and the fields for the client.
    """

    def __init__(self, refusal: ProxyException) -> None:
        """Copy the message, the type and the fields of the refusal."""
        ProxyException.__init__(
            self,
            message=refusal.message,
            type=refusal.type,
            param=refusal.param,
            code=int(refusal.code or 400),
            headers=refusal.headers,
            provider_specific_fields=refusal.provider_specific_fields,
        )
        self.status_code = 400
        self.detail = refusal.message


class OutgoingCheck:
    """Checks outgoing requests; each handler has one."""

    def __init__(
        self, admission: RequestAdmission, planner: RequestPlanner, requests: RequestLedger, refusals: RefusalLog
    ) -> None:
        """Create it from the admission of requests, the planner, the request ledger and the log of refusals."""
        self._admission = admission
        self._planner = planner
        self._requests = requests
        self._refusals = refusals

    async def check(self, request: InflightRequest, kwargs: dict[str, Any], call_type: str) -> Refusal | None:
        """Compare the outgoing request with its hold; return the refusal if it must not be sent.

        Args:
            request: The admitted request.
            kwargs: The arguments of the call to the provider. Our output limit is set here where the body could not
                hold it.
            call_type: LiteLLM's call type.
        """
        held_bounds = request.held_bounds
        if request.stopped is not None:
            return request.stopped
        if held_bounds is None or call_type != held_bounds.call_type:
            # No limit depends on the request, or LiteLLM's outer call was compared, and this is its translation.
            return None
        deployment, is_expected = self._chosen_deployment(request, held_bounds, kwargs)
        if deployment is None:
            # No deployment was chosen: LiteLLM calls the provider by the model's name, as admitted.
            return None
        if is_expected:
            _put_in(held_bounds, kwargs, deployment)
            if self._is_held(held_bounds, kwargs, deployment):
                return None
        return await self._admit_again(request, kwargs, call_type, deployment)

    def _chosen_deployment(
        self, request: InflightRequest, held_bounds: HeldBounds, kwargs: dict[str, Any]
    ) -> tuple[Deployment | None, bool]:
        """Return the chosen deployment, and whether the request was admitted for it."""
        deployment_id, group = chosen_deployment(kwargs)
        if deployment_id is None:
            return None, False
        for deployment in held_bounds.deployments:
            if deployment.deployment_id == deployment_id:
                return deployment, True
        return self._planner.deployment(request.admitted.subjects, group, deployment_id), False

    def _is_held(self, held_bounds: HeldBounds, kwargs: dict[str, Any], deployment: Deployment) -> bool:
        """Whether the outgoing request is within the bounds of the admitted one."""
        then, now = held_bounds.bound, bounds.read(held_bounds.call_type, kwargs, trusted=True)
        most = None if then.input_tokens is None else then.input_tokens + _own_input(deployment, held_bounds.call_type)
        if most is not None and (now.input_tokens is None or now.input_tokens > most):
            return False
        counts_output = held_bounds.output.is_counted and route_of(held_bounds.call_type) == "text"
        if counts_output and held_bounds.output_tokens is not None:
            admission = self._admission.config.current.admission
            fields = output_limits.output_limit(deployment, held_bounds.call_type, admission).fields
            if fields and now.named.isdisjoint(fields):
                return False
            if (now.largest_output + now.predicted) * now.answers > held_bounds.output_tokens:
                return False
            if not now.output_is_bounded:
                return False
        return _is_within(now.reach, then.reach, deployment)

    async def _admit_again(
        self, request: InflightRequest, kwargs: dict[str, Any], call_type: str, deployment: Deployment
    ) -> Refusal | None:
        admitted = request.admitted
        if admitted.holds and not await self._requests.release(request.event_id):
            # It needs another hold than it has. The first one is freed when the request is settled.
            if self._admission.config.current.admission.on_ledger_error == "allow":
                return None
            event = admitted.event
            request.stopped = Refusal(
                reason="unavailable", ref=new_ref(), at=event.started_at, user=event.user, model=event.requested_model
            )
            return request.stopped
        decision, plan = await self._admission.admit_again(admitted, kwargs, call_type, deployment)
        outcome = decision.outcome
        for refusal in decision.dry_run_refusals:
            self._refusals.add(refusal)
        log.info(
            "request.changed",
            event_id=request.event_id,
            model=deployment.model,
            admitted=not isinstance(outcome, Refusal),
        )
        if isinstance(outcome, Refusal):
            # Its hold is released, and nothing will be charged.
            request.admitted = unheld(admitted.event, admitted.subjects)
            request.stopped = outcome
            return outcome
        request.admitted, request.held_bounds = outcome, plan.held_bounds
        if plan.held_bounds is not None and plan.held_bounds.output.injected is not None:
            # The plan leaves the call as it is, so set the limit in it. For one deployment there is no other limit.
            output_limits.write(call_type, kwargs, *plan.held_bounds.output.injected)
        return None


def ask_for_usage(kwargs: dict[str, Any], call_type: str, admitted: str) -> None:
    """Request the usage at the end of a stream, where LiteLLM translates a route into chat without requesting it."""
    if call_type != "acompletion" or admitted == call_type or not kwargs.get("stream"):
        return
    options = kwargs.get("stream_options")
    if not isinstance(options, dict) and _reports_usage(str(kwargs.get("model")), kwargs.get("custom_llm_provider")):
        kwargs["stream_options"] = {"include_usage": True}


@lru_cache(maxsize=1_000)
def _reports_usage(model: str, provider: str | None) -> bool:
    """Whether a provider accepts the option that requests the usage of a stream."""
    with unprinted(), suppress(Exception):  # LiteLLM raises an error for unknown models
        bare, named, _, _ = litellm.get_llm_provider(model, custom_llm_provider=provider)
        return "stream_options" in (litellm.get_supported_openai_params(bare, custom_llm_provider=named) or ())
    return False


def _put_in(held_bounds: HeldBounds, kwargs: dict[str, Any], deployment: Deployment) -> None:
    """Set our output limit for a deployment that needs a different one than the body has."""
    output = held_bounds.output
    own = output.by_deployment.get(deployment.deployment_id)
    if own is None:
        return
    if output.injected is not None:
        output_limits.remove(held_bounds.call_type, kwargs, output.injected[0])
    output_limits.write(held_bounds.call_type, kwargs, *own)


def _own_input(deployment: Deployment, call_type: str) -> int:
    own: bounds.Bounds | None = deployment.bounds.get(call_type)
    return (own.input_tokens or 0) if own is not None else 0


def _is_within(now: PriceExposure, then: PriceExposure, deployment: Deployment) -> bool:
    return (
        now.media_input <= then.media_input
        and now.media_output <= then.media_output
        and {*now.services} <= {*then.services, deployment.service}
        and {*now.modes} <= {*then.modes}
        and (then.units is None or (now.units is not None and all(map(le, now.units, then.units))))
    )
