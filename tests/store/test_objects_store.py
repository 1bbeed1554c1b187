"""Properties of the store `objects` alone: lost answers, remains of killed writers, merges, requests, errors."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import contextmanager, suppress
from datetime import date
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from obstore.exceptions import GenericError

from tests.support.object_server import BUCKET, KEY, ObjectServer, PrefixOpening, object_server
from usage_plugin.backends.objects import ObjectsBackend, ObjectsOptions, bucket, merging
from usage_plugin.backends.objects.bucket import Bucket
from usage_plugin.backends.objects.head import PATH, SEGMENTS, decode_head
from usage_plugin.domain.windows import ALWAYS
from usage_plugin.errors import ConfigError, StorageError, StorageUnavailableError
from usage_plugin.plugins.interface import check_options
from usage_plugin.testing.builders import (
    DAY,
    MINUTE,
    NOON,
    TODAY,
    batch_of,
    make_event,
    make_sum,
    numbered_from,
    sums_batch,
)
from usage_plugin.testing.faults import growing
from usage_plugin.testing.openings import BERLIN
from usage_plugin.testing.store_model import (
    EVERYTHING,
    FIRST_DAY,
    LAST_DAY,
    StoreModel,
    books_with,
    contents_of,
    events_of,
    forget_all,
    prune_all,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from usage_plugin.domain.store import UsageStore
    from usage_plugin.domain.usage import UsageEvent

CALLS = ("put", "get", "get_range", "delete", "list_objects")


@pytest.fixture
def opening(s3: ObjectServer, tmp_path: Path) -> PrefixOpening:
    return s3.opening(tmp_path)


class Wire:
    """The requests to the server, which a test counts, and at which it can act."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(CALLS, 0)
        self.at: tuple[int, Callable[[], None]] | None = None
        self.has_acted = False

    @contextmanager
    def watched(self) -> Iterator[Wire]:
        with mock.patch.multiple(bucket, **{name: self._wrapped(name, getattr(bucket, name)) for name in CALLS}):
            yield self

    @contextmanager
    def acting(self, number: int, act: Callable[[], None]) -> Iterator[None]:
        """Call a function once the server has served the request of this number, counted from 1."""
        self.at, self.has_acted = (number, act), False
        try:
            yield
        finally:
            self.at = None

    def _wrapped(self, name: str, request: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.counts[name] += 1
            try:
                answer = request(*arguments, **options)
                return iter(list(answer)) if name == "list_objects" else answer
            finally:
                self._served()

        return wrapped

    def _served(self) -> None:
        if self.at is not None:
            number, act = self.at
            self.at = (number - 1, act)
            if number == 1:
                self.has_acted = True
                act()


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire().watched() as wire:
        yield wire


def lose_the_answer() -> None:
    raise GenericError("the answer was lost")


def objects_of(opening: PrefixOpening) -> dict[str, bytes]:
    """Read all objects of a history, past the store."""
    options, _ = opening.arguments
    found = Bucket(options.url, options.settings)
    contents = {name: found.read(name) for name in list(found.names(""))}
    return {name: content.data or b"" for name, content in contents.items() if content is not None}


def unnamed(opening: PrefixOpening) -> list[str]:
    """Return the segments that the head does not name; fail if one that it names is missing."""
    objects = objects_of(opening)
    named = {segment.name for segment in decode_head(objects[PATH], "").segments()}
    assert named <= objects.keys()
    return [name for name in objects if name.startswith(SEGMENTS) and name not in named]


VERBS: dict[str, tuple[Callable[[UsageStore], Any], Callable[[StoreModel], None]]] = {
    "append": (lambda store: store.append("w", batch_of("w", 8, 3)), lambda books: books.append("w", batch_of("w", 8, 3))),
    "append_sums": (lambda store: store.append_sums("old", sums_batch(2)), lambda books: books.append_sums("old", sums_batch(2))),
    "prune": (
        lambda store: prune_all(store, NOON + 4 * MINUTE, date(2026, 1, 1), most=3),
        lambda books: books.prune(NOON + 4 * MINUTE, date(2026, 1, 1)),
    ),
    "forget": (lambda store: forget_all(store, "ann", most=5), lambda books: books.forget("ann")),
    "sweep": (lambda store: store.compact(), lambda books: None),  # type: ignore[attr-defined]
}  # fmt: skip


OTHER_VERBS = ("append_sums", "prune", "forget", "sweep")


async def begin(store: UsageStore) -> StoreModel:
    """Append until one more append merges segments."""
    books = StoreModel(BERLIN)
    for number in range(1, 8):
        await store.append("w", batch_of("w", number, 1))
    books.append("w", batch_of("w", 1, 7))
    return books


@pytest.mark.parametrize("verb", VERBS)
async def test_a_lost_answer_is_no_second_change(opening: PrefixOpening, wire: Wire, verb: str) -> None:
    """If the server acts and its answer is lost, at any request, a retry has the same result as one call."""
    act, model = VERBS[verb]
    for number in growing():
        async with opening.another().open() as store:
            books = await begin(store)
            with wire.acting(number, lose_the_answer), suppress(StorageError):
                await act(store)
            await act(store)
            model(books)
            assert await contents_of(store) == books.contents()
        if not wire.has_acted:
            break


@pytest.mark.parametrize("verb", ["append", "prune", "forget"])
async def test_others_may_sweep_in_between(opening: PrefixOpening, wire: Wire, verb: str) -> None:
    """If another process deletes remains after any request, no segment of a change under way is missing."""
    act, model = VERBS[verb]

    async def sweep(place: PrefixOpening) -> None:
        async with place.open() as other:
            await other.compact()  # type: ignore[attr-defined]

    for number in growing():
        place = opening.another()
        async with place.open() as store:
            books = await begin(store)
            with wire.acting(number, lambda place=place: asyncio.run(sweep(place))):
                await act(store)
            model(books)
            assert await contents_of(store) == books.contents()
            await store.compact()  # type: ignore[attr-defined]
            assert unnamed(place) == []
        if not wire.has_acted:
            break


@pytest.mark.parametrize("verb", ["append", *(pytest.param(verb, marks=pytest.mark.soak) for verb in OTHER_VERBS)])
async def test_others_may_change_everything_in_between(opening: PrefixOpening, wire: Wire, verb: str) -> None:
    """If another process appends, merges, prunes, forgets and sweeps after any request, both changes are complete."""
    act, model = VERBS[verb]
    meanwhile = numbered_from(1, [make_event(started_at=NOON + number, event_id=f"m{number}") for number in range(9)])

    async def interfere(place: PrefixOpening) -> None:
        async with place.open() as other:
            for one in meanwhile:
                await other.append("meanwhile", [one])
            await other.prune(events_before=NOON + 2 * MINUTE, days_before=FIRST_DAY, most=3)
            await forget_all(other, "bo", most=100)
            await other.compact()  # type: ignore[attr-defined]

    for number in growing():
        place = opening.another()
        async with place.open() as store:
            books = await begin(store)
            with wire.acting(number, lambda place=place: asyncio.run(interfere(place))):
                await act(store)
            if not wire.has_acted:
                break
            books.append("meanwhile", meanwhile)
            model(books)
            books.prune(NOON + 2 * MINUTE, FIRST_DAY)
            books.forget("bo")
            # Events that came after the other process had pruned or forgotten are still there.
            await prune_all(store, NOON + 2 * MINUTE, FIRST_DAY, most=100)
            await forget_all(store, "bo", most=100)
            await act(store)
            assert await contents_of(store) == books.contents()
            await store.compact()  # type: ignore[attr-defined]
            assert unnamed(place) == []


async def test_the_remains_of_killed_writers_are_swept(opening: PrefixOpening, wire: Wire) -> None:
    """A segment that was written and never named is deleted, and no other object is."""
    async with opening.open() as store:
        await store.append("w", batch_of("w", 1, 3))
        with wire.acting(1, lose_the_answer), pytest.raises(StorageUnavailableError):
            await store.append("w", [(4, make_event(started_at=NOON + DAY))])
        options, _ = opening.arguments
        mine = Bucket(options.url, options.settings)
        mine.write(f"{SEGMENTS}/notes.txt", b"not ours")
        assert len(unnamed(opening)) == 2
        # The keeper prunes once an hour; the first time on a new day it also sweeps.
        assert await store.prune(events_before=0, days_before=FIRST_DAY, most=100) == 0
        assert unnamed(opening) == [f"{SEGMENTS}/notes.txt"]
        listed = wire.counts["list_objects"]
        assert await store.prune(events_before=0, days_before=FIRST_DAY, most=100) == 0
        assert wire.counts["list_objects"] == listed
        assert await contents_of(store) == books_with(3).contents()


async def test_many_appends_leave_few_segments_and_cost_few_requests(opening: PrefixOpening, wire: Wire) -> None:
    """A flush is two writes, and merges add a third of a write; a report of the day lists nothing."""
    async with opening.open() as store:
        before = dict(wire.counts)
        for number in range(1, 201):
            assert await store.watermark("w") == number - 1
            await store.append("w", batch_of("w", number, 1))
        assert wire.counts["put"] - before["put"] <= 200 * 2.4
        assert wire.counts["get"] - before["get"] <= 200 * 1.1
        assert wire.counts["get_range"] - before["get_range"] <= 200 * 2.5
        segments = [name for name in objects_of(opening) if name.startswith(SEGMENTS)]
        assert len(segments) <= 8
        listed = wire.counts["list_objects"]
        assert await contents_of(store) == books_with(200).contents()
        assert wire.counts["list_objects"] == listed
    async with opening.open() as store:
        before = dict(wire.counts)
        await store.aggregate((), TODAY, TODAY, EVERYTHING)
        assert wire.counts["get_range"] - before["get_range"] <= len(segments)
        assert wire.counts["list_objects"] == before["list_objects"]


async def test_a_finished_day_is_merged(opening: PrefixOpening) -> None:
    """Days before the last two have one segment of each size, and a merge never exceeds its maximum."""
    async with opening.open() as store:
        for day in range(4, 0, -1):
            for number in range(5):
                at = NOON - day * DAY + number * MINUTE
                await store.append("w", [(10 * (5 - day) + number, make_event(started_at=at))])
        for number in range(8):
            await store.append("v", [(number + 1, make_event(started_at=NOON + number))])
        counts: dict[str, int] = {}
        for name in objects_of(opening):
            if name.startswith(SEGMENTS):
                day_of = name.split("/")[1]
                counts[day_of] = counts.get(day_of, 0) + 1
        assert counts == {"2026-11-19": 1, "2026-11-20": 1, "2026-11-21": 1, "2026-11-22": 5, "2026-11-23": 1}
        assert len(await events_of(store)) == 28


async def test_merges_are_bounded(opening: PrefixOpening, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments that do not fit into one together stay, and are read as one stream."""
    monkeypatch.setattr(merging, "MOST", 6_000)
    monkeypatch.setattr(merging, "_LEVELS", (1_500, 3_000, 6_000))
    async with opening.open() as store:
        for number in range(1, 101):
            await store.append("w", batch_of("w", number, 1))
        sizes = [len(data) for name, data in objects_of(opening).items() if name.startswith(SEGMENTS)]
        assert max(sizes) <= 6_000
        assert await contents_of(store) == books_with(100).contents()
        assert [event.cost async for event in store.events(ALWAYS, EVERYTHING, newest_first=True)] == [
            *range(100, 0, -1)
        ]


@pytest.mark.parametrize("newest_first", [False, True])
async def test_streams_go_on_while_their_segments_are_replaced(opening: PrefixOpening, newest_first: bool) -> None:
    """Events stream on, each once, if all segments that they began with are merged and deleted."""

    def batch(first: int) -> list[tuple[int, UsageEvent]]:
        return [(number, make_event(started_at=NOON + number, cost=number)) for number in range(first, first + 400)]

    async with opening.open() as store, opening.open() as other:
        for number in range(7):
            await store.append("w", batch(1 + 400 * number))
        begun_with = {name for name in objects_of(opening) if name.startswith(SEGMENTS)}
        seen = []
        async for event in store.events(ALWAYS, EVERYTHING, newest_first=newest_first):
            seen.append(event.cost or 0)
            if len(seen) == 10:
                await other.append("w", batch(2_801))
                assert not begun_with & objects_of(opening).keys()
        assert [cost for cost in seen if cost <= 2_800] == sorted(range(1, 2_801), reverse=newest_first)
        assert len(seen) == len(set(seen))


async def test_pruned_and_forgotten_events_leave_the_bucket(opening: PrefixOpening) -> None:
    """No object contains a pruned event, once its segment has none left, or the name of a forgotten user."""
    async with opening.open() as store:
        await store.append("w", numbered_from(1, [make_event(session="session-of-ann") for _ in range(5)]))
        events = [make_event(user="person-to-be-forgotten", started_at=NOON + MINUTE + number) for number in range(5)]
        await store.append("w", numbered_from(6, events))
        await prune_all(store, NOON + MINUTE, FIRST_DAY, most=2)
        await forget_all(store, "person-to-be-forgotten", most=2)
        contents = b"".join(objects_of(opening).values())
        assert b"(forgotten)" in contents
        assert b"person-to-be-forgotten" not in contents
        assert b"session-of-ann" not in contents


async def test_a_large_segment_is_pruned_from_its_beginning(opening: PrefixOpening, wire: Wire) -> None:
    """Slices of a segment are deleted without writing it again."""
    async with opening.open() as store:
        await store.append("w", batch_of("w", 1, 500))
        written = wire.counts["put"]
        for slice_ in range(1, 5):
            assert await store.prune(events_before=NOON + DAY, days_before=FIRST_DAY, most=100) == 100
            assert [event.cost for event in await events_of(store)] == [*range(1 + 100 * slice_, 501)]
        assert wire.counts["put"] == written + 4
        assert await store.prune(events_before=NOON + DAY, days_before=FIRST_DAY, most=100) == 100
        assert wire.counts["put"] == written + 6
        assert (await store.aggregate((), TODAY, TODAY, EVERYTHING)).groups[()].requests == 500


async def test_sums_of_any_size_are_exact(opening: PrefixOpening) -> None:
    """A sum of more than 64 bits stays a whole number through merges."""
    async with opening.open() as store:
        large = make_sum()
        large = large._replace(totals=large.totals._replace(cost=2**63 - 1))
        for number in range(1, 17):
            await store.append_sums("old", [(number, large)])
        (totals,) = (await store.aggregate((), FIRST_DAY, LAST_DAY, EVERYTHING)).groups.values()
        assert totals.cost == 16 * (2**63 - 1)


async def test_a_history_without_its_head_is_not_taken_for_a_new_one(opening: PrefixOpening) -> None:
    """If the head is lost or damaged, opening raises an error with the remedy, and nothing is deleted."""
    async with opening.open() as store:
        await store.append("w", batch_of("w", 1, 3))
    options, _ = opening.arguments
    mine = Bucket(options.url, options.settings)
    kept = objects_of(opening)
    mine.write(PATH, b"damaged")
    with pytest.raises(StorageUnavailableError, match=r"is damaged.*Restore an earlier version"):
        async with opening.open():
            pass
    mine.delete([PATH])
    with pytest.raises(StorageError, match=r"has segments, and no head.*Restore"):
        async with opening.open():
            pass
    mine.write(PATH, kept[PATH])
    assert objects_of(opening) == kept
    async with opening.open() as store:
        assert await contents_of(store) == books_with(3).contents()
        mine.delete([PATH])
        with pytest.raises(StorageUnavailableError, match="is missing"):
            await store.append("w", batch_of("w", 4, 1))


async def test_a_server_that_is_killed_is_unavailable(tmp_path: Path) -> None:
    """Every verb raises StorageUnavailableError within seconds, without a credential in its message."""
    with object_server() as server:
        async with server.opening(tmp_path).open() as store:
            await store.append("w", batch_of("w", 1, 1))
            os.kill(server.pid, signal.SIGKILL)
            for verb in (
                lambda: store.append("w", batch_of("w", 2, 1)), lambda: store.watermark("w"), store.health, store.size,
                lambda: contents_of(store), lambda: store.forget("ann", most=1),
                lambda: store.prune(events_before=0, days_before=FIRST_DAY, most=1),
            ):  # fmt: skip
                with pytest.raises(StorageUnavailableError, match="is not available") as caught:
                    await asyncio.wait_for(verb(), 30)
                assert "\n" not in str(caught.value)
                assert KEY["secret_access_key"] not in str(caught.value)


async def test_credentials_may_come_from_the_environment(
    opening: PrefixOpening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without options, the cloud's own variables are used."""
    for name, variable in (("access_key_id", "AWS_ACCESS_KEY_ID"), ("secret_access_key", "AWS_SECRET_ACCESS_KEY")):
        monkeypatch.setenv(variable, KEY[name])
    monkeypatch.setenv("AWS_REGION", KEY["region"])
    options = {name: opening.options[name] for name in ("url", "endpoint")}
    async with PrefixOpening(opening.backend, opening.data_dir, options).open() as store:
        await store.append("w", batch_of("w", 1, 1))
        assert await store.watermark("w") == 1


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"url": "https://bucket/x"}, "s3://bucket/prefix"),
        ({"url": "s3://"}, "s3://bucket/prefix"),
        ({"url": f"s3://{BUCKET}/x?y"}, "s3://bucket/prefix"),
        ({"url": f"s3://a:b@{BUCKET}/x"}, "without credentials"),
        ({"url": f"gs://{BUCKET}/x", "region": "here"}, "remove them for other clouds"),
        ({"url": f"s3://{BUCKET}/x", "access_key_id": "a"}, "together"),
        ({"url": f"s3://{BUCKET}/x", "secret_acces_key": "a-secret"}, "known options: url, endpoint"),
        ({"url": f"s3://{BUCKET}/x", "secret_access_key": "a-secret"}, "together"),
        ({"url": f"s3://{BUCKET}/x", "secret_access_key": ["a-secret"]}, "together"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any], remedy: str) -> None:
    """The error has the remedy, and no credential, also under a misspelt key."""
    with pytest.raises(ConfigError, match=remedy) as caught:
        check_options("usage_plugin.storage.options", ObjectsOptions, options)
    assert "a-secret" not in str(caught.value)
    assert "a:b" not in str(caught.value)


def test_credentials_are_not_shown() -> None:
    """No representation of the options has a credential."""
    options = ObjectsOptions.model_validate({"url": f"s3://{BUCKET}/x", **KEY})
    assert KEY["secret_access_key"] not in f"{options!r} {options} {options.model_dump()} {options.model_dump_json()}"
    assert options.settings == KEY
    assert ObjectsBackend().options_model is ObjectsOptions
