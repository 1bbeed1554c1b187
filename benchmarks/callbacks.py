"""Callbacks that `benchmarks.proxy` compares the plugin with, as LiteLLM's YAML names them.

`nothing` is the cost of any callback. The other two locate the plugin's own time. `returning` has all of its hooks, and
each returns at once. `ledger` does nothing but the two transactions of a request, with everything else precomputed. The
plugin's time above that is its own Python.
"""

from __future__ import annotations

import itertools
from functools import cached_property
from pathlib import Path
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from usage_plugin.domain.ledger import AccountKey, Charge, Hold, Ledger
from usage_plugin.domain.usage import UsageEvent, new_event_id
from usage_plugin.domain.windows import FOREVER
from usage_plugin.encoding import encode_event
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.proxy.handler import UsageHandler_PROXY_

USERS = 50
_STAMP = "benchmark"


class Nothing(CustomLogger):
    """The hooks that a callback commonly has; none does anything."""

    async def async_pre_call_hook(self, user_api_key_dict: Any, cache: Any, data: Any, call_type: Any) -> None:
        """Do nothing."""

    async def async_post_call_success_hook(self, data: Any, user_api_key_dict: Any, response: Any) -> Any:  # noqa: ARG002
        """Do nothing."""
        return response

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Do nothing."""

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Do nothing."""

    async def async_post_call_failure_hook(
        self, request_data: Any, original_exception: Any, user_api_key_dict: Any, traceback_str: Any = None
    ) -> None:
        """Do nothing."""


async def _at_once(*args: Any, **kwargs: Any) -> None:
    """Replace any hook."""


class Ledger_PROXY_(CustomLogger):  # noqa: N801  # as the plugin's own
    """Reserves on three accounts before each request, and settles after it."""

    def __init__(self) -> None:
        """Compute everything that does not depend on the request; the first request creates the file."""
        super().__init__()
        self._numbers = itertools.count()
        self._holds = [
            [
                Hold(AccountKey(key, 0, subject), FOREVER, 1_000_000, 10**15, 1_000_000)
                for key, subject in ((1, f"user-{user}@example.com"), (2, f"user-{user}@example.com"), (3, ""))
            ]
            for user in range(USERS)
        ]
        self._charges = [[Charge(hold.account, FOREVER, 500_000) for hold in holds] for holds in self._holds]
        self._event = encode_event(
            UsageEvent(
                event_id=new_event_id(),
                started_at=0,
                status="success",
                call_type="acompletion",
                user="user@example.com",
                api_key="0" * 64,
                call_id=new_event_id(),
                model="benchmark-model",
                served_model="openai/benchmark-model",
                deployment="0" * 64,
                provider="openai",
                input_tokens=100,
                output_tokens=20,
                usage={"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
            )
        )

    @cached_property
    def _ledger(self) -> Ledger:
        return open_sqlite_ledger(Path("only_the_ledger") / "ledger.db").ledger

    async def async_pre_call_hook(self, user_api_key_dict: Any, cache: Any, data: Any, call_type: Any) -> Any:  # noqa: ARG002
        """Reserve."""
        event_id, user = new_event_id(), next(self._numbers) % USERS
        self._ledger.reserve(event_id, "benchmark", 0, self._holds[user], self._event)
        data["metadata"][_STAMP] = event_id, user
        return data

    async def async_post_call_success_hook(self, data: Any, user_api_key_dict: Any, response: Any) -> Any:  # noqa: ARG002
        """Settle."""
        event_id, user = data["metadata"][_STAMP]
        if not self._ledger.settle(event_id, self._charges[user], self._event):
            raise RuntimeError("A request of the benchmark was not settled.")
        return response


nothing = Nothing()
ledger = Ledger_PROXY_()
returning = type(
    "Returning_PROXY_",
    (CustomLogger,),
    {name: _at_once for name in vars(UsageHandler_PROXY_) if name.startswith("async_")},
)()
