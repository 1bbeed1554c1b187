"""Fixtures that the contracts of a ledger on a server share."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import pytest

from usage_plugin.domain.clock import SystemClock
from usage_plugin.errors import LedgerError, LedgerReplacedError
from usage_plugin.testing.ledger_fixtures import OpensLedger
from usage_plugin.testing.link import Link
from usage_plugin.testing.openings import SharedLedgerOpening

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from usage_plugin.domain.fleet import FleetRegister
    from usage_plugin.domain.ledger_batch import Answer, LedgerTransport, Verb
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.plugins.interface import SharedLedgerBackend

AnswerT = TypeVar("AnswerT")

PATIENCE = 60.0
"""Seconds for a server that was replaced to answer again."""

Replacing = Callable[[], None]


class OpensSharedLedger(OpensLedger):
    """Open the ledger on a server under test.

    The option `url` has the host and the port of the server; otherwise override `link` and `linked`.

    Attributes:
        backend: the backend of the ledger under test.
    """

    backend: ClassVar[SharedLedgerBackend[Any]]

    @pytest.fixture
    def opening(self, tmp_path: Path) -> SharedLedgerOpening:
        """The ways to open the ledger; override it for a new ledger on a running server."""
        return SharedLedgerOpening(self.backend, tmp_path / "data" / "usage", self.options)

    @pytest.fixture
    def replace_server(self) -> Replacing:
        """A function that gives the server another incarnation without a loss, for example by a restart.

        Override it. The server must answer when the function returns.
        """
        raise NotImplementedError

    @pytest.fixture
    def register(self, opened: OpenLedger, opening: SharedLedgerOpening) -> Iterator[FleetRegister]:
        """The register of a fleet without members."""
        del opened
        register = opening.register()
        yield register
        register.close()

    @pytest.fixture
    def replaced(self, replace_server: Replacing, opened: OpenLedger, register: FleetRegister) -> Replacing:
        """A function as `replace_server`, after which `opened` and `register` are connected again."""

        def replace() -> None:
            replace_server()
            until_answered(register.view)
            until_answered(opened.ledger.acknowledged)

        return replace

    @pytest.fixture
    def link(self, opening: SharedLedgerOpening) -> Iterator[Link]:
        """A link to the server, on which a test can cut connections."""
        url = urlsplit(str(opening.options["url"]))
        assert url.hostname is not None
        assert url.port is not None
        with closing(Link(url.hostname, url.port)) as link:
            yield link

    @pytest.fixture
    def linked(self, opening: SharedLedgerOpening, link: Link) -> SharedLedgerOpening:
        """The ways to open the ledger over the link."""
        return opening.at_port(link.port)


def until_answered(call: Callable[[], AnswerT]) -> AnswerT:
    """Repeat a call until the server works."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except LedgerError:
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.01)


async def sent(transport: LedgerTransport, *batch: Verb) -> Sequence[Answer]:
    """Send a batch, again as often as it has no answer, as the lane does.

    Raises:
        LedgerReplacedError: the server's incarnation is another one.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await transport.send(batch)
        except LedgerReplacedError:
            raise
        except LedgerError:
            assert time.monotonic() < deadline, "the server does not answer"


class ShiftedClock(SystemClock):
    """The machine's clock, set wrong."""

    def __init__(self, shift: int = 0) -> None:
        """Shift the time by some microseconds."""
        self._shift = shift

    def now(self) -> int:
        """Return microseconds since 1970 UTC, shifted."""
        return super().now() + self._shift
