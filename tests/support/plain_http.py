"""HTTP to servers on this machine without loading TLS certificates, which takes 22 ms for each client."""

from __future__ import annotations

from functools import partial

import httpx

_PLAIN = {"verify": False, "trust_env": False, "timeout": 60}

Client = partial(httpx.Client, **_PLAIN)
AsyncClient = partial(httpx.AsyncClient, **_PLAIN)
get = partial(httpx.get, **_PLAIN)
put = partial(httpx.put, **_PLAIN)
post = partial(httpx.post, **_PLAIN)
request = partial(httpx.request, **_PLAIN)
