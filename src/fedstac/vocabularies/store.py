"""The vocabularies of a running node: the files that ship with it, and those that its database keeps.

What judges here stays here. Records name the version that they were judged with; their changes, the feed and other
nodes need it long after the package ships it no more. So a version is kept in the database when it is first used.
"""

from __future__ import annotations

import structlog

from fedstac.db import vocabularies as kept
from fedstac.db.connections import Connection
from fedstac.db.pools import Pool
from fedstac.db.vocabularies import SnapshotKey
from fedstac.domain.vocabulary import VocabularyBroken
from fedstac.vocabularies.registry import Snapshot, Vocabularies, snapshot_of

log = structlog.get_logger()


class VocabularyStore:
    """One per process. `vocabularies` are those at hand; the files come first, whatever else has their names."""

    def __init__(self, vocabularies: Vocabularies, node: str) -> None:
        self.vocabularies = vocabularies
        self._node = node
        self._unusable: set[SnapshotKey] = set()
        self._staying: set[tuple[str, str]] = set()

    async def look(self, conn: Connection) -> None:
        """Take up the versions that came into the database since the last look. Log once those that cannot be used."""
        known_keys = {SnapshotKey(one.project, one.version, one.digest) for one in self.vocabularies}
        for key, raw in await kept.beyond(conn, known_keys | self._unusable):
            about = {"project": key.project, "version": key.version, "digest": key.digest}
            try:
                self.vocabularies.install(_snapshot(key, raw))
                log.info("vocabulary installed", **about)
            except VocabularyBroken as error:
                self._unusable.add(key)
                log.error("a vocabulary in the database cannot be used", **about, reason=str(error))

    async def keep(self, pool: Pool, project: str, version: str | None) -> None:
        """Make a version stay here, before anything is stored that was judged with it.

        VocabularyBroken if the database keeps another of that name: two contents must not judge as one version.
        """
        if version is None or (project, version) in self._staying:
            return
        snapshot = self.vocabularies.find(project, version)
        assert snapshot is not None
        async with pool.acquire() as conn:
            await install(conn, snapshot.read(), self._node)
            staying = await kept.digest(conn, project, version)
        if staying != snapshot.digest:
            raise VocabularyBroken(
                f"the database keeps {project} {version} with the sha-256 {staying}, the file's is {snapshot.digest}; "
                f"a version never changes: give the file's content another version"
            )
        self._staying.add((project, version))


async def install(conn: Connection, raw: bytes, source: str) -> Snapshot:
    """Store a snapshot in the database; the same again changes nothing. VocabularyBroken if the bytes are none.

    `Vocabularies.install` of the registry refuses a version that is here with other content.
    """
    snapshot = snapshot_of(raw)
    await kept.insert(conn, SnapshotKey(snapshot.project, snapshot.version, snapshot.digest), raw, source)
    return snapshot


def _snapshot(key: SnapshotKey, raw: bytes) -> Snapshot:
    snapshot = snapshot_of(raw)
    if SnapshotKey(snapshot.project, snapshot.version, snapshot.digest) != key:
        raise VocabularyBroken(f"the content is that of {snapshot.project} {snapshot.version} ({snapshot.digest})")
    return snapshot
