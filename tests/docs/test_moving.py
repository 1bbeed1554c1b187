"""The commands of docs/moving.md work, from SQLite to a PostgreSQL server and back."""

from __future__ import annotations

import re
from random import Random
from typing import TYPE_CHECKING

import psycopg

from tests.docs.conftest import shell
from tests.docs.test_docs import blocks
from tests.moving.places import Place, fill
from tests.proxy.conftest import ROOT
from tests.support.postgres import postgres

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.postgres import PostgresServer

__all__ = ["postgres"]
PAGE = ROOT / "docs" / "moving.md"


def test_what_the_page_says_to_type_works(tmp_path: Path, postgres: PostgresServer) -> None:
    """Each command ends with 0, in the order of the page; the first steps are one shell, as the reader's."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE moving")
    url = postgres.url.rpartition("/")[0] + "/moving"
    (tmp_path / "config.yaml").write_text("usage_plugin: {data_dir: ./data/usage}\n")
    (new,) = blocks(PAGE, "yaml")
    (tmp_path / "fleet.yaml").write_text(new)
    old = Place(tmp_path / "config.yaml")
    fill(old, Random(1), 10)
    before = old.read()
    there = "\n".join(blocks(PAGE, "bash")[:4])
    said = shell(there, tmp_path, 0, USAGE_DATABASE_URL=url)
    for line in blocks(PAGE, "text")[0].splitlines():
        assert line in re.sub(r"\s+", " ", said).replace(f"{tmp_path}/", ""), said
    assert re.search(r"open reservations +[1-9]", said)
    secret = (tmp_path / "data" / "usage" / "secret").read_text().strip()
    for command in blocks(PAGE, "bash")[4:]:
        shell(command, tmp_path, 0, USAGE_DATABASE_URL=url, USAGE_PLUGIN_SECRET=secret)
    assert old.read()["accounts"] == before["accounts"]


def test_every_message_of_the_page_is_one_of_the_code() -> None:
    """The table of remedies names messages that exist."""
    messages = re.findall(r"^\| (`.*?`(?:, `.*?`)*) \|", PAGE.read_text(), re.MULTILINE)
    code = " ".join(
        re.sub(r'"\s+f?"', "", path.read_text())
        for folder in ("moving", "runtime")
        for path in (ROOT / "usage_plugin" / folder).glob("*.py")
    )
    found = [part.strip() for group in messages for text in re.findall("`(.*?)`", group) for part in text.split("…")]
    assert len(found) > 8
    for part in filter(None, found):
        assert part in code, part
