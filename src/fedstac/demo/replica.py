"""A replica node in a demonstration: west's files behind a file server, the node, and a server of the node's copies."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from fedstac.db import connections
from fedstac.demo import identity_provider
from fedstac.demo.federation import WEST, Federation, ProcessFailed
from fedstac.demo.files import SHA256, FileFolder, datasets
from fedstac.demo.publishing import DEADLINE_SECONDS

NODE = "replica"
PROVIDER = "identity-provider"  # a process
DATASETS = 24  # that have files
FILES, COPIES = "file-server", "replica-files"  # processes that serve west's files and the copies
POLICY = """\
version: 1
budget: 1 GB
rules:
  - name: small datasets        # no other dataset of the demonstration is as small
    where: size < 1000000
    action: replicate
    on_retracted: restrict
sources:
  - name: west
    hosts: ["{url}"]
    private: true               # an address of this machine
    connections: 8
"""


@dataclass(frozen=True, slots=True)
class RunningIssuer:
    """An identity provider that runs: its address, and the secrets of replica nodes by client id."""

    url: str
    secrets: Mapping[str, str] = field(repr=False)


def start_provider(running: Federation, replica_nodes: Sequence[str]) -> RunningIssuer:
    """Start the identity provider; it knows each of these replica nodes by a new secret."""
    clients = {identity_provider.replica_client_of(node): secrets.token_urlsafe(24) for node in replica_nodes}
    process = running.start(PROVIDER, PROVIDER, FEDSTAC_REPLICA_SECRETS=json.dumps(clients))
    return RunningIssuer(process.url, clients)


@dataclass(frozen=True, slots=True)
class ReplicaPlace:
    """A replica node's name, its policy file, the folder of its copies and the address at which they are served."""

    node: str
    policy: Path
    copies: Path
    url: str


def start_replica_node(running: Federation, place: ReplicaPlace, provider: RunningIssuer, **environment: str) -> None:
    """Start a replica node with a database of its own; it follows west."""
    client_id = identity_provider.replica_client_of(place.node)
    running.make_database(place.node)
    running.start(
        place.node, "replica-node", node=place.node, FEDSTAC_SOURCE=running.address_of(WEST), FEDSTAC_PORT="0",
        FEDSTAC_REPLICA_POLICY=str(place.policy), FEDSTAC_REPLICA_FOLDER=str(place.copies),
        FEDSTAC_REPLICA_URL=place.url, FEDSTAC_REPLICA_ISSUER=provider.url, FEDSTAC_REPLICA_CLIENT_ID=client_id,
        FEDSTAC_REPLICA_CLIENT_SECRET=provider.secrets[client_id], **environment,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReplicaFigures:
    """What a replica node has: datasets and those announced, files and their bytes, and files whose bytes were right.

    datasets: announced by the node's own catalogue. files, bytes: on the disk. announced: datasets of which an index
    node shows a copy of each file. verified: files that were read where that index node says they are, and have the
    size and checksum of the original.
    """

    datasets: int = 0
    files: int = 0
    bytes: int = 0
    announced: int = 0
    verified: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaDemo:
    """What is beside the federation: the replica node, and west's datasets with files."""

    running: Federation
    provider: RunningIssuer
    place: ReplicaPlace
    items: Sequence[Mapping[str, Any]]  # the datasets that have files

    def settings_line(self) -> str:
        """Return the settings with which a command speaks to the node, as a line of a shell."""
        values = {
            "NODE": NODE, "DSN": self.running.database_of(NODE), "REPLICA_POLICY": str(self.place.policy),
            "REPLICA_FOLDER": str(self.place.copies), "REPLICA_URL": self.place.url,
        }  # fmt: skip
        return " ".join(f"FEDSTAC_{name}={shlex.quote(value)}" for name, value in values.items())

    def start_node(self) -> None:
        """Start the replica node."""
        start_replica_node(self.running, self.place, self.provider)

    async def wait_until_announced(self, on_progress: Callable[[int], object] = lambda n: None) -> None:
        """Wait until the node has announced the datasets with files.

        ProcessFailed where it has parked one, or takes too long.

        `on_progress` is called with the number of those that it has announced.
        """
        deadline = time.monotonic() + DEADLINE_SECONDS
        ids = [str(item["id"]) for item in self.items]
        conn = await connections.connect(self.running.database_of(NODE))
        try:
            while True:
                rows = await conn.fetch(
                    """SELECT d.id, d.state, d.reason FROM unnest($1::text[]) AS wanted (id)
                       LEFT JOIN fedstac.replica_dataset d ON d.id = wanted.id AND d.collection = 'CMIP6'
                       WHERE d.state IS DISTINCT FROM 'announced'""",
                    ids,
                )
                on_progress(len(ids) - len(rows))
                if not rows:
                    return
                parked = [row for row in rows if row["state"] == "parked"]
                if parked or time.monotonic() > deadline:
                    [first, *_] = parked or rows
                    raise ProcessFailed(
                        f"{len(rows)} datasets have no replica yet; {first['id'] or 'the first'} is "
                        f"{first['state'] or 'unknown'}: {first['reason']}"
                    )
                self.running.check_running()
                await asyncio.sleep(0.1)
        finally:
            await conn.close()


async def measure(running: Federation, place: ReplicaPlace, index_node: str) -> ReplicaFigures:
    """Read a node's catalogue, the disk, and what an index node says; read every file where it says it is."""
    conn = await connections.connect(running.database_of(place.node))
    try:
        ids = [str(row["id"]) for row in await conn.fetch(
            "SELECT id FROM fedstac.replica_dataset WHERE state = 'announced' ORDER BY id"
        )]  # fmt: skip
    finally:
        await conn.close()
    sizes = [path.stat().st_size for path in _files_below(place.copies)]
    complete = right = 0
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        async for item in _items(http, running.address_of(index_node), ids):
            originals = [asset for asset in item["assets"].values() if "file:checksum" in asset]
            entries = [asset.get("alternate", {}).get(place.node) for asset in originals]
            complete += bool(entries) and all(entries)
            for asset, entry in zip(originals, entries, strict=True):
                right += entry is not None and await _is_right(http, entry["href"], asset)
    return ReplicaFigures(len(ids), len(sizes), sum(sizes), complete, right)


def prepare(
    running: Federation, provider: RunningIssuer, folder: Path, *, port: int = 0, count: int = DATASETS
) -> ReplicaDemo:
    """Start the file servers of west and of the node; their folders lie below this one.

    Addresses of files are a part of datasets. So their ports are kept there, and taken again. `port`: the first time,
    these two from it on; 0: free ones. `count`: of datasets with files.
    """
    originals, copies, note = folder / "west", folder / NODE, folder / "ports.json"
    for each in (originals, copies):
        each.mkdir(parents=True, exist_ok=True)
    ports = json.loads(note.read_text()) if note.is_file() else {
        FILES: port, COPIES: port + 1 if port else 0
    }  # fmt: skip
    for name, below in ((FILES, originals), (COPIES, copies)):
        process = running.start(name, "file-server", str(below), "--port", str(ports[name]))
        ports[name] = urlsplit(process.url).port
    note.write_text(json.dumps(ports))
    files = FileFolder(originals, running.processes[FILES].url)
    place = ReplicaPlace(NODE, folder / "policy.yaml", copies, running.processes[COPIES].url)
    place.policy.write_text(POLICY.format(url=files.url))
    return ReplicaDemo(running, provider, place, list(datasets(count, files)))


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files that are served: none whose name, or whose folder's, begins with a dot."""
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


async def _items(http: httpx.AsyncClient, url: str, ids: Sequence[str]) -> AsyncIterator[dict[str, Any]]:
    """Yield the documents of datasets at an index node, those that it has."""
    for start in range(0, len(ids), 100):
        body = {"ids": ids[start : start + 100], "limit": 100, "collections": ["CMIP6"]}
        response = await http.post(f"{url}/search", json=body)
        response.raise_for_status()
        for item in response.json()["features"]:
            yield item


async def _is_right(http: httpx.AsyncClient, href: str, asset: Mapping[str, Any]) -> bool:
    """Read a copy, and return whether it has the size and checksum of the original."""
    digest, size = hashlib.sha256(), 0
    async with http.stream("GET", href) as response:
        if response.status_code != 200:
            return False
        async for piece in response.aiter_bytes():
            digest.update(piece)
            size += len(piece)
    return bool(size == asset["file:size"] and SHA256 + digest.hexdigest() == asset["file:checksum"])
