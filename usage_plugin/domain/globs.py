"""Globs: match names against patterns, and decide whether several patterns have a common name."""

from __future__ import annotations

import functools
import re
from fnmatch import translate
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MOST_STATES = 100_000
_OTHER = "\0"
"""A placeholder for every character that no pattern names."""

_BRACKETED = re.compile(r"\[([*?[])\]")
_SPECIAL = re.compile(r"[*?[]")


def literal_of(glob: str) -> str | None:
    """Return the only name that a glob fits, with bracketed signs resolved: `a*b` for `a[*]b`; None if more fit."""
    return None if _SPECIAL.search(_BRACKETED.sub("", glob)) else _BRACKETED.sub(r"\1", glob)


def glob_of(name: str) -> str:
    """Return the glob that fits only this name."""
    return _SPECIAL.sub(r"[\g<0>]", name)


@functools.lru_cache(maxsize=1024)
def _checker(globs: tuple[str, ...]) -> Callable[[str], object]:
    names = [literal_of(glob) for glob in globs]
    if None not in names:
        # Compiling a pattern takes a hundred times as long, and there may be an override for each of many users.
        return frozenset(names).__contains__
    return re.compile("|".join(translate(glob) for glob in globs)).match


def fits(globs: tuple[str, ...], name: str) -> bool:
    """Whether one of the globs fits the whole name; `*` also matches slashes."""
    return bool(globs) and bool(_checker(globs)(name))


class _Token(NamedTuple):
    """One element of a pattern: a literal, any one character, any number of them, or a set."""

    kind: Literal["literal", "one", "many", "set"]
    characters: str = ""
    excludes: bool = False

    def takes(self, character: str) -> bool:
        if self.kind == "literal":
            return character == self.characters
        return self.kind != "set" or (character in self.characters) != self.excludes


def meet(globs: Sequence[str], wildcard: str | None = None) -> bool:
    """Whether a name exists that fits every glob, and LiteLLM's wildcard if one is given (there only `*` is special).

    Patterns that are too long to decide count as meeting: a false alarm is worse than a missing one.
    """
    patterns = [_tokens(glob) for glob in globs]
    if wildcard is not None:
        patterns.append([_Token("many") if c == "*" else _Token("literal", c) for c in wildcard])
    begin = (0,) * len(patterns)
    waiting, seen = [begin], {begin}
    while waiting:
        places = waiting.pop()
        if all(_rest_is_empty(pattern, at) for pattern, at in zip(patterns, places, strict=True)):
            return True
        if len(seen) > _MOST_STATES:
            return True
        for character in _characters(patterns, places):
            following = _after(patterns, places, character)
            for one in following:
                if one not in seen:
                    seen.add(one)
                    waiting.append(one)
    return False


def _tokens(glob: str) -> list[_Token]:
    """Split a glob as `fnmatch.translate` does."""
    tokens, at = [], 0
    while at < len(glob):
        character = glob[at]
        at += 1
        if character == "*":
            tokens.append(_Token("many"))
        elif character == "?":
            tokens.append(_Token("one"))
        elif character == "[" and (end := _end_of_set(glob, at)) is not None:
            body = glob[at:end]
            excludes = body.startswith("!")
            tokens.append(_Token("set", _members(body.removeprefix("!")), excludes))
            at = end + 1
        else:
            tokens.append(_Token("literal", character))
    return tokens


def _end_of_set(glob: str, at: int) -> int | None:
    start = at + 1 if glob[at : at + 1] == "!" else at
    start += glob[start : start + 1] == "]"
    end = glob.find("]", start)
    return None if end < 0 else end


def _members(body: str) -> str:
    members, at = [], 0
    while at < len(body):
        if body[at + 1 : at + 2] == "-" and at + 2 < len(body):
            first, last = ord(body[at]), ord(body[at + 2])
            members += [chr(code) for code in range(first, min(last, first + 0x10FF) + 1)]
            at += 3
        else:
            members.append(body[at])
            at += 1
    return "".join(members)


def _rest_is_empty(pattern: list[_Token], at: int) -> bool:
    return all(token.kind == "many" for token in pattern[at:])


def _characters(patterns: list[list[_Token]], places: tuple[int, ...]) -> set[str]:
    """Return the characters to try: those that the next tokens name, and one that none of them names."""
    found = {_OTHER}
    for pattern, at in zip(patterns, places, strict=True):
        for token in pattern[at:]:
            found.update(token.characters)
            if token.kind != "many":
                break
    return found


def _after(patterns: list[list[_Token]], places: tuple[int, ...], character: str) -> list[tuple[int, ...]]:
    """Return the combinations of places that the patterns can reach after one more character."""
    combined: list[tuple[int, ...]] = [()]
    for pattern, at in zip(patterns, places, strict=True):
        following = set()
        for index in range(at, len(pattern)):
            token = pattern[index]
            if token.kind == "many":
                following.add(index)
                continue
            if token.takes(character):
                following.add(index + 1)
            break
        if not following:
            return []
        combined = [(*one, place) for one in combined for place in following]
    return combined
