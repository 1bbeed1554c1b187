"""Servers that a Valkey ledger uses, refuses or warns of: settings, logins, TLS, and rejections that pass."""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.valkey import RunningServer, free_port, transport_of, valkey_opening, valkey_server
from tests.support.valkey_network import make_certificates, tls_in_front_of
from tests.support.waiting import eventually, wait_until
from usage_plugin.domain.ledger import Balance, Charge, Settled
from usage_plugin.domain.ledger_batch import Record
from usage_plugin.errors import LedgerBusyError, LedgerError, LedgerReplacedError
from usage_plugin.ledgers.valkey import ValkeyOptions
from usage_plugin.ledgers.valkey.opening import connect_to, has_ledger, open_valkey_ledger
from usage_plugin.ledgers.valkey.server import check_suitable
from usage_plugin.ledgers.valkey.trouble import trouble_of, valkey_trouble
from usage_plugin.testing.builders import ANN, END, record_new

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from usage_plugin.domain.ledger_batch import Verb
    from usage_plugin.ledgers.valkey.transport import ValkeyTransport


def options_of(url: str, **options: Any) -> ValkeyOptions:
    return ValkeyOptions.model_validate({"url": url, **options})


# ── unsuitable servers ───────────────────────────────────────────────────────────────────────────────────────────────

UNSUITABLE = {
    "evicting": (
        {"maxmemory_policy": "allkeys-lru"},
        "eviction policy is allkeys-lru.*Set `maxmemory-policy noeviction`",
    ),
    "forgetful": ({"appendonly": "no"}, "no append-only file.*Set `appendonly yes`"),
    "cluster": ({"cluster_enabled": "yes"}, "it is a cluster.*Use one server"),
    "replica": ({"replicaof": "127.0.0.1 1"}, "it is a replica.*Name the primary"),
}


@pytest.mark.parametrize("name", UNSUITABLE)
async def test_an_unsuitable_server_is_refused(tmp_path_factory: pytest.TempPathFactory, name: str):
    """With the reason and the remedy, by each kind of connection; nothing is created."""
    settings, message = UNSUITABLE[name]
    with valkey_server(tmp_path_factory.mktemp("v"), **settings) as server:
        options = options_of(server.url)
        for use in (open_valkey_ledger, has_ledger, trouble_of):
            with pytest.raises(LedgerError, match=message):
                use(options)
        transport = transport_of(options_of(server.url))
        with pytest.raises(LedgerBusyError, match=message):
            await transport.send([Record("a", [], "event", "key")])
        await transport.close()
        assert server.command("DBSIZE") == b":0\r\n"


def test_an_old_server_is_refused(valkey: RunningServer):
    """No such server is in a package; the facts are those of a suitable one."""
    server = connect_to(options_of(valkey.url))
    facts = server.information()
    server.close()
    check_suitable(facts | {"redis_version": "6.2.0"}, "here")
    with pytest.raises(LedgerError, match=r"expected version 6\.2 or later; found 6\.0\.16.*Upgrade the server"):
        check_suitable(facts | {"redis_version": "6.0.16"}, "here")


def test_each_connection_checks_the_server_again(tmp_path_factory: pytest.TempPathFactory):
    """Another server may have taken over, or its settings may have changed."""
    with valkey_server(tmp_path_factory.mktemp("v")) as server:
        opened = open_valkey_ledger(options_of(server.url))
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        assert opened.operations.notes("") == {}
        server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        for _ in range(2):
            with pytest.raises(LedgerError, match="eviction policy"):
                opened.operations.note("a", "b")
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        opened.operations.note("a", "b")
        opened.close()


# ── rejections that pass ─────────────────────────────────────────────────────────────────────────────────────────────

REJECTIONS = {
    "no replica": (["CONFIG SET min-replicas-to-write 1"], ["CONFIG SET min-replicas-to-write 0"]),
    "no memory": (["CONFIG SET maxmemory 1"], ["CONFIG SET maxmemory 0"]),
    "a replica": (["REPLICAOF 127.0.0.1 1"], ["REPLICAOF NO ONE"]),
}


@pytest.mark.parametrize("name", REJECTIONS)
async def test_a_rejection_that_passes_loses_no_verb(tmp_path_factory: pytest.TempPathFactory, name: str):
    """A batch fails whole, and is done when it is sent again: no verb is taken for the reason."""
    before, after = REJECTIONS[name]
    with valkey_server(tmp_path_factory.mktemp("v"), port=str(free_port())) as server:
        opened = open_valkey_ledger(options_of(server.url))
        transport = transport_of(options_of(server.url))
        await transport.send([])
        batch = [Record(event_id, [Charge(ANN, END, 1)], event_id, "key") for event_id in "ab"]
        for command in before:
            server.command(*command.split())
        with pytest.raises(LedgerError):
            await transport.send(batch)
        with pytest.raises(LedgerError):
            opened.operations.note("a", "b")
        for command in after:
            server.command(*command.split())
        if name == "a replica":
            with pytest.raises(LedgerReplacedError):
                await transport.send(batch)
            transport.accept()
        assert await transport.send(batch) == [Settled(1, {ANN: Balance(1)}), Settled(2, {ANN: Balance(2)})]
        opened.operations.note("a", "b")
        await transport.close()
        opened.close()


# ── logins and databases ─────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def limited_user(valkey: RunningServer, prefix: str) -> Iterator[str]:
    """Create a user who may do what a ledger needs, and give the URL of its login, without a host."""
    name = f"user-{prefix}"[-40:]
    valkey.command("ACL", "SETUSER", name, "on", ">p@ss/w%rd:", f"~{{{prefix}}}:*", "+@all", "-@dangerous", "+info")
    try:
        yield f"{name}:p%40ss%2Fw%25rd%3A"
    finally:
        valkey.command("ACL", "DELUSER", name)


async def test_a_login_and_a_database(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path):
    """A user with few rights works on the network and on a socket, blocking and not, in a database of its own."""
    port = str(free_port())
    with valkey_server(tmp_path_factory.mktemp("v"), port=port) as server, limited_user(server, "usage") as login:
        for url in (f"valkey://{login}@127.0.0.1:{port}/3", f"unix://{login}@{server.socket_path}?db=3"):
            opened = open_valkey_ledger(options_of(url))
            record_new(opened.ledger, [Charge(ANN, END, 1)], "event")
            opened.operations.note("a", url)
            assert "p@ss" not in opened.ledger.location
            transport = transport_of(options_of(url))
            (done,) = await transport.send([Record(url, [Charge(ANN, END, 1)], "event", "key")])
            assert isinstance(done, Settled)
            await transport.close()
            opened.close()
        with pytest.raises(LedgerError, match=r"does not permit a command.*Permit this user") as refused:
            open_valkey_ledger(options_of(f"valkey://{login}@127.0.0.1:{port}/3", prefix="other"))
        with pytest.raises(LedgerError, match=r"rejected the login.*Check the user and the password") as rejected:
            open_valkey_ledger(options_of(f"valkey://{login}x@127.0.0.1:{port}/3"))
        server.command("CONFIG", "SET", "requirepass", "needed")
        with pytest.raises(LedgerError, match="rejected the login"):
            has_ledger(options_of(f"valkey://127.0.0.1:{port}/3"))
        assert not has_ledger(options_of(f"valkey://:needed@127.0.0.1:{port}/0"))
        assert has_ledger(options_of(f"valkey://:needed@127.0.0.1:{port}/3"))
        for error in (refused.value, rejected.value):
            assert "p@ss" not in str(error)
            assert "p%40ss" not in str(error)


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_tls_with_an_authority_of_ones_own(valkey: RunningServer, tmp_path: Path):
    """The server's certificate is checked by the authority and the host's name; a client can have one, too."""
    certificates = make_certificates(tmp_path, "localhost")
    prefix = valkey_opening(valkey, tmp_path / "usage").options["prefix"]
    of_client = f"&ssl_certfile={certificates.certificate}&ssl_keyfile={certificates.key}"
    authority = f"ssl_ca_certs={certificates.authority}"
    with (
        tls_in_front_of(valkey.socket_path, certificates) as port,
        tls_in_front_of(valkey.socket_path, certificates, asks_client=True) as strict_port,
    ):
        for url in (
            f"valkeys://localhost:{port}/0?{authority}",
            f"valkeys://127.0.0.1:{port}/0?{authority}&ssl_check_hostname=false",
            f"valkeys://127.0.0.1:{port}/0?ssl_cert_reqs=none&ssl_check_hostname=false",
            f"valkeys://localhost:{strict_port}/0?{authority}{of_client}",
        ):
            options = options_of(url, prefix=prefix)
            assert await eventually(lambda options=options: is_opened(options), blocking=True)
            transport = transport_of(options_of(url, prefix=prefix))
            while not await is_done(transport, Record(url, [], "event", "key")):
                await asyncio.sleep(0.01)
            await transport.close()
        for url in (
            f"valkeys://localhost:{port}/0",
            f"valkeys://127.0.0.1:{port}/0?{authority}",
            f"valkeys://localhost:{strict_port}/0?{authority}",
            f"valkey://localhost:{port}/0",
        ):
            with pytest.raises(LedgerError, match="does not answer"):
                open_valkey_ledger(options_of(url, prefix=prefix))
            transport = transport_of(options_of(url, prefix=prefix))
            with pytest.raises(LedgerError, match="does not answer"):
                await transport.send([])
            await transport.close()


def is_opened(options: ValkeyOptions) -> bool:
    """Whether the ledger can be opened; on a busy machine the proxy may need more than the second to connect."""
    try:
        open_valkey_ledger(options).close()
    except LedgerError:
        return False
    return True


async def is_done(transport: ValkeyTransport, verb: Verb) -> bool:
    """Whether a verb was done, as above."""
    try:
        (answer,) = await transport.send([verb])
    except LedgerError:
        return False
    return isinstance(answer, Settled)


# ── trouble ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_settings_that_endanger_a_ledger_are_listed(tmp_path_factory: pytest.TempPathFactory):
    """Each with its remedy; a good server has none."""
    port = str(free_port())
    with ExitStack() as stack:
        start = stack.enter_context
        server = start(valkey_server(tmp_path_factory.mktemp("v"), port=port, maxmemory="1gb"))
        connection = connect_to(options_of(server.url))

        def trouble(replicas: int) -> list[str]:
            return valkey_trouble(connection, replicas)

        (alone,) = trouble(0)
        assert "No replica is connected" in alone
        assert "Add one" in alone
        (lacking,) = trouble(1)
        assert "0 of 1 replicas are connected, so every change fails. Start the replicas" in lacking
        start(valkey_server(tmp_path_factory.mktemp("v"), replicaof=f"127.0.0.1 {port}"))
        wait_until(lambda: trouble(1) == [])
        (unused,) = trouble(0)
        assert "`replicas` is 0" in unused

        for name, value, expected in (
            ("appendfsync", "no", "`appendfsync` is `no`.*Set `appendfsync everysec`"),
            ("no-appendfsync-on-rewrite", "yes", "nothing is synced while.*Set it to `no`"),
            ("maxmemory", "0", "`maxmemory` is unset.*Set `maxmemory`"),
            ("maxmemory", "1", "% full; 0 more requests fit.*Raise `maxmemory`"),
        ):
            before = server.command("CONFIG", "GET", name).split(b"\r\n")[-2].decode()
            server.command("CONFIG", "SET", name, value)
            (found,) = trouble(1)
            assert re.search(expected, found)
            server.command("CONFIG", "SET", name, before)
        assert trouble(1) == []

        opened = open_valkey_ledger(options_of(server.url))
        record_new(opened.ledger, [], "event")
        opened.close()
        assert trouble(1) == []
        server.command("HSET", "{usage}:meta", "waiting_events", "400000")
        (behind,) = trouble(1)
        assert re.search("The outbox has 400000 events, about 261 MB.*`usage-plugin status`", behind)
        server.command("HSET", "{usage}:meta", "waiting_events", "0")

        with limited_user(server, "usage") as login:
            (unseen,) = trouble_of(options_of(f"valkey://{login}@127.0.0.1:{port}", replicas=1))
            assert re.search("does not permit CONFIG GET.*Check that it is `everysec`", unseen)
        connection.close()
