"""The check of outgoing requests: a changed request needs a new hold, and is not sent without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from usage_plugin.config import load_config
from usage_plugin.errors import LedgerError
from usage_plugin.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONFIG = """
usage_plugin:
  data_dir: data
  admission: {{on_ledger_error: {on_ledger_error}, max_wait: 0s}}
  limits:
    - {{name: tokens, per: user, window: day, max_total_tokens: 2000}}
"""


async def sent(
    runtime: Runtime, key: Callable[..., Any], text: str, fail: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Admit a request with a short text, and send it to a deployment with another one."""
    from usage_plugin.proxy.handler import UsageHandler_PROXY_  # noqa: PLC0415  # imports LiteLLM
    from usage_plugin.proxy.price_book import PriceBook  # noqa: PLC0415

    hooks = UsageHandler_PROXY_(runtime, PriceBook())
    data: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
    await hooks.async_pre_call_hook(key(user_id="ann"), None, data, "acompletion")
    fail()
    metadata = {**data["metadata"], "model_info": {"id": "one"}, "model_group": "m"}
    kwargs = {**data, "messages": [{"role": "user", "content": text}], "metadata": metadata}
    await hooks.async_pre_call_deployment_hook(kwargs, "acompletion")
    return kwargs


@pytest.fixture
async def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, litellm: Any):
    made: list[Runtime] = []

    def with_policy(on_ledger_error: str = "deny") -> Runtime:
        monkeypatch.setattr("usage_plugin.proxy.price_book._router", lambda: None)  # no price is known
        path = tmp_path / "config.yaml"
        path.write_text(CONFIG.format(on_ledger_error=on_ledger_error))
        made.append(Runtime(load_config(path)))
        return made[-1]

    yield with_policy
    for runtime in made:
        await runtime.close()


def held(runtime: Runtime) -> int:
    (reservation,) = runtime.ledger.open_reservations()
    (account,) = runtime.ledger.accounts(runtime.limits.find("tokens").key, 0)
    assert reservation
    return account.balance.reserved


async def test_a_longer_text_takes_a_larger_hold(start: Callable[..., Runtime], key: Callable[..., Any]) -> None:
    """The hold is replaced by one for the outgoing request, under the same id."""
    runtime = start()
    await sent(runtime, key, "x" * 1_000)
    assert 1_050 <= held(runtime) <= 1_200


async def test_a_text_beyond_the_limit_is_not_sent(start: Callable[..., Runtime], key: Callable[..., Any]) -> None:
    from usage_plugin.proxy.outgoing_check import StoppedError  # noqa: PLC0415

    runtime = start()
    with pytest.raises(StoppedError) as stopped:
        await sent(runtime, key, "x" * 10_000)
    assert stopped.value.type == "request_exceeds_limit"
    assert runtime.ledger.open_reservations() == []


@pytest.mark.parametrize("policy", ["deny", "allow"])
async def test_a_changed_request_is_not_sent_under_its_first_hold(
    start: Callable[..., Runtime], key: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """If the ledger does not release the first hold, `on_ledger_error` decides; the first hold stays until settled."""
    from usage_plugin.proxy.outgoing_check import StoppedError  # noqa: PLC0415

    runtime = start(policy)

    def broken(_: str) -> bool:
        raise LedgerError("The disk is full.")

    async def send() -> Any:
        return await sent(runtime, key, "x" * 1_000, lambda: monkeypatch.setattr(runtime.ledger, "release", broken))

    if policy == "allow":
        await send()
    else:
        with pytest.raises(StoppedError) as stopped:
            await send()
        assert (stopped.value.type, stopped.value.code) == ("ledger_unavailable", "503")
    assert held(runtime) < 200
