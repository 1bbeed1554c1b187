"""Erased records are also gone from the bytes of the ledger's files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from usage_plugin.domain.ledger import AccountKey, Charge
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.testing.builders import record_new

if TYPE_CHECKING:
    from pathlib import Path


def test_no_byte_is_left_of_what_was_erased(tmp_path: Path) -> None:
    """After compacting, the name is in neither the file nor its log, for any earlier filling and splitting of pages."""
    opened = open_sqlite_ledger(tmp_path / "ledger.db")
    names = [f"person-{number:04}@example" for number in range(300)]
    for number, name in enumerate(names):
        charges = [Charge(AccountKey(1, bucket, name), 10, 5) for bucket in range(number % 20 + 1)]
        record_new(opened.ledger, charges, json.dumps({"user": name}))
    opened.ledger.acknowledge(len(names))
    gone = names[::3]
    for name in gone:
        opened.erasable.erase(opened.erasable.find(name))
    opened.erasable.compact()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert [name for name in gone if name.encode() in content] == []
    assert all(name.encode() in content for name in set(names) - set(gone))
    opened.close()
