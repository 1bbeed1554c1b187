"""Requests to an object store: whole objects, ranges, and writes under a condition. Only this module knows obstore.

There is no rename, no append and no lock. Exactness rests on one promise of the store: of several writers that replace
the same version of an object, one succeeds.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotModifiedError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from usage_plugin.errors import ObjectReplacedError, StorageError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_CREDENTIALS_HINT = "Check the credentials: the options, the variables of the cloud, or the machine's role."
_LONGEST_MESSAGE = 300


class Version(NamedTuple):
    """One version of an object, as conditions name it."""

    e_tag: str | None
    number: str | None

    def mode(self) -> dict[str, str]:
        """Return the condition of a write that replaces this version only."""
        given = {"e_tag": self.e_tag, "version": self.number}
        return {name: value for name, value in given.items() if value is not None}


class Content(NamedTuple):
    """The content of an object, None if it is the known one, and its version."""

    data: bytes | None
    version: Version


def put(store: Any, path: str, data: bytes, **how: Any) -> Any:
    """Write an object."""
    return obstore.put(store, path, data, use_multipart=False, **how)


def get(store: Any, path: str, **how: Any) -> Any:
    """Begin to read an object."""
    return obstore.get(store, path, **how)


def get_range(store: Any, path: str, start: int, end: int) -> bytes:
    """Read a range of an object."""
    return bytes(obstore.get_range(store, path, start=start, end=end))


def delete(store: Any, paths: Sequence[str]) -> None:
    """Delete objects."""
    obstore.delete(store, paths)


def list_objects(store: Any, prefix: str) -> Iterator[Sequence[Any]]:
    """Yield pages of the objects below a prefix."""
    return iter(obstore.list(store, prefix, chunk_size=1_000))


class Bucket:
    """The objects below a prefix of a bucket. Its methods block, and may be called from any thread.

    They raise `StorageUnavailableError` if the store does not answer or refuses.
    """

    def __init__(self, url: str, settings: Mapping[str, str]) -> None:
        """Use a bucket; no request is made yet.

        Args:
            url: The bucket and the prefix.
            settings: The driver's settings; without credentials, those of the environment are used.
        """
        self.url = url
        with self._translated():
            self._store: Any = from_url(url, **_driver_options(settings))

    def read(self, path: str, known: Version | None = None) -> Content | None:
        """Return an object; None if it is missing.

        Args:
            path: The object.
            known: A version that need not be sent again.
        """
        how = {"options": {"if_none_match": known.e_tag}} if known is not None and known.e_tag else {}
        with self._translated():
            try:
                found = get(self._store, path, **how)
                return Content(bytes(found.bytes()), Version(found.meta["e_tag"], found.meta["version"]))
            except NotModifiedError:
                return known and Content(None, known)
            except FileNotFoundError as error:
                self._check_bucket(error)
                return None

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Return the bytes from start to end, exclusive.

        Raises:
            ObjectReplacedError: There is no such object.
        """
        if start == end:
            return b""
        with self._translated():
            try:
                return get_range(self._store, path, start, end)
            except FileNotFoundError as error:
                self._check_bucket(error)
                raise ObjectReplacedError(f"{self.url}/{path} is missing.") from None

    def write(self, path: str, data: bytes) -> None:
        """Write an object, durable on return."""
        with self._translated():
            put(self._store, path, data)

    def replace(self, path: str, data: bytes, version: Version | None) -> Version | None:
        """Write an object if it still has a version, or with None if it is missing.

        Returns:
            The new version; None if another writer was first. None is also the answer to a repeated request, the first
            of which succeeded without an answer: read the object then.
        """
        with self._translated():
            try:
                done = put(self._store, path, data, mode="create" if version is None else version.mode())
            except (AlreadyExistsError, PreconditionError):
                return None
            return Version(done["e_tag"], done["version"])

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects; missing ones are ignored."""
        with self._translated():
            if paths:
                delete(self._store, list(paths))

    def names(self, prefix: str) -> Iterator[str]:
        """Yield the names of all objects below a prefix; each thousand is one request."""
        with self._translated():
            for page in list_objects(self._store, prefix):
                for found in page:
                    yield found["path"]

    def _check_bucket(self, error: FileNotFoundError) -> None:
        if "NoSuchBucket" in str(error):
            raise StorageUnavailableError(
                f"The bucket of {self.url} does not exist.", hint="Create it, or correct storage.options.url."
            ) from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate errors of the driver into ours."""
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StorageUnavailableError(
                f"{self.url} refuses access: {_short(error)}.", hint=_CREDENTIALS_HINT
            ) from error
        except NotSupportedError as error:
            raise StorageError(
                f"{self.url} has no conditional writes: {_short(error)}.", hint="Use a store that has them, such as S3."
            ) from error
        except FileNotFoundError as error:
            self._check_bucket(error)
            raise StorageUnavailableError(f"{self.url} is not available: {_short(error)}.") from error
        except (BaseError, OSError, ValueError) as error:
            raise StorageUnavailableError(f"{self.url} is not available: {_short(error)}.") from error


def _driver_options(settings: Mapping[str, str]) -> dict[str, Any]:
    return {
        "config": dict(settings),
        "client_options": {
            # Without TLS only if the endpoint is written so.
            "allow_http": settings.get("endpoint", "").startswith("http://"),
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(seconds=30),
        },
        "retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=15)},
    }


def _short(error: Exception) -> str:
    """Return the first line of a message: the driver adds pages of its own state."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(" .")[:_LONGEST_MESSAGE]
