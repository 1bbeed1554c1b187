"""`usage-plugin similar` and `outliers`: who behaves alike, and who has moved, by the vectors of the plugin chroma.

Both bring the vectors up to date first, so that they see everything that is settled, as every command does.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.text import Text

from usage_plugin.cli.output import Column, Output, console, harmless, table, thousands
from usage_plugin.cli.progress import Bar
from usage_plugin.contrib.chroma import Plugin
from usage_plugin.contrib.chroma.indexer import Indexer, only_one
from usage_plugin.contrib.chroma.similarity import EARLIER_WEEKS, LEAST_REQUESTS, Compared, outliers, similar_to
from usage_plugin.contrib.chroma.vector_store import INSTALL, VectorsError
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.windows import monday_of
from usage_plugin.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from usage_plugin.runtime import Reader

_COLUMNS = (Column("user"), Column("distance", number=True), Column("mostly by"))
_USED = (Column("requests", number=True), Column("cost USD", number=True))


async def run_similar(reader: Reader, *, output: Output, user: str, week: date | None, most: int) -> None:
    """Print who behaved like somebody in a week; without one, in the last in which they did anything."""
    plugin = _plugin(reader)
    await _follow(reader, plugin)
    kept = reader.kept("user", user)
    with plugin.open_vectors() as vectors:
        monday = monday_of(week) if week else vectors.newest_week(kept)
        found = vectors.of([kept], [monday]) if monday else []
        if not found:
            when = f"in the week of {monday}" if monday else f"in the last {plugin.weeks} weeks"
            raise VectorsError(
                f"{harmless(user)} did nothing {when}, so nobody is like them.",
                hint="usage-plugin report --by user,week shows who did something when.",
            )
        compared = similar_to(vectors, found[0], most)
    if output.is_table:
        used = found[0].totals
        table(
            f"Like {user} in the week of {found[0].week}: "
            f"{thousands(used.requests)} requests, {format_usd(used.cost)} USD",
            [*_COLUMNS, *_USED],
            [[*_cells(one), *_used(one)] for one in compared],
        )
        return
    rows = [_plain(one) for one in compared]
    output.document({"user": kept, "week": found[0].week.isoformat(), "similar": rows}, rows)


async def run_in_background(reader: Reader) -> None:
    """Bring the vectors up to date, and that is all; the plugin starts it beside the proxy."""
    plugin = _plugin(reader)
    with only_one(plugin.folder) as is_one:
        if is_one:
            await _follow(reader, plugin)


async def run_outliers(reader: Reader, *, output: Output, week: date | None, most: int) -> None:
    """Print who moved furthest from their own weeks before; without a week, in the last that is over."""
    plugin = _plugin(reader)
    await _follow(reader, plugin)
    monday = monday_of(week) if week else monday_of(reader.tracker.today()) - timedelta(days=7)
    with plugin.open_vectors() as vectors:
        compared = outliers(vectors, monday, most)
    if output.is_table:
        table(
            f"Furthest from their own weeks before, in the week of {monday}",
            [*_COLUMNS, Column("compared with weeks", number=True), *_USED],
            [[*_cells(one), str(one.weeks), *_used(one)] for one in compared],
        )
        if not compared:
            console().print(
                Text(
                    f"Compared is who made at least {LEAST_REQUESTS} requests in this week, and in one of the "
                    f"{EARLIER_WEEKS} weeks before."
                )
            )
        return
    rows = [{**_plain(one), "weeks": one.weeks} for one in compared]
    output.document({"week": monday.isoformat(), "outliers": rows}, rows)


def _plugin(reader: Reader) -> Plugin:
    """Find the plugin.

    Raises:
        PluginError: it is off.
    """
    for loaded in reader.plugins.loaded:
        if isinstance(loaded.found.implements, Plugin):
            return loaded.found.implements
    raise PluginError(
        "The plugin chroma is off, so there is nothing to compare users by.",
        hint=f"To turn it on, run {INSTALL} and add this to {reader.config.path}, under usage_plugin: "
        "plugins: [{name: chroma}]",
    )


async def _follow(reader: Reader, plugin: Plugin) -> None:
    bar = Bar()
    shown: list[date] = []

    def progress(week: date, done: int, users: int) -> None:
        if week not in shown[-1:]:
            shown.append(week)
            bar.begin(f"Week of {week}", users)
        bar.advance(done)

    with bar.shown():
        following = Indexer(reader.tracker, reader.config.timezone, plugin.open_vectors, progress)
        await following.catch_up(plugin.weeks)


def _cells(one: Compared) -> Sequence[str]:
    return one.vector.user, f"{one.distance:.3f}", one.mostly


def _used(one: Compared) -> Sequence[str]:
    return thousands(one.vector.totals.requests), format_usd(one.vector.totals.cost)


def _plain(one: Compared) -> dict[str, Any]:
    return {
        "user": one.vector.user,
        "distance": round(one.distance, 6),
        "mostly": one.mostly,
        "requests": one.vector.totals.requests,
        "cost": format_usd(one.vector.totals.cost),
    }
