"""Where vectors are kept: a collection of Chroma for each week. Nothing else knows chromadb.

A vector is of one user in one week. Chroma has the index of a collection in memory as a whole, so what is asked of a
week takes no more memory the more weeks there are. Vectors are passed in: no model is ever loaded, and nothing goes
over the network. Chroma's files belong to one process at a time: they are opened under a lock and closed again, so that
the proxy and commands take turns. What is here can be made anew from the history, except what the history has lost.
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
from usage_plugin.errors import PluginError, UsagePluginError
from usage_plugin.locks import locked

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from pathlib import Path

INSTALL = "pip install 'usage-plugin[chroma]'"
MOST_AT_ONCE = 500
"""So many vectors are written, read or looked up in one go, and in memory."""

_WHOLE = ["metadatas", "embeddings"]
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
            hint=f"Move {folder} away: what it holds is made anew from the history.",
        ) from error
    finally:
        os.umask(umask)
        lock.close()


class Vectors:
    """The vectors of one folder, open and locked; `open_vectors` makes it."""

    def __init__(self, folder: Path) -> None:
        """Open Chroma's files; vectors of other features than today's are dropped."""
        self._path = folder / "vectors"
        self._new = folder / "vectors.new"
        self._old = folder / "vectors.old"
        for left_by_a_kill in (self._new, self._old):
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
        self._client = _open(self._path)
        self._weeks = {date.fromisoformat(found.name): found for found in self._client.list_collections()}
        self._drop(week for week, found in self._weeks.items() if found.metadata["features"] != VERSION)

    def close(self) -> None:
        """Let go of the files."""
        self._client.close()

    def put(self, week: date, vectors: Sequence[Vector]) -> None:
        """Keep vectors of a week, at most `MOST_AT_ONCE`, in place of those of the same users."""
        if week not in self._weeks:
            self._weeks[week] = _collection(self._client, week, None)
        if vectors:
            _write(self._weeks[week], vectors)

    def totals(self, week: date, users: Collection[str]) -> dict[str, UsageTotals]:
        """Say what the vectors of some users, at most `MOST_AT_ONCE`, were made of; who has none is left out."""
        if week not in self._weeks:
            return {}
        found = self._weeks[week].get(ids=[*map(_id, users)], include=["metadatas"])
        return {facts["user"]: _totals(facts) for facts in found["metadatas"]}

    def of(self, users: Collection[str], weeks: Collection[date]) -> list[Vector]:
        """Look up the vectors of some users, at most `MOST_AT_ONCE`, in some weeks."""
        ids = [*map(_id, users)]
        found: list[Vector] = []
        for week in weeks:
            if ids and week in self._weeks:
                page = self._weeks[week].get(ids=ids, include=_WHOLE)
                found += map(_vector, page["metadatas"], page["embeddings"])
        return found

    def in_week(self, week: date) -> Iterator[list[Vector]]:
        """Go through all users of a week, at most `MOST_AT_ONCE` at a time."""
        at = 0
        while week in self._weeks:
            page = self._weeks[week].get(limit=MOST_AT_ONCE, offset=at, include=_WHOLE)
            if not page["ids"]:
                return
            yield list(map(_vector, page["metadatas"], page["embeddings"]))
            at += len(page["ids"])

    def newest_week(self, user: str) -> date | None:
        """Find the last week in which a user has a vector."""
        return next((week for week in sorted(self._weeks, reverse=True) if self.totals(week, [user])), None)

    def near(self, one: Vector, most: int) -> list[Vector]:
        """Find the vectors of others in the same week that are nearest, nearest first."""
        found = self._weeks[one.week].query(query_embeddings=[list(one.numbers)], n_results=most + 1, include=_WHOLE)
        others = map(_vector, found["metadatas"][0], found["embeddings"][0])
        return [other for other in others if other.user != one.user][:most]

    def keep_weeks(self, weeks: Collection[date]) -> None:
        """Drop the vectors of all other weeks."""
        self._drop(self._weeks.keys() - set(weeks))

    def forget(self, user: str) -> int:
        """Drop a user's vectors, and write the files anew, so that no trace is left; give how many there were."""
        theirs = [week for week in self._weeks if self.totals(week, [user])]
        for week in theirs:
            self._weeks[week].delete(ids=[_id(user)])
        if theirs:
            self._rewrite()
        return len(theirs)

    def seen(self, week: date) -> UsageTotals | None:
        """Give what the history had of a week when all of its vectors were up to date."""
        seen = self._weeks[week].metadata.get("seen") if week in self._weeks else None
        return UsageTotals(*json.loads(seen)) if seen else None

    def note_seen(self, week: date, totals: UsageTotals) -> None:
        """Keep that."""
        self.put(week, ())
        self._weeks[week].modify(metadata=_about(json.dumps(totals)))

    def _drop(self, weeks: Iterable[date]) -> None:
        for week in list(weeks):
            self._client.delete_collection(self._weeks.pop(week).name)

    def _rewrite(self) -> None:
        """Copy everything into new files: Chroma keeps what was deleted in a journal, and in free pages."""
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
    """Name a vector; not by the user, since Chroma keeps ids in more places than it deletes them from."""
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
