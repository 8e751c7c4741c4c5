"""Services in a demonstration: three examples, filtered subscriptions, grants; then a deletion and a full-state load.

The examples are those of the folder `examples`, each a process of its own. In the end everything is compared with
what searches find at west.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson

from fedstac import settings
from fedstac.demo import sample
from fedstac.demo.deletion import change_each
from fedstac.demo.federation import INDEX_NODES, Federation, ProcessFailed
from fedstac.demo.publishing import DEADLINE_SECONDS, is_sequenced, wait_until_visible
from fedstac.domain.events import Cursor

COLLECTION = "CMIP6"
DELETED, REMOVED, CHANGED, NEW = 5, 15, 20, 10  # datasets: deleted by hand; and what the load does
NEW_FROM = 1_000_000  # sample datasets that nobody else publishes begin here
SUBSCRIPTIONS = 20
FOLLOWER = "portal"  # has the filtered subscriptions and sees what everybody sees; the grants are for it too
VALID_UNTIL = "2100-01-01T00:00:00Z"
PAGE = 1000  # datasets of a search
PART = 500  # datasets of a part of a load
UNFINISHED = ("waiting", "running")  # states of a load that is applied
WAIT = {"Prefer": "wait=20"}
LINES = {"Content-Type": "application/x-ndjson"}
DOWNLOADS, SEARCH, IDENTIFIERS = "downloads", "search", "identifiers"  # the examples; their subscriptions are called so
SCRIPTS = {DOWNLOADS: "download_service.py", SEARCH: "search_service.py", IDENTIFIERS: "identifier_service.py"}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ServiceFigures:
    """What became of the datasets, and who says so too. Each number is read from west or from a service at the end.

    loaded: datasets that the load states. deleted: those that are gone, by hand or by the load. grants_closed: of
    those. subscriptions: filtered ones that have led to what a search with their filter finds. agree: the three
    services have what west has, and the grants of other datasets are open.
    """

    loaded: int = 0
    deleted: int = 0
    grants_closed: int = 0
    subscriptions: int = 0
    agree: bool = False


def expected(published: int, spared: int) -> ServiceFigures:
    """Return the figures where everything is right. spared: published datasets that are left alone."""
    leaving = min(DELETED + REMOVED, published - spared)
    return ServiceFigures(published - leaving + NEW, leaving, leaving, SUBSCRIPTIONS, agree=True)


async def run(running: Federation, *, sparing: Collection[str] = ()) -> ServiceFigures:
    """Run the services, delete some datasets, load the catalogue as it shall be, and compare.

    sparing: ids that are left alone. ProcessFailed where a service does not come so far in time.
    """
    follower_token = await running.issue_token(FOLLOWER)
    with examples(running) as services:
        async with running.client(running.tokens["admin"]) as http, running.client(follower_token) as follower:
            await services.start()
            before = await items_of(http)
            ids = [id for id in sorted(before) if id not in sparing]
            leaving_ids, other_ids = ids[: DELETED + REMOVED], ids[DELETED + REMOVED :]
            filters = filters_of(list(before.values()))
            for n, cql2 in enumerate(filters):
                await subscribe(follower, _name(n), cql2)
            granted_ids = [*leaving_ids, *other_ids[: len(leaving_ids)]]
            await give_grants(http, FOLLOWER, granted_ids)
            await delete_acknowledged(http, leaving_ids[:DELETED])
            documents = [
                stated_item(before[id], description="loaded" if id in other_ids[:CHANGED] else None)
                for id in before.keys() - set(leaving_ids)
            ]
            documents += sample.items(NEW, start=NEW_FROM)
            await apply_load(http, load := await compare_load(http, documents))
            await wait_until_loaded(http, load)
            head = await wait_until_followed(running, http)
            after = await items_of(http)
            still_open = await open_grants(http, FOLLOWER)
            matching = [
                await fold(follower, _name(n), head) == (await items_of(follower, cql2)).keys()
                for n, cql2 in enumerate(filters)
            ]
        agrees = services.have(after, but_not=leaving_ids) and still_open == set(granted_ids) - set(leaving_ids)
    await wait_until_visible(running, INDEX_NODES)
    closed_count = len(granted_ids) - len(still_open)
    return ServiceFigures(len(documents), len(before.keys() - after.keys()), closed_count, sum(matching), agrees)


# --- the three examples ---


@dataclass(frozen=True, slots=True)
class Examples:
    """The three example services beside west, and the folder with their databases."""

    running: Federation
    folder: Path

    async def start(self) -> None:
        """Start them, each with a token of its own.

        Only the one that reports has a role. The others show to everybody what they get, so they get no more.
        """
        for name, script in SCRIPTS.items():
            arguments = [str(self._database(name)), *([str(_free_port())] if name == DOWNLOADS else [])]
            token = await self.running.issue_token(name, *([f"node:{name}"] if name == IDENTIFIERS else []))
            self.running.start_program(
                name, settings.folder("examples") / script, *arguments, FEDSTAC_URL=self.running.west,
                FEDSTAC_TOKEN=token,
            )  # fmt: skip

    def stop(self) -> None:
        """Kill them. They lose nothing: what they have not acknowledged comes again."""
        for name in SCRIPTS:
            if process := self.running.processes.pop(name, None):
                process.kill()

    def overviews(self) -> dict[str, Json]:
        """Return what the download service has, by dataset."""
        return {id: json.loads(text) for id, text in self._rows(DOWNLOADS, "SELECT accession, overview FROM dataset")}

    def indexed_ids(self) -> set[str]:
        """Return the datasets whose words the search service has."""
        query = "SELECT accession FROM dataset d JOIN content c ON c.rowid = d.number"
        return {id for [id] in self._rows(SEARCH, query)}

    def targets(self) -> dict[str, str]:
        """Return where the identifiers of datasets lead, by dataset."""
        return dict(self._rows(IDENTIFIERS, "SELECT dataset, target FROM handle"))

    def have(self, catalogue: Mapping[str, Json], *, but_not: Collection[str]) -> bool:
        """Return whether they have the datasets of the catalogue with their files, and no others.

        but_not: datasets that were there; their identifiers lead somewhere else.
        """
        files = {
            id: {file["name"]: file.get("url") for file in overview["files"]}
            for id, overview in self.overviews().items()
        }
        pages = {id for id, target in self.targets().items() if target.endswith(f"/items/{id}")}
        return (
            files == {id: _addresses(item) for id, item in catalogue.items()}
            and self.indexed_ids() == catalogue.keys()
            and catalogue.keys() <= pages
            and not pages.intersection(but_not)
        )

    def _database(self, name: str) -> Path:
        return self.folder / f"{name}.db"

    def _rows(self, name: str, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._database(name), timeout=30)) as store:
            return list(store.execute(query))


@contextmanager
def examples(running: Federation) -> Iterator[Examples]:
    """Give the examples a folder; those that were started end with this."""
    folder = Path(tempfile.mkdtemp(prefix="fedstac-services-"))
    services = Examples(running, folder)
    try:
        yield services
    finally:
        services.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _addresses(item: Json) -> dict[str, str]:
    return {name: asset["href"] for name, asset in item["assets"].items()}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


async def wait_until_followed(running: Federation, http: httpx.AsyncClient) -> Cursor:
    """Wait until the examples have taken all events that are written now. Return the place of the last one.

    ProcessFailed if they do not.
    """
    await _wait(lambda: is_sequenced(running), "the sequencer has not placed all events in time")
    head = Cursor.parse((await http.get("/changes", params={"since": "head"})).raise_for_status().json()["cursor"])

    async def is_there() -> bool:
        running.check_running()
        pages = [(await http.get(f"/subscriptions/{name}")).raise_for_status().json() for name in SCRIPTS]
        return all(Cursor.parse(page["cursor"]) >= head for page in pages)

    await _wait(is_there, "an example service has not taken all events in time")
    return head


# --- what is done at west ---


async def items_of(http: httpx.AsyncClient, cql2: str = "") -> dict[str, Json]:
    """Return the items that a search finds, by id."""
    items: dict[str, Json] = {}
    parameters = {"collections": COLLECTION, "limit": str(PAGE)} | ({"filter": cql2} if cql2 else {})
    address = str(httpx.URL("/search", params=parameters))
    while address:
        page = (await http.get(address)).raise_for_status().json()
        items |= {item["id"]: item for item in page["features"]}
        address = next((link["href"] for link in page["links"] if link["rel"] == "next"), "")
    return items


def filters_of(items: Sequence[Json]) -> list[str]:
    """Return SUBSCRIPTIONS different filters in CQL2 text, made of values that the datasets have."""
    properties = [item["properties"] for item in items]

    def frequent(name: str, count: int) -> list[str]:
        return [value for value, _ in Counter(each[name] for each in properties).most_common(count)]

    filters = ["latest = true", "description = 'loaded'", "S_INTERSECTS(geometry, BBOX(0, 0, 10, 10))"]
    filters += [f"cmip6:source_id = '{model}'" for model in frequent("cmip6:source_id", 5)]
    filters += [f"cmip6:variable_id = '{name}' AND latest = true" for name in frequent("cmip6:variable_id", 4)]
    filters += [f"cmip6:experiment_id = '{name}' OR latest = false" for name in frequent("cmip6:experiment_id", 3)]
    filters += [f"NOT cmip6:table_id = '{table}'" for table in frequent("cmip6:table_id", 3)]
    filters += [f"size < {each['size']}" for each in properties]
    return list(dict.fromkeys(filters))[:SUBSCRIPTIONS]


def _name(n: int) -> str:
    """Return the name of a filtered subscription."""
    return f"filtered-{n}"


async def subscribe(http: httpx.AsyncClient, name: str, cql2: str) -> None:
    """Make a subscription to whatever a filter lets through, from the start of the log."""
    wish = {"delivery": "pull", "format": "cloudevents", "from": "start", "filter": {"cql2": cql2}}
    (await http.put(f"/subscriptions/{name}", json=wish)).raise_for_status()


async def fold(http: httpx.AsyncClient, name: str, head: Cursor) -> set[str]:
    """Return the datasets to which the events of a subscription lead, through a place of the log."""
    ids: set[str] = set()
    cursor = Cursor(0, 0)
    while cursor < head:
        page = (await http.get(f"/subscriptions/{name}/next", params={"limit": PAGE})).raise_for_status().json()
        cursor = Cursor.parse(page["cursor"])
        for each in page["events"]:
            data = each["value"]["data"]
            if "id" in data:
                (ids.add if data.get("document") else ids.discard)(data["id"])
        if page["events"]:
            place = {"cursor": page["cursor"], "lease": page["lease"]}
            (await http.post(f"/subscriptions/{name}/ack", json=place)).raise_for_status()
    return ids


async def give_grants(http: httpx.AsyncClient, subject: str, ids: Sequence[str]) -> None:
    """Give somebody a grant of each of these datasets."""
    grants = [{"subject": subject, "dataset": f"{COLLECTION}/{id}", "valid_until": VALID_UNTIL} for id in ids]
    (await http.post("/grants/import", json={"grants": grants})).raise_for_status()


async def open_grants(http: httpx.AsyncClient, subject: str) -> set[str]:
    """Return the datasets of which somebody has a grant that is not closed."""
    page = (
        (await http.get("/grants", params={"subject": subject, "state": "open", "limit": PAGE}))
        .raise_for_status()
        .json()
    )
    return {grant["dataset"].removeprefix(f"{COLLECTION}/") for grant in page["grants"]}


async def delete_acknowledged(http: httpx.AsyncClient, ids: Sequence[str]) -> None:
    """Mark datasets, wait until the owner of the identifiers has done its part, and delete them."""
    rules = {"dependencies": [{"name": IDENTIFIERS, "owns_identifier": True, "days": 1}], "grace_days": 0}
    (await http.put(f"/deletions/rules/{COLLECTION}", json=rules, headers={"If-Match": "*"})).raise_for_status()

    async def mark(id: str) -> None:
        parameters = {"reason": "a demonstration"}
        (await http.delete(_item(id), params=parameters, headers=WAIT)).raise_for_status()

    async def delete(id: str) -> None:
        (await http.post(f"{_item(id)}/delete", json={}, headers=WAIT)).raise_for_status()

    async def are_ready() -> bool:
        query = {"project": COLLECTION, "standing": "ready", "limit": "200"}
        entries = (await http.get("/deletions", params=query)).raise_for_status().json()["deletions"]
        return {entry["dataset"] for entry in entries} >= set(ids)

    await change_each(ids, mark)
    await _wait(are_ready, f"{IDENTIFIERS} has not reported on the deletions in time")
    await change_each(ids, delete)


def _item(id: str) -> str:
    return f"/collections/{COLLECTION}/items/{id}"


def stated_item(item: Json, *, description: str | None) -> Json:
    """Return an item as a load states it: with a description of its own, or as it is."""
    return {**item, "properties": {**item["properties"], "description": description}} if description else item


async def compare_load(http: httpx.AsyncClient, items: Sequence[Mapping[str, Any]]) -> Json:
    """State everything that shall exist. Return the load once it was compared, with what it would change."""
    parts = [b"\n".join(map(orjson.dumps, items[n : n + PART])) for n in range(0, len(items), PART)]
    answer = await http.post(
        f"/collections/{COLLECTION}/reconcile", params={"complete": "false"}, content=parts[0], headers=LINES
    )
    address = f"/loads/{answer.raise_for_status().json()['id']}"
    for n, part in enumerate(parts[1:], 2):
        (await http.put(f"{address}/parts/{n}", content=part, headers=LINES)).raise_for_status()
    (await http.post(f"{address}/apply", params={"dry_run": "true"})).raise_for_status()
    return await _past(http, address, ("comparing",), "the full-state load has not been compared in time")


async def apply_load(http: httpx.AsyncClient, load: Json) -> None:
    """Apply a load that was compared, however many datasets go."""
    confirm = {} if load["to_confirm"] is None else {"confirm": load["to_confirm"]}
    params = {**confirm, "compared": load["compared"]}
    (await http.post(f"/loads/{load['id']}/apply", params=params)).raise_for_status()


async def wait_until_loaded(http: httpx.AsyncClient, load: Json) -> Json:
    """Return a load once it has ended. ProcessFailed where it takes too long."""
    return await _past(http, f"/loads/{load['id']}", UNFINISHED, "the full-state load has not ended in time")


async def _past(http: httpx.AsyncClient, address: str, statuses: Sequence[str], complaint: str) -> Json:
    """Return a load once it is in none of these states. ProcessFailed with the complaint where it takes too long."""
    looks: list[Json] = []

    async def is_past() -> bool:
        looks.append((await http.get(address)).raise_for_status().json())
        return looks[-1]["status"] not in statuses

    await _wait(is_past, complaint)
    return looks[-1]


async def _wait(condition: Callable[[], Awaitable[bool]], complaint: str) -> None:
    """Wait until something is true. ProcessFailed with the complaint where it takes too long."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not await condition():
        if time.monotonic() > deadline:
            raise ProcessFailed(complaint)
        await asyncio.sleep(0.1)
