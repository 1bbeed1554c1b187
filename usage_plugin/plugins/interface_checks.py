"""Check that a store or ledger has every method of its interface, before the first call.

Python reports a missing method when the class is instantiated. That is when the store is opened, in the keeper's
thread, after the proxy has started. The classes exist earlier, once the plugin's module is imported.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from usage_plugin.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_OURS = "usage_plugin"
_PUBLIC = ("usage_plugin.plugins.storage", "usage_plugin.plugins.ledger", "usage_plugin.plugins")


def check_verbs(port: type, module: str, owner: str) -> None:
    """Check the classes that implement an interface, in the package of a module.

    Args:
        port: The abstract class, such as `UsageStore`.
        module: The module of the backend.
        owner: The backend and its plugin, for errors.

    Raises:
        PluginError: A method is missing, or has another signature than in the interface.
    """
    for kind in _leaves(port):
        if _is_of(kind, module):
            problems = [*_missing(kind, port), *_uncallable(kind, port)]
            if problems:
                raise PluginError(
                    f"{kind.__name__} of {owner} is an incomplete {port.__name__}: {'; '.join(problems)}.",
                    hint=f"Each method is documented: {documentation_of(port)}",
                )


def documentation_of(port: type) -> str:
    """Return the command that prints an interface with its docstrings, by its public path."""
    for module in _PUBLIC:
        # Not imported before, since authors' modules import this package first.
        if getattr(import_module(module), port.__name__, None) is port:
            return f"python -m pydoc {module}.{port.__name__}"
    return f"python -m pydoc {port.__module__}.{port.__name__}"


def describe_missing(kind: type, port: type) -> str:
    """Return the missing methods of a class, with their signatures."""
    return "; ".join(_missing(kind, port))


def abstract_leaves(port: type, module: str) -> list[type]:
    """Return the classes of a module that implement an interface only in part, and have no subclass."""
    return [kind for kind in _leaves(port) if _is_of(kind, module) and inspect.isabstract(kind)]


def implementations(port: type, module: str) -> list[type]:
    """Return the complete classes that implement an interface in the package of a backend's module.

    Of this package's own backends it is the module itself, or the package of which it is the `__init__`.
    """
    root = module.partition(".")[0]
    place = module if root == _OURS else root
    return [
        kind
        for kind in _descendants(port)
        if f"{kind.__module__}.".startswith(f"{place}.") and _is_attribute(kind) and not inspect.isabstract(kind)
    ]


def _descendants(port: type) -> Iterator[type]:
    """Yield all subclasses of an interface, also indirect ones, once each."""
    found: dict[type, None] = {}
    waiting: list[type] = port.__subclasses__()
    for kind in waiting:
        if kind not in found:
            found[kind] = None
            waiting += kind.__subclasses__()
    return iter(found)


def _leaves(port: type) -> Iterator[type]:
    """Yield the subclasses of an interface that have no subclasses themselves."""
    kinds: list[type] = port.__subclasses__()
    for kind in kinds:
        if kind.__subclasses__():
            yield from _leaves(kind)
        else:
            yield kind


def _is_of(kind: type, module: str) -> bool:
    """Whether a class belongs to the package of a module, and is still an attribute of its own module."""
    package = module.partition(".")[0]
    if package == _OURS or kind.__module__.partition(".")[0] != package:
        return False
    return _is_attribute(kind)


def _is_attribute(kind: type) -> bool:
    """Whether a class is still an attribute of its own module: a replaced one may not be collected yet."""
    return vars(sys.modules.get(kind.__module__, object)).get(kind.__name__) is kind


def _missing(kind: type, port: type) -> Iterator[str]:
    own = [name for name in dir(kind) if not name.startswith("_") and not hasattr(port, name)]
    for name in sorted(getattr(kind, "__abstractmethods__", ())):
        function = getattr(port, name, None) or getattr(kind, name)
        close = difflib.get_close_matches(name, own, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        yield f"missing {signature_of(name, function)}{meant}"


def _uncallable(kind: type, port: type) -> Iterator[str]:
    """Yield an error for each method that does not accept the arguments of the interface."""
    missing: frozenset[str] = getattr(kind, "__abstractmethods__", frozenset())
    for name in sorted(getattr(port, "__abstractmethods__", ())):
        if name not in missing:
            yield from uncallable(kind, port, name)


def uncallable(kind: type, port: type, name: str) -> Iterator[str]:
    """Yield an error if a method of a class does not accept the arguments of the interface."""
    function, wanted = getattr(kind, name, None), getattr(port, name)
    if not inspect.isfunction(function):
        return
    positional, keywords = _arguments(wanted)
    try:
        inspect.signature(function).bind(*positional, **keywords)
    except TypeError as error:
        yield f"{name} must accept the call {signature_of(name, wanted)}: {error}"
    except ValueError:
        return


def _arguments(function: Callable[..., Any]) -> tuple[list[None], dict[str, None]]:
    parameters = inspect.signature(function).parameters.values()
    keywords = {one.name: None for one in parameters if one.kind is one.KEYWORD_ONLY}
    return [None for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD], keywords


def signature_of(name: str, function: Callable[..., Any]) -> str:
    """Return the line that defines a function, for errors."""
    how = "async def" if inspect.iscoroutinefunction(function) else "def"
    return f"`{how} {name}{inspect.signature(function)}`".replace("'", "")
