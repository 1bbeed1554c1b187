"""Patience: work that goes on in a thread of its own, whatever becomes of it.

If it fails it is begun anew after a pause, which grows as long as nothing succeeds. If one of its steps hangs, its
thread is left behind with all that it has open, and the work is begun anew as well: a thread cannot be ended from
outside. So the work must be such that a step which comes back to life late does no harm.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from usage_plugin.errors import UsagePluginError
from usage_plugin.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
PATIENCE = 30.0
MOST_LEFT_BEHIND = 8
"""So many threads may hang. After that nothing is begun until one of them ends: they would only become more."""

log = get_logger()


class LeftBehindError(Exception):
    """This attempt was given up; another has taken its place."""


class Attempt:
    """One run of the work, by which the work says how far it is, and learns that it has to end."""

    def __init__(self) -> None:
        """Begin; what the work opens first is a step as well."""
        self.error: BaseException | None = None
        self.has_succeeded = False
        self._step_since: float | None = time.monotonic()
        self._is_left_behind = False
        self._told_to_end: Future[None] = Future()
        self._ending: asyncio.Future[None] | None = None

    @property
    def is_ending(self) -> bool:
        """Whether the work has to end."""
        return self._told_to_end.done()

    def step(self) -> None:
        """Begin a step, which is waited for with patience.

        Raises:
            LeftBehindError: the patience was over before this step.
        """
        if self._is_left_behind:
            raise LeftBehindError
        self._step_since = time.monotonic()

    def succeed(self) -> None:
        """Say that the work works."""
        self.step()
        self.has_succeeded = True

    async def pause(self, seconds: float) -> None:
        """Do nothing for a while, or until told to end."""
        if self._ending is None:
            self._ending = asyncio.wrap_future(self._told_to_end)
        self._step_since = None
        await asyncio.wait([self._ending], timeout=seconds)
        self.step()

    def end(self) -> None:
        """Tell the work to end."""
        if not self._told_to_end.done():
            self._told_to_end.set_result(None)

    def leave_behind(self) -> None:
        """Give the attempt up."""
        self._is_left_behind = True
        self.end()

    def hangs(self) -> bool:
        """Say whether its step takes longer than our patience lasts."""
        since = self._step_since
        return since is not None and time.monotonic() - since > PATIENCE


class Persistent:
    """Keeps some work going. Not thread-safe: one thread calls it."""

    def __init__(self, name: str, work: Callable[[Attempt], Coroutine[Any, Any, None]]) -> None:
        """Take the work, which is run in an event loop of its own, and a name for its threads."""
        self._name = name
        self._work = work
        self._attempt: Attempt | None = None
        self._thread: threading.Thread | None = None
        self._left_behind: list[threading.Thread] = []
        self._pause = FIRST_PAUSE
        self._next = 0.0
        self.problem: str | None = None
        """Why the work does not work at the moment."""

    def watch(self) -> None:
        """See to it that the work goes on; to be called several times a second."""
        now = time.monotonic()
        attempt, thread = self._attempt, self._thread
        if attempt is None or thread is None:
            self._left_behind = [left for left in self._left_behind if left.is_alive()]
            if now >= self._next and len(self._left_behind) < MOST_LEFT_BEHIND:
                self._begin()
            return
        if attempt.has_succeeded:
            attempt.has_succeeded = False
            self._pause = FIRST_PAUSE
            if self.problem:
                log.info("background.works_again", work=self._name, after=self.problem)
            self.problem = None
        if not thread.is_alive():
            self._failed(str(attempt.error or "it ended by itself"), type(attempt.error).__name__)
        elif attempt.hangs():
            attempt.leave_behind()
            self._left_behind.append(thread)
            self._failed(f"no answer for {PATIENCE:.0f} s", "Timeout")

    def end(self, seconds: float) -> None:
        """Let the work do what it does at its end, for so long at most; then it is left behind.

        An attempt that has failed, or fails just then, does not do it: it is followed by another, without a pause.
        """
        give_up_at = time.monotonic() + seconds
        error = self._end_attempt(give_up_at) and self._end_attempt(give_up_at)
        if error:
            log.error("background.interrupted", work=self._name, message=str(error))

    def _end_attempt(self, give_up_at: float) -> BaseException | None:
        """Let an attempt come to its end, one begun for that if there is none; give why it failed."""
        if time.monotonic() < give_up_at:
            self.watch()
            if self._attempt is None and len(self._left_behind) < MOST_LEFT_BEHIND:
                self._begin()
        if self._attempt is None or self._thread is None:
            return None
        self._attempt.end()
        self._thread.join(max(0.0, give_up_at - time.monotonic()))
        if self._thread.is_alive():
            self._attempt.leave_behind()
        return self._attempt.error

    def _begin(self) -> None:
        attempt = Attempt()
        self._attempt = attempt
        self._thread = threading.Thread(
            target=self._run, args=(attempt,), name=f"usage-plugin-{self._name}", daemon=True
        )
        self._thread.start()

    def _run(self, attempt: Attempt) -> None:
        try:
            asyncio.run(self._work(attempt))
        except LeftBehindError:
            log.info("background.came_back_late", work=self._name)
        except UsagePluginError as error:
            attempt.error = error
        except BaseException as error:
            # Our own bug, or a plugin's: the trace tells whose.
            log.exception("background.failed", work=self._name)
            attempt.error = error

    def _failed(self, message: str, error: str) -> None:
        log.error("background.interrupted", work=self._name, error=error, message=message, again_in_seconds=self._pause)
        self.problem = message
        self._attempt = self._thread = None
        self._next = time.monotonic() + self._pause
        self._pause = min(LONGEST_PAUSE, self._pause * 2)
