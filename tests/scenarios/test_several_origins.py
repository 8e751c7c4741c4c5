"""Two publishing nodes that share a project, each the home of its institutions, and an index node that follows both."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from fedstac.demo import embedded, sample
from fedstac.demo.federation import Federation, federation
from tests.scenarios import watching
from tests.scenarios.watching import (
    Publisher,
    client,
    differences,
    log_lines,
    matched,
    parked,
    settle,
    values,
    violations,
    wait_until,
)
from tests.support.forking import Forks

pytestmark = [pytest.mark.xdist_group("several-origins"), pytest.mark.long]

HOMES = {"NCAR": "west", "MPI-M": "north"}
ITEMS = "/collections/CMIP6/items"
Json = dict[str, Any]
OnEast = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def policy(folder: Path) -> Path:
    return folder / "homes.yaml"


@pytest.fixture(scope="module")
def running(durable: embedded.Cluster, policy: Path) -> Iterator[Federation]:
    """West and north with the collection CMIP6 each, east that follows both; the policy names homes."""
    policy.write_text("version: 1\nbuiltin: true\n")
    with federation(durable, index_nodes=("east", "south"), publishing=("west", "north"), prefix="homes_") as made:
        made.start("serve", "serve", FEDSTAC_PORT="0", FEDSTAC_POLICY=str(policy))
        made.start_publishing_node("north", FEDSTAC_POLICY=str(policy))
        for node in HOMES.values():
            watching.make_collection(made, node)
        lines = [
            f'  - {{projects: [CMIP6], institutions: [{name}], node: {node}, url: "{made.address_of(node)}"}}'
            for name, node in HOMES.items()
        ]
        policy.write_text("\n".join(["version: 1", "builtin: true", "homes:", *lines]) + "\n")
        for name in ("serve", "north"):  # on the same ports
            made.processes[name].kill()
            made.restart(name)
        made.start_index_node("east", sources=("west", "north"))
        yield made


@pytest.fixture(scope="module")
def items() -> dict[str, Iterator[Json]]:
    """Datasets by institution, each of a lineage that no other test has."""
    everything = list(sample.items(4000, versions=1))
    return {name: iter([item for item in everything if item["id"].split(".")[2] == name]) for name in HOMES}


def settle_both(running: Federation) -> None:
    for node in HOMES.values():
        settle(running, at=node)


def at_home(running: Federation, items: dict[str, Iterator[Json]], institution: str, count: int) -> list[Json]:
    """Publish new datasets of an institution at its home."""
    made = [next(items[institution]) for _ in range(count)]
    Publisher(running, node=HOMES[institution]).publish(made)
    return made


def found(running: Federation, item: Json) -> bool:
    url = f"{running.processes['east'].url}{ITEMS}/{item['id']}"
    return httpx.get(url, trust_env=False).status_code == 200


def health(running: Federation) -> tuple[str, dict[str, str]]:
    health = httpx.get(f"{running.processes['east'].url}/healthcheck", trust_env=False).json()
    return health["follower"], health["origins"]


@pytest.fixture
def on_east(running: Federation, command_forks: Forks) -> OnEast:
    """Runs a command with east's settings, as its operator does."""

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command_forks.program, *command], env=dict(running.processes["east"].environment),
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_a_write_at_another_node_is_told_its_home_and_both_are_found(
    running: Federation, items: dict[str, Iterator[Json]]
) -> None:
    for institution, home in HOMES.items():
        item = next(items[institution])
        wrong = next(node for node in HOMES.values() if node != home)
        with client(running, node=wrong) as http:
            answer = http.post(ITEMS, json=item)
        assert answer.status_code == 421, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert (problem["code"], problem["home"]) == ("misdirected", {"node": home, "href": running.address_of(home)})
        assert running.address_of(home) in problem["detail"]
        with client(running, node=home) as http:
            accepted = http.post(problem["home"]["href"] + ITEMS, json=item)
        assert accepted.status_code == 202, accepted.text
        settle(running, at=home)
        assert found(running, item)
        assert values(running, "SELECT origin FROM fedstac.record WHERE id = %s", item["id"], at="east") == [home]
    for origin in HOMES.values():
        assert differences(running, "east", origin) == []
        assert values(running, "SELECT DISTINCT origin FROM fedstac.record", at=origin) == [origin]
    assert violations(running, "east") == []


def test_verify_compares_with_both(running: Federation, items: dict[str, Iterator[Json]], on_east: OnEast) -> None:
    for institution in HOMES:
        at_home(running, items, institution, 5)
    settle_both(running)
    done = on_east("verify", "-o", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [(each["origin"], each["compared"] >= 5) for each in report["origins"]] == [("west", True), ("north", True)]
    only = on_east("verify", "--source", running.address_of("north"))
    assert (only.returncode, only.stdout) == (0, "")
    assert "north: " in only.stderr
    assert "west: " not in only.stderr


@pytest.mark.parametrize("gone", ["north", "west"])
def test_one_origin_that_is_away_does_not_stop_the_other(
    running: Federation, items: dict[str, Iterator[Json]], gone: str, on_east: OnEast
) -> None:
    [away, here] = sorted(HOMES, key=lambda institution: HOMES[institution] != gone)
    name = "serve" if gone == "west" else gone
    before = at_home(running, items, away, 3)
    settle_both(running)
    shown = matched(running)
    running.processes[name].kill()
    states = {HOMES[away]: "absent", HOMES[here]: "following"}
    wait_until(lambda: health(running) == ("partly", states), what="east notices that one is away")
    published = at_home(running, items, here, 10)
    settle(running, at=HOMES[here])
    assert all(found(running, item) for item in (*before, *published))
    assert matched(running) == shown + 10
    verified = on_east("verify", "-o", "json")
    assert verified.returncode == 5
    assert [each["origin"] for each in json.loads(verified.stdout)["origins"]] == [HOMES[here]]
    running.restart(name)
    at_home(running, items, away, 3)
    settle_both(running)
    wait_until(lambda: health(running) == ("following", dict.fromkeys(states, "following")), what="east follows both")
    assert violations(running, "east") == []


def test_one_origin_is_rebuilt_and_the_other_stays(
    running: Federation, items: dict[str, Iterator[Json]], on_east: OnEast
) -> None:
    for institution in HOMES:
        at_home(running, items, institution, 4)
    settle_both(running)
    running.processes["east"].kill()
    with psycopg.connect(running.database_of("east"), autocommit=True) as conn:
        conn.execute(
            """UPDATE fedstac.record SET digest = sha256('x')
               WHERE id IN (SELECT max(id) FROM fedstac.record GROUP BY origin)"""
        )
    assert [len(differences(running, "east", origin)) for origin in HOMES.values()] == [1, 1]
    done = on_east("rebuild", "--from", "snapshot", "--source", running.address_of("north"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rebuilt north: ")
    assert [len(differences(running, "east", origin)) for origin in HOMES.values()] == [1, 0]
    done = on_east("rebuild", "--from", "zero")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["rebuilt west", "rebuilt north"]
    assert [differences(running, "east", origin) for origin in HOMES.values()] == [[], []]
    assert violations(running, "east") == []
    running.restart("east")
    settle_both(running)


def test_an_index_node_takes_its_sources_from_the_command_line(running: Federation, command_forks: Forks) -> None:
    running.make_database("south")
    addresses = [running.address_of(node) for node in HOMES.values()]
    tokens = " ".join(running.issued[node]["node:south"] for node in HOMES.values())
    sources = [word for address in addresses for word in ("--source", address)]
    running.start("south", "index-node", *sources, node="south", FEDSTAC_SOURCE_TOKEN=tokens, FEDSTAC_PORT="0")
    try:
        settle(running, ("east", "south"), at="west")
        settle(running, ("east", "south"), at="north")
        assert matched(running, "south") == matched(running, "east")
        for origin in HOMES.values():
            assert differences(running, "south", origin) == []
    finally:
        running.processes.pop("south").kill()
    variables = {**os.environ, "FEDSTAC_SOURCE": " ".join(addresses), "FEDSTAC_SOURCE_TOKEN": "one"}
    refused = subprocess.run(
        [*command_forks.program, "index-node"], env=variables, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 5
    assert "FEDSTAC_SOURCE_TOKEN has 1 tokens for 2 sources" in refused.stderr


def test_a_lineage_that_both_claim_stays_with_the_first_and_the_other_is_told(
    running: Federation, items: dict[str, Iterator[Json]], policy: Path
) -> None:
    policy.write_text("version: 1\nbuiltin: true\n")  # without homes nothing keeps two nodes from the same lineage
    running.processes["north"].kill()
    running.restart("north")
    item = next(items["NCAR"])
    other = {**item, "properties": {**item["properties"], "description": "north's"}}
    Publisher(running).publish([item])
    settle(running)
    Publisher(running, node="north").publish([other])
    settle(running, at="north")
    assert parked(running) == [f"CMIP6/{item['id']}"]
    assert [line["subject"] for line in log_lines(running, "east", "an event is parked")] == parked(running)
    assert len(values(running, "SELECT event_id FROM fedstac.node_exception WHERE node = 'east'", at="north")) == 1
    assert values(running, "SELECT event_id FROM fedstac.node_exception", at="west") == []
    assert values(running, "SELECT origin FROM fedstac.record WHERE id = %s", item["id"], at="east") == ["west"]
    assert differences(running, "east", "west") == []
    assert [each.id for each in differences(running, "east", "north")] == [item["id"]]
    further = next(items["MPI-M"])
    Publisher(running, node="north").publish([further])
    settle(running, at="north")
    assert found(running, further)
