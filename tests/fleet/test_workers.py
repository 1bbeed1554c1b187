"""A fleet of hosts on a real server: workers that are killed, stopped or cut off, and a keeper that is replaced."""

from __future__ import annotations

import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.fleet.hosts import HostProcess, Refused
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.fleet.conftest import Fleet

LOST_AFTER = 2
"""Seconds: `admission.worker_lost_after` of these fleets."""


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
    assert fleet.open_reservations() == []
    assert len(fleet.members()) == 2
    print(f"recovered after {time.monotonic() - began:.1f} s")


def test_a_killed_worker_of_another_host_is_recovered(fleet: Fleet) -> None:
    """Its counter stops, and the keeper declares it dead after `worker_lost_after`."""
    victim, other = fleet.host(), fleet.host()
    victim.do("reserve", user="ann", amount="0.30")
    victim.kill()
    wait_until(lambda: fleet.spent() == 300_000_000)
    other.do("spend", user="ann", amount="0.70")
    with pytest.raises(Refused, match="spent"):
        other.do("spend", user="ann", amount="0.01")


def test_a_dead_keeper_is_replaced(fleet: Fleet) -> None:
    """Another host becomes the keeper of the next term, and does its work."""
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
    wait_until(lambda: fleet.spent() == 500_000_000)
    other.do("spend", user="ann", amount="0.50")
    assert fleet.open_reservations() == []


def test_a_server_that_hangs_costs_no_worker_its_life(fleet: Fleet) -> None:
    """While the server is stopped, requests fail at the deadline and the loop goes on. Then all workers are as before."""
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
    assert fleet.open_reservations() == []


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
