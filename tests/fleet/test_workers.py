"""A fleet of hosts on a real server: workers that are killed, stopped or cut off, and a keeper that is replaced."""

from __future__ import annotations

import gc
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.fleet.hosts import SECRET, HostProcess, Refused
from tests.support.waiting import wait_until
from usage_plugin.api import open_tracker
from usage_plugin.errors import SecretError
from usage_plugin.tracking.admission.active_limits import NOTE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fleet.conftest import Fleet

LOST_AFTER = 3
"""Seconds: `admission.worker_lost_after` where a test is about it."""


def test_a_limit_holds_across_hosts(fleet: Fleet) -> None:
    """Of requests of 0.01 at once on three hosts, exactly 100 fit in a limit of 1.00."""
    hosts = [fleet.host() for _ in range(3)]
    begun = [(host, host.begin("spend", user="ann", amount="0.01")) for _ in range(64) for host in hosts]
    assert outcomes(begun) == {"admitted": 100, "spent": 92}
    assert fleet.spent() == 1_000_000_000


def outcomes(begun: list[tuple[HostProcess, int]]) -> Counter[str]:
    counted: Counter[str] = Counter()
    for host, number in begun:
        try:
            host.wait(number)
            counted["admitted"] += 1
        except Refused as refused:
            counted[str(refused)] += 1
    return counted


def test_a_killed_worker_is_recovered_at_once_on_its_own_host(fleet: Fleet) -> None:
    """Another worker of the same host sees its free lock, whichever host has the keeper."""
    elsewhere = fleet.host()
    wait_until(lambda: elsewhere.do("keeps"))
    victim = fleet.host()
    mate = fleet.host(same_as=victim)
    victim.do("reserve", user="ann", amount="0.30")
    began = time.monotonic()
    victim.kill()
    wait_until(lambda: fleet.spent() == 300_000_000)
    assert mate.do("name")
    wait_until(lambda: fleet.open_reservations() == [])
    assert len(fleet.members()) == 2
    print(f"recovered after {time.monotonic() - began:.1f} s")


def test_a_killed_worker_of_another_host_is_recovered(fleet: Fleet) -> None:
    """Its counter stops, and the keeper declares it dead after `worker_lost_after`."""
    fleet.lose_workers_after(LOST_AFTER)
    victim, other = fleet.host(), fleet.host()
    victim.do("reserve", user="ann", amount="0.30")
    victim.kill()
    wait_until(lambda: fleet.spent() == 300_000_000)
    other.do("spend", user="ann", amount="0.70")
    with pytest.raises(Refused, match="spent"):
        other.do("spend", user="ann", amount="0.01")


def test_a_dead_keeper_is_replaced(fleet: Fleet) -> None:
    """Another host becomes the keeper of the next term, and does its work."""
    fleet.lose_workers_after(LOST_AFTER)
    hosts = [fleet.host()]
    wait_until(lambda: hosts[0].do("keeps"))
    hosts.append(fleet.host())
    term = fleet.term()
    hosts[0].do("reserve", user="ann", amount="0.30")
    hosts[0].kill()
    wait_until(lambda: hosts[1].do("keeps"))
    assert fleet.term() == term + 1
    wait_until(lambda: fleet.spent() == 300_000_000)


def test_a_stopped_worker_is_fenced_and_joins_again(fleet: Fleet) -> None:
    """A worker that was declared dead holds nothing under its former name, and goes on under another one."""
    fleet.lose_workers_after(LOST_AFTER)
    stopped, other = fleet.host(), fleet.host()
    name = stopped.do("name")
    held = stopped.do("reserve", user="ann", amount="0.30")
    stopped.signal(signal.SIGSTOP)
    wait_until(lambda: fleet.spent() == 300_000_000)
    assert name not in fleet.members()
    stopped.signal(signal.SIGCONT)
    # Its settlement is late: the request was charged as lost.
    stopped.do("settle", event_id=held, cost="0.10")
    stopped.do("spend", user="ann", amount="0.20")
    wait_until(lambda: stopped.do("name") in fleet.members())
    assert stopped.do("name") != name
    # New limits are backfilled once every worker uses them, this one too.
    wait_until(lambda: NOTE + stopped.do("name") in fleet.notes(NOTE))
    wait_until(lambda: fleet.spent() == 500_000_000)
    other.do("spend", user="ann", amount="0.50")
    wait_until(lambda: fleet.open_reservations() == [])


async def test_a_host_with_another_secret_does_not_start(fleet: Fleet, tmp_path: Path) -> None:
    """Its pseudonyms of keys would be others. It leaves neither a member nor a connection behind."""
    host = fleet.host()
    section = {**fleet.section, "data_dir": str(tmp_path / "other"), "privacy": {"secret": SECRET[::-1]}}
    with pytest.raises(SecretError, match="another secret"):
        async with open_tracker(section):
            pass
    assert fleet.members() == [host.do("name")]
    gc.collect()  # an open connection would warn now, which fails the test


def test_a_server_that_hangs_costs_no_worker_its_life(fleet: Fleet) -> None:
    """While the server is stopped, requests fail at the deadline and the loop goes on. Then all workers are as before."""
    fleet.lose_workers_after(LOST_AFTER)
    hosts = [fleet.host() for _ in range(2)]
    names = fleet.members()
    held = hosts[0].do("reserve", user="ann", amount="0.30")
    for host in hosts:
        host.do("spend", user="ann", amount="0.10")
        host.do("stall")
    fleet.server.pause()
    try:
        began = time.monotonic()
        with pytest.raises(Refused, match="unavailable"):
            hosts[0].do("reserve", user="ann", amount="0.01")
        first = time.monotonic() - began
        began = time.monotonic()
        with pytest.raises(Refused, match="unavailable"):
            hosts[0].do("reserve", user="ann", amount="0.01")
        again = time.monotonic() - began
        hosts[0].do("settle", event_id=held, cost="0.20")
        time.sleep(2 * LOST_AFTER)  # the test is about this time
    finally:
        fleet.server.resume()
    assert first < 1.5
    assert again < 0.5
    began = time.monotonic()
    wait_until(lambda: hosts[0].begin("spend", user="ann", amount="0.01") and fleet.spent() > 400_000_000)
    print(f"first refusal {first:.2f} s, later ones {again:.3f} s, back after {time.monotonic() - began:.2f} s")
    assert fleet.members() == names
    wait_until(lambda: fleet.open_reservations() == [])


def test_a_server_that_restarts_gets_everything_again(fleet: Fleet) -> None:
    """After `kill -9` of the server no reservation is lost, and requests go on by themselves."""
    hosts = [fleet.host() for _ in range(3)]
    held = [(host, host.do("reserve", user="ann", amount="0.20")) for host in hosts]
    incarnation = fleet.view().incarnation
    fleet.server.crash()
    wait_until(lambda: fleet.view().is_open and fleet.view().incarnation != incarnation)
    assert len(fleet.open_reservations()) == 3
    for host, event_id in held:
        host.do("settle", event_id=event_id, cost="0.20")
    wait_until(lambda: fleet.spent() == 600_000_000)
    for host in hosts:
        host.do("spend", user="ann", amount="0.10")
    wait_until(lambda: fleet.spent() == 900_000_000)


def test_slots_hold_across_hosts_and_outlive_none(fleet: Fleet) -> None:
    """`max_parallel_requests` counts the requests of all hosts, and a dead host's slots are free soon."""
    fleet.lose_workers_after(LOST_AFTER)
    fleet.section["limits"] = [{"name": "slots", "per": "global", "max_parallel_requests": 2}]
    victim, other = fleet.host(), fleet.host()
    victim.do("reserve", user="ann", amount="0.01")
    held = other.do("reserve", user="bo", amount="0.01")
    with pytest.raises(Refused, match="busy"):
        other.do("reserve", user="eva", amount="0.01")
    victim.kill()
    wait_until(lambda: len(fleet.open_reservations()) == 1)
    freed = other.do("reserve", user="eva", amount="0.01")
    for event_id in (held, freed):
        other.do("settle", event_id=event_id, cost="0.01")


def test_an_alert_is_sent_once_across_hosts(fleet: Fleet) -> None:
    """Each host sees that the threshold is crossed, and one of them says so."""
    fleet.section["limits"][0]["alert_at"] = [50]
    hosts = [fleet.host() for _ in range(3)]
    for host in hosts * 2:
        host.do("spend", user="ann", amount="0.15")
    wait_until(lambda: any("limit.threshold_crossed" in host.log.read_text() for host in hosts))
    for host in hosts:
        host.close()
    assert sum(host.log.read_text().count("limit.threshold_crossed") for host in hosts) == 1


def test_a_new_limit_counts_the_past_of_all_hosts(fleet: Fleet) -> None:
    """A limit that is added later begins with what every host has spent in its window."""
    fleet.section["storage"] = {"backend": "sqlite", "options": {"path": str(fleet.folder / "shared.db")}}
    hosts = [fleet.host() for _ in range(2)]
    for host in hosts:
        host.do("spend", user="ann", amount="0.20")
        host.close()
    fleet.section["limits"].append({"name": "later", "per": "user", "window": "day", "max_cost": "0.50"})
    hosts = [fleet.host() for _ in range(2)]
    wait_until(lambda: any("limits.seeded" in host.log.read_text() for host in hosts))
    hosts[0].do("spend", user="ann", amount="0.10")
    with pytest.raises(Refused, match="spent"):
        hosts[1].do("spend", user="ann", amount="0.01")


def test_a_restored_server_and_the_store_agree(fleet: Fleet) -> None:
    """A server that comes back without events that the store has gets them again, and the store counts each once."""
    fleet.section["storage"] = {"backend": "sqlite", "options": {"path": str(fleet.folder / "shared.db")}}
    hosts = [fleet.host() for _ in range(2)]
    for host in hosts:
        host.do("spend", user="ann", amount="0.10")
    fleet.server.save()
    wait_until(lambda: fleet.view().is_open)
    for host in hosts:
        wait_until(lambda host=host: admits(host, "0.20"))
    wait_until(lambda: fleet.unstored() == 0 and len(fleet.stored()) == 4)
    fleet.server.restore()
    wait_until(lambda: fleet.view().is_open and fleet.spent() == 600_000_000)
    wait_until(lambda: admits(hosts[0], "0.10"))
    wait_until(lambda: fleet.spent() == 700_000_000 and fleet.unstored() == 0)
    stored = fleet.stored()
    assert len({event.event_id for event in stored}) == len(stored) == 5
    assert sum(event.cost or 0 for event in stored) == 700_000_000
    wait_until(lambda: fleet.open_reservations() == [])


def admits(host: HostProcess, amount: str) -> bool:
    """Whether a request is admitted now; while the server starts, it is not."""
    try:
        host.do("spend", user="ann", amount=amount)
    except Refused as refused:
        assert str(refused) == "unavailable"
        return False
    return True
