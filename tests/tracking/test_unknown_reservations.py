"""Reservations in an unknown state: unknown ones that are settled, and failed ones that may hold an amount."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.tracking.test_tracking import CENT, admit, admitted, ask, clock, configure, runtime, success
from usage_plugin.domain.ledger import AccountKey, Balance
from usage_plugin.errors import LedgerError
from usage_plugin.tracking.admission.decisions import Refusal
from usage_plugin.tracking.ledger_retry import wait_while_busy

if TYPE_CHECKING:
    import pytest

    from usage_plugin.runtime import Runtime
    from usage_plugin.testing.clock import FakeClock

__all__ = ["clock", "configure", "runtime"]


async def test_what_the_ledger_does_not_know_is_recorded(
    runtime: Runtime, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A request whose reservation is missing is still charged and recorded, once, and counted."""
    request = await admitted(runtime, clock)
    accounts = [demand.account for demand in request.admitted.demands]
    runtime.opened.file.connection.execute("UPDATE reservations SET open = 0, event_id = 'lost'")
    runtime.opened.file.connection.execute("UPDATE accounts SET reserved = 0")
    assert runtime.recorder.record(request, success(3 * CENT))
    assert runtime.ledger.balances(accounts) == {account: Balance(3 * CENT, 0) for account in accounts}
    assert len(runtime.ledger.outbox(0, 10)) == 1
    assert "ledger.reservation_unknown" in caplog.text
    wait_while_busy(lambda: runtime.anomalies.hand_over(runtime.operations))
    assert [(found.kind, found.times) for found in runtime.operations.anomalies()] == [("unheld", 1)]


async def test_a_reservation_that_failed_holds_nothing(
    runtime: Runtime, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reservation that was committed despite an error is freed when the request is refused."""
    reserve = runtime.ledger.reserve

    def committed_all_the_same(*what: Any) -> Any:
        reserve(*what)
        raise LedgerError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(runtime.ledger, "reserve", committed_all_the_same)
        assert isinstance(await admit(runtime, ask(clock)), Refusal)
    assert runtime.ledger.open_reservations() == []
    accounts: list[AccountKey] = [
        account.key for limit in runtime.limits.limits for account in runtime.ledger.accounts(limit.key, 0)
    ]
    assert set(runtime.ledger.balances(accounts).values()) <= {Balance()}
