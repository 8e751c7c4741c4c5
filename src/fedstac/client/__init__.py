"""The Python client of a fedstac node: publish, follow, search, read the feed.

    with Client("https://stac.example.org", token="…") as client:
        for event in client.publish(documents, collection="CMIP6"):
            print(event)
        for item in client.search(collections=["CMIP6"], filter="source_id = 'CESM2'", limit=10):
            print(item["id"])

It needs nothing of the server's: `pip install fedstac` is enough. All calls are synchronous and raise ClientError
(client/transport.py): NotAuthorised, NotFound, Conflict, Invalid and Failed carry the server's problem with its
findings. AsyncClient has the looks and the changes for programs that are asynchronous.
Proxies and certificates are taken from the environment, as httpx does; other wishes go into an httpx.Client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import orjson

from fedstac.client import bulk_changes, changes, publishing
from fedstac.client import documents as reading
from fedstac.client import grants as granting
from fedstac.client import loads as reconciling
from fedstac.client import subscriptions as subscribing
from fedstac.client.asynchronous import AsyncClient as AsyncClient
from fedstac.client.paths import collection_path, item_path
from fedstac.client.publishing import Publishing
from fedstac.client.searching import CountsAnswer as CountsAnswer
from fedstac.client.searching import Search as Search
from fedstac.client.searching import conditions_of
from fedstac.client.transport import (
    JSON_BODY,
    LINES_BODY,
    Exchange,
    Failed,
    OnRetry,
    Stalled,
    TokenSource,
    Transport,
    findings_from,
    no_notice,
)
from fedstac.client.values import AcceptedBatch, FeedPage, Head, ItemResult, Request, RequestSummary
from fedstac.domain.aggregating import SUFFIX

RESULTS_PAGE, SEARCH_PAGE, FEED_PAGE, REQUESTS_PAGE = 500, 500, 500, 50
LONG_POLL_SECONDS = 20
FIRST_LOOK, LONGEST_LOOK = 0.05, 2.0  # seconds between looks at a request that is being worked on

P = ParamSpec("P")
T = TypeVar("T")


def _performed(exchange: Callable[P, Exchange[T]]) -> Callable[Concatenate[Client, P], T]:
    @wraps(exchange)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._transport.perform(exchange(*args, **kwargs))

    return method


class Client:
    """A fedstac node, seen by one caller. `retries`: how often what failed for the moment is tried again.

    `token`: a bearer token, or what gives one before each request, for example the Session of a login
    (client/credentials.py).
    """

    def __init__(
        self,
        url: str,
        token: str | TokenSource | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 5,
        http: httpx.Client | None = None,
        on_retry: OnRetry = no_notice,
    ) -> None:
        """Make a client. `on_retry` is called before each pause, with the reason and the seconds until the next try."""
        self._transport = Transport(url, token, timeout=timeout, retries=retries, http=http, on_retry=on_retry)
        self.url = self._transport.url

    # looks and changes: client/changes.py
    get = _performed(changes.get)
    history = _performed(changes.history)
    events_of = _performed(changes.events_of)
    statuses = _performed(changes.statuses)
    last_deletion = _performed(changes.last_deletion)
    patch = _performed(changes.patch)
    put = _performed(changes.put)
    retract = _performed(changes.retract)
    reinstate = _performed(changes.reinstate)
    mark = _performed(changes.mark)
    unmark = _performed(changes.unmark)
    quarantine = _performed(changes.quarantine)
    release = _performed(changes.release)
    delete = _performed(changes.delete)
    purge = _performed(changes.purge)
    put_replica = _performed(changes.put_replica)
    remove_replica = _performed(changes.remove_replica)
    submit_replica = _performed(changes.submit_replica)
    look_at_change = _performed(changes.look_at_change)
    list_replicas = _performed(changes.list_replicas)
    validate = _performed(changes.validate)
    rehearse = _performed(changes.rehearse)
    cancel = _performed(changes.cancel)
    retry = _performed(changes.retry)

    # many at once: client/bulk_changes.py
    preview_bulk = _performed(bulk_changes.preview_bulk)
    start_bulk = _performed(bulk_changes.start_bulk)
    bulk = _performed(bulk_changes.bulk)
    bulks = _performed(bulk_changes.bulks)
    bulk_datasets = _performed(bulk_changes.bulk_datasets)
    cancel_bulk = _performed(bulk_changes.cancel_bulk)

    # subscriptions and changes: client/subscriptions.py
    put_subscription = _performed(subscribing.put_subscription)
    subscription = _performed(subscribing.subscription)
    subscriptions = _performed(subscribing.subscriptions)
    delete_subscription = _performed(subscribing.delete_subscription)
    next_events = _performed(subscribing.next_events)
    ack_events = _performed(subscribing.ack_events)
    nack_event = _performed(subscribing.nack_event)
    seek_subscription = _performed(subscribing.seek_subscription)
    subscription_dead_letters = _performed(subscribing.subscription_dead_letters)
    redrive_dead_letter = _performed(subscribing.redrive_dead_letter)
    changes_since = _performed(subscribing.changes_since)

    # full-state loads: client/loads.py
    begin_load = _performed(reconciling.begin_load)
    put_load_part = _performed(reconciling.put_load_part)
    load = _performed(reconciling.load)
    loads = _performed(reconciling.loads)
    load_datasets = _performed(reconciling.load_datasets)
    compare_load = _performed(reconciling.compare_load)
    apply_load = _performed(reconciling.apply_load)
    cancel_load = _performed(reconciling.cancel_load)

    # grants: client/grants.py
    give_grant = _performed(granting.give_grant)
    grants = _performed(granting.grants)
    check_grant = _performed(granting.check_grant)
    withdraw_grant = _performed(granting.withdraw_grant)
    withdraw_grants = _performed(granting.withdraw_grants)
    withdraw_again = _performed(granting.withdraw_again)
    private_datasets = _performed(granting.private_datasets)
    import_grants = _performed(granting.import_grants)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def publish(
        self,
        documents: Iterable[Mapping[str, Any]],
        *,
        collection: str | None = None,
        batch: int = publishing.BATCH,
        wait: bool = True,
        visible_at: Sequence[str] = (),
    ) -> Iterator[publishing.Step]:
        """Publish documents of any number, batch by batch, and yield what happens: AcceptedBatch for each accepted
        batch, Request whenever one has got on, DocumentTrouble for each item that is not published.

        Without `collection` each document goes where its own member `collection` says. `wait`: until all is final;
        `visible_at`: until these nodes show it.
        """
        run = Publishing(self, batch=batch, wait=wait, visible_at=visible_at)
        return run.publish(reading.entries(documents, collection))

    def submit(self, collection: str, documents: Sequence[Mapping[str, Any] | bytes]) -> AcceptedBatch:
        """Send one batch and return as soon as it is accepted. Bytes are JSON without line breaks.

        Invalid if no item of the batch is acceptable; single ones that are not are rejected in the results.
        """
        body = self._transport.json(
            "POST", f"{collection_path(collection)}/items", content=changes.lines_of(documents),
            headers={**LINES_BODY, "Prefer": "respond-async, wait=0"},
        )  # fmt: skip
        try:
            return AcceptedBatch(body["id"], self._link(body), body["total"], body.get("rejected", 0))
        except (KeyError, TypeError):
            raise Failed(202, "no-request", f"{self.url} took the batch and named no request to follow") from None

    def _link(self, body: Mapping[str, Any]) -> str:
        links = [link["href"] for link in body.get("links", ()) if link.get("rel") == "self"]
        return str(links[0]) if links else f"{self.url}/requests/{body['id']}"

    def request(self, id: str) -> Request:
        """Return a request as it stands. NotFound if there is none, or it is somebody else's."""
        return Request.read(self._transport.json("GET", f"/requests/{quote(id, safe='')}"))

    def requests(self) -> Iterator[RequestSummary]:
        """Yield the caller's own requests, the newest first, page by page."""
        params: dict[str, Any] = {"limit": REQUESTS_PAGE}
        while True:
            page = self._transport.json("GET", "/requests", params=params)
            for entry in page["requests"]:
                yield RequestSummary(**{name: entry[name] for name in RequestSummary.__slots__ if name in entry})
            if not any(link["rel"] == "next" for link in page["links"]):
                return
            params["after"] = page["requests"][-1]["id"]

    def results(self, id: str, *, status: str | None = None) -> Iterator[ItemResult]:
        """Yield what became of each item of a request, in the order of the batch; of one status if given."""
        params: dict[str, Any] = {"limit": RESULTS_PAGE} | ({"status": status} if status else {})
        more = True
        while more:
            page = self._transport.json("GET", f"/requests/{quote(id, safe='')}/items", params=params)
            for entry in page["items"]:
                yield ItemResult(
                    entry["n"], entry["id"], entry["status"], entry.get("outcome"), entry.get("type"),
                    entry.get("detail"), findings_from(entry.get("findings")),
                )  # fmt: skip
                params["after"] = entry["n"]
            more = bool(page["items"]) and any(link["rel"] == "next" for link in page["links"])

    def wait(self, id: str, *, visible_at: Sequence[str] = (), timeout: float | None = None) -> Iterator[Request]:
        """Yield the request now, and again whenever it has moved, until it is final, and visible at the named nodes.

        Stalled if nothing moves for `timeout` seconds.
        """
        last, pause, last_change = None, FIRST_LOOK, time.monotonic()
        while True:
            request = self.request(id)
            if request.document != last:
                last, pause, last_change = request.document, FIRST_LOOK, time.monotonic()
                yield request
            if request.is_final and all(request.is_visible_at(node) for node in visible_at):
                return
            if timeout is not None and time.monotonic() - last_change > timeout:
                raise Stalled(f"the request {id} is {request.status} and has not moved for {timeout:g} s")
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_LOOK)

    def search(
        self,
        *,
        collections: Sequence[str] = (),
        ids: Sequence[str] = (),
        bbox: Sequence[float] | None = None,
        datetime: str | None = None,
        filter: str | None = None,
        q: str | None = None,
        sortby: Sequence[str] = (),
        retracted: str | None = None,
        limit: int | None = None,
        page: int = SEARCH_PAGE,
    ) -> Search:
        """Return datasets that match, fetched page by page as they are iterated over, at most `limit`; see Search.

        filter: CQL2 text. q: words, free text. sortby: names of properties, `-` in front for descending order. bbox:
        west, south, east, north. datetime: a moment, an interval, or a year, month or day: `2000`, `2000-06/..`.
        retracted: `include` or `only`; without it retracted datasets are found only if the filter names the property
        `retracted`.
        """
        body = conditions_of(collections, bbox, datetime, filter, q)
        if ids:
            body["ids"] = list(ids)
        if sortby:
            body["sortby"] = [
                {"field": key.lstrip("+-"), "direction": "desc" if key.startswith("-") else "asc"} for key in sortby
            ]
        if retracted:
            body["retracted"] = retracted
        return Search(self._transport, body, limit, page)

    def counts(
        self,
        names: Sequence[str] | None = None,
        *,
        collections: Sequence[str] = (),
        bbox: Sequence[float] | None = None,
        datetime: str | None = None,
        filter: str | None = None,
        q: str | None = None,
        multi_select: bool = False,
    ) -> CountsAnswer:
        """Count what a search finds. Without names: by all facets, in files, bytes and years.

        names: `source_id`, `cmip6:source_id`, or those of aggregations. The conditions are those of `search`.
        multi_select: the counts of a facet leave the conditions on it out.
        """
        body = {**conditions_of(collections, bbox, datetime, filter, q), "multi_select": multi_select}
        if names:
            body["aggregations"] = self._aggregations(names, collections)
        answer = self._transport.json("POST", "/aggregate", content=orjson.dumps(body), headers=JSON_BODY)
        warnings = tuple(str(warning.get("message")) for warning in answer.get("fedstac:warnings", ()))
        return CountsAnswer(answer["aggregations"], warnings)

    def _aggregations(self, names: Sequence[str], collections: Sequence[str]) -> list[str]:
        """Return the names of aggregations; what names nothing that the node lists stays, and the node says why."""
        path = collection_path(collections[0]) if len(collections) == 1 else ""
        entries = self._transport.json("GET", path + "/aggregations")["aggregations"]
        by_name = {each["name"].removesuffix(SUFFIX): each["name"] for each in entries}
        by_name |= {
            each["property"].rpartition(":")[2]: each["name"] for each in reversed(entries) if "property" in each
        }
        by_name |= {each["property"]: each["name"] for each in entries if "property" in each}
        return [by_name.get(name, name) for name in names]

    def whoami(self) -> dict[str, Any]:
        """Return whom the server takes the caller for: name and roles; after a login issuer, subject and groups too."""
        caller: dict[str, Any] = self._transport.json("GET", "/me")
        return caller

    def explain(
        self,
        action: str,
        item: str,
        *,
        who: Sequence[str] = (),
        collection: str = "",
        institution: str = "",
        nodes: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Return whether that would be allowed, by which rule and why.

        An administrator may ask for somebody else.
        """
        params = {"action": action, "item": item, "as": list(who), "node": list(nodes)}
        params |= {"collection": collection} if collection else {}
        params |= {"institution": institution} if institution else {}
        explanation: dict[str, Any] = self._transport.json("GET", "/access/explain", params=params)
        return explanation

    def groups(self) -> list[dict[str, Any]]:
        """Return the node's own groups that the caller belongs to, looks after or may manage."""
        groups: list[dict[str, Any]] = self._transport.json("GET", "/groups")["groups"]
        return groups

    def group(self, name: str) -> dict[str, Any]:
        """Return one of the node's own groups. NotFound if it is none of the caller's business."""
        group: dict[str, Any] = self._transport.json("GET", f"/groups/{quote(name, safe='')}")
        return group

    def create_group(self, name: str, *, project: str, institution: str, title: str = "") -> dict[str, Any]:
        """Create a group; Invalid if there is one of that name for something else."""
        document = {"name": name, "project": project, "institution": institution, "title": title}
        group: dict[str, Any] = self._transport.json(
            "POST", "/groups", content=orjson.dumps(document), headers=JSON_BODY
        )
        return group

    def delete_group(self, name: str) -> None:
        self._transport.send("DELETE", f"/groups/{quote(name, safe='')}")

    def change_member(self, group: str, principal: str, *, add: bool, manager: bool = False) -> None:
        """Add somebody, named as in the logs, to a group, or take them out; `manager`: of its managers."""
        part = "managers" if manager else "members"
        path = f"/groups/{quote(group, safe='')}/{part}/{quote(principal, safe='')}"
        self._transport.send("PUT" if add else "DELETE", path)

    def collections(self) -> Iterator[dict[str, Any]]:
        """Yield the collections of the node, page by page."""
        address: str | None = "/collections"
        while address is not None:
            page = self._transport.json("GET", address)
            yield from page["collections"]
            href = next((link["href"] for link in page.get("links", ()) if link["rel"] == "next"), None)
            address = f"/collections?{urlsplit(href).query}" if href else None

    def collection(self, id: str) -> dict[str, Any]:
        """Return one collection's document. NotFound if there is none."""
        collection: dict[str, Any] = self._transport.json("GET", collection_path(id))
        return collection

    def create_collection(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Create a collection. Conflict if there is one of this id, NotAuthorised for those who may not."""
        content = orjson.dumps(document)
        collection: dict[str, Any] = self._transport.json("POST", "/collections", content=content, headers=JSON_BODY)
        return collection

    def update_collection(self, id: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Put a whole document in the place of a collection's."""
        content = orjson.dumps(document)
        collection: dict[str, Any] = self._transport.json(
            "PUT", collection_path(id), content=content, headers=JSON_BODY
        )
        return collection

    def delete_collection(self, id: str) -> None:
        """Delete a collection. Conflict while it has datasets."""
        self._transport.send("DELETE", collection_path(id))

    def cascade_effects(self, id: str) -> dict[str, Any]:
        """Return what the deletion of a collection with its datasets affects; `confirm` is the number to confirm."""
        effects: dict[str, Any] = self._transport.json(
            "DELETE", collection_path(id), params={"cascade": "true", "dry_run": "true"}
        )
        return effects

    def begin_cascade(self, id: str, *, confirm: int, reason: str) -> dict[str, Any]:
        """Begin to delete a collection with its datasets.

        confirm: how many it has. Conflict where it has another number by now, or is being deleted already.
        """
        params = {"cascade": "true", "confirm": str(confirm), "reason": reason}
        cascade: dict[str, Any] = self._transport.json("DELETE", collection_path(id), params=params)
        return cascade

    def cascade(self, id: str) -> dict[str, Any]:
        """Return how far the deletion of a collection with its datasets is. NotFound where there was none."""
        cascade: dict[str, Any] = self._transport.json("GET", collection_path(id) + "/cascade")
        return cascade

    def cancel_cascade(self, id: str) -> dict[str, Any]:
        """Cancel the deletion of a collection with its datasets. What is marked by then stays marked."""
        cascade: dict[str, Any] = self._transport.json("DELETE", collection_path(id) + "/cascade")
        return cascade

    def queryables(self, collection: str) -> dict[str, Any]:
        """Return the properties by which a collection's datasets are searched, as a JSON Schema."""
        schema: dict[str, Any] = self._transport.json("GET", collection_path(collection) + "/queryables")
        return schema

    def item(self, collection: str, id: str) -> dict[str, Any]:
        """Return one dataset's document. NotFound if there is none."""
        item: dict[str, Any] = self._transport.json("GET", item_path(collection, id))
        return item

    def events(
        self, after: str = "0.0", *, follow: bool = False, collection: str | None = None, type: str | None = None
    ) -> Iterator[FeedPage]:
        """Yield pages of the feed after a cursor, up to its end; with `follow`, wait there for more, for ever.

        NotFound (410) if the feed does not reach back to the cursor. Needs a node's token.
        """
        filters = {"collection": collection, "type": type}
        params: dict[str, Any] = {name: value for name, value in filters.items() if value}
        wait = LONG_POLL_SECONDS if follow else 0
        while True:
            response = self._transport.send(
                "GET", "/events", params={**params, "after": after, "limit": FEED_PAGE, "wait": wait}, wait=wait
            )
            page = FeedPage.read(response)
            if page.cursor == after and not page.events and not follow:
                return
            after = page.cursor
            yield page

    def head(self) -> Head:
        """Return where the feed ends, and how far each node has acknowledged it. Needs a node's token."""
        body = self._transport.json("GET", "/events/head")
        return Head(body["origin"], body["cursor"], {entry["node"]: entry["through"] for entry in body["nodes"]})
