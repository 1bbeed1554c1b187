"""The command line reads the proxy's YAML as LiteLLM does: included files, and values from the environment."""

from __future__ import annotations

import asyncio
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.cli import main
from usage_plugin.config import ProxyYaml, load_config
from usage_plugin.config.proxy_yaml import _BLOCKED_VARIABLES
from usage_plugin.errors import ConfigError, UsagePluginError

MODEL = "{model_name: %s, litellm_params: {model: %s, api_key: x}}"
OURS = "usage_plugin: {data_dir: ./d, limits: [{name: d, per: user, window: day, max_cost: 5}]}\n"
A, B, C = (MODEL % (name, f"openai/{name}") for name in "abc")

SHAPES: dict[str, dict[str, str]] = {
    "alone": {"config.yaml": f"model_list: [{A}]\n{OURS}"},
    "a section in an included file": {"config.yaml": f"include: [u.yaml]\nmodel_list: [{A}]\n", "u.yaml": OURS},
    "models in included files": {
        "config.yaml": f"include: [b.yaml, c.yaml]\nmodel_list: [{A}]\n{OURS}",
        "b.yaml": f"model_list: [{B}]\n",
        "c.yaml": f"model_list:\n  - {C}\n",
    },
    "all models in included files": {"config.yaml": f"include: [b.yaml]\n{OURS}", "b.yaml": f"model_list: [{B}]\n"},
    "an include of an include": {
        "config.yaml": f"include: [sub/b.yaml]\nmodel_list: [{A}]\n",
        "sub/b.yaml": f"include: [c.yaml]\nmodel_list: [{B}]\n",
        "sub/c.yaml": f"model_list: [{C}]\n{OURS}",
    },
    "an include that is found beside the first file": {
        "config.yaml": f"include: [sub/b.yaml]\nmodel_list: [{A}]\n{OURS}",
        "sub/b.yaml": f"include: [c.yaml]\nmodel_list: [{B}]\n",
        "c.yaml": f"model_list: [{C}]\n",
    },
    "an include that is there twice": {
        "config.yaml": f"include: [sub/b.yaml]\nmodel_list: [{A}]\n{OURS}",
        "sub/b.yaml": "include: [c.yaml]\n",
        "sub/c.yaml": f"model_list: [{B}]\n",
        "c.yaml": f"model_list: [{C}]\n",
    },
    "files that include each other": {
        "config.yaml": f"include: [b.yaml, b.yaml]\nmodel_list: [{A}]\n{OURS}",
        "b.yaml": f"include: [config.yaml]\nmodel_list: [{B}]\n",
    },
    "settings that replace others": {
        "config.yaml": f"include: [b.yaml]\nmodel_list: [{A}]\nlitellm_settings: {{callbacks: [x], num_retries: 1}}\n{OURS}",
        "b.yaml": "litellm_settings: {callbacks: usage_plugin.proxy.callback}\nmodel_list: {x: 1}\n",
    },
    "an empty include": {"config.yaml": f"include: [b.yaml]\nmodel_list: [{A}]\n{OURS}", "b.yaml": "# nothing\n"},
    "no include at all": {"config.yaml": f"include: []\nmodel_list: [{A}]\n{OURS}"},
    "models from the environment": {
        "config.yaml": f"model_list: [{MODEL % ('e', 'os.environ/SET_MODEL')}, {MODEL % ('u', 'os.environ/NOT_SET')}]\n{OURS}"
    },
    "values from the environment": {
        "config.yaml": "model_list:\n  - model_name: os.environ/SET_NAME\n    litellm_params: {model: openai/x, api_key: os.environ/SET_NAME,"
        " flag: os.environ/SET_TRUE, rpm: os.environ/SET_NUMBER, tags: [os.environ/SET_NAME], deep: {a: [{b: os.environ/SET_NAME}]}}\n"
        "    model_info: {base_model: os.environ/SET_MODEL}\n"
        "general_settings: {master_key: os.environ/NOT_SET, database_url: os.environ/SET_NAME}\n"
        "litellm_settings: {callbacks: os.environ/SET_NAME, cache: os.environ/SET_FALSE, list: [os.environ/SET_NAME, [{c: os.environ/SET_NAME}]]}\n"
        + OURS
    },
    "credentials": {
        "config.yaml": "credential_list:\n  - {credential_name: c, credential_values: {api_key: os.environ/SET_NAME}, credential_info: {}}\n"
        f"model_list: [{{model_name: a, litellm_params: {{model: openai/a, litellm_credential_name: c}}}}]\n{OURS}"
    },
    "anchors and merges": {
        "config.yaml": f"x-common: &c {{api_key: x, rpm: 5}}\nmodel_list:\n  - {{model_name: a, litellm_params: {{<<: *c, model: openai/a}}}}\n{OURS}"
    },
    "merged at the top": {
        "config.yaml": f"x: &base\n  model_list: [{A}]\n  general_settings: {{a: 1}}\n<<: *base\ngeneral_settings: {{b: 2}}\n{OURS}"
    },
    "a key that stands twice": {"config.yaml": f"model_list: [{A}]\nmodel_list: [{B}]\n{OURS}"},
    "prices": {
        "config.yaml": f"model_list: [{{model_name: a, litellm_params: {{model: openai/a, input_cost_per_token: 1.5e-07, output_cost_per_token: 1e-6}}}}]\n{OURS}"
    },
}  # fmt: skip
NESTED = {
    "an include of an include", "an include that is found beside the first file", "an include that is there twice",
    "files that include each other",
}  # fmt: skip
"""Files that LiteLLM before 1.106 does not read: there only the first file's includes count."""
READS_NESTED = find_spec("litellm.proxy.common_utils.config_includes") is not None

ENVIRONMENT = {
    "SET_MODEL": "openai/gpt-4o", "SET_NAME": "some-name", "SET_TRUE": " True ", "SET_FALSE": "false", "SET_NUMBER": "5",
}  # fmt: skip


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder / "config.yaml"


def as_litellm_reads(path: Path) -> dict[str, Any]:
    from litellm.proxy import proxy_server  # noqa: PLC0415  # imported by `environment`

    return dict(asyncio.run(proxy_server.ProxyConfig().get_config(str(path))))


def as_we_read(path: Path) -> dict[str, Any]:
    found = ProxyYaml(path)
    return {name: found.value(name, exact=False) for name in found.document()}


@pytest.fixture(autouse=True)
def environment(litellm_proxy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.setattr(litellm_proxy, "user_config_file_path", None)


@pytest.mark.parametrize("shape", SHAPES)
def test_both_see_the_same_document(tmp_path: Path, shape: str) -> None:
    """Each section of the configuration is the same as LiteLLM's."""
    if shape in NESTED and not READS_NESTED:
        pytest.skip("this LiteLLM reads no includes of includes")
    path = write(tmp_path, SHAPES[shape])
    theirs = as_litellm_reads(path)
    theirs.pop("usage_plugin", None)
    ours = as_we_read(path)
    ours.pop("usage_plugin", None)
    assert ours == theirs


@pytest.mark.parametrize("shape", SHAPES)
def test_the_command_line_reads_every_shape(tmp_path: Path, shape: str) -> None:
    """The limit is in force, whichever file it is in, and its paths are relative to the proxy's YAML."""
    path = write(tmp_path, SHAPES[shape])
    config = load_config(path)
    assert [limit.name for limit in config.limits] == ["d"]
    assert config.data_dir == (tmp_path / "d").resolve()
    assert "d: 5.00 usd per user and day" in CliRunner().invoke(main, ["--config", str(path), "check"]).output


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.yaml": "include: b.yaml\nmodel_list: []\n"}, "include: expected a list of paths; found 'b.yaml'"),
        ({"config.yaml": "include: [5]\nmodel_list: []\n"}, "include: expected a list of paths"),
        ({"config.yaml": "include:\nmodel_list: []\n"}, "include: expected a list of paths; found 'None'"),
        ({"config.yaml": "include: [b.yaml]\nmodel_list: []\n"}, r"Cannot read .*b\.yaml: No such file or directory. include in"),
        ({"config.yaml": "include: [b.yaml]\nmodel_list: []\n", "b.yaml": "- a\n"}, r"Cannot include .*b\.yaml"),
        ({"config.yaml": "include: [b.yaml]\nmodel_list: []\n", "b.yaml": "just text"}, r"Cannot include .*b\.yaml"),
        ({"config.yaml": "include: [b.yaml]\nmodel_list: []\n", "b.yaml": "a: [\n"}, r"Invalid YAML in .*b\.yaml"),
    ],
)  # fmt: skip
def test_what_litellm_refuses_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    """An include that LiteLLM refuses to start with is an error of the plugin too, and names the file."""
    path = write(tmp_path, files)
    with pytest.raises(Exception, match=r".+"):
        as_litellm_reads(path)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_section_in_two_files_is_refused(tmp_path: Path) -> None:
    """LiteLLM would use the last section, and silently lose the limits of the other."""
    path = write(tmp_path, {"config.yaml": f"include: [b.yaml]\nmodel_list: []\n{OURS}", "b.yaml": OURS})
    with pytest.raises(
        ConfigError, match=r"usage_plugin: found in .*config\.yaml and .*b\.yaml; write it in one of them"
    ):
        load_config(path)


def test_mistakes_name_the_file_they_are_in(tmp_path: Path) -> None:
    """An error gives the line number within the included file."""
    path = write(
        tmp_path,
        {"config.yaml": "include: [b.yaml]\nmodel_list: []\n", "b.yaml": "# one\nusage_plugin: {cache: {size: 0}}\n"},
    )
    with pytest.raises(ConfigError, match=r"Invalid configuration: .*b\.yaml\n  line 2: usage_plugin\.cache\.size"):
        load_config(path)


def test_variables_of_the_yaml_are_there_for_our_section(
    litellm_proxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiteLLM sets `environment_variables` before it imports the plugin; the command line knows them too."""
    monkeypatch.setenv("HERE", "here")
    monkeypatch.setenv("REPLACED", "old")
    path = write(
        tmp_path,
        {
            "config.yaml": "model_list: []\nenvironment_variables: {DECLARED: os.environ/HERE, REPLACED: new, PATH: mine, NUMBER: 7}\n"
            "usage_plugin: {contact: os.environ/DECLARED, groups: {a: [os.environ/REPLACED, os.environ/PATH]}}\n"
        },
    )
    config = load_config(path)
    assert config.contact == "here"
    assert config.groups["a"] == ("new", os.environ["PATH"])
    assert litellm_proxy.ProxyConfig._BLOCKED_ENV_KEYS == _BLOCKED_VARIABLES


def test_models_from_the_environment_are_priced_as_their_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the variable is set, the model has its value's price; otherwise it is listed with the reason."""
    path = write(tmp_path, SHAPES["models from the environment"])
    text = CliRunner().invoke(main, ["--config", str(path), "check"]).output
    assert text.split("cost limits:")[1].split() == ["u"]
    assert "model u: os.environ/NOT_SET is not set here" in text
    monkeypatch.setenv("NOT_SET", "anthropic/claude-sonnet-4-5")
    assert "Without a price" not in CliRunner().invoke(main, ["--config", str(path), "check"]).output


LEAVES = st.sampled_from(
    [1, "x", True, None, "os.environ/SET_NAME", "os.environ/NOT_SET", "os.environ/SET_TRUE", "sk-os.environ/X"]
)
DOCUMENT = st.dictionaries(
    st.sampled_from(["model_list", "general_settings", "litellm_settings", "router_settings", "other"]),
    st.lists(st.dictionaries(st.sampled_from("ab"), LEAVES | st.lists(LEAVES, max_size=2), max_size=2) | LEAVES, max_size=3)
    | st.dictionaries(st.sampled_from("abc"), LEAVES | st.lists(LEAVES, max_size=2), max_size=3),
    max_size=4,
)  # fmt: skip


@pytest.mark.skipif(not READS_NESTED, reason="this LiteLLM reads no includes of includes")
@given(st.lists(st.tuples(DOCUMENT, st.lists(st.integers(0, 3), max_size=3)), min_size=1, max_size=4))
def test_any_files_are_merged_alike(tmp_path_factory: pytest.TempPathFactory, drawn: list[Any]) -> None:
    """Any combination of includes gives the same result as in LiteLLM."""
    folder = tmp_path_factory.mktemp("merged")
    for at, (document, includes) in enumerate(drawn):
        text = {**document, "include": [f"{n}.yaml" for n in includes if n < len(drawn)]}
        if not any(
            isinstance(document.get(name), list) for name in ("general_settings", "litellm_settings", "router_settings")
        ):
            (folder / f"{at}.yaml").write_text(yaml.safe_dump(text))
        else:
            (folder / f"{at}.yaml").write_text(yaml.safe_dump({"include": text["include"], "other": [at]}))
    try:
        theirs = as_litellm_reads(folder / "0.yaml")
    except Exception:  # noqa: BLE001  # the reason of LiteLLM does not matter
        theirs = {}
    if theirs:
        assert as_we_read(folder / "0.yaml") == theirs
    else:
        try:
            ours = as_we_read(folder / "0.yaml")
        except UsagePluginError:
            ours = {}
        assert isinstance(ours, dict)
