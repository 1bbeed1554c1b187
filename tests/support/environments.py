"""Isolated Python environments, for tests of an installation."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.proxy.conftest import ROOT


def call(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_environment(folder: Path) -> Path:
    """Create an environment and return the path of its Python."""
    # In two steps: `venv` itself installs pip without PYTHONPATH, and so without the write guard.
    call(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    call(python, "-m", "ensurepip", "--default-pip")
    return python


def lend(python: Path, *folders: Path) -> str:
    """Make this environment's packages and some folders importable in another, after its own; return its site path."""
    site = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=python.parent).strip()
    lines = [sysconfig.get_path("purelib"), *map(str, folders)]
    Path(site, "lent.pth").write_text("".join(f"{line}\n" for line in lines))
    return site
