"""The container image: a publishing node and an index node run from it, and nothing is in it that they do not need."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg
import pytest

from fedstac.client import Client
from fedstac.db import connections, nodes
from fedstac.demo import embedded, sample
from tests.scenarios.watching import wait_until
from tests.support import containers
from tests.support.containers import Container
from tests.support.databases import name_in

SECRET = "secret"
UNWANTED = ("gcc", "cc", "make", "pip", "pip3", "uv", "npm", "curl", "git")


@pytest.mark.image
@pytest.mark.long
def test_two_nodes_run_from_the_image(
    cluster: embedded.Cluster, make_database: Callable[[], str], tmp_path: Path
) -> None:
    publish_and_follow(cluster, [make_database(), make_database()], tmp_path)


@pytest.mark.soak
def test_the_image_is_built_and_two_nodes_run_from_it(
    cluster: embedded.Cluster, make_database: Callable[[], str], tmp_path: Path
) -> None:
    subprocess.run([containers.BUILD], check=True)
    publish_and_follow(cluster, [make_database(), make_database()], tmp_path)


def publish_and_follow(cluster: embedded.Cluster, databases: list[str], folder: Path) -> None:
    """Publish at a node of the image, and find it at an index node of the image."""
    writer, follower = (over_tcp(cluster, name_in(dsn)) for dsn in databases)
    tokens = asyncio.run(issue(databases[0], "admin", "node:east"))
    with containers.container() as box:
        look_inside(box)
        migrated = box.run("fedstac", "migrate", FEDSTAC_OWNER_DSN=writer.replace("fedstac_writer", "fedstac_owner"))
        assert (migrated.returncode, migrated.stdout) == (0, "up to date; nothing to do\n"), migrated.stderr
        west, east = free_port(), free_port()
        settings = {"FEDSTAC_HOST": "127.0.0.1", "FEDSTAC_NODE": "west", "FEDSTAC_DSN": writer}
        following = {
            "FEDSTAC_HOST": "127.0.0.1", "FEDSTAC_NODE": "east", "FEDSTAC_DSN": follower,
            "FEDSTAC_SOURCE": f"http://127.0.0.1:{west}", "FEDSTAC_SOURCE_TOKEN": tokens["node:east"],
        }  # fmt: skip
        entrypoint, role = box.config["Entrypoint"], box.config["Cmd"]
        assert (entrypoint, role) == (["fedstac"], ["serve"])
        with (
            box.running("fedstac", "serve", log=folder / "west.log", FEDSTAC_PORT=str(west), **settings),
            box.running("fedstac", "index-node", log=folder / "east.log", FEDSTAC_PORT=str(east), **following),
        ):
            wait_until(lambda: answers(west) and answers(east), what=str(folder))
            [item] = sample.items(1)
            with Client(f"http://127.0.0.1:{west}", tokens["admin"]) as client:
                client.create_collection(sample.collection())
                *_, request = client.wait(client.submit("CMIP6", [item]).id, visible_at=["east"])
                assert request.status == "done"
            found = httpx.get(f"http://127.0.0.1:{east}/collections/CMIP6/items/{item['id']}", trust_env=False)
            assert found.status_code == 200
            alive = box.run(*healthcheck(box), FEDSTAC_HOST="127.0.0.1", FEDSTAC_PORT=str(west))
            assert alive.returncode == 0, alive.stderr
            dead = box.run(*healthcheck(box), FEDSTAC_PORT="9", FEDSTAC_METRICS_PORT="10")
            assert dead.returncode == 5


def look_inside(box: Container) -> None:
    """Look that it runs as nobody in particular, and has neither tools that build nor the packages of tests."""
    assert box.run("id", "-u").stdout == "10001\n"
    found = box.run("sh", "-c", f"command -v {' '.join(UNWANTED)}; true").stdout
    assert found == ""
    packages = box.run("python3", "-c", "import importlib.metadata as m; print(*(d.name for d in m.distributions()))")
    names = set(packages.stdout.split())
    assert {"fedstac", "asyncpg", "confluent-kafka", "nats-py"} <= names
    assert not {"pytest", "mypy", "ruff", "pip", "setuptools", "hatchling"} & names
    writable = box.run("sh", "-c", "find / -xdev -writable -type f -not -path '/proc/*' -not -path '/sys/*'").stdout
    assert [line for line in writable.splitlines() if not line.startswith(("/dev/", "/tmp/"))] == []


def healthcheck(box: Container) -> list[str]:
    kind, *command = box.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    return list(command)


def over_tcp(cluster: embedded.Cluster, database: str) -> str:
    """Return the DSN of the writer by loopback, with a password for it and the owner."""
    with psycopg.connect(cluster.dsn(), autocommit=True) as conn:
        for role in ("fedstac_writer", "fedstac_owner"):
            conn.execute(f"ALTER ROLE {role} PASSWORD '{SECRET}'")
    return f"postgresql://fedstac_writer:{SECRET}@127.0.0.1:{cluster.port}/{database}"


async def issue(dsn: str, *roles: str) -> dict[str, str]:
    conn = await connections.connect(dsn)
    try:
        return {role: await nodes.issue_token(conn, role, [role]) for role in roles}
    finally:
        await conn.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthcheck", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
