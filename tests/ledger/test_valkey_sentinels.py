"""The primary is found by its sentinels, and found again after a failover."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.valkey import free_port, transport_of, valkey_server
from tests.support.valkey_network import sentinel
from tests.support.waiting import eventually, wait_until
from usage_plugin.domain.ledger import Charge, Settled
from usage_plugin.domain.ledger_batch import Record
from usage_plugin.errors import LedgerError
from usage_plugin.ledgers.valkey import ValkeyOptions
from usage_plugin.ledgers.valkey.address import Address
from usage_plugin.ledgers.valkey.connections import SENTINEL_TIMEOUT, find_primary
from usage_plugin.ledgers.valkey.opening import has_ledger, open_valkey_ledger
from usage_plugin.ledgers.valkey.transport import ValkeyTransport
from usage_plugin.testing.builders import ANN, END, record_new

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.valkey_network import RunningSentinel

PASSWORD, SENTINEL_PASSWORD = "s3cret/1", "s3cret/2"


def url_of(sentinels: Sequence[RunningSentinel], name: str = "mymaster") -> str:
    hosts = ",".join(f"127.0.0.1:{one.port}" for one in sentinels)
    return f"valkey+sentinel://usage:s3cret%2F1@{hosts}/{name}/2?sentinel_password=s3cret%2F2"


async def test_the_ledger_goes_on_after_a_failover(tmp_path_factory: pytest.TempPathFactory):
    """The primary is killed while one sentinel hangs; each connection goes on with the promoted replica by itself."""
    ports = [free_port(), free_port()]
    login = {"masteruser": "usage", "masterauth": PASSWORD, "repl_diskless_sync_delay": "0"}
    with ExitStack() as stack:
        start = stack.enter_context
        primary, replica = (
            start(valkey_server(tmp_path_factory.mktemp("v"), port=str(port), **login)) for port in ports
        )
        for server in (primary, replica):
            server.command("ACL", "SETUSER", "usage", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        replica.command("REPLICAOF", "127.0.0.1", str(primary.port))
        wait_until(lambda: b"master_link_status:up" in replica.command("INFO", "replication"))
        sentinels = [
            start(
                sentinel(tmp_path_factory.mktemp("s"), ports[0], password=SENTINEL_PASSWORD, auth=("usage", PASSWORD))
            )
            for _ in range(3)
        ]
        for one in sentinels:
            wait_until(lambda one=one: one.ask("MASTER", "mymaster")["num-other-sentinels"] == "2")
            wait_until(lambda one=one: one.ask("MASTER", "mymaster")["num-slaves"] == "1")

        options = ValkeyOptions.model_validate({"url": url_of(sentinels), "replicas": 1})
        opened = open_valkey_ledger(options)
        record_new(opened.ledger, [Charge(ANN, END, 1)], "before")
        opened.operations.note("state", "before")
        transport = transport_of(options)
        assert isinstance((await transport.send([Record("b", [], "before too", "key")]))[0], Settled)

        os.kill(sentinels[0].pid, signal.SIGSTOP)
        os.kill(primary.pid, signal.SIGKILL)
        with pytest.raises(LedgerError):
            await transport.send([])
        with pytest.raises(LedgerError):
            opened.operations.notes("")

        after = transport_of(options.model_copy(update={"replicas": 0}))

        async def is_done(one: ValkeyTransport) -> bool:
            try:
                return isinstance((await one.send([Record("c", [], "after", "key")]))[0], Settled)
            except LedgerError:
                return False

        while not await is_done(after):
            await asyncio.sleep(0.01)
        assert b"role:master" in replica.command("INFO", "replication")
        assert await eventually(lambda: opened.operations.notes("") == {"state": "before"}, blocking=True)
        assert [entry.event for entry in opened.ledger.outbox(0, 10)] == ["before", "before too", "after"]
        with pytest.raises(LedgerError, match="1 of 1 replicas lack"):
            opened.operations.note("state", "unconfirmed")
        assert SENTINEL_PASSWORD not in opened.ledger.location
        os.kill(sentinels[0].pid, signal.SIGCONT)
        await transport.close()
        await after.close()
        opened.close()


def test_the_last_failover_counts(tmp_path_factory: pytest.TempPathFactory):
    """A sentinel that was cut off may know an older primary; one that hangs delays nothing for long."""
    with ExitStack() as stack:
        old, new, hanging = (
            stack.enter_context(sentinel(tmp_path_factory.mktemp("s"), port, password=SENTINEL_PASSWORD, epoch=epoch))
            for port, epoch in ((free_port(), 4), (free_port(), 5), (free_port(), 6))
        )
        known = {one: int(one.ask("MASTER", "mymaster")["port"]) for one in (old, new, hanging)}
        os.kill(hanging.pid, signal.SIGSTOP)
        for order in ([old, new, hanging], [hanging, new, old]):
            assert find_primary(Address(url_of(order))) == ("127.0.0.1", known[new])
        began = time.monotonic()
        assert find_primary(Address(url_of([hanging, old]))) == ("127.0.0.1", known[old])
        assert time.monotonic() - began < 4 * SENTINEL_TIMEOUT
        os.kill(hanging.pid, signal.SIGCONT)


def test_the_reason_of_a_failed_look_up_is_told(tmp_path_factory: pytest.TempPathFactory):
    """For each sentinel, and without a password."""
    with sentinel(tmp_path_factory.mktemp("s"), free_port(), password=SENTINEL_PASSWORD) as running:
        place = f"127.0.0.1:{running.port}"
        for url, reason in (
            (url_of([running], "other"), f"no sentinel names a primary 'other' .{place}: No such master"),
            (url_of([running]).replace("F2", "F3"), f"{place}: .*(invalid|WRONGPASS)"),
            (url_of([running]).partition("?")[0], f"{place}: Authentication required"),
            (url_of([running]).replace(str(running.port), "1"), "127.0.0.1:1: .*refused"),
        ):
            with pytest.raises(LedgerError, match=reason) as refused:
                has_ledger(ValkeyOptions.model_validate({"url": url}))
            assert "s3cret" not in str(refused.value)
