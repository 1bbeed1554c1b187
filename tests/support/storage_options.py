"""The options of a new store of each built-in backend, for tests that run on all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.object_server import new_options, s3
from tests.support.postgres import new_schema, postgres

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["postgres", "s3", "storage_options"]


@pytest.fixture
def storage_options(request: pytest.FixtureRequest) -> Callable[[str], dict[str, Any]]:
    """Return the options of a new store of a backend; its server is started if it needs one."""

    def options(backend: str) -> dict[str, Any]:
        if backend == "postgres":
            return {"url": request.getfixturevalue("postgres").url, "schema": new_schema()}
        if backend == "objects":
            return new_options(request.getfixturevalue("s3"))
        return {}

    return options
