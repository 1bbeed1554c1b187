"""Mixed load that keeps its own books: each request that was sent, by call id, and the outcome that the client saw."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from tests.support import plain_http

if TYPE_CHECKING:
    import random

    from tests.proxy.conftest import Proxy

KINDS = ("chat", "chat", "chat", "text", "embed", "resp", "claude", "cached", "fallback")
CLIENTS = 40
USER_SECONDS = 20.0
"""Users with small limits exhaust them quickly; new users then replace them."""
LAST = ("data: [DONE]", "event: response.completed", "event: message_stop")


@dataclass(slots=True)
class Sent:
    """One request, under a unique call id.

    Attributes:
        outcome: As the client saw it: `answered` (to the last byte), `refused` (by this plugin), `failed` (any other
            status), `broken` (incomplete answer), `left` (the client hung up) or `lost` (connection failure).
    """

    call_id: str
    user: str
    kind: str
    stream: bool
    plan: dict[str, Any]
    leaves: bool
    outcome: str = "lost"
    status: int = 0
    detail: str = ""


class Load:
    """Send requests until stopped."""

    def __init__(self, proxy: Proxy, rng: random.Random, mark: str) -> None:
        self._proxy = proxy
        self._random = rng
        self._mark = mark
        self._began = time.monotonic()
        self.sent: list[Sent] = []

    async def run(self, seconds: float, *, at_least: int = 0, leaving: bool = True) -> None:
        """Send for `seconds` and until `at_least` requests are sent, then wait for those in flight.

        With `leaving`, some clients hang up.
        """
        until, enough = time.monotonic() + seconds, len(self.sent) + at_least
        async with plain_http.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=None)) as client:
            await asyncio.gather(*(self._client(client, until, enough, leaving=leaving) for _ in range(CLIENTS)))

    def outcomes(self) -> Counter[str]:
        return Counter(sent.outcome for sent in self.sent)

    async def _client(self, client: httpx.AsyncClient, until: float, enough: int, *, leaving: bool) -> None:
        while time.monotonic() < until or len(self.sent) < enough:
            sent = self._next(leaving=leaving)
            self.sent.append(sent)
            patience = self._random.uniform(0, 0.3) if sent.leaves and self._random.random() < 0.5 else None
            parts = self._random.randint(1, 3) if sent.leaves and patience is None else None
            try:
                await asyncio.wait_for(self._send(client, sent, parts), patience)
            except asyncio.TimeoutError:
                sent.outcome = "left"
            except httpx.TransportError as error:
                sent.detail = type(error).__name__
                await asyncio.sleep(0.2)
            if sent.outcome == "refused":
                await asyncio.sleep(0.1)

    def _next(self, *, leaving: bool) -> Sent:
        rng = self._random
        kind = rng.choice(KINDS)
        call_id = f"{self._mark}-{len(self.sent)}"
        plan: dict[str, Any] = {
            "in": rng.randint(1, 900),
            "out": rng.randint(1, 500),
            "delay": rng.choice([0, 0.05, 0.3]),
        }
        plan |= {"cached": 0, "reasoning": 0, "chunks": 4}
        if kind in ("chat", "resp", "claude"):
            plan["cached"] = rng.randint(0, plan["in"])
        leaves = leaving and rng.random() < 0.15
        if leaves:
            plan |= {"pause": 0.05, "wordy": True}
        if kind == "cached":
            plan = {"in": 50, "out": rng.randrange(10), "cached": 0, "reasoning": 0, "mark": self._mark}
        elif kind != "fallback":
            chance = rng.random()
            if chance < 0.04:
                plan["status"] = rng.choice([400, 429, 500])
            elif chance < 0.06:
                plan |= {"fail_first": 1, "mark": call_id}
        if kind != "cached":
            plan["id"] = call_id
        return Sent(call_id, self._user(), kind, kind != "embed" and rng.random() < 0.5, plan, leaves)

    def _user(self) -> str:
        name = self._random.choice(("rich-ann", "rich-zoë", "rich-eva", "poor", "pool", "tokens", "requests"))
        if not name.startswith("rich"):
            name = f"{name}-{int((time.monotonic() - self._began) / USER_SECONDS)}"
        return f"{name}-{self._mark}"

    async def _send(self, client: httpx.AsyncClient, sent: Sent, parts: int | None) -> None:
        route, body = request_of(sent)
        if self._random.random() < 0.05:
            body["no-log"] = True
        headers = {"Authorization": f"Bearer {self._proxy.key}", "x-litellm-call-id": sent.call_id}
        async with client.stream("POST", f"{self._proxy.url}{route}", json=body, headers=headers) as response:
            sent.status = response.status_code
            if response.status_code != 200:
                text = (await response.aread()).decode()
                sent.outcome = "refused" if "x-usage-refusal" in response.headers else "failed"
                sent.detail = response.headers.get("x-usage-refusal", text[:300])
                return
            if not sent.stream:
                await response.aread()
                sent.outcome = "answered"
                return
            seen = 0
            sent.outcome = "broken"
            async for line in response.aiter_lines():
                seen += line.startswith("data: ")
                if line.startswith(LAST):
                    sent.outcome = "answered"
                if '"error": {' in line:
                    sent.detail = line[:300]
                if parts is not None and seen == parts and sent.outcome != "answered":
                    sent.outcome = "left"
                    return


def request_of(sent: Sent) -> tuple[str, dict[str, Any]]:
    """Return the request in the format of its route, padded because a token is at least one byte."""
    text = json.dumps({**sent.plan, "padding": "x" * sent.plan["in"]})
    common: dict[str, Any] = {"user": sent.user, "stream": sent.stream}
    if sent.kind == "text":
        return "/v1/completions", {**common, "model": "text", "prompt": text, "max_tokens": 500}
    if sent.kind == "embed":
        return "/v1/embeddings", {"user": sent.user, "model": "embed", "input": text}
    if sent.kind == "resp":
        return "/v1/responses", {**common, "model": "resp", "input": text, "max_output_tokens": 500}
    messages = [{"role": "user", "content": text}]
    if sent.kind == "claude":
        body = {"model": "claude", "max_tokens": 500, "stream": sent.stream, "metadata": {"user_id": sent.user}}
        return "/v1/messages", {**body, "messages": messages}
    body = {**common, "model": "broken" if sent.kind == "fallback" else "chat", "messages": messages, "max_tokens": 500}
    if sent.kind == "cached":
        body["cache"] = {"use-cache": True}
    return "/v1/chat/completions", body
