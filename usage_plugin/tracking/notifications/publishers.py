"""Publishers: notify plugins of events, each plugin in its own thread, off the request path.

Code that sends notifications has a `Publisher`. Without subscribers, a notification costs one read of an attribute.
Otherwise the payload is put into a bounded queue for each subscriber. A plugin that raises, hangs or is too slow loses
notifications. The losses are counted under its name, and nothing else is affected. Delivery is at most once, and within
the process only: notifications in the queues are lost if it is killed.
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
    from usage_plugin.tracking.notifications.plugin_failures import PluginFailures

MOST_WAITING = 1_000
MOST_BYTES = 8_000_000
"""The maximum size of the queue for one hook of one plugin, besides `MOST_WAITING` notifications."""

ROUGH_SIZE = 1_000
"""The assumed size in bytes of a payload without a given size: some names and numbers."""

HANG_TIMEOUT = 30.0
"""The time in seconds after which a plugin that has not returned counts as hanging. Until it returns, it gets no more
notifications."""

DRAINING = 2.0
"""The time in seconds to deliver queued notifications at shutdown."""

T = TypeVar("T")


class Publisher(Generic[T]):
    """Fan out one type of notification to its subscribers.

    Attributes:
        has_subscribers: whether there are subscribers. Check it before building a payload.
    """

    __slots__ = ("_queues", "has_subscribers")

    def __init__(self, queues: Sequence[_Queue] = ()) -> None:
        """Set the subscribers' queues."""
        self._queues = queues
        self.has_subscribers = bool(queues)

    def publish(self, thing: T, size: int = ROUGH_SIZE) -> None:
        """Put a payload of about `size` bytes into each queue. Thread-safe, and never waits for a subscriber."""
        for queue in self._queues:
            queue.put(thing, size)


class Hooked(NamedTuple):
    """A plugin's function, to be called with each notification."""

    plugin: str
    function: Callable[[Any], object]


class Publishers:
    """All plugins that subscribe to notifications.

    Attributes:
        alerts: the subscribers to crossed thresholds.
        refusals: the subscribers to refused requests.
        events: the subscribers to recorded events.
    """

    def __init__(
        self,
        failures: PluginFailures,
        *,
        alerts: Iterable[Hooked] = (),
        refusals: Iterable[Hooked] = (),
        events: Iterable[Hooked] = (),
    ) -> None:
        """Set the functions. If several notifications wait for one plugin, the rarer types are delivered first."""
        self._failures = failures
        self._by_plugin: dict[str, _Listener] = {}
        self.alerts: Publisher[Alert] = self._publisher("usage_threshold_crossed", alerts)
        self.refusals: Publisher[RefusedRequest] = self._publisher("usage_request_refused", refusals)
        self.events: Publisher[UsageEvent] = self._publisher("usage_event_recorded", events)

    def _publisher(self, hook: str, hooked: Iterable[Hooked]) -> Publisher[Any]:
        queues = []
        for plugin, function in hooked:
            if plugin not in self._by_plugin:
                self._by_plugin[plugin] = _Listener(plugin, self._failures)
            queues.append(self._by_plugin[plugin].listen(hook, function))
        return Publisher(queues)

    def start(self) -> None:
        """Start to deliver notifications."""
        for listener in self._by_plugin.values():
            listener.start()

    def stop(self, seconds: float = DRAINING) -> None:
        """Deliver queued notifications and stop. Those not delivered in time are counted as `not_told`."""
        for listener in self._by_plugin.values():
            listener.end()
        deadline = time.monotonic() + seconds
        for listener in self._by_plugin.values():
            listener.leave(max(0.0, deadline - time.monotonic()))


class _Queue:
    """The queue for one hook of one plugin."""

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
    """One plugin's thread and queues."""

    def __init__(self, plugin: str, failures: PluginFailures) -> None:
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
        return since is not None and time.monotonic() - since > HANG_TIMEOUT

    def wake(self) -> None:
        # Setting the event takes a lock, so do it only once for a burst of notifications.
        if not self._arrived.is_set():
            self._arrived.set()

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._is_ending = True
        self._arrived.set()

    def leave(self, seconds: float) -> None:
        """Wait for the thread to end, then abandon it: it gets no more notifications."""
        self._thread.join(seconds)
        self._is_left = True
        for queue in self._queues:
            queue.drop()

    def _work(self) -> None:
        while True:
            self._arrived.wait()
            self._arrived.clear()
            is_last = self._is_ending
            while not self._is_left and self._notify_next():
                pass
            if is_last:
                return

    def _notify_next(self) -> bool:
        """Deliver one notification. Return False if none waits."""
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
