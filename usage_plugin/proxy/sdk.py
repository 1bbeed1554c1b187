"""The LiteLLM SDK without its proxy: each call of a program becomes one usage event.

The SDK has no hook that could refuse a call: callbacks are called when it is over. So calls are charged on every limit
and stopped by none. To enforce a limit, use `UsageTracker.reserve_budget` around them.

Found by experiment (`tests/proxy_parts/test_sdk.py`):

- An async call is reported by the async hooks, on its loop.
- A sync call is reported by the sync hooks, in a thread of LiteLLM's.
- A call that `num_retries` repeats is reported once; a router's attempts are reported one by one.
- A stream that is not read to its end is not reported.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import litellm
from litellm.integrations.custom_logger import CustomLogger

from usage_plugin.domain.subjects import ANONYMOUS, MOST_TAGS, Subjects, clean_name
from usage_plugin.domain.usage import UsageEvent, new_event_id
from usage_plugin.errors import SubjectNameError
from usage_plugin.log import get_logger
from usage_plugin.pricing.catalog import adjustment_of, entry_name, provider_of
from usage_plugin.pricing.price_map import with_container
from usage_plugin.pricing.sheets import is_price_key, own_or_mapped, route_of
from usage_plugin.proxy import charges, usage_parsing
from usage_plugin.proxy.inflight import is_free
from usage_plugin.proxy.price_book import Deployment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import datetime

    from usage_plugin.api import UsageTracker
    from usage_plugin.domain.usage import Status
    from usage_plugin.tracking.admission.recorder import Outcome

LAST_WORDS_SECONDS = 5.0
"""The maximum wait at the end, in seconds, for calls that LiteLLM has not reported yet."""

_MOST_REMEMBERED = 10_000
_LISTS = (
    "callbacks", "input_callback", "success_callback", "failure_callback",
    "_async_input_callback", "_async_success_callback", "_async_failure_callback",
)  # fmt: skip
"""LiteLLM copies a callback into all of these lists."""

log = get_logger()


@asynccontextmanager
async def recorded_calls(tracker: UsageTracker) -> AsyncIterator[SdkRecorder_PROXY_]:
    """Record every SDK call in this process while the context lasts, and a moment longer.

    The user is the call's `user`, else `user_id` in its metadata, else `(anonymous)`; `session_id`, `team` and `tags`
    are read from the metadata.
    """
    recorder = SdkRecorder_PROXY_(tracker)
    litellm.callbacks.append(recorder)
    try:
        yield recorder
    finally:
        await recorder.wait()
        for name in _LISTS:
            callbacks = getattr(litellm, name, [])
            while recorder in callbacks:
                callbacks.remove(recorder)


class SdkRecorder_PROXY_(CustomLogger):  # noqa: N801  # LiteLLM lets `no-log` silence every class without _PROXY_
    """The callback. It may be put into `litellm.callbacks` by hand; `recorded_calls` also removes it again."""

    def __init__(self, tracker: UsageTracker) -> None:
        """Record with a tracker on the running event loop."""
        super().__init__()
        self._tracker = tracker
        self._loop = asyncio.get_running_loop()
        self._map = {name: dict(entry) for name, entry in litellm.model_cost.items() if isinstance(entry, dict)}
        self._begun: OrderedDict[str, None] = OrderedDict()
        self._disputes = charges.CrossCheck()

    async def wait(self, seconds: float = LAST_WORDS_SECONDS) -> None:
        """Wait until LiteLLM has reported every call that has begun, for a maximum number of seconds."""
        deadline = self._loop.time() + seconds
        while self._begun and self._loop.time() < deadline:  # noqa: ASYNC110  # LiteLLM's threads tell of it
            await asyncio.sleep(0.01)
        if self._begun:
            log.warning("sdk.calls_not_told", count=len(self._begun))
            self._begun.clear()

    # ── LiteLLM's hooks; it passes the arguments by these names ──────────────────────────────────────────────────────

    def log_pre_api_call(self, model: Any, messages: Any, kwargs: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Record that a call begins or is repeated."""
        self._begun[_id_of(kwargs)] = None
        if len(self._begun) > _MOST_REMEMBERED:
            self._begun.popitem(last=False)

    def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Record a sync call."""
        self._told(kwargs, response_obj, start_time, end_time, "success")

    def log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Record a sync call that failed."""
        self._told(kwargs, response_obj, start_time, end_time, "failure")

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Record an async call."""
        self._told(kwargs, response_obj, start_time, end_time, "success")

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Record an async call that failed."""
        self._told(kwargs, response_obj, start_time, end_time, "failure")

    def _told(self, kwargs: Mapping[str, Any], response: Any, start: datetime, end: datetime, status: Status) -> None:
        """Read LiteLLM's report immediately, and record it on the tracker's loop: this may be another thread."""
        try:
            kind = _kind_of(kwargs)
            if is_free(kind):
                self._begun.pop(_id_of(kwargs), None)
                return
            lasted = max(0, round((end - start).total_seconds() * 1e6))
            draft, subjects = _draft(self._tracker, kwargs, kind, lasted)
            outcome = self._outcome(kwargs, response, draft, status)
            self._loop.call_soon_threadsafe(self._record, draft, subjects, outcome, lasted)
        except Exception:
            # A bug of the plugin, or a closed tracker: the program's call has succeeded in any case.
            log.exception("sdk.call_not_recorded", model=str(kwargs.get("model")))

    def _record(self, draft: UsageEvent, subjects: Subjects, outcome: Outcome, lasted: int) -> None:
        try:
            self._tracker.record_outcome(draft, subjects, outcome, lasted)
        finally:
            self._begun.pop(draft.call_id or "", None)

    def _outcome(self, kwargs: Mapping[str, Any], response: Any, draft: UsageEvent, status: Status) -> Outcome:
        error = kwargs.get("exception")
        sheet = _Sheet(self._map, kwargs)
        outcome = charges.read_outcome(
            sheet,
            usage_parsing.served_logged(kwargs, response),
            usage_parsing.logged_usage(kwargs, response),
            draft,
            status=status,
            error=type(error).__name__ if error is not None else None,
            on_disputed="higher" if sheet.is_litellms else "computed",
        )
        self._disputes.log_once(outcome)
        if outcome.as_reserved:
            # The usage is unknown, and nothing was reserved.
            return outcome._replace(as_reserved=False, cost=None, cost_source="unpriced", estimated=True)
        return outcome


class _Sheet:
    """The prices of one call: its own, or those of LiteLLM's map."""

    def __init__(self, price_map: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
        parameters = kwargs.get("litellm_params") or {}
        named = parameters.get("custom_llm_provider") or kwargs.get("custom_llm_provider")
        model, self._provider = provider_of(str(kwargs.get("model") or ""), named, parameters.get("api_base"))
        own = {key: value for key, value in parameters.items() if is_price_key(key) and value is not None}
        found = entry_name(price_map, model, self._provider)
        mapped = {} if found is None else with_container(price_map, price_map[found], self._provider)
        self._sheet = own_or_mapped(own, mapped)
        # LiteLLM writes a call's own prices into its map, for all later calls.
        self.is_litellms = found is None or litellm.model_cost.get(found) == price_map[found]
        self._states_price = self._sheet is not mapped
        self._served = model if self._provider is None else f"{self._provider}/{model}"

    def deployments(self, model: str, team: str | None) -> tuple[Deployment, ...]:
        """Return the only deployment."""
        del team
        return (
            Deployment(
                model,
                provider=self._provider,
                served_model=self._served,
                sheet=self._sheet,
                states_price=self._states_price,
                adjustment=adjustment_of(self._provider),
            ),
        )


def _draft(tracker: UsageTracker, kwargs: Mapping[str, Any], kind: str, lasted: int) -> tuple[UsageEvent, Subjects]:
    parameters = kwargs.get("litellm_params") or {}
    metadata = parameters.get("metadata") or parameters.get("litellm_metadata") or {}
    tags = metadata.get("tags")
    named = (_named(tag, "tag") for tag in (tags if isinstance(tags, list) else ()))
    fold = tracker.casefold
    user = _named(kwargs.get("user"), "user", fold=fold) or _named(metadata.get("user_id"), "user", fold=fold)
    subjects = tracker.keep(
        Subjects(
            user=user or ANONYMOUS,
            session=_named(metadata.get("session_id"), "session"),
            team=_named(metadata.get("team"), "team", fold=fold),
            tags=tuple(dict.fromkeys(filter(None, named)))[:MOST_TAGS],
        )
    )
    model = _named(metadata.get("model_group") or kwargs.get("model"), "model")
    draft = UsageEvent(
        event_id=new_event_id(),
        started_at=tracker.now() - lasted,
        status="recovered",
        call_type=kind,
        **subjects.kept(),
        call_id=_id_of(kwargs),
        requested_model=model,
        model=model,
    )
    return draft, subjects


def _named(value: object, what: str, *, fold: bool = False) -> str | None:
    """Return a normalized name; the call is over, so an invalid one is ignored."""
    try:
        return clean_name(value, what=what, casefold=fold)
    except SubjectNameError as error:
        log.warning("sdk.name_left_out", what=what, message=str(error))
        return None


def _kind_of(kwargs: Mapping[str, Any]) -> str:
    """Return the call type in its async form: `completion` costs the same as `acompletion`."""
    kind = str(kwargs.get("call_type") or "")
    return f"a{kind}" if route_of(kind) == "other" != route_of(f"a{kind}") else kind


def _id_of(kwargs: Mapping[str, Any]) -> str:
    return str(kwargs.get("litellm_call_id") or "")[:256].encode("utf-8", "replace").decode()
