"""A configured secret of the pseudonyms serves every command, and no output has it."""

from __future__ import annotations

import json

import pytest

from tests.support.postgres import PostgresServer, new_schema, postgres
from usage_plugin.config import load_config
from usage_plugin.errors import ConfigError, SecretError
from usage_plugin.runtime import Parts
from usage_plugin.testing.builders import NOON
from usage_plugin.tracking.privacy.secret import note_secret

__all__ = ["postgres"]

SECRET, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 4


@pytest.fixture
def is_shared(postgres: PostgresServer) -> str:
    """The lines of a ledger on a server."""
    options = {"url": postgres.url, "schema": new_schema()}
    return f"  ledger: {{backend: postgres, options: {json.dumps(options)}}}\n"


@pytest.fixture
def configure(config_path, monkeypatch):
    """Return a function that adds lines to the section, with a secret in the environment."""
    monkeypatch.setenv("USAGE_PLUGIN_SECRET", SECRET)
    plain = config_path.read_text()

    def configure(*lines: str):
        config_path.write_text(plain + "".join(lines))
        return load_config(config_path)

    return configure


def privacy(**keys: str) -> str:
    return f"  privacy: {json.dumps(keys)}\n"


FROM_ENVIRONMENT = privacy(user="pseudonym", secret="os.environ/USAGE_PLUGIN_SECRET")


def begin(config) -> Parts:
    """Begin a ledger with the secret of the configuration, as the first start of a proxy does."""
    parts = Parts(config)
    opened = parts.open_ledger()
    note_secret(opened.operations, parts.make_pseudonyms(), parts.secret, NOON)
    opened.close()
    return parts


@pytest.mark.parametrize("written", ["secret", "secret_file"])
def test_all_commands_use_the_configured_secret(configure, run, config_path, written):
    """No file is created in the data folder, and no command, representation or exported model shows the value."""
    (config_path.parent / "mounted").write_text(f"{SECRET}\n")
    value = "os.environ/USAGE_PLUGIN_SECRET" if written == "secret" else "mounted"
    config = configure(privacy(user="pseudonym", **{written: value}))
    parts = begin(config)
    run.ok("profile", "eva", "--tier", "gold")
    name = parts.make_pseudonyms().of_person("eva")
    assert name in run.ok("profiles")
    outputs = [
        run("--help").output,
        *(run(*words).output for words in (["check"], ["status"], ["explain", "--user", "eva"], ["limits"], ["plugins"])),
        *(run(*words, "--format", "json").output for words in (["check"], ["status"], ["profiles", "--user", "eva"])),
        run("doctor", "--static").output,
        repr(config), str(config), str(config.model_dump()), config.privacy.model_dump_json(), repr(vars(parts)),
    ]  # fmt: skip
    assert [text for text in outputs if SECRET[:16] in text] == []
    assert not parts.secret_path.exists()


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        ({"secret": SECRET[:-1]}, "63 characters"),
        ({"secret": SECRET + "0"}, "65 characters"),
        ({"secret": ""}, "openssl rand -hex 32"),
        ({"secrets": SECRET}, "unknown key"),
        ({"user": SECRET}, "'plain' or 'pseudonym'"),
        ({"secret": SECRET, "secret_file": "mounted"}, "remove one"),
        ({"secret_file": SECRET}, "write it under secret"),
        ({"secret_file": "absent"}, "was not found"),
        ({"secret_file": "."}, "cannot be read"),
        ({"secret_file": "wrong"}, "not a valid secret"),
    ],
)
def test_an_invalid_secret_is_named_without_its_value(configure, run, config_path, written, remedy):
    """`check` and every other command name the key and the remedy, and never a wrong value either."""
    (config_path.parent / "wrong").write_text(SECRET[:-1])
    begin(configure(FROM_ENVIRONMENT))
    config_path.write_text(config_path.read_text().replace(FROM_ENVIRONMENT, privacy(**written)))
    for words in (["check"], ["limits"], ["profile", "eva", "--tier", "gold"]):
        result = run(*words)
        assert result.exit_code == 1
        assert "usage_plugin.privacy" in result.output
        assert remedy in result.output
        assert SECRET[:16] not in result.output


def test_a_misspelt_place_does_not_show_the_secret(configure, run):
    """Not even where the secret takes the place of a section."""
    with pytest.raises(ConfigError):
        configure(f"  privacy: {SECRET}\n")
    result = run("check")
    assert result.exit_code == 1
    assert SECRET[:16] not in result.output


def test_a_shared_ledger_needs_a_configured_secret(configure, run, config_path, is_shared):
    """Otherwise each host would create its own; the error says how to make one, and how to keep the present one."""
    config = configure(is_shared)
    with pytest.raises(
        ConfigError, match=r"usage_plugin\.privacy\.secret: .* hosts share the ledger postgres"
    ) as caught:
        Parts(config)
    assert "openssl rand -hex 32" in str(caught.value)
    assert str(config_path.parent / "data" / "secret") in str(caught.value)
    for words in (["check"], ["status"]):
        assert "openssl" in run(*words).output
    begin(configure(is_shared, FROM_ENVIRONMENT))
    assert run("status").exit_code == 0


@pytest.mark.parametrize("ledger", ["file", "server"])
def test_commands_with_another_secret_say_so(configure, run, monkeypatch, ledger, request):
    """Sums stay readable with a remark, and no name is searched for or written under a wrong pseudonym."""
    section = request.getfixturevalue("is_shared") if ledger == "server" else ""
    begin(configure(section, FROM_ENVIRONMENT))
    run.ok("profile", "eva", "--tier", "gold")
    monkeypatch.setenv("USAGE_PLUGIN_SECRET", OTHER)
    for words in (["report"], ["limits"], ["status"]):
        result = run(*words)
        assert result.exit_code == 0, result.output
        assert "another secret" in result.stderr
    for words in (
        ["limits", "--user", "eva"], ["profile", "eva", "--tier", "free"], ["forget", "eva", "--yes"],
        ["explain", "--api-key", "sk-x"], ["raise", "daily", "--user", "eva", "--to", "9", "--for", "1h", "--reason", "x"],
    ):  # fmt: skip
        result = run(*words)
        assert result.exit_code == 1, (words, result.output)
        assert "accept-secret" in result.stderr
    assert any(
        problem["name"] == "secret" for problem in json.loads(run("status", "--format", "json").stdout)["problems"]
    )


def test_a_wanted_change_is_accepted(configure, run, monkeypatch):
    """`accept-secret` asks first, records the secret, and the ledger takes no other one from then on."""
    config = configure(FROM_ENVIRONMENT)
    assert run("accept-secret", "--yes").exit_code == 1, "there is no ledger yet"
    begin(config)
    assert "already" in run("accept-secret", "--yes").stdout
    monkeypatch.setenv("USAGE_PLUGIN_SECRET", OTHER)
    config = configure(FROM_ENVIRONMENT)
    with pytest.raises(SecretError):
        begin(config)
    assert run("accept-secret").exit_code == 1, "without an answer nothing is accepted"
    with pytest.raises(SecretError):
        begin(config)
    assert "Accepted" in run.ok("accept-secret", "--yes")
    begin(config)
    run.ok("profile", "eva", "--tier", "gold")
    monkeypatch.setenv("USAGE_PLUGIN_SECRET", SECRET)
    with pytest.raises(SecretError):
        begin(configure(FROM_ENVIRONMENT))


def test_the_data_folders_own_secret_cannot_be_accepted_before_it_exists(config_path, run):
    """The command creates nothing."""
    assert "Secret not found" in run("accept-secret", "--yes").stderr
    assert not (config_path.parent / "data").exists()
