"""Output limits: the maximum output of a request on each deployment, and the limits that we write into a body.

A client that sets no limit that is obeyed gets the operator's for the deployment, else ours. It is written only where a
limit of the YAML depends on the output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.pricing.sheets import route_of
from usage_plugin.proxy.body_fields import GEMINI, MOST_PLACES, NESTED, OUTPUT_FIELDS, holder_of, places_of, whole
from usage_plugin.proxy.output_fields import obeyed_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from usage_plugin.config.sections import AdmissionConfig
    from usage_plugin.proxy.bounds import Bounds
    from usage_plugin.proxy.price_book import Deployment

_WITHOUT_OUTPUT = ("embedding", "moderation", "rerank")
_ON_RESPONSES = frozenset({"aresponses", "anthropic_messages"})
_LEAST_OUTPUT = 16
_THINKING = frozenset({"thinking", "reasoning", "generationConfig", "config"})
_PLACES = OUTPUT_FIELDS | NESTED


class OutputLimit(NamedTuple):
    """How the output of a request is bounded on one deployment.

    Attributes:
        fields: The fields that the deployment obeys on this route, the preferred one first; empty if it obeys none.
        default: The limit for a client that sets none: the operator's own, else ours.
        is_sent: Whether the operator's `litellm_params` set it in an obeyed field. LiteLLM then sends it itself.
    """

    fields: tuple[str, ...]
    default: int
    is_sent: bool


def output_limit(
    deployment: Deployment, call_type: str, admission: AdmissionConfig, *, has_room_for_thinking: bool = True
) -> OutputLimit:
    """Return a deployment's output limit on a route, with room for thinking on models that think or without it."""
    key = (call_type, has_room_for_thinking)
    known: OutputLimit | None = deployment.limits.get(key)
    if known is None:
        # Deployments are looked up again every few seconds, so a changed YAML takes effect soon.
        thinks = has_room_for_thinking and deployment.reasons
        known = deployment.limits[key] = _output_limit(deployment, call_type, admission, thinks=thinks)
    return known


def _output_limit(deployment: Deployment, call_type: str, admission: AdmissionConfig, *, thinks: bool) -> OutputLimit:
    parameters = deployment.parameters
    dropped = parameters.get("additional_drop_params")
    dropped = tuple(map(str, dropped)) if isinstance(dropped, list | tuple) else ()
    fields = obeyed_fields(call_type, deployment.served_model, deployment.provider, dropped)
    own = {field: number for field in OUTPUT_FIELDS & parameters.keys() if (number := whole(parameters[field]))}
    if own:
        sent = [own[field] for field in fields if field in own]
        return OutputLimit(fields, max(sent or own.values()), bool(sent))
    default = admission.output_tokens_of(deployment.model or "", reasons=thinks)
    return OutputLimit(fields, min(default, deployment.most_output or default), is_sent=False)


class PlannedOutput(NamedTuple):
    """The maximum output of a request, and the output limits that we set.

    Attributes:
        tokens: The maximum output tokens on each deployment over all answers; None if unbounded.
        injected: The field and the value of the limit that we set in the body, if any.
        by_deployment: The field and the value for each deployment that needs a different one, by its id.
        field: The field that the first deployment obeys; None if it obeys none.
        is_counted: Whether any limit of the YAML depends on the output.
    """

    tokens: Sequence[int | None]
    injected: tuple[str, int] | None = None
    by_deployment: Mapping[str, tuple[str, int]] = {}
    field: str | None = None
    is_counted: bool = True


def plan(
    body: dict[str, Any],
    call_type: str,
    deployments: Sequence[Deployment],
    each: Sequence[Bounds],
    admission: AdmissionConfig,
    *,
    has_room_for_thinking: bool,
    is_outgoing: bool,
    is_counted: Callable[[], bool],
) -> PlannedOutput:
    """Bound the output. If the client sets no limit that is obeyed, use the operator's, else ours.

    Args:
        body: A copy of the body, in which our limit is set.
        call_type: LiteLLM's call type.
        deployments: The deployments that may serve the request.
        each: The bounds of the request on each of them.
        admission: The settings with the default limits.
        has_room_for_thinking: Whether our limit leaves room for thinking on models that think before they answer.
        is_outgoing: Whether LiteLLM has added the parameters of the deployment to the body, and adds none again.
        is_counted: Returns whether any limit of the YAML depends on the output. Called only if our limit is needed.
    """
    route = route_of(call_type)
    if route in _WITHOUT_OUTPUT:
        return PlannedOutput([0] * len(deployments))
    if route != "text" or not each[0].output_is_bounded:
        return PlannedOutput([None] * len(deployments))
    limits = [
        output_limit(one, call_type, admission, has_room_for_thinking=has_room_for_thinking) for one in deployments
    ]
    least = _LEAST_OUTPUT if call_type in _ON_RESPONSES else 0
    tokens: list[int | None] = []
    ours: dict[int, tuple[str, int]] = {}
    for at, (deployment, bound, limit) in enumerate(zip(deployments, each, limits, strict=True)):
        if not bound.output_is_bounded:
            most = None
        elif bound.asked_output is not None and not bound.named.isdisjoint(limit.fields):
            # LiteLLM raises a smaller value to the minimum of the Responses API.
            most = max(bound.asked_output, bound.largest_output, least)
        elif not limit.fields:
            most = deployment.most_output
        else:
            put_in = limit.default
            if not limit.is_sent:
                put_in = _room_for(_thinking_budget(body), limit.default, deployment)
            ours[at] = (limit.fields[0], put_in)
            most = max(put_in, bound.largest_output, least)
        tokens.append(None if most is None else (most + bound.predicted) * bound.answers)
    field = limits[0].fields[0] if limits[0].fields else None
    if not ours:
        return PlannedOutput(tokens, field=field)
    if not is_counted():
        return PlannedOutput(tokens, field=field, is_counted=False)
    limits = _in_outgoing_body(limits, each) if is_outgoing else limits
    return _write_ours(body, call_type, deployments, limits, tokens, ours, field)


def _in_outgoing_body(limits: Sequence[OutputLimit], each: Sequence[Bounds]) -> list[OutputLimit]:
    """Return the limits, of which only those in the body are still sent."""
    return [
        limit._replace(is_sent=limit.is_sent and not bound.named.isdisjoint(limit.fields))
        for bound, limit in zip(each, limits, strict=True)
    ]


def _write_ours(
    body: dict[str, Any],
    call_type: str,
    deployments: Sequence[Deployment],
    limits: Sequence[OutputLimit],
    tokens: list[int | None],
    ours: Mapping[int, tuple[str, int]],
    field: str | None,
) -> PlannedOutput:
    """Set our output limits in the body, or record them for the deployments that need a different one.

    The body can hold only one. A deployment with a limit in the YAML keeps it: LiteLLM sends that one as long as the
    body has none.
    """
    if len(deployments) == 1 and not limits[0].is_sent:
        # The usual case.
        is_in = write(call_type, body, *ours[0])
        return PlannedOutput(tokens, ours[0], field=field) if is_in else PlannedOutput([None])
    first = next((at for at in ours if not limits[at].is_sent), None)
    if first is None:
        remove_invalid(call_type, body)
        return PlannedOutput(tokens, field=field)
    injected = None
    if len(ours) == len(limits) or len(ours) == sum(1 for limit in limits if limit.fields):
        injected = ours[first]
        if not write(call_type, body, *injected):
            return PlannedOutput([None if at in ours else most for at, most in enumerate(tokens)])
        if len(ours) == 1:
            return PlannedOutput(tokens, injected, field=field)
    by_deployment = {}
    for at, limit in ours.items():
        if limit != injected:
            if deployments[at].deployment_id:
                by_deployment[deployments[at].deployment_id] = limit
            else:
                tokens[at] = None
    return PlannedOutput(tokens, injected, by_deployment, field)


def _room_for(budget: int, default: int, deployment: Deployment) -> int:
    """Add the client's thinking budget to our limit, which would otherwise cut off the answer."""
    return min(default + budget, deployment.most_output or default + budget) if budget else default


def _thinking_budget(body: Mapping[str, Any]) -> int:
    """Return the client's thinking budget in tokens, from any field that a provider's API has for it."""
    if body.keys().isdisjoint(_THINKING):
        return 0
    config = body.get("generationConfig") or body.get("config")
    thinking, nested = body.get("thinking"), config.get("thinkingConfig") if isinstance(config, dict) else None
    reasoning = body.get("reasoning")
    named = (
        thinking.get("budget_tokens") if isinstance(thinking, dict) else None,
        nested.get("thinkingBudget") if isinstance(nested, dict) else None,
        reasoning.get("max_tokens") if isinstance(reasoning, dict) else None,
    )
    return max(whole(number) or 0 for number in named)


def write(call_type: str, body: dict[str, Any], field: str, most: int, *, over_all: bool = False) -> bool:
    """Set an output limit in a body; return False if its place holds another type.

    Args:
        call_type: LiteLLM's call type.
        body: The body. Its nested objects are replaced by copies, not changed.
        field: The field that the route and the provider obey.
        most: The limit.
        over_all: Whether to overwrite the limit's other spellings too. Those that are not numbers are always removed.
    """
    if call_type in GEMINI:
        name = _holder_name(body)
        if body.get(name) is None:
            body[name] = {}
        elif not isinstance(body[name], dict):
            return False
    if not body.keys().isdisjoint(_PLACES):
        _copy_nested(body)
        for place in places_of(body):
            for name in OUTPUT_FIELDS & place.keys():
                if not whole(place[name]):
                    # It would remove a limit elsewhere, or the provider would reject two limits in one request.
                    del place[name]
                elif over_all:
                    place[name] = most
    (body[_holder_name(body)] if call_type in GEMINI else body)[field] = most
    return True


def remove(call_type: str, body: dict[str, Any], field: str) -> None:
    """Remove an output limit that `write` set."""
    _copy_nested(body)
    holder: Any = holder_of(call_type, body)
    holder.pop(field, None)


def remove_invalid(call_type: str, body: dict[str, Any]) -> None:
    """Remove output limits that are not numbers, such as n8n's -1, so that the operator's own limit is sent."""
    _copy_nested(body)
    holder: Any = holder_of(call_type, body)
    for name in [name for name in OUTPUT_FIELDS & holder.keys() if not whole(holder[name])]:
        del holder[name]


def write_missing(body: dict[str, Any], most: int | None) -> None:
    """Set an output limit in an outgoing completion that has none."""
    if most is not None and all(body.get(field) is None for field in OUTPUT_FIELDS & body.keys()):
        body["max_tokens"] = most


def _holder_name(body: Mapping[str, Any]) -> str:
    """Return the field in which LiteLLM reads Gemini's output limit."""
    return "generationConfig" if body.get("config") is None else "config"


def _copy_nested(body: dict[str, Any]) -> None:
    """Replace the nested objects that may hold an output limit by copies, since others hold the original ones."""
    places = [body]
    for place in places:
        for name in NESTED & place.keys():
            if isinstance(place[name], dict):
                place[name] = dict(place[name])
                places.append(place[name])
        if len(places) > MOST_PLACES:
            break
