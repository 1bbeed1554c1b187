"""Tokens: text counted by the provider's own tokenizer, where its bytes are too many for what is left of a limit.

Bytes bound tokens for every provider, but some four times too high. Counting takes a hundred times as long, so it is
done in a thread, only for models whose tokenizer is known and at hand, and only where it can make a difference.
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import tiktoken
from litellm.litellm_core_utils import default_encoding  # also tells tiktoken where LiteLLM's own encodings lie

from usage_plugin.proxy import bounds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from usage_plugin.proxy.prices import Deployment

MOST_BYTES = 4_000_000
"""What is longer is longer than any context of the models whose tokenizer is known."""

BYTES_PER_TOKEN = 8
"""No text of that length in words has fewer tokens; English has one for some four bytes."""

_AT_ONCE = 1
_PROVIDERS = frozenset({"openai", "azure", "text-completion-openai"})


class Tokenizer:
    """Counts texts, one request at a time: what comes meanwhile waits for its turn without holding up the loop."""

    def __init__(self) -> None:
        """Start with nothing loaded: a tokenizer takes half a second to load, and nobody may need it."""
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def savings(self, body: Mapping[str, Any], encoding: str) -> int:
        """Say by how many tokens the bound by bytes of a body is too high."""
        texts = bounds.texts(body)
        async with self._turn:
            return await asyncio.to_thread(_savings, texts, encoding)


def most_savings(body: Mapping[str, Any]) -> int:
    """Say what counting can save at most, without counting; 0 where it is not worth it or the text is too long."""
    size = sum(map(bounds.size_of, bounds.texts(body)))
    return size - size // BYTES_PER_TOKEN if size <= MOST_BYTES else 0


def encoding_for(ways: Sequence[Deployment]) -> str | None:
    """Name the one encoding that all these deployments count by; None if it is not known, or not at hand."""
    names = {_encoding_of(way.provider, way.served_model) for way in ways}
    name = names.pop() if len(names) == 1 else None
    return name if name is not None and _is_at_hand(name) else None


@lru_cache(maxsize=1_000)
def _encoding_of(provider: str | None, served_model: str) -> str | None:
    if provider not in _PROVIDERS:
        return None
    try:
        return tiktoken.encoding_name_for_model(served_model.rsplit("/", 1)[-1])
    except KeyError:
        return None


@lru_cache(maxsize=10)
def _is_at_hand(encoding: str) -> bool:
    """Say whether the encoding's file lies on the disk: LiteLLM brings two, and any other would be downloaded."""
    address = f"https://openaipublic.blob.core.windows.net/encodings/{encoding}.tiktoken"
    name = hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest()
    return Path(default_encoding.cache_dir, name).is_file()


def _savings(texts: Iterable[str], encoding: str) -> int:
    encode = tiktoken.get_encoding(encoding).encode_ordinary
    return sum(max(0, bounds.size_of(text) - len(encode(text))) for text in texts)
