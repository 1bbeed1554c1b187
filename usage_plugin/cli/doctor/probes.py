"""Probes: a request through every route of a proxy, and its traces in the ledger.

Each request has a call id of the doctor's own, which identifies its event. Three properties are checked: the *gate*
admitted or refused it, the *record* has exactly one event of it, and its reservation is *settled*.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.cli.doctor.findings import Finding, Level, ok, problem
from usage_plugin.cli.doctor.http_client import Response, fetch
from usage_plugin.domain.money import format_usd
from usage_plugin.encoding import decode_event

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.usage import UsageEvent

RECORD_SECONDS = 15.0
_USER = "usage-doctor"
_TOKENS = 16
_PAGE = 1_000


class Probe(NamedTuple):
    """One request: `name` for people, `path` and `body` for the proxy.

    Attributes:
        refused: whether a limit must refuse the request.
    """

    name: str
    path: str
    body: dict[str, Any]
    refused: bool = False

    @property
    def streams(self) -> bool:
        """Whether the response is streamed."""
        return bool(self.body.get("stream"))


class Mark(NamedTuple):
    """The result of one check: passed, failed, or None if it could not be observed; and the reason."""

    ok: bool | None
    why: str = ""


class Result(NamedTuple):
    """The result of a probe."""

    probe: Probe
    gate: Mark
    record: Mark
    settle: Mark
    note: str = ""

    @property
    def level(self) -> Level:
        """A problem if a check failed, a warning if one could not be observed."""
        marks = [self.gate.ok, self.record.ok, self.settle.ok]
        if False in marks:
            return "problem"
        return "warning" if None in marks and not self.probe.refused else "ok"


def all_probes(model: str, messages_model: str, embedding_model: str, blocked: str | None = None) -> list[Probe]:
    """Return a probe for each route, streamed and not streamed."""
    # Random text: LiteLLM's cache must not answer.
    text = f"usage-doctor {secrets.token_hex(4)}: say fine."
    chat = {"model": model, "user": _USER, "max_tokens": _TOKENS, "messages": [{"role": "user", "content": text}]}
    completion = {"model": model, "user": _USER, "max_tokens": _TOKENS, "prompt": text}
    response = {"model": model, "user": _USER, "max_output_tokens": _TOKENS, "input": text}
    message = {
        "model": messages_model,
        "metadata": {"user_id": _USER},
        "max_tokens": _TOKENS,
        "messages": chat["messages"],
    }
    routes = [
        ("chat", "/v1/chat/completions", chat),
        ("completions", "/v1/completions", completion),
        ("responses", "/v1/responses", response),
        ("messages", "/v1/messages", message),
    ]
    probes = [Probe(name, path, {**body, **stream}) for name, path, body in routes for stream in ({}, {"stream": True})]
    probes += [
        Probe("embeddings", "/v1/embeddings", {"model": embedding_model, "user": _USER, "input": text}),
        Probe("chat, no-log", "/v1/chat/completions", {**chat, "no-log": True, "max_tokens": _TOKENS - 1}),
    ]
    if blocked is not None:
        probes.append(Probe("chat, refused", "/v1/chat/completions", {**chat, "user": blocked}, refused=True))
    return probes


def check_access(url: str, key: str) -> Finding | None:
    """Return a problem if the proxy does not answer or rejects the key; no probe is possible then."""
    try:
        answer = fetch(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    except OSError as error:
        return problem(
            "routes", f"No answer from {url}: {getattr(error, 'reason', error)}.", "Check that the proxy is running."
        )
    if answer.status != 200:
        return problem(
            "routes",
            f"{url} rejects the key: {answer.status}: {_message(answer)}",
            "Give a key that may use the model, with LITELLM_MASTER_KEY or at the prompt.",
        )
    return None


async def run_probes(
    url: str,
    key: str,
    probes: Sequence[Probe],
    ledger: Ledger | None,
    *,
    headers: Sequence[str] = (),
    calls: Callable[[], int] | None = None,
    progress: Callable[[str], None],
) -> list[Result]:
    """Send every probe, wait for its event in the ledger, and evaluate the results.

    Args:
        url: the address of the proxy.
        key: a key that may use its models.
        probes: the requests to send.
        ledger: the proxy's ledger; None if it is not accessible.
        headers: names of headers that identify the user.
        calls: returns the number of requests that reached the provider; None if unknown.
        progress: called with the name of each step.
    """
    after = _newest(ledger) if ledger else 0
    sent: list[tuple[Probe, str, Response | None, str]] = []
    for probe in probes:
        progress(f"{probe.name}{' (stream)' if probe.streams else ''}")
        call_id = f"usage-doctor-{secrets.token_hex(8)}"
        before = calls() if calls else 0
        answer, why = await asyncio.to_thread(_send, url, key, probe, call_id, headers)
        if calls and probe.refused and calls() > before:
            answer, why = None, "it was refused, but the provider was still called"
        sent.append((probe, call_id, answer, why))
    if ledger is None:
        return [_evaluate(probe, answer, why, None, held=None) for probe, _, answer, why in sent]
    progress("the ledger")
    due = {call_id for probe, call_id, answer, _ in sent if answer is not None and not _refusal(answer)}
    found = await _events(ledger, after, due)
    held = await _held(ledger, due)
    return [
        _evaluate(probe, answer, why, found.get(call_id, []), held=call_id in held)
        for probe, call_id, answer, why in sent
    ]


def findings_of(results: Sequence[Result]) -> list[Finding]:
    """Return one finding that summarises the results; none without results."""
    if not results:
        return []
    counts = Counter(result.level for result in results)
    bad = [result.probe.name for result in results if result.level == "problem"]
    if bad:
        return [problem("routes", f"{len(bad)} of {len(results)} requests failed: {', '.join(dict.fromkeys(bad))}.")]
    if counts["warning"]:
        return [Finding("routes", "warning", f"{counts['warning']} of {len(results)} requests could not be checked.")]
    return [ok("routes", f"Gate, record and settlement work on all {len(results)} requests.")]


def _send(url: str, key: str, probe: Probe, call_id: str, names: Sequence[str]) -> tuple[Response | None, str]:
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "x-litellm-call-id": call_id,
        **dict.fromkeys(names, _USER),
    }
    try:
        return fetch(f"{url}{probe.path}", probe.body, headers), ""
    except OSError as error:
        return None, str(getattr(error, "reason", error))


def _newest(ledger: Ledger) -> int:
    seq = ledger.acknowledged()
    while page := ledger.outbox(seq, _PAGE):
        seq = page[-1].seq
    return seq


async def _events(ledger: Ledger, seq: int, due: set[str]) -> dict[str, list[UsageEvent]]:
    """Return new events by call id, after waiting for all that are due and 0.5 s longer, to detect duplicates."""
    found: dict[str, list[UsageEvent]] = {}
    deadline = time.monotonic() + RECORD_SECONDS
    while time.monotonic() < deadline:
        while page := ledger.outbox(seq, _PAGE):
            seq = page[-1].seq
            for event in (decode_event(entry.event) for entry in page):
                if event.call_id and event.call_id in due:
                    found.setdefault(event.call_id, []).append(event)
        if due <= found.keys():
            deadline = min(deadline, time.monotonic() + 0.5)
        await asyncio.sleep(0.1)
    return found


async def _held(ledger: Ledger, due: set[str]) -> set[str]:
    """Return the call ids of requests whose reservation is still open."""
    return {
        call_id
        for reservation in ledger.open_reservations()
        if (call_id := decode_event(reservation.event).call_id) and call_id in due
    }


def _refusal(answer: Response) -> str | None:
    return answer.headers.get("x-usage-refusal")


def _evaluate(
    probe: Probe, answer: Response | None, why: str, events: list[UsageEvent] | None, *, held: bool | None
) -> Result:
    unknown = Mark(None)
    if answer is None:
        return Result(probe, Mark(False, why), unknown, unknown, why)
    refusal = _refusal(answer)
    if probe.refused:
        why = "refused as expected" if refusal else "a limit of 0 did not refuse it"
        return Result(probe, Mark(refusal is not None, why), unknown, unknown, why)
    if refusal:
        why = f"refused ({refusal}) by {answer.headers.get('x-usage-limit', 'no limit')}: no further checks"
        return Result(probe, Mark(True, why), unknown, unknown, why)
    note = "" if answer.status < 400 else f"{answer.status}: {_message(answer)}"
    if answer.status in (401, 403):
        why = f"the key may not use this route: {note}"
        return Result(probe, Mark(None, why), unknown, unknown, why)
    seen = any(name.startswith("x-usage-") for name in answer.headers)
    if events is None:
        gate = Mark(True) if seen else Mark(None, "no x-usage-* header, and the ledger is not accessible")
        marks = (gate, unknown, unknown)
    elif not events:
        gate = Mark(seen, "" if seen else "no sign that the plugin handled it")
        marks = (gate, Mark(False, f"no event after {RECORD_SECONDS:.0f} s"), _settled(held=held))
    else:
        once = Mark(len(events) == 1, "" if len(events) == 1 else f"{len(events)} events")
        marks = (Mark(True), once, _settled(held=held))
        note = ", ".join(filter(None, (_event_words(events[0]), note)))
    return Result(probe, *marks, ", ".join(filter(None, (*(mark.why for mark in marks), note))))


def _settled(*, held: bool | None) -> Mark:
    return Mark(not held, "its reservation is still open" if held else "")


def _event_words(event: UsageEvent) -> str:
    cost = "no price" if event.cost is None else f"{format_usd(event.cost)} USD"
    return f"{event.status}, {event.input_tokens} + {event.output_tokens} tokens, {cost}"


def _message(answer: Response) -> str:
    """Return the message of an error response, at most 160 characters."""
    try:
        error = json.loads(answer.text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        text = answer.text
    return " ".join(text.split())[:160]
