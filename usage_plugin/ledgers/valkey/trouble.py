"""Settings of a server that endanger a ledger without forbidding it, each with its remedy, for people."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from usage_plugin.errors import LedgerError
from usage_plugin.ledgers.valkey.opening import connect_to
from usage_plugin.ledgers.valkey.records import pairs_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from usage_plugin.ledgers.valkey.options import ValkeyOptions
    from usage_plugin.ledgers.valkey.server import ValkeyServer

BYTES_OF_AN_EVENT = 654
"""The memory of a request with its event in the outbox, as measured on Valkey 9."""

_FULL = 0.8
_LARGE_OUTBOX = 0.1
_MEGABYTE = 1_000_000


def trouble_of(options: ValkeyOptions) -> list[str]:
    """Connect, and list the trouble.

    Raises:
        LedgerError: the server does not answer, or cannot keep a ledger.
    """
    with closing(connect_to(options)) as server:
        return valkey_trouble(server, options.replicas)


def valkey_trouble(server: ValkeyServer, replicas: int = 0) -> list[str]:
    """List settings and states of a server that endanger the ledger, each with its remedy.

    A server without snapshots (`save ""`) is not among them: with an append-only file it never reads one.

    Args:
        server: The server.
        replicas: The number of replicas that must have a change.

    Raises:
        LedgerError: the server does not answer, or cannot keep a ledger.
    """
    facts = server.information()
    waiting = int(server.command("HGET", server.keys[0], "waiting_events") or 0)
    sentences = (*_of_the_disk(server, facts), *_of_replicas(facts, replicas), *_of_memory(facts, waiting))
    return [f"{server.location}: {sentence}" for sentence in sentences]


def _of_the_disk(server: ValkeyServer, facts: Mapping[str, str]) -> Iterator[str]:
    settings = _settings(server)
    if settings is None:
        yield (
            "The server does not permit CONFIG GET, so `appendfsync` was not checked."
            " Check that it is `everysec` or `always`."
        )
    elif settings[b"appendfsync"] == b"no":
        yield (
            "`appendfsync` is `no`: a power cut loses about the last 30 s, and the store is ahead then."
            " Set `appendfsync everysec`."
        )
    elif settings[b"no-appendfsync-on-rewrite"] == b"yes":
        yield (
            "`no-appendfsync-on-rewrite` is `yes`: nothing is synced while the append-only file is rewritten."
            " Set it to `no`."
        )
    if facts.get("aof_last_write_status", "ok") != "ok":
        yield "The server could not write its append-only file and rejects every change. Free space on its disk."
    if facts.get("aof_last_bgrewrite_status", "ok") != "ok":
        yield (
            "The last rewrite of the append-only file failed, so the file grows."
            " Read the server's log; often memory or disk space is missing."
        )
    if tuple(int(part) for part in facts["redis_version"].split(".")[:2]) < (7, 2):
        yield (
            f"Version {facts['redis_version']} lacks WAITAOF: events can reach the store a second before the server's"
            " disk. After a power cut the outbox takes new numbers then. Upgrade to Valkey, or Redis 7.2."
        )


def _settings(server: ValkeyServer) -> dict[bytes, bytes] | None:
    """Return settings that INFO does not have; None if the server does not permit it, as managed ones."""
    found: dict[bytes, bytes] = {}
    try:
        # Servers before 7.0 take one name.
        for name in ("appendfsync", "no-appendfsync-on-rewrite"):
            found |= pairs_in(server.command("CONFIG", "GET", name))
    except LedgerError as error:
        if error.__cause__ is None or "CONFIG" not in str(error.__cause__).upper():
            raise
        return None
    return found


def _of_replicas(facts: Mapping[str, str], replicas: int) -> Iterator[str]:
    connected = int(facts["connected_slaves"])
    if connected < replicas:
        yield (
            f"{connected} of {replicas} replicas are connected, so every change fails."
            " Start the replicas, or lower `replicas`."
        )
    elif not connected:
        yield "No replica is connected: the ledger is lost with this server's disk. Add one, and set `replicas: 1`."
    elif not replicas:
        yield (
            "`replicas` is 0: the settlements of the last moments are lost when a replica takes over."
            " Set `replicas: 1`."
        )


def _of_memory(facts: Mapping[str, str], waiting: int) -> Iterator[str]:
    most, used = int(facts["maxmemory"]), int(facts["used_memory"])
    in_outbox = waiting * BYTES_OF_AN_EVENT
    if not most:
        yield (
            "`maxmemory` is unset: a server that outgrows its machine is killed, and with a bound it only rejects"
            " changes. Set `maxmemory` to about half of the machine's memory; rewriting files needs the rest."
        )
    elif used > _FULL * most:
        yield (
            f"The memory is {100 * used // most} % full; {max(0, most - used) // BYTES_OF_AN_EVENT} more requests fit"
            " before every change is rejected. Raise `maxmemory`, or free memory."
        )
    if in_outbox > _LARGE_OUTBOX * (most or int(facts.get("total_system_memory", "0")) or in_outbox * 100):
        yield (
            f"The outbox has {waiting} events, about {in_outbox // _MEGABYTE} MB of the server's memory."
            " Check that the store takes events: `usage-plugin status`."
        )
