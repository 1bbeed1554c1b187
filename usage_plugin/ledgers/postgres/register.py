"""The register of a fleet on the server: each method is one function, and so one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.domain.fleet import Fleet, FleetRegister, Member
from usage_plugin.errors import WorkerLostError

if TYPE_CHECKING:
    from usage_plugin.postgres.server import Server


class PostgresRegister(FleetRegister):
    """The register on a server."""

    def __init__(self, server: Server) -> None:
        """Use an open connection, which belongs to the register."""
        self._server = server

    def _call(self, function: str, *values: object) -> Any:
        arguments = ", ".join({str: "%s::text", int: "%s::bigint"}.get(type(value), "%s") for value in values)
        return self._server.call(f"SELECT {self._server.schema}.usage_v1_{function}({arguments})", *values)

    def join(self, name: str, host: str, details: str, *, has_reasserted: bool = True) -> Fleet:
        """Add a member, or replace the details of one."""
        return _fleet_of(self._call("join", name, host, details, has_reasserted))

    def beat(self, name: str, details: str) -> Fleet:
        """Raise the counter of a member."""
        answer = self._call("beat", name, details)
        if answer is None:
            raise WorkerLostError
        return _fleet_of(answer)

    def view(self) -> Fleet:
        """Return the fleet. The first view of a new incarnation notes it."""
        return _fleet_of(self._call("fleet"))

    def leave(self, name: str) -> None:
        """Remove a member."""
        self._call("remove", name, None)

    def bury(self, name: str, beats: int) -> bool:
        """Remove a member whose counter has stood still."""
        return bool(self._call("remove", name, beats))

    def keep(self, name: str, term: int) -> bool:
        """Become the keeper, if there is none."""
        return bool(self._call("keep", name, term))

    def stop_keeping(self, name: str) -> None:
        """End the term of a keeper."""
        self._call("stop_keeping", name)

    def close(self) -> None:
        """Close the connection."""
        self._server.close()


def _fleet_of(answer: Any) -> Fleet:
    now, incarnation, is_open, members, keeper, term = answer
    return Fleet(now, incarnation, is_open, tuple(Member(*member) for member in members), keeper, term)
