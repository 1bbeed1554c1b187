"""Import LiteLLM's own spend logs: each row of an export becomes one usage event, for any number of imports.

A file keeps a digest of each imported row, because a store deletes old events and must not receive them again. A row
that was recorded there but not stored, because the process was killed in between, has a number above the store's
watermark. It is deleted from the file at the next start.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import uuid
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.atomic_files import open_private, open_private_text, open_regular
from usage_plugin.domain.claims import Claimed, read_claim
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.pseudonyms import MASTER_KEY, is_key_hash, key_name
from usage_plugin.domain.subjects import ANONYMOUS, MOST_TAGS, Subjects, clean_name
from usage_plugin.domain.usage import MOST_TOKENS, UsageEvent
from usage_plugin.domain.windows import to_instant
from usage_plugin.errors import MigrationError, RejectedError, SubjectNameError
from usage_plugin.migration.import_lock import import_lock
from usage_plugin.migration.legacy_records import ImportFinding, count, money
from usage_plugin.migration.spend_log_rows import LogRows
from usage_plugin.migration.user_names import new_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.store import UsageStore
    from usage_plugin.migration.outcome import Progress

MOST_SHOWN = 20
_BATCH = 500
_NAMESPACE = uuid.UUID("0f0c3f1e-6f0b-5c43-9d0b-6d1d5f8d6a52")
"""The namespace of event ids, which are derived from `request_id`; it must never change."""
_NEEDED = {"request_id", "startTime", "spend"}
_NOBODY = ("", "default_user_id", "default_user")
_MOMENT = re.compile(
    r"(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))? ?(Z|[+-]\d{2}(?::?\d{2})?)?", re.ASCII
)
_LATEST = datetime(2200, 1, 1, tzinfo=timezone.utc)


class IdentityRules(NamedTuple):
    """How a row is attributed to a user, as a request is: `identity` of the configuration.

    Attributes:
        order: The sources of the user's name, in order of precedence.
        casefold: Whether names that differ in case only are the same name.
        json_field: The field with the name, for an end user that is JSON.
        keep: Converts the subjects of a row to the form in which they are kept.
    """

    order: Sequence[str]
    casefold: bool
    json_field: str | None
    keep: Callable[[Subjects], Subjects]


@dataclass
class Imported:
    """The outcome of an import.

    Attributes:
        rows: The number of rows that were read.
        events: The number of new events.
        cost: The cost of the new events.
        known: The number of rows that were imported before.
        later: The number of rows that were left out, because they are not before the given time.
        findings: The first findings; all of them are in `report`.
    """

    file: str
    rows: int = 0
    events: int = 0
    cost: Nano = 0
    known: int = 0
    later: int = 0
    rejected: int = 0
    findings: list[dict[str, str]] = field(default_factory=list)
    report: str | None = None

    def plain(self) -> dict[str, Any]:
        """Return plain values, for programs."""
        return {**asdict(self), "cost": format_usd(self.cost)}


async def import_spend_logs(
    path: Path,
    data_dir: Path,
    identity: IdentityRules,
    store: UsageStore,
    progress: Progress,
    *,
    before: int | None = None,
) -> Imported:
    """Import an export of `LiteLLM_SpendLogs`: CSV, JSON Lines or one JSON array.

    Args:
        path: The export.
        data_dir: The folder for the digests of imported rows, and for the report.
        identity: How a row is attributed to a user.
        store: The store for the events.
        progress: Receives the progress in bytes.
        before: The instant from which on rows are left out, by their start.

    Raises:
        MigrationError: The file cannot be read, or is of another kind.
        StorageError: The store does not accept the events at the moment; another run resumes the import.
    """
    imported = Imported(str(path))
    folder = data_dir / "migration"
    report = data_dir / "import_report.jsonl"
    with ExitStack() as stack:
        stack.enter_context(import_lock(folder))
        try:
            raw = stack.enter_context(open_regular(path))
            rows = LogRows(raw, path)
            first = rows.peek()
        except OSError as error:
            raise MigrationError(f"Cannot read {path}: {error}.") from error
        _check_fields(first, path)
        report_file = stack.enter_context(open_private_text(report))
        imported.report = str(report)

        def tell(finding: ImportFinding) -> None:
            imported.rejected += 1
            plain = finding.plain()
            report_file.write(json.dumps(plain, ensure_ascii=False) + "\n")
            if len(imported.findings) < MOST_SHOWN:
                imported.findings.append(plain)

        known = stack.enter_context(closing(_Known(folder / "spend_logs.db")))
        known.forget_after(await store.watermark(known.writer))
        progress.begin(f"Importing {path.name}", os.fstat(raw.fileno()).st_size)
        events = _events(rows, identity, before, imported, tell)
        at = 0
        while batch := list(islice(events, _BATCH)):
            fresh = known.add(batch)
            if fresh:
                await store.append(known.writer, fresh)
            imported.events += len(fresh)
            imported.known += len(batch) - len(fresh)
            imported.cost += sum(event.cost or 0 for _, event in fresh)
            at, before_this = rows.position(), at
            progress.advance(at - before_this)
    return imported


def _check_fields(first: Mapping[str, Any], path: Path) -> None:
    missing = _NEEDED - set(first)
    if not missing:
        return
    inner = next((name for name, value in first.items() if _holds_rows(value)), None)
    raise MigrationError(
        f"expected an export of LiteLLM_SpendLogs; the rows of {path} have no {', '.join(sorted(missing))}.",
        hint=f"The rows seem to be under {inner!r}: extract them with jq -c '.{inner}[]' FILE."
        if inner
        else "Separate columns with commas; \\copy \"LiteLLM_SpendLogs\" TO 'spend.csv' CSV HEADER writes such a file.",
    )


def _holds_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _events(
    rows: LogRows,
    identity: IdentityRules,
    before: int | None,
    imported: Imported,
    tell: Callable[[ImportFinding], None],
) -> Iterator[UsageEvent]:
    for where, row in rows:
        imported.rows += 1
        if isinstance(row, str):
            tell(ImportFinding("rejected", where, "", "", row))
            continue
        try:
            event = event_of(row, identity)
        except RejectedError as error:
            tell(
                ImportFinding(
                    "rejected", where, str(row.get("user") or ""), str(row.get("startTime") or ""), f"{error}."
                )
            )
            continue
        if before is not None and event.started_at >= before:
            imported.later += 1
        else:
            yield event


class _Known:
    """The rows that are in the store, by a digest of their ids, in the order of the import."""

    def __init__(self, path: Path) -> None:
        try:
            os.close(open_private(path, os.O_CREAT | os.O_RDWR, follow_links=False))
            self._connection = sqlite3.connect(path, isolation_level=None)
            execute = self._connection.execute
            execute("PRAGMA journal_mode = WAL")
            execute("PRAGMA synchronous = FULL")
            execute("CREATE TABLE IF NOT EXISTS writer (name TEXT NOT NULL)")
            execute("CREATE TABLE IF NOT EXISTS known (id BLOB PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID")
            execute("CREATE INDEX IF NOT EXISTS known_by_number ON known (number)")
            execute(
                "INSERT INTO writer (name) SELECT ? WHERE NOT EXISTS (SELECT * FROM writer)",
                (f"litellm-spend-logs:{uuid.uuid4().hex}",),
            )
            self.writer = str(execute("SELECT name FROM writer").fetchone()[0])
        except (OSError, sqlite3.Error) as error:
            raise MigrationError(f"Cannot use {path}: {error}.") from error

    def forget_after(self, number: int) -> None:
        """Delete the rows that the store did not receive."""
        self._connection.execute("DELETE FROM known WHERE number > ?", (number,))

    def add(self, events: Sequence[UsageEvent]) -> list[tuple[int, UsageEvent]]:
        """Record events, and return the new ones with their numbers."""
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        (last,) = execute("SELECT coalesce(max(number), 0) FROM known").fetchone()
        fresh: list[tuple[int, UsageEvent]] = []
        for event in events:
            row = (uuid.UUID(event.event_id).bytes, last + len(fresh) + 1)
            if execute("INSERT OR IGNORE INTO known (id, number) VALUES (?, ?)", row).rowcount:
                fresh.append((row[1], event))
        execute("COMMIT")
        return fresh

    def close(self) -> None:
        self._connection.close()


def event_of(row: Mapping[str, Any], identity: IdentityRules) -> UsageEvent:
    """Return the event of a row.

    Raises:
        RejectedError: A number, a time or the id is invalid.
    """
    request_id = row.get("request_id")
    if not isinstance(request_id, str) or not request_id:
        raise RejectedError("request_id is missing")
    metadata = _json_of(row.get("metadata"), dict)
    started = _moment(row.get("startTime"), "startTime")
    ended = _moment(row.get("endTime"), "endTime") if row.get("endTime") else started
    tokens = {name: _count(row, name) for name in ("prompt_tokens", "completion_tokens")}
    is_hit = str(row.get("cache_hit")).strip().lower() == "true"
    served = _name(row.get("model"), "model")
    failed = str(row.get("status") or metadata.get("status") or "").lower() == "failure"
    counted = {} if is_hit else tokens
    inputs, outputs = counted.get("prompt_tokens", 0), counted.get("completion_tokens", 0)
    cached, written, reasoning = _details(metadata, inputs, outputs)
    error = _json_of(metadata.get("error_information"), dict).get("error_class")
    subjects = Subjects(
        user=_user(row, metadata, identity),
        team=_name(row.get("team_id"), "team", fold=identity.casefold),
        api_key=_api_key(row),
        api_key_alias=_name(metadata.get("user_api_key_alias"), "key alias"),
        end_user=_claim(row, identity).name,
        organization=_name(row.get("organization_id"), "organization", fold=identity.casefold),
        session=_name(row.get("session_id"), "session") or _claim(row, identity).session,
        tags=_tags(row.get("request_tags")),
    )
    return UsageEvent(
        event_id=str(uuid.uuid5(_NAMESPACE, request_id.encode("utf-8", "backslashreplace").decode())),
        started_at=to_instant(started),
        status="failure" if failed else "success",
        call_type=_name(row.get("call_type"), "call type") or "unknown",
        duration_us=max(0, (ended - started) // timedelta(microseconds=1)),
        **identity.keep(subjects).kept(),
        call_id=_name(row.get("litellm_call_id"), "call id") or _name(request_id, "request id"),
        model=_name(row.get("model_group"), "model") or served,
        served_model=served,
        deployment=_name(row.get("model_id"), "deployment"),
        provider=_name(row.get("custom_llm_provider"), "provider"),
        input_tokens=inputs,
        output_tokens=outputs,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
        cost=money(_decimal(row.get("spend")), "spend") or 0,
        cost_source="litellm",
        cache_hit=is_hit,
        error=_name(error, "error") if failed else None,
        usage=tokens if is_hit else None,
    )


def _details(metadata: Mapping[str, Any], inputs: int, outputs: int) -> tuple[int, int, int]:
    """Return the cached, cache-write and reasoning tokens; 0 for a number that exceeds its total."""
    usage = _json_of(metadata.get("usage_object"), dict)
    prompt = _json_of(usage.get("prompt_tokens_details"), dict)
    answer = _json_of(usage.get("completion_tokens_details"), dict)
    return (
        _part(usage.get("cache_read_input_tokens") or prompt.get("cached_tokens"), inputs),
        _part(usage.get("cache_creation_input_tokens"), inputs),
        _part(answer.get("reasoning_tokens"), outputs),
    )


def _part(value: object, most: int) -> int:
    return value if isinstance(value, int) and 0 < value <= most else 0


def _user(row: Mapping[str, Any], metadata: Mapping[str, Any], identity: IdentityRules) -> str:
    """Return the user, named as a request's would be; a name that no request could have is substituted."""
    own = row.get("user")
    candidates: list[object] = [] if own in _NOBODY else [own]
    for source in identity.order:
        if source == "end_user":
            candidates.append(_claim(row, identity).name)
        elif source == "key" and row.get("api_key") != MASTER_KEY:
            key = _api_key(row)
            candidates += [metadata.get("user_api_key_alias"), key_name(key) if key else None]
    for candidate in candidates:
        if isinstance(candidate, str) and candidate.strip() and candidate not in _NOBODY:
            return new_name(candidate, casefold=identity.casefold)[0]
    return ANONYMOUS


def _claim(row: Mapping[str, Any], identity: IdentityRules) -> Claimed:
    return read_claim(row.get("end_user"), json_field=identity.json_field, casefold=identity.casefold)


def _api_key(row: Mapping[str, Any]) -> str | None:
    """Return LiteLLM's hash of the key; any other value is hashed, since it may be the key itself."""
    value = row.get("api_key")
    if not isinstance(value, str) or not value:
        return None
    if is_key_hash(value):
        return value
    return hashlib.sha256(value.encode("utf-8", "backslashreplace")).hexdigest()


def _tags(value: object) -> tuple[str, ...]:
    names = (_name(tag, "tag") for tag in _json_of(value, list))
    tags = dict.fromkeys(name for name in names if name and not name.startswith("User-Agent:"))
    return tuple(tags)[:MOST_TAGS]


def _name(value: object, what: str, *, fold: bool = False) -> str | None:
    try:
        return clean_name(value, what=what, casefold=fold)
    except SubjectNameError:
        return None


def _json_of(value: object, kind: type[Any]) -> Any:  # a value of that kind
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    return value if isinstance(value, kind) else kind()


def _decimal(value: object) -> object:
    """Return the number of a text, as CSV has it; other values unchanged."""
    if isinstance(value, str):
        try:
            return Decimal(value)
        except InvalidOperation:
            return value
    return value


def _count(row: Mapping[str, Any], name: str) -> int:
    return count({name: _decimal(row.get(name))}, name, MOST_TOKENS)


def _moment(value: object, name: str) -> datetime:
    """Return a time in the formats of Postgres, Prisma or Python; UTC if it names no zone, as in LiteLLM."""
    found = _MOMENT.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        raise RejectedError(f"{name}: expected a time; found {value!r}")
    day, clock, fraction, zone = found.groups()
    offset = "+00:00" if zone in (None, "Z") else f"{zone[:3]}:{zone[3:].strip(':') or '00'}"
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}.{(fraction or '')[:6]:0<6}{offset}").astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise RejectedError(f"{name}: expected a time of the calendar; found {value!r}") from None
    if not 1970 <= moment.year < _LATEST.year:
        raise RejectedError(f"{name}: expected a year between 1970 and {_LATEST.year - 1}; found {value!r}")
    return moment
