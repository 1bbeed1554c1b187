"""`check` names valid configuration that never takes effect: rules that match nothing, callbacks after ours."""

from __future__ import annotations

import itertools
import textwrap
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.domain.globs import meet

HEAD = """\
model_list:
  - {model_name: sonnet, litellm_params: {model: anthropic/claude-sonnet-4-5, api_key: x}}
  - {model_name: gpt-4o, litellm_params: {model: openai/gpt-4o, api_key: x}}
  - {model_name: team-internal-1, litellm_params: {model: openai/gpt-4o-mini, api_key: x}, model_info: {team_id: red, team_public_model_name: mini}}
litellm_settings: {callbacks: ["usage_plugin.proxy.callback"]}
router_settings: {model_group_alias: {claude: sonnet, quiet: {model: gpt-4o, hidden: true}}}
"""
POSTGRES = "storage: {backend: postgres, options: {url: 'postgresql://db/usage'}}"
LIMIT = "name: l, per: user, window: day, max_cost: 5"


@pytest.fixture
def warnings(tmp_path, run):
    """Check a configuration with this section, and give the warnings."""

    def warnings(section, head=HEAD, **files):
        (tmp_path / "checked.yaml").write_text(
            f"{head}usage_plugin:\n{textwrap.indent(textwrap.dedent(section), '  ')}"
        )
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        found = run.json("check", "--config", str(tmp_path / "checked.yaml"))
        assert found["ok"]
        return found["warnings"]

    return warnings


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        ('match: {model: "claude-sonnet-*"}', 'no model_name fits match.model "claude-sonnet-*", so the limit never applies; it fits the provider\'s model of "sonnet"'),
        ("match: {model: sonet}", 'no model_name fits match.model "sonet", so the limit never applies; did you mean "sonnet"?'),
        ("match: {model: claude}", 'it is an alias; requests are billed as "sonnet": write that'),
        ("match: {model: quiet}", 'requests are billed as "gpt-4o"'),
        ("match: {model: [sonnet, opus]}", 'no model_name fits match.model "opus"; '),
        ("match: {model: zzz}", 'the model names are "sonnet", "gpt-4o"'),
        ("match: {provider: bedrock}", 'no model of model_list has a provider that fits "bedrock", so the limit never applies; the providers are anthropic, openai'),
        ("action: downgrade, downgrade_to: haikuu", 'no model_name fits downgrade_to "haikuu", so a downgraded request fails'),
        ('allow_unpriced: ["local-*"]', 'no model_name fits allow_unpriced "local-*"'),
        ("overrides: [{match: {model: opus}, max_cost: 9}]", 'limit l, override 1: no model_name fits match.model "opus", so the override never applies'),
        ('match: {model: "gpt-*"}, overrides: [{match: {model: sonnet}, max_cost: 9}]', "fits both its match.model \"sonnet\" and the limit's"),
    ],
)  # fmt: skip
def test_a_glob_without_a_match_is_named_with_the_remedy(warnings, limit, found):
    """A glob or name without a match is one line, with the limit, the glob and the remedy."""
    (warning,) = warnings(f"limits: [{{{LIMIT}, {limit}}}]\n")
    assert warning.startswith("limit l")
    assert found in warning


@pytest.mark.parametrize(
    "limit",
    [
        "match: {model: sonnet}", "match: {model: 'so*'}", "match: {model: mini}", "match: {model: team-internal-1}", "match: {model: '*'}",
        "match: {model: '[gs]*'}", "match: {provider: openai}", "match: {provider: ['anthrop*', bedrock]}", "match: {user: nobody-there}",
        "match: {team: red}", "action: downgrade, downgrade_to: claude", "action: downgrade, downgrade_to: mini",
        "action: downgrade, downgrade_to: gpt-4o", "allow_unpriced: '*'", "overrides: [{match: {user: x}, max_cost: 9}]",
        "match: {model: 'gpt-*'}, overrides: [{match: {model: '*4o'}, max_cost: 9}]",
    ],
)  # fmt: skip
def test_a_rule_that_can_apply_causes_no_warning(warnings, limit):
    """Names, globs, aliases, team models and dimensions that no configuration lists raise no false alarm."""
    assert warnings(f"limits: [{{{LIMIT}, {limit}}}]\n") == []


@pytest.mark.parametrize(
    ("wildcard", "glob", "applies"),
    [
        ("*", "anything", True), ("openai/*", "openai/gpt-4o", True), ("openai/*", "*gpt*", True), ("openai/*", "gpt-4o", False),
        ("openai/*", "anthropic/*", False), ("*/eu-*", "bedrock/eu-1", True), ("*/eu-*", "bedrock/us-1", False), ("a?c/*", "abc/x", False),
    ],
)  # fmt: skip
def test_wildcards_serve_all_matching_models(warnings, wildcard, glob, applies):
    """A deployment for many models counts as each of them, and only those."""
    head = f"""\
model_list:
  - {{model_name: "{wildcard}", litellm_params: {{model: "openai/*", api_key: x}}}}
litellm_settings: {{callbacks: usage_plugin.proxy.callback}}
"""
    assert (warnings(f"limits: [{{{LIMIT}, match: {{model: '{glob}'}}}}]\n", head) == []) is applies
    if "*" not in glob:
        assert (warnings(f"limits: [{{{LIMIT}, action: downgrade, downgrade_to: '{glob}'}}]\n", head) == []) is applies


@pytest.mark.parametrize(
    "settings",
    [
        "general_settings: {store_model_in_db: true}\n", "router_settings: {router_general_settings: {pass_through_all_models: true}}\n",
        "general_settings: {store_model_in_db: os.environ/IN_DB}\n",
    ],
)  # fmt: skip
def test_models_from_elsewhere_are_no_false_alarm(warnings, monkeypatch, settings):
    """Where LiteLLM serves models that the YAML does not list, nothing is known to fit nothing."""
    monkeypatch.setenv("IN_DB", "True")
    head = f"model_list: [{{model_name: a, litellm_params: {{model: openai/a}}}}]\nlitellm_settings: {{callbacks: usage_plugin.proxy.callback}}\n{settings}"
    assert warnings(f"limits: [{{{LIMIT}, match: {{model: b}}}}]\n", head) == []


def test_output_limits_for_no_model_are_named(warnings):
    """So are the globs of admission.max_output_tokens."""
    (warning,) = warnings('admission: {max_output_tokens: {"o3*": 32000, sonnet: 100}}\n')
    assert 'admission.max_output_tokens: no model_name fits "o3*"' in warning


def test_an_empty_group_is_named(warnings):
    """A limit for a group without members never applies, unless a resolver may provide some."""
    (warning,) = warnings(f"groups: {{power: []}}\nlimits: [{{{LIMIT}, match: {{group: power}}}}]\n")
    assert "group power has no members" in warning


def test_a_model_from_a_variable_that_is_not_set_is_named(warnings, monkeypatch):
    """A price cannot be known without it; with it, the model is priced as its value."""
    head = HEAD.replace("openai/gpt-4o,", "os.environ/THE_MODEL,")
    (warning,) = warnings("{}", head)
    assert "model gpt-4o: os.environ/THE_MODEL is not set here" in warning
    monkeypatch.setenv("THE_MODEL", "openai/gpt-4o")
    assert warnings("{}", head) == []


HOOKS = """
    from litellm.integrations.custom_logger import CustomLogger
    class Mine(CustomLogger):
        async def {hook}(self, *arguments): ...
    mine = Mine()
"""


@pytest.mark.parametrize(
    ("callbacks", "hook", "named"),
    [
        ("[usage_plugin.proxy.callback, hooks.mine]", "async_pre_call_hook", True),
        ("[usage_plugin.proxy.callback, hooks.mine]", "async_pre_call_deployment_hook", True),
        ("[usage_plugin.proxy.callback, hooks.mine]", "async_log_success_event", False),
        ("[hooks.mine, usage_plugin.proxy.callback]", "async_pre_call_hook", False),
        ("[usage_plugin.proxy.callback, installed.package.callback]", "async_log_success_event", True),
        ("[usage_plugin.proxy.callback, presidio]", "async_log_success_event", True),
        ("[usage_plugin.proxy.callback, prometheus, langfuse]", "async_log_success_event", False),
        ("usage_plugin.proxy.callback", "async_pre_call_hook", False),
    ],
)  # fmt: skip
def test_callbacks_after_ours_that_may_change_a_request_are_named(warnings, callbacks, hook, named):
    """Where the order matters, the callback and the remedy are one line; passive callbacks may have any position."""
    head = HEAD.replace('["usage_plugin.proxy.callback"]', callbacks)
    found = warnings("{}", head, hooks=HOOKS.format(hook=hook))
    assert len(found) == named
    if named:
        assert callbacks.strip("[]").split(", ")[-1] in found[0]
        assert "list usage_plugin.proxy.callback last" in found[0]


def test_a_class_of_an_unknown_kind_may_change_requests(warnings):
    """Hooks that a callback inherits from another package are not visible."""
    head = HEAD.replace('["usage_plugin.proxy.callback"]', "[usage_plugin.proxy.callback, hooks.mine]")
    source = "from company import Guard\nclass Mine(Guard): ...\nmine = Mine()\n"
    assert len(warnings("{}", head, hooks=source)) == 1


def test_warnings_are_shown_in_the_table_and_by_the_doctor(tmp_path, run):
    """Each is one line of the output, and the exit code stays 0."""
    path = tmp_path / "checked.yaml"
    path.write_text(f"{HEAD}usage_plugin: {{limits: [{{{LIMIT}, match: {{model: opus}}}}]}}\n")
    (line,) = [
        line for line in run.ok("check", "--config", str(path)).splitlines() if "opus" in line and "Warning" in line
    ]
    assert "no model_name fits" in line
    doctor = run("doctor", "--static", "--config", str(path), "--format", "json")
    assert 'no model_name fits match.model \\"opus\\"' in doctor.stdout


ELEMENTS = st.lists(st.sampled_from(["a", "b", "*", "?", "[ab]", "[!a]", "[a-b]"]), max_size=4).map("".join)
NAMES = ["".join(name) for size in range(8) for name in itertools.product("abc", repeat=size)]


@given(st.lists(ELEMENTS, min_size=1, max_size=2))
def test_globs_meet_where_a_name_fits_them_all(globs):
    """Whether some name fits several globs is decided as trying every name would."""
    assert meet(globs) == any(all(fnmatchcase(name, glob) for glob in globs) for name in NAMES)


@pytest.mark.parametrize("globs", [["*a" * 60, "*b" * 60], ["?" * 3_000, "*" * 3_000], ["[a-\U0010ffff]*" * 20] * 3])
def test_globs_without_end_are_decided_at_once(globs):
    """A hostile pattern takes no time; an undecided comparison counts as a match."""
    assert meet(globs) in (True, False)


@pytest.mark.parametrize(
    ("storage", "found"), [("", "(sqlite)"), ("storage: {backend: partitioned}", "(partitioned)"), (POSTGRES, None)]
)
def test_hosts_that_share_a_ledger_need_a_shared_store(warnings, storage, found):
    """Else each keeper writes to the store of its own host, and the history is split."""
    shared = f"""
        ledger: {{backend: postgres, options: {{url: "postgresql://db/usage"}}}}
        privacy: {{secret: {"ab" * 32}}}
        {storage}
    """
    texts = [text for text in warnings(shared) if "hosts share the ledger postgres" in text]
    assert [found in text for text in texts] == ([True] if found else [])
