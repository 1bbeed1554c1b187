"""`usage-plugin similar` and `outliers`, over the command line."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import Commands
from tests.contrib.conftest import LAST_WEEK, THIS_WEEK, requests
from usage_plugin.contrib.chroma.indexer import only_one

if TYPE_CHECKING:
    from tests.contrib.conftest import Place


@pytest.fixture
def night_owl(place: Place) -> Place:
    """Eight weeks of three clerks and two coders; in the last complete week, clerk-1 behaves like a coder."""
    draw = random.Random(1)
    coding = {"model": "opus", "provider": "anthropic", "input_tokens": 20_000, "cost": 300_000_000, "hour": 22}
    clerking = {"model": "gpt", "provider": "openai", "input_tokens": 200, "cost": 1_000_000, "hour": 9}
    events = []
    for back in range(9):
        week = THIS_WEEK - timedelta(weeks=back)
        for user in ("clerk-0", "clerk-1", "clerk-2", "coder-0", "coder-1"):
            codes = user.startswith("coder") or (user, week) == ("clerk-1", LAST_WEEK)
            for day in range(1 if week == THIS_WEEK else 5):
                events += requests(
                    user, week + timedelta(days=day), draw.randint(4, 6), **(coding if codes else clerking)
                )
    place.record_now(events)
    return place


def test_similar_finds_who_behaves_alike(night_owl: Place) -> None:
    """The most alike come first, those who do something else far behind; the week can be chosen."""
    found = night_owl.run.json("similar", "coder-0", "--week", str(LAST_WEEK + timedelta(days=3)))
    assert (found["user"], found["week"]) == ("coder-0", str(LAST_WEEK))
    users = [one["user"] for one in found["similar"]]
    assert set(users[:2]) == {"coder-1", "clerk-1"}
    assert set(users[2:]) == {"clerk-0", "clerk-2"}
    near, far = found["similar"][1]["distance"], found["similar"][2]["distance"]
    assert near < 0.01
    assert far > 0.4
    assert found["similar"][3]["mostly"] == "models"
    this_week = night_owl.run.jsonl("similar", "clerk-1", "--most", "1")
    assert this_week[0]["user"] in {"clerk-0", "clerk-2"}
    assert this_week[0]["cost"].startswith("0.00")


def test_outliers_finds_who_has_moved(night_owl: Place) -> None:
    """The user with the largest change comes first, with the part that changed most."""
    first, *others = night_owl.run.jsonl("outliers")
    assert (first["user"], first["mostly"], first["weeks"]) == ("clerk-1", "models", 7)
    assert first["distance"] > 0.4
    assert len(others) == 4
    assert max(one["distance"] for one in others) < 0.01
    assert len(night_owl.run.jsonl("outliers", "--most", "2")) == 2
    calm = night_owl.run.json("outliers", "--week", str(LAST_WEEK - timedelta(weeks=2)))
    assert max(one["distance"] for one in calm["outliers"]) < 0.01


def test_people_get_tables(night_owl: Place) -> None:
    """Each result names the week, and the number of earlier weeks in the comparison."""
    said = night_owl.run.ok("similar", "clerk-0")
    assert said.startswith(f"Similar to clerk-0 in the week of {THIS_WEEK}: ")
    assert "mostly by" in said
    said = night_owl.run.ok("outliers")
    assert f"in the week of {LAST_WEEK}" in said
    assert "weeks compared" in said
    nobody = night_owl.run.ok("outliers", "--week", str(THIS_WEEK - timedelta(weeks=8)))
    assert "none" in nobody
    assert "at least 10 requests" in nobody


def test_who_did_nothing_is_like_nobody(night_owl: Place) -> None:
    """A user without a vector has another message than a user without similar ones."""
    for arguments in (("eva",), ("coder-0", "--week", "2026-01-05")):
        done = night_owl.run("similar", *arguments)
        assert done.exit_code == 1
        assert f"{arguments[0]} made no requests in the " in done.stderr
        assert "report --by user,week" in done.stderr


def test_what_runs_in_the_background_prints_nothing(night_owl: Place) -> None:
    """The vectors are brought up to date, and that is all; not while another process is at it."""
    with only_one(night_owl.plugin.folder) as is_one:
        assert is_one
        assert night_owl.run.ok("outliers", "--in-background") == ""
    assert night_owl.vectors(LAST_WEEK) == {}
    assert night_owl.run.ok("outliers", "--in-background") == ""
    assert len(night_owl.vectors(LAST_WEEK)) == 5


@pytest.mark.parametrize("privacy", ["pseudonym"])
def test_pseudonyms_are_found_by_the_real_name(place: Place) -> None:
    """Vectors have the kept names, and a query may use the real one."""
    kept = {name: place.pseudonyms.kept(name) for name in ("ann", "bo")}
    place.record_now([one for name in kept.values() for one in requests(name, THIS_WEEK, 12)])
    found = place.run.json("similar", "ann")
    assert (found["user"], [one["user"] for one in found["similar"]]) == (kept["ann"], [kept["bo"]])


def test_forget_takes_the_vectors_too(night_owl: Place) -> None:
    """An erased user has no vector in any week, and does not get one again."""
    night_owl.run.ok("outliers")
    night_owl.run.ok("forget", "coder-1", "--yes")
    for back in range(9):
        assert "coder-1" not in night_owl.vectors(THIS_WEEK - timedelta(weeks=back))
    users = [one["user"] for one in night_owl.run.jsonl("similar", "coder-0", "--week", str(LAST_WEEK))]
    assert sorted(users) == ["clerk-0", "clerk-1", "clerk-2"]


@pytest.mark.parametrize("command", [("similar", "ann"), ("outliers",)])
def test_without_the_plugin_they_say_how_to_turn_it_on(place: Place, command: tuple[str, ...]) -> None:
    """Both the line of the YAML and the package to install are named."""
    off = place.config_path.with_name("off.yaml")
    off.write_text(
        "".join(line for line in place.config_path.read_text().splitlines(keepends=True) if "plugins:" not in line)
    )
    done = Commands(off)(*command)
    assert done.exit_code == 1
    assert "The plugin chroma is disabled" in done.stderr
    assert "plugins: [{name: chroma}]" in done.stderr
    assert "pip install 'usage-plugin[chroma]'" in done.stderr
