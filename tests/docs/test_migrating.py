"""The commands of docs/migrating.md work."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.docs.conftest import shell
from tests.docs.test_docs import blocks
from tests.migration.conftest import OldTracker, limits_of, profile_of
from tests.migration.test_migrate import DAYS, MONTHS
from tests.proxy.conftest import ROOT
from usage_plugin.migration.legacy_records import ImportFindingKind
from usage_plugin.migration.limit_conversion import _KINDS

PAGE = ROOT / "docs" / "migrating.md"


def test_what_the_page_says_to_type_works(tmp_path: Path) -> None:
    """Each command ends with 0, in the order of the page, and prints the output on the page."""
    old = OldTracker(tmp_path / "old-data")
    old.database(DAYS, MONTHS).close()
    old.write("user_profiles.jsonl", json.dumps(profile_of("ann")))
    old.write("spending_limits.json", {"limits": [limits_of("ann", daily_limit=10)]})
    (tmp_path / "config.yaml").write_text("usage_plugin: {data_dir: ./data/usage}\n")
    columns = re.search(r"SELECT (.*) FROM", PAGE.read_text())
    assert columns
    names = columns[1].replace('"', "").split(", ")
    row = dict.fromkeys(names, "") | {
        "request_id": "a",
        "spend": "0.25",
        "startTime": "2026-10-01 10:00:00",
        "user": "ann",
    }
    (tmp_path / "spend.csv").write_text(f"{','.join(names)}\n{','.join(row.values())}\n")
    said = "".join(shell(command, tmp_path, 0) for command in blocks(PAGE, "bash"))
    for line in blocks(PAGE, "text")[0].splitlines():
        pattern = re.escape(line.strip()).replace("\\ ", " ")
        assert line == "…" or re.search(re.sub(" +", " +", pattern), said), f"{line}\n{said}"
    assert re.search(r"ann +5 .* 1\.30", said)
    assert re.search(r"new events +1\b", said)
    limits_from = next(block for block in blocks(PAGE, "text") if "limits_from" in block)
    (tmp_path / "config.yaml").write_text(f"{limits_from}  data_dir: ./data/usage\n")
    assert "migrated-daily" in shell("usage-plugin check", tmp_path, 0)


def test_every_kind_of_finding_and_limit_is_documented() -> None:
    """A reader of the report finds each word on the page."""
    text = PAGE.read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(ImportFindingKind.__args__)
    assert all(f"`{kind.name}`" in text for kind in _KINDS)
