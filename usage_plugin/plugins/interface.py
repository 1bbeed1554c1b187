"""What a plugin registers: backends, which know their options and how to open what they provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.store import UsageStore


class Options(BaseModel):
    """Options of a backend, as written under `options:`; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoOptions(Options):
    """A backend without options."""


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a backend is told beside its own options.

    Attributes:
        data_dir: where its files belong; the folder may not exist yet.
        zone: the zone whose days daily sums are kept by.
    """

    data_dir: Path
    zone: ZoneInfo


class StorageBackend(ABC, Generic[OptionsT]):
    """Provides a store under a name.

    Attributes:
        name: what users write under `storage.backend`.
        options_model: validates `storage.options`.
    """

    name: ClassVar[str]
    options_model: type[OptionsT]

    @abstractmethod
    def open(self, options: OptionsT, surroundings: Surroundings) -> AbstractAsyncContextManager[UsageStore]:
        """Open the store for the length of a context. Several processes may have it open at once."""


class LedgerBackend(ABC, Generic[OptionsT]):
    """Provides a ledger under a name.

    Attributes:
        name: what users write under `ledger.backend`.
        options_model: validates `ledger.options`.
    """

    name: ClassVar[str]
    options_model: type[OptionsT]

    @abstractmethod
    def exists(self, options: OptionsT, surroundings: Surroundings) -> bool:
        """Say whether there is a ledger to open; create nothing."""

    @abstractmethod
    def open(self, options: OptionsT, surroundings: Surroundings) -> Ledger:
        """Open the ledger for use by one thread. Several threads and processes may have it open at once."""
