"""Figures: the measurements of a benchmark, their requirements, and the output of both."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from usage_plugin.cli.output import Column, Output, table

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number.

    Attributes:
        best: the best of several blocks, where `measured` is their median.
        at_most: the bound, if it is an upper one.
        at_least: the bound, if it is a lower one.
    """

    what: str
    measured: float
    unit: str
    best: float | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def held(self) -> bool | None:
        """Whether the bound held; None if there is none."""
        if self.at_most is not None:
            return self.measured <= self.at_most
        return None if self.at_least is None else self.measured >= self.at_least

    @property
    def _required(self) -> str:
        if self.at_most is not None:
            return f"at most {self.at_most:g} {self.unit}".rstrip()
        return "" if self.at_least is None else f"at least {self.at_least:g} {self.unit}".rstrip()

    def row(self) -> tuple[str, ...]:
        """Write the figure for people."""
        verdict = {None: "", True: "held", False: "MISSED"}[self.held]
        best = "" if self.best is None else self._number(self.best)
        return self.what, self._number(self.measured), best, self._required, verdict

    def _number(self, value: float) -> str:
        digits = 3 if value < 10 else 1
        return f"{value:,.{digits}f} {self.unit}".rstrip()

    def document(self) -> dict[str, Any]:
        """Write the figure for programs."""
        return {**asdict(self), "held": self.held}


def arguments(name: str, about: str | None, **switches: str) -> argparse.Namespace:
    """Read the command line: the form of the output, and the switches of this benchmark, each with its help."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    for switch, explanation in switches.items():
        parser.add_argument(f"--{switch}", action="store_true", help=explanation)
    return parser.parse_args()


def wants_json(name: str, about: str | None) -> bool:
    """Read a command line that only chooses the form of the output."""
    return bool(arguments(name, about).json)


def show(name: str, figures: Sequence[Figure], *, as_json: bool, **details: Any) -> None:
    """Print the figures as a table, or everything as one JSON document."""
    if as_json:
        document = {
            "benchmark": name,
            "surroundings": _surroundings(),
            "figures": [figure.document() for figure in figures],
            **details,
        }
        Output("json").document(document, ())
        return
    columns = (
        Column("What"),
        Column("Measured", number=True),
        Column("Best block", number=True),
        Column("Required"),
        Column("Verdict"),
    )
    shown = [column for at, column in enumerate(columns) if at != 2 or any(f.best is not None for f in figures)]
    rows = [
        tuple(cell for cell, column in zip(figure.row(), columns, strict=True) if column in shown) for figure in figures
    ]
    table(_title(name), shown, rows)


def show_rows(
    name: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    as_json: bool,
    notes: Sequence[str] = (),
    **details: Any,
) -> None:
    """Print a table of its own kind with notes below, or its details as one JSON document."""
    if as_json:
        document = {"benchmark": name, "surroundings": _surroundings(), "notes": list(notes), **details}
        Output("json").document(document, ())
        return
    table(_title(name), columns, rows)
    print("\n".join(notes))


def _title(name: str) -> str:
    return f"benchmarks.{name} ({', '.join(f'{key} {value}' for key, value in _surroundings().items())})"


def _surroundings() -> dict[str, str]:
    """Return the versions and settings that influence the figures."""
    return {"Python": platform.python_version(), "SQLite": sqlite3.sqlite_version, "CPUs": str(os.cpu_count())}


class Yardstick:
    """A fixed bit of Python, for scale: shared machines are several times slower where caches have gone cold."""

    def __init__(self) -> None:
        """Measure it back to back first."""
        self._work = {str(number): number for number in range(20)}
        self._warm = [self._once() for _ in range(2_000)]
        self._between: list[float] = []

    def measure(self) -> None:
        """Measure it once between other work."""
        self._between.append(self._once())

    def figures(self) -> list[Figure]:
        """Return the slowdown: measurements between other work have the same one."""
        return [
            Figure(what=f"for scale: a bit of Python {where}, p50", measured=percentile(values, 0.5), unit="µs")
            for where, values in (("back to back", self._warm), ("in between", self._between))
        ]

    def _once(self) -> float:
        started = time.perf_counter_ns()
        json.dumps(self._work)
        return (time.perf_counter_ns() - started) / 1000


def percentile(values: Sequence[float], share: float) -> float:
    """Find the value that this share of all values does not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
