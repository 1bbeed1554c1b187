"""The commands of docs/operating.md, docs/doctor.md and docs/privacy.md work with the proxy of `make run`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.docs.conftest import shell
from tests.docs.test_docs import blocks
from tests.proxy.conftest import ROOT
from tests.support import plain_http
from usage_plugin.cli.anomalies import KINDS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.proxy
CONFIG = {"USAGE_PLUGIN_CONFIG": "config.example.yaml"}
REF = "36M87S1S"
EVENT = "01a20d6f-2745-73f7-af30-b19af56710a2"


@pytest.fixture(scope="module")
def names(example_proxy: tuple[Path, int]) -> dict[str, str]:
    """Let kim spend up to the limit; return the ref and the event that replace those in the documents."""
    folder, port = example_proxy
    body = {"model": "mock-model", "user": "kim", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}
    key = (folder / "data" / "master_key").read_text()
    for _ in range(6):
        answer = plain_http.post(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json=body,
            timeout=60,
            headers={"Authorization": f"Bearer {key}"},
        )
        if answer.status_code == 402:
            break
    ref = answer.json()["error"]["provider_specific_fields"]["ref"]
    events = json.loads(shell("usage-plugin events --user kim --format json", folder, port, **CONFIG))["events"]
    # Refusals are written down once a second.
    shell(f"for i in $(seq 50); do usage-plugin explain {ref} && exit; sleep 0.1; done; exit 1", folder, port, **CONFIG)
    return {REF: ref, EVENT: events[-1]["event_id"]}


@pytest.mark.parametrize("page", ["operating.md", "doctor.md", "privacy.md"])
def test_what_the_page_says_to_type_works(example_proxy: tuple[Path, int], names: dict[str, str], page: str) -> None:
    """Each command of the page ends with 0, in the order of the page, with the expected output."""
    said = ""
    commands = blocks(ROOT / "docs" / page, "bash")
    assert commands
    for command in commands:
        real = command.replace(REF, names[REF]).replace(EVENT, names[EVENT])
        said += shell(real, *example_proxy, **CONFIG)
    expected = {
        "operating.md": [
            r"why +the amount is used up: 0\.0303 spent \+ 0\.00 reserved \+ 0\.0259 needed = 0\.0562 of 0\.05",
            r"Now daily would still refuse it: 0\.0197 left, 0\.0259 needed; resets: ",
            r"A request now is admitted if it needs at most 0\.0197 USD \(daily\)\.",
            r"Admitted at .* It ended after .* as success: cost 0\.0101 USD",
            r"Adjustment 1 \(0\.05 → 5\.00\) is in force until .*, by ",
            r"The limit daily of user kim is 5\.00 USD now, 4\.9697 left; resets: ",
            r"The limit company of everybody is unlimited now",
            r"incident 4711",
        ],
        "doctor.md": [
            r"chat +✓ +✓ +✓ +success, 10 \+ 5 tokens, 0\.00002 USD",
            r"chat, refused +✓ +- +- +refused as expected",
            r"chat +✓ +✓ +✓ +success, 10 \+ 20 tokens, 0\.0101 USD",
        ],
        "privacy.md": [
            r"kim\.jsonl: .*\b3 event",
            r"Deleted: \d+ history",
            r"forget +p-[a-z2-7]{16} +\S+ +left in May",
        ],
    }[page]
    for pattern in expected:
        assert re.search(pattern, said), f"{pattern}\n{said}"
    assert "✗" not in said


def test_every_kind_of_anomaly_is_documented() -> None:
    """docs/doctor.md has a row for each kind that is always counted."""
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "doctor.md").read_text(), re.MULTILINE)
    assert set(KINDS) <= set(rows)
