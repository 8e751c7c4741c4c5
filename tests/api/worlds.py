"""Two worlds that differ in one thing: in the first some datasets are hidden, in the second they never were (I17).

Both are copies of one database, so that times, ids, tokens and keys are the same. What a question brings in one world
and not in the other tells of what is hidden.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from typing import Any, Final

import httpx

from fedstac.demo import sample

Json = Any
BASE_URL: Final = "https://west.example"
COLLECTION: Final = "/collections/CMIP6"
ITEMS: Final = f"{COLLECTION}/items"

ANYONE, STRANGER, PUBLISHER, CREATOR, NODE, MONITOR = CALLERS = (
    "nobody", "somebody without rights", "a publisher of another institution",
    "a publisher of the institution who may not mark", "a node", "a monitor",
)  # fmt: skip
MARKED, QUARANTINED, DELETED, PURGED, PRIVATE = STATES = ("marked", "quarantined", "deleted", "purged", "private")
ALONE, NEWEST, OLDEST = PLACES = ("alone in its lineage", "the newest version", "the oldest version")
REASON: Final = "nobody-is-told-this"
VARYING: Final = frozenset(("date", "x-request-id", "traceparent", "server-timing", "server", "age"))


@dataclass(frozen=True, eq=False)
class HiddenDataset:
    """A dataset of the first world alone."""

    state: str
    place: str
    document: Json
    neighbour: Json | None  # the version beside it, which both worlds have

    @property
    def id(self) -> str:
        return str(self.document["id"])

    @property
    def path(self) -> str:
        return f"{ITEMS}/{self.id}"

    def __str__(self) -> str:
        return f"{self.state}, {self.place}"


def at_version(item: Json, day: int) -> Json:
    """Return an item as another version of its lineage, with files of its own."""
    text = json.dumps(item).replace(item["properties"]["version"], str(day))
    return with_checksums(json.loads(text), text)


def with_checksums(item: Json, seed: str) -> Json:
    for key, asset in item["assets"].items():
        if "file:checksum" in asset:
            asset["file:checksum"] = "1220" + hashlib.sha256(f"{seed} {key}".encode()).hexdigest()
    return item


def only_here(item: Json, n: int) -> Json:
    """Return an item with a property, a description and a time that no other has."""
    own = {f"hidden_{n}": n, "description": f"Unheardof{n}", "end_datetime": f"{2900 + n}-01-01T00:00:00Z"}
    return {**item, "properties": {**item["properties"], **own}}


INSTITUTION: Final = "NOAA-GFDL"
SAMPLE: Final = list(sample.items(80, versions=1))
FIRST: Final = next(item for item in SAMPLE if item["properties"]["cmip6:institution_id"] == INSTITUTION)
SHOWN: Final = [item for item in SAMPLE if item["properties"]["cmip6:institution_id"] != INSTITUTION][:8]
RETRACTED: Final = SHOWN[0]["id"]  # whose replacement is hidden
SECRET: Final = "https://nobody-is-given-this.example"


def with_secret_files(item: Json) -> Json:
    """Return an item whose files are controlled: only who has a right to them may learn their addresses."""
    assets = {key: {**asset, "href": f"{SECRET}/{key}"} for key, asset in item["assets"].items()}
    return {**item, "properties": {**item["properties"], "fedstac:access": "controlled"}, "assets": assets}


NOT_CAS: Final = next(n for n, item in enumerate(SHOWN[3:], 3) if item["properties"]["cmip6:institution_id"] != "CAS")
CONTROLLED: Final = with_secret_files(SHOWN[NOT_CAS])
SHOWN[NOT_CAS] = CONTROLLED


def member(n: int) -> Json:
    """Return a dataset of the institution: one lineage for each number."""
    return json.loads(json.dumps(FIRST).replace(FIRST["properties"]["cmip6:variant_label"], f"r{n}i1p1f1"))


def _hidden() -> Iterator[HiddenDataset]:
    for n, (state, place) in enumerate(product(STATES, PLACES), 1):
        dataset, day = member(100 + n), {NEWEST: 20190101, OLDEST: 20210101}.get(place)
        neighbour = at_version(dataset, day) if day is not None else None
        yield HiddenDataset(state, place, only_here(at_version(dataset, 20200601), n), neighbour)


HIDDEN: Final = tuple(_hidden())
SMALL: Final = (
    *((MARKED, place) for place in PLACES),
    (QUARANTINED, ALONE),
    (DELETED, NEWEST),
    (PURGED, OLDEST),
    (PRIVATE, ALONE),
    (PRIVATE, NEWEST),
)
LOG: Final = ("/events", "/events/head", "/digests", "/snapshot")  # nodes follow it, and hear of what is hidden
# of a preview of many: the last number of its digest is the time of day
PREVIEWED: Final = re.compile(rb'("digest":"[0-9a-f]{64}\.[0-9]+)\.[0-9]+"')
REPLACEMENT: Final = HIDDEN[0].id
EVERY_AGGREGATION: Final = ",".join((
    "total_count", "file_count", "byte_count", "node_count", "collection_frequency", "datetime_frequency",
    "cmip6_source_id_frequency", "cmip6_institution_id_frequency", "cmip6_variable_id_frequency",
    "cmip6_member_id_frequency", "datetime_min", "datetime_max",
))  # fmt: skip


@dataclass(frozen=True, eq=False)
class Question:
    """A request. about: the hidden dataset that it is about, or a version of its lineage that it would create."""

    name: str
    method: str
    path: str
    body: Json = None
    headers: Mapping[str, str] = field(default_factory=dict)
    about: HiddenDataset | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path} ({self.name})" if self.name else f"{self.method} {self.path}"


def get(path: str, name: str = "", **headers: str) -> Question:
    return Question(name, "GET", path, headers={key.replace("_", "-"): value for key, value in headers.items()})


def everywhere() -> Iterator[Question]:
    """Yield what is asked of all datasets together."""
    for path in (
        "/", "/conformance", "/queryables", f"{COLLECTION}/queryables", "/collections", "/collections?q=unheardof1",
        "/collections?datetime=2899-01-01T00:00:00Z/..", "/collection-queryables", "/children", COLLECTION,
        "/aggregations", f"{COLLECTION}/aggregations", f"/aggregate?aggregations={EVERY_AGGREGATION}",
        f"{COLLECTION}/aggregate?aggregations={EVERY_AGGREGATION}",
        f"/aggregate?aggregations={EVERY_AGGREGATION}&retracted=include", f"{ITEMS}?limit=100", "/search?limit=100",
        "/search?limit=3", "/search?limit=100&retracted=include", "/search?limit=100&retracted=only",
        "/search?limit=100&sortby=-updated", "/search?limit=100&sortby=hidden_1", "/search?limit=3&sortby=-id",
        "/search?limit=100&filter=cmip6:source_id='GFDL-CM4'", "/search?filter=hidden_1%20IS%20NOT%20NULL",
        "/search?filter=fedstac:state='quarantined'", "/search?filter=fedstac:state='marked'",
        "/search?filter=fedstac:state='deleted'", "/search?datetime=2899-01-01T00:00:00Z/..",
        "/search?limit=100&f=geoparquet", f"{ITEMS}?f=geoparquet&retracted=include", "/datasets/status",
        "/vocabularies", "/vocabularies/CMIP6", "/.well-known/oauth-protected-resource", "/problems/conflict",
        "/deletions/rules", "/bulk", f"{COLLECTION}/cascade", "/requests", "/groups", "/notifications",
        "/federation", "/events", "/events/head", "/digests",
        "/snapshot", "/me", "/sinks", "/dead-letters", "/parked-events", "/quarantines", "/deletions",
        "/admin/tombstones", "/healthcheck", "/livez", "/readyz", "/readiness", "/api", "/problems", "/scope",
    ):  # fmt: skip
        yield get(path)
    yield Question("", "OPTIONS", ITEMS)
    yield Question("", "OPTIONS", COLLECTION)
    yield Question("", "OPTIONS", "/collections")
    yield Question("", "HEAD", f"{ITEMS}?limit=1")
    yield Question("all", "POST", "/search", {"limit": 100})
    names = EVERY_AGGREGATION.split(",")
    yield Question("beside the chosen", "POST", "/aggregate", {
        "aggregations": names, "multi_select": True,
        "filter": {"op": "=", "args": [{"property": "cmip6:source_id"}, "GFDL-CM4"]},
    })  # fmt: skip
    yield get(f"{ITEMS}/{RETRACTED}", "whose replacement is hidden")
    yield get(f"{ITEMS}/{RETRACTED}/history", "whose replacement is hidden")
    yield Question("whose replacement is hidden", "POST", "/datasets/status", [RETRACTED])
    for item in SHOWN[1:3]:
        yield get(f"{ITEMS}/{item['id']}")
    yield from about_files(CONTROLLED)


def about_files(item: Json) -> Iterator[Question]:
    """Yield what might tell the addresses of a controlled dataset's files."""
    path, id = f"{ITEMS}/{item['id']}", item["id"]
    for way in ("", "?access=full", "/history"):
        yield get(path + way, "controlled")
    for way in ("", "&access=full", "&fields=assets", "&f=geoparquet", "&f=geoparquet&access=full"):
        yield get(f"/search?ids={id}{way}", "controlled")
    yield get(f"/search?filter=assets.x.href='{SECRET}/x'", "controlled")
    yield get(f"/search?q={SECRET.removeprefix('https://')}", "controlled")
    yield get("/changes?since=0.0&limit=1000", "controlled")
    yield Question("controlled", "POST", "/datasets/status", [id])
    yield Question("controlled", "PATCH", f"{path}?dry_run=true", {"properties": {"title": "x"}})
    yield Question("controlled", "POST", f"{ITEMS}?dry_run=true", {**item, "assets": FIRST["assets"]})
    yield Question("controlled", "POST", "/bulk/preview", {"action": "mark", "ids": [id]})
    yield Question("shares its files", "POST", f"{ITEMS}?dry_run=true", {**member(98), "assets": item["assets"]})


def about(hidden: HiddenDataset) -> Iterator[Question]:
    """Yield what is asked about one hidden dataset, and its neighbours."""
    id, path, n = hidden.id, hidden.path, HIDDEN.index(hidden) + 1
    text = f"Unheardof{n}"
    yield Question("", "GET", path, about=hidden)
    yield Question("", "HEAD", path, about=hidden)
    yield Question("", "OPTIONS", path, about=hidden)
    yield Question("files", "GET", f"{path}?access=full", about=hidden)
    yield Question("as before", "GET", path, headers={"If-None-Match": '"0", *'}, about=hidden)
    yield Question("", "GET", f"{path}?deleted=include", about=hidden)
    yield Question("", "GET", f"{path}/history", about=hidden)
    yield Question("", "GET", f"{path}/nothing")
    yield Question("", "POST", "/datasets/status", [id, "nothing"], about=hidden)
    yield Question("", "POST", "/datasets/status", {"ids": [id], "collections": ["CMIP6"]}, about=hidden)
    yield Question("in lines", "POST", "/datasets/status", [id], {"Accept": "application/x-ndjson"}, about=hidden)
    yield get(f"/search?ids={id}")
    yield get(f"/search?ids={id}&retracted=include&access=full")
    yield get(f"/search?q={text}")
    yield get(f"/search?q={text}&retracted=include")
    yield get(f"/search?filter=hidden_{n}={n}")
    yield get(f"/search?filter=id='{id}'")
    yield get(f"/search?ids={id}&f=geoparquet")
    yield get(f"{ITEMS}?ids={id}")
    yield get(f"{ITEMS}?q={text}")
    yield Question("ids", "POST", "/search", {"ids": [id]})
    yield Question("", "POST", "/search", {"query": {f"hidden_{n}": {"gte": 0}}})
    member_id = hidden.document["properties"]["cmip6:member_id"]
    by_member = {"op": "=", "args": [{"property": "cmip6:member_id"}, member_id]}
    yield Question("member", "POST", "/search", {"filter": by_member, "retracted": "include"})
    yield Question("member", "POST", "/aggregate", {
        "filter": by_member, "aggregations": ["total_count", "byte_count", "cmip6_source_id_frequency"]
    })  # fmt: skip
    yield Question("its id", "POST", "/bulk/preview", {"action": "mark", "ids": [id]}, about=hidden)
    yield Question("its id", "POST", "/bulk/preview", {"action": "unmark", "ids": [id]}, about=hidden)
    yield Question("a filter", "POST", "/bulk/preview", {
        "action": "unmark", "collections": ["CMIP6"], "filter": by_member,
    }, about=hidden)  # fmt: skip
    yield Question("member", "POST", f"{COLLECTION}/aggregate", {"filter": by_member, "aggregations": ["total_count"]})
    yield get(f"/access/explain?action=publish&item={id}")
    yield get(f"/access/explain?action=mark&item={id}")
    for action, body in (
        ("retract", {"reason": "x"}), ("reinstate", None), ("unmark", None), ("quarantine", {"reason": "x"}),
        ("release", {}), ("delete", None), ("purge", None),
    ):  # fmt: skip
        yield Question("", "POST", f"{path}/{action}", body, about=hidden)
        yield Question("", "POST", f"{path}/{action}?dry_run=true", body, about=hidden)
    yield Question("", "PATCH", path, {"properties": {"description": "x"}}, about=hidden)
    yield Question("as of long ago", "PATCH", path, {"properties": {"title": "x"}}, {"If-Match": '"0"'}, about=hidden)
    yield Question("", "PUT", path, hidden.document, about=hidden)
    yield Question("", "DELETE", path, about=hidden)
    yield Question("", "PUT", f"{path}/replicas/east", {"x.nc": {"href": "https://east.example/x.nc"}}, about=hidden)
    yield Question("", "DELETE", f"{path}/replicas/east", about=hidden)
    yield Question("the same", "POST", f"{ITEMS}?dry_run=true", hidden.document, about=hidden)
    if hidden.neighbour is not None:
        yield get(f"{ITEMS}/{hidden.neighbour['id']}", "the version beside it")
        yield Question("the version beside it", "GET", f"{ITEMS}/{hidden.neighbour['id']}/history",
                       about=hidden if hidden.state == PRIVATE else None)  # fmt: skip
        yield Question("the version beside it", "POST", "/datasets/status", [hidden.neighbour["id"]])
        yield Question("the version beside it", "POST", f"{ITEMS}?dry_run=true", hidden.neighbour)
    for day in (20180101, 20200101, 20300101):
        other = at_version(member_of(hidden), day)
        yield Question("another version", "POST", f"{ITEMS}?dry_run=true", other, about=hidden)
    sharing = {**at_version(member(90), 20240101), "assets": hidden.document["assets"]}
    yield Question("with its files", "POST", f"{ITEMS}?dry_run=true", sharing)
    yield Question("with its files", "POST", "/validate", sharing)
    yield Question("replaced by it", "POST", f"{ITEMS}/{member(99)['id']}/retract?dry_run=true",
                   {"reason": "x", "replaced_by": id})  # fmt: skip
    yield Question("replaced by it", "POST", f"{ITEMS}/{SHOWN[1]['id']}/retract?dry_run=true",
                   {"reason": "x", "replaced_by": id})  # fmt: skip


def member_of(hidden: HiddenDataset) -> Json:
    return member(100 + HIDDEN.index(hidden) + 1)


@dataclass(frozen=True)
class AskedQuestion:
    """A question, and who asks it."""

    question: Question
    callers: Sequence[str]


def table(*, whole: bool) -> list[AskedQuestion]:
    """Return the whole table, or the part in which every caller, question, state and place comes up."""
    if whole:
        return [AskedQuestion(each, CALLERS) for each in (*everywhere(), *chain.from_iterable(map(about, HIDDEN)))]
    few = [each for each in HIDDEN if (each.state, each.place) in SMALL]
    turns = chain.from_iterable(enumerate(about(each), 2 * n) for n, each in enumerate(few))
    return [
        *(AskedQuestion(each, (ANYONE, CALLERS[1 + n % 5])) for n, each in enumerate(everywhere())),
        *(AskedQuestion(each, (CALLERS[n % 6], CALLERS[(n + 3) % 6])) for n, each in turns),
    ]


def is_allowed(caller: str, question: Question, answer: Answer) -> bool:
    """Tell whether an answer may differ from that about a dataset that never was. Nothing else may.

    Whoever may publish versions of the dataset learns that an id was used before, and which version is the newest. What
    is under quarantine is there for whoever names it. What is private is there for its publishers and for nodes. A
    deleted id is gone, and GET says so. A node follows the events. Changes have places in the log, and name what left.
    A monitor learns how far the log is.
    """
    if question.path == "/federation":
        return caller == MONITOR
    if question.path in LOG:
        return caller == NODE
    if question.path.startswith("/changes"):
        return True
    if question.about is None:
        return False
    if question.path == f"{ITEMS}?dry_run=true":
        return caller == CREATOR
    if question.about.state == QUARANTINED:
        return True
    if question.about.state == PRIVATE and caller in (CREATOR, NODE):
        return True
    is_gone = question.about.state in (DELETED, PURGED) and question.method in ("GET", "HEAD")
    return is_gone and answer.status == 410 and question.path.partition("?")[0] == question.about.path


@dataclass(frozen=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @classmethod
    def of(cls, response: httpx.Response) -> Answer:
        """Return an answer without what differs from one to the next in any world."""
        headers = tuple(sorted(pair for pair in response.headers.multi_items() if pair[0].lower() not in VARYING))
        return cls(response.status_code, headers, PREVIEWED.sub(rb'\1"', response.content))

    def __str__(self) -> str:
        return f"{self.status} {dict(self.headers)} {self.body[:3000]!r}"
