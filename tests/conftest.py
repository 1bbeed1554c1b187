"""Settings for all tests: variables of the shell have no effect, and each run generates the same examples."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xdist.remote import Producer

pytest_plugins = ["tests.support.guarding", "tests.proxy.kept"]

# Otherwise LiteLLM downloads its prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2_000)
settings.register_profile("first failure", settings.get_profile("suite"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("suite")


SHARE_PROXIES = ("costs", "doctor", "endings", "evasions", "exact_limits", "identities", "requests", "sums")
SCOPES = {
    **{f"tests/proxy/test_{name}.py": "proxies" for name in SHARE_PROXIES},
    "tests/docs/test_docs.py": "the example's proxy",
    "tests/docs/test_operating.py": "the example's proxy",
}
"""Files whose tests share a server that is slow to start."""
LONGEST_FIRST = (
    "tests/providers/test_corpus.py",
    "proxies",
    "tests/proxy/test_limit_kinds.py",
    "tests/proxy/test_false_refusals.py",
    "tests/proxy/test_routes.py",
    "tests/proxy/test_chaos.py",
    "tests/proxy/test_under_attack.py",
    "tests/proxy/test_restarts.py",
    "tests/proxy/test_outages.py",
    "the example's proxy",
    "tests/docs/test_fleet.py",
    "the proxy's import",
)
"""The scopes that start first, so that all worker processes end together; the rest of tests/proxy follows."""


PROXY_SECONDS = 900
"""The time limit of a test that may have to start proxies: four workers on a busy machine need minutes."""
SLOW = (
    "tests/cli/test_program.py",
    "tests/docs/test_compatibility.py",
    "tests/docs/test_migrating.py",
    "tests/docs/test_moving.py",
    "tests/docs/test_prose.py",
    "tests/docs/test_python.py",
    "tests/docs/test_routes.py",
    "tests/examples/",
    "tests/ledger/test_contract.py::TestPostgresFleet",
    "tests/ledger/test_contract.py::TestPostgresKeeperTerm",
    "tests/fleet/",
    "tests/ledger/test_contract.py::TestPostgresLedger",
    "tests/ledger/test_contract.py::TestValkeyLedger",
    "tests/ledger/test_postgres_batches.py",
    "tests/ledger/test_postgres_concurrency.py",
    "tests/ledger/test_postgres_crashes.py",
    "tests/ledger/test_postgres_fleet.py",
    "tests/ledger/test_sabotage.py",
    "tests/ledger/test_valkey_records.py::test_records_are_as_in_sqlite",
    "tests/ledger/test_valkey_sentinels.py",
    "tests/migration/",
    "tests/moving/",
    "tests/pricing/test_against_litellm.py",
    "tests/providers/",
    "tests/store/test_ability_sabotage.py",
    "tests/store/test_contract.py::TestHybridStore",
    "tests/store/test_contract.py::TestPartitionedStore",
    "tests/store/test_contract.py::TestObjectsStore",
    "tests/store/test_contract.py::TestPostgresStore",
    "tests/store/test_hybrid_store.py",
    "tests/store/test_kills.py",
    "tests/store/test_objects_store.py",
    "tests/store/test_partitioned_store.py",
    "tests/store/test_postgres_store.py",
    "tests/store/test_sabotage.py",
    "tests/test_architecture.py",
    "tests/test_benchmarks.py",
    "tests/test_hostile_files.py",
    "tests/tracking/test_history.py",
    "tests/tracking/test_outages.py",
    "tests/tracking/test_power_loss.py",
    "tests/tracking/test_retention.py",
    "tests/tracking/test_simulation.py",
)
"""Tests that start many processes, wait in real time or import all of LiteLLM; `make test-fast` skips them."""
SLOW_TESTS = {
    "test_a_bar_is_shown_only_if_rows_go_to_a_file",
    "test_a_broken_pipe_ends_quietly",
    "test_a_failing_call_breaks_no_other_verb",
    "test_a_failing_call_leaves_all_or_nothing",
    "test_a_hundred_ask_and_five_are_admitted",
    "test_a_limit_added_under_load_misses_nothing",
    "test_a_pipe_gets_each_row_in_a_line",
    "test_a_process_that_dies_at_any_call_leaves_all_or_nothing",
    "test_a_process_that_is_killed_while_it_copies_the_log_loses_nothing",
    "test_a_request_waits_no_longer_than_it_may",
    "test_a_stream_goes_on_behind_a_cursor",
    "test_a_worker_tells_it",
    "test_alerts_are_acknowledged_by_people_and_resolved_by_facts",
    "test_each_fact_is_checked",
    "test_each_way_to_call_is_one_event",
    "test_events_stream_in_bounded_memory",
    "test_events_stream_in_order_and_resume",
    "test_every_entry_of_litellms_map_is_read",
    "test_files_are_asked_the_same",
    "test_globs_without_end_are_decided_at_once",
    "test_limits_hold_while_the_log_is_copied",
    "test_litellms_own_arithmetic_agrees_on_its_whole_map",
    "test_memory_does_not_grow_with_an_answer_in_parts",
    "test_no_error_is_defined_elsewhere",
    "test_rollups_are_the_sums_of_the_days",
    "test_seeded_accounts_equal_the_events",
    "test_the_counted_bound_is_never_too_low",
    "test_the_master_key_is_known_behind_a_custom_auth",
    "test_the_scanner_finds_what_a_parser_finds",
    "test_the_top_groups_and_the_others_make_the_total",
    "test_the_yaml_is_followed",
    "test_thousands_of_overrides_are_not_looked_at_one_by_one",
}
"""The tests of other files that take a second or more; `make test-fast` skips them, too."""


def scope_of(nodeid: str) -> str:
    """Return the tests that run in one process: a file, or several that share a server or an import."""
    file = nodeid.split("::", maxsplit=1)[0]
    if file.startswith("tests/proxy_parts/"):
        return "the proxy's import"
    return SCOPES.get(file, file)


def _order(item: pytest.Item) -> tuple[int, bool]:
    scope = scope_of(item.nodeid)
    place = LONGEST_FIRST.index(scope) if scope in LONGEST_FIRST else len(LONGEST_FIRST)
    return place, not item.nodeid.startswith("tests/proxy/")


class TogetherByServer(LoadScopeScheduling):
    """Run all tests that share a slow server or a slow import in the same worker process."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import the files of which the marker expression selects no test; each worker would import them."""
    expression = config.option.markexpr
    terms = expression.split(" and ") if " or " not in expression else ()
    excluded = ("tests/proxy/",) if "not proxy" in terms else ()
    excluded += SLOW if "not slow" in terms else ()
    path = (
        collection_path.relative_to(config.rootpath).as_posix()
        if collection_path.is_relative_to(config.rootpath)
        else ""
    )
    return True if path.endswith(".py") and path.startswith(excluded) else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep what all tests use out of garbage collections, which would visit it thousands of times."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start the proxy or many processes, and run the longest first."""
    for item in items:
        if item.nodeid.startswith("tests/proxy/"):
            item.add_marker(pytest.mark.proxy)
        if item.nodeid.startswith(SLOW) or getattr(item, "originalname", item.name) in SLOW_TESTS:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("proxy") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(PROXY_SECONDS))
    items.sort(key=_order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> TogetherByServer:
    config.option.loadscopereorder = False
    return TogetherByServer(config, log)


@pytest.fixture(autouse=True)
def _no_variables_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("USAGE_PLUGIN_") or name == "CONFIG_FILE_PATH"]:
        monkeypatch.delenv(name)
