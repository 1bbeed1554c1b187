"""Plan a request: the request for admission, and the body for LiteLLM.

A plan is worked out from the body as it arrived and a `Form`, and changes nothing. If a request does not fit, a remedy
plans it again in another form. The plan that is admitted is applied to the body, once.

The body is walked once for each plan (`bounds`); nothing here blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.subjects import LONGEST_NAME
from usage_plugin.domain.usage import UsageEvent, new_event_id
from usage_plugin.proxy import bounds, client_rules, output_limits, worst_case
from usage_plugin.proxy.client_response import bad_request
from usage_plugin.proxy.client_rules import SEARCH
from usage_plugin.proxy.litellm_metadata import remove_names_of_router
from usage_plugin.proxy.price_book import Deployment, PriceBook
from usage_plugin.proxy.tokens import encoding_for
from usage_plugin.tracking.admission.demands import Ask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usage_plugin.config import ActiveConfig
    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.tracking.admission.active_limits import ActiveLimits
    from usage_plugin.tracking.admission.decisions import Admitted

_OF_OUTPUT = ("output_tokens", "total_tokens")


class Form(NamedTuple):
    """How a request is planned, where that differs from its body.

    Attributes:
        model: The model to request instead.
        downgraded_by: The limit that downgraded it to that model.
        counted_tokens: The tokens to subtract from the bound by bytes, as the tokenizer has counted.
        has_room_for_thinking: Whether our output limit leaves room for thinking on models that think before they
            answer.
        output_limit: The field and the value of a shorter output limit.
        deployment: The deployment that LiteLLM has chosen, if the request is planned just before it is sent.
        admitted: The event of its first admission, if it is admitted for the second time.
    """

    model: str | None = None
    downgraded_by: str | None = None
    counted_tokens: int = 0
    has_room_for_thinking: bool = True
    output_limit: tuple[str, int] | None = None
    deployment: Deployment | None = None
    admitted: UsageEvent | None = None


AS_IT_ARRIVED = Form()


class HeldBounds(NamedTuple):
    """The bounds of an admitted request, compared with the outgoing one.

    Attributes:
        call_type: LiteLLM's call type.
        bound: The bounds of the body, as it was read.
        output_tokens: The maximum output over all answers; None if it is unbounded.
        deployments: The deployments that may serve the request.
        output: The output limits that we set.
    """

    call_type: str
    bound: bounds.Bounds
    output_tokens: int | None
    deployments: Sequence[Deployment]
    output: output_limits.PlannedOutput


class RequestPlan(NamedTuple):
    """A planned request.

    Attributes:
        ask: The request for admission.
        body: The body with all changes; the values that did not change are those of the body that arrived.
        held_bounds: The bounds of the outgoing request; None if no limit depends on its cost or tokens.
    """

    ask: Ask
    body: Mapping[str, Any]
    held_bounds: HeldBounds | None

    def apply(self, data: dict[str, Any], admitted: Admitted) -> None:
        """Write the changes into the body that arrived, which LiteLLM and later callbacks hold.

        Args:
            data: The body that was planned.
            admitted: The decision on this plan.
        """
        remove_names_of_router(data)
        for name in data.keys() - self.body.keys():
            del data[name]
        data.update(self.body)
        if admitted.without_fallbacks:
            data["disable_fallbacks"] = True


class RequestPlanner:
    """Plans requests; each handler has one."""

    def __init__(self, prices: PriceBook, limits: ActiveLimits, config: ActiveConfig, clock: Clock) -> None:
        """Create the planner from the price book, the limits, the configuration and the clock."""
        self._prices = prices
        self._limits = limits
        self._config = config
        self._clock = clock

    def plan(
        self, subjects: Subjects, data: Mapping[str, Any], call_type: str, form: Form = AS_IT_ARRIVED
    ) -> RequestPlan:
        """Plan a request, with an output limit where one is needed.

        Args:
            subjects: The parties of the request.
            data: The body, with LiteLLM's additions.
            call_type: LiteLLM's call type.
            form: The differences from the body.

        Raises:
            ProxyException: The request cannot be bounded as it is written.
        """
        body = dict(data)
        requested = _model_of(data)
        model = form.model or requested
        if form.model is not None:
            body["model"] = form.model
        chosen = form.deployment
        primary = (chosen,) if chosen else self._deployments(model, subjects.team)
        if model and "," in model and not self._prices.is_listed(model):
            # LiteLLM would call every model of the list, and log only one of them, without a cost.
            raise bad_request(f"One model a request, please: {model[:100]!r} names several.", param="model")
        is_limited = self._config.enforce and self._limits.limits.may_stop_spending(subjects)
        if not chosen:
            client_rules.apply_rules(body, call_type, is_limited=is_limited)
        if form.output_limit is not None:
            output_limits.write(call_type, body, *form.output_limit, over_all=True)
        fallbacks = [
            deployment
            for name in (self._prices.fallbacks(model, body) if model and not chosen else ())
            for deployment in self._deployments(name, subjects.team) or (_unlisted(name),)
        ]
        serving = primary or (_unlisted(model),)
        deployments = (*serving, *fallbacks)
        bound = bounds.read(call_type, body, trusted=chosen is not None)
        each = worst_case.bounds_of_each(deployments, call_type, bound, form.counted_tokens)
        output = output_limits.plan(
            body,
            call_type,
            deployments,
            each,
            self._config.current.admission,
            has_room_for_thinking=form.has_room_for_thinking,
            is_outgoing=chosen is not None,
            is_counted=lambda: self._counts_output(subjects, deployments, call_type),
        )
        most = worst_case.largest(output.tokens)
        # The input's part of the cost is as expensive to work out as the whole.
        splits_input = self._config.current.admission.on_lost == "charge_input"
        candidates = [
            worst_case.candidate(deployment, call_type, bound_of_one, tokens, self._prices, splits_input=splits_input)
            for deployment, bound_of_one, tokens in zip(deployments, each, output.tokens, strict=True)
        ]
        most_expensive = worst_case.most_expensive(candidates[: len(serving)])
        ask = Ask(
            draft=self._draft(subjects, data, call_type, form, requested, serving[0], bound, output),
            subjects=subjects,
            primary=(worst_case.web_search(data, self._prices),) if call_type == SEARCH else most_expensive,
            fallbacks=worst_case.most_expensive(candidates[len(serving) :]),
            input_tokens=worst_case.largest(list(map(worst_case.input_of, deployments, each))),
            output_tokens=most,
            is_downgraded=form.downgraded_by is not None or chosen is not None,
        )
        held_bounds = HeldBounds(call_type, bound, most, deployments, output) if is_limited else None
        return RequestPlan(ask, body, held_bounds)

    def encoding(self, subjects: Subjects, body: Mapping[str, Any]) -> str | None:
        """Return the tokenizer's encoding if all deployments that may bill the request share one, else None."""
        model = body.get("model")
        if not isinstance(model, str):
            return None
        names = (model, *self._prices.fallbacks(model, body))
        by_name = [self._deployments(name, subjects.team) or (_unlisted(name),) for name in names]
        return encoding_for([deployment for deployments in by_name for deployment in deployments])

    def deployment(self, subjects: Subjects, group: str | None, deployment_id: str) -> Deployment:
        """Return the deployment with this id, from the model group named by LiteLLM, else from any group."""
        known = [found for found in self._deployments(group, subjects.team) if found.deployment_id == deployment_id]
        return next(iter([*known, *self._deployments(deployment_id, subjects.team)]), _unlisted(group))

    def _deployments(self, model: str | None, team: str | None) -> Sequence[Deployment]:
        return self._prices.deployments(model, team) if model else ()

    def _draft(
        self,
        subjects: Subjects,
        data: Mapping[str, Any],
        call_type: str,
        form: Form,
        requested: str | None,
        first: Deployment,
        bound: bounds.Bounds,
        output: output_limits.PlannedOutput,
    ) -> UsageEvent:
        """Return the event with the facts known so far; a second admission keeps the identity of the first."""
        before = form.admitted
        draft = UsageEvent(
            event_id=before.event_id if before else new_event_id(),
            started_at=self._clock.now(),
            status="recovered",
            call_type=call_type,
            **subjects.kept(),
            call_id=_short(data.get("litellm_call_id")),
            requested_model=requested,
            model=first.model,
            provider=first.provider,
            injected_output_tokens=output.injected[1] if output.injected else None,
            service_tier=next(iter(bound.reach.services), None),
            downgraded_by=form.downgraded_by,
        )
        if before is not None:
            return draft.changed(
                call_id=before.call_id,
                requested_model=before.requested_model,
                clamped_to=before.clamped_to,
                downgraded_by=before.downgraded_by,
                injected_output_tokens=before.injected_output_tokens,
            )
        if form.output_limit is not None:
            return draft.changed(clamped_to=form.output_limit[1], injected_output_tokens=None)
        return draft

    def _counts_output(self, subjects: Subjects, deployments: Sequence[Deployment], call_type: str) -> bool:
        """Whether any limit that can stop this request counts its output."""
        if not self._config.enforce:
            return False
        for deployment in deployments:
            price = deployment.price_on(call_type)
            costs = price is not None and not price.is_free
            for matched in self._limits.limits.matching(subjects, deployment.model, deployment.provider):
                unit = matched.limit.unit
                if matched.can_stop and (unit in _OF_OUTPUT or (costs and unit == "usd")):
                    return True
        return False


def _model_of(data: Mapping[str, Any]) -> str | None:
    """Return the model that a body names, else None.

    Raises:
        ProxyException: The name cannot be stored.
    """
    model = data.get("model")
    if not isinstance(model, str) or not model:
        return None
    if len(model) > LONGEST_NAME or not model.isprintable():
        raise bad_request(f"The model's name cannot be taken: {model[:100]!r}.", param="model")
    return model


def _unlisted(model: str | None) -> Deployment:
    """Return a placeholder for a model that is absent or not listed by the router: LiteLLM may still serve it."""
    return Deployment(model, served_model=model or "")


def _short(value: object) -> str | None:
    """Return a client's or a provider's text in a form that can be stored: short, and valid Unicode."""
    return value[:256].encode("utf-8", "replace").decode() if isinstance(value, str) else None
