"""CSV, JSON lines and Parquet writers: each takes batches of records, and holds a bounded number of them."""

from __future__ import annotations

import csv
import io
import json
from contextlib import contextmanager, suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import click

from usage_plugin.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from usage_plugin.cli.export.columns import ColumnType, RecordKind

    Write: TypeAlias = Callable[[Sequence[Any]], None]
    """Writes a batch of records."""

ROW_GROUP = 50_000
"""The maximum number of rows in a Parquet row group, and so of rows held in memory as Arrow columns."""
_FORMULA = ("=", "+", "-", "@")
_encode = json.JSONEncoder(ensure_ascii=False).encode


@contextmanager
def _json_lines(file: BinaryIO, kind: RecordKind) -> Iterator[Write]:
    def write(records: Sequence[Any]) -> None:
        file.write("".join(f"{_encode(kind.plain(record))}\n" for record in records).encode())

    yield write


@contextmanager
def _csv(file: BinaryIO, kind: RecordKind) -> Iterator[Write]:
    """Write values unchanged, and warn at the end if a spreadsheet would interpret some of them as formulas."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    words = [at for at, column in enumerate(kind.columns) if column.type == "text"]
    structured = [at for at, column in enumerate(kind.columns) if column.type in ("boolean", "list", "counts")]
    formulas = 0

    def flush_text() -> None:
        file.write(text.getvalue().encode())
        text.seek(0)
        text.truncate()

    def write(records: Sequence[Any]) -> None:
        nonlocal formulas
        for record in records:
            cells = list(kind.plain(record).values())
            for at in structured:
                cells[at] = _encode(cells[at])
            formulas += any(cells[at] and cells[at].startswith(_FORMULA) for at in words)
            writer.writerow(cells)
        flush_text()

    writer.writerow([column.name for column in kind.columns])
    flush_text()
    yield write
    if formulas:
        click.echo(
            f"{formulas:,} rows have a name that begins with =, +, - or @. Names are written unchanged: import these"
            " columns as text, or a spreadsheet interprets the names as formulas.",
            err=True,
        )


@contextmanager
def _parquet(file: BinaryIO, kind: RecordKind) -> Iterator[Write]:
    try:
        import pyarrow as pa  # noqa: PLC0415  # an extra, and slow to import
        from pyarrow import parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise ExportError(
            f"Parquet is not available: {error}.", hint="Install the extra: pip install 'usage-plugin[parquet]'"
        ) from error
    types = arrow_types(pa)
    schema = pa.schema([pa.field(name, types[kind], nullable=optional) for name, kind, optional in kind.columns])
    money = [column.type == "money" for column in kind.columns]
    batches: list[Any] = []
    written = pq.ParquetWriter(file, schema, compression="zstd")

    def flush() -> None:
        if batches:
            written.write_table(pa.Table.from_batches(batches), row_group_size=ROW_GROUP)
            batches.clear()

    def write(records: Sequence[Any]) -> None:
        columns = zip(*map(kind.values, records), strict=True)
        arrays = [
            pa.array(map(_dollars, column) if is_money else column, type=field.type)
            for column, field, is_money in zip(columns, schema, money, strict=True)
        ]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
        if sum(batch.num_rows for batch in batches) >= ROW_GROUP:
            flush()

    try:
        yield write
        flush()
    except BaseException:
        # Close it here, where its own error can be suppressed, and not during garbage collection.
        with suppress(Exception):
            written.close()
        raise
    written.close()


def _dollars(nano: int | None) -> Decimal | None:
    return None if nano is None else Decimal(nano).scaleb(-9)


def arrow_types(pa: Any) -> dict[ColumnType, Any]:
    """Return the Arrow type of each column type; `pa` is the imported pyarrow."""
    return {
        "text": pa.string(),
        "integer": pa.int64(),
        "number": pa.float64(),
        "money": pa.decimal128(38, 9),
        "time": pa.timestamp("us", tz="UTC"),
        "day": pa.date32(),
        "boolean": pa.bool_(),
        "list": pa.list_(pa.string()),
        "counts": pa.map_(pa.string(), pa.int64()),
    }


FORMATS: dict[str, Callable[[BinaryIO, RecordKind], AbstractContextManager[Write]]] = {
    "jsonl": _json_lines,
    "csv": _csv,
    "parquet": _parquet,
}
