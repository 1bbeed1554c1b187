"""Detect damage: sums below zero, and accounts that differ from the holds of the open reservations."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from usage_plugin.postgres.server import Server

_MOST_NAMED = 20


def problems(server: Server) -> list[str]:
    """List descriptions of damage, as of one instant."""
    with server.reading():
        wrong = server.read(
            "WITH held AS ("
            ' SELECT (hold ->> 0)::bigint AS limit_key, (hold ->> 2) COLLATE "C" AS subject,'
            " (hold ->> 1)::bigint AS window_start, sum((hold ->> 4)::numeric) AS amount"
            f" FROM {server.schema}.requests AS request CROSS JOIN LATERAL jsonb_array_elements(request.holds) AS hold"
            " WHERE request.ended IS NULL GROUP BY 1, 2, 3)"
            " SELECT limit_key, subject, window_start, coalesce(account.reserved, 0), coalesce(held.amount, 0)"
            f" FROM {server.schema}.accounts AS account FULL JOIN held USING (limit_key, subject, window_start)"
            " WHERE coalesce(account.reserved, 0) <> coalesce(held.amount, 0) ORDER BY 1, 2, 3"
        ).fetchall()
        negative = server.read(
            f"SELECT limit_key, subject, window_start, spent, reserved FROM {server.schema}.accounts"
            " WHERE spent < 0 OR reserved < 0 ORDER BY 1, 2, 3"
        ).fetchall()
        (misnumbered,) = server.one(
            f"SELECT (SELECT max(seq) FROM {server.schema}.outbox) > last FROM {server.schema}.outbox_counter"
        )
    return [
        *_few(
            f"Account {tuple(key)} says {says} are reserved; open reservations hold {held}."
            for *key, says, held in wrong
        ),
        *_few(f"Account {tuple(key)} is below zero: {spent} spent, {held} reserved." for *key, spent, held in negative),
        *(["The outbox has numbers above its counter; restore both from one backup."] if misnumbered else []),
    ]


def _few(problems: Iterable[str]) -> Iterator[str]:
    problems = iter(problems)
    yield from islice(problems, _MOST_NAMED)
    if more := sum(1 for _ in problems):
        yield f"… and {more} more."
