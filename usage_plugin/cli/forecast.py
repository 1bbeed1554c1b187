"""`usage-plugin forecast`: the expected spend of the current window, and the day a limit runs out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click
from rich.text import Text

from usage_plugin.cli.balances import amount_words, subject_words, unit_words
from usage_plugin.cli.output import Column, Output, console, escape_control, table
from usage_plugin.cli.progress import Bar
from usage_plugin.domain.amounts import format_amount, plain_amount
from usage_plugin.domain.forecast import Backtest, Errors
from usage_plugin.domain.money import NANO_PER_USD, format_usd
from usage_plugin.domain.store import ROLLUP_DIMENSIONS, RollupDimension
from usage_plugin.domain.windows import WindowRule, local_date
from usage_plugin.tracking.analysis.forecasting import Forecaster
from usage_plugin.tracking.history.balances import AccountBalances

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from usage_plugin.domain.limits import Unit
    from usage_plugin.domain.store import UsageFilter
    from usage_plugin.domain.windows import WindowKind
    from usage_plugin.runtime import Reader
    from usage_plugin.tracking.analysis.forecasting import Outlook

_CENT, _MICRO = 10**7, 10**3
_COLUMNS = (
    Column("who"), Column("spent", number=True), Column("at the end", number=True), Column("80 % range", number=True),
    Column("allowed", number=True), Column("runs out"), Column("earliest"),
    Column("latest"),
)  # fmt: skip
_BACKTEST_COLUMNS = (
    Column("forecast of"), Column("error", number=True), Column("error as yesterday", number=True),
    Column("within range", number=True),
)  # fmt: skip


async def run(
    reader: Reader,
    *,
    output: Output,
    by: str | None,
    limit_name: str | None,
    window: str | None,
    usage_filter: UsageFilter,
    top: int,
    backtest: bool,
) -> None:
    """Print the forecast, or the error of such forecasts on past days."""
    kept = reader.kept_filter(usage_filter)
    balances = AccountBalances(reader.ledger, reader.operations, reader.limits, reader.clock.now())
    forecaster = Forecaster(reader.tracker, balances, reader.config.timezone)
    if limit_name is not None:
        if by is not None or window is not None:
            raise click.UsageError("--limit has its own subjects and window: omit --by and --window.")
        limit = reader.limits.find(limit_name)
        outlooks = await forecaster.limit(limit, kept, most=top)
        title = f"Limit {limit.name}"
    else:
        rule = WindowRule(cast("WindowKind", window or "month"))
        if rule.kind == "week":
            rule = rule._replace(week_starts=reader.config.week_starts)
        outlooks = await forecaster.spend(_dimensions(by), kept, rule, most=top)
        title = f"Spend by {by}" if by else "Spend"
    if backtest:
        await _show_backtest(forecaster, outlooks, output)
    elif output.is_table:
        _show(reader, outlooks, title)
    else:
        plain = [_plain(reader, outlook) for outlook in outlooks]
        output.document({"forecasts": plain}, plain)


def _dimensions(by: str | None) -> list[RollupDimension]:
    if by is None:
        return []
    names = [name.strip() for name in by.split(",")]
    if any(name not in ROLLUP_DIMENSIONS for name in names) or len(set(names)) < len(names):
        raise click.BadParameter(
            f"--by: expected one or more of {', '.join(ROLLUP_DIMENSIONS)}, each once; found {by!r}."
        )
    return cast("list[RollupDimension]", names)


def _days(reader: Reader, outlook: Outlook) -> tuple[date, date]:
    zone = reader.config.timezone
    return local_date(outlook.now.window.start, zone), local_date(outlook.now.window.end - 1, zone)


def _show(reader: Reader, outlooks: Sequence[Outlook], title: str) -> None:
    if outlooks:
        unit = unit_words(outlooks[0].now.unit)
        title = f"{title}, {unit}, {' to '.join(map(str, _days(reader, outlooks[0])))} ({reader.config.timezone})"
    table(title, _COLUMNS, [_cells(outlook) for outlook in outlooks])
    for outlook in outlooks:
        for lacking in outlook.course.lacks:
            console().print(Text(escape_control(f"{subject_words(dict(outlook.now.names))}: {lacking}")))


def _cells(outlook: Outlook) -> list[str]:
    now = outlook.now
    expected, low, high = outlook.at_end
    runs_out, earliest, latest = outlook.runs_out
    days = ["", "", ""]
    if now.limit is not None and now.amount is not None:
        days = [str(runs_out or "lasts")]
        days += ["", ""] if high is None else [str(earliest or "lasts"), str(latest or "lasts")]
    return [
        subject_words(dict(now.names)),
        format_amount(now.unit, now.spent),
        _rough(now.unit, expected),
        "" if low is None or high is None else f"{_rough(now.unit, low)}–{_rough(now.unit, high)}",
        amount_words(now.limit, now.amount) if now.limit else "",
        *days,
    ]


def _rough(unit: Unit, amount: int) -> str:
    """Round an estimate: to cents, and below one dollar to millionths."""
    if unit != "usd":
        return str(amount)
    step = _CENT if amount >= NANO_PER_USD else _MICRO
    return format_usd((amount + step // 2) // step * step)


def _plain(reader: Reader, outlook: Outlook) -> dict[str, Any]:
    now = outlook.now
    first, last = _days(reader, outlook)
    expected, low, high = outlook.at_end
    runs, earliest, latest = outlook.runs_out

    def amount(value: int | None) -> str | int | None:
        return None if value is None else plain_amount(now.unit, value)

    def day(value: date | None) -> str | None:
        return None if value is None else value.isoformat()

    return {
        "who": dict(now.names),
        "limit": now.limit.name if now.limit else None,
        "unit": now.unit,
        "first": first.isoformat(),
        "last": last.isoformat(),
        "spent": amount(now.spent),
        "expected": amount(expected),
        "low": amount(low),
        "high": amount(high),
        "allowed": amount(now.amount),
        "runs_out": day(runs),
        "runs_out_earliest": day(earliest),
        "runs_out_latest": day(latest),
        "history_days": outlook.course.history_days,
        "lacks": list(outlook.course.lacks),
    }


async def _show_backtest(forecaster: Forecaster, outlooks: Sequence[Outlook], output: Output) -> None:
    found = Backtest()
    bar = Bar()
    with bar.shown():
        bar.begin("Backtesting", len(outlooks))
        for outlook in outlooks:
            found = found.plus(await forecaster.backtest(outlook))
            bar.advance(1)
    rows = [
        {"what": "daily", **_errors(found.daily), "in_range": None, "ranges": None},
        {"what": "window", **_errors(found.window), "in_range": found.in_range, "ranges": found.ranges},
    ]
    if not output.is_table:
        output.document({"groups": len(outlooks), "backtest": rows}, rows)
        return
    within = f"{found.in_range} of {found.ranges}" if found.ranges else ""
    table(
        "Error of past forecasts (weighted absolute percentage error)",
        _BACKTEST_COLUMNS,
        [
            ["each day, the day before", *map(_percent, _shares(found.daily)), ""],
            ["a window's end, on each of its days", *map(_percent, _shares(found.window)), within],
        ],
    )
    if not found.daily.actual:
        console().print(Text("The history is too short for a backtest: at least four weeks are needed."))


def _shares(errors: Errors) -> tuple[float | None, float | None]:
    """Return both errors as shares of the actual usage; None without usage."""
    if not errors.actual:
        return None, None
    return errors.off / errors.actual, errors.naive_off / errors.actual


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _errors(errors: Errors) -> dict[str, float | None]:
    ours, naive = (None if share is None else round(share, 4) for share in _shares(errors))
    return {"error": ours, "error_as_yesterday": naive}
