"""What can be said about the containers without starting any: the files agree with each other and with the code."""

import ast
import hashlib
import importlib.util
import json
import re
import runpy
from pathlib import Path

import pytest
import yaml
from django.core.management import get_commands

from bankcore import health
from compose import make_secrets

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "compose"
COMPOSE_TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(COMPOSE_TEXT)
SERVICES = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("bankcore:")]
ONE_SHOT = {"secrets", "migrate"}
PROMETHEUS = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARDS = {
    path.name: json.loads(path.read_text()) for path in sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))
}

# Served by Prometheus itself and by RabbitMQ's plugin `rabbitmq_prometheus`.
METRICS_OF_OTHERS = {
    "up",
    "rabbitmq_alarms_memory_used_watermark",
    "rabbitmq_alarms_free_disk_space_watermark",
    "rabbitmq_detailed_queue_messages",
    "rabbitmq_detailed_queue_consumers",
}


# -- compose.yaml ------------------------------------------------------------------------------------------------------


def test_every_role_has_a_container() -> None:
    assert set(SERVICES) == {
        "secrets", "postgres", "rabbitmq", "valkey", "migrate", "web", "relay", "worker-risk-0", "worker-risk-1",
        "worker-posting-0", "worker-posting-1", "worker-notifications", "worker-maintenance", "flower", "prometheus",
        "alertmanager", "grafana",
    }  # fmt: skip
    assert SERVICES["relay"]["deploy"] == {"replicas": 2}


@pytest.mark.parametrize("name", OURS)
def test_what_a_container_runs_exists(name: str) -> None:
    words = " ".join([*SERVICES[name].get("entrypoint", []), *SERVICES[name]["command"]])

    commands = re.findall(r"manage\.py ([a-z_]+)", words)
    modules = re.findall(r"python -m ([\w.]+)", words) + re.findall(r"([\w.]+):application", words)
    modules += ["flower.command"] * ("celery --app bankcore flower" in words)

    assert commands or modules
    assert [command for command in commands if command not in get_commands()] == []
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


@pytest.mark.parametrize("role", ["risk", "posting"])
def test_the_workers_of_a_role_cover_all_partitions(role: str) -> None:
    workers = [service["command"][2:] for name, service in SERVICES.items() if name.startswith(f"worker-{role}-")]

    assert workers == [["worker", role, "--index", str(i), "--of", str(len(workers))] for i in range(len(workers))]


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]

    assert service["user"] not in ("root", "0", "0:0")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    # RabbitMQ writes beside its configuration when it starts.
    assert service.get("read_only", False) or name == "rabbitmq"


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONE_SHOT))
def test_a_container_that_dies_is_started_again_and_is_asked_how_it_is(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert SERVICES[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


@pytest.mark.parametrize("name", ["postgres", "rabbitmq", "web", "relay", "worker-posting-0", "worker-notifications"])
def test_a_container_may_finish_what_it_has_begun(name: str) -> None:
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= 30


def test_ports_are_published_on_the_loopback_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert len(ports) == 5
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not {"postgres", "rabbitmq", "valkey"} & {name for name, service in SERVICES.items() if service.get("ports")}


def test_no_secret_is_written_down() -> None:
    for path in [
        p for p in FOLDER.rglob("*") if p.suffix in (".yaml", ".yml", ".json", ".conf") or p.name == "Dockerfile"
    ]:
        assert re.findall(r"://[^\s/{]*:[^\s/{]+@", path.read_text()) == [], path
    for service in SERVICES.values():
        for variable in service.get("environment", {}):
            assert not re.search(r"PASSWORD|SECRET|TOKEN|_KEY$", variable) or variable.endswith("_FILE")


def test_what_is_mounted_joined_and_waited_for_is_declared() -> None:
    volumes, networks = set(), set()
    for name, service in SERVICES.items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).exists(), (name, source)
            else:
                volumes.add(source)
        networks |= set(service.get("networks", []))
        for other, condition in service.get("depends_on", {}).items():
            needed = "healthcheck" if condition["condition"] == "service_healthy" else "command"
            assert needed in SERVICES[other], (name, other)

    assert volumes == set(COMPOSE["volumes"])
    assert networks == set(COMPOSE["networks"])


def _settings_read() -> set[str]:
    text = (ROOT / "bankcore" / "settings.py").read_text()
    return set(re.findall(r"env(?:\.\w+)?\(\s*\"([A-Z_]+)\"", text))


@pytest.mark.parametrize("name", sorted(set(OURS) - {"secrets"}))
def test_a_setting_given_to_a_container_is_one_that_is_read(name: str) -> None:
    given = {variable.removesuffix("_FILE") for variable in SERVICES[name]["environment"]}

    assert given - _settings_read() <= {"PROMETHEUS_MULTIPROC_DIR"}


def test_every_setting_is_explained() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()

    assert [name for name in sorted(_settings_read()) if f"`{name}`" not in text] == []


# -- Dockerfile --------------------------------------------------------------------------------------------------------


def test_the_image_is_built_from_checked_packages_and_runs_as_nobody_special() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()

    assert any("--require-hashes" in line for line in lines)
    assert lines.index("USER 10001:10001") > max(i for i, line in enumerate(lines) if line.startswith(("RUN", "COPY")))
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert [path for path in kept if not (ROOT / path).exists()] == []
    assert {"bankcore", "accounts", "transfers", "notifications", "manage.py", "requirements.txt"} <= set(kept)


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_secrets_are_made_once(tmp_path: Path) -> None:
    make_secrets.make_secrets(tmp_path)
    first = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    for path in tmp_path.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    make_secrets.make_secrets(tmp_path)
    second = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}

    first.pop(Path("rabbitmq/definitions.json"))  # Salted anew each time.
    second.pop(Path("rabbitmq/definitions.json"))
    assert first == second
    assert all(text == text.strip() for path, text in first.items() if path.parent.name == "application")


def test_every_secret_that_is_mounted_is_made(tmp_path: Path) -> None:
    make_secrets.make_secrets(tmp_path)

    for name in sorted(set(SERVICES) - {"secrets"}):
        words = json.dumps([SERVICES[name].get("environment", {}), SERVICES[name].get("command", [])])
        for mount in [mount for mount in SERVICES[name].get("volumes", []) if mount.startswith("secrets_")]:
            volume, folder, *_ = mount.split(":")
            for file in re.findall(rf"{folder}/([\w.]+)", words):
                assert (tmp_path / volume.removeprefix("secrets_") / file).is_file(), (name, file)


def test_a_former_release_leaves_no_password_of_the_brokers_with_web(tmp_path: Path) -> None:
    (tmp_path / "application").mkdir()
    (tmp_path / "application" / "broker_url").write_text("amqp://bankcore")

    make_secrets.make_secrets(tmp_path)

    assert not (tmp_path / "application" / "broker_url").exists()
    assert not [path for path in (tmp_path / "application").iterdir() if "amqp" in path.read_text()]


def test_a_container_has_the_brokers_password_of_its_own_role_only() -> None:
    found = {
        name: {
            mount.split(":")[0].removeprefix("secrets_broker_")
            for mount in service.get("volumes", [])
            if "/run/broker" in mount
        }
        for name, service in SERVICES.items()
    }

    roles = ("relay", "risk", "posting", "notifications", "maintenance", "flower")
    expected = {name: {role} for name in SERVICES for role in roles if role in name.split("-")}
    assert {name: mounted for name, mounted in found.items() if mounted} == expected | {"migrate": {"setup"}}


def test_the_brokers_users_get_their_passwords_and_nothing_else(tmp_path: Path) -> None:
    make_secrets.make_secrets(tmp_path)
    definitions = json.loads((tmp_path / "rabbitmq" / "definitions.json").read_text())
    plain = json.loads((FOLDER / "rabbitmq" / "docker" / "definitions.json").read_text())

    assert "password" not in json.dumps(plain)
    assert [user["name"] for user in definitions["users"]] == [
        "bankcore",
        "relay",
        "risk",
        "posting",
        "notifications",
        "maintenance",
        "flower",
    ]
    assert all(user["password_hash"] for user in definitions["users"])
    assert definitions["permissions"] == plain["permissions"]
    assert definitions["topic_permissions"] == plain["topic_permissions"]


def test_rabbitmq_is_started_anew_with_another_configuration() -> None:
    """Compose leaves a service alone that looks as before, and RabbitMQ reads these files only as it starts."""
    files = sorted((FOLDER / "rabbitmq" / "docker").iterdir())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]

    assert [path.name for path in files] == ["definitions.json", "enabled_plugins", "rabbitmq.conf"]
    assert SERVICES["rabbitmq"]["labels"] == {"bankcore.configuration": digest}


def test_a_message_has_the_same_bound_in_containers() -> None:
    bounds = [
        re.findall(r"^max_message_size = (\d+)$", path.read_text(), re.MULTILINE)
        for path in (FOLDER / "rabbitmq" / "rabbitmq.conf", FOLDER / "rabbitmq" / "docker" / "rabbitmq.conf")
    ]

    assert bounds == [["1048576"], ["1048576"]]


def test_the_password_hash_is_the_one_in_rabbitmqs_manual() -> None:
    expected = "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"

    assert make_secrets.rabbitmq_hash("test12", bytes.fromhex("908dc60a")) == expected


def test_flower_knows_its_options_and_only_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_secrets.make_secrets(tmp_path)
    monkeypatch.setenv("SECRETS_FOLDER", str(tmp_path / "flower"))
    source = importlib.util.find_spec("flower.options")
    assert source is not None
    assert source.origin is not None
    known = set(re.findall(r"define\(\s*[\"'](\w+)", Path(source.origin).read_text()))

    chosen = runpy.run_path(str(FOLDER / "flower" / "flowerconfig.py"))

    options = {name: value for name, value in chosen.items() if name[0] != "_" and isinstance(value, str | int | list)}
    assert set(options) <= known
    assert options["read_only"] is True
    assert options["enable_events"] is False
    assert options["basic_auth"][0].startswith("staff:")


# -- Prometheus, Alertmanager, Grafana ---------------------------------------------------------------------------------


def _targets() -> list[tuple[str, str]]:
    found = []
    for job in PROMETHEUS["scrape_configs"]:
        for group in job.get("static_configs", []):
            found += [tuple(target.split(":")) for target in group["targets"]]
        for group in job.get("dns_sd_configs", []):
            found += [(name, str(group["port"])) for name in group["names"]]
    return found


def test_prometheus_can_reach_what_it_scrapes() -> None:
    targets = _targets()

    for host, port in targets:
        assert set(SERVICES[host]["networks"]) & set(SERVICES["prometheus"]["networks"]), host
        if "METRICS_PORT" in SERVICES[host].get("environment", {}):
            assert port == SERVICES[host]["environment"]["METRICS_PORT"]
    serving = {name for name in OURS if "METRICS_PORT" in SERVICES[name].get("environment", {})}
    assert {host for host, _ in targets} == serving | {"web", "rabbitmq"}


def test_alerts_reach_a_receiver() -> None:
    configuration = yaml.safe_load((FOLDER / "alertmanager" / "alertmanager.yml").read_text())
    receivers = {receiver["name"] for receiver in configuration["receivers"]}

    assert {configuration["route"]["receiver"], *(r["receiver"] for r in configuration["route"]["routes"])} <= receivers
    assert PROMETHEUS["alerting"]["alertmanagers"][0]["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    assert [f"/etc/prometheus/{Path(p).name}" for p in PROMETHEUS["rule_files"]] == PROMETHEUS["rule_files"]


def _metrics_of_ours() -> set[str]:
    """Names as they stand in a scrape, from the calls in the code that make them."""
    names = set()
    for path in [*(ROOT / "bankcore").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                kind, name = ast.unparse(node.func), node.args[0].value
                if kind == "Counter":
                    names.add(f"{name}_total")
                elif kind in ("Histogram", "StageHistogram"):
                    names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")}
                elif kind in ("Gauge", "GaugeMetricFamily"):
                    names.add(name)
    return names


def _metrics_named(expression: str) -> set[str]:
    without_labels = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|on)\s*\([^)]*\)", " ", expression)
    words = set(re.findall(r"\b[a-z][a-z0-9_]*\b(?!\s*\()", without_labels))
    return words - {"and", "or", "unless", "by", "on", "bool"}


EXPRESSIONS = [(rule["alert"], rule["expr"]) for rule in RULES] + [
    (f"{name}: {panel['title']}", target["expr"])
    for name, board in DASHBOARDS.items()
    for panel in board["panels"]
    for target in panel["targets"]
]


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_a_metric_that_is_looked_at_is_one_that_exists(where: str, expression: str) -> None:
    named = _metrics_named(expression)

    assert named, where
    assert named - _metrics_of_ours() - METRICS_OF_OTHERS == set(), where


@pytest.mark.parametrize(
    ("where", "expression"), [e for e in EXPRESSIONS if re.search("backlog|oldest_seconds{", e[1])]
)
def test_a_stage_that_is_looked_at_is_one_that_is_counted(where: str, expression: str) -> None:
    named = {stage for words in re.findall(r'stage=~?"([^"]+)"', expression) for stage in words.split("|")}

    assert named <= set(health.STAGE_OF_STATUS.values()), where


def test_the_checker_of_metrics_sees_what_is_not_there() -> None:
    assert _metrics_named('rate(bankcore_made_up_total{stage="risk"}[5m]) > 1 or up == 0') == {
        "bankcore_made_up_total",
        "up",
    }
    assert "bankcore_made_up_total" not in _metrics_of_ours()
    assert {"bankcore_transfers_total", "bankcore_stage_seconds_bucket", "bankcore_outbox_events"} <= _metrics_of_ours()


def test_every_alert_has_a_section_in_the_runbook() -> None:
    sections = re.findall(r"^### (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)

    assert [s for s in sections if s[0].isupper() and s in {r["alert"] for r in RULES}] == [r["alert"] for r in RULES]
    assert {rule["labels"]["severity"] for rule in RULES} == {"page", "ticket"}
    assert all(rule["annotations"]["summary"] for rule in RULES)


def test_dashboards_are_provisioned() -> None:
    provider = yaml.safe_load((FOLDER / "grafana/provisioning/dashboards/files.yml").read_text())["providers"][0]
    source = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]

    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]
    assert set(DASHBOARDS) == {"transfers.json", "machinery.json"}
    for board in DASHBOARDS.values():
        assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
