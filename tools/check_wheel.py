"""Build the wheel once and test it as it is installed: `make wheel`, or with every Python there is `make wheel-all`.

The tests run in a copy of the repository without the package, so that only the installed wheel can be imported. Every
module of ours must come from `site-packages`. The chosen tests, some 1,300, need no proxy and no LiteLLM.

This Python's environment borrows the packages of `.venv` and costs no download. Each other Python of the
classifiers gets an environment in `build/wheel` with the wheel's requirements. It is kept for the next run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "wheel"
TESTS = (
    "tests/domain",
    "tests/test_config.py",
    "tests/api/test_tracker.py",
    "tests/api/test_reservations.py",
    "tests/plugins/test_loading.py",
)
REQUIREMENTS = ("httpx", "openai", "pytest-timeout", "pytest-xdist", "starlette", "uvicorn")
"""Packages that the chosen tests import in addition to the wheel's extra `testing`."""

CHECK = '''
import sys
import sysconfig


def pytest_sessionfinish():
    """Fail the run if a module of ours was not imported from the installed wheel."""
    modules = {name: it.__file__ for name, it in sys.modules.items() if name.split(".")[0] == "usage_plugin"}
    outside = {name: path for name, path in modules.items() if not path.startswith(sysconfig.get_path("purelib"))}
    assert modules, "nothing of usage_plugin was imported"
    assert not outside, f"not from site-packages: {outside}"
'''


class Environment(NamedTuple):
    """A Python with the wheel installed, and the number of its version."""

    python: Path
    version: tuple[int, ...]


def main() -> None:
    """Build, install, test; end with an error at the first Python on which something fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every Python of the classifiers that is installed here")
    chosen = parser.parse_args()
    wheel = build()
    tree = copy_without_package()
    test(borrowing_environment(wheel), tree)
    own = "{}.{}".format(*sys.version_info)
    for version, python in found_pythons().items() if chosen.all else ():
        if python is not None and version != own:
            test(environment(version, python, wheel), tree)


def build() -> Path:
    """Build the wheel, and compare its files with the package's."""
    folder = BUILD / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("usage_plugin/")}
    missing = {name for name in tracked() if name.startswith("usage_plugin/")} - packed
    if missing:
        sys.exit(f"The wheel lacks {', '.join(sorted(missing))}.")
    return wheel


def copy_without_package() -> Path:
    """Copy all tracked files but the package, for the tests to run in."""
    tree = BUILD / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for name in tracked():
        if not name.startswith("usage_plugin/") and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    (tree / "installed_wheel.py").write_text(CHECK, encoding="utf-8")
    return tree


def tracked() -> list[str]:
    """Return the names of all tracked files."""
    return run("git", "ls-files", "-z", cwd=ROOT).rstrip("\0").split("\0")


def found_pythons() -> dict[str, Path | None]:
    """Return an interpreter for each version of the classifiers; None, and a message, where none is installed."""
    versions = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = {version: _interpreter(version) for version in versions}
    missing = [version for version, python in found.items() if python is None]
    if missing:
        sys.stdout.write(f"Not installed here, so not tested: Python {', '.join(missing)}.\n")
    return found


def _interpreter(version: str) -> Path | None:
    kept = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python3"))
    on_path = shutil.which(f"python{version}")
    for python in [*map(Path, [on_path] if on_path else []), *reversed(kept)]:
        # A shim of pyenv is there also when its version is not chosen, and then fails.
        asked = subprocess.run([python, "--version"], capture_output=True, check=False)  # noqa: S603
        if asked.returncode == 0:
            return python
    return None


def borrowing_environment(wheel: Path) -> Environment:
    """Make an environment of this Python that has the wheel, and finds everything else where this process does."""
    folder = BUILD / "this"
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Behind the environment's own packages, and without an editable installation, whose .pth is not read from there.
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return Environment(python, sys.version_info[:3])


def environment(version: str, interpreter: Path, wheel: Path) -> Environment:
    """Make or reuse an environment of another Python, and install the wheel into it."""
    packed = zipfile.ZipFile(wheel)
    metadata = packed.read(next(name for name in packed.namelist() if name.endswith("METADATA"))).decode()
    asked = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    stamp = hashlib.sha256("\n".join([*asked, *REQUIREMENTS]).encode()).hexdigest()
    folder = BUILD / version
    python = folder / "bin" / "python"
    kept = folder / "requirements"
    if not kept.exists() or kept.read_text(encoding="utf-8") != stamp:
        shutil.rmtree(folder, ignore_errors=True)
        run(interpreter, "-m", "venv", folder)
        run(python, "-m", "pip", "install", "--quiet", f"{wheel}[testing]", *REQUIREMENTS)
        kept.write_text(stamp, encoding="utf-8")
    run(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall", wheel)
    number = run(python, "-c", "import sys; print(*sys.version_info[:3])")
    return Environment(python, tuple(map(int, number.split())))


def test(tested: Environment, tree: Path) -> None:
    """Run the chosen tests with an environment, and the command that the wheel installs."""
    name = ".".join(map(str, tested.version))
    sys.stdout.write(f"Python {name}:\n")
    sys.stdout.flush()
    command = tested.python.with_name("usage-plugin")
    run(command, "--help", cwd=tree)
    options = ["-q", "-p", "no:cacheprovider", "-p", "installed_wheel", "--numprocesses", "2"]
    if (3, 12) <= tested.version < (3, 12, 4):
        # They warn of numbered placeholders in SQL, wrongly: https://github.com/python/cpython/issues/117995
        options += ["-W", "default::DeprecationWarning"]
    done = subprocess.run(  # noqa: S603
        [tested.python, "-m", "pytest", *options, "-m", "not proxy and not soak and not slow", *TESTS],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        check=False,
    )
    if done.returncode:
        sys.exit(f"The wheel fails its tests on Python {name}.")


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run(  # noqa: S603
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
