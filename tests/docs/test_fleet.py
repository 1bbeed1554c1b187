"""docs/fleet.md and examples/fleet: the commands and files work with a real proxy and server, and agree with each other.

Neither Docker nor Kubernetes is needed. The proxy starts with the YAML of the manifest, mounted in its way.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
import yaml
from click.testing import CliRunner

from tests.docs.conftest import shell
from tests.docs.test_docs import blocks
from tests.proxy.conftest import BIN, ROOT, clean_environment, free_port, wait_for
from tests.support import plain_http
from tests.support.postgres import PostgresServer, binaries
from tests.support.valkey import valkey_server
from tests.support.waiting import wait_until
from usage_plugin.cli.main import main
from usage_plugin.cli.workers import COLUMNS
from usage_plugin.config import load_config
from usage_plugin.ledgers.valkey import ValkeyOptions
from usage_plugin.ledgers.valkey.server import ValkeyServer, check_suitable

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = ROOT / "docs" / "fleet.md"
FOLDER = ROOT / "examples" / "fleet"
CONFIG, VALKEY_CONFIG = FOLDER / "config.yaml", FOLDER / "config-valkey.yaml"
MANIFEST = {one["kind"]: one for one in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())}
POD = MANIFEST["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
PORT = 4000
CONFIG_PATH = "/etc/usage/config.yaml"
DATA_PATH = "/var/lib/usage"

EXAMPLE_URL = "postgresql://usage_proxy:change-me@db.example.com:5432/usage?sslmode=require"
KEY = "sk-0123456789abcdef0123456789abcdef"
LAST_WRITES = 30
"""Seconds that the plugin may take at the end of a worker: for the queue of logs, the ledger and the last flush."""


def instruction(name: str) -> str:
    """Return the arguments of the last instruction of a kind in the Dockerfile."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} +(.*)$", joined, re.MULTILINE)[-1]


def variables_of(path: Path) -> set[str]:
    """Return the environment variables that a YAML reads."""
    return set(re.findall(r"os\.environ/(\w+)", path.read_text()))


# ── the files ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_config_map_is_the_yaml_of_the_folder() -> None:
    """There is one YAML for both ways; that for Valkey has another ledger and is the same otherwise."""
    assert MANIFEST["ConfigMap"]["data"] == {"config.yaml": CONFIG.read_text()}
    plain, other = (yaml.safe_load(path.read_text()) for path in (CONFIG, VALKEY_CONFIG))
    assert other["usage_plugin"].pop("ledger")["backend"] == "valkey"
    assert plain["usage_plugin"].pop("ledger")["backend"] == "postgres"
    assert plain == other


def test_a_host_of_the_manifest_has_all_variables() -> None:
    """Each variable of the YAML comes from the Secret, which has no other entries."""
    taken = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in CONTAINER["env"]}
    assert set(taken) == variables_of(CONFIG) == set(MANIFEST["Secret"]["stringData"])
    assert taken == {name: {"name": MANIFEST["Secret"]["metadata"]["name"], "key": name} for name in taken}


def test_the_parts_of_the_manifest_find_each_other() -> None:
    """Selectors, ports, probes and volumes name what is there."""
    labels = MANIFEST["Deployment"]["spec"]["template"]["metadata"]["labels"]
    spread = [one["labelSelector"]["matchLabels"] for one in POD["topologySpreadConstraints"]]
    selectors = [MANIFEST[kind]["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")]
    assert all(found == labels for found in (*spread, *selectors, MANIFEST["Service"]["spec"]["selector"]))
    (port,), (service,) = CONTAINER["ports"], MANIFEST["Service"]["spec"]["ports"]
    assert port["containerPort"] == PORT
    assert service["targetPort"] == port["name"]
    probes = [CONTAINER[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert {probe["port"] for probe in probes} == {port["name"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert volumes["config"]["configMap"]["name"] == MANIFEST["ConfigMap"]["metadata"]["name"]
    assert mounts["config"] == str(Path(CONFIG_PATH).parent)
    assert mounts["data"] == DATA_PATH
    assert MANIFEST["Deployment"]["spec"]["replicas"] == 3
    assert MANIFEST["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_pods_have_few_rights() -> None:
    """They are not root, their root is read-only, and they get no token of the cluster."""
    assert POD["securityContext"]["runAsNonRoot"]
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert not POD["automountServiceAccountToken"]
    user, _, group = instruction("USER").partition(":")
    assert (int(user), int(group)) == (POD["securityContext"]["runAsUser"], POD["securityContext"]["runAsGroup"])
    assert f"--owner={user} --group={group} --mode=0700 {DATA_PATH}" in DOCKERFILE


def test_a_host_that_stops_has_time_for_its_requests_and_the_last_writes() -> None:
    """The grace periods cover the load balancers' delay, the longest request, and the plugin's own end."""
    longest = yaml.safe_load(CONFIG.read_text())["litellm_settings"]["request_timeout"]
    needed = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"] + longest + LAST_WRITES
    assert POD["terminationGracePeriodSeconds"] >= needed
    assert COMPOSE["x-proxy"]["stop_grace_period"] == f"{POD['terminationGracePeriodSeconds']}s"


@pytest.mark.parametrize("name", ["proxy-1", "proxy-2"])
def test_a_host_of_compose_has_all_it_needs(name: str) -> None:
    """Its variables, its YAML, a folder of its own, and as few rights as a pod."""
    proxy = COMPOSE["services"][name]
    assert variables_of(CONFIG) | variables_of(VALKEY_CONFIG) == set(proxy["environment"])
    assert proxy["volumes"] == [f"./${{CONFIG:-{CONFIG.name}}}:{CONFIG_PATH}:ro", DATA_PATH]
    assert (proxy["read_only"], proxy["cap_drop"]) == (True, ["ALL"])
    assert proxy["image"] == CONTAINER["image"]
    assert (FOLDER / proxy["build"]["context"]).resolve() == ROOT
    assert ROOT / proxy["build"]["dockerfile"] == FOLDER / "Dockerfile"
    assert set(proxy["depends_on"]) == {"postgres", "valkey"}
    assert not proxy["depends_on"]["valkey"]["required"], "without its profile there is no Valkey"


def test_the_parts_of_compose_find_each_other() -> None:
    """The balancer leads to each proxy, and URLs to the servers; all volumes and passwords are there."""
    services = COMPOSE["services"]
    balancer = COMPOSE["configs"]["caddyfile"]["content"]
    assert re.search(r"^reverse_proxy (.*) \{$", balancer, re.MULTILINE)[1].split() == [  # type: ignore[index]
        f"{name}:{PORT}" for name in services if name.startswith("proxy")
    ]
    assert f"health_uri {CONTAINER['readinessProbe']['httpGet']['path']}" in balancer
    urls = [value for name, value in services["proxy-1"]["environment"].items() if name.endswith("_URL")]
    assert {re.search(r"(?:@|//)(\w+):\d+/", url)[1] for url in urls} == {"postgres", "valkey"}  # type: ignore[index]
    assert services["valkey"]["profiles"] == ["valkey"]
    assert COMPOSE["volumes"].keys() == {
        services[name]["volumes"][0].partition(":")[0] for name in ("postgres", "valkey")
    }


def test_the_image_has_the_proxy_of_the_tests() -> None:
    """It installs existing extras, with LiteLLM and all else pinned, from files that are there."""
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', DOCKERFILE)
    declared = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert (
        set(extras.split(","))
        == {"proxy", "postgres", "valkey"}
        <= set(re.findall(r"^(\w+) = ", declared, re.MULTILINE))
    )
    assert "--constraint constraints.txt" in DOCKERFILE
    pinned = set(re.findall(r"^([\w.-]+)==[\d.]+", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {"litellm", "psycopg", "psycopg-binary", "redis", "hiredis"} <= pinned
    sources = [part for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE) for part in line.split()]
    assert {"pyproject.toml", "usage_plugin", "constraints.txt"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
    assert len(set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))) == 1, "a copied environment needs its Python"
    assert ast.literal_eval(instruction("CMD")) == ["--config", CONFIG_PATH, "--host", "0.0.0.0", "--port", str(PORT)]
    assert instruction("EXPOSE") == str(PORT)
    assert f"USAGE_PLUGIN_CONFIG={CONFIG_PATH}" in DOCKERFILE


def checked(path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> tuple[int, str]:
    """Return the exit code and the output of `usage-plugin check`."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, ["--config", str(path), "check"])
    return result.exit_code, result.output


def test_the_yaml_is_checked_by_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """`usage-plugin check` finds nothing wrong with it, without a server."""
    variables = {**MANIFEST["Secret"]["stringData"], "USAGE_PLUGIN_SECRET": "ab" * 32}
    code, output = checked(CONFIG, monkeypatch, variables)
    assert code == 0, output


def test_the_options_of_valkey_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """So are those of the other YAML, and the page has a row for each option."""
    for name in variables_of(VALKEY_CONFIG):
        monkeypatch.setenv(name, "ab" * 32)
    monkeypatch.setenv("USAGE_VALKEY_URL", COMPOSE["x-proxy"]["environment"]["USAGE_VALKEY_URL"])
    assert ValkeyOptions.model_validate(load_config(VALKEY_CONFIG).ledger.options).replicas == 0
    part = PAGE.read_text().partition("\n## Valkey\n")[2]
    table = part.partition("| option |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(ValkeyOptions.model_fields)


def test_no_proxy_starts_with_the_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest that is applied as it is would otherwise run with a published secret."""
    code, output = checked(CONFIG, monkeypatch, MANIFEST["Secret"]["stringData"])
    assert code == 1
    assert "usage_plugin.privacy.secret" in output


def settings_of(text: list[str]) -> dict[str, str]:
    return {name.replace("-", "_"): value for name, value in (shlex.split(line) for line in text)}


@pytest.mark.parametrize("place", ["page", "compose"])
def test_a_server_with_the_settings_can_keep_a_ledger(place: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A real Valkey server starts with the settings of the page and of Compose, and is not refused."""
    if place == "page":
        lines = blocks(PAGE, "conf")[0].splitlines()
    else:
        lines = COMPOSE["services"]["valkey"]["command"].removeprefix("valkey-server --").split(" --")
    settings = settings_of(lines)
    assert set(settings) == {"appendonly", "appendfsync", "save", "maxmemory", "maxmemory_policy"}
    with valkey_server(tmp_path_factory.mktemp("v"), **settings) as server:
        connection = ValkeyServer(server.url, "usage")
        check_suitable(connection.information(), connection.location)
        connection.close()


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_event_of_the_log_is_explained() -> None:
    """Each event of the fleet's parts has a row on the page, and no row has an event that does not exist."""
    found = re.findall(
        r'log\.\w+\(\s*"([\w.]+)"', "".join(path.read_text() for path in (ROOT / "usage_plugin").rglob("*.py"))
    )
    parts = (
        "ledgers/workers/fleet_workers",
        "tracking/admission/remote_request_ledger",
        "tracking/admission/posted_verbs",
    )
    needed = re.findall(
        r'log\.\w+\(\s*"([\w.]+)"', "".join((ROOT / "usage_plugin" / f"{part}.py").read_text() for part in parts)
    )
    table = PAGE.read_text().partition("\n## The log\n")[2].partition("\n## ")[0]
    rows = {
        name for row in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE) for name in re.findall(r"`([\w.]+)`", row)
    }
    assert len(needed) > 10
    assert set(needed) <= rows <= set(found)


# ── a host ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Host(NamedTuple):
    """A proxy that runs as a pod of the manifest would, with the server of the page.

    Attributes:
        folder: with the link `config.yaml`.
        url: of the proxy.
        process: its process.
        variables: its environment.
        server: the server as an administrator sees it.
    """

    folder: Path
    url: str
    process: subprocess.Popen[bytes]
    variables: dict[str, str]
    server: str

    def ask(self, user: str) -> Any:
        """Send a request of at most 0.0259 USD, which costs 0.0101 USD."""
        return plain_http.post(
            f"{self.url}/v1/chat/completions", timeout=60, headers={"Authorization": f"Bearer {KEY}"},
            json={"model": "mock-model", "user": user, "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]},
        )  # fmt: skip

    def run(self, command: str) -> str:
        """Run a command of the page."""
        return shell(
            command.replace(EXAMPLE_URL, self.variables["USAGE_DATABASE_URL"]), self.folder, 0, **self.variables
        )


def mount(folder: Path, files: dict[str, str], version: int) -> None:
    """Mount a ConfigMap as Kubernetes does: names are links into a folder that is a link, which is replaced at once."""
    (folder / f"..{version}").mkdir(parents=True)
    for name, text in files.items():
        (folder / f"..{version}" / name).write_text(text)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    (folder / "..next").symlink_to(f"..{version}")
    (folder / "..next").rename(folder / "..data")


def psql(url: str, statements: str) -> None:
    """Run statements of the page as an administrator."""
    programs = binaries()
    assert programs is not None
    done = subprocess.run(
        [programs / "psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--quiet", url],
        input=statements, capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Host]:
    """Prepare the server by the page's statements, and start a proxy with the ConfigMap."""
    folder, port = tmp_path_factory.mktemp("fleet"), free_port()
    roles, schema, _ = blocks(PAGE, "sql")
    administrator = postgres.url.removesuffix("/postgres") + "/usage"
    psql(postgres.url, roles)
    psql(administrator, schema)
    mount(folder, MANIFEST["ConfigMap"]["data"], 1)
    programs = binaries()
    variables = {
        "LITELLM_MASTER_KEY": KEY,
        "USAGE_PLUGIN_SECRET": "0123456789abcdef" * 4,
        "USAGE_DATABASE_URL": f"postgresql://usage_proxy:change-me@127.0.0.1:{postgres.port}/usage",
        "ADMIN_DATABASE_URL": administrator,
        "USAGE_PLUGIN_DATA_DIR": str(folder / "data"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "DISABLE_ADMIN_UI": "True",
        "COLUMNS": "200",
        "PATH": f"{BIN}:{programs}:{os.environ['PATH']}",
    }
    command = [BIN / "litellm", *ast.literal_eval(instruction("CMD"))]
    real = {CONFIG_PATH: str(folder / "config.yaml"), "0.0.0.0": "127.0.0.1", str(PORT): str(port)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [real.get(str(part), part) for part in command], cwd=folder, stdout=log, stderr=log,
            env={**clean_environment(), **variables},
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}{CONTAINER['startupProbe']['httpGet']['path']}", process)
        yield Host(folder, f"http://127.0.0.1:{port}", process, variables, administrator)
    finally:
        process.terminate()
        process.wait(120)


@pytest.mark.proxy
class TestHost:
    """The tests run in their order: later ones need the requests of earlier ones."""

    def test_it_answers_probes_and_requests(self, host: Host) -> None:
        """Each probe succeeds, also that of the image, and the limit of the manifest refuses the fourth request."""
        for kind in ("startup", "liveness", "readiness"):
            assert plain_http.get(host.url + CONTAINER[f"{kind}Probe"]["httpGet"]["path"]).status_code == 200, kind
        _, _, code = ast.literal_eval(instruction("HEALTHCHECK").partition(" CMD ")[2])
        code = code.replace(f"127.0.0.1:{PORT}", host.url.removeprefix("http://"))
        assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0
        assert [host.ask("eva").status_code for _ in range(4)] == [200, 200, 200, 402]

    def test_the_commands_of_the_page_work(self, host: Host) -> None:
        """Each ends with 0, also the dump and its restoration, with a role that has the page's rights only."""
        commands = [block for block in blocks(PAGE, "bash") if "pg_restore" not in block]
        said = "".join(host.run(command) for command in commands)
        assert "admits requests" in said
        assert (host.folder / "usage.dump").stat().st_size > 0
        passwords = {line.partition("=")[0] for line in (host.folder / ".env").read_text().splitlines()}
        assert passwords == set(re.findall(r"\$\{(\w+):\?", (FOLDER / "compose.yaml").read_text()))
        assert "✗" not in said
        psql(host.server, blocks(PAGE, "sql")[2])

    def test_the_page_has_the_words_of_status(self, host: Host) -> None:
        """The page names each column and each key of the JSON."""
        page = PAGE.read_text()
        found = json.loads(host.run("usage-plugin --config config.yaml status --format json"))
        (worker,) = found["workers"]
        for key in (*worker, *worker["batches"], *found["fleet"]):
            assert f"`{key}`" in page, key
        (header,) = [line for line in page.splitlines() if "requests each   round trip" in line]
        assert [part.strip() for part in re.split(r" {2,}", header.strip())] == [column.heading for column in COLUMNS]

    def test_it_uses_no_more_connections_than_planned(self, host: Host) -> None:
        """Those of a worker that is the keeper, as the page plans them."""
        planned = re.search(r"max_connections ≥ (\d+) × workers \+ (\d+) \+ commands", PAGE.read_text())
        assert planned is not None
        with psycopg.connect(host.server) as connection:
            (used,) = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = 'usage_proxy' AND application_name = 'usage_plugin'"
            ).fetchone()  # type: ignore[misc]
        assert 5 <= used <= int(planned[1]) + int(planned[2])

    def test_a_changed_config_map_arrives_without_a_restart(self, host: Host) -> None:
        """The link of the mounted folder is replaced, and the new amount admits eva again."""
        text = MANIFEST["ConfigMap"]["data"]["config.yaml"]
        mount(host.folder, {"config.yaml": text.replace("max_cost: 0.05", "max_cost: 5")}, 2)
        wait_until(lambda: host.ask("eva").status_code == 200)

    def test_it_ends_in_time_with_everything_written(self, host: Host) -> None:
        """After SIGTERM nothing waits and no member is left; the commands still work."""
        host.process.terminate()
        began = time.monotonic()
        host.process.wait(120)
        assert time.monotonic() - began < LAST_WRITES + 20
        found = json.loads(host.run("usage-plugin --config config.yaml status --format json"))
        assert (found["workers"], found["outbox"]["events"], found["reservations"]["open"]) == ([], 0, 0)

    def test_the_dump_is_restored(self, host: Host) -> None:
        """The accounts are those of the dump again: three requests of eva's."""
        (command,) = [block for block in blocks(PAGE, "bash") if "pg_restore" in block]
        host.run(command)
        (row,) = json.loads(host.run("usage-plugin --config config.yaml limits --user eva --format json"))["limits"][:1]
        assert row["spent"] == "0.0303"
