"""A data folder with real events in it, and the commands that read it."""

from __future__ import annotations

import asyncio
import csv
import io
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from usage_plugin.cli import main
from usage_plugin.config import load_config
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.ledger import Balance, Charge, Hold
from usage_plugin.domain.subjects import Subjects
from usage_plugin.encoding import encode_event
from usage_plugin.runtime import Parts
from usage_plugin.testing.builders import NOON, make_event
from usage_plugin.tracking.admission.decisions import Refusal
from usage_plugin.tracking.admission.demands import Demand
from usage_plugin.tracking.admission.refusals import RefusalLog
from usage_plugin.tracking.maintenance.flusher import Flusher

EXECUTABLE = Path(sys.executable).with_name("usage-plugin")
REF = "0123ABCD"
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

CONFIG = """\
model_list:
  - {model_name: gpt, litellm_params: {model: openai/gpt-4o-mini, api_key: none}}
litellm_settings: {callbacks: ["usage_plugin.proxy.callback"]}
usage_plugin:
  data_dir: ./data
  groups: {power: [dana]}
  limits:
    - name: daily
      per: user
      window: day
      max_cost: 5
      overrides:
        - {match: {user: bo}, max_cost: unlimited}
        - {match: {user: eva}, max_cost: 0}
        - {match: {group: power}, max_cost: 25}
    - {name: team-month, per: team, window: month, max_cost: 500}
    - {name: member, per: [team, user], window: week, max_requests: 100}
    - {name: company, per: global, window: lifetime, max_total_tokens: 1000000}
    - {name: tighter, per: user, window: day, max_cost: 0.02, dry_run: true}
    - {name: warned, per: user, match: {user: zoe}, window: hour, max_cost: 1, action: warn}
"""


@pytest.fixture
def config_path(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


class Books:
    """Writes events into the real ledger as the proxy does, and flushes them into the real store."""

    def __init__(self, config):
        self.parts = Parts(config)
        self.pseudonyms = self.parts.make_pseudonyms()
        self.limits = config.limit_set(self.pseudonyms)
        self.opened = opened = self.parts.open_ledger()
        self.ledger, self.operations, self.profiles = opened.ledger, opened.operations, opened.profiles
        self.erasable = opened.erasable

    def reserve(self, **fields):
        """Admit a request of a user; its hold is the event's cost and tokens."""
        event = make_event(**fields)
        holds = [Hold(account, end, amount, None, amount) for account, end, amount in self._amounts(event)]
        assert self.ledger.reserve(event.event_id, "worker-1", event.started_at, holds, "{}").admitted
        return event

    def add(self, **fields):
        """Admit a request and settle it."""
        event = self.reserve(**fields)
        self.settle(event)
        return event

    def settle(self, event):
        charges = [Charge(account, end, amount) for account, end, amount in self._amounts(event, at_its_end=True)]
        assert self.ledger.settle(event.event_id, charges, encode_event(event))

    def _amounts(self, event, *, at_its_end=False):
        subjects = Subjects(
            user=event.user, team=event.team, api_key=event.api_key, end_user=event.end_user,
            organization=event.organization, session=event.session, tags=event.tags,
        )  # fmt: skip
        amounts = {"usd": event.cost or 0, "requests": 1, "total_tokens": event.input_tokens + event.output_tokens}
        for found in self.limits.matching(subjects, event.model, event.provider):
            if at_its_end and not found.limit.is_charged:
                continue
            place = found.place_at(event.started_at)
            yield place.account, place.window.end, amounts.get(found.limit.unit, 1)

    def flush(self):
        """Move everything into the store, as the keeper does."""

        async def flush():
            async with self.parts.open_store() as store:
                flusher = Flusher(self.ledger, self.operations, store, self.parts.unstorable(SystemClock()))
                await flusher.begin()
                while await flusher.flush():
                    pass

        asyncio.run(flush())


@pytest.fixture
def books(config_path):
    opened = Books(load_config(config_path))
    yield opened
    opened.ledger.close()


@pytest.fixture
def noon(monkeypatch):
    """Monday, 23 November 2026, 12:00 UTC, for every command that runs in this process."""
    monkeypatch.setattr(SystemClock, "now", lambda _: NOON)
    return NOON


class Commands:
    """Runs commands in this process; `config` is named unless the test names another."""

    def __init__(self, config):
        self._config = config

    def __call__(self, *arguments, config=...):
        named = [] if config is None else ["--config", str(self._config if config is ... else config)]
        result = CliRunner().invoke(main, [*named, *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def ok(self, *arguments):
        """Run a command that must succeed without a message on stderr; return its output."""
        result = self(*arguments)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return result.stdout

    def usage_error(self, *arguments):
        """Run a command with invalid options: exit code 2, a message on stderr, and nothing on stdout."""
        result = self(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr
        return result.stderr

    def json(self, *arguments):
        return json.loads(self.ok(*arguments, "--format", "json"))

    def jsonl(self, *arguments):
        return [json.loads(line) for line in self.ok(*arguments, "--format", "jsonl").splitlines()]

    def csv(self, *arguments):
        return list(csv.DictReader(io.StringIO(self.ok(*arguments, "--format", "csv"), newline="")))


@pytest.fixture
def run(config_path, noon):
    return Commands(config_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Books, and commands that read them, for the tests of a module that change nothing; they also need `noon`."""
    path = tmp_path_factory.mktemp("shared") / "config.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    opened = Books(load_config(path))
    yield opened, Commands(path)
    opened.ledger.close()


@pytest.fixture
def execute(config_path):
    """Run the installed program as a process of its own."""

    def execute(*arguments, **options):
        return subprocess.run(
            [EXECUTABLE, "--config", config_path, *arguments],
            check=False,
            **{"capture_output": True, "text": True, "timeout": 60, "cwd": config_path.parent, **options},
        )

    execute.program = EXECUTABLE
    execute.environment = {name: value for name, value in os.environ.items() if not name.startswith("USAGE_PLUGIN")}
    return execute


@pytest.fixture
def refuse(books):
    """Record refusals of a user by a limit, as a worker does."""
    refs, used = itertools.count(), itertools.count()

    def refuse(limit="daily", user="ann", count=1, **changes):
        rule = next(rule for rule in books.limits.limits if rule.name == limit)
        subject = {
            "daily": user,
            "tighter": user,
            "team-month": "research",
            "member": f"research\x1f{user}",
            "company": "",
        }[limit]
        matched = books.limits.account(rule, subject)
        refusal = Refusal(**{
            "reason": "spent", "ref": REF if not next(used) else f"{next(refs):08d}", "at": NOON - MINUTE, "user": user, "model": "gpt",
            "demand": Demand.of(matched, NOON, 120_000_000),
            "balance": Balance(4_980_000_000, 10_000_000), **changes,
        })  # fmt: skip
        log = RefusalLog()
        for number in range(count):
            log.add(refusal if not number else replace(refusal, ref=f"{next(refs):08d}"))
        log.hand_over(books.operations)
        return refusal

    return refuse
