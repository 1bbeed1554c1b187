from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from usage_plugin.domain.usage import UsageTotals
from usage_plugin.testing.builders import TODAY, make_sum, numbered_from

MODELS = """\
model_list:
  - {model_name: gpt, litellm_params: {model: openai/custom}, model_info: {input_cost_per_token: 3e-6, output_cost_per_token: 3e-6}}
  - {model_name: mini, litellm_params: {model: openai/small}, model_info: {input_cost_per_token: 1e-6, output_cost_per_token: 1e-6}}
"""


@pytest.fixture(scope="module")
def recorded(shared):
    """Thirteen weeks of five users, on two models for the same work; eva spent ten times as much yesterday."""
    books, commands = shared
    config = books.parts.config.path
    config.write_text(MODELS + "\n".join(config.read_text().splitlines()[2:]), encoding="utf-8")
    users = ("ann", "bo", "cy", "dan", "eva")
    sums = [
        make_sum(day=TODAY - timedelta(days=at), user=user, model=model, provider=provider,
                 totals=UsageTotals(20, 0, 20_000, 2_000, cost=(10 if (user, at) == ("eva", 1) else 1) * 10**9))
        for at in range(91) for user in users for model, provider in (("gpt", "openai"), ("mini", "azure"))
    ]  # fmt: skip

    async def fill():
        async with books.parts.open_store() as store:
            await store.append_sums("imported", numbered_from(1, sums))

    asyncio.run(fill())
    return commands


def test_patterns_have_everything_for_programs(recorded, noon):
    """The numbers, their cost, the users and the confidence; prices come from the proxy's YAML."""
    document = recorded.json("patterns")
    assert {name: document[name] for name in document if name != "patterns"} == {
        "first_day": "2026-10-25", "last_day": "2026-11-23", "users_looked_at": 5, "users_in_all": 5,
        "least_spend": None, "events_read": 0,
    }  # fmt: skip
    change, cheaper = document["patterns"]
    assert change["type"] == "sudden_change"
    assert (change["cost_impact"], change["affected_users"]) == ("18.00", ["eva"])
    assert change["description"] == ("eva spent 20.00 USD on 2026-11-22, where 2.00 USD is usual on such a weekday.")
    assert (change["evidence"]["spent"], change["evidence"]["usual"]) == ("20.00", "2.00")
    assert change["confidence"] > 0.95
    assert "Chebyshev" in change["confidence_basis"]
    assert (cheaper["type"], cheaper["models"], cheaper["cost_impact"]) == ("cheaper_model", ["gpt", "mini"], "6.60")
    assert cheaper["affected_users"] == ["eva", "ann", "bo", "cy", "dan"]


def test_patterns_are_a_table_for_people(recorded, noon):
    """Each pattern has its sentence, and a line below the table gives the number of examined users."""
    text = recorded.ok("patterns", "--users", "4")
    assert "Patterns from 2026-10-25 to 2026-11-23 (UTC)" in text
    assert "sudden change" in text
    assert "eva, ann, bo and 1 more" in text
    assert "4 of 5 users were examined individually; none of the others spent more than 56.00 USD in 28 days." in text


@pytest.mark.parametrize(
    ("options", "types"),
    [
        (["--type", "cheaper_model"], ["cheaper_model"]),
        (["--type", "cheaper_model", "--type", "sudden_change"], ["sudden_change", "cheaper_model"]),
        (["--type", "peak_hours"], []),
        (["--users", "0"], ["cheaper_model"]),
        (["--month", "2026-10"], ["cheaper_model"]),
        (["--since", "7d", "--through", "yesterday"], ["sudden_change", "cheaper_model"]),
        (["--since", "2030-01-01", "--through", "2030-01-02"], []),
    ],
)
def test_patterns_of_some_types_and_days(recorded, noon, options, types):
    """--type chooses, and can be repeated; the days are those of a report."""
    assert [row["type"] for row in recorded.jsonl("patterns", *options)] == types


def test_patterns_as_csv(recorded, noon):
    """One row each; lists and numbers in JSON."""
    change, _ = recorded.csv("patterns")
    assert (change["affected_users"], change["cost_impact"]) == ('["eva"]', "18.00")


def test_no_patterns_is_a_valid_result(run, books):
    """A folder without notable patterns ends with 0 and a note."""
    books.add(user="ann")
    text = run.ok("patterns")
    assert "none" in text
    assert "1 of 1 users were examined" in text


def test_an_unknown_type_is_a_mistyped_command(run, books):
    """Exit code 2, with the types that there are."""
    result = run("patterns", "--type", "weather")
    assert result.exit_code == 2
    assert "low_cache_use" in result.output
