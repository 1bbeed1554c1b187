"""The request ledger on a ledger across a network: batches of verbs, one of them under way at a time.

All verbs that arrive while a batch is under way go with the next. So an account that every request of a fleet uses
changes once for each batch and not for each request. A task of its own talks to the server. So a request that is
cancelled while it awaits its reservation cannot shift the answers of others.

If the server does not answer within `DEADLINE`, every waiting reservation fails, and later ones fail at once. Posted
verbs are kept, and the money of the requests stays held. Attempts at intervals decide when to go on.

It is a sibling of `local_request_ledger`, in the same room: both decide about bounds and about giving up, and neither
knows an engine. Engines implement `domain.ledger_batch.LedgerTransport`.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from usage_plugin.domain.ledger_batch import Abandon, Free, Release, Reserve
from usage_plugin.domain.request_ledger import RequestLedger
from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.log import get_logger, short_error
from usage_plugin.tracking.admission.posted_verbs import (
    PostedVerb,
    PostedVerbs,
    WaitingReservation,
    WaitingSettlement,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.ledger import AccountKey, Hold, Reserved
    from usage_plugin.domain.ledger_batch import Answer, LedgerTransport, Verb
    from usage_plugin.domain.request_ledger import PostedSettlement
    from usage_plugin.tracking.admission.posted_verbs import WaitingVerb

DEADLINE = 1.0
"""Seconds for the answer to a batch, with all its repetitions. Then the server counts as unreachable."""

PROBE_INTERVAL = 0.5
"""Seconds between the beginnings of two attempts while the server is unreachable."""

MOST_WAITING = 10_000
"""The maximum number of reservations that wait; the next one fails at once."""

MOST_IN_BATCH = 128
MOST_BYTES_IN_BATCH = 2**20
"""The bounds of a batch, so that a backlog neither stalls the server nor the event loop. One verb may be larger."""

_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1

log = get_logger()


class RemoteRequestLedger(RequestLedger):
    """Sends the verbs of the request path in batches."""

    def __init__(self, transport: LedgerTransport, location: str) -> None:
        """Start with an empty queue.

        Args:
            transport: the connection to the server. It belongs to the caller, who closes it after this object.
            location: the address without credentials, for messages.
        """
        self._transport = transport
        self._location = location
        self._queue: deque[WaitingVerb] = deque()
        self._posted = PostedVerbs()
        self._waiting = 0
        self._in_doubt: set[str] = set()
        """Ids of reservations that were sent, and that failed."""
        self._key_prefix = secrets.token_hex(6)
        self._keys = 0
        self._running: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[Sequence[Answer]] | None = None
        self._failing_since: float | None = None
        self._error: LedgerError | None = None
        self._pause = _FIRST_PAUSE
        self._is_away = False
        self._is_closed = False

    # ── the verbs ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def reserve(self, event_id: str, worker: str, started_at: int, holds: Sequence[Hold], event: str) -> Reserved:
        """Reserve with the next batch; fail at once while the server is unreachable."""
        if self._is_away or self._is_closed:
            raise self._unreachable()
        if self._waiting >= MOST_WAITING:
            raise LedgerError(f"{MOST_WAITING} requests wait for the ledger at {self._location}.")
        waiting = WaitingReservation(Reserve(event_id, worker, started_at, holds, event))
        self._waiting += 1
        self._enqueue(waiting)
        try:
            answer = await waiting.future
        except asyncio.CancelledError:
            if waiting.may_be_done:
                # Nothing would settle it.
                self._post(PostedVerb(Abandon(event_id)))
            raise
        finally:
            self._waiting -= 1
        if isinstance(answer, LedgerError):
            if waiting.may_be_done:
                self._in_doubt.add(event_id)
            raise answer
        return answer

    def abandon(self, event_id: str) -> None:
        """Post it, unless the reservation was never sent: an outage would fill the queue."""
        if event_id in self._in_doubt:
            self._in_doubt.discard(event_id)
            self._post(PostedVerb(Abandon(event_id)))

    async def release(self, event_id: str) -> bool:
        """Post it. A later reservation of the same id keeps its place behind it, so there is nothing to wait for."""
        return self._post(PostedVerb(Release(event_id)))

    def free(self, event_id: str, accounts: Sequence[AccountKey]) -> None:
        """Post it; without room the holds are freed when the request is settled."""
        self._post(PostedVerb(Free(event_id, accounts)))

    def settle(self, settlement: PostedSettlement) -> None:
        """Post it; without room it is given up, and the hold is charged when this worker ends."""
        self._in_doubt.discard(settlement.event_id)
        self._keys += 1
        self._post(WaitingSettlement(settlement, f"{self._key_prefix}{self._keys:x}"))

    def withdraw(self, event_id: str) -> bool:
        """Remove a posted settlement that was never sent. One that was sent is retried, since it may be written."""
        for waiting in self._queue:
            if isinstance(waiting, WaitingSettlement) and waiting.verb.event_id == event_id:
                if waiting.may_be_done:
                    return False
                self._queue.remove(waiting)
                self._posted.remove(waiting)
                return True
        return False

    @property
    def pending(self) -> int:
        """The number of posted settlements without an answer."""
        return self._posted.settlements

    async def drain(self, seconds: float) -> None:
        """Wait until all verbs that are posted now are answered, for at most this time."""
        with suppress(asyncio.TimeoutError):
            # Not a coroutine, which would begin later, when more has been posted.
            await asyncio.wait_for(self._posted.drained(), seconds)

    async def close(self, seconds: float) -> None:
        """Write the posted verbs, for at most this time; then stop, and report those that are left."""
        await self.drain(seconds)
        self._is_closed = True
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=DEADLINE)
        self._fail_reservations()
        left = list(self._posted)
        if left:
            log.error("ledger.verbs_left", verbs=len(left), settlements=self.pending, ledger=self._location)
        for posted in left:
            self._posted.remove(posted)
            posted.give_up()
        self._queue.clear()

    # ── the queue ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _post(self, posted: PostedVerb) -> bool:
        if self._is_closed or not self._posted.add(posted):
            posted.give_up()
            return False
        self._enqueue(posted)
        return True

    def _enqueue(self, waiting: WaitingVerb) -> None:
        self._queue.append(waiting)
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._run())

    def _next_batch(self) -> tuple[list[WaitingVerb], int]:
        """Return the next batch, and the length of the queue's part that it comes from, which stays in the queue."""
        batch: list[WaitingVerb] = []
        size = length = 0
        for waiting in self._queue:
            if waiting.is_wanted:
                size += waiting.size
                if batch and (len(batch) >= MOST_IN_BATCH or size > MOST_BYTES_IN_BATCH):
                    break
                batch.append(waiting)
            length += 1
        return batch, length

    def _finish(self, batch: Sequence[WaitingVerb], answers: Sequence[Answer], length: int) -> None:
        """Remove an answered part of the queue, and let those who wait go on."""
        for _ in range(length):
            self._queue.popleft()
        again: list[WaitingVerb] = []
        for waiting, answer in zip(batch, answers, strict=True):
            is_finished = True
            try:
                is_finished = waiting.finish(answer)
            except Exception:
                # An error of a subscriber must not take the answers of others.
                log.exception("ledger.answer_failed", event_id=waiting.verb.event_id)
            if not is_finished:
                again.append(waiting)
            elif isinstance(waiting, PostedVerb):
                self._posted.remove(waiting)
        self._queue.extendleft(reversed(again))

    def _fail_reservations(self) -> None:
        """Answer every waiting reservation, and remove it from the queue."""
        reservations = [waiting for waiting in self._queue if isinstance(waiting, WaitingReservation)]
        self._queue = deque(waiting for waiting in self._queue if not isinstance(waiting, WaitingReservation))
        for waiting in reservations:
            waiting.finish(self._unreachable())

    def _unreachable(self) -> LedgerError:
        reason = "it is closed" if self._error is None else self._error.message.rstrip(".")
        return LedgerError(
            f"The ledger at {self._location} does not answer: {reason}.",
            hint=(self._error and self._error.hint) or "Check that its server runs, and that this host reaches it.",
        )

    # ── the task that talks to the server ────────────────────────────────────────────────────────────────────────────

    async def _run(self) -> None:
        """Send batches until the queue is empty and the server is reachable."""
        time = asyncio.get_running_loop().time
        while self._queue or self._is_away:
            batch, length = self._next_batch()
            if not batch and not self._is_away:
                self._finish((), (), length)
                continue
            began = time()
            answers = await self._send(batch, self._deadline(began))
            if answers is not None:
                self._succeeded(time())
                self._finish(batch, answers, length)
                continue
            if not self._is_away:
                if self._failing_since is None:
                    self._failing_since = began
                    log.warning("ledger.batch_failed", ledger=self._location, **self._error_facts())
                if (left := self._failing_since + DEADLINE - time()) > 0:
                    await asyncio.sleep(min(left, self._pause * random.uniform(1, 2)))  # noqa: S311  # jitter
                    self._pause = min(_LONGEST_PAUSE, self._pause * 2)
                    if time() < self._failing_since + DEADLINE:
                        continue
                self._is_away = True
                log.error("ledger.unreachable", ledger=self._location, pending=self.pending, **self._error_facts())
                self._fail_reservations()
            await asyncio.sleep(max(0.0, began + PROBE_INTERVAL - time()))

    def _deadline(self, began: float) -> float:
        """Return the time until which the batch that begins now may take."""
        if self._is_away or self._failing_since is None:
            return began + DEADLINE
        return self._failing_since + DEADLINE

    def _succeeded(self, now: float) -> None:
        """Go on as usual after an answer."""
        if self._is_away and self._failing_since is not None:
            log.warning("ledger.reachable", ledger=self._location, seconds=round(now - self._failing_since, 3))
        self._is_away = False
        self._failing_since = self._error = None
        self._pause = _FIRST_PAUSE

    async def _send(self, batch: Sequence[WaitingVerb], deadline: float) -> Sequence[Answer] | None:
        """Send a batch; None if there is no answer."""
        loop = asyncio.get_running_loop()
        if self._sending is not None:
            # It was cancelled, and has not ended yet: two batches at a time could overtake each other.
            await asyncio.wait([self._sending], timeout=max(0.0, deadline - loop.time()))
            if not self._sending.done():
                return None
        first_sent = [waiting for waiting in batch if not waiting.may_be_done]
        for waiting in first_sent:
            waiting.may_be_done = True
        sending = self._sending = loop.create_task(self._answers([waiting.verb for waiting in batch]))
        try:
            await asyncio.wait([sending], timeout=max(0.0, deadline - loop.time()))
        finally:
            if not sending.done():
                sending.cancel()
                sending.add_done_callback(_retrieve)
        if not sending.done():
            # The last repetition may have had little time, so an earlier error says more.
            self._error = self._error or LedgerError(f"no answer within {DEADLINE:.0f} s")
            return None
        self._sending = None
        if sending.cancelled():
            self._error = LedgerError("the connection was given up")
            return None
        error = sending.exception()
        if error is None:
            return sending.result()
        if isinstance(error, LedgerBusyError):
            for waiting in first_sent:
                waiting.may_be_done = False
        self._error = error if isinstance(error, LedgerError) else LedgerError(f"{type(error).__name__}: {error}")
        return None

    async def _answers(self, verbs: Sequence[Verb]) -> Sequence[Answer]:
        answers = await self._transport.send(verbs)
        if len(answers) != len(verbs):
            raise LedgerError(f"{len(verbs)} verbs were sent, and {len(answers)} answers came")
        return answers

    def _error_facts(self) -> dict[str, str]:
        return short_error(self._error) if self._error is not None else {}


def _retrieve(sending: asyncio.Task[Sequence[Answer]]) -> None:
    """Retrieve the error of a cancelled batch, which asyncio would log otherwise."""
    if not sending.cancelled():
        sending.exception()
