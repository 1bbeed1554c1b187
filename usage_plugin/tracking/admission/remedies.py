"""Admit a request; while it does not fit, apply the remedies in order, and decide again.

1. Tokenise: bytes bound the input at about four times its tokens, so its tokens are counted.
2. Downgrade: a limit may send it to another model, once.
3. Wait: other requests hold the amount, and may settle within `admission.max_wait`.
4. Shorten: it asks for a shorter answer. The room that we ourselves left for thinking is given up first. Where
   `admission.on_short_budget` is `clamp`, the answer is cut to the length that the remaining amount pays for.

The remedies change the request by `Alternatives`, which plans it in another form. Without them a request only waits.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Protocol

from usage_plugin.domain.windows import MICROSECONDS
from usage_plugin.errors import UsagePluginError
from usage_plugin.tracking.admission.decide import obstacle_of
from usage_plugin.tracking.admission.decisions import Decision, Downgrade, Refusal

if TYPE_CHECKING:
    from usage_plugin.domain.clock import Clock
    from usage_plugin.tracking.admission.decide import Decider
    from usage_plugin.tracking.admission.demands import Ask

MOST_WAITING = 256
"""The maximum number of requests of one worker that wait for others to settle. More are refused as `busy` at once."""

FIRST_LOOK = 0.01
"""The pause before a waiting request is first tried again, in seconds."""

_RAREST_LOOK = 0.1
_MOST_CUTS = 4
_BY_SIZE = frozenset({"spent", "busy", "too_large"})
"""The reasons for which a smaller request may fit."""


class Alternatives(Protocol):
    """Plans one request in other forms. Each method returns None if there is no such form, or if it cannot fit."""

    async def tokenised(self, ask: Ask, obstacle: Refusal | Downgrade) -> Ask | None:
        """Return the request with its tokens counted."""

    def downgraded(self, ask: Ask, obstacle: Downgrade) -> Ask | None:
        """Return the request for the model that the limit names."""

    def without_thinking_room(self) -> Ask | None:
        """Return the request with our ordinary output limit, which leaves no room for thinking."""

    def shortened(self, ask: Ask, obstacle: Refusal, room: int) -> Ask | None:
        """Return the request with the longest answer that `room` pays for, in the unit of the limit that refused."""


class Admission:
    """Admits or refuses the requests of a worker."""

    def __init__(self, decider: Decider, clock: Clock) -> None:
        """Start without a waiting request."""
        self.decider = decider
        self._clock = clock
        self.waiting = 0
        """The number of requests that wait for others to settle."""

    async def admit(self, ask: Ask, alternatives: Alternatives | None = None) -> Decision:
        """Decide on a request, with every remedy that applies.

        Args:
            ask: The request as it arrived.
            alternatives: Its other forms. Without it, a limit with `action: downgrade` only counts.
        """
        decision = await self.decider.decide(ask)
        if obstacle_of(decision) is not None:
            remedies = _Remedies(self, self._clock, ask, alternatives)
            try:
                while (obstacle := obstacle_of(decision)) and (again := await remedies.next(obstacle)):
                    decision = await self.decider.decide(again)
            finally:
                remedies.close()
        if isinstance(decision, Downgrade):
            raise UsagePluginError("A request was downgraded twice.")
        return decision


class _Remedies:
    """The remedies of one request that does not fit."""

    def __init__(self, admission: Admission, clock: Clock, ask: Ask, alternatives: Alternatives | None) -> None:
        self._admission = admission
        self._clock = clock
        self._ask = ask
        self._alternatives = alternatives
        self._has_tokenised = False
        self._has_room_for_thinking = True
        self._may_wait = True
        self._wants_unspent = False
        self._waits_until: float | None = None
        self._pause = FIRST_LOOK
        self._cuts = 0

    async def next(self, obstacle: Refusal | Downgrade) -> Ask | None:
        """Return the request to decide on next; None if no remedy is left."""
        if isinstance(obstacle, Refusal) and obstacle.reason not in _BY_SIZE:
            return None
        for remedy in (self._tokenise, self._downgrade, self._wait, self._shorten):
            ask = await remedy(obstacle)
            if ask is not None:
                self._ask = ask
                return ask
        return None

    def close(self) -> None:
        """Give the place among the waiting requests back."""
        if self._waits_until is not None:
            self._admission.waiting -= 1

    async def _tokenise(self, obstacle: Refusal | Downgrade) -> Ask | None:
        if self._alternatives is None or self._has_tokenised:
            return None
        self._has_tokenised = True
        return await self._alternatives.tokenised(self._ask, obstacle)

    async def _downgrade(self, obstacle: Refusal | Downgrade) -> Ask | None:
        if not isinstance(obstacle, Downgrade):
            return None
        # The other model may have another tokenizer, and room for the whole answer once other requests settle.
        self._has_tokenised = False
        self._may_wait = True
        other = self._alternatives.downgraded(self._ask, obstacle) if self._alternatives else None
        return (other or self._ask)._replace(is_downgraded=True)

    async def _wait(self, obstacle: Refusal | Downgrade) -> Ask | None:
        if not self._may_wait or not is_worth_waiting(obstacle):
            return None
        if self._waits_until is None:
            longest = self._admission.decider.policy.max_wait
            if not longest or self._admission.waiting >= MOST_WAITING:
                return None
            self._admission.waiting += 1
            self._waits_until = time.monotonic() + longest / MICROSECONDS
        left = self._waits_until - time.monotonic()
        if left <= 0:
            return None
        await asyncio.sleep(min(left, self._pause * random.uniform(0.5, 1)))  # noqa: S311  # jitter
        self._pause = next_look(self._pause)
        # The time of admission is now, not the time of arrival: a window may have ended in between.
        return self._ask._replace(draft=self._ask.draft._replace(started_at=self._clock.now()))

    async def _shorten(self, obstacle: Refusal | Downgrade) -> Ask | None:
        if self._alternatives is None or isinstance(obstacle, Downgrade) or obstacle.demand is None:
            return None
        if self._has_room_for_thinking:
            self._has_room_for_thinking = False
            ordinary = self._alternatives.without_thinking_room()
            if ordinary is not None:
                # The tokens may make the smaller request fit.
                self._has_tokenised = False
                return ordinary
        self._cuts += 1
        if self._cuts > _MOST_CUTS:
            return None
        unspent = (obstacle.demand.maximum or 0) - obstacle.balance.spent
        shorter = self._alternatives.shortened(self._ask, obstacle, unspent - obstacle.balance.reserved)
        has_waited = self._waits_until is not None and self._waits_until <= time.monotonic()
        if shorter is None and not (has_waited or self._wants_unspent):
            # Other requests hold the remaining amount, and there may be room once they settle.
            self._wants_unspent = self._may_wait = True
            return self._alternatives.shortened(self._ask, obstacle, unspent)
        # Either it fits now, without waiting, or nothing can be cut. If others were faster, the next turn cuts again.
        self._may_wait = False
        return shorter


def next_look(pause: float) -> float:
    """Return the next pause of a waiting request, in seconds, given the last one."""
    return min(_RAREST_LOOK, pause * 1.5)


def is_worth_waiting(obstacle: Refusal | Downgrade) -> bool:
    """Whether a request would fit once other requests settle. Held amounts are freed soon, spent amounts are not."""
    if isinstance(obstacle, Downgrade) or obstacle.reason != "busy" or obstacle.demand is None:
        return False
    return obstacle.balance.spent + obstacle.demand.amount <= (obstacle.demand.maximum or 0)
