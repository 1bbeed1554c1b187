"""Findings: what the doctor has to say, one sentence each, with what to do about it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "problem"]
"""`problem`: a promise does not hold, or the proxy would not start. `warning`: worth knowing."""

Area = Literal["wiring", "surroundings", "books", "routes"]


class Finding(NamedTuple):
    """One fact, and the remedy if it is not as it should be."""

    area: Area
    level: Level
    text: str
    remedy: str = ""


def ok(area: Area, text: str) -> Finding:
    """Say that something is as it should be."""
    return Finding(area, "ok", text)


def warning(area: Area, text: str, remedy: str = "") -> Finding:
    """Say something that is worth knowing."""
    return Finding(area, "warning", text, remedy)


def problem(area: Area, text: str, remedy: str = "") -> Finding:
    """Say that something would break."""
    return Finding(area, "problem", text, remedy)
