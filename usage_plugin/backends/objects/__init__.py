"""The `objects` backend: the history in an object store, such as S3, so that hosts need no disk of their own.

    storage: {backend: objects, options: {url: "s3://bucket/prefix"}}

`segments` has the format of the objects and `head` the one object that names all others. `bucket` does the requests,
and `segment_reader` and `object_history` read and change the history with them.

This module is imported at every start, so it loads no driver: obstore comes with the extra `objects`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr, model_validator

from usage_plugin.backends.objects.object_store import open_store
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import BackendContext, Options, StorageBackend, check_installed

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from usage_plugin.domain.store import UsageStore

_SCHEMES = ("s3", "gs", "az")


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    # Without the value: it may have a password in it.
    if parts.scheme not in _SCHEMES or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"expected {', '.join(f'{scheme}://bucket/prefix' for scheme in _SCHEMES)}")
    if "@" in parts.netloc:
        raise ValueError("expected a URL without credentials; write them as options, or set the variables of the cloud")
    return url


def _hidden(value: object) -> SecretStr:
    """Wrap a credential, also one that is not text: its validator must not print it."""
    return value if isinstance(value, SecretStr) else SecretStr(str(value))


Credential = Annotated[SecretStr, BeforeValidator(_hidden)]


class ObjectsOptions(Options):
    """The options of the store. Without credentials, those of the environment are used, or of the machine's role.

    Attributes:
        url: The bucket and the prefix of all objects, `s3://bucket/prefix`; also `gs://` and `az://`.
        endpoint: The URL of a server that speaks S3, such as `https://minio.example:9000`; default: Amazon's.
        region: The region of the bucket.
        access_key_id: The name of the key, for S3.
        secret_access_key: The key.
        session_token: The token of a temporary key.
    """

    url: Annotated[str, AfterValidator(_check_url)]
    endpoint: str | None = None
    region: str | None = None
    access_key_id: Credential | None = None
    secret_access_key: Credential | None = None
    session_token: Credential | None = None

    @model_validator(mode="after")
    def _are_for_s3(self) -> ObjectsOptions:
        if not self.url.startswith("s3:") and self.settings:
            raise ValueError(f"expected url: s3://… with {', '.join(self.settings)}; remove them for other clouds")
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("expected access_key_id and secret_access_key together; add the missing one")
        return self

    @property
    def settings(self) -> dict[str, str]:
        """The settings of the driver, with the credentials in plain text."""
        given = {name: getattr(self, name) for name in type(self).model_fields if name != "url"}
        return {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in given.items()
            if value is not None
        }


class ObjectsBackend(StorageBackend[ObjectsOptions]):
    """Keep the history in an object store."""

    name = "objects"
    options_model = ObjectsOptions

    def check(self, options: ObjectsOptions, context: BackendContext) -> None:
        """Check that the driver is installed."""
        del options, context
        check_installed("usage_plugin.storage", "objects", "obstore", "obstore")

    def open(self, options: ObjectsOptions, context: BackendContext) -> AbstractAsyncContextManager[UsageStore]:
        """Open the history; create its first object if there is none."""
        self.check(options, context)
        return open_store(options.url, options.settings, context.zone)


@hookimpl
def usage_register_storage_backends() -> list[StorageBackend[Any]]:
    """Register the backend."""
    return [ObjectsBackend()]
