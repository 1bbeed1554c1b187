"""Error messages of the configuration: the line, the path, the value found and the remedy."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from usage_plugin.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from usage_plugin.config.yaml_text import Location

_MAX_MISTAKES = 100
_MAX_MISTAKE_LENGTH = 2_000
_MAX_VALUE_LENGTH = 60
_LIKELY_SECRET = re.compile(r"[0-9a-fA-F]{32,}")

# Keys of LiteLLM and of other limiters, and our names for them.
_REMEDIES = {
    "rpm_limit": "write max_requests with window: minute",
    "tpm_limit": "write max_total_tokens with window: minute",
    "rpm": "write max_requests with window: minute",
    "tpm": "write max_total_tokens with window: minute",
    "max_budget": "write max_cost",
    "soft_budget": "write alert_at, for example alert_at: [80]",
    "budget": "write max_cost",
    "budget_duration": "write window, for example window: month",
    "max_tokens": "write max_total_tokens, max_input_tokens or max_output_tokens",
    "max_parallel": "write max_parallel_requests",
    "rolling": "write window: {rolling: 5h}",
    "users": "write match: {user: [...]}",
    "models": "write match: {model: [...]}",
    "tz": "write timezone",
}

_SHAPES = {"model_type": "keys and their values", "dict_type": "keys and their values", "tuple_type": "a list"}

# An example for each key with keys of its own, for a YAML that has a word in its place.
_EXAMPLES = {
    "storage": "{backend: hybrid}",
    "ledger": "{backend: sqlite}",
    "admission": "{max_wait: 2s}",
    "max_output_tokens": '{"o3*": 32000}',
    "cache": "{size: 1000}",
    "identity": "{user: [key, end_user]}",
    "retention": "{events: 90d}",
    "privacy": "{user: pseudonym}",
    "plugins": "{path: ./my_plugin.py}",
    "limits": "{name: daily, per: user, window: day, max_cost: 5}",
    "overrides": "{match: {user: eva}, max_cost: 40}",
    "match": "{user: eva}",
    "groups": '{power: [dana, "*@research.corp"]}',
}


def place(location: Location, lines: Mapping[Location, int], within: Location) -> str:
    """Return the line and the path of a value, as the beginning of its error."""
    known = location
    while known and known not in lines:
        known = known[:-1]
    line = f"line {lines[known]}: " if known in lines else ""
    return line + (".".join(map(str, (*within, *location))) or "the file")


def describe(mistake: Mapping[str, Any], location: Location, lines: Mapping[Location, int], within: Location) -> str:
    """Return one line for a mistake that pydantic found: the place, the value and the remedy.

    Args:
        mistake: One of pydantic's errors.
        location: Its path in the YAML.
        lines: The line of each path.
        within: The path of the section.
    """
    where = place(location, lines, within)
    found = mistake["input"]
    kind = mistake["type"]
    if kind == "extra_forbidden":
        remedy = _REMEDIES.get(str(location[-1]), "unknown key; see docs/configuration.md for all keys")
        return f"{where}: found {short(found)}; {remedy}"
    if kind == "missing":
        return f"{where}: is missing"
    if kind == "value_error":
        return f"{where}: {mistake['ctx']['error']}"
    if kind in _SHAPES:
        named = [word for word in location if isinstance(word, str)]
        example = _EXAMPLES.get(named[-1]) if named else None
        if example and kind == "tuple_type":
            example = f"[{example}]"
        return f"{where}: expected {_SHAPES[kind]}{f', such as {example}' if example else ''}; found {short(found)}"
    return f"{where}: found {short(found)}; {mistake['msg'][0].lower()}{mistake['msg'][1:]}"


def short(value: object) -> str:
    """Return a value as text of bounded length, without secrets: they may be under a misspelt key."""
    text = _LIKELY_SECRET.sub("…", str(value) if isinstance(value, Decimal) else repr(value))
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[: _MAX_VALUE_LENGTH - 3]}..."


def config_error(source: Path | str, mistakes: Sequence[str]) -> ConfigError:
    """Return one error for all mistakes of a file.

    Its length is bounded: a file of the wrong kind can have a million mistakes, or a single one of a million letters.
    """
    shown = [
        line if len(line) <= _MAX_MISTAKE_LENGTH else f"{line[:_MAX_MISTAKE_LENGTH]}…"
        for line in mistakes[:_MAX_MISTAKES]
    ]
    if len(mistakes) > _MAX_MISTAKES:
        shown.append(f"and {len(mistakes) - _MAX_MISTAKES:,} more")
    return ConfigError("\n  ".join([f"Invalid configuration: {source}", *shown]))
