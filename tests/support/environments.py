"""Python environments of their own, for what is tried as somebody would install it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.proxy.conftest import ROOT


def call(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command that must succeed, and give what it prints."""
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
    """Make an environment; give its Python."""
    # In two steps: `venv` itself installs pip without PYTHONPATH, and so without the write guard.
    call(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    call(python, "-m", "ensurepip", "--default-pip")
    return python


def lend(python: Path, *folders: Path) -> str:
    """Lend an environment what is installed in this one, and folders; what it has itself comes first, in the result."""
    site = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=python.parent).strip()
    lines = [sysconfig.get_path("purelib"), *map(str, folders)]
    Path(site, "lent.pth").write_text("".join(f"{line}\n" for line in lines))
    return site
