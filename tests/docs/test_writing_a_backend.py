"""docs/writing-a-backend.md and writing-a-ledger.md have the code of their examples, and each promise of the contracts."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from textwrap import dedent, indent

import pytest

from tests.docs.test_docs import blocks
from tests.proxy.conftest import ROOT
from usage_plugin.domain import store
from usage_plugin.plugins import interface
from usage_plugin.testing import (
    ErasableContract,
    FleetContract,
    KeeperTermContract,
    LedgerContract,
    LedgerTransportContract,
    OperationsLogContract,
    ProfileStoreContract,
    WorkersContract,
)
from usage_plugin.testing.ledger_durability import LedgerDurability
from usage_plugin.testing.store_abilities import StoreAbilities
from usage_plugin.testing.store_contract import StoreContract, promises
from usage_plugin.testing.store_deletion import StoreDeletion
from usage_plugin.testing.store_durability import Durability
from usage_plugin.testing.store_sums import StoreSums
from usage_plugin.testing.transport_repetition import TransportRepetition

PAGE = ROOT / "docs" / "writing-a-backend.md"
LEDGER_PAGE = ROOT / "docs" / "writing-a-ledger.md"
EXAMPLES = {PAGE: ROOT / "examples" / "duckdb_backend", LEDGER_PAGE: ROOT / "examples" / "core_ledger"}
CONTRACTS = {
    StoreContract: PAGE,
    StoreSums: PAGE,
    StoreDeletion: PAGE,
    Durability: PAGE,
    StoreAbilities: PAGE,
    LedgerContract: LEDGER_PAGE,
    LedgerDurability: LEDGER_PAGE,
    OperationsLogContract: LEDGER_PAGE,
    ProfileStoreContract: LEDGER_PAGE,
    ErasableContract: LEDGER_PAGE,
    WorkersContract: LEDGER_PAGE,
    FleetContract: LEDGER_PAGE,
    LedgerTransportContract: LEDGER_PAGE,
    TransportRepetition: LEDGER_PAGE,
    KeeperTermContract: LEDGER_PAGE,
}


@pytest.mark.parametrize(
    ("page", "block"),
    [
        pytest.param(page, block, id=f"{page.stem}-{block.strip()[:40]}")
        for page in EXAMPLES
        for block in (*blocks(page, "python"), *blocks(page, "toml"))
    ],
)
def test_the_code_is_the_examples(page: Path, block: str) -> None:
    """Every block is a literal part of the page's example, for any indentation."""
    example = EXAMPLES[page]
    files = [*example.glob("*.py"), *example.glob("tests/*.py"), example / "pyproject.toml"]
    assert any(indent(dedent(block), " " * depth) in path.read_text() for path in files for depth in (0, 4, 8)), block


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_each_promise_is_listed(contract: type) -> None:
    """The list is numbered, in the order of the contract and in the words of its tests."""
    tests = [(name, inspect.getdoc(getattr(contract, name))) for name in promises(contract)]
    expected = "".join(f"{number}. {text} (`{name}`)\n" for number, (name, text) in enumerate(tests, 1))
    assert expected in CONTRACTS[contract].read_text(), f"the list should be:\n{expected}"


def test_each_verb_is_listed_with_its_signature() -> None:
    """The verbs of the store, in their order."""
    verbs = {name: verb for name, verb in vars(store.UsageStore).items() if not name.startswith("_")}
    expected = "".join(
        f"{'async ' * inspect.iscoroutinefunction(verb)}def {name}{inspect.signature(verb)}\n"
        for name, verb in verbs.items()
    )
    expected = re.sub(r"\(self(?:, )?", "(", expected).replace("'", "")
    assert blocks(PAGE, "py") == [expected], f"the list should be:\n{expected}"


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.stem)
def test_the_test_file_is_complete(page: Path) -> None:
    """A reader can copy it."""
    (tests,) = EXAMPLES[page].glob("tests/*.py")
    assert tests.read_text() in blocks(page, "python")


def test_the_ledger_is_complete() -> None:
    """The module is short enough to be copied too."""
    (module,) = EXAMPLES[LEDGER_PAGE].glob("*.py")
    assert module.read_text() in blocks(LEDGER_PAGE, "python")


def test_each_ability_is_listed() -> None:
    """Every optional protocol of a store or a backend has a row, and every row is one."""
    abilities = {
        name
        for module in (store, interface)
        for name, found in vars(module).items()
        if getattr(found, "_is_protocol", False) and found.__module__ == module.__name__
    }
    assert set(re.findall(r"^\| `(\w+)` \| the (?:store|backend) \|", PAGE.read_text(), re.MULTILINE)) == abilities


def test_each_promise_is_one_sentence() -> None:
    """It ends with its only full stop."""
    for contract in CONTRACTS:
        for name in promises(contract):
            assert re.fullmatch(r"[A-Z0-9`][^.]*\.", inspect.getdoc(getattr(contract, name)) or ""), name
