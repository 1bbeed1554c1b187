"""The register of a fleet on a Valkey server: each method is one run of the script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.domain.fleet import Fleet, FleetRegister, Member
from usage_plugin.ledgers.valkey import batch
from usage_plugin.ledgers.valkey.ledger import create_ledger

if TYPE_CHECKING:
    from usage_plugin.ledgers.valkey.batch import Reply
    from usage_plugin.ledgers.valkey.server import ValkeyServer

ANSWER_TIMEOUT = 3.0
"""Seconds until a server counts as unreachable, for the server of a register."""


class ValkeyRegister(FleetRegister):
    """The register on a server, as one thread sees it.

    It waits for no replicas: a change that a failover has lost is made again. A worker that was forgotten joins again,
    one that was buried is judged again, and a new incarnation has no keeper.
    """

    def __init__(self, server: ValkeyServer) -> None:
        """Check the server, and create the ledger if it is missing.

        Raises:
            LedgerError: the server does not answer, or cannot keep a ledger.
            StorageVersionError: a newer version wrote it.
        """
        self._server = server
        create_ledger(server)

    def join(self, name: str, host: str, details: str, *, has_reasserted: bool = True) -> Fleet:
        """Add a member."""
        return _fleet(self._run("join", name, host, details, str(int(has_reasserted))))

    def beat(self, name: str, details: str) -> Fleet:
        """Raise the counter of a member."""
        reply = self._run("beat", name, details)
        if reply == [b"lost"]:
            raise batch.lost(name)
        return _fleet(reply)

    def view(self) -> Fleet:
        """Return the fleet."""
        return _fleet(self._run("view"))

    def leave(self, name: str) -> None:
        """Remove a member."""
        self._run("leave", name)

    def bury(self, name: str, beats: int) -> bool:
        """Remove a member whose counter is still the same."""
        return bool(int(self._run("bury", name, batch.text_of(beats))[0]))

    def keep(self, name: str, term: int) -> bool:
        """Become the keeper."""
        return bool(int(self._run("keep", name, batch.text_of(term))[0]))

    def stop_keeping(self, name: str) -> None:
        """Be the keeper no longer."""
        self._run("stop_keeping", name)

    def close(self) -> None:
        """Close the connection."""
        self._server.close()

    def _run(self, *arguments: str) -> Reply:
        return self._server.script(batch.Header(accepted=batch.PRESENT), batch.encode(*arguments))


def _fleet(reply: Reply) -> Fleet:
    now, incarnation, is_open, keeper, term, *members = reply
    return Fleet(
        now=int(now),
        incarnation=incarnation.decode(),
        is_open=is_open == b"1",
        members=tuple(sorted(map(_member, members))),
        keeper=None if keeper is None else keeper.decode(),
        term=int(term),
    )


def _member(reply: Reply) -> Member:
    name, beats, host, has_reasserted, details = reply
    return Member(name.decode(), host.decode(), int(beats), details.decode(), has_reasserted == b"1")
