"""The request ledger on a ledger across a network: batches of verbs, one of them under way at a time.

All verbs that arrive while a batch is under way go with the next. So an account that every request of a fleet uses
changes once for each batch and not for each request. A task of its own talks to the server. So a request that is
cancelled while it awaits its reservation cannot shift the answers of others.

If the server does not answer within `DEADLINE`, every waiting reservation fails, and later ones fail at once. Posted
verbs are kept, and the money of the requests stays held. Attempts at intervals decide when to go on.

A server that has restarted, or another one that has taken over, may lack the last changes. Then `KeptVerbs` are sent
again, and the server admits no reservation until all workers have done so.

It is a sibling of `local_request_ledger`, in the same room: both decide about bounds and about giving up, and neither
knows an engine. Engines implement `domain.ledger_batch.LedgerTransport`.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from usage_plugin.domain.ledger import NotSettled
from usage_plugin.domain.ledger_batch import Abandon, Free, Record, Release, Reserve, Settle
from usage_plugin.domain.request_ledger import RequestLedger
from usage_plugin.errors import LedgerBusyError, LedgerError, LedgerReplacedError, WorkerLostError
from usage_plugin.log import get_logger, short_error
from usage_plugin.tracking.admission.batch_statistics import BatchStatistics, BatchSummary
from usage_plugin.tracking.admission.kept_verbs import KeptVerbs
from usage_plugin.tracking.admission.posted_verbs import (
    PostedVerb,
    PostedVerbs,
    WaitingReservation,
    WaitingSettlement,
)
from usage_plugin.tracking.admission.single_call import SingleCall

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from usage_plugin.domain.ledger import Account, AccountKey, Hold, Reserved
    from usage_plugin.domain.ledger_batch import Answer, LedgerTransport, Verb
    from usage_plugin.domain.request_ledger import PostedSettlement
    from usage_plugin.tracking.admission.posted_verbs import WaitingVerb
    from usage_plugin.tracking.ledger_thread import LedgerThread

ResultT = TypeVar("ResultT")

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
_CLOSED_PAUSE = 0.02
"""Seconds between two batches while the ledger admits no reservation of this worker."""

_NOT_YET = (LedgerBusyError, WorkerLostError)
"""Answers to a reservation that the ledger has not done, and may do soon."""

_MUST_REASSERT = (LedgerReplacedError, WorkerLostError)

log = get_logger()


class RemoteRequestLedger(RequestLedger):
    """Sends the verbs of the request path in batches."""

    def __init__(
        self, transport: LedgerTransport, location: str, *, worker: Callable[[], str], reader: LedgerThread
    ) -> None:
        """Start with an empty queue.

        Args:
            transport: the connection to the server, which `close` closes.
            location: the address without credentials, for messages.
            worker: returns the present name of this worker, which changes if it is declared dead and joins again.
            reader: reads accounts.
        """
        self._transport = transport
        self._location = location
        self._worker = worker
        self._reader = reader
        self._kept = KeptVerbs()
        self._must_reassert = False
        self._again: list[Verb] | None = None
        """The verbs that are left to be sent again; None while there is nothing to reassert."""
        self._statistics = BatchStatistics()
        self._queue: deque[WaitingVerb] = deque()
        self._posted = PostedVerbs()
        self._waiting = 0
        self._in_doubt: set[str] = set()
        """Ids of reservations that were sent, and that failed."""
        self._key_prefix = secrets.token_hex(6)
        self._keys = 0
        self._running: asyncio.Task[None] | None = None
        self._calls = SingleCall()
        self._failing_since: float | None = None
        self._closed_since: float | None = None
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

    async def accounts(self, limit_key: int, since: int, subject: str) -> Sequence[Account]:
        """Read them in another thread."""
        return await self._reader.run(lambda opened: opened.ledger.accounts(limit_key, since, subject))

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
        await self._calls.close(DEADLINE)
        await self._transport.close()
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
        self._start()

    def _start(self) -> None:
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._run())

    def reassert(self) -> None:
        """Send everything again that the server may have lost, or that it knows under a former name of this worker."""
        if not self._is_closed:
            self._must_reassert = True
            self._start()

    def summary(self) -> BatchSummary:
        """Return the state of the batches; from any thread."""
        return self._statistics.summary(pending=self.pending, is_reachable=not self._is_away)

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
        now = asyncio.get_running_loop().time()
        again: list[WaitingVerb] = []
        for waiting, answer in zip(batch, answers, strict=True):
            self._kept.note(waiting.verb, answer, waiting.size, now)
            is_finished = True
            try:
                if isinstance(waiting, WaitingReservation) and self._is_not_yet(waiting, answer, now):
                    again.append(waiting)
                    continue
                is_finished = waiting.finish(answer)
            except Exception:
                # An error of a subscriber must not take the answers of others.
                log.exception("ledger.answer_failed", event_id=waiting.verb.event_id)
            if not is_finished:
                again.append(waiting)
            elif isinstance(waiting, PostedVerb):
                self._posted.remove(waiting)
        self._queue.extendleft(reversed(again))

    def _is_not_yet(self, waiting: WaitingReservation, answer: Answer, now: float) -> bool:
        """Whether a reservation goes on waiting, until the ledger admits it or the deadline is over."""
        if not isinstance(answer, _NOT_YET):
            self._closed_since = None
            return False
        if self._closed_since is None:
            self._closed_since = now
        if now >= self._closed_since + DEADLINE or now >= waiting.since + DEADLINE:
            return False
        waiting.wait_for(self._worker())
        return True

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
        while self._queue or self._is_away or self._must_reassert or self._again is not None:
            began = time()
            if await self._turn(began):
                self._succeeded(time())
                if self._closed_since is not None and self._queue:
                    await asyncio.sleep(_CLOSED_PAUSE)
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

    async def _turn(self, began: float) -> bool:
        """Send the next batch, after everything that must be sent again; return whether that succeeded."""
        deadline = self._deadline(began)
        while True:
            if (self._must_reassert or self._again is not None) and not await self._reassert(deadline):
                return False
            batch, length = self._next_batch()
            if not batch and not self._is_away:
                self._finish((), (), length)
                return True
            sent = asyncio.get_running_loop().time()
            answers = await self._send(batch, deadline)
            if not isinstance(answers, LedgerError):
                self._statistics.add(len(batch), asyncio.get_running_loop().time() - sent)
                self._finish(batch, answers, length)
                return True
            if not self._must_reassert:
                return False

    async def _reassert(self, deadline: float) -> bool:
        """Send the kept verbs again, and state that it is done; return whether that succeeded. It can be continued."""
        worker = self._worker()
        if self._must_reassert:
            self._must_reassert = False
            self._transport.accept()
            self._again = self._kept.verbs(worker, asyncio.get_running_loop().time())
            log.warning("ledger.sending_again", ledger=self._location, verbs=len(self._again), worker=worker)
        while self._again:
            chunk = self._again[:MOST_IN_BATCH]
            answers = await self._call(lambda chunk=chunk: self._answers(chunk), deadline)  # type: ignore[misc]
            if isinstance(answers, LedgerError):
                return False
            if lost := next((answer for answer in answers if isinstance(answer, WorkerLostError)), None):
                self._must_reassert, self._error = True, lost
                return False
            # The server has lost the reservation too, but the usage is owed.
            unknown: list[Verb] = [
                Record(*verb)
                for verb, answer in zip(chunk, answers, strict=True)
                if isinstance(verb, Settle) and answer is NotSettled.UNKNOWN
            ]
            self._again[: len(chunk)] = unknown
        if await self._call(lambda: self._transport.reasserted(worker), deadline) is not None:
            return False
        self._again = None
        return True

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

    async def _send(self, batch: Sequence[WaitingVerb], deadline: float) -> Sequence[Answer] | LedgerError:
        """Send a batch, and return the answers, or an error."""
        first_sent = [waiting for waiting in batch if not waiting.may_be_done]
        for waiting in first_sent:
            waiting.may_be_done = True
        answers = await self._call(lambda: self._answers([waiting.verb for waiting in batch]), deadline)
        if isinstance(answers, LedgerBusyError | LedgerReplacedError):
            for waiting in first_sent:
                waiting.may_be_done = False
        return answers

    async def _call(self, call: Callable[[], Coroutine[Any, Any, ResultT]], deadline: float) -> ResultT | LedgerError:
        """Return the result of a call to the server, or an error, also if there is no answer until the deadline."""
        try:
            return await self._calls.run(call, deadline)
        except asyncio.TimeoutError:
            silence = LedgerError(f"no answer within {DEADLINE:.0f} s")
            # The last repetition may have had little time, so an earlier error says more.
            self._error = self._error or silence
            return silence
        except LedgerError as error:
            self._must_reassert = self._must_reassert or isinstance(error, _MUST_REASSERT)
            self._error = error
            return error

    async def _answers(self, verbs: Sequence[Verb]) -> Sequence[Answer]:
        answers = await self._transport.send(verbs)
        if len(answers) != len(verbs):
            raise LedgerError(f"{len(verbs)} verbs were sent, and {len(answers)} answers came")
        return answers

    def _error_facts(self) -> dict[str, str]:
        return short_error(self._error) if self._error is not None else {}
