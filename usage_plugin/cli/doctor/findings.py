"""Findings of the doctor: one sentence each, with the remedy."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "problem"]
"""`problem`: a guarantee does not hold, or the proxy would not start. `warning`: no guarantee is affected."""

Area = Literal["wiring", "surroundings", "books", "routes"]
"""The values of `area` in the JSON output, which do not change; `rendering` has their titles."""


class Finding(NamedTuple):
    """One fact, and the remedy if it is a warning or a problem."""

    area: Area
    level: Level
    text: str
    remedy: str = ""


def ok(area: Area, text: str) -> Finding:
    """Return the finding of a passed check."""
    return Finding(area, "ok", text)


def warning(area: Area, text: str, remedy: str = "") -> Finding:
    """Return the finding of a risk or a limitation."""
    return Finding(area, "warning", text, remedy)


def problem(area: Area, text: str, remedy: str = "") -> Finding:
    """Return the finding of a failed check."""
    return Finding(area, "problem", text, remedy)
