"""A minimal HTTP client on the standard library, so that the doctor needs no other package."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

# Without a web proxy: the requests must reach the LiteLLM proxy directly.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Response(NamedTuple):
    """A response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    text: str


def check_url(url: str) -> str:
    """Return the base URL of a proxy, without a trailing `/v1`.

    Raises:
        click.BadParameter: the address is not an HTTP URL.
    """
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter(f"--url: expected http://HOST:PORT; found {url}.")
    return url.rstrip("/").removesuffix("/v1")


def fetch(
    url: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None, *, seconds: float = 60
) -> Response:
    """Send a GET request, or POST if there is a body, and return the response with any status.

    Raises:
        OSError: no response was received.
    """
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, dict(headers or {}))  # noqa: S310  # validated by the caller
    try:
        with _OPENER.open(request, timeout=seconds) as response:
            return _answer(response.status, response)
    except urllib.error.HTTPError as error:
        with error:
            return _answer(error.code, error)
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _answer(status: int, response: Any) -> Response:  # a response or an HTTPError of urllib
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Response(status, headers, response.read().decode("utf-8", "replace"))
