"""Check that a store or ledger has every method of its interface, before anything calls one.

Python notices a missing method when the class is instantiated, which is when the store is opened: in the keeper's
thread, after the proxy has started. The classes are known earlier, once the plugin's module is imported.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from typing import TYPE_CHECKING, Any

from usage_plugin.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_OURS = "usage_plugin"


def check_verbs(port: type, module: str, owner: str) -> None:
    """Check the classes of a module, and of those beside it, that implement an interface.

    Args:
        port: the abstract class, such as `UsageStore`.
        module: where the backend is defined.
        owner: names the backend and its plugin, for errors.

    Raises:
        PluginError: a method is missing, or cannot be called as the interface is.
    """
    for kind in _leaves(port):
        if _is_of(kind, module):
            problems = [*_missing(kind, port), *_uncallable(kind, port)]
            if problems:
                raise PluginError(
                    f"{kind.__name__} of {owner} is not a whole {port.__name__}: {'; '.join(problems)}.",
                    hint=f"usage_plugin.{port.__module__.partition('.')[2]}.{port.__name__} says what each must do.",
                )


def describe_missing(kind: type, port: type) -> str:
    """Describe the methods that a class lacks, with their signatures."""
    return "; ".join(_missing(kind, port))


def abstract_leaves(port: type, module: str) -> list[type]:
    """List the classes of a module that implement an interface in part, and that no other class completes."""
    return [kind for kind in _leaves(port) if _is_of(kind, module) and inspect.isabstract(kind)]


def _leaves(port: type) -> Iterator[type]:
    """List the classes below an interface that have none below themselves."""
    kinds: list[type] = port.__subclasses__()
    for kind in kinds:
        if kind.__subclasses__():
            yield from _leaves(kind)
        else:
            yield kind


def _is_of(kind: type, module: str) -> bool:
    """Whether a class is of the same package as a module; what a module no longer has is not looked at."""
    package = module.partition(".")[0]
    if package == _OURS or kind.__module__.partition(".")[0] != package:
        return False
    return vars(sys.modules.get(kind.__module__, object)).get(kind.__name__) is kind


def _missing(kind: type, port: type) -> Iterator[str]:
    own = [name for name in dir(kind) if not name.startswith("_") and not hasattr(port, name)]
    for name in sorted(getattr(kind, "__abstractmethods__", ())):
        function = getattr(port, name, None) or getattr(kind, name)
        close = difflib.get_close_matches(name, own, n=1)
        meant = f" (it has {close[0]}: is that meant?)" if close else ""
        yield f"it lacks {_signature(name, function)}{meant}"


def _uncallable(kind: type, port: type) -> Iterator[str]:
    """Find methods that do not take the arguments of the interface."""
    missing: frozenset[str] = getattr(kind, "__abstractmethods__", frozenset())
    for name in sorted(getattr(port, "__abstractmethods__", ())):
        function, wanted = getattr(kind, name, None), getattr(port, name)
        if name in missing or not inspect.isfunction(function):
            continue
        positional, keywords = _arguments(wanted)
        try:
            inspect.signature(function).bind(*positional, **keywords)
        except TypeError as error:
            yield f"{name} is called as {_signature(name, wanted)} and cannot be: {error}"
        except ValueError:
            continue


def _arguments(function: Callable[..., Any]) -> tuple[list[None], dict[str, None]]:
    parameters = inspect.signature(function).parameters.values()
    keywords = {one.name: None for one in parameters if one.kind is one.KEYWORD_ONLY}
    return [None for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD], keywords


def _signature(name: str, function: Callable[..., Any]) -> str:
    how = "async def" if inspect.iscoroutinefunction(function) else "def"
    return f"`{how} {name}{inspect.signature(function)}`".replace("'", "")
