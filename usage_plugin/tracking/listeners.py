"""Listeners: plugins that are told what happened, each in a thread of its own, off the request path.

Whoever has something to tell has an `Audience`. As long as that is nobody, telling costs one look at an attribute;
else it puts the thing into a bounded queue of each listener. A listener that raises, hangs or is too slow loses what it
could not be told of, which is counted under its name, and touches nothing else. At most once, and not beyond the
process: what waits when it is killed is lost.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from usage_plugin.log import short_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from usage_plugin.domain.alerts import Alert
    from usage_plugin.domain.refusals import RefusedRequest
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.tracking.failures import Failures

MOST_WAITING = 1_000
MOST_BYTES = 8_000_000
"""So much may wait for one hook of one plugin."""

ROUGH_SIZE = 1_000
"""What counts for a thing whose size nobody knows: some names and numbers."""

PATIENCE = 30.0
"""A plugin that has not returned for so many seconds hangs: until it returns, it is told nothing more."""

DRAINING = 2.0
"""So many seconds are left at the end for what waits."""

T = TypeVar("T")


class Audience(Generic[T]):
    """Who is told one kind of thing.

    Attributes:
        anybody: False if that is nobody; to be looked at before anything is made up to be told.
    """

    __slots__ = ("_queues", "anybody")

    def __init__(self, queues: Sequence[_Queue] = ()) -> None:
        """Take the listeners' queues."""
        self._queues = queues
        self.anybody = bool(queues)

    def tell(self, thing: T, size: int = ROUGH_SIZE) -> None:
        """Put a thing of roughly so many bytes into each queue; called from any thread, waits for nobody."""
        for queue in self._queues:
            queue.put(thing, size)


class Hooked(NamedTuple):
    """A plugin's function that is to be called with what there is to tell."""

    plugin: str
    function: Callable[[Any], object]


class Listeners:
    """All plugins that are told anything.

    Attributes:
        alerts: told of thresholds that were passed.
        refusals: told of requests that were refused.
        events: told of events that were recorded.
    """

    def __init__(
        self,
        failures: Failures,
        *,
        alerts: Iterable[Hooked] = (),
        refusals: Iterable[Hooked] = (),
        events: Iterable[Hooked] = (),
    ) -> None:
        """Take the functions; what is rarer goes first where several things wait for one plugin."""
        self._failures = failures
        self._by_plugin: dict[str, _Listener] = {}
        self.alerts: Audience[Alert] = self._audience("usage_threshold_crossed", alerts)
        self.refusals: Audience[RefusedRequest] = self._audience("usage_request_refused", refusals)
        self.events: Audience[UsageEvent] = self._audience("usage_event_recorded", events)

    def _audience(self, hook: str, hooked: Iterable[Hooked]) -> Audience[Any]:
        queues = []
        for plugin, function in hooked:
            if plugin not in self._by_plugin:
                self._by_plugin[plugin] = _Listener(plugin, self._failures)
            queues.append(self._by_plugin[plugin].listen(hook, function))
        return Audience(queues)

    def start(self) -> None:
        """Begin to tell."""
        for listener in self._by_plugin.values():
            listener.start()

    def stop(self, seconds: float = DRAINING) -> None:
        """Tell what waits and end; what cannot be told in time is counted as not told."""
        for listener in self._by_plugin.values():
            listener.end()
        deadline = time.monotonic() + seconds
        for listener in self._by_plugin.values():
            listener.leave(max(0.0, deadline - time.monotonic()))


class _Queue:
    """What waits for one hook of one plugin."""

    def __init__(self, hook: str, function: Callable[[Any], object], listener: _Listener) -> None:
        self.hook = hook
        self.function = function
        self._listener = listener
        self._lock = threading.Lock()
        self._things: deque[tuple[Any, int]] = deque()
        self._bytes = 0

    def put(self, thing: Any, size: int) -> None:
        if self._listener.hangs:
            self.failed({"problem": "it hangs"})
            return
        with self._lock:
            fits = len(self._things) < MOST_WAITING and self._bytes + size <= MOST_BYTES
            if fits:
                self._things.append((thing, size))
                self._bytes += size
        if fits:
            self._listener.wake()
        else:
            self.failed({"problem": "too much waits for it"})

    def take(self) -> Any | None:
        with self._lock:
            if not self._things:
                return None
            thing, size = self._things.popleft()
            self._bytes -= size
            return thing

    def drop(self) -> None:
        with self._lock:
            left = len(self._things)
            self._things.clear()
            self._bytes = 0
        if left:
            self.failed({"problem": "the worker has ended"}, left)

    def failed(self, why: dict[str, Any], times: int = 1) -> None:
        self._listener.failures.add("not_told", self._listener.plugin, self.hook, why, times)


class _Listener:
    """One plugin's thread, and what waits for it."""

    def __init__(self, plugin: str, failures: Failures) -> None:
        self.plugin = plugin
        self.failures = failures
        self._queues: list[_Queue] = []
        self._arrived = threading.Event()
        self._busy_since: float | None = None
        self._is_ending = False
        self._is_left = False
        self._thread = threading.Thread(target=self._work, name=f"usage-plugin-tells-{plugin}", daemon=True)

    def listen(self, hook: str, function: Callable[[Any], object]) -> _Queue:
        queue = _Queue(hook, function, self)
        self._queues.append(queue)
        return queue

    @property
    def hangs(self) -> bool:
        since = self._busy_since
        return since is not None and time.monotonic() - since > PATIENCE

    def wake(self) -> None:
        # Setting it takes a lock, so not for each of many that come at once.
        if not self._arrived.is_set():
            self._arrived.set()

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._is_ending = True
        self._arrived.set()

    def leave(self, seconds: float) -> None:
        """Wait for the thread to end, then leave it behind: it is told nothing more."""
        self._thread.join(seconds)
        self._is_left = True
        for queue in self._queues:
            queue.drop()

    def _work(self) -> None:
        while True:
            self._arrived.wait()
            self._arrived.clear()
            is_last = self._is_ending
            while not self._is_left and self._tell_next():
                pass
            if is_last:
                return

    def _tell_next(self) -> bool:
        """Tell one thing; False if nothing waits."""
        for queue in self._queues:
            thing = queue.take()
            if thing is not None:
                self._busy_since = time.monotonic()
                try:
                    queue.function(thing)
                except BaseException as error:  # noqa: BLE001  # a plugin may raise anything, and this is its thread
                    queue.failed(short_error(error))
                finally:
                    self._busy_since = None
                return True
        return False
