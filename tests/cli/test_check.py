from __future__ import annotations

import textwrap

import pytest

PRICED = "{model_name: gpt, litellm_params: {model: openai/gpt-4o-mini}}"


@pytest.fixture
def check(tmp_path, run):
    """Check a file with this text."""

    def check(text, *options):
        path = tmp_path / "checked.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return run("check", "--config", str(path), *options)

    return check


def test_a_good_file_is_fine(run):
    """A valid file ends with 0, and its limits are described in words."""
    text = run.ok("check")
    assert "config.yaml is fine." in text
    assert "daily: 5.00 usd per user and day" in text
    assert "member: 100 requests per team, user and week" in text
    assert "tighter: 0.02 usd per user and day, dry run" in text
    assert "warned: 1.00 usd per user and hour, for user zoe, warn" in text


def test_rolling_windows_are_described_in_words(check):
    """Rolling windows, concurrency limits and the model of a downgrade are described in words."""
    text = check("""
        usage_plugin:
          limits:
            - {name: burst, per: user, window: {rolling: 5h}, max_cost: 2, action: downgrade, downgrade_to: mini}
            - {name: chat, per: session, window: session, max_total_tokens: 10}
            - {name: at-once, per: user, max_parallel_requests: 3}
            - {name: weekly, per: user, window: week, week_starts: sunday, max_requests: 9}
    """).output
    assert "burst: 2.00 usd per user and any 5 h, downgrade to mini" in text
    assert "chat: 10 total tokens per session and session" in text
    assert "at-once: 3 parallel requests per user" in text
    assert "and week" in text


def test_a_check_starts_and_makes_nothing(run, config_path):
    """Checking makes no data folder."""
    run.ok("check")
    assert not (config_path.parent / "data").exists()


def test_a_good_file_as_json(run, config_path):
    """For programs a check is one document."""
    assert run.json("check") == {
        "config": str(config_path), "ok": True, "problems": [], "warnings": [],
        "limits": ["daily", "team-month", "member", "company", "tighter", "warned"], "plugins": [], "unpriced_models": [],
            "abilities": ["KeepsHours", "LeavesTraces", "Ranks", "Renewable", "Sorts"],
    }  # fmt: skip
    assert run.jsonl("check")[0]["ok"] is True
    assert run.csv("check")[0]["ok"] == "true"


@pytest.mark.parametrize("output", ["table", "json", "csv", "jsonl"])
def test_a_mistake_ends_with_1_in_every_format(check, output):
    """A mistake is on standard output in place of the result, and the exit code is 1."""
    result = check("usage_plugin: {limits: [{name: a, per: user, window: day, rpm_limit: 5}]}\n", "--format", output)
    assert result.exit_code == 1
    assert "write max_requests with window: minute" in " ".join(result.stdout.split())


def test_all_mistakes_are_listed_with_their_lines(check):
    """The check says every mistake of the section, with its line."""
    result = check("usage_plugin:\n  timezone: Mars\n  cache: {size: 0}\n")
    assert result.exit_code == 1
    assert "line 2: usage_plugin.timezone" in result.stdout
    assert "line 3: usage_plugin.cache.size" in result.stdout


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("storage: {backend: mysql}", "usage_plugin.storage.backend"),
        ("storage: {backend: postgres}", "usage_plugin.storage.options.url"),
        ("ledger: {backend: redis}", "usage_plugin.ledger.backend"),
        ("storage: {backend: sqlite, options: {pth: x}}", "usage_plugin.storage.options.pth"),
        ("ledger: {backend: postgres}", "usage_plugin.ledger.options.url"),
        ("ledger: {backend: valkey}", "usage_plugin.ledger.options.url"),
        ("ledger: {backend: valkey, options: {url: 'valkey://ann:a/b@db'}}", "usage_plugin.ledger.options.url"),
        ("ledger: {backend: postgres, options: {url: 'postgresql://ann:a/b@db'}}", "usage_plugin.ledger.options.url"),
    ],
)
def test_backends_are_checked_too(check, section, expected):
    """A backend that does not exist, or an option that it does not have, is found without starting anything."""
    result = check(f"usage_plugin: {{{section}}}\n")
    assert result.exit_code == 1
    assert expected in result.stdout


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("", "does not name the plugin"),
        ("litellm_settings: {}\n", "does not name the plugin"),
        ("litellm_settings:\n", "does not name the plugin"),
        ("litellm_settings: {callbacks: }\n", "does not name the plugin"),
        ("litellm_settings: {callbacks: [langfuse]}\n", "does not name the plugin"),
        ("litellm_settings: {callbacks: [usage_plugin.callback]}\n", "does not name the plugin"),
        ("litellm_settings: {callbacks: [usage_plugin.proxy.callback, usage_plugin.proxy.callback]}\n", "2 times"),
    ],
    ids=repr,
)
def test_a_proxy_that_would_not_use_the_plugin_is_a_problem(check, settings, problem):
    """A proxy's YAML must name the callback, once, or nothing would be recorded."""
    result = check(f"model_list: [{PRICED}]\n{settings}usage_plugin: {{}}\n")
    assert result.exit_code == 1
    assert problem in result.stdout


@pytest.mark.parametrize(
    "callbacks",
    ["[usage_plugin.proxy.callback]", "usage_plugin.proxy.callback", "[langfuse, usage_plugin.proxy.callback]"],
)
def test_the_callback_may_be_alone_or_in_a_list(check, callbacks):
    """The callback is found in a list and as a single word."""
    assert (
        check(f"model_list: [{PRICED}]\nlitellm_settings: {{callbacks: {callbacks}}}\nusage_plugin: {{}}\n").exit_code
        == 0
    )


def test_a_file_of_its_own_needs_no_callback(check):
    """A file with our section only is checked for itself."""
    assert check("usage_plugin: {}\n").exit_code == 0


def test_models_without_a_price_are_listed(check):
    """Models without a price are listed, but are not a mistake: only cost limits refuse them."""
    result = check(f"""
        model_list:
          - {PRICED}
          - {{model_name: house, litellm_params: {{model: openai/our-own-model}}}}
          - {{model_name: house, litellm_params: {{model: openai/our-own-model-2}}}}
          - {{model_name: "any/*", litellm_params: {{model: "openai/*"}}}}
        litellm_settings: {{callbacks: ["usage_plugin.proxy.callback"]}}
        usage_plugin: {{}}
    """)
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[lines.index("Without a price, so refused under cost limits:") + 1 :] == ["house"]


@pytest.mark.parametrize(
    "rest",
    [
        "model_list: [gpt]", "model_list: {gpt: 5}", "model_list: [{model_name: a}]", "model_list: [{litellm_params: {model: x}}]",
        "model_list: [{model_name: a, litellm_params: x}]", "model_list: [null]", "model_list: [{model_name: a, litellm_params: {model: 5}}]",
        "model_list: 7", "model_list: []\nlitellm_settings: []", "model_list: []\nlitellm_settings: text",
        "model_list: []\nlitellm_settings: {callbacks: {a: b}}", "model_list: []\nlitellm_settings: {callbacks: 5}",
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_in_litellms_own_sections_cause_no_traceback(check, rest):
    """Mistakes in LiteLLM's sections are LiteLLM's to tell: the check ends with 0 or 1, never with a trace."""
    assert check(f"{rest}\nusage_plugin: {{}}\n").exit_code in (0, 1)


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/red]"])
def test_problems_with_markup_in_them_are_shown_as_they_are(check, name):
    """A value that looks like markup is shown as it was written."""
    result = check(f'usage_plugin: {{timezone: "{name}"}}\n')
    assert result.exit_code == 1
    assert name in result.stdout


def test_a_long_problem_is_shown_whole(check):
    """A problem of several lines is not cut."""
    result = check("usage_plugin: {cache: {sise: 1, sice: 2, sixe: 3}}\n")
    assert all(f"usage_plugin.cache.{key}" in result.stdout for key in ("sise", "sice", "sixe"))


def test_a_missing_variable_is_a_problem(check):
    """A variable that the file asks for and that is not set is found."""
    result = check("usage_plugin: {contact: os.environ/NOT_THERE}\n")
    assert result.exit_code == 1
    assert "NOT_THERE" in result.stdout
