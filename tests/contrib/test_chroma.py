"""The plugin chroma with the real Chroma, in an environment of its own: it is large, and not for everybody."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.proxy.conftest import ROOT
from tests.support.environments import call, lend, make_environment


def wanted() -> str:
    """Return the requirements of the extra `chroma`."""
    found = re.search(r'^chroma = \["(.+)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.soak
def test_the_plugin_works_with_the_real_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Installed with the pins of LiteLLM's proxy, it passes all tests of this folder, and those that require it."""
    python = make_environment(tmp_path / "venv")
    # So that pip sees the pins that it must respect.
    lend(python, ROOT)
    call(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wanted())
    call(python, "-m", "pip", "check")
    said = call(
        *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not soak"),
        *("-o", "python_files=test_*.py real_*.py", ROOT / "tests" / "contrib"),
    )
    assert " passed" in said
    (figures,) = re.findall(r"^Chroma \d.*$", said, re.MULTILINE)
    with capsys.disabled():
        print(f"\n{figures}")
