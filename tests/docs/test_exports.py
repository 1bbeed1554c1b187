"""docs/exports.md maps every column to the names of LiteLLM, OpenTelemetry and FOCUS, and the names exist there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_type_hints

import litellm
import pytest
from litellm.types.utils import StandardLoggingPayload

from tests.proxy.conftest import ROOT
from usage_plugin.cli.export.columns import DAYS, EVENTS
from usage_plugin.domain.usage import UsageEvent

PAGE = (ROOT / "docs" / "exports.md").read_text()

OPENTELEMETRY = {
    "enduser.id",
    "error.type",
    "gen_ai.agent.id",
    "gen_ai.client.operation.duration",
    "gen_ai.conversation.id",
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.max_tokens",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.reasoning.output_tokens",
    "openai.response.service_tier",
    "user.id",
}
"""Of the registry of attributes, https://opentelemetry.io/docs/specs/semconv/registry/attributes/."""


def rows_of(title: str) -> list[list[str]]:
    """Return the cells of the table under a heading of the mapping."""
    mapping = PAGE.split("## Names in other systems\n", 1)[1]
    table = mapping.split(f"### {title}\n", 1)[1].split("\n### ", 1)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    return rows[2:]


def names_in(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)}


def focus_columns() -> set[str]:
    """Return the columns that LiteLLM's own FOCUS export has; read as text, since importing it needs polars."""
    schema = Path(litellm.__file__).parent / "integrations" / "focus" / "schema.py"
    return set(re.findall(r'^ +\("(\w+)", pl\.', schema.read_text(), re.MULTILINE))


@pytest.mark.parametrize(("title", "kind"), [("Events", EVENTS), ("Days", DAYS)], ids=["events", "days"])
def test_every_column_is_mapped(title: str, kind):
    """A column has one row, in the order of the export."""
    assert [row[0] for row in rows_of(title)] == [f"`{column.name}`" for column in kind.columns]


def test_every_field_of_an_event_is_a_column():
    """So every field is mapped; the duration is in milliseconds in exports."""
    names = {row[0].strip("`") for row in rows_of("Events")}
    assert {name.replace("duration_ms", "duration_us") for name in names} == set(UsageEvent._fields)


def test_litellm_has_the_names():
    """Each path leads to a field of the payload of the installed LiteLLM."""
    paths = [path for row in rows_of("Events") for path in re.findall(r"`([\w.]+)`", row[1])]
    assert len(paths) > 25
    for path in paths:
        fields = get_type_hints(StandardLoggingPayload)
        for step in path.split("."):
            assert step in fields, path
            found = fields[step]
            # An optional part is a union: the class is one of its arguments.
            classes = [it for it in (found, *getattr(found, "__args__", ())) if hasattr(it, "__annotations__")]
            fields = get_type_hints(classes[0]) if classes else {}


def test_opentelemetry_has_the_names():
    """The attributes are of the registry, and none of it that was looked up is unused."""
    assert (
        names_in([re.sub(r"`(requested_model|chat|acompletion)`", "", row[2]) for row in rows_of("Events")])
        == OPENTELEMETRY
    )


def test_focus_has_the_names():
    """The columns are those of version 1.2, which LiteLLM's export has."""
    columns = focus_columns()
    assert len(columns) > 30
    used = names_in([row[3] for row in rows_of("Events")]) | names_in([row[1] for row in rows_of("Days")])
    assert used <= columns
    said = PAGE.split("### Days\n", 1)[1].split("|", 1)[0]
    assert names_in([said]) - {"USD", "Usage", "Requests"} <= columns
