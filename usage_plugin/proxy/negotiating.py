"""Negotiating: what becomes of a request that may not start as it was asked.

A limit may send it to another model, once; and where the operator allows it, its answer is cut to what the money
reaches for. Each time the request is read anew, since its body has changed, and admission decides again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from usage_plugin.log import get_logger
from usage_plugin.proxy import bounds
from usage_plugin.tracking.admission import Decision, Downgrade, Refusal
from usage_plugin.tracking.demands import demands_of

if TYPE_CHECKING:
    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.proxy.asking import Asking
    from usage_plugin.runtime import Runtime
    from usage_plugin.tracking.demands import Ask

SHORTEST_ANSWER = 256
"""Tokens: a shorter answer is of no use to anybody."""

_MOST_CUTS = 4
_CUTTABLE = frozenset({"spent", "busy", "too_large"})
_OUTPUT_UNITS = frozenset({"usd", "total_tokens", "output_tokens"})
# Half of such an answer is worth nothing, or is spent before the answer begins.
_ALL_OR_NOTHING = (
    "tools", "functions", "response_format", "thinking", "reasoning", "reasoning_effort", "text", "output_format",
    "output_config", "responseSchema", "response_schema", "responseJsonSchema", "response_json_schema",
    "responseMimeType", "response_mime_type", "thinkingConfig", "thinking_config",
)  # fmt: skip

log = get_logger()


class Negotiator:
    """Admits requests; one for each handler."""

    def __init__(self, runtime: Runtime, asking: Asking) -> None:
        """Take the running parts."""
        self._runtime = runtime
        self._asking = asking

    async def admit(self, subjects: Subjects, data: dict[str, Any], kind: str) -> Decision:
        """Decide on a request; its body may be another model's, or ask for a shorter answer, afterwards.

        Raises:
            ProxyException: the request cannot be taken as it is written.
        """
        ask = self._asking.ask(subjects, data, kind)

        def downgraded(downgrade: Downgrade) -> Ask:
            nonlocal ask
            ask = self._downgraded(ask, downgrade, data, kind)
            return ask

        decision = await self._runtime.admission.admit(ask, downgraded)
        if self._runtime.config.admission.on_short_budget == "clamp":
            return await self._shorten(ask, decision, data, kind)
        return decision

    async def _shorten(self, ask: Ask, decision: Decision, data: dict[str, Any], kind: str) -> Decision:
        """Ask for a shorter answer, and again where another limit has room for less or others were faster."""
        has_waited = False
        for _ in range(_MOST_CUTS):
            refusal = decision.outcome
            if not isinstance(refusal, Refusal) or refusal.demand is None:
                break
            left = (refusal.demand.maximum or 0) - refusal.balance.spent
            cut = self._cut(ask, refusal, left - refusal.balance.reserved, data, kind)
            waits = cut is None and not has_waited
            if waits:
                # Others hold what is left: once they settle there may be room. That is waited for once.
                has_waited = True
                cut = self._cut(ask, refusal, left, data, kind)
            if cut is None:
                break
            ask = cut
            decision = await self._runtime.admission.admit(ask, patient=waits)
        return decision

    def _downgraded(self, ask: Ask, downgrade: Downgrade, data: dict[str, Any], kind: str) -> Ask:
        log.info("request.downgraded", limit=downgrade.limit, user=ask.subjects.user, model=downgrade.model)
        data["model"] = downgrade.model
        again = self._asking.ask(ask.subjects, data, kind)
        draft = again.draft._replace(requested_model=ask.draft.requested_model, downgraded_by=downgrade.limit)
        return replace(again, draft=draft)

    def _cut(self, ask: Ask, refusal: Refusal, room: int, data: dict[str, Any], kind: str) -> Ask | None:
        """Ask for the longest answer that takes so much of the limit which refused; None if none is of use."""
        demand = refusal.demand
        if demand is None or refusal.reason not in _CUTTABLE or demand.limit.unit not in _OUTPUT_UNITS:
            return None
        if not ask.output_tokens or bounds.names_any(data, _ALL_OR_NOTHING):
            return None
        longest, low, high = None, SHORTEST_ANSWER, ask.output_tokens - 1
        while low <= high:
            # The shortest first: mostly it decides.
            middle = low if longest is None else (low + high) // 2
            shorter = self._with_output(ask, middle, data, kind)
            if shorter is None:
                return None
            if (shorter.output_tokens or 0) >= ask.output_tokens or not self._fits(shorter, refusal, room):
                high = middle - 1
            else:
                longest, low = shorter, middle + 1
        if longest is None:
            return None
        # The body has the last length that was tried, not the one that was found.
        return self._with_output(ask, longest.draft.clamped_to or 0, data, kind)

    def _with_output(self, ask: Ask, tokens: int, data: dict[str, Any], kind: str) -> Ask | None:
        """Read the request with another output bound; None if it takes none."""
        if not bounds.inject_output(kind, data, tokens):
            return None
        again = self._asking.ask(ask.subjects, data, kind)
        # It is admitted now, not when it came: it may have waited.
        draft = ask.draft._replace(
            started_at=again.draft.started_at, clamped_to=tokens, injected_output_tokens=None
        )  # fmt: skip
        return replace(again, draft=draft, is_downgraded=ask.draft.downgraded_by is not None)

    def _fits(self, ask: Ask, refusal: Refusal, room: int) -> bool:
        """Say whether the limit that refused has room for the request as it is now."""
        demands, _ = demands_of(ask, ask.primary, self._runtime.limits, "charge")
        refused = refusal.demand
        return refused is not None and all(
            demand.amount <= room
            for demand in demands
            if (demand.limit.key, demand.subject) == (refused.limit.key, refused.subject)
        )
