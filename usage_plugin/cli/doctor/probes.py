"""Probes: a request through every route of a proxy, and what the books say of it.

Each request carries a call id of the doctor's own, by which its event is found. Three things are proved for each:
the *gate* saw it and admitted or refused it, the *record* has exactly one event of it, and what it held is *settled*.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.cli.doctor.findings import Finding, Level, ok, problem
from usage_plugin.cli.doctor.http_client import Answer, fetch
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
        refused: whether a limit must refuse it.
    """

    name: str
    path: str
    body: dict[str, Any]
    refused: bool = False

    @property
    def streams(self) -> bool:
        """Whether the answer comes in pieces."""
        return bool(self.body.get("stream"))


class Mark(NamedTuple):
    """One of the three things: proved, disproved, or (None) not to be seen; and why."""

    ok: bool | None
    why: str = ""


class Result(NamedTuple):
    """What a probe showed."""

    probe: Probe
    gate: Mark
    record: Mark
    settle: Mark
    note: str = ""

    @property
    def level(self) -> Level:
        """A problem if anything is disproved, a warning if the request did not go as it should."""
        marks = [self.gate.ok, self.record.ok, self.settle.ok]
        if False in marks:
            return "problem"
        return "warning" if None in marks and not self.probe.refused else "ok"


def all_probes(model: str, messages_model: str, embedding_model: str, blocked: str | None = None) -> list[Probe]:
    """List a probe for each route, whole and streamed."""
    # Never twice the same, or LiteLLM's cache might answer.
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


def knock(url: str, key: str) -> Finding | None:
    """Say if nobody answers, or if the key opens nothing: then no request proves anything."""
    try:
        answer = fetch(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    except OSError as error:
        return problem("routes", f"Nobody answers at {url}: {getattr(error, 'reason', error)}.", "Is the proxy up?")
    if answer.status != 200:
        return problem(
            "routes",
            f"{url} does not take the key: {answer.status}: {_message(answer)}",
            "Name one that may use the model, with LITELLM_MASTER_KEY or at the prompt.",
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
    """Send every probe, wait for the books, and judge.

    Args:
        url: of the proxy.
        key: one that may use its models.
        probes: what to send.
        ledger: the proxy's books, if they are here.
        headers: names of headers that say who the user is.
        calls: counts what reached the provider, if somebody can tell.
        progress: told what is being done.
    """
    after = _newest(ledger) if ledger else 0
    sent: list[tuple[Probe, str, Answer | None, str]] = []
    for probe in probes:
        progress(f"{probe.name}{' (stream)' if probe.streams else ''}")
        call_id = f"usage-doctor-{secrets.token_hex(8)}"
        before = calls() if calls else 0
        answer, why = await asyncio.to_thread(_send, url, key, probe, call_id, headers)
        if calls and probe.refused and calls() > before:
            answer, why = None, "it was refused, but the provider was called all the same"
        sent.append((probe, call_id, answer, why))
    if ledger is None:
        return [_judge(probe, answer, why, None, held=None) for probe, _, answer, why in sent]
    progress("the books")
    due = {call_id for probe, call_id, answer, _ in sent if answer is not None and not _refusal(answer)}
    found = await _events(ledger, after, due)
    held = await _held(ledger, due)
    return [
        _judge(probe, answer, why, found.get(call_id, []), held=call_id in held) for probe, call_id, answer, why in sent
    ]


def findings_of(results: Sequence[Result]) -> list[Finding]:
    """Sum the results up in a sentence, if there are any."""
    if not results:
        return []
    counts = Counter(result.level for result in results)
    bad = [result.probe.name for result in results if result.level == "problem"]
    if bad:
        return [
            problem("routes", f"{len(bad)} of {len(results)} requests went wrong: {', '.join(dict.fromkeys(bad))}.")
        ]
    if counts["warning"]:
        return [Finding("routes", "warning", f"{counts['warning']} of {len(results)} requests could not be proved.")]
    return [ok("routes", f"Gate, record and settlement work on all {len(results)} requests.")]


def _send(url: str, key: str, probe: Probe, call_id: str, names: Sequence[str]) -> tuple[Answer | None, str]:
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
    """Read new events until all that are due have come, and a moment longer: a second one would be a mistake."""
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
    """Find which of the requests still hold something."""
    return {
        call_id
        for reservation in ledger.open_reservations()
        if (call_id := decode_event(reservation.event).call_id) and call_id in due
    }


def _refusal(answer: Answer) -> str | None:
    return answer.headers.get("x-usage-refusal")


def _judge(
    probe: Probe, answer: Answer | None, why: str, events: list[UsageEvent] | None, *, held: bool | None
) -> Result:
    unknown = Mark(None)
    if answer is None:
        return Result(probe, Mark(False, why), unknown, unknown, why)
    refusal = _refusal(answer)
    if probe.refused:
        why = "refused, as it must be" if refusal else "a limit of 0 did not refuse it"
        return Result(probe, Mark(refusal is not None, why), unknown, unknown, why)
    if refusal:
        why = f"refused ({refusal}) by {answer.headers.get('x-usage-limit', 'no limit')}: not proved further"
        return Result(probe, Mark(True, why), unknown, unknown, why)
    note = "" if answer.status < 400 else f"{answer.status}: {_message(answer)}"
    if answer.status in (401, 403):
        why = f"the key may not use this route: {note}"
        return Result(probe, Mark(None, why), unknown, unknown, why)
    seen = any(name.startswith("x-usage-") for name in answer.headers)
    if events is None:
        gate = Mark(True) if seen else Mark(None, "no x-usage-* header, and the books are not here")
        marks = (gate, unknown, unknown)
    elif not events:
        gate = Mark(seen, "" if seen else "nothing shows that the plugin saw it")
        marks = (gate, Mark(False, f"no event after {RECORD_SECONDS:.0f} s"), _settled(held=held))
    else:
        once = Mark(len(events) == 1, "" if len(events) == 1 else f"{len(events)} events")
        marks = (Mark(True), once, _settled(held=held))
        note = ", ".join(filter(None, (_told(events[0]), note)))
    return Result(probe, *marks, ", ".join(filter(None, (*(mark.why for mark in marks), note))))


def _settled(*, held: bool | None) -> Mark:
    return Mark(not held, "its reservation is still open" if held else "")


def _told(event: UsageEvent) -> str:
    cost = "no price" if event.cost is None else f"{format_usd(event.cost)} USD"
    return f"{event.status}, {event.input_tokens} + {event.output_tokens} tokens, {cost}"


def _message(answer: Answer) -> str:
    """Find what an error says, without the rest."""
    try:
        error = json.loads(answer.text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        text = answer.text
    return " ".join(text.split())[:160]
