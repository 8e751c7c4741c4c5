"""The files in docker/: what can be known of them without a daemon. tests/scenarios/test_image.py runs the image."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import orjson
import psycopg
import pytest
import typer
import yaml

from fedstac.cli import app
from fedstac.db import migrations
from fedstac.demo import embedded
from fedstac.runtime.metrics import FAMILIES, MetricKind
from fedstac.settings import PREFIX, Settings
from fedstac.workers import subscribing
from tests.docs.shell import REPOSITORY

DOCKER = REPOSITORY / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
COMMANDS: dict[str, Any] = getattr(typer.main.get_command(app), "commands", {})
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
TEXT = (DOCKER / "compose.yml").read_text()
METRIC = re.compile(r"\bfedstac_[a-z_]+\b")
LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.M)


def environment(service: str) -> dict[str, str]:
    return dict(SERVICES[service].get("environment", {}))


# --- compose.yml


@pytest.mark.parametrize("service", OURS)
def test_a_service_of_ours_has_settings_and_a_role_that_there_are(service: str) -> None:
    names = {name.removeprefix(PREFIX).lower() for name in environment(service)}
    assert names <= set(Settings.model_fields)
    assert SERVICES[service]["command"][0] in COMMANDS
    assert SERVICES[service]["init"]
    assert SERVICES[service]["read_only"]


def test_every_variable_has_a_default_or_stands_in_the_example() -> None:
    example = {line.partition("=")[0] for line in (DOCKER / "example.env").read_text().splitlines() if "=" in line}
    used = dict(re.findall(r"\$\{([A-Z_]+)(:[-?])?", TEXT))
    assert {name for name, default in used.items() if default != ":-"} <= example
    written = {line.partition("=")[0] for line in (DOCKER / "example.env").read_text().splitlines() if line[:1] != "#"}
    assert written - {""} <= set(used)


def test_files_that_are_mounted_are_there() -> None:
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", ())]
    files = [mount for mount in mounts if mount.startswith("./")]
    assert files
    assert [name for name in files if not (DOCKER / name).exists()] == []
    assert {mount for mount in mounts if not mount.startswith("./")} == set(COMPOSE["volumes"])


def test_ports_are_open_on_loopback_only_unless_somebody_says_otherwise() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(re.fullmatch(r"\$\{[A-Z_]+:-127\.0\.0\.1:\d+\}:\d+", port) for port in ports)


def test_every_service_that_stays_tells_whether_it_is_well() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text()
    assert "HEALTHCHECK" in dockerfile  # of the services of ours
    for name, service in SERVICES.items():
        if name.startswith("migrate-"):
            assert service["healthcheck"] == {"disable": True}
        elif name not in OURS:
            assert service["healthcheck"]["test"][0] == "CMD", name


def test_a_node_has_a_database_that_is_prepared_and_migrated() -> None:
    databases = environment("postgres")["DATABASES"].split()
    for name in ("west", "east", "south"):
        assert environment(name)["FEDSTAC_DSN"].endswith(f"/fedstac_{name}")
        assert environment(f"migrate-{name}")["FEDSTAC_OWNER_DSN"].endswith(f"/fedstac_{name}")
        assert f"fedstac_{name}" in databases
        assert SERVICES[name]["depends_on"][f"migrate-{name}"] == {"condition": "service_completed_successfully"}


def test_brokers_and_dashboards_start_by_profile_only() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {"kafka": ["kafka"], "nats": ["nats"], "prometheus": ["metrics"], "grafana": ["metrics"]}


# --- PostgreSQL's preparation


def test_the_setup_is_the_one_that_migrate_prints() -> None:
    assert (DOCKER / "postgres/setup.sql").read_text() == migrations.SETUP + "\n", "fedstac migrate --print-setup"


def test_postgresql_prepares_databases_that_can_be_migrated(cluster: embedded.Cluster) -> None:
    name = f"prepared_{os.getpid()}"
    password = "it's a secret"
    variables = {
        "PATH": os.environ["PATH"], "PGHOST": str(cluster.socket_dir), "PGPORT": str(cluster.port),
        "POSTGRES_USER": "postgres", "DATABASES": name, "DATABASE_PASSWORD": password,
        "FEDSTAC_SETUP": str(DOCKER / "postgres/setup.sql"),
    }  # fmt: skip
    with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
        try:
            done = subprocess.run(
                ["bash", DOCKER / "postgres/prepare.sh"], env=variables, capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, "")
            migrations.migrate(cluster.dsn(name, user="fedstac_owner"), REPOSITORY / "migrations")
            as_writer = f"host=127.0.0.1 port={cluster.port} dbname={name} user=fedstac_writer"
            with psycopg.connect(as_writer, password=password) as writer:
                assert writer.execute("SELECT count(*) FROM fedstac.record").fetchone() == (0,)
        finally:
            conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            for role, secret in (("fedstac_owner", "owner"), ("fedstac_writer", "writer")):
                conn.execute(f"ALTER ROLE {role} PASSWORD '{secret}'")  # as tests/support/databases.py has it


# --- the image


def test_the_packages_of_the_image_are_those_of_the_lock() -> None:
    locked = dict(LOCKED.findall((REPOSITORY / "requirements.lock").read_text()))
    for name in ("server.lock", "build.lock"):
        text = (DOCKER / name).read_text()
        pinned = dict(LOCKED.findall(text))
        assert len(pinned) > 3
        assert text.count("--hash=sha256:") >= len(pinned)
        assert {each: version for each, version in pinned.items() if locked.get(each, version) != version} == {}
        assert "://" not in "".join(line for line in text.splitlines() if "# via" not in line)


def test_the_image_runs_as_nobody_in_particular() -> None:
    last = (DOCKER / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    users = re.findall(r"^USER (\S+)", last, re.M)
    assert users == ["10001"]
    assert not re.search(r"pip|gcc|python3-venv", last)


# --- Prometheus and Grafana


def families_in(text: str) -> set[str]:
    """Return the families that expressions name, without what a histogram or its buckets add."""
    histograms = [family.name for family in FAMILIES.values() if family.kind is MetricKind.HISTOGRAM]
    names = set(METRIC.findall(text))
    return {next((each for each in histograms if name.startswith(each)), name) for name in names}


def alerts() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())["groups"]
    return list(group["rules"])


def test_alerts_name_metrics_and_labels_that_there_are() -> None:
    for alert in alerts():
        used = families_in(alert["expr"])
        assert used <= set(FAMILIES), alert["alert"]
        by = {label for group in re.findall(r"by \(([^)]*)\)", alert["expr"]) for label in group.split(", ")}
        labels = {label for name in used for label in FAMILIES[name].labels}
        assert by <= labels | {"job"}, alert["alert"]
        shown = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
        assert shown <= by | labels | {"job"}, alert["alert"]
        assert alert["annotations"]["remedy"]


def test_alerts_of_subscriptions_select_values_that_there_are() -> None:
    values = {
        "delivery": set(subscribing.DELIVERIES), "stand": {"active", "failing", "paused", "ended"},
        "state": {"waiting", "dead"}, "code": {"5.."},
    }  # fmt: skip
    selected: dict[str, set[str]] = {}
    for alert in alerts():
        families = [FAMILIES[name] for name in families_in(alert["expr"])]
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', alert["expr"]):
            assert any(label in family.labels for family in families), alert["alert"]
            selected.setdefault(label, set()).update(value.split("|"))
    assert all(selected[label] <= values[label] for label in selected), selected
    watched = {"fedstac_subscription_lag_seconds", "fedstac_subscriptions", "fedstac_subscription_events"}
    assert watched | {"fedstac_unwritable_events_total"} <= families_in(" ".join(each["expr"] for each in alerts()))


def test_the_dashboard_is_the_one_of_the_table_and_shows_all_of_it() -> None:
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tools/dashboard.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}: make docs"
    dashboard = orjson.loads((DOCKER / "grafana/fedstac.json").read_bytes())
    queries = "\n".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()))
    assert families_in(queries) == set(FAMILIES)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_prometheus_collects_from_every_node_with_a_token_of_its_own() -> None:
    jobs = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    nodes = [name for name in OURS if not name.startswith("migrate-")]
    assert targets == {name: [f"{name}:8080"] for name in nodes}
    assert {job["authorization"]["credentials_file"] for job in jobs} == {
        f"/etc/prometheus/tokens/{name}" for name in nodes
    }
