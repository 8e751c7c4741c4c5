"""`fedstac replica policy check`, `plan` and `catalogue`, and the reload of the policy while a node runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from fedstac.bootstrap import Node
from fedstac.db.connections import Connection
from fedstac.domain.replication.policy import ReplicaPolicy
from fedstac.replication.policy_file import PolicyFile
from fedstac.workers import replica_policy
from fedstac.workers.replica_policy import PolicyReload
from tests.replication.catalogue_rows import NOTHING_WANTED, POLICY, queued, take_in
from tests.support.commands import Fedstac
from tests.support.waiting import until


@pytest.fixture
def policy_path(tmp_path: Path) -> Path:
    path = tmp_path / "replica.yaml"
    path.write_text(POLICY)
    return path


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)


async def test_check_shows_rules_tiers_sources_and_faults(fedstac: Fedstac, policy_path: Path) -> None:
    result = await fedstac("replica", "policy", "check", str(policy_path), "-o", "json")
    assert result.code == 0, result.stderr
    shown: dict[str, Any] = orjson.loads(result.stdout)
    assert shown["valid"]
    assert [rule["name"] for rule in shown["rules"]] == ["drafts", "model A", "model B", "model C"]
    assert shown["tiers"] == {"archive": "/archive"}
    rewrite(policy_path, POLICY.replace("restrict", "restict"))
    broken = await fedstac("replica", "policy", "check", str(policy_path))
    assert broken.code == 1
    assert "line 12: rules[2] (model B).action 'restict' is not one of replicate, restrict, ignore" in " ".join(
        broken.stderr.split()
    )


async def test_a_policy_file_that_is_not_there_is_wrong_usage(fedstac: Fedstac, tmp_path: Path) -> None:
    missing = tmp_path / "gone.yaml"
    says = f"{missing} cannot be read: no such file; name the policy file, or set FEDSTAC_REPLICA_POLICY"
    for command in (("policy", "check"), ("plan",)):
        for form in ("table", "json"):
            result = await fedstac("replica", *command, str(missing), "-o", form)
            assert (result.code, result.stdout) == (2, "")
            assert says in " ".join(result.stderr.split())


async def test_plan_names_each_fault_in_a_line_of_its_own(fedstac: Fedstac, tmp_path: Path) -> None:
    path = tmp_path / "replica.yaml"
    path.write_text("version: 2\nrules: 7\nsources: 8\n")
    result = await fedstac("replica", "plan", str(path), "-o", "json")
    assert result.code == 2
    faults = [orjson.loads(line)["error"]["detail"] for line in result.stderr.splitlines()]
    assert [fault.removeprefix(f"{path}: ")[:6] for fault in faults] == ["line 1", "line 2", "line 3"]
    path.write_text("version: 1\nrules: []\nsources: [\n")
    broken = await fedstac("replica", "plan", str(path), "-o", "json")
    assert f"{path}: line 4: it is no YAML here; see to brackets, quotes and indents" in broken.stderr


async def test_plan_and_catalogue_say_what_is_wanted_and_what_is_not(
    fedstac: Fedstac, conn: Connection, dsn: str, policy_path: Path
) -> None:
    await take_in(conn, ReplicaPolicy.parse(NOTHING_WANTED), 60)
    result = await fedstac("replica", "plan", "-o", "json", FEDSTAC_DSN=dsn, FEDSTAC_REPLICA_POLICY=str(policy_path))
    assert result.code == 0, result.stderr
    plan = orjson.loads(result.stdout)
    assert plan["looked_at"] == 60
    assert {line["effect"] for line in plan["lines"]} == {"copy", "note"}
    assert await queued(conn) == {}
    listed = await fedstac("replica", "catalogue", "-o", "ndjson", "-c", "CMIP7", FEDSTAC_DSN=dsn)
    assert listed.code == 0, listed.stderr
    assert {row["collection"] for row in listed.lines} == {"CMIP7"}
    assert "no rule of the policy fits it" in {row["reason"] for row in listed.lines}


async def test_a_running_node_does_what_a_changed_file_says_once(
    node: Node, conn: Connection, policy_path: Path
) -> None:
    rewrite(policy_path, NOTHING_WANTED)
    file = PolicyFile(policy_path)
    await take_in(conn, file.current, 60)
    reload = PolicyReload(node, file)
    first = await reload.step()
    assert first is not None
    assert first.lines == []
    assert await reload.step() is None
    rewrite(policy_path, POLICY)
    assert file.look()
    second = await reload.step()
    assert second is not None
    assert len(await queued(conn)) == sum(line.datasets for line in second.lines if line.effect == "copy") > 0
    assert await reload.step() is None
    rewrite(policy_path, "version: 1\n")
    assert not file.look()
    assert await reload.step() is None
    assert file.alert is not None


async def test_the_part_of_a_node_applies_the_file_and_says_what_ails_a_broken_one(
    node: Node, conn: Connection, policy_path: Path
) -> None:
    rewrite(policy_path, NOTHING_WANTED)
    file = PolicyFile(policy_path)
    await take_in(conn, file.current, 30)
    stop = asyncio.Event()
    part = asyncio.create_task(replica_policy.run(node, stop, policy_file=file))
    rewrite(policy_path, POLICY)
    await until(lambda: queued(conn))
    rewrite(policy_path, "version: 1\n")

    async def trouble() -> str:
        return node.parts.troubles().get(replica_policy.PART, "")

    assert "the last good one counts" in await until(trouble)
    stop.set()
    await asyncio.wait_for(part, 10)
