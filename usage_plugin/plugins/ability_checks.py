"""Find the optional abilities of a store and its backend, and the methods that were probably meant to be one.

A store has an ability if it has all methods of the protocol. Python reports no error for a misspelt one: the ability is
silently absent. A method that cannot be called as the protocol's fails only at its first use, such as an erasure.
"""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

from usage_plugin.domain.store import ABILITIES, UsageStore
from usage_plugin.errors import PluginError
from usage_plugin.plugins.interface import BACKEND_ABILITIES, StorageBackend
from usage_plugin.plugins.interface_checks import documentation_of, implementations, signature_of, uncallable

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIMILAR = 0.8
"""The least similarity of a misspelt name: `rankng` and `keep_profile` have more, `send` for `sent` has less."""


def abilities_of(backend: StorageBackend[Any]) -> list[str]:
    """Return the names of the abilities of a backend and of the stores in its package, in alphabetical order."""
    return sorted({ability.__name__ for kind, ability, _ in _pairs(backend) if _has(kind, ability)})


def check_abilities(backend: StorageBackend[Any], owner: str) -> None:
    """Check that the methods of each ability can be called.

    Args:
        backend: The backend; the stores of its package are checked too.
        owner: The backend and its plugin, for errors.

    Raises:
        PluginError: A method has another signature than in the protocol, or a class names a protocol as its base and
            lacks a method of it.
    """
    for kind, ability, _ in _pairs(backend):
        problems = [*_unfit(kind, ability)]
        if problems:
            raise PluginError(
                f"{kind.__name__} of {owner} has an invalid {ability.__name__}: {'; '.join(problems)}.",
                hint=f"Each method is documented: {documentation_of(ability)}",
            )


def probable_mistakes(backend: StorageBackend[Any], owner: str) -> list[str]:
    """Return a sentence for each method that nothing calls, because an ability lacks another one or is misspelt."""
    return [
        f"{kind.__name__} of {owner}: {mistake}"
        for kind, ability, port in _pairs(backend)
        if not _has(kind, ability)
        for mistake in _mistakes(kind, ability, port)
    ]


def _pairs(backend: StorageBackend[Any]) -> Iterator[tuple[type, type, type]]:
    """Yield each class with each of its possible abilities, and the interface that it implements."""
    yield from ((type(backend), ability, StorageBackend) for ability in BACKEND_ABILITIES)
    for kind in implementations(UsageStore, type(backend).__module__):
        yield from ((kind, ability, UsageStore) for ability in ABILITIES)


def _methods(ability: type) -> list[str]:
    return [name for name in vars(ability) if not name.startswith("_")]


def _lacking(kind: type, ability: type) -> list[str]:
    """Return the methods that a class does not define; those that it inherits from the protocol do nothing."""
    return [name for name in _methods(ability) if getattr(kind, name, None) in (None, getattr(ability, name))]


def _has(kind: type, ability: type) -> bool:
    return not _lacking(kind, ability)


def _unfit(kind: type, ability: type) -> Iterator[str]:
    lacking = _lacking(kind, ability)
    if ability in kind.__mro__:
        yield from (f"missing {_described(ability, name)}" for name in lacking)
    if not lacking:
        for name in _methods(ability):
            if isinstance(getattr(ability, name), property) and inspect.isroutine(getattr(kind, name)):
                yield f"{name} must be a property"
            else:
                yield from uncallable(kind, ability, name)


def _mistakes(kind: type, ability: type, port: type) -> Iterator[str]:
    lacking = _lacking(kind, ability)
    present = [name for name in _methods(ability) if name not in lacking]
    if present:
        yield (
            f"{', '.join(present)} is never called without {', '.join(_described(ability, name) for name in lacking)}:"
            f" both belong to {ability.__name__}"
        )
        return
    others = {name for one in (port, *ABILITIES, *BACKEND_ABILITIES) for name in dir(one)}
    for name in dir(kind):
        if name.startswith("_") or name in others or not callable(getattr(kind, name)):
            continue
        for meant in difflib.get_close_matches(name, lacking, n=1, cutoff=_SIMILAR):
            yield f"{name} is never called; if it is the ability {ability.__name__}, call it {meant}"


def _described(ability: type, name: str) -> str:
    member = getattr(ability, name)
    return f"the property {name}" if isinstance(member, property) else signature_of(name, member)
