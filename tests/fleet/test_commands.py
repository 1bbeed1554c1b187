"""The commands on any host of a fleet: they show every worker with its host, and limits that differ."""

from __future__ import annotations

import json
import platform
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import yaml
from click.testing import CliRunner

from tests.support.waiting import wait_until
from usage_plugin.cli import main
from usage_plugin.domain.fleet import Member
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.runtime.rule_differences import RuleDifferences
from usage_plugin.runtime.worker_description import describe_this_worker
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.admission.batch_statistics import BatchSummary
from usage_plugin.tracking.notifications.health import problems

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fleet.conftest import Fleet

BATCHES = BatchSummary(batches=1, verbs=1.0, round_trip=0.001, slowest=0.001, pending=0, is_reachable=True)


def run(fleet: Fleet, *words: str) -> str:
    """Run a command on a host without a worker."""
    path = fleet.folder / "config.yaml"
    section = {"data_dir": str(fleet.folder / "elsewhere"), **fleet.section}
    path.write_text(yaml.safe_dump({"model_list": [], "usage_plugin": section}))
    done = CliRunner().invoke(main, ["--config", str(path), *words])
    assert done.exit_code == 0, (done.output, done.stderr, done.exception)
    return done.stdout


def test_status_lists_the_workers_of_all_hosts(fleet: Fleet) -> None:
    """Each has its host, its process and its batches; the fleet has its keeper, its server and whether limits differ."""
    hosts = [fleet.host() for _ in range(2)]
    names = sorted(host.do("name") for host in hosts)
    hosts[0].do("spend", user="ann", amount="0.10")

    def status() -> dict[str, Any]:
        return json.loads(run(fleet, "status", "--format", "json"))

    wait_until(lambda: any((worker["batches"] or {}).get("count") for worker in status()["workers"]))
    wait_until(lambda: status()["fleet"]["keeper"] in names)
    # A worker describes itself with its first beat, a second after it has joined.
    wait_until(lambda: all(worker["version"] for worker in status()["workers"]))
    found = status()
    assert sorted(worker["name"] for worker in found["workers"]) == names
    assert {worker["host"] for worker in found["workers"]} == {platform.node()}
    assert all(worker["pid"] and worker["version"] for worker in found["workers"])
    assert (found["fleet"]["is_open"], found["fleet"]["rules_differ"]) == (True, False)
    table = run(fleet, "status")
    assert all(name in table for name in names)
    assert "admits requests" in table
    fleet.section["limits"] = [{"name": "other", "per": "user", "window": "day", "max_cost": 5}]
    hosts.append(fleet.host())
    wait_until(lambda: status()["fleet"]["rules_differ"])


def test_all_commands_work_from_any_host(fleet: Fleet) -> None:
    """They read the shared ledger, and an amount that one host raises holds on the others."""
    fleet.section["storage"] = {"backend": "sqlite", "options": {"path": str(fleet.folder / "shared.db")}}
    host = fleet.host()
    host.do("spend", user="ann", amount="1.00")
    wait_until(lambda: fleet.spent() == 1_000_000_000)
    (row,) = json.loads(run(fleet, "limits", "--format", "json"))["limits"]
    assert row["spent"] in ("1", "1.00")
    assert "company" in run(fleet, "explain", "--user", "ann")
    run(fleet, "raise", "company", "--to", "2", "--for", "1h", "--reason", "release")
    wait_until(lambda: admitted(host))
    assert "ann" in run(fleet, "report", "--by", "user")
    assert len(json.loads(run(fleet, "events", "--format", "json"))["events"]) == 2


def admitted(host: Any) -> bool:
    try:
        host.do("spend", user="ann", amount="0.50")
    except Exception as refused:  # noqa: BLE001  # the amount is not raised yet
        assert str(refused) == "spent"
        return False
    return True


def test_limits_that_differ_for_a_minute_are_a_problem(tmp_path: Path) -> None:
    """A rollout of a changed YAML takes less; then the keeper notes the hosts until all agree."""
    clock = FakeClock()
    opened = open_sqlite_ledger(tmp_path / "ledger.db")

    def member(host: str, rules: str) -> Member:
        described = describe_this_worker(0, rules, BATCHES)._replace(hostname=host)
        return Member(host, host, 1, described.encode(), True)

    workers: Any = SimpleNamespace(keeps=True, members=[member("a", "1"), member("b", "2"), member("c", "1")])
    differences = RuleDifferences(workers, clock)
    differences.compare(opened)
    assert problems(opened.operations) == []
    clock.advance(timedelta(seconds=61))
    differences.compare(opened)
    (problem,) = problems(opened.operations)
    assert problem.name == "limits"
    assert "a, c | b" in problem.text
    workers.members = [member("a", "1"), member("b", "1")]
    differences.compare(opened)
    assert problems(opened.operations) == []
    opened.close()
