"""A real server that speaks S3, out of the package moto, as a process of its own.

It serves one request at a time: S3 compares and replaces an object in one step, and moto does so in two, between which
another thread could write. The process ends when its standard input does, also because the test process was killed.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from obstore.exceptions import GenericError

from usage_plugin.backends.objects import ObjectsBackend
from usage_plugin.errors import StorageUnavailableError
from usage_plugin.testing.openings import StoreOpening

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BUCKET = "a.bucket"

KEY = {"region": "us-east-1", "access_key_id": "a-test", "secret_access_key": "a-secret-of-the-test"}

_SERVER = """
import os, sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

class Quiet(WSGIRequestHandler):
    def log_request(self, *args): pass

server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), request_handler=Quiet)
print(server.server_port, flush=True)

def end_with_the_test():
    sys.stdin.read()
    os._exit(0)

threading.Thread(target=end_with_the_test, daemon=True).start()
server.serve_forever()
"""


_numbers = itertools.count()


@dataclass(frozen=True)
class ObjectServer:
    """A running server."""

    url: str
    pid: int

    def make_bucket(self, name: str) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/{name}", method="PUT"), timeout=60).close()

    def opening(self, folder: Path) -> PrefixOpening:
        """Return the opening of a new history, below a prefix of its own."""
        return PrefixOpening(ObjectsBackend(), folder / "data" / "usage", new_options(self))


@dataclass(frozen=True, slots=True)
class PrefixOpening(StoreOpening):
    """The opening of a history in the server's bucket."""

    def another(self) -> PrefixOpening:
        """Return the opening of another, new history."""
        return replace(self, options={**self.options, "url": _new_url()})


def new_options(server: ObjectServer) -> dict[str, str]:
    """Return the options of a new history on a server."""
    return {"url": _new_url(), "endpoint": server.url, **KEY}


def _new_url() -> str:
    return f"s3://{BUCKET}/some/prefix-{next(_numbers)}"


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    """Run a server with a bucket, on loopback."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        server = ObjectServer(f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid)
        server.make_bucket(BUCKET)
        yield server
    finally:
        process.kill()  # also while it is stopped by a signal
        process.communicate()


@pytest.fixture(scope="session")
def s3() -> Iterator[ObjectServer]:
    """A running server."""
    with object_server() as server:
        yield server


class StoreOnObjects:
    """The part of a contract that opens the store in the bucket of a running server.

    One promise of durability is about a disk of the store's own, which this one has not.
    """

    fault_points: ClassVar[Mapping[str, Exception]] = {
        f"usage_plugin.backends.objects.bucket.{name}": GenericError("cut off")
        for name in ("put", "get", "get_range", "delete", "list_objects")
    }
    test_a_full_disk_leaves_all_or_nothing: Any = None

    @pytest.fixture
    def opening(self, s3: ObjectServer, tmp_path: Path) -> PrefixOpening:
        return s3.opening(tmp_path)

    async def test_only_storage_errors_come_out(self, opening: PrefixOpening) -> None:
        """If a store cannot be opened because its bucket does not exist, it raises StorageError."""
        elsewhere = replace(opening, options={**opening.options, "url": "s3://no-bucket/x"})
        with pytest.raises(StorageUnavailableError, match=r"s3://no-bucket/x does not exist\. Create it") as caught:
            async with elsewhere.open():
                pass
        assert KEY["secret_access_key"] not in str(caught.value)
