"""Each hook works as its docstring promises: one test for each, named for it, in a real worker with its files."""

from __future__ import annotations

import inspect
import re
import threading
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from tests.plugins.conftest import CENT, eight_lines
from tests.proxy.conftest import ROOT
from tests.support.waiting import eventually
from tests.tracking.test_tracking import ask
from usage_plugin.cli import main
from usage_plugin.domain.pseudonyms import is_pseudonym
from usage_plugin.domain.refusals import RefusedRequest
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.windows import FOREVER, Window
from usage_plugin.encoding import encode_event
from usage_plugin.plugins.manager import HOOKS
from usage_plugin.runtime import Parts, open_reader
from usage_plugin.testing.builders import make_event
from usage_plugin.tracking.admission.decisions import Admitted

if TYPE_CHECKING:
    from tests.plugins.conftest import Workplace
    from usage_plugin.runtime import Runtime

TELLS = """
    import threading
    told = []
    @hookimpl
    def {hook}({argument}): told.append(({argument}, threading.current_thread().name))
"""


def told_to(runtime: Runtime, name: str = "mine") -> list[tuple[Any, str]]:
    (found,) = (found for found in runtime.plugins.brought if found.name == name)
    return found.implements.told  # type: ignore[attr-defined,no-any-return]


async def test_usage_register_storage_backends(workplace: Workplace) -> None:
    """A backend that a file registers keeps the history, with its own options."""
    workplace.write(
        "mine.py",
        """
        from usage_plugin.backends.sqlite import SqliteBackend
        class Mine(SqliteBackend):
            name = "mine"
        @hookimpl
        def usage_register_storage_backends(): return [Mine()]
    """,
    )
    runtime = workplace.start("[{path: mine.py}]", more="  storage: {backend: mine, options: {path: history.db}}")
    await workplace.spend(runtime)
    await eventually((workplace.folder / "data" / "history.db").exists)
    await runtime.close()
    async with open_reader(runtime.config) as reader:
        assert [event.user async for event in reader.store.events(Window(0, FOREVER), UsageFilter())] == ["ann"]
    workplace.runtimes.clear()


async def test_usage_register_ledgers(workplace: Workplace) -> None:
    """A ledger that a file registers keeps the accounts."""
    workplace.write(
        "mine.py",
        """
        from usage_plugin.ledgers.sqlite import SqliteLedgerBackend
        class Mine(SqliteLedgerBackend):
            name = "mine"
            opened = []
            def open(self, options, context):
                self.opened.append(context.data_dir)
                return super().open(options, context)
        backend = Mine()
        @hookimpl
        def usage_register_ledgers(): return [backend]
    """,
    )
    runtime = workplace.start("[{path: mine.py}]", more="  ledger: {backend: mine}")
    await workplace.spend(runtime, 60 * CENT)
    assert not isinstance(await workplace.ask(runtime, 60 * CENT), Admitted)
    assert runtime.plugins.brought[0].implements.backend.opened  # type: ignore[attr-defined]


async def test_usage_register_identity_resolvers(workplace: Workplace) -> None:
    """A resolver that a file registers puts users into groups, which limits match."""
    workplace.write(
        "mine.py",
        """
        class People(interface.IdentityResolver):
            name = "people"
            def groups_of(self, user): return ["interns"] if user == "ann" else []
        @hookimpl
        def usage_register_identity_resolvers(): return [People()]
    """,
    )
    limits = "\n    - {name: interns, per: user, match: {group: interns}, window: day, max_cost: 0}"
    runtime = workplace.start("[{path: mine.py}]", limits=limits, more="  identity: {groups_from: [people]}")
    assert not isinstance(await workplace.ask(runtime, user="ann"), Admitted)
    assert isinstance(await workplace.ask(runtime, user="bo"), Admitted)


async def test_usage_event_recorded(workplace: Workplace) -> None:
    """Each recorded event arrives once, in the plugin's own thread, when the ledger has it; recovered ones too."""
    workplace.write("mine.py", TELLS.format(hook="usage_event_recorded", argument="event"))
    config = workplace.config("[{path: mine.py}]")
    ledger = Parts(config).open_ledger().ledger
    lost = make_event(status="recovered", user="eva")
    ledger.reserve(lost.event_id, "999999-dead", lost.started_at, [], encode_event(lost))
    ledger.close()
    runtime = workplace.start("[{path: mine.py}]")
    await workplace.spend(runtime, 3 * CENT)
    await workplace.refuse(runtime)
    told = told_to(runtime)
    await eventually(lambda: len(told) == 2)
    assert sorted((event.user, event.cost, event.status) for event, _ in told) == [
        ("ann", 3 * CENT, "success"), ("eva", lost.cost, "recovered"),
    ]  # fmt: skip
    assert {thread for _, thread in told} == {"usage-plugin-tells-mine"}


async def test_usage_request_refused(workplace: Workplace) -> None:
    """A refusal arrives with all facts that the client may know; refusals of dry runs do not arrive."""
    workplace.write("mine.py", TELLS.format(hook="usage_request_refused", argument="refusal"))
    limits = """
    - {name: daily, per: user, window: day, max_cost: 1}
    - {name: tried, per: user, window: day, max_cost: 0.01, dry_run: true}
    """
    runtime = workplace.start("[{path: mine.py}]", limits=limits)
    decision = await runtime.admission.admit(ask(workplace.clock, cost=2 * CENT))
    for dry_run_refusals in decision.dry_run_refusals:
        runtime.refusals.add(dry_run_refusals)
    assert [refusal.is_enforced for refusal in decision.dry_run_refusals] == [False]
    await workplace.spend(runtime, 95 * CENT, user="bo")
    ref = await workplace.refuse(runtime, 10 * CENT, user="bo")
    told = told_to(runtime)
    await eventually(lambda: told)
    ((refusal, _),) = told
    midnight = runtime.limits.limits[0].window_at(workplace.clock.now()).end
    assert refusal == RefusedRequest(
        ref=ref, at=workplace.clock.now(), reason="spent", user="bo", model="gpt", limit="daily", subject={"user": "bo"},
        unit="usd", maximum=100 * CENT, spent=95 * CENT, reserved=0, needed=10 * CENT, resets_at=midnight,
    )  # fmt: skip


async def test_usage_threshold_crossed(workplace: Workplace) -> None:
    """An alert arrives once; a plugin without an argument is called without one."""
    workplace.write("mine.py", TELLS.format(hook="usage_threshold_crossed", argument="alert"))
    workplace.write("bare.py", "told = []\n@hookimpl\ndef usage_threshold_crossed(): told.append(1)")
    runtime = workplace.start("[{path: mine.py}, {path: bare.py}]")
    for _ in range(3):
        await workplace.spend(runtime, 30 * CENT)
    told = told_to(runtime)
    await eventually(lambda: told and told_to(runtime, "bare"))
    await runtime.close()
    workplace.runtimes.clear()
    assert [(alert.limit, alert.threshold, alert.amount) for alert, _ in told] == [("daily", 50, 60 * CENT)]
    assert told_to(runtime, "bare") == [1]


def forget(workplace: Workplace, plugins: str, *, privacy: str = "plain") -> Result:
    """Have the command forget ann, in a data folder in which something was recorded."""
    config = workplace.config(plugins, more=f"  privacy: {{user: {privacy}}}")
    parts = Parts(config)
    parts.make_pseudonyms()
    parts.open_ledger().close()
    return CliRunner().invoke(main, ["--config", str(config.path), "forget", "ann", "--yes"])


FORGETS = """
    from pathlib import Path
    @hookimpl
    def usage_user_forgotten(user):
        with Path(__file__).with_suffix(".told").open("a") as file:
            file.write(f"{user}\\n")
"""


def test_usage_user_forgotten(workplace: Workplace) -> None:
    """The command has each plugin forget, by the name and by the pseudonym, whichever is kept."""
    workplace.write("mine.py", FORGETS)
    done = forget(workplace, "[{path: mine.py}]")
    assert done.exit_code == 0, done.output
    name, pseudonym = (workplace.folder / "mine.told").read_text().split()
    assert name == "ann"
    assert is_pseudonym(pseudonym)


def test_a_plugin_that_does_not_forget_is_named(workplace: Workplace) -> None:
    """The command fails, and all others have erased the user; repeating it is the remedy."""
    workplace.write("broken.py", "@hookimpl\ndef usage_user_forgotten(user): raise OSError('the disk is full')")
    workplace.write("mine.py", FORGETS)
    for plugins in ("[{path: broken.py}, {path: mine.py}]", "[{path: mine.py}, {path: broken.py}]"):
        done = forget(workplace, plugins)
        assert done.exit_code == 1
        assert "The plugin broken did not forget them: OSError: the disk is full" in done.stderr
        assert "repeat the command" in done.stderr
    assert (workplace.folder / "mine.told").read_text().count("ann") == 2


def test_each_hook_has_its_test() -> None:
    """A hook that is added needs a test of its name here."""
    assert HOOKS
    assert [f"test_{hook}" for hook in HOOKS if f"test_{hook}" not in globals()] == []


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_is_used(hook: str) -> None:
    """A hook that nothing built in and no example implements is not needed."""
    sources = [*(ROOT / "usage_plugin").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    users = [path for path in sources if re.search(rf"@hookimpl\n\s*def {hook}\(", path.read_text())]
    assert users, hook


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_is_typed(hook: str) -> None:
    """A hook's values have types that can be inspected."""
    signature = inspect.signature(HOOKS[hook], eval_str=True)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    assert (signature.return_annotation is None) == (not hook.startswith("usage_register"))
    assert inspect.getdoc(HOOKS[hook])


async def test_no_thread_is_started_for_nobody(workplace: Workplace) -> None:
    """Without plugins no notification is sent, and no thread waits for one."""
    runtime = workplace.start("[]")
    await workplace.spend(runtime)
    assert not runtime._listeners.events.has_subscribers
    assert not [thread for thread in threading.enumerate() if "tells" in thread.name or "resolver" in thread.name]


def test_the_eight_lines_of_the_readme_are_eight_lines() -> None:
    """The shortest plugin is as short as the README says."""
    assert len(eight_lines().strip().splitlines()) == 8


async def test_the_eight_lines_of_the_readme_work(workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    """Copied unchanged, they print the attribution and the cost of each request."""
    path = workplace.folder / "my_plugin.py"
    path.write_text(eight_lines())
    path.chmod(0o600)
    runtime = workplace.start("[{path: ./my_plugin.py}]")
    await workplace.spend(runtime, 3 * CENT)
    await runtime.close()
    workplace.runtimes.clear()
    assert capfd.readouterr().out == f"ann {3 * CENT}\n"
