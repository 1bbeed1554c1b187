"""Promises of liveness detection: one promise, one test, one sentence.

    class TestMyWorkers(WorkersContract):
        def see(self, place: Path) -> Workers:
            return MyWorkers(place)

The docstrings are the promises.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from usage_plugin.testing.child_processes import live_until_killed, start

if TYPE_CHECKING:
    from pathlib import Path

    from usage_plugin.domain.liveness import Workers


class WorkersContract:
    """The promises of the port `Workers`."""

    @abstractmethod
    def see(self, place: Path) -> Workers:
        """Return one more worker of a place; called in other processes too."""

    def test_a_worker_lives_from_joining_to_leaving(self, tmp_path: Path) -> None:
        """A worker is alive for all others from its joining to its leaving, and others are dead."""
        ann, bo = self.see(tmp_path), self.see(tmp_path)
        assert ann.name != bo.name
        assert (bo.living(), bo.is_dead(ann.name)) == ([], True)
        ann.join()
        assert (bo.living(), bo.is_dead(ann.name), ann.is_dead(bo.name)) == ([ann.name], False, True)
        assert not bo.is_dead(bo.name)
        bo.join()
        assert sorted(ann.living()) == sorted([ann.name, bo.name])
        ann.leave()
        assert (bo.living(), bo.is_dead(ann.name)) == ([bo.name], True)
        bo.leave()

    def test_a_killed_worker_is_dead(self, tmp_path: Path) -> None:
        """A killed worker is dead, another can become the keeper in its place, and sweeping forgets it."""
        process, receiving = start(live_until_killed, self.see, tmp_path)
        assert receiving.poll(60)
        name = receiving.recv()
        mine = self.see(tmp_path)
        mine.join()
        mine.sweep()
        assert (mine.is_dead(name), mine.try_to_keep()) == (False, False)
        process.kill()
        process.join(60)
        assert (mine.is_dead(name), mine.living(), mine.try_to_keep()) == (True, [mine.name], True)
        mine.sweep()
        assert (mine.is_dead(name), mine.living(), mine.keeps) == (True, [mine.name], True)
        mine.leave()

    def test_there_is_one_keeper(self, tmp_path: Path) -> None:
        """At most one worker is the keeper, until it stops or leaves."""
        ann, bo = self.see(tmp_path), self.see(tmp_path)
        ann.join()
        assert (ann.keeps, ann.try_to_keep(), ann.try_to_keep(), ann.keeps) == (False, True, True, True)
        assert (bo.try_to_keep(), bo.keeps) == (False, False)
        ann.stop_keeping()
        assert (ann.keeps, bo.try_to_keep(), ann.try_to_keep()) == (False, True, False)
        bo.leave()
        assert ann.try_to_keep()
        ann.leave()
