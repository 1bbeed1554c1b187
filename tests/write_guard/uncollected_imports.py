"""Import LiteLLM without garbage collections, which take about an eighth of the CPU time of its import.

During an import nearly all objects stay, and each collection visits them again. `sitecustomize` calls `install` in
each process that a test starts. Only the import differs from a start outside of the tests: after it, the collector runs
with the usual thresholds.
"""

from __future__ import annotations

import functools
import gc
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

LARGE = ("litellm", "litellm.proxy.proxy_server")
"""The modules whose execution imports most of LiteLLM."""


def install() -> None:
    """Import the large modules of this process without garbage collections."""
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in LARGE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            loader.exec_module = functools.partial(_execute, loader.exec_module)
        return spec


def _execute(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        execute(module)
    finally:
        if was_enabled:
            gc.enable()
