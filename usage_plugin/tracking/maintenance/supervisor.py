"""Supervise background work in its own thread and restart it after a failure.

Failed work is restarted after a pause, which grows until an attempt succeeds. If a step hangs, its thread is abandoned
with everything that it has open, since a thread cannot be stopped from outside. Then the work is restarted too. So a
step that completes after it was abandoned must be harmless.
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
STEP_TIMEOUT = 30.0
MOST_LEFT_BEHIND = 8
"""The maximum number of abandoned threads. At that number the work is not restarted until one of them ends, so that
hanging threads do not accumulate."""

log = get_logger()


class AbandonedError(Exception):
    """This attempt was abandoned, and another has replaced it."""


class Attempt:
    """One run of the work. Through it the work reports its progress, and is notified that it must end."""

    def __init__(self) -> None:
        """Start the first step: opening connections is monitored too."""
        self.error: BaseException | None = None
        self.has_succeeded = False
        self._step_since: float | None = time.monotonic()
        self._is_left_behind = False
        self._told_to_end: Future[None] = Future()
        self._ending: asyncio.Future[None] | None = None

    @property
    def is_ending(self) -> bool:
        """Whether the work must end."""
        return self._told_to_end.done()

    def step(self) -> None:
        """Start a step, which may take up to `STEP_TIMEOUT` seconds.

        Raises:
            LeftBehindError: the attempt was abandoned before this step.
        """
        if self._is_left_behind:
            raise AbandonedError
        self._step_since = time.monotonic()

    def succeed(self) -> None:
        """Report that the work succeeds, which resets the pause between attempts."""
        self.step()
        self.has_succeeded = True

    async def pause(self, seconds: float) -> None:
        """Wait for this time, or until the work must end. A pause never counts as hanging."""
        if self._ending is None:
            self._ending = asyncio.wrap_future(self._told_to_end)
        self._step_since = None
        await asyncio.wait([self._ending], timeout=seconds)
        self.step()

    def end(self) -> None:
        """Request the work to end."""
        if not self._told_to_end.done():
            self._told_to_end.set_result(None)

    def abandon(self) -> None:
        """Abandon the attempt."""
        self._is_left_behind = True
        self.end()

    def hangs(self) -> bool:
        """Whether the current step has taken longer than `STEP_TIMEOUT` seconds."""
        since = self._step_since
        return since is not None and time.monotonic() - since > STEP_TIMEOUT


class SupervisedWork:
    """Keep work running. Not thread-safe: only one thread may call it."""

    def __init__(self, name: str, work: Callable[[Attempt], Coroutine[Any, Any, None]]) -> None:
        """Set the work, which runs in its own event loop, and a name for its threads."""
        self._name = name
        self._work = work
        self._attempt: Attempt | None = None
        self._thread: threading.Thread | None = None
        self._left_behind: list[threading.Thread] = []
        self._pause = FIRST_PAUSE
        self._next = 0.0
        self.problem: str | None = None
        """The reason why the work fails at the moment; None while it succeeds."""

    def watch(self) -> None:
        """Start the work, or restart it if it failed or hangs. Call this several times a second."""
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
            attempt.abandon()
            self._left_behind.append(thread)
            self._failed(f"no answer for {STEP_TIMEOUT:.0f} s", "Timeout")

    def end(self, seconds: float) -> None:
        """Let the work run its final steps for at most this time, then abandon it.

        An attempt that has failed, or fails just then, does not run them. Another attempt follows without a pause.
        """
        give_up_at = time.monotonic() + seconds
        error = self._end_attempt(give_up_at) and self._end_attempt(give_up_at)
        if error:
            log.error("background.interrupted", work=self._name, message=str(error))

    def abandon(self) -> None:
        """Abandon the current attempt, if there is one: another process does this work from now on."""
        if self._attempt is not None and self._thread is not None:
            self._attempt.abandon()
            self._left_behind.append(self._thread)
            self._attempt = self._thread = None
            self.problem = None

    def _end_attempt(self, give_up_at: float) -> BaseException | None:
        """Let the current attempt end, or a new one if there is none. Return its error, if it failed."""
        if time.monotonic() < give_up_at:
            self.watch()
            if self._attempt is None and len(self._left_behind) < MOST_LEFT_BEHIND:
                self._begin()
        if self._attempt is None or self._thread is None:
            return None
        self._attempt.end()
        self._thread.join(max(0.0, give_up_at - time.monotonic()))
        if self._thread.is_alive():
            self._attempt.abandon()
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
        except AbandonedError:
            log.info("background.came_back_late", work=self._name)
        except UsagePluginError as error:
            attempt.error = error
        except BaseException as error:
            # Our own bug, or a plugin's: the traceback shows which.
            log.exception("background.failed", work=self._name)
            attempt.error = error

    def _failed(self, message: str, error: str) -> None:
        log.error("background.interrupted", work=self._name, error=error, message=message, again_in_seconds=self._pause)
        self.problem = message
        self._attempt = self._thread = None
        self._next = time.monotonic() + self._pause
        self._pause = min(LONGEST_PAUSE, self._pause * 2)
