"""Tokens: count text with the provider's own tokenizer, where a request does not fit by its bytes.

Bytes bound the tokens for every provider, but about four times too high. Counting takes a hundred times as long. So it
runs in a thread, only for models whose tokenizer is known and on disk, and only where it can change the decision.
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import tiktoken
from litellm.litellm_core_utils import default_encoding  # also tells tiktoken the folder of LiteLLM's own encodings

from usage_plugin.proxy.input_bounds import size_of, texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from usage_plugin.proxy.price_book import Deployment

MOST_BYTES = 4_000_000
"""The maximum bytes to count. A longer text exceeds the context of every model with a known tokenizer."""

BYTES_PER_TOKEN = 8
"""The maximum bytes of a token in ordinary text; English has about four."""

_AT_ONCE = 1
_PROVIDERS = frozenset({"openai", "azure", "text-completion-openai"})


class Tokenizer:
    """Counts the texts of one request at a time; others wait for their turn without blocking the event loop."""

    def __init__(self) -> None:
        """Start without a tokenizer: loading one takes half a second, and it may never be needed."""
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def savings(self, body: Mapping[str, Any], encoding: str) -> int:
        """Return the number of tokens by which a body's bound by bytes is too high."""
        long_texts = texts(body)
        async with self._turn:
            return await asyncio.to_thread(_savings, long_texts, encoding)


def most_savings(body: Mapping[str, Any]) -> int:
    """Return the maximum tokens that counting can save, without counting; 0 if the texts are too short or too long."""
    size = sum(map(size_of, texts(body)))
    return size - size // BYTES_PER_TOKEN if size <= MOST_BYTES else 0


def encoding_for(ways: Sequence[Deployment]) -> str | None:
    """Return the one encoding of all these deployments; None if it is unknown or not on disk."""
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
    """Whether the encoding's file is on disk: LiteLLM ships two, and any other would be downloaded."""
    address = f"https://openaipublic.blob.core.windows.net/encodings/{encoding}.tiktoken"
    name = hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest()
    return Path(default_encoding.cache_dir, name).is_file()


def _savings(long_texts: Iterable[str], encoding: str) -> int:
    encode = tiktoken.get_encoding(encoding).encode_ordinary
    return sum(max(0, size_of(text) - len(encode(text))) for text in long_texts)
