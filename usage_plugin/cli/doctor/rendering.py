"""Printed findings, one line each with a mark, and the table of routes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.text import Text

from usage_plugin.cli.anomalies import COUNT_COLUMNS, count_cells
from usage_plugin.cli.output import Column, console, escape_control, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.cli.anomalies import AnomalyCount
    from usage_plugin.cli.doctor.findings import Finding, Level
    from usage_plugin.cli.doctor.probes import Mark, Result

_TITLES = {"wiring": "Wiring", "surroundings": "Environment", "books": "Data", "routes": "Routes"}
_STYLES: dict[Level, str] = {"ok": "green", "warning": "yellow", "problem": "red"}


def show(findings: Sequence[Finding], results: Sequence[Result], counted: Sequence[AnomalyCount]) -> None:
    """Print the findings by area, the results of probes, the anomalies and a summary."""
    screen = console()
    marks = _marks()
    for area, title in _TITLES.items():
        mine = [finding for finding in findings if finding.area == area]
        if mine:
            screen.print(Text(title, style="bold"))
        for finding in mine:
            line = Text(f"  {marks[finding.level]} ", style=_STYLES[finding.level])
            screen.print(line.append(escape_control(finding.text), style="default"))
            for part in finding.remedy.splitlines():
                screen.print(Text(f"      {escape_control(part)}", style="dim"))
    if results:
        _show_results(results)
    if counted:
        table(
            "Anomalies",
            COUNT_COLUMNS,
            [count_cells(count) for count in counted],
        )
    screen.print(Text(summary(findings), style="bold"))


def summary(findings: Sequence[Finding]) -> str:
    """Return the numbers of problems and warnings in words."""
    problems, warnings = (sum(f.level == level for f in findings) for level in ("problem", "warning"))
    if not problems and not warnings:
        return "No problems found."
    numbers = f"{problems or 'No'} problem{'' if problems == 1 else 's'}"
    return f"{numbers}, {warnings} warning{'' if warnings == 1 else 's'}."


def plain_result(result: Result) -> dict[str, Any]:
    """Return a result as JSON."""
    return {
        "route": result.probe.name,
        "path": result.probe.path,
        "stream": result.probe.streams,
        "level": result.level,
        **{name: {"ok": mark.ok, "why": mark.why} for name, mark in _marks_of(result).items()},
        "note": result.note,
    }


def _marks_of(result: Result) -> dict[str, Mark]:
    return {"gate": result.gate, "record": result.record, "settle": result.settle}


def _show_results(results: Sequence[Result]) -> None:
    table(
        "Requests",
        [Column("route"), Column("stream"), Column("gate"), Column("record"), Column("settle"), Column("")],
        [
            [result.probe.name, "yes" if result.probe.streams else "",
             *(_mark(mark, refused=result.probe.refused) for mark in _marks_of(result).values()), result.note]
            for result in results
        ],
    )  # fmt: skip


def _mark(mark: Mark, *, refused: bool) -> str:
    marks = _marks()
    if mark.ok is None:
        return "-" if refused else marks["warning"]
    return marks["ok" if mark.ok else "problem"]


def _marks() -> dict[Level, str]:
    """Return marks that the terminal's encoding supports."""
    try:
        "✓✗".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return {"ok": "ok", "warning": "!", "problem": "X"}
    return {"ok": "✓", "warning": "!", "problem": "✗"}
