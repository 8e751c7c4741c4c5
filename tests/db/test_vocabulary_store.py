"""The vocabularies of a running node, and those that its database keeps."""

from __future__ import annotations

from structlog.testing import capture_logs

from fedstac.bootstrap import Node
from fedstac.db.connections import Connection
from fedstac.settings import folder
from fedstac.vocabularies import store
from fedstac.vocabularies.registry import snapshot_of

RAW = (folder("cv") / "CMIP6" / "6.2.60.0.json").read_bytes()
NEXT = RAW.replace(b'"version":"6.2.60.0"', b'"version":"6.2.61.0"', 1)
OTHER = RAW.replace(b'"title":"CMIP6"', b'"title":"Other"', 1)


async def put(conn: Connection, version: str, raw: bytes, digest: str = "00") -> None:
    await conn.execute(
        "INSERT INTO fedstac.vocabulary (project, version, digest, snapshot, source) VALUES ('CMIP6', $1, $2, $3, 'x')",
        version, bytes.fromhex(digest), raw,
    )  # fmt: skip


async def test_what_cannot_be_used_is_told_once_and_hides_nothing(node: Node, conn: Connection) -> None:
    await put(conn, "7", b"{}")
    await put(conn, "8", NEXT, snapshot_of(NEXT).digest)  # another version's content
    await store.install(conn, OTHER, "somebody")
    await store.install(conn, NEXT, "somebody")
    with capture_logs() as first:
        await node.vocabulary_store.look(conn)
    unusable = "a vocabulary in the database cannot be used"
    assert sorted((line["event"], line["version"]) for line in first) == [
        (unusable, "6.2.60.0"), (unusable, "7"), (unusable, "8"), ("vocabulary installed", "6.2.61.0"),
    ]  # fmt: skip
    with capture_logs() as again:
        await node.vocabulary_store.look(conn)
    assert again == []
    await put(conn, "9", b"{}")
    with capture_logs() as later:
        await node.vocabulary_store.look(conn)
    assert [line["version"] for line in later] == ["9"]


async def test_keeping_is_harmless_however_often_and_from_however_many(node: Node, conn: Connection) -> None:
    for _ in range(2):
        await node.vocabulary_store.keep(node.pool, "CMIP6", "6.2.60.0")
        await node.vocabulary_store.keep(node.pool, "CMIP6", None)
    await store.install(conn, RAW, "another process")
    rows = await conn.fetch("SELECT project, version, source, snapshot FROM fedstac.vocabulary")
    assert [tuple(row) for row in rows] == [("CMIP6", "6.2.60.0", "west", RAW)]
