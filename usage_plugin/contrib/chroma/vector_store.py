"""Keep vectors in Chroma, in a collection for each week. No other module uses chromadb.

A vector describes one user in one week. Chroma keeps the whole index of a collection in memory, so a query of one week
needs the same memory for any number of weeks. Vectors are passed in: no model is loaded, and no network is used.

Chroma's files belong to one process at a time. They are opened under a lock and closed again, so that the proxy and
commands take turns. All vectors can be derived again from the history, except those of deleted events.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from contextlib import ExitStack, contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.behaviour import VERSION
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.errors import PluginError, VectorsError
from usage_plugin.file_locks import locked

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from pathlib import Path

INSTALL = "pip install 'usage-plugin[chroma]'"
MOST_AT_ONCE = 500
"""The maximum number of vectors in one call, and in memory."""

_WHOLE = ["metadatas", "embeddings"]
# A wide search: in tests it has the same results as a comparison with every vector.
_INDEX = {"hnsw": {"space": "cosine", "ef_construction": 200, "ef_search": 200}}


class Vector(NamedTuple):
    """The behaviour of a user in a week.

    Attributes:
        user: The name under which the user is kept.
        week: The Monday of the week.
        totals: The totals from which the vector was derived.
        numbers: The numbers of the vector, `domain.behaviour.DIMENSIONS` in all.
    """

    user: str
    week: date
    totals: UsageTotals
    numbers: Sequence[float]


def check_installed() -> None:
    """Check that chromadb is installed, without importing it.

    Raises:
        PluginError: It is not installed.
    """
    if importlib.util.find_spec("chromadb") is None:
        raise PluginError("The plugin chroma requires chromadb, which is not installed.", hint=f"Run: {INSTALL}")


@contextmanager
def open_vectors(folder: Path) -> Iterator[Vectors]:
    """Open the vectors of a folder; create it if it does not exist, and wait until no other process has it open.

    Raises:
        VectorsError: The files cannot be used.
    """
    lock = ExitStack()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.enter_context(locked(folder / "lock"))
    except OSError as error:
        raise VectorsError(f"Cannot use the folder {folder}: {error.strerror}.") from error
    # By default, Chroma creates files that all users can read.
    umask = os.umask(0o077)
    try:
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
            hint=f"Move {folder} away: the vectors are derived again from the history.",
        ) from error
    finally:
        os.umask(umask)
        lock.close()


class Vectors:
    """The vectors of one folder, open and locked; `open_vectors` opens them."""

    def __init__(self, folder: Path) -> None:
        """Open Chroma's files; delete vectors with other features than the current ones."""
        self._path = folder / "vectors"
        self._new = folder / "vectors.new"
        self._old = folder / "vectors.old"
        for left_by_a_kill in (self._new, self._old):
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
        self._client = _open(self._path)
        self._weeks = {date.fromisoformat(found.name): found for found in self._client.list_collections()}
        self._drop(week for week, found in self._weeks.items() if found.metadata["features"] != VERSION)

    def close(self) -> None:
        """Close the files."""
        self._client.close()

    def put(self, week: date, vectors: Sequence[Vector]) -> None:
        """Store vectors of a week, at most `MOST_AT_ONCE`; they replace those of the same users."""
        if week not in self._weeks:
            self._weeks[week] = _collection(self._client, week, None)
        if vectors:
            _write(self._weeks[week], vectors)

    def totals(self, week: date, users: Collection[str]) -> dict[str, UsageTotals]:
        """Return the totals of users' vectors, at most `MOST_AT_ONCE`; users without a vector are left out."""
        if week not in self._weeks:
            return {}
        found = self._weeks[week].get(ids=[*map(_id, users)], include=["metadatas"])
        return {facts["user"]: _totals(facts) for facts in found["metadatas"]}

    def of(self, users: Collection[str], weeks: Collection[date]) -> list[Vector]:
        """Return the vectors of users, at most `MOST_AT_ONCE`, in some weeks."""
        ids = [*map(_id, users)]
        found: list[Vector] = []
        for week in weeks:
            if ids and week in self._weeks:
                page = self._weeks[week].get(ids=ids, include=_WHOLE)
                found += map(_vector, page["metadatas"], page["embeddings"])
        return found

    def in_week(self, week: date) -> Iterator[list[Vector]]:
        """Yield the vectors of a week, at most `MOST_AT_ONCE` at a time."""
        at = 0
        while week in self._weeks:
            page = self._weeks[week].get(limit=MOST_AT_ONCE, offset=at, include=_WHOLE)
            if not page["ids"]:
                return
            yield list(map(_vector, page["metadatas"], page["embeddings"]))
            at += len(page["ids"])

    def newest_week(self, user: str) -> date | None:
        """Return the last week in which a user has a vector."""
        return next((week for week in sorted(self._weeks, reverse=True) if self.totals(week, [user])), None)

    def near(self, one: Vector, most: int) -> list[Vector]:
        """Return the nearest vectors of other users in the same week, nearest first."""
        found = self._weeks[one.week].query(query_embeddings=[list(one.numbers)], n_results=most + 1, include=_WHOLE)
        others = map(_vector, found["metadatas"][0], found["embeddings"][0])
        return [other for other in others if other.user != one.user][:most]

    def keep_weeks(self, weeks: Collection[date]) -> None:
        """Delete the vectors of all other weeks."""
        self._drop(self._weeks.keys() - set(weeks))

    def forget(self, user: str) -> int:
        """Delete a user's vectors, rewrite the files so that no trace is left, and return the number of vectors."""
        theirs = [week for week in self._weeks if self.totals(week, [user])]
        for week in theirs:
            self._weeks[week].delete(ids=[_id(user)])
        if theirs:
            self._rewrite()
        return len(theirs)

    def seen(self, week: date) -> UsageTotals | None:
        """Return the history's totals of a week at its last complete update."""
        seen = self._weeks[week].metadata.get("seen") if week in self._weeks else None
        return UsageTotals(*json.loads(seen)) if seen else None

    def note_seen(self, week: date, totals: UsageTotals) -> None:
        """Record the history's totals of a week at its complete update."""
        self.put(week, ())
        self._weeks[week].modify(metadata=_about(json.dumps(totals)))

    def _drop(self, weeks: Iterable[date]) -> None:
        for week in list(weeks):
            self._client.delete_collection(self._weeks.pop(week).name)

    def _rewrite(self) -> None:
        """Copy everything to new files: Chroma keeps deleted data in a journal, and in free pages."""
        client = _open(self._new)
        try:
            for week, found in self._weeks.items():
                copy = _collection(client, week, found.metadata.get("seen"))
                for page in self.in_week(week):
                    _write(copy, page)
        finally:
            client.close()
        self._client.close()
        self._path.rename(self._old)
        self._new.rename(self._path)
        shutil.rmtree(self._old)
        self._client = _open(self._path)
        self._weeks = {week: self._client.get_collection(week.isoformat(), None) for week in self._weeks}


def _chroma() -> Any:
    # Takes a second and 70 MB, so only where vectors are opened.
    import chromadb.errors  # noqa: PLC0415

    return chromadb


def _open(path: Path) -> Any:
    chromadb = _chroma()
    return chromadb.PersistentClient(path=str(path), settings=chromadb.config.Settings(anonymized_telemetry=False))


def _collection(client: Any, week: date, seen: str | None) -> Any:
    return client.create_collection(
        week.isoformat(), embedding_function=None, configuration=_INDEX, metadata=_about(seen)
    )


def _about(seen: str | None) -> dict[str, str | int]:
    return {"features": VERSION} if seen is None else {"features": VERSION, "seen": seen}


def _write(collection: Any, vectors: Sequence[Vector]) -> None:
    collection.upsert(
        ids=[_id(one.user) for one in vectors],
        embeddings=[list(one.numbers) for one in vectors],
        metadatas=[_facts(one) for one in vectors],
    )


def _id(user: str) -> str:
    """Return the id of a vector; not the user, since Chroma keeps ids in more places than it deletes them from."""
    return hashlib.blake2b(user.encode(), digest_size=16).hexdigest()


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
