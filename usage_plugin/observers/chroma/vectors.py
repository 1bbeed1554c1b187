"""Where vectors are kept: a collection of Chroma, in files of its own. Nothing else knows chromadb.

A vector is of one user in one week. Vectors are passed in, so no model is ever loaded, and nothing goes over the
network. Chroma's files belong to one process at a time: they are opened under a lock and closed again, so that the
proxy and commands take turns. What is here can be made anew from the history, except what the history has lost.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.behaviour import VERSION
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.errors import PluginError, UsagePluginError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

INSTALL = "pip install 'usage-plugin[chroma]'"
MOST_AT_ONCE = 500
"""So many vectors are written, read or looked up in one go, and in memory."""

_COLLECTION = "user-weeks"
# A wide search: in tests it finds what a comparison with every vector finds.
_INDEX = {"hnsw": {"space": "cosine", "ef_construction": 200, "ef_search": 200}}


class VectorsError(UsagePluginError):
    """The vectors cannot be read or written."""


class Vector(NamedTuple):
    """What a user did in a week.

    Attributes:
        user: as they are kept.
        week: its Monday.
        totals: what the vector was made of.
        numbers: `domain.behaviour.DIMENSIONS` of them.
    """

    user: str
    week: date
    totals: UsageTotals
    numbers: Sequence[float]


def check_installed() -> None:
    """See to it that Chroma can be imported, without importing it.

    Raises:
        PluginError: it is not installed.
    """
    if importlib.util.find_spec("chromadb") is None:
        raise PluginError("The plugin chroma needs chromadb, which is not installed.", hint=f"Run: {INSTALL}")


@contextmanager
def open_vectors(folder: Path) -> Iterator[Vectors]:
    """Open the vectors of a folder, which is made if it is not there, once nobody else has them open.

    Raises:
        VectorsError: the files cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise VectorsError(f"The folder {folder} cannot be used: {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        vectors = Vectors(folder)
        try:
            yield vectors
        finally:
            vectors.close()
    except VectorsError:
        raise
    except _chroma().errors.ChromaError as error:
        raise VectorsError(
            f"Chroma cannot use its files in {folder}: {error}.",
            hint=f"Move {folder} away: what it holds is made anew from the history.",
        ) from error
    finally:
        os.close(lock)


class Vectors:
    """The vectors of one folder, open and locked; `open_vectors` makes it."""

    def __init__(self, folder: Path) -> None:
        """Open Chroma's files; vectors of other features than today's are dropped."""
        self._path = folder / "vectors"
        self._new = folder / "vectors.new"
        self._old = folder / "vectors.old"
        for left_by_a_kill in (self._new, self._old):
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
        self._client, self._collection = _open(self._path)
        if self._collection.metadata["features"] != VERSION:
            self._client.delete_collection(_COLLECTION)
            self._collection = _collection(self._client)

    def close(self) -> None:
        """Let go of the files."""
        self._client.close()

    def put(self, vectors: Sequence[Vector]) -> None:
        """Keep vectors, at most `MOST_AT_ONCE`, in place of those of the same users and weeks."""
        if vectors:
            self._collection.upsert(
                ids=[_id(one.user, one.week) for one in vectors],
                embeddings=[list(one.numbers) for one in vectors],
                metadatas=[_facts(one) for one in vectors],
            )

    def totals(self, week: date, users: Collection[str]) -> dict[str, UsageTotals]:
        """Say what the vectors of some users, at most `MOST_AT_ONCE`, were made of; who has none is left out."""
        found = self._collection.get(ids=[_id(user, week) for user in users], include=["metadatas"])
        return {facts["user"]: _totals(facts) for facts in found["metadatas"]}

    def of(self, users: Collection[str], weeks: Collection[date]) -> list[Vector]:
        """Look up the vectors of some users in some weeks."""
        ids = [_id(user, week) for user in users for week in weeks]
        found: list[Vector] = []
        for at in range(0, len(ids), MOST_AT_ONCE):
            page = self._collection.get(ids=ids[at : at + MOST_AT_ONCE], include=["metadatas", "embeddings"])
            found += map(_vector, page["metadatas"], page["embeddings"])
        return found

    def in_week(self, week: date) -> Iterator[list[Vector]]:
        """Go through all users of a week, at most `MOST_AT_ONCE` at a time."""
        return self._pages({"week": week.isoformat()})

    def newest_week(self, user: str) -> date | None:
        """Find the last week in which a user has a vector."""
        found = self._collection.get(where={"user": user}, include=["metadatas"])
        return max((date.fromisoformat(facts["week"]) for facts in found["metadatas"]), default=None)

    def near(self, one: Vector, most: int) -> list[Vector]:
        """Find the vectors of others in the same week that are nearest, nearest first."""
        found = self._collection.query(
            query_embeddings=[list(one.numbers)],
            n_results=most,
            where={"$and": [{"week": one.week.isoformat()}, {"user": {"$ne": one.user}}]},
            include=["metadatas", "embeddings"],
        )
        return list(map(_vector, found["metadatas"][0], found["embeddings"][0]))

    def keep_weeks(self, weeks: Collection[date]) -> None:
        """Drop the vectors of all other weeks."""
        self._collection.delete(where={"week": {"$nin": [week.isoformat() for week in weeks]}})

    def forget(self, user: str) -> int:
        """Drop a user's vectors, and write the files anew, so that no trace is left; give how many there were."""
        where = {"user": user}
        count = len(self._collection.get(where=where, include=[])["ids"])
        if count:
            self._collection.delete(where=where)
            self._rewrite()
        return count

    def _rewrite(self) -> None:
        """Copy everything into new files: Chroma keeps what was deleted in a journal, and in free pages."""
        client, copy = _open(self._new)
        try:
            copy.modify(metadata=self._collection.metadata)
            for page in self._pages(None):
                copy.upsert(
                    ids=[_id(one.user, one.week) for one in page],
                    embeddings=[one.numbers for one in page],
                    metadatas=[_facts(one) for one in page],
                )
        finally:
            client.close()
        self._client.close()
        self._path.rename(self._old)
        self._new.rename(self._path)
        shutil.rmtree(self._old)
        self._client, self._collection = _open(self._path)

    def _pages(self, where: dict[str, str] | None) -> Iterator[list[Vector]]:
        at = 0
        while True:
            found = self._collection.get(
                where=where, limit=MOST_AT_ONCE, offset=at, include=["metadatas", "embeddings"]
            )
            if not found["ids"]:
                return
            yield list(map(_vector, found["metadatas"], found["embeddings"]))
            at += len(found["ids"])

    def seen(self) -> dict[date, UsageTotals]:
        """Give what the history had of each week when all of the week's vectors were up to date."""
        weeks = json.loads(self._collection.metadata["seen"])
        return {date.fromisoformat(week): UsageTotals(*totals) for week, totals in weeks.items()}

    def note_seen(self, weeks: dict[date, UsageTotals]) -> None:
        """Keep that."""
        seen = {week.isoformat(): totals for week, totals in weeks.items()}
        self._collection.modify(metadata={"features": VERSION, "seen": json.dumps(seen)})


def _chroma() -> Any:
    # Takes a second and 70 MB, so only where vectors are opened.
    import chromadb.errors  # noqa: PLC0415

    return chromadb


def _open(path: Path) -> tuple[Any, Any]:
    chromadb = _chroma()
    settings = chromadb.config.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(path=str(path), settings=settings)
    return client, _collection(client)


def _collection(client: Any) -> Any:
    return client.get_or_create_collection(
        _COLLECTION, embedding_function=None, configuration=_INDEX, metadata={"features": VERSION, "seen": "{}"}
    )


def _id(user: str, week: date) -> str:
    """Name a vector; not by the user, since Chroma keeps ids in more places than it deletes them from."""
    return hashlib.blake2b(f"{week.isoformat()}\0{user}".encode(), digest_size=16).hexdigest()


def _facts(one: Vector) -> dict[str, str | int]:
    return {
        "user": one.user,
        "week": one.week.isoformat(),
        "requests": one.totals.requests,
        "cost": format_usd(one.totals.cost),
        "features": VERSION,
        "totals": json.dumps(one.totals),
    }


def _vector(facts: dict[str, Any], numbers: Any) -> Vector:
    return Vector(facts["user"], date.fromisoformat(facts["week"]), _totals(facts), numbers.tolist())


def _totals(facts: dict[str, Any]) -> UsageTotals:
    return UsageTotals(*json.loads(facts["totals"]))
