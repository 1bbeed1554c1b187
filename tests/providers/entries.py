"""The corpus: providers' answers and the cost of each request, worked out by hand.

Each file under `corpus/` is a list of entries. One entry is one deployment and one answer:

- `name`, `kind`: the name of the entry, and the class of inputs that it represents.
- `deployment`: `litellm_params`; `api_base` and keys are added by provider. `model_info` goes where LiteLLM expects it.
- `routes`: `chat`, `messages`, `responses`, `completions`, `gemini`, `embeddings`, `rerank`, `images`, `speech`,
  `transcription`, and LiteLLM's pass-through routes `anthropic`, `openai_pass`, `openrouter_pass`, `mistral_pass` and
  `gemini_pass`, which serve the model without its deployment. Any other pass-through route is `pass`, with its `path`,
  in which `{name}` is the name of the entry. Its body has only the fields of `request`.
- `ways`: `whole` and `stream`; both by default.
- `request`: further fields of the body. `answer`: see `wire`.
- `expected`: `cost` is a decimal string, or null if no price is known. `estimated` means that the provider reported no
  usage: the event has some cost, marked as estimated. `charged` means that the event has some cost.
  `arithmetic` shows the calculation: its value must be `cost`, and each price in it must be in the sheet or under
  `published`. `off_peak` has both for another time of day. `input`, `output`, `cached`, `written` and `reasoning` are
  tokens. Other keys are fields of the event. `status` is success by default; null is any.
- `sheet`: the entry of LiteLLM's price map with these prices; several if several of them bill an answer.
- `rule`: the provider's own rule, if it decides between two readings or against LiteLLM's arithmetic.
- `limit`, `requests` and `admitted`: a limit of the caller, the number of requests, sent one after the other, and the
  number that may pass.
- `polls` and `polled`: the answers to `GET /v1/responses/ID`, the last one repeatedly, and the number of polls. The
  expected numbers are then the sums over all events. `sent` under `expected` is part of the body that the provider
  received.
- `needs`: a module that LiteLLM needs for this provider, and that an installation may lack.
- `one_by_one`: send each request only after the previous one is settled.
- `settings`: the proxy that the entry needs, by its name in `conftest.SETTINGS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CORPUS = Path(__file__).parent / "corpus"
WAYS = ("whole", "stream")
NEVER_STREAMED = ("embeddings", "rerank", "images", "speech", "transcription")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One deployment, one answer, one expected cost."""

    name: str
    kind: str
    deployment: dict[str, Any]
    routes: list[str]
    answer: dict[str, Any]
    expected: dict[str, Any]
    ways: list[str] = field(default_factory=lambda: list(WAYS))
    request: dict[str, Any] = field(default_factory=dict)
    sheet: list[str] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    rule: str = ""
    limit: dict[str, Any] | None = None
    admitted: list[int] | None = None
    requests: int = 1
    polls: list[dict[str, Any]] = field(default_factory=list)
    polled: int = 0
    needs: str | None = None
    settings: str = "plain"
    path: str = ""
    one_by_one: bool = False
    file: str = ""

    @property
    def params(self) -> dict[str, Any]:
        return {name: value for name, value in self.deployment.items() if name != "model_info"}

    @property
    def model_info(self) -> dict[str, Any]:
        return self.deployment.get("model_info", {})


class Call(NamedTuple):
    """One request of an entry: on one route, whole or as a stream."""

    entry: Entry
    route: str
    way: str

    @property
    def key(self) -> str:
        return f"{self.entry.name}.{self.route}.{self.way}"


def load() -> list[Entry]:
    found = []
    for path in sorted(CORPUS.glob("*.yaml")):
        for raw in yaml.safe_load(path.read_text()):
            routes = raw.pop("routes")
            sheet = raw.pop("sheet", [])
            try:
                entry = Entry(**raw, routes=routes, sheet=[sheet] if isinstance(sheet, str) else sheet, file=path.name)
            except TypeError as error:
                raise AssertionError(f"{path.name}, {raw.get('name')}: {error}") from None
            found.append(entry)
    return found


def calls(entries: list[Entry]) -> list[Call]:
    return [
        Call(entry, route, way)
        for entry in entries
        for route in entry.routes
        for way in entry.ways
        if way == "whole" or route not in NEVER_STREAMED
    ]


_PRICE = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])")
_ALLOWED = re.compile(r"[\d\s.e+\-*/()]+")


def value_of(arithmetic: str) -> Decimal:
    """Return the value of an entry's `arithmetic`: numbers, + - * / and parentheses, in decimals."""
    assert _ALLOWED.fullmatch(arithmetic), arithmetic
    decimals = _PRICE.sub(lambda number: f"Decimal('{number.group()}')", arithmetic)
    return Decimal(eval(decimals, {"Decimal": Decimal}))


def prices_in(arithmetic: str) -> set[Decimal]:
    """Return the prices in an entry's `arithmetic`: the numbers that are not whole."""
    numbers = (Decimal(number) for number in _PRICE.findall(arithmetic))
    return {number for number in numbers if number != number.to_integral_value()}
