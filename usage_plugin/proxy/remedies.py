"""Fit a request that a limit refuses: count its tokens, downgrade its model, or shorten its answer.

- If the request does not fit by its bytes, its tokens are counted, once.
- A limit may downgrade it to another model, once.
- Where the operator allows it, its answer is cut to the length that the remaining amount pays for.

Each time the request is read again, since its body has changed, and admission decides again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.log import get_logger
from usage_plugin.proxy import bounds
from usage_plugin.proxy.tokens import Tokenizer, most_savings
from usage_plugin.tracking.admission.decisions import Admitted, Decision, Downgrade, Refusal
from usage_plugin.tracking.admission.requirements import requirements_of

if TYPE_CHECKING:
    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.proxy.prices import Deployment
    from usage_plugin.proxy.request_plan import RequestPlanner, Sending
    from usage_plugin.runtime import Runtime
    from usage_plugin.tracking.admission.requirements import Ask, Requirement

SHORTEST_ANSWER = 256
"""The minimum answer in tokens. A shorter one would be useless."""

_MOST_CUTS = 4
_CUTTABLE = frozenset({"spent", "busy", "too_large"})
_OUTPUT_UNITS = frozenset({"usd", "total_tokens", "output_tokens"})
_INPUT_UNITS = frozenset({"usd", "total_tokens", "input_tokens"})
# Half of such an answer is worthless, or is spent before the answer begins.
_ALL_OR_NOTHING = (
    "tools", "functions", "response_format", "thinking", "reasoning", "reasoning_effort", "text", "output_format",
    "output_config", "responseSchema", "response_schema", "responseJsonSchema", "response_json_schema",
    "responseMimeType", "response_mime_type", "thinkingConfig", "thinking_config",
)  # fmt: skip

log = get_logger()


class Remedies:
    """Admits requests; each handler has one."""

    def __init__(self, runtime: Runtime, asking: RequestPlanner) -> None:
        """Create the negotiator from the worker's runtime and the reader of requests."""
        self._runtime = runtime
        self._asking = asking
        self._tokenizer = Tokenizer()

    async def admit(self, subjects: Subjects, data: dict[str, Any], kind: str) -> tuple[Decision, Sending | None]:
        """Decide on a request. Afterwards its body may name another model, or ask for a shorter answer.

        Returns:
            The decision, and the bounds that the outgoing request is compared with.

        Raises:
            ProxyException: The request cannot be admitted as it is written.
        """
        negotiation = _Negotiation(self._runtime, self._asking, self._tokenizer, subjects, data, kind)
        return await negotiation.admit(), negotiation.sending

    async def admit_again(
        self, request: Admitted, data: dict[str, Any], kind: str, way: Deployment
    ) -> tuple[Decision, Sending | None]:
        """Decide again on a request that changed after its admission, just before it is sent to one deployment."""
        negotiation = _Negotiation(self._runtime, self._asking, self._tokenizer, request.subjects, data, kind, way)
        return await negotiation.admit_as(request.event), negotiation.sending


class _Negotiation:
    """One request in its current form."""

    def __init__(
        self,
        runtime: Runtime,
        asking: RequestPlanner,
        tokenizer: Tokenizer,
        subjects: Subjects,
        data: dict[str, Any],
        kind: str,
        only: Deployment | None = None,
    ) -> None:
        self._runtime = runtime
        self._asking = asking
        self._tokenizer = tokenizer
        self._subjects = subjects
        self._data = data
        self._kind = kind
        self._only = only
        self._fewer_tokens = 0
        self._thinks = True
        self.sending: Sending | None = None
        self._ask = self._read()

    def _read(self) -> Ask:
        if self.sending is not None and self.sending.injected is not None:
            # Remove our own limit: it is a different one for another model, or with less room.
            bounds.take_out_output(self._kind, self._data, self.sending.injected[0])
        asked = self._asking.read(
            self._subjects,
            self._data,
            self._kind,
            fewer_tokens=self._fewer_tokens,
            only=self._only,
            thinks=self._thinks,
        )
        self.sending = asked.sending
        return asked.ask

    async def admit(self) -> Decision:
        admission = self._runtime.admission
        decision = await admission.admit(self._ask, tightened=self._tightened, downgraded=self._downgraded)
        if isinstance(decision.outcome, Refusal):
            decision = await self._with_less_room_for_thoughts(decision, decision.outcome)
        if self._runtime.config.admission.on_short_budget == "clamp":
            return await self._shorten(decision)
        return decision

    async def admit_as(self, event: UsageEvent) -> Decision:
        """Decide again under the id of the first admission, after its holds were released."""
        draft = self._ask.draft
        self._ask = self._ask._replace(
            draft=draft._replace(
                event_id=event.event_id,
                call_id=event.call_id,
                requested_model=event.requested_model,
                clamped_to=event.clamped_to,
                downgraded_by=event.downgraded_by,
                injected_output_tokens=event.injected_output_tokens,
            ),
            is_downgraded=True,
        )
        return await self._runtime.admission.admit(self._ask, tightened=self._tightened)

    async def _with_less_room_for_thoughts(self, decision: Decision, refusal: Refusal) -> Decision:
        """Retry with the ordinary output limit if ours, which leaves room for thinking, does not fit.

        Not done if the client sets the output limit or the thinking itself.
        """
        injected = self.sending.injected if self.sending is not None else None
        ordinary = self._runtime.config.admission.output_tokens_of(self._ask.draft.requested_model or "")
        if injected is None or refusal.reason not in _CUTTABLE or injected[1] <= ordinary:
            return decision
        if bounds.names_any(self._data, ("thinking",)):
            return decision
        self._thinks = False
        self._ask = self._read()._replace(is_downgraded=self._ask.is_downgraded)
        return await self._runtime.admission.admit(self._ask, tightened=self._tightened, downgraded=self._downgraded)

    async def _tightened(self, ask: Ask, obstacle: Refusal | Downgrade) -> Ask | None:
        """Count the request's texts with the provider's tokenizer, if that can make the request fit."""
        demand = obstacle.demand
        if ask.input_tokens is None or demand is None or demand.limit.unit not in _INPUT_UNITS:
            return None
        if isinstance(obstacle, Refusal) and obstacle.reason not in _CUTTABLE:
            return None
        room = maximum = demand.maximum or 0
        if demand.amount <= maximum:
            # The amount fits the maximum, so compare it with the unspent rest. A larger amount is compared with the
            # whole maximum: the count decides whether the request is too large or the money is spent.
            room -= obstacle.balance.spent
        self._fewer_tokens = most_savings(self._data)
        encoding = self._asking.encoding(self._subjects, self._data) if self._fewer_tokens else None
        if encoding is None or not self._fits(self._read(), demand, room):
            self._fewer_tokens = 0
            return None
        self._fewer_tokens = await self._tokenizer.savings(self._data, encoding)
        self._ask = self._read()._replace(is_downgraded=ask.is_downgraded)
        return self._ask

    async def _downgraded(self, ask: Ask, obstacle: Refusal | Downgrade) -> Ask | None:
        if not isinstance(obstacle, Downgrade):
            return None
        limit = obstacle.demand.limit.name
        log.info("request.downgraded", limit=limit, user=ask.subjects.user, model=obstacle.model)
        self._data["model"] = obstacle.model
        # The other model may use a different tokenizer.
        self._fewer_tokens = 0
        again = self._read()
        draft = again.draft._replace(requested_model=ask.draft.requested_model, downgraded_by=limit)
        self._ask = again._replace(draft=draft)
        return self._ask

    async def _shorten(self, decision: Decision) -> Decision:
        """Ask for a shorter answer, and retry if another limit has less room or other requests were faster."""
        has_waited = False
        for _ in range(_MOST_CUTS):
            refusal = decision.outcome
            if not isinstance(refusal, Refusal) or refusal.demand is None:
                break
            left = (refusal.demand.maximum or 0) - refusal.balance.spent
            cut = self._cut(refusal, left - refusal.balance.reserved)
            waits = cut is None and not has_waited
            if waits:
                # Other requests hold the remaining amount, and there may be room once they settle. Wait for that once.
                has_waited = True
                cut = self._cut(refusal, left)
            if cut is None:
                break
            self._ask = cut
            decision = await self._runtime.admission.admit(cut, patient=waits)
        return decision

    def _cut(self, refusal: Refusal, room: int) -> Ask | None:
        """Ask for the longest answer that fits into `room` of the limit that refused; None if it would be too short."""
        ask, demand = self._ask, refusal.demand
        if demand is None or refusal.reason not in _CUTTABLE or demand.limit.unit not in _OUTPUT_UNITS:
            return None
        if not ask.output_tokens or bounds.names_any(self._data, _ALL_OR_NOTHING):
            return None
        longest, low, high = None, SHORTEST_ANSWER, ask.output_tokens - 1
        while low <= high:
            # Try the shortest first: it usually decides.
            middle = low if longest is None else (low + high) // 2
            shorter = self._with_output(middle)
            if shorter is None:
                return None
            if (shorter.output_tokens or 0) >= ask.output_tokens or not self._fits(shorter, demand, room):
                high = middle - 1
            else:
                longest, low = shorter, middle + 1
        if longest is None:
            return None
        # The body has the last length that was tried, which may not be the longest that fits.
        return self._with_output(longest.draft.clamped_to or 0)

    def _with_output(self, tokens: int) -> Ask | None:
        """Read the request with another output limit; None if it cannot be set."""
        sending = self.sending
        if sending is None or sending.field is None:
            return None
        self.sending = sending._replace(injected=None)
        if not bounds.inject_output(self._kind, self._data, sending.field, tokens, over_all=True):
            return None
        again, draft = self._read(), self._ask.draft
        # The start is now, not at the arrival: the request may have waited.
        draft = draft._replace(started_at=again.draft.started_at, clamped_to=tokens, injected_output_tokens=None)
        return again._replace(draft=draft, is_downgraded=draft.downgraded_by is not None)

    def _fits(self, ask: Ask, refused: Requirement, room: int) -> bool:
        """Whether the limit that refused has room for the request in its new form."""
        demands, _ = requirements_of(ask, ask.primary, self._runtime.limits, "charge")
        return all(
            demand.amount <= room
            for demand in demands
            if (demand.limit.key, demand.subject) == (refused.limit.key, refused.subject)
        )
