"""Identity resolvers name groups off the hot path, and their failures are contained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.plugins.conftest import not_told
from tests.support.waiting import eventually
from usage_plugin.domain.subjects import Subjects
from usage_plugin.errors import ConfigError, PluginError
from usage_plugin.plugins import identity_resolvers as resolvers_module
from usage_plugin.runtime import open_reader
from usage_plugin.tracking.admission.decisions import Admitted

if TYPE_CHECKING:
    from tests.plugins.conftest import Workplace

INTERNS = "\n    - {name: interns, per: user, match: {group: interns}, window: day, max_cost: 0}"
IDENTITY = "  identity: {groups_from: [people]}"

PEOPLE = """
class People(interface.IdentityResolver):
    name = "people"
    members, version, fails, asked = {"ann"}, 0, set(), []
    def groups_of(self, user):
        self.asked.append(user)
        if "groups_of" in self.fails: raise SystemExit("oops")
        return ("interns",) if user in self.members else ()
    def user_of(self, claim):
        return claim.headers.get("x-badge")
    def refresh(self):
        if "refresh" in self.fails: raise SystemExit("away")
        return str(self.version)
people = People()
@hookimpl
def usage_register_identity_resolvers(): return [people]
"""


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolvers_module, "REFRESH_INTERVAL", 0.05)


def people_of(runtime: Any) -> Any:
    return runtime.plugins.brought[0].implements.people


async def is_admitted(workplace: Workplace, runtime: Any, user: str) -> bool:
    return isinstance(await workplace.ask(runtime, user=user), Admitted)


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_groups_are_asked_for_once(workplace: Workplace) -> None:
    """A user's groups are remembered with the limits that they match: requests do not ask again."""
    workplace.write("mine.py", PEOPLE)
    runtime = workplace.start("[{path: mine.py}]", limits=INTERNS, more=IDENTITY)
    people_of(runtime).asked.clear()
    for _ in range(5):
        assert not await is_admitted(workplace, runtime, "ann")
        assert await is_admitted(workplace, runtime, "bo")
    assert sorted(people_of(runtime).asked) == ["ann", "bo"]


async def test_groups_of_the_yaml_stay(workplace: Workplace) -> None:
    """A user is in the groups of the YAML and in those that a resolver names."""
    workplace.write("mine.py", PEOPLE)
    limits = f"{INTERNS}\n    - {{name: power, per: user, match: {{group: power}}, window: day, max_cost: 1}}"
    runtime = workplace.start("[{path: mine.py}]", limits=limits, more=f"  groups: {{power: [ann]}}\n{IDENTITY}")
    assert runtime.limits.groups_of("ann") == ("power", "interns")
    async with open_reader(runtime.config) as reader:
        assert reader.limits.groups_of("ann") == ("power", "interns")


async def test_a_change_counts_once_it_is_seen(workplace: Workplace) -> None:
    """Another version makes the worker resolve again, and the workers' rules differ until all have it."""
    workplace.write("mine.py", PEOPLE)
    runtime = workplace.start("[{path: mine.py}]", limits=INTERNS, more=IDENTITY)
    people, digest = people_of(runtime), runtime.rules.digest
    assert not await is_admitted(workplace, runtime, "ann")
    people.members = {"bo"}
    people.version += 1
    await eventually(lambda: runtime.rules.digest != digest)
    assert await is_admitted(workplace, runtime, "ann")
    assert not await is_admitted(workplace, runtime, "bo")


async def test_one_that_fails_puts_nobody_into_its_groups(
    workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    """A resolver that raises is counted and named, fails no settlement, and is asked again as soon as it works."""
    workplace.write("mine.py", PEOPLE)
    runtime = workplace.start("[{path: mine.py}]", limits=INTERNS, more=IDENTITY)
    people = people_of(runtime)
    people.fails = {"groups_of"}
    await workplace.spend(runtime, user="ann")
    await eventually(lambda: not_told(runtime, "unresolved").get("people", 0) > 0)
    # It is counted before it is logged, and both in another thread.
    await eventually(lambda: "plugin.unresolved" in caplog.text)
    assert "hook='groups_of'" in caplog.text
    people.fails = set()
    await eventually(lambda: runtime.limits.matching(Subjects(user="ann"), None, None))
    assert not await is_admitted(workplace, runtime, "ann")


async def test_what_was_known_stays_while_a_look_fails(workplace: Workplace) -> None:
    """The failure of a refresh is counted, and the previous data stays in use."""
    workplace.write("mine.py", PEOPLE)
    runtime = workplace.start("[{path: mine.py}]", limits=INTERNS, more=IDENTITY)
    people_of(runtime).fails = {"refresh"}
    await eventually(lambda: not_told(runtime, "unresolved").get("people", 0) > 1)
    assert not await is_admitted(workplace, runtime, "ann")
    people_of(runtime).fails = set()


async def test_a_look_that_hangs_holds_up_nothing(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs while it looks for changes is counted; the keeper goes on, and so does the end."""
    monkeypatch.setattr(resolvers_module, "HANG_TIMEOUT", 0.1)
    workplace.write(
        "mine.py",
        f"""{PEOPLE}
import threading
waking = threading.Event()
looks = iter([lambda: "1"])
People.refresh = lambda self: next(looks, lambda: waking.wait(60) and "1")()
""",
    )
    runtime = workplace.start("[{path: mine.py}]", limits=INTERNS, more=IDENTITY)
    await eventually(lambda: not_told(runtime, "unresolved").get("people", 0) > 0)
    await workplace.spend(runtime, user="bo")
    workplace.runtimes.clear()
    await runtime.close()
    runtime.plugins.brought[0].implements.waking.set()  # type: ignore[attr-defined]


async def test_groups_of_people_under_pseudonyms(workplace: Workplace, caplog: pytest.LogCaptureFixture) -> None:
    """A resolver receives the real name; a name that only the history has, as a pseudonym, is in no group, as the log shows."""
    caplog.set_level("WARNING")
    workplace.write("mine.py", PEOPLE)
    more = f"  privacy: {{user: pseudonym}}\n{IDENTITY}"
    runtime = workplace.start("[{path: mine.py}]", limits=INTERNS, more=more)
    ann, bo = (runtime.pseudonyms.keep(Subjects(user=name))._asdict() for name in ("ann", "bo"))
    assert ann["user"] != "ann"
    assert not isinstance(await workplace.ask(runtime, **ann), Admitted)
    assert isinstance(await workplace.ask(runtime, **bo), Admitted)
    await eventually(lambda: "limits.history_has_pseudonyms" in caplog.text)


@pytest.mark.parametrize("answer", ['"interns"', "5", "[None]"])
async def test_answers_that_are_no_names_are_failures(workplace: Workplace, answer: str) -> None:
    """A text in place of a list, or other values than texts, put no user into a group."""
    workplace.write("mine.py", f"{PEOPLE}\nPeople.groups_of = lambda self, user: {answer}")
    runtime = workplace.start("[{path: mine.py}]", limits=INTERNS, more=IDENTITY)
    assert await is_admitted(workplace, runtime, "ann")
    await eventually(lambda: not_told(runtime, "unresolved").get("people", 0) > 0)


async def test_one_that_cannot_begin_stops_the_start_and_no_reader(
    workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed first refresh is an error for the proxy, which names the resolver; readers get a warning."""
    workplace.write("mine.py", PEOPLE)
    await workplace.start("[{path: mine.py}]", limits=INTERNS, more=IDENTITY).close()
    workplace.runtimes.clear()
    workplace.write("mine.py", f"{PEOPLE}\npeople.fails = {{'refresh'}}")
    with pytest.raises(PluginError, match="The identity resolver people failed to start: SystemExit: away"):
        workplace.start("[{path: mine.py}]", limits=INTERNS, more=IDENTITY)
    async with open_reader(workplace.config("[{path: mine.py}]", limits=INTERNS, more=IDENTITY)) as reader:
        assert reader.limits.groups_of("ann") == ()
    assert "identity.groups_unknown" in caplog.text


async def test_a_changed_yaml_chooses_among_those_that_are_there(
    workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    """`identity` is re-read; a resolver that is not loaded, and `plugins` itself, wait for a restart, as the log says."""
    workplace.write("mine.py", PEOPLE)
    runtime = workplace.start("[{path: mine.py}]", limits=INTERNS, more="  groups: {interns: [bo]}")
    assert await is_admitted(workplace, runtime, "ann")
    workplace.config("[{path: mine.py}]", limits=INTERNS, more=IDENTITY)
    await eventually(lambda: runtime.limits.groups_of("ann") == ("interns",))
    workplace.config("[]", limits=INTERNS, more="  identity: {groups_from: [others]}")
    await eventually(lambda: "config.needs_restart" in caplog.text)
    assert "keys=['plugins', 'identity']" in caplog.text
    assert "expected a registered resolver (people); found 'others'" in caplog.text
    assert runtime.config.identity.groups_from == ("people",)
    assert not await is_admitted(workplace, runtime, "ann")


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ("{groups_from: [others]}", "identity.groups_from: expected a registered resolver (people); found 'others'"),
        ('{user: ["resolver:others"]}', "identity.user: expected a registered resolver (people); found 'others'"),
        ('{user: ["resolver:people"]}', "identity.user: expected a resolver with user_of; 'people' has none"),
    ],
)
def test_a_resolver_that_cannot_be_used_so_is_named(workplace: Workplace, identity: str, said: str) -> None:
    """A resolver in `identity` must exist and have the method of its key."""
    workplace.write("mine.py", PEOPLE.replace("def user_of", "def user_off"))
    with pytest.raises(ConfigError) as error:
        workplace.start("[{path: mine.py}]", more=f"  identity: {identity}")
    assert f"usage_plugin.{said}" in str(error.value)


def test_unknown_groups_are_mistakes_as_long_as_all_are_in_the_yaml(workplace: Workplace) -> None:
    """Only a resolver can know more groups than the YAML."""
    with pytest.raises(ConfigError, match="found 'interns'"):
        workplace.config("[]", limits=INTERNS)
    workplace.config("[]", limits=INTERNS, more=IDENTITY)
