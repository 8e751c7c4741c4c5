"""`fedstac audit`: what is listed, exported and verified, and how it exits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import asyncpg
import psycopg
import pytest

from fedstac.bootstrap import Node
from fedstac.db import audit, own_groups, people
from fedstac.db.connections import Connection
from fedstac.db.own_groups import GroupRole
from fedstac.demo import embedded, sample
from fedstac.domain.groups import Identity
from tests.db import writing
from tests.support.commands import Fedstac
from tests.support.databases import name_in

[ITEM, *MORE] = sample.items(12)
ANNA = Identity("https://aai.example/x", "anna-1", "Anna", "anna@example.org", "", frozenset(), (), frozenset())


@pytest.fixture
async def logged(node: Node, conn: asyncpg.Connection[asyncpg.Record]) -> Connection:
    """A log of a dozen writes, what they demoted, and a refusal, with places."""
    await writing.create_collections(node, "CMIP6")
    await writing.publish(conn, ITEM, *MORE)
    await writing.publish(conn, {**writing.plain(1), "collection": "gone"})
    await audit.chain(conn)
    return conn


@pytest.fixture
def auditor(cluster: embedded.Cluster, dsn: str) -> dict[str, str]:
    """The variables of somebody who may read the log and nothing else."""
    name = name_in(dsn)
    return {"FEDSTAC_AUDITOR_DSN": cluster.dsn(name, user="fedstac_auditor"), "FEDSTAC_DSN": "postgresql://127.0.0.1:9"}


@pytest.fixture
def tamper(cluster: embedded.Cluster, dsn: str) -> Callable[[str], None]:
    def run(statement: str) -> None:
        with psycopg.connect(cluster.dsn(name_in(dsn))) as conn:
            conn.execute(statement.encode())

    return run


async def test_rows_are_listed_newest_first_by_what_is_asked(
    logged: Connection, auditor: dict[str, str], fedstac: Fedstac
) -> None:
    done = await fedstac("audit", "list", "-o", "ndjson", **auditor)
    assert (done.code, done.stderr) == (0, "")
    assert [row["pos"] for row in done.lines] == list(range(len(done.lines), 0, -1))
    rejected = await fedstac("audit", "list", "--outcome", "rejected", "-o", "json", **auditor)
    [refused] = json.loads(rejected.stdout)
    assert (refused["decision"], refused["rule"]) == ("refused", "collection-does-not-exist")
    mine = await fedstac("audit", "list", "--dataset", ITEM["id"], "--who", "anna", "-o", "ndjson", **auditor)
    assert [row["dataset"] for row in mine.lines] == [ITEM["id"]]
    assert not (await fedstac("audit", "list", "--since", "2999-01-01", "-o", "ndjson", **auditor)).lines
    assert len((await fedstac("audit", "list", "--limit", "3", "-o", "ndjson", **auditor)).lines) == 3
    wrong = await fedstac("audit", "list", "--since", "yesterday", **auditor)
    assert (wrong.code, "is no time" in wrong.stderr) == (2, True)
    wrong = await fedstac("audit", "list", "--outcome", "refused", **auditor)
    assert (wrong.code, "is not one of new, newer" in wrong.stderr) == (2, True)


async def test_the_table_fits_80_columns(logged: Connection, auditor: dict[str, str], fedstac: Fedstac) -> None:
    await audit.append(logged, [audit.NewRow("x" * 200, "y" * 200, "z" * 90, "\x1b[31m", None, "new", None, None)])
    await audit.append(logged, [audit.NewRow("anna", "POST /groups", "", "", None, "rejected", None, None)])
    done = await fedstac("audit", "list", **auditor)
    assert done.code == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert all(line.strip() for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout
    assert ITEM["id"][:50] in done.stdout
    assert "rejected, collection-does-not-exist, by anna" in done.stdout


async def test_a_whole_log_verifies_and_a_broken_one_exits_1(
    logged: Connection, auditor: dict[str, str], fedstac: Fedstac, tamper: Callable[[str], None]
) -> None:
    done = await fedstac("audit", "verify", **auditor)
    assert (done.code, done.stderr) == (0, "")
    assert "whole up to position" in done.stdout
    tamper("UPDATE fedstac.audit SET actor = 'eve' WHERE id = (SELECT id FROM fedstac.audit_chain WHERE pos = 4)")
    done = await fedstac("audit", "verify", **auditor)
    assert (done.code, done.stdout) == (1, "")
    assert "broken at position 4" in done.stderr
    done = await fedstac("audit", "verify", "-o", "json", **auditor)
    assert (done.code, json.loads(done.stdout)["position"]) == (1, 4)


async def exported(fedstac: Fedstac, path: Path, *arguments: str, **variables: str) -> list[dict[str, object]]:
    done = await fedstac("audit", "export", *arguments, **variables)
    assert done.code == 0, done.stderr
    path.write_text(done.stdout)  # noqa: ASYNC240
    return done.lines


async def test_an_export_is_verified_without_a_database(
    logged: Connection, auditor: dict[str, str], fedstac: Fedstac, tmp_path: Path
) -> None:
    path = tmp_path / "log.ndjson"
    first, *rows, last = await exported(fedstac, path, FEDSTAC_AUDIT_KEY="secret", **auditor)
    assert first["begins"] == {"pos": 0, "hash": "00" * 32}
    assert len(rows) == last["checkpoint"]["pos"] == 15  # type: ignore[index]
    assert last["checkpoint"]["node"] == "west"  # type: ignore[index]
    nowhere = {"FEDSTAC_DSN": "postgresql://127.0.0.1:9"}
    for key, code in (("secret", 0), ("", 0), ("another", 1)):
        done = await fedstac("audit", "verify", "--file", "log.ndjson", FEDSTAC_AUDIT_KEY=key, **nowhere)
        assert done.code == code, done.stderr
    lines = path.read_bytes().splitlines(keepends=True)
    swapped = [*lines[:4], lines[5], lines[4], *lines[6:]]
    changed = [line.replace(b'"anna"', b'"evee"') if n == 6 else line for n, line in enumerate(lines)]
    for broken, message in (
        (swapped, "position 4"), (changed, "position 6"), (lines[:5] + lines[6:], "position 5"),
        (lines[:-1], "cut off after position 15"), (lines[:-2] + lines[-1:], "position 14"), (lines[1:], "first line"),
        ([b"{}\n"], "line 1 is no line"), ([], "first line"), ([*lines, lines[3]], "behind the checkpoint"),
    ):  # fmt: skip
        path.write_bytes(b"".join(broken))
        done = await fedstac("audit", "verify", "--file", "log.ndjson", **nowhere)
        assert (done.code, message in done.stderr) == (1, True), (message, done.stderr)


async def test_an_export_from_a_time_on_is_whole_by_itself(
    logged: Connection, auditor: dict[str, str], fedstac: Fedstac, tmp_path: Path
) -> None:
    since = await logged.fetchval("SELECT clock_timestamp()::text")
    await writing.publish(logged, writing.titled(ITEM, "later"))
    await audit.chain(logged)
    first, *rows, last = await exported(
        fedstac, tmp_path / "log.ndjson", "--since", since.replace("+00", "Z"), **auditor
    )
    assert (first["begins"]["pos"], len(rows), last["checkpoint"]["pos"]) == (15, 1, 16)  # type: ignore[index]
    assert (await fedstac("audit", "verify", "--file", "log.ndjson")).code == 0
    none = await exported(fedstac, tmp_path / "none.ndjson", "--since", "2999-01-01", **auditor)
    assert len(none) == 2
    assert (await fedstac("audit", "verify", "--file", "none.ndjson")).code == 0


async def test_a_log_that_was_cut_off_and_rewritten_is_found_by_an_earlier_export(
    logged: Connection, auditor: dict[str, str], fedstac: Fedstac, tmp_path: Path, tamper: Callable[[str], None]
) -> None:
    await exported(fedstac, tmp_path / "log.ndjson", **auditor)
    await audit.append(logged, [audit.NewRow("anna", "publish", "c", "d", None, "new", None, None)])
    await audit.chain(logged)
    assert (await fedstac("audit", "verify", "--against", "log.ndjson", **auditor)).code == 0
    tamper(
        """DELETE FROM fedstac.audit WHERE id IN (SELECT id FROM fedstac.audit_chain WHERE pos > 10);
           DELETE FROM fedstac.audit_chain WHERE pos > 10;
           UPDATE fedstac.audit_head SET (pos, hash) = (SELECT pos, hash FROM fedstac.audit_chain WHERE pos = 10)"""
    )
    assert (await fedstac("audit", "verify", **auditor)).code == 0
    done = await fedstac("audit", "verify", "--against", "log.ndjson", **auditor)
    assert done.code == 1
    assert "it is not the log that was exported at" in done.stderr


# --- people


async def test_a_person_is_erased_and_the_log_keeps_the_pseudonym(
    cluster: embedded.Cluster, dsn: str, logged: Connection, fedstac: Fedstac
) -> None:
    who = await people.pseudonym(logged, ANNA)
    other = await people.pseudonym(logged, replace(ANNA, subject="anna-2"))
    await audit.append(logged, [audit.NewRow(who, "publish", "c", "d", None, "new", None, None)])
    await audit.chain(logged)
    name = name_in(dsn)
    deleter = {"FEDSTAC_DELETER_DSN": cluster.dsn(name, user="fedstac_deleter")}
    done = await fedstac("admin", "erase-person", who, **deleter)
    assert (done.code, done.stderr) == (0, "")
    stored = await logged.fetch("SELECT * FROM fedstac.person")
    assert [f"person:{row['pseudonym']}" for row in stored] == [other]
    await audit.chain(logged)
    assert await audit.verify(logged) == await audit.head(logged)
    [row] = [row async for row in audit.rows(logged, audit.RowFilter(who=who))]
    assert (row.actor, row.issuer) == (who, "aai.example")
    [erased] = [row async for row in audit.rows(logged, audit.RowFilter(dataset=who))]
    assert (erased.actor, erased.action) == ("database:fedstac_deleter", "erase-person")
    assert await people.pseudonym(logged, ANNA) not in (who, other)  # who comes back is somebody new
    assert (await fedstac("admin", "erase-person", who, **deleter)).code == 3
    assert (await fedstac("admin", "erase-person", "anna", **deleter)).code == 2
    denied = await fedstac("admin", "erase-person", other, "--dsn", dsn)
    assert denied.code != 0
    assert "permission denied" in denied.stderr


async def test_a_person_leaves_a_project_and_leaves_for_good(
    cluster: embedded.Cluster, dsn: str, logged: Connection, fedstac: Fedstac
) -> None:
    who = await people.pseudonym(logged, ANNA)
    await own_groups.create(logged, "six", "CMIP6", "NCAR", "", "admin")
    await own_groups.add(logged, "six", who, GroupRole.MEMBER, "admin")
    deleter = {"FEDSTAC_DELETER_DSN": cluster.dsn(name_in(dsn), user="fedstac_deleter")}
    preview = await fedstac("person", "leave", who, "--project", "CMIP6", "--dry-run", "-o", "json", **deleter)
    assert (preview.code, preview.stderr) == (0, "")
    shown = json.loads(preview.stdout)
    assert shown["closes"]["groups"] == [{"group": "six", "project": "CMIP6", "part": "member"}]
    assert (shown["dry_run"], shown["stays"]) == (True, {"datasets": 0})
    done = await fedstac("person", "leave", who, "--project", "CMIP6", **deleter)
    assert (done.code, done.stdout.splitlines()) == (0, [f"{who}  closed", "  member    six (CMIP6)"])
    again = await fedstac("person", "leave", who, "--project", "CMIP6", **deleter)
    assert (again.code, again.stdout) == (0, f"nothing of {who} is here that closes\n")
    unasked = await fedstac("person", "erase", who, **deleter)
    assert (unasked.code, "--yes" in unasked.stderr) == (2, True)
    erased = await fedstac("person", "erase", who, "--yes", **deleter)
    assert (erased.code, erased.stdout.splitlines()) == (0, [f"{who}  closed", "  identity  who it is"])
    assert (await fedstac("person", "erase", who, "--yes", **deleter)).code == 0
    assert (await fedstac("person", "erase", "anna", "--yes", **deleter)).code == 2
    denied = await fedstac("person", "leave", who, "--project", "CMIP6", "--dsn", dsn)
    assert (denied.code != 0, "permission denied" in denied.stderr) == (True, True)


@pytest.mark.parametrize("command", ["", "list", "verify", "export"])
async def test_help_fits_80_columns(command: str, fedstac: Fedstac) -> None:
    done = await fedstac("audit", *command.split(), "--help")
    assert (done.code, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "Examples" in done.stdout or not command
