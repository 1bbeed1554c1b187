"""HTTP with the standard library: enough to ask a proxy, and nothing to install."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

# A proxy for the web has no business between the doctor and a LiteLLM proxy.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Answer(NamedTuple):
    """What came back; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    text: str


def check_url(url: str) -> str:
    """Take the address of a proxy as people write it.

    Raises:
        click.BadParameter: it is none.
    """
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter(f"--url {url}: write http://HOST:PORT.")
    return url.rstrip("/").removesuffix("/v1")


def fetch(
    url: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None, *, seconds: float = 60
) -> Answer:
    """Get, or post if there is a body; any status is an answer.

    Raises:
        OSError: there was none.
    """
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, dict(headers or {}))  # noqa: S310  # the caller has checked it
    try:
        with _OPENER.open(request, timeout=seconds) as response:
            return _answer(response.status, response)
    except urllib.error.HTTPError as error:
        with error:
            return _answer(error.code, error)
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _answer(status: int, response: Any) -> Answer:  # an answer or an error of urllib's
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(status, headers, response.read().decode("utf-8", "replace"))
