from __future__ import annotations

import re
import textwrap
from datetime import date, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.config import AdmissionConfig, Config, find_config, load_config, read_proxy_section
from usage_plugin.domain.limits import Match
from usage_plugin.domain.subjects import Subjects
from usage_plugin.domain.windows import WINDOW_KINDS, WindowRule, start_of_day
from usage_plugin.errors import ConfigError

BERLIN = ZoneInfo("Europe/Berlin")
SECOND = 1_000_000
NAMED_WINDOWS = [kind for kind in WINDOW_KINDS if kind != "rolling"]


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a section from its own file."""

    def load(section, rest=""):
        path = tmp_path / "config.yaml"
        body = textwrap.indent(textwrap.dedent(section).strip("\n"), "  ")
        path.write_text(f"usage_plugin:\n{body}\n{textwrap.dedent(rest)}", encoding="utf-8")
        return load_config(path)

    return load


@pytest.fixture
def refused(load):
    """Return a function that loads an invalid section and returns the error message."""

    def refused(section, rest=""):
        with pytest.raises(ConfigError) as caught:
            load(section, rest)
        return str(caught.value)

    return refused


def limit(**changes):
    """Return the YAML of a limit of 5 USD a day for each user, with changes; None omits a key."""
    keys = {"name": "daily", "per": "user", "window": "day", "max_cost": "5", **changes}
    return "limits:\n  - {" + ", ".join(f"{key}: {value}" for key, value in keys.items() if value is not None) + "}\n"


# ── valid configurations ─────────────────────────────────────────────────────────────────────────────────────────────

ISSUE = """\
usage_plugin:
  data_dir: ./data/usage             # relative to the YAML file; ledger.db lives here, and stores by default
  timezone: UTC                      # where days and months begin
  contact: "Ask #ai-platform for more"                # ends every refusal
  storage: {backend: sqlite}         # options: {...} are validated by the backend's own model
  ledger: {backend: sqlite}
  admission: {default_max_output_tokens: 4096, status_when_spent: 402}   # and what later stages add for all limits
  cache: {size: 1000, retention: 7d, cleanup_interval: 1h}
  identity: {user: [key, end_user], on_missing: shared}   # first that names somebody; or a header: "header:x-openwebui-user-email"; on_missing: shared | deny
  groups: {power: [dana, "*@research.corp"], interns: ["*@intern.corp"]}
  limits:
    - name: daily                    # each user gets their own; the first override that matches sets the amount
      per: user
      window: day
      max_cost: 5
      overrides:
        - {match: {user: [ann, bo]}, max_cost: unlimited}
        - {match: {user: eva}, max_cost: 40, until: 2026-12-01}
        - {match: {group: power}, max_cost: 25}
    - {name: research, per: team, match: {team: research}, window: month, timezone: Europe/Berlin, max_cost: 500}
    - {name: research-member, per: [team, user], match: {team: research}, window: month, max_cost: 100}
    - {name: dear-models, per: user, match: {model: ["claude-opus-*", "o3*"]}, window: week, max_cost: 10}
    - {name: company, per: global, window: quarter, max_cost: 20000}
    - {name: tighter, per: user, window: day, max_cost: 3, dry_run: true}      # evaluated and reported, never felt
"""


@pytest.fixture
def documented(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(ISSUE, encoding="utf-8")
    return load_config(path)


def test_the_documented_shape_is_read(documented, tmp_path):
    """The documented section loads, key by key."""
    assert documented.data_dir == (tmp_path / "data/usage").resolve()
    assert documented.timezone == ZoneInfo("UTC")
    assert documented.contact == "Ask #ai-platform for more"
    assert (documented.storage.backend, documented.storage.options) == ("sqlite", {})
    assert documented.ledger.backend == "sqlite"
    assert documented.admission.default_max_output_tokens == 4096
    assert documented.admission.status_when_spent == 402
    assert (documented.cache.size, documented.cache.retention) == (1000, 7)
    assert documented.cache.cleanup_interval == timedelta(hours=1)
    assert documented.identity.user == ("key", "end_user")
    assert documented.identity.on_missing == "shared"
    assert documented.groups == {"power": ("dana", "*@research.corp"), "interns": ("*@intern.corp",)}
    assert documented.path == tmp_path / "config.yaml"


def test_the_documented_limits_become_rules(documented):
    """The documented limits load with exact amounts, in their order."""
    limits = documented.limit_set().limits
    usd = 10**9
    assert [
        (rule.name, rule.per, rule.unit, rule.amount, rule.window.kind, str(rule.zone), rule.dry_run) for rule in limits
    ] == [
        ("daily", ("user",), "usd", 5 * usd, "day", "UTC", False),
        ("research", ("team",), "usd", 500 * usd, "month", "Europe/Berlin", False),
        ("research-member", ("team", "user"), "usd", 100 * usd, "month", "UTC", False),
        ("dear-models", ("user",), "usd", 10 * usd, "week", "UTC", False),
        ("company", ("global",), "usd", 20_000 * usd, "quarter", "UTC", False),
        ("tighter", ("user",), "usd", 3 * usd, "day", "UTC", True),
    ]
    assert limits[3].match == Match((("model", ("claude-opus-*", "o3*")),))
    assert all(rule.action == "block" for rule in limits)


@pytest.mark.parametrize(
    ("user", "usd"), [("ann", None), ("bo", None), ("eva", 40), ("dana", 25), ("x@research.corp", 25), ("zoe", 5)]
)
def test_the_documented_overrides_set_the_amount(documented, user, usd):
    """The first documented override that matches a user sets the amount."""
    found = documented.limit_set().matching(Subjects(user=user), "gpt", "openai")
    at = start_of_day(date(2026, 11, 23), ZoneInfo("UTC"))
    (daily,) = [matched for matched in found if matched.limit.name == "daily"]
    assert daily.amount_at(at) == (None if usd is None else usd * 10**9)


def test_until_includes_its_day_in_the_limits_zone(load):
    """An override until a day counts until that day ends, in the zone of the limit."""
    section = "limits: [{name: a, per: user, window: day, timezone: Europe/Berlin, max_cost: 5, overrides: [{match: {}, max_cost: 40, until: 2026-12-01}]}]"
    (found,) = load(section).limit_set().matching(Subjects(user="eva"), None, None)
    ends = start_of_day(date(2026, 12, 2), BERLIN)
    assert found.amount_at(ends - 1) == 40 * 10**9
    assert found.amount_at(ends) == 5 * 10**9


@pytest.mark.parametrize("until", ["2026-12-01T18:00:00+01:00", '"2026-12-01T17:00:00Z"', "2026-12-01 18:00:00"])
def test_until_may_be_a_moment(load, until):
    """An override may also end at a time, in the limit's zone if it names none."""
    section = f"limits: [{{name: a, per: user, window: day, timezone: Europe/Berlin, max_cost: 5, overrides: [{{match: {{}}, max_cost: 40, until: {until}}}]}}]"
    (found,) = load(section).limit_set().matching(Subjects(user="eva"), None, None)
    ends = 1_796_144_400_000_000
    assert (found.amount_at(ends - 1), found.amount_at(ends)) == (40 * 10**9, 5 * 10**9)


def test_until_the_last_day_of_the_calendar_never_ends(load):
    """An override until 9999-12-31 never ends, and does not crash the start."""
    section = "limits: [{name: a, per: user, window: day, max_cost: 5, overrides: [{match: {}, max_cost: 40, until: 9999-12-31}]}]"
    (found,) = load(section).limit_set().matching(Subjects(user="eva"), None, None)
    assert found.amount_at(1_796_144_400_000_000) == 40 * 10**9


def test_without_a_section_a_proxys_yaml_gets_the_defaults(tmp_path):
    """A proxy's YAML without the section records all requests and limits none."""
    path = tmp_path / "proxy.yaml"
    path.write_text("model_list: []\n", encoding="utf-8")
    config = load_config(path)
    assert config.limits == ()
    assert config.data_dir == (tmp_path / "data/usage").resolve()
    assert config.timezone == ZoneInfo("UTC")


@pytest.mark.parametrize(
    "text", ["usage_plugin:\n", "usage_plugin: {}\n", "usage_plugin: # nothing yet\nmodel_list: []\n"]
)
def test_an_empty_section_gets_the_defaults(tmp_path, text):
    """An empty section has all defaults."""
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path).limits == ()


@pytest.mark.parametrize("text", ["limits: []\n", "", "- a\n- b\n", "just text\n", "42\n"])
def test_a_file_of_its_own_without_the_section_is_an_error(tmp_path, text):
    """A file that is not a proxy's YAML and lacks the section is the wrong file, and the error says so."""
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="no section usage_plugin"):
        load_config(path)


@pytest.mark.parametrize("window", NAMED_WINDOWS)
def test_every_window_is_known(load, window):
    """A limit may have each kind of window."""
    per = "[user, session]" if window == "session" else "user"
    assert load(limit(per=per, window=window)).limit_set().limits[0].window == WindowRule(window)


@pytest.mark.parametrize(
    ("written", "seconds"), [("10s", 10), ("90m", 5_400), ("5h", 18_000), ("5 h", 18_000), ("30d", 2_592_000)]
)
def test_a_window_may_roll(load, written, seconds):
    """A rolling window has a length, written as any duration."""
    (rule,) = load(limit(window=f"{{rolling: {written}}}")).limit_set().limits
    assert rule.window == WindowRule("rolling", length=seconds * SECOND)


@pytest.mark.parametrize(
    ("top", "own", "day"),
    [("", None, 0), ("week_starts: sunday\n", None, 6), ("week_starts: sunday\n", "monday", 0), ("", "saturday", 5)],
)
def test_weeks_may_begin_on_any_day(load, top, own, day):
    """A week starts on the day of the limit, or else of the section, or else on Monday; other windows have none."""
    section = top + limit(window="week", week_starts=own) + "  - {name: other, per: user, window: month, max_cost: 5}"
    first, other = load(section).limit_set().limits
    assert first.window == WindowRule("week", week_starts=day)
    assert other.window == WindowRule("month")


def test_parallel_requests_need_no_window(load):
    """Concurrent requests are limited without a window, with overrides like any amount."""
    (rule,) = (
        load(
            limit(
                window=None,
                max_cost=None,
                max_parallel_requests="3",
                overrides="[{match: {user: bo}, max_parallel_requests: unlimited}]",
            )
        )
        .limit_set()
        .limits
    )
    assert (rule.unit, rule.amount, rule.is_charged) == ("parallel_requests", 3, False)
    assert rule.overrides[0].amount is None


@pytest.mark.parametrize(
    "changes",
    [{}, {"window": "request"}, {"window": None, "max_cost": None, "max_parallel_requests": "3"}, {"dry_run": "true"}],
    ids=str,
)
def test_a_limit_may_downgrade(load, changes):
    """Instead of a refusal, a limit of any unit may send a request to another model."""
    (rule,) = load(limit(action="downgrade", downgrade_to="openai/gpt-mini", **changes)).limit_set().limits
    assert (rule.action, rule.downgrade_to, rule.blocks) == ("downgrade", "openai/gpt-mini", False)


@pytest.mark.parametrize(
    ("written", "percents"), [("[50, 80, 100]", (50, 80, 100)), ("80", (80,)), ("[1, 1000]", (1, 1000))]
)
def test_a_limit_may_alert(load, written, percents):
    """Alerts have one or several thresholds in percent of the amount."""
    assert load(limit(alert_at=written)).limit_set().limits[0].alert_at == percents


@pytest.mark.parametrize(("key", "value", "field", "expected"), [
    ("count_from", "window", "counts_history", True), ("count_from", "now", "counts_history", False),
    ("count_from", None, "counts_history", True), ("on_unbounded", "allow", "allow_unbounded", True),
    ("on_unbounded", "deny", "allow_unbounded", False), ("on_unbounded", None, "allow_unbounded", False),
    ("alert_at", None, "alert_at", ()), ("downgrade_to", None, "downgrade_to", None),
])  # fmt: skip
def test_a_limits_policies_have_two_words_each(load, key, value, field, expected):
    """By default a new limit counts the history of its window, and refuses unbounded requests."""
    (rule,) = load(limit(**{key: value})).limit_set().limits
    assert getattr(rule, field) == expected


@pytest.mark.parametrize(("key", "written", "expected"), [
    ("max_wait", None, timedelta(seconds=2)), ("max_wait", "0s", timedelta()), ("max_wait", "1m", timedelta(seconds=60)),
    ("orphan_grace", None, timedelta(seconds=60)), ("orphan_grace", "1s", timedelta(seconds=1)), ("orphan_grace", "1d", timedelta(days=1)),
    ("on_short_budget", None, "deny"), ("on_short_budget", "deny", "deny"), ("on_short_budget", "clamp", "clamp"),
    ("on_ledger_error", None, "deny"), ("on_ledger_error", "deny", "deny"), ("on_ledger_error", "allow", "allow"),
    ("on_lost", None, "charge"), ("on_lost", "charge", "charge"), ("on_lost", "charge_input", "charge_input"), ("on_lost", "release", "release"),
    ("on_unmetered", None, "allow"), ("on_unmetered", "allow", "allow"), ("on_unmetered", "deny", "deny"),
    ("on_unmetered", "0.01", 10_000_000), ("on_unmetered", "0", 0), ("on_unmetered", '"0.000000001"', 1),
    ("worker_lost_after", None, timedelta(seconds=30)), ("worker_lost_after", "2s", timedelta(seconds=2)), ("worker_lost_after", "1h", timedelta(hours=1)),
    ("on_cut_stream", None, "estimate"), ("on_cut_stream", "estimate", "estimate"), ("on_cut_stream", "reserved", "reserved"),
])  # fmt: skip
def test_admission_can_be_set(load, key, written, expected):
    """Each key of admission accepts its values, and has a safe default."""
    admission = load("timezone: UTC" if written is None else f"admission: {{{key}: {written}}}").admission
    assert getattr(admission, key) == expected


@pytest.mark.parametrize(
    ("model", "tokens"), [("o3", 100_000), ("o3-mini", 100_000), ("openai/gpt-5", 8_000), ("gpt-5", 500), ("", 500)]
)
def test_the_bound_on_output_can_be_set_for_models(load, model, tokens):
    """A model has the output bound of the first glob that matches it, or else the default."""
    admission = load(
        'admission: {default_max_output_tokens: 500, max_output_tokens: {"o3*": 100000, "openai/*": 8_000, "o3-mini": 1}}'
    ).admission
    assert admission.output_tokens_of(model) == tokens


def test_without_bounds_of_their_own_all_models_have_the_default():
    """Without the key, all models have the same bound."""
    assert AdmissionConfig().output_tokens_of("gpt-5") == 4096


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1MB", 10**6),
        ("500MB", 5 * 10**8),
        ("1GB", 10**9),
        ("2GiB", 2**31),
        ("1 MiB", 2**20),
        ("3TB", 3 * 10**12),
        ("1TiB", 2**40),
    ],
)
def test_the_outbox_has_a_bound_in_bytes(load, written, size):
    """The maximum size of the outbox is written as a size."""
    storage = load(f"storage: {{outbox_max: {written}, on_outbox_full: allow}}").storage
    assert (storage.outbox_max, storage.on_outbox_full) == (size, "allow")


def test_the_outbox_refuses_at_a_gigabyte_by_default(load):
    """By default, requests are refused when a gigabyte waits in the outbox."""
    storage = load("timezone: UTC").storage
    assert (storage.outbox_max, storage.on_outbox_full, storage.backend) == (None, "deny", "sqlite")


@pytest.mark.parametrize(
    ("key", "unit"),
    [
        ("max_total_tokens", "total_tokens"),
        ("max_input_tokens", "input_tokens"),
        ("max_output_tokens", "output_tokens"),
        ("max_requests", "requests"),
    ],
)
def test_every_unit_is_known(load, key, unit):
    """A limit may count tokens or requests instead of money."""
    (rule,) = load(limit(max_cost=None, **{key: "100"})).limit_set().limits
    assert (rule.unit, rule.amount) == (unit, 100)


@pytest.mark.parametrize(("written", "amount"), [("0", 0), ("unlimited", None)])
@pytest.mark.parametrize("key", ["max_cost", "max_total_tokens", "max_requests"])
def test_zero_blocks_and_unlimited_lifts(load, key, written, amount):
    """0 and unlimited are valid amounts in every unit."""
    (rule,) = load(limit(**{"max_cost": None, key: written})).limit_set().limits
    assert rule.amount == amount


@pytest.mark.parametrize(
    ("written", "nano"),
    [
        ("0.1", 100_000_000),
        ("0.3", 300_000_000),
        ("0.000000001", 1),
        ("1.1", 1_100_000_000),
        ('"2.5"', 2_500_000_000),
        ("5.0", 5_000_000_000),
        ("123456789.123456789", 123_456_789_123_456_789),
        ("1.5e+2", 150_000_000_000),
        ("0.10000000000000000000000000000000000", 100_000_000),
    ],
)
def test_amounts_are_exact(load, written, nano):
    """An amount is exact to the nano-dollar, and never a float."""
    assert load(limit(max_cost=written)).limit_set().limits[0].amount == nano


@pytest.mark.parametrize("written", ["0.1000000001", "0.10000000000000000000000000000000000000000001", "0.1234567891"])
def test_an_amount_finer_than_a_nano_dollar_is_refused(refused, written):
    """An amount with more than nine decimals is rejected and not rounded."""
    message = refused(limit(max_cost=written))
    assert "usage_plugin.limits.0.max_cost" in message
    assert written in message
    assert "nano-dollar" in message


def test_names_are_trimmed(load):
    """White space around a name is removed."""
    config = load('groups: {power: [" dana "]}\n' + limit(match='{user: " ann "}'))
    assert config.groups == {"power": ("dana",)}
    assert config.limit_set().limits[0].match == Match((("user", ("ann",)),))


def test_names_in_the_yaml_are_normalised_as_names_of_requests_are(load):
    """A name that an editor wrote in decomposed form matches a request's composed form."""
    config = load(limit(match='{user: "Zoe\\u0308"}'))
    assert config.limit_set().matching(Subjects(user="Zo\u00eb"), None, None)


def test_names_in_the_yaml_are_case_folded_where_names_of_requests_are(load):
    """With `casefold` a limit for Ann counts ann, instead of silently no user."""
    config = load(
        "identity: {casefold: true}\ngroups: {power: [DANA]}\n"
        + limit(match="{user: Ann}", overrides="[{match: {group: power}, max_cost: 1}]")
    )
    assert config.limit_set().matching(Subjects(user="ann"), None, None)
    assert config.limit_set().groups_of("dana") == ("power",)


@pytest.mark.parametrize(
    "source", ["key", "end_user", '"header:x-openwebui-user-email"', '["header:X-User", key, end_user]']
)
def test_every_source_of_identity_is_known(load, source):
    """Users may come from keys, claims and headers, one or several in order."""
    config = load(f"identity: {{user: {source}}}")
    assert config.identity.user


# ── location of the configuration ────────────────────────────────────────────────────────────────────────────────────


def test_data_dir_is_relative_to_the_yaml(tmp_path, monkeypatch):
    """A relative data folder is relative to the YAML, for any current folder of the proxy."""
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "config.yaml").write_text("usage_plugin: {data_dir: var/usage}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("etc/config.yaml").absolute()).data_dir == folder / "var/usage"


def test_data_dir_may_be_absolute(load, tmp_path):
    """An absolute data folder is used unchanged."""
    assert load(f"data_dir: {tmp_path}/elsewhere").data_dir == tmp_path / "elsewhere"


def test_the_variable_beats_data_dir(load, tmp_path, monkeypatch):
    """USAGE_PLUGIN_DATA_DIR has priority over the YAML's data_dir, and is relative to the current folder."""
    monkeypatch.setenv("USAGE_PLUGIN_DATA_DIR", str(tmp_path / "variable"))
    assert load("data_dir: ./data/usage").data_dir == tmp_path / "variable"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("USAGE_PLUGIN_DATA_DIR", "usage")
    assert load("data_dir: ./data/usage").data_dir == tmp_path / "here/usage"


def test_the_configuration_is_looked_for_in_order(tmp_path, monkeypatch):
    """The order of priority is --config, USAGE_PLUGIN_CONFIG, CONFIG_FILE_PATH, ./config.yaml."""
    monkeypatch.chdir(tmp_path)
    for name in ("explicit", "ours", "litellm", "config"):
        (tmp_path / f"{name}.yaml").write_text("usage_plugin: {}\n", encoding="utf-8")
    assert find_config() == tmp_path / "config.yaml"
    monkeypatch.setenv("CONFIG_FILE_PATH", "litellm.yaml")
    assert find_config() == tmp_path / "litellm.yaml"
    monkeypatch.setenv("USAGE_PLUGIN_CONFIG", str(tmp_path / "ours.yaml"))
    assert find_config() == tmp_path / "ours.yaml"
    assert find_config("explicit.yaml") == tmp_path / "explicit.yaml"
    monkeypatch.setenv("USAGE_PLUGIN_CONFIG", "")
    assert find_config() == tmp_path / "litellm.yaml"


@pytest.mark.parametrize("variable", ["USAGE_PLUGIN_CONFIG", "CONFIG_FILE_PATH"])
def test_a_configuration_that_is_named_and_missing_is_an_error(tmp_path, monkeypatch, variable):
    """If a named file is missing, the error names its source, and no other file is used."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("usage_plugin: {}\n", encoding="utf-8")
    monkeypatch.setenv(variable, "gone.yaml")
    with pytest.raises(ConfigError, match=rf"gone\.yaml.*{variable}"):
        find_config()
    with pytest.raises(ConfigError, match=r"gone\.yaml.*--config"):
        find_config(tmp_path / "gone.yaml")


def test_no_configuration_at_all_is_an_error(tmp_path, monkeypatch):
    """If no file is found, the error explains how to name one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--config"):
        find_config()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", "folder"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, content):
    """Binary data or a folder is an error that names it."""
    path = tmp_path / "config.yaml"
    if content == "folder":
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"Cannot read .*config\.yaml"):
        load_config(path)


def test_values_may_come_from_the_environment(load, monkeypatch):
    """os.environ/NAME is replaced by the variable; numbers and booleans keep their type, exactly."""
    for name, value in {"CONTACT": "Ask Bo", "DAILY": "0.1", "SIZE": "17", "DRY": "true", "BOSS": "bo"}.items():
        monkeypatch.setenv(name, value)
    config = load(
        "contact: os.environ/CONTACT\ncache: {size: os.environ/SIZE}\n"
        + limit(max_cost="os.environ/DAILY", dry_run="os.environ/DRY", match="{user: [ann, os.environ/BOSS]}")
    )
    (rule,) = config.limit_set().limits
    assert config.contact == "Ask Bo"
    assert config.cache.size == 17
    assert rule.amount == 100_000_000
    assert rule.dry_run is True
    assert rule.match == Match((("user", ("ann", "bo")),))


@pytest.mark.parametrize(
    "value", ["*@corp.example", "[ops] ask: us", "{", "@bo", "a: b: c", "%x", "`x`", "&x", "'", ""]
)
def test_text_from_the_environment_may_be_anything(load, monkeypatch, value):
    """A variable is not YAML: text that YAML could not parse is used unchanged."""
    monkeypatch.setenv("CONTACT", value)
    assert load("contact: os.environ/CONTACT").contact == value


def test_a_missing_variable_is_an_error(refused):
    """A missing variable stops the start and is named."""
    message = refused("contact: os.environ/NOT_THERE")
    assert "os.environ/NOT_THERE" in message
    assert "Set NOT_THERE" in message


def test_other_sections_are_passed_over(load):
    """Other sections belong to LiteLLM, including their duplicate keys."""
    assert load("timezone: UTC", "litellm_settings: {a: 1, a: 2}\nmodel_list: []\n").timezone == ZoneInfo("UTC")


def test_another_section_can_be_read(tmp_path):
    """The checks can read LiteLLM's sections; a missing one is None."""
    path = tmp_path / "config.yaml"
    path.write_text("model_list: [{model_name: gpt}]\nusage_plugin: {}\n", encoding="utf-8")
    assert read_proxy_section(path, "model_list") == [{"model_name": "gpt"}]
    assert read_proxy_section(path, "litellm_settings") is None


# ── mistakes: each error has the path, the value found and the remedy ────────────────────────────────────────────────

MISTAKES = {
    "unknown key": ("stroage: {backend: sqlite}", "usage_plugin.stroage", "{'backend': 'sqlite'}", "unknown key"),
    "unknown key in a part": ("cache: {sise: 5}", "usage_plugin.cache.sise", "5", "unknown key"),
    "unknown key of a limit": (limit(colour="red"), "usage_plugin.limits.0.colour", "'red'", "unknown key"),
    "rpm_limit": (limit(rpm_limit="60"), "usage_plugin.limits.0.rpm_limit", "60", "write max_requests with window: minute"),
    "tpm_limit": (limit(tpm_limit="60"), "usage_plugin.limits.0.tpm_limit", "60", "write max_total_tokens with window: minute"),
    "max_budget": (limit(max_budget="60"), "usage_plugin.limits.0.max_budget", "60", "write max_cost"),
    "budget_duration": (limit(budget_duration="30d"), "usage_plugin.limits.0.budget_duration", "'30d'", "write window"),
    "a word for keys": ("storage: hybrid", "usage_plugin.storage", "'hybrid'", "expected keys and their values, such as {backend: hybrid}"),
    "a word for a limit": ("limits: [daily]", "usage_plugin.limits.0", "'daily'", "such as {name: daily, per: user"),
    "keys for a list": ("limits: {daily: 5}", "usage_plugin.limits", "{'daily': 5}", "expected a list, such as [{name: daily"),
    "wrong type": ("timezone: [UTC]", "usage_plugin.timezone", "['UTC']", "Europe/Berlin"),
    "wrong type of a number": ("cache: {size: many}", "usage_plugin.cache.size", "'many'", "integer"),
    "text for a number": ('cache: {size: "5"}', "usage_plugin.cache.size", "'5'", "integer"),
    "a fraction for a whole number": ("cache: {size: 1.5}", "usage_plugin.cache.size", "1.5", "integer"),
    "text for a switch": (limit(dry_run='"yes"'), "usage_plugin.limits.0.dry_run", "'yes'", "boolean"),
    "too small": ("cache: {size: 0}", "usage_plugin.cache.size", "0", "greater than or equal to 1"),
    "a status that is none of ours": ("admission: {status_when_spent: 500}", "usage_plugin.admission.status_when_spent", "500", "402, 403 or 429"),
    "negative amount": (limit(max_cost="-5"), "usage_plugin.limits.0.max_cost", "-5", "0 to block, or unlimited"),
    "negative fraction": (limit(max_cost="-0.5"), "usage_plugin.limits.0.max_cost", "-0.5", "0 to block, or unlimited"),
    "negative count": (limit(max_cost=None, max_requests="-1"), "usage_plugin.limits.0.max_requests", "-1", "0 to block, or unlimited"),
    "NaN": (limit(max_cost=".nan"), "usage_plugin.limits.0.max_cost", "nan", "or unlimited"),
    "text that is NaN": (limit(max_cost='"nan"'), "usage_plugin.limits.0.max_cost", "nan", "or unlimited"),
    "infinite": (limit(max_cost=".inf"), "usage_plugin.limits.0.max_cost", "inf", "or unlimited"),
    "an amount that is none": (limit(max_cost="lots"), "usage_plugin.limits.0.max_cost", "lots", "or unlimited"),
    "an amount that is left empty": (limit(max_cost=""), "usage_plugin.limits.0.max_cost", "None", "or unlimited"),
    "an amount with a currency": (limit(max_cost="$5"), "usage_plugin.limits.0.max_cost", "$5", "or unlimited"),
    "an amount that is true": (limit(max_cost="yes"), "usage_plugin.limits.0.max_cost", "True", "or unlimited"),
    "too large an amount": (limit(max_cost="1e+30"), "usage_plugin.limits.0.max_cost", "30", "9000000000"),
    "a fraction of a token": (limit(max_cost=None, max_total_tokens="1.5"), "usage_plugin.limits.0.max_total_tokens", "1.5", "whole number"),
    "more tokens than can be counted": (limit(max_cost=None, max_total_tokens=2**63), "usage_plugin.limits.0.max_total_tokens", str(2**63), "whole number"),
    "two amounts": (limit(max_requests="5"), "usage_plugin.limits.0", "max_cost and max_requests", "exactly one of"),
    "no amount": (limit(max_cost=None), "usage_plugin.limits.0", "none", "exactly one of max_cost"),
    "no amount in an override": (limit(overrides="[{match: {user: ann}}]"), "usage_plugin.limits.0.overrides.0", "none", "exactly one of max_cost"),
    "another unit in an override": (limit(overrides="[{match: {user: ann}, max_requests: 5}]"), "usage_plugin.limits.0", "max_requests", "max_cost"),
    "an override for nobody in particular": (limit(overrides="[{max_cost: 5}]"), "usage_plugin.limits.0.overrides.0.match", "", "missing"),
    "unknown window": (limit(window="fortnight"), "usage_plugin.limits.0.window", "'fortnight'", "expected one of request, minute, hour, day"),
    "LiteLLM's way to write a window": (limit(window="30d"), "usage_plugin.limits.0.window", "'30d'", "month"),
    "no window": (limit(window=None), "usage_plugin.limits.0", "window is missing", "expected one of request, minute"),
    "a window that is left empty": (limit(window=""), "usage_plugin.limits.0", "window is missing", "expected one of request, minute"),
    "a rolling window without a length": (limit(window="rolling"), "usage_plugin.limits.0.window", "'rolling'", "{rolling: 5h}"),
    "a window of another kind with a length": (limit(window="{day: 5h}"), "usage_plugin.limits.0.window", "{'day': '5h'}", "{rolling: 5h}"),
    "a rolling window with something else": (limit(window="{rolling: 5h, from: now}"), "usage_plugin.limits.0.window", "'from'", "{rolling: 5h}"),
    "two windows": (limit(window="[day, month]"), "usage_plugin.limits.0.window", "['day', 'month']", "expected one of request, minute"),
    "too short a rolling window": (limit(window="{rolling: 9s}"), "usage_plugin.limits.0.window", "'9s'", "between 10s and 3660d"),
    "too long a rolling window": (limit(window="{rolling: 3661d}"), "usage_plugin.limits.0.window", "'3661d'", "between 10s and 3660d"),
    "a length without a unit": (limit(window="{rolling: 300}"), "usage_plugin.limits.0.window", "300", "such as 5h"),
    "a length that is none": (limit(window="{rolling: week}"), "usage_plugin.limits.0.window", "'week'", "such as 5h"),
    "a rolling window out of place": (limit(rolling="5h"), "usage_plugin.limits.0.rolling", "'5h'", "write window: {rolling: 5h}"),
    "a session window for users": (limit(window="session"), "usage_plugin.limits.0", "window: session", "per: [user, session]"),
    "a day of the week for a month": (limit(window="month", week_starts="sunday"), "usage_plugin.limits.0", "only window: week", "leave out week_starts"),
    "a day of the week as a number": ("week_starts: 0", "usage_plugin.week_starts", "0", "expected one of monday"),
    "an unknown day of the week": (limit(window="week", week_starts="sonntag"), "usage_plugin.limits.0.week_starts", "'sonntag'", "expected one of monday"),
    "parallel requests in a window": (limit(max_cost=None, max_parallel_requests="5"), "usage_plugin.limits.0", "concurrent requests", "leave out window"),
    "parallel requests with alerts": (limit(max_cost=None, window=None, max_parallel_requests="5", alert_at="80"), "usage_plugin.limits.0", "concurrent requests", "leave out alert_at"),
    "parallel requests with a history": (limit(max_cost=None, window=None, max_parallel_requests="5", count_from="now"), "usage_plugin.limits.0", "concurrent requests", "leave out count_from"),
    "parallel requests and their bound": (limit(max_cost=None, window=None, max_parallel_requests="5", on_unbounded="deny"), "usage_plugin.limits.0", "on_unbounded", "max_total_tokens"),
    "a part of a parallel request": (limit(max_cost=None, window=None, max_parallel_requests="1.5"), "usage_plugin.limits.0.max_parallel_requests", "1.5", "whole number"),
    "parallel requests under another name": (limit(max_parallel="5"), "usage_plugin.limits.0.max_parallel", "5", "write max_parallel_requests"),
    "soft_budget": (limit(soft_budget="4"), "usage_plugin.limits.0.soft_budget", "4", "write alert_at"),
    "a downgrade to nowhere": (limit(action="downgrade"), "usage_plugin.limits.0", "downgrade", "expected both or neither"),
    "a model to downgrade to without the action": (limit(downgrade_to="mini"), "usage_plugin.limits.0", "downgrade_to", "expected both or neither"),
    "a downgrade to several": (limit(action="downgrade", downgrade_to="[a, b]"), "usage_plugin.limits.0.downgrade_to", "['a', 'b']", "expected one name"),
    "a downgrade to a glob": (limit(action="downgrade", downgrade_to='"gpt-*"'), "usage_plugin.limits.0.downgrade_to", "'gpt-*'", "not a glob"),
    "a downgrade to a number": (limit(action="downgrade", downgrade_to="4.1"), "usage_plugin.limits.0.downgrade_to", "4.1", "put quotes around it"),
    "an alert at nothing": (limit(alert_at="0"), "usage_plugin.limits.0.alert_at", "0", "from 1 to 1000"),
    "an alert beyond all bounds": (limit(alert_at="[80, 1001]"), "usage_plugin.limits.0.alert_at", "1001", "from 1 to 1000"),
    "alerts in no order": (limit(alert_at="[80, 50]"), "usage_plugin.limits.0.alert_at", "[80, 50]", "ascending"),
    "an alert twice": (limit(alert_at="[80, 80]"), "usage_plugin.limits.0.alert_at", "[80, 80]", "each once"),
    "a fraction of a percent": (limit(alert_at="[99.9]"), "usage_plugin.limits.0.alert_at", "99.9", "whole percents"),
    "percent as text": (limit(alert_at="80%"), "usage_plugin.limits.0.alert_at", "'80%'", "whole percents"),
    "an alert that is true": (limit(alert_at="yes"), "usage_plugin.limits.0.alert_at", "True", "whole percents"),
    "no alerts in a list": (limit(alert_at="[]"), "usage_plugin.limits.0.alert_at", "[]", "for example [50, 80, 100]"),
    "an alert for single requests": (limit(window="request", alert_at="80"), "usage_plugin.limits.0", "window: request", "leave out alert_at"),
    "a history of single requests": (limit(window="request", count_from="now"), "usage_plugin.limits.0", "window: request", "leave out count_from"),
    "an unknown beginning": (limit(count_from="today"), "usage_plugin.limits.0.count_from", "'today'", "'window' or 'now'"),
    "an unknown policy for what nothing bounds": (limit(on_unbounded="warn"), "usage_plugin.limits.0.on_unbounded", "'warn'", "'deny' or 'allow'"),
    "a bound on requests": (limit(max_cost=None, max_requests="5", on_unbounded="allow"), "usage_plugin.limits.0", "on_unbounded", "max_cost"),
    "too long a wait": ("admission: {max_wait: 61s}", "usage_plugin.admission.max_wait", "'61s'", "between 0s and 60s"),
    "a wait without a unit": ("admission: {max_wait: 2}", "usage_plugin.admission.max_wait", "2", "such as 2s"),
    "no grace": ("admission: {orphan_grace: 0s}", "usage_plugin.admission.orphan_grace", "'0s'", "between 1s and 1d"),
    "a grace of days": ("admission: {orphan_grace: 2d}", "usage_plugin.admission.orphan_grace", "'2d'", "between 1s and 1d"),
    "a worker lost at once": ("admission: {worker_lost_after: 1s}", "usage_plugin.admission.worker_lost_after", "'1s'", "between 2s and 1h"),
    "a worker lost after hours": ("admission: {worker_lost_after: 2h}", "usage_plugin.admission.worker_lost_after", "'2h'", "such as 30s"),
    "a short secret": ("privacy: {secret: abc123}", "usage_plugin.privacy.secret", "6 characters", "openssl rand -hex 32"),
    "a secret that is a number": ("privacy: {secret: 123}", "usage_plugin.privacy.secret", "another type", "in quotes"),
    "two sources of the secret": ("privacy: {secret: %s, secret_file: x}" % ("ab" * 32), "usage_plugin.privacy", "found both", "remove one"),
    "a secret in place of its file": ("privacy: {secret_file: %s}" % ("ab" * 32), "usage_plugin.privacy.secret_file", "found a secret", "under secret"),
    "a file of the secret that is a list": ("privacy: {secret_file: []}", "usage_plugin.privacy.secret_file", "", "such as /run/secrets/usage"),
    "an unknown policy for short budgets": ("admission: {on_short_budget: cut}", "usage_plugin.admission.on_short_budget", "'cut'", "'deny' or 'clamp'"),
    "an unknown policy for a broken ledger": ("admission: {on_ledger_error: open}", "usage_plugin.admission.on_ledger_error", "'open'", "'deny' or 'allow'"),
    "an unknown policy for what is lost": ("admission: {on_lost: forget}", "usage_plugin.admission.on_lost", "'forget'", "'charge', 'charge_input' or 'release'"),
    "an unknown policy for what is not metered": ("admission: {on_unmetered: warn}", "usage_plugin.admission.on_unmetered", "'warn'", "expected allow, deny, or the USD"),
    "a negative flat cost": ("admission: {on_unmetered: -0.5}", "usage_plugin.admission.on_unmetered", "-0.5", "expected allow, deny, or the USD"),
    "an unlimited flat cost": ("admission: {on_unmetered: unlimited}", "usage_plugin.admission.on_unmetered", "'unlimited'", "expected allow, deny, or the USD"),
    "a flat cost beyond all bounds": ("admission: {on_unmetered: 10000001}", "usage_plugin.admission.on_unmetered", "10000001", "expected allow, deny, or the USD"),
    "a flat cost that is true": ("admission: {on_unmetered: yes}", "usage_plugin.admission.on_unmetered", "True", "expected allow, deny, or the USD"),
    "an unknown policy for cut streams": ("admission: {on_cut_stream: free}", "usage_plugin.admission.on_cut_stream", "'free'", "'estimate' or 'reserved'"),
    "one bound for all models": ("admission: {max_output_tokens: 500}", "usage_plugin.admission.max_output_tokens", "500", 'such as {"o3*": 32000}'),
    "a bound of nothing for a model": ('admission: {max_output_tokens: {"o3*": 0}}', "usage_plugin.admission.max_output_tokens.o3*", "0", "greater than or equal to 1"),
    "an unlimited bound for a model": ('admission: {max_output_tokens: {"o3*": unlimited}}', "usage_plugin.admission.max_output_tokens.o3*", "'unlimited'", "integer"),
    "a number for a model": ("admission: {max_output_tokens: {4.1: 500}}", "usage_plugin.admission.max_output_tokens", "4.1", "put quotes around it"),
    "a size without a unit": ("storage: {outbox_max: 1000000000}", "usage_plugin.storage.outbox_max", "1000000000", "MB, GB, MiB or GiB"),
    "a size below a megabyte": ("storage: {outbox_max: 500kB}", "usage_plugin.storage.outbox_max", "'500kB'", "at least 1MB"),
    "no size": ("storage: {outbox_max: 0MB}", "usage_plugin.storage.outbox_max", "'0MB'", "at least 1MB"),
    "a part of a gigabyte": ("storage: {outbox_max: 1.5GB}", "usage_plugin.storage.outbox_max", "'1.5GB'", "whole number"),
    "an unknown policy for a full outbox": ("storage: {on_outbox_full: drop}", "usage_plugin.storage.on_outbox_full", "'drop'", "'deny' or 'allow'"),
    "a policy of the store for the ledger": ("ledger: {outbox_max: 1GB}", "usage_plugin.ledger.outbox_max", "'1GB'", "unknown key"),
    "an octal amount": (limit(max_cost="010"), "usage_plugin.limits.0.max_cost", "found 010", "write a decimal number"),
    "an octal count": (limit(max_cost=None, max_requests="0100"), "usage_plugin.limits.0.max_requests", "found 0100", "octal"),
    "a count to the base of 60": (limit(max_cost=None, max_requests="1:30"), "usage_plugin.limits.0.max_requests", "found 1:30", "base 60"),
    "an amount to the base of 60": (limit(max_cost="1:30.5"), "usage_plugin.limits.0.max_cost", "found 1:30.5", "base 60"),
    "a hexadecimal amount": (limit(max_cost="0x10"), "usage_plugin.limits.0.max_cost", "found 0x10", "hexadecimal"),
    "a negative octal amount": (limit(max_cost="-010"), "usage_plugin.limits.0.max_cost", "found -010", "write a decimal number"),
    "an octal name in a list": (limit(match="{user: [ann, 007]}"), "usage_plugin.limits.0.match.user.1", "found 007", "quotes around it"),
    "a time for a duration": ("admission: {max_wait: 1:30}", "usage_plugin.admission.max_wait", "found 1:30", "base 60"),
    "unknown dimension": (limit(per="person"), "usage_plugin.limits.0.per", "'person'", "expected one of user, team"),
    "a dimension twice": (limit(per="[user, user]"), "usage_plugin.limits.0.per", "['user', 'user']", "once"),
    "global with another": (limit(per="[global, user]"), "usage_plugin.limits.0.per", "['global', 'user']", "global alone"),
    "no dimension at all": (limit(per="[]"), "usage_plugin.limits.0.per", "[]", "user"),
    "unknown dimension to match": (limit(match="{person: ann}"), "usage_plugin.limits.0.match", "'person'", "expected one of user, team"),
    "global to match": (limit(match="{global: x}"), "usage_plugin.limits.0.match", "'global'", "expected one of user, team"),
    "a match without a dimension": (limit(match="ann"), "usage_plugin.limits.0.match", "'ann'", "{user: ann}"),
    "a match with nothing to match": (limit(match="{user: []}"), "usage_plugin.limits.0.match", "[]", ""),
    "unquoted yes as a name": (limit(match="{user: yes}"), "usage_plugin.limits.0.match", "True", "put quotes around it"),
    "unquoted no in a list": (limit(match="{user: [ann, no]}"), "usage_plugin.limits.0.match", "False", "put quotes around it"),
    "unquoted number as a name": (limit(match="{user: 123}"), "usage_plugin.limits.0.match", "123", "put quotes around it"),
    "unquoted fraction as a name": (limit(match="{model: 4.1}"), "usage_plugin.limits.0.match", "4.1", "put quotes around it"),
    "unquoted date as a name": (limit(match="{model: 2026-01-01}"), "usage_plugin.limits.0.match", "2026", "put quotes around it"),
    "nothing as a name": (limit(match="{user: }"), "usage_plugin.limits.0.match", "None", "put quotes around it"),
    "an empty name": (limit(match='{user: ""}'), "usage_plugin.limits.0.match", "''", ""),
    "unquoted number in a group": ("groups: {power: [dana, 7]}", "usage_plugin.groups.power", "7", "put quotes around it"),
    "unquoted yes as a group": ("groups: {yes: [dana]}", "usage_plugin.groups", "True", "quotes"),
    "unknown group": (limit(match="{group: power}"), "usage_plugin", "'power'", "groups (none)"),
    "unknown group in an override": ("groups: {interns: [x]}\n" + limit(overrides="[{match: {group: power}, max_cost: 5}]"), "usage_plugin", "'power'", "groups (interns)"),
    "a name twice": ("limits:\n  - {name: a, per: user, window: day, max_cost: 5}\n  - {name: a, per: team, window: day, max_cost: 5}", "usage_plugin", "'a'", "expected unique names"),
    "a name that no header can carry": (limit(name='"täglich"'), "usage_plugin.limits.0.name", "'täglich'", "match"),
    "an empty name of a limit": (limit(name='""'), "usage_plugin.limits.0.name", "''", "match"),
    "a number as a name": (limit(name="123"), "usage_plugin.limits.0.name", "123", "string"),
    "bad zone": ("timezone: Mars/Olympus", "usage_plugin.timezone", "'Mars/Olympus'", "Europe/Berlin or UTC"),
    "empty zone": ('timezone: ""', "usage_plugin.timezone", "''", "Europe/Berlin or UTC"),
    "a folder of zones": ("timezone: Europe", "usage_plugin.timezone", "'Europe'", "Europe/Berlin or UTC"),
    "a zone out of the folder": ("timezone: ../../../etc/passwd", "usage_plugin.timezone", "etc/passwd", "Europe/Berlin or UTC"),
    "bad zone of a limit": (limit(timezone="CEST2"), "usage_plugin.limits.0.timezone", "'CEST2'", "Europe/Berlin or UTC"),
    "bad date": (limit(overrides="[{match: {user: a}, max_cost: 5, until: tomorrow}]"), "usage_plugin.limits.0.overrides.0.until", "'tomorrow'", "YYYY-MM-DD"),
    "a date that does not exist": (limit(overrides='[{match: {user: a}, max_cost: 5, until: "2026-02-30"}]'), "usage_plugin.limits.0.overrides.0.until", "'2026-02-30'", "YYYY-MM-DD"),
    "bad duration": ("cache: {cleanup_interval: soon}", "usage_plugin.cache.cleanup_interval", "'soon'", "1h"),
    "a duration without a unit": ("cache: {cleanup_interval: 3600}", "usage_plugin.cache.cleanup_interval", "3600", "1h"),
    "no duration": ("cache: {cleanup_interval: 0h}", "usage_plugin.cache.cleanup_interval", "'0h'", "1h"),
    "digits that are no digits": ("cache: {cleanup_interval: ٣h}", "usage_plugin.cache.cleanup_interval", "٣h", "1h"),
    "unknown action": (limit(action="refuse"), "usage_plugin.limits.0.action", "'refuse'", "'block', 'warn' or 'downgrade'"),
    "unknown source of identity": ("identity: {user: [jwt]}", "usage_plugin.identity.user", "'jwt'", "key, end_user, header:NAME or resolver:NAME"),
    "a header without a name": ('identity: {user: "header:"}', "usage_plugin.identity.user", "'header:'", "header:NAME"),
    "unknown policy": ("identity: {on_missing: ignore}", "usage_plugin.identity.on_missing", "'ignore'", "'shared' or 'deny'"),
    "allow_unpriced without money": (limit(max_cost=None, max_requests="5", allow_unpriced="x"), "usage_plugin.limits.0", "allow_unpriced", "max_cost"),
    "one request in a request": (limit(max_cost=None, max_requests="5", window="request"), "usage_plugin.limits.0", "max_requests", "longer window"),
    "limits that are no list": ("limits: {daily: 5}", "usage_plugin.limits", "", ""),
    "a limit that is no mapping": ("limits: [daily]", "usage_plugin.limits.0", "'daily'", ""),
}  # fmt: skip


@pytest.mark.parametrize(("section", "path", "found", "remedy"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_names_its_path_what_was_found_and_the_remedy(refused, tmp_path, section, path, found, remedy):
    """A mistake stops the start with its file, its path, the value found and the remedy."""
    message = refused(section)
    assert str(tmp_path / "config.yaml") in message
    lines = [line for line in message.splitlines() if f"{path}:" in line or f"{path}." in line]
    assert lines, message
    assert found in lines[0]
    assert remedy in lines[0]


def test_mistakes_name_their_lines(refused):
    """Each mistake has its line, and all of them are reported at once."""
    message = refused("""
        timezone: Mars
        limits:
          - name: daily
            per: user
            window: day
            max_cost: -5
          - name: other
            per: person
            window: day
            max_requests: 5
    """)
    assert "line 2: usage_plugin.timezone" in message
    assert "line 7: usage_plugin.limits.0.max_cost" in message
    assert "line 9: usage_plugin.limits.1.per" in message


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("timezone: UTC\ncontact: x\ntimezone: UTC", "line 4: usage_plugin.timezone: duplicate key"),
        ("cache:\n  size: 5\n  size: 5", "line 4: usage_plugin.cache.size: duplicate key"),
        ("limits:\n  - name: a\n    per: user\n    window: day\n    max_cost: 5\n    max_cost: 50", "line 7: usage_plugin.limits.0.max_cost: duplicate key"),
        ("limits:\n  - {name: a, per: user, window: day, max_cost: 5, match: {user: a, user: b}}", "line 3: usage_plugin.limits.0.match.user: duplicate key"),
        ("groups: {a: [x], a: [y]}", "line 2: usage_plugin.groups.a: duplicate key"),
    ],
)  # fmt: skip
def test_a_doubled_key_is_refused(refused, section, expected):
    """A duplicate key anywhere in the section is an error with the line of the second one."""
    assert expected in refused(section)


def test_a_doubled_section_is_refused(refused):
    """A duplicate section is an error."""
    assert "usage_plugin: duplicate key" in refused("timezone: UTC", "usage_plugin: {}\n")


@pytest.mark.parametrize("match", ["{user: *@x.com}", "{user: [ann, *@x.com]}", "{model: *-mini}", "{model: *}"])
def test_an_unquoted_glob_is_refused_with_a_hint_to_quote_it(refused, match):
    """A glob that YAML parses as an alias is an error with the advice to quote it."""
    message = refused(limit(match=match))
    assert "quotes" in message
    assert '"*@example.com"' in message


@pytest.mark.parametrize(
    "text",
    [
        "usage_plugin: {",
        "usage_plugin: [",
        "usage_plugin:\n\t- a",
        "a: b: c",
        "\x00",
        "usage_plugin: !!python/object:os.system {}",
    ],
)
def test_what_is_no_yaml_is_an_error(tmp_path, text):
    """Invalid YAML, or YAML with code in it, is a ConfigError that names the file."""
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(path)


@pytest.mark.parametrize("section", ["just text", "- a\n- b", "42"])
def test_a_section_that_is_no_mapping_is_an_error(refused, section):
    """A section that is text, a list or a number is an error."""
    assert "usage_plugin: expected keys such as limits; found" in refused(section)


@pytest.mark.parametrize("section", ["limits: &a [*a]", "groups: &a {power: *a}"])
def test_yaml_that_contains_itself_is_an_error(refused, section):
    """A value that contains itself is an error, not an endless loop."""
    refused(section)


def test_anchors_and_merges_may_be_used(load):
    """YAML's own means of repetition work."""
    config = load("""
        limits:
          - &first {name: a, per: user, window: day, max_cost: 5}
          - {<<: *first, name: b}
    """)
    assert [(rule.name, rule.amount) for rule in config.limit_set().limits] == [("a", 5 * 10**9), ("b", 5 * 10**9)]


@pytest.mark.parametrize("written", ["0", "10", "1_000", "+5", '"010"', "08", "0.10", "00.5", "1_0.5"])
def test_numbers_that_are_what_they_look_like_are_read(load, written):
    """Decimal numbers are read unchanged, with the underscores and quotes that YAML allows."""
    expected = float(written.strip('"').replace("_", ""))
    assert load(limit(max_cost=written)).limit_set().limits[0].amount == expected * 10**9


@pytest.mark.parametrize("value", ["010", "0x1F", "1:30"])
def test_a_variable_with_a_disguised_number_is_an_error(refused, monkeypatch, value):
    """A number from the environment is never silently another one."""
    monkeypatch.setenv("DAILY", value)
    message = refused(limit(max_cost="os.environ/DAILY"))
    assert f"DAILY is {value}" in message
    assert "write a decimal number" in message


def test_long_values_are_cut_in_messages(refused):
    """A long value is cut in the message."""
    assert len(refused(f"timezone_: {'x' * 100_000}")) < 1_000


def test_the_configuration_cannot_be_changed(load):
    """A loaded configuration is immutable."""
    with pytest.raises(ValueError, match="frozen"):
        load("timezone: UTC").contact = "x"


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.dates(), st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
    st.sampled_from(["unlimited", "user", "day", "UTC", "sqlite", "*", "os.environ/HOME", "5"]),
)  # fmt: skip
keys = st.sampled_from([
    *Config.model_fields, "name", "per", "window", "match", "overrides", "max_cost", "max_requests", "until", "user",
    "group", "backend", "options", "size", "<<", "power",
]) | st.text(st.characters(exclude_categories=("Cs",)), max_size=3)  # fmt: skip
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=8
)


@given(st.dictionaries(st.sampled_from([*Config.model_fields]), values, max_size=3))
def test_whatever_is_written_is_a_configuration_or_a_mistake(tmp_path_factory, section):
    """Any YAML under any of our keys is a working configuration or a ConfigError, never another error."""
    path = tmp_path_factory.getbasetemp() / "whatever.yaml"
    path.write_text(yaml.safe_dump({"usage_plugin": section}, allow_unicode=True), encoding="utf-8")
    try:
        config = load_config(path)
    except ConfigError:
        return
    config.limit_set().matching(Subjects(user="ann", team="t", tags=("x",)), "m", "p")


limit_values = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["a", "b"]),
        "per": st.sampled_from(["user", "global"]) | st.lists(st.sampled_from(["user", "team", "tag", "session"]), max_size=3),
        "window": st.sampled_from([*WINDOW_KINDS, {"rolling": "5h"}, {"rolling": "10s"}, {"rolling": "1s"}]),
    },
    optional={
        "max_cost": st.integers(-1, 10) | st.just("unlimited") | leaves,
        "max_requests": st.integers(-1, 10) | leaves,
        "match": st.dictionaries(st.sampled_from(["user", "team", "group", "model"]), leaves | st.lists(leaves, max_size=2), max_size=2),
        "overrides": st.lists(
            st.fixed_dictionaries(
                {"match": st.dictionaries(st.sampled_from(["user", "team"]), leaves, max_size=1)},
                optional={"max_cost": st.integers(0, 5) | leaves, "until": st.dates() | leaves},
            ),
            max_size=2,
        ),
        "dry_run": st.booleans() | leaves,
        "timezone": st.sampled_from(["UTC", "Europe/Berlin"]) | leaves,
        "week_starts": st.sampled_from(["sunday", "monday"]) | leaves,
        "action": st.sampled_from(["block", "warn", "downgrade"]) | leaves,
        "downgrade_to": st.just("m") | leaves,
        "alert_at": st.lists(st.integers(0, 100), max_size=3) | leaves,
        "count_from": st.sampled_from(["window", "now"]) | leaves,
        "on_unbounded": st.sampled_from(["deny", "allow"]) | leaves,
        "max_parallel_requests": st.integers(-1, 10) | leaves,
    },
)  # fmt: skip


@given(st.lists(limit_values, max_size=2))
def test_whatever_limits_are_written_can_be_used_or_are_a_mistake(tmp_path_factory, limits):
    """Limits that load can be matched, and their accounts named, for any valid text."""
    path = tmp_path_factory.getbasetemp() / "limits.yaml"
    path.write_text(yaml.safe_dump({"usage_plugin": {"limits": limits}}, allow_unicode=True), encoding="utf-8")
    try:
        config = load_config(path)
    except ConfigError:
        return
    for found in config.limit_set().matching(Subjects(user="ann", team="t", tags=("x", "y")), "m", "p"):
        assert set(found.limit.names_of(found.subject)) == set(found.limit.per) - {"global"}
        window = found.place_at(1_796_144_400_000_000).window
        assert window.start <= 1_796_144_400_000_000 < window.end
        found.amount_at(1_796_144_400_000_000)
        found.limit.reset_of(window)


# ── retention and privacy ────────────────────────────────────────────────────────────────────────────────────────────


def test_history_is_kept_for_a_while_by_default(load):
    """By default, events are kept for 90 days, daily sums for five years, and names are stored unchanged."""
    config = load("timezone: UTC")
    assert config.retention.model_dump() == {"events": 90, "daily": 1830, "max_size": None}
    assert config.privacy.user == "plain"


def test_retention_is_written_in_days_years_and_bytes(load):
    """Retention is written in `d`, in `y` or as `unlimited`, and `max_size` as a size."""
    found = load("retention: {events: 2y, daily: unlimited, max_size: 10GB}").retention
    assert found.model_dump() == {"events": 732, "daily": None, "max_size": 10**10}


@pytest.mark.parametrize(
    ("section", "remedy"),
    [
        ("retention: {events: 90}", "expected days or years between 1d and 100y"),
        ("retention: {events: 12h}", "expected days or years"),
        ("retention: {events: 0d}", "expected days or years"),
        ("retention: {daily: 101y}", "expected days or years"),
        ("retention: {events: 90d, daily: 30d}", "lengthen daily or shorten events"),
        ("retention: {events: unlimited}", "lengthen daily or shorten events"),
        ("retention: {max_size: 10}", "expected a size"),
        ("retention: {monthly: 1y}", "unknown key"),
        ("privacy: {user: hashed}", "'plain' or 'pseudonym'"),
    ],
)
def test_retention_that_cannot_be_meant_is_refused(load, section, remedy):
    """A bare number, less than a day, and sums that end before their events are mistakes with a remedy."""
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        load(section)
