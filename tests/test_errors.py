"""All errors form one tree in one module, whose docstring draws it."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from usage_plugin import errors

PACKAGE = Path(errors.__file__).parent
ELSEWHERE = {
    "atomic_files.NotRegularFileError", "file_locks.LockTimeoutError", "tracking.maintenance.supervisor.AbandonedError",
    "proxy.outgoing_check.StoppedError",
}  # fmt: skip
"""Error classes outside of the tree; the docstring of `errors` says why."""


def drawn() -> list[tuple[int, str]]:
    """Return the tree of the docstring: the depth of each name, in order."""
    lines = re.findall(r"^ {4}([ │├└─]*)(\w+Error) ", errors.__doc__ or "", re.MULTILINE)
    return [(len(branch) // 3, name) for branch, name in lines]


def walked(one: type, depth: int = 0) -> list[tuple[int, str]]:
    below = [it for it in one.__subclasses__() if it.__module__ == errors.__name__]
    return [(depth, one.__name__), *(row for it in below for row in walked(it, depth + 1))]


def branches(rows: list[tuple[int, str]]) -> set[tuple[str, ...]]:
    """Return each name with its ancestors."""
    path: list[str] = []
    found = set()
    for depth, name in rows:
        path[depth:] = [name]
        found.add(tuple(path))
    return found


def test_the_docstring_draws_the_tree():
    """Each class of the module is drawn once, below its base class."""
    rows = drawn()
    assert len(rows) == len(set(rows))
    assert branches(rows) == branches(walked(errors.UsagePluginError))
    defined = {name for name, found in vars(errors).items() if inspect.isclass(found)} - {"Any"}
    assert {name for _, name in rows} == defined


def test_every_error_says_what_it_means():
    """The docstring of each class is a sentence of its own, since it is the default message."""
    texts = [inspect.getdoc(getattr(errors, name)) for _, name in drawn()]
    assert all(texts)
    assert len(set(texts)) == len(texts)


def test_no_error_is_defined_elsewhere():
    """Only private errors, and those that the tree's docstring names, are outside of it."""
    found = {
        ".".join((*path.relative_to(PACKAGE).with_suffix("").parts, node.name))
        for path in PACKAGE.rglob("*.py")
        if path != Path(errors.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        if any(re.search(r"(Error|Exception)\b", ast.unparse(base)) for base in node.bases)
    }
    assert found == ELSEWHERE
    for name in ELSEWHERE:
        assert ".".join(name.split(".")[-2:]) in (errors.__doc__ or "")
