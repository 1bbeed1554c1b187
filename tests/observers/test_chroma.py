"""The plugin chroma with the real Chroma, in an environment of its own: it is large, and not for everybody."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.proxy.conftest import ROOT


def call(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wanted() -> str:
    """Give what the extra `chroma` asks for."""
    found = re.search(r'^chroma = \["(.+)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.soak
def test_the_plugin_works_with_the_real_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Installed beside what LiteLLM's proxy pins, it passes all tests of this folder, and those that only it can."""
    call(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    # What is installed here already is lent, so that pip sees what it must fit beside.
    site = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    call(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wanted())
    call(python, "-m", "pip", "check")
    said = call(
        *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not soak"),
        *("-o", "python_files=test_*.py real_*.py", ROOT / "tests" / "observers"),
    )
    assert " passed" in said
    (figures,) = re.findall(r"^Chroma \d.*$", said, re.MULTILINE)
    with capsys.disabled():
        print(f"\n{figures}")
