"""Edits as they are sent: what ESGF's clients say, patches of any kind, documents by those who mean harm.

Each is a value that hypothesis draws and shrinks, whose repr can be read; `of` makes the edit, by what is served of the
dataset at the time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

import orjson
from hypothesis import strategies as st

from fedstac.domain import patching, strict_json
from fedstac.domain.alternates import replica_edit
from fedstac.domain.errors import pointer
from fedstac.domain.patching import Edit, JsonPatch, Whole, WithoutNode

Json = Any
Item = dict[str, Any]
NODES: Final = ("a.example", "b.example", "c~d/e.example")
TITLES: Final = tuple(f"title {n}" for n in range(4))

HOSTILE: Final[tuple[Json, ...]] = (
    None, True, False, 0, -1, 1e308, 2**53, "", "x", "NOPE", "a/b", "~0~1", "é\u202e", "javascript:alert(1)", [], {},
    [[]], [None], {"": {}}, [{"rel": "self"}], {"href": 1}, {"alternate": []}, {"alternate": {"a.example": None}},
    {"alternate": {"b.example": {"href": "https://evil.example/x", "file:checksum": "1220" + "0" * 64}}},
    {"alternate": "x"}, {"alternate": {"a.example": "x"}}, {"file:checksum": "1220" + "f" * 64, "file:size": 1},
    {"href": "https://x.example/y", "file:checksum": ["1220"], "file:size": {}, "cmip6:tracking_id": [1]},
    "1220" + "f" * 64, "2020-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", [0] * 50, {"__proto__": {"a": 1}},
    {"rel": "related", "href": "https://errata.esgf.io/1"}, {"rel": "related"}, {"rel": None, "href": "x"},
    {"protocol": "kerchunk", "file:size": 3}, {"fedstac:state": "deleted", "latest": True, "retracted": False},
)  # fmt: skip
PLACES: Final = (
    "", "/", "/assets", "/assets/", "/properties", "/properties/", "/properties/~1", "/properties/retracted",
    "/properties/latest", "/properties/created", "/properties/fedstac:state", "/properties/fedstac:replicas", "/links",
    "/links/-", "/links/0", "/links/00", "/links/99", "/links/\u0663", "/links/-1", "/assets/x~1y",
    "/assets/x/alternate/b.example",
    "/id", "/collection", "/type", "/geometry", "/geometry/coordinates/0/0/0", "/bbox", "/bbox/-", "/stac_version",
    "/stac_extensions", "/stac_extensions/-", "/properties/version", "/properties/base_id", "/properties/datetime",
    "/properties/cmip6:source_id", "/properties/cmip6:institution_id", "/properties/cmip6:realm/-", "/a/b/c",
)  # fmt: skip


class SentEdit(Protocol):
    """An edit as it is sent. `repeatable`: said twice, it has to say the same."""

    @property
    def repeatable(self) -> bool: ...

    def of(self, item: Item) -> Edit:
        """Return the edit of the dataset served as `item`, read as the API reads it, or its Problem."""
        ...


def read(body: Json) -> Edit:
    return patching.read(strict_json.parse(orjson.dumps(body)))


# --- ESGF's publisher (reference/esgf-wire.md) ---

LATEST_FALSE = {"op": "replace", "path": "/properties/latest", "value": False}
RETRACTED_TRUE = {"op": "replace", "path": "/properties/retracted", "value": True}
AGGREGATION = {
    "href": "https://a.example/agg.json", "type": "application/json", "roles": ["reference"], "protocol": "kerchunk",
    "alternate:name": "a.example", "description": "Kerchunk", "created": "2024-01-01T00:00:00Z",
    "updated": "2024-01-01T00:00:00Z",
}  # fmt: skip
ERRATA = {"rel": "related", "href": "https://errata.esgf.io/1", "title": "Errata issue", "type": "text/html"}
ESGF: Final[Mapping[str, Json]] = {
    "supersede": [LATEST_FALSE],
    "retract": [LATEST_FALSE, RETRACTED_TRUE, {"op": "replace", "path": "/assets", "value": {}}],
    "retracted alone": [RETRACTED_TRUE],
    "reinstate": [{**RETRACTED_TRUE, "value": False}],
    "add an aggregation": [{"op": "add", "path": "/assets/reference_file", "value": AGGREGATION}],
    "remove the aggregation": [{"op": "remove", "path": "/assets/reference_file"}],
    "add errata": [{"op": "add", "path": "/links/-", "value": ERRATA}],
    **{f"describe as {title}": [{"op": "add", "path": "/properties/description", "value": title}] for title in TITLES},
    **{f"note {title}, wrapped": {"operations": [{"op": "add", "path": "/properties/note", "value": title}]}
       for title in TITLES},
}  # fmt: skip


@dataclass(frozen=True)
class Esgf:
    """What ESGF's publisher sends."""

    what: str

    @property
    def repeatable(self) -> bool:
        return self.what != "remove the aggregation"

    def of(self, item: Item) -> Edit:
        return read(ESGF[self.what])


# --- replicas ---


def entry(node: str, moved: int) -> Item:
    host = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in node)
    return {"href": f"https://{host}/{moved}/file.nc", "description": "HTTPServer Link", "roles": ["data"]}


def files_of(item: Item) -> list[str]:
    return [key for key, asset in item["assets"].items() if "file:checksum" in asset]


@dataclass(frozen=True)
class Replicas:
    """Where a node has the files, or some of them; maybe those of another node in the same patch."""

    node: str
    moved: int
    but: int  # of the files so many are left out
    corrupt: bool
    also: str | None
    repeatable: ClassVar[bool] = True

    def of(self, item: Item) -> Edit:
        chosen = files_of(item)[self.but :]
        entries = {key: entry(self.node, self.moved) for key in chosen}
        if entries and self.corrupt:
            entries[chosen[0]]["file:checksum"] = "1220" + "e" * 64
        operations = list(replica_edit(entries, self.node))
        if self.also is not None:
            operations += replica_edit({key: entry(self.also, self.moved) for key in chosen}, self.also)
        return read(operations)


@dataclass(frozen=True)
class Withdrawn:
    """None of a node's entries any more, as DELETE says it."""

    node: str
    repeatable: ClassVar[bool] = True

    def of(self, item: Item) -> Edit:
        return WithoutNode(self.node)


@dataclass(frozen=True)
class ReplicaRemoval:
    """A node's entries removed one by one, as ESGF's publisher does."""

    node: str
    repeatable: ClassVar[bool] = False

    def of(self, item: Item) -> Edit:
        paths = [pointer("assets", key, "alternate", self.node) for key in files_of(item)]
        return read([{"op": "remove", "path": path} for path in paths])


# --- merge patches ---

Merging = Callable[[str, str, int], Json]  # of an asset's key, a node, a number
MERGES: Final[Mapping[str, Merging]] = {
    "describe": lambda key, node, n: {"properties": {"description": f"merged {n}"}},
    "null for properties": lambda key, node, n: {
        "properties": {"description": None, "note": None, "version": None, "datetime": None}},
    "retract": lambda key, node, n: {"properties": {"retracted": True, "latest": None}},
    "reinstate as the latest": lambda key, node, n: {"properties": {"retracted": False, "latest": True}},
    "null for everything": lambda key, node, n: {
        "properties": None, "assets": None, "links": None, "geometry": None, "id": None, "collection": None},
    "add a replica": lambda key, node, n: {"assets": {key: {"alternate": {node: entry(node, n)}}}},
    "null for a replica": lambda key, node, n: {"assets": {key: {"alternate": {node: None}}}},
    "null for all replicas": lambda key, node, n: {"assets": {key: {"alternate": None}}},
    "null for a file": lambda key, node, n: {"assets": {key: None}},
    "another checksum": lambda key, node, n: {"assets": {key: {"file:checksum": "1220" + f"{n}" * 64}}},
    "null for a replica's address": lambda key, node, n: {"assets": {key: {"alternate": {node: {"href": None}}}}},
    "other links": lambda key, node, n: {"links": [{"rel": "related", "href": f"https://errata.esgf.io/{n}"}]},
}  # fmt: skip


@dataclass(frozen=True)
class AssetMerge:
    """An object to merge, about the nth asset."""

    what: str
    nth: int
    node: str
    n: int
    repeatable: ClassVar[bool] = True

    def of(self, item: Item) -> Edit:
        keys = [*item["assets"], "nothing"]
        return read(MERGES[self.what](keys[self.nth % len(keys)], self.node, self.n))


@dataclass(frozen=True)
class HostileMerge:
    """Anything for a member of the document, or of its properties."""

    within: str  # "properties", or "" for the document
    member: str
    value: Json
    repeatable: ClassVar[bool] = True

    def of(self, item: Item) -> Edit:
        body = {self.member: self.value}
        return read({self.within: body} if self.within else body)


# --- JSON patches ---


@dataclass(frozen=True)
class Operations:
    """Operations, each (name, place, value, origin); a place is a pointer, or the nth of those that there are."""

    operations: Sequence[tuple[str, str | int, Json, str | int]]
    repeatable: ClassVar[bool] = False

    def of(self, item: Item) -> Edit:
        there_are = [*pointers(item)]

        def place(target: str | int) -> str:
            return target if isinstance(target, str) else there_are[target % len(there_are)]

        return read([
            {"op": name, "path": place(path), "value": value, "from": place(origin)}
            for name, path, value, origin in self.operations
        ])  # fmt: skip


def pointers(document: Json, at: str = "") -> Iterator[str]:
    members: Iterator[tuple[str, Json]] = iter(())
    if isinstance(document, dict):
        members = iter(document.items())
    elif isinstance(document, list):
        members = ((str(n), value) for n, value in enumerate(document[:3]))
    for name, value in members:
        place = at + pointer(name)
        yield place
        yield from pointers(value, place)


@dataclass(frozen=True)
class Together:
    """Two JSON patches in one."""

    first: SentEdit
    second: SentEdit
    repeatable: ClassVar[bool] = False

    def of(self, item: Item) -> Edit:
        both = [self.first.of(item), self.second.of(item)]
        return JsonPatch([one for edit in both if isinstance(edit, JsonPatch) for one in edit.operations])


# --- whole documents ---

Harming = Callable[[Item, str, str, int], None]  # of a document, a file's key, a node, a number


def _replica(document: Item, key: str, node: str, n: int) -> None:
    document["assets"][key]["alternate"] = {node: {**entry(node, n), "alternate:name": node}}


def _renamed(document: Item, key: str, node: str, n: int) -> None:
    document["assets"][f"renamed {n}"] = document["assets"].pop(key)


def _twice(document: Item, key: str, node: str, n: int) -> None:
    document["assets"]["copy.nc"] = copy.deepcopy(document["assets"][key])


HARMS: Final[Mapping[str, Harming]] = {
    "with a replica": _replica,
    "with a file under another name": _renamed,
    "with a file twice": _twice,
    "with another checksum": lambda document, key, node, n: document["assets"][key].update({
        "file:checksum": "1220" + f"{n}" * 64}),
    "without a file": lambda document, key, node, n: document["assets"].pop(key),
    "without files": lambda document, key, node, n: document.update(assets={}),
    "with no replicas": lambda document, key, node, n: document["assets"][key].update(alternate={}),
    "with a file elsewhere": lambda document, key, node, n: document["assets"][key].update(
        href="https://moved.example/file.nc"),
    "with other links": lambda document, key, node, n: document.update(links=HOSTILE[n]),
    "with other properties": lambda document, key, node, n: document.update(properties=HOSTILE[n]),
    "with another member": lambda document, key, node, n: document.update(foo=HOSTILE[n]),
}  # fmt: skip


@dataclass(frozen=True)
class Harm:
    """What somebody does to a document who means harm, or knows no better."""

    what: str
    node: str
    n: int

    def done_to(self, document: Item) -> Item:
        changed = copy.deepcopy(document)
        if files := files_of(changed):
            HARMS[self.what](changed, files[0], self.node, self.n)
        return changed


@dataclass(frozen=True)
class Put:
    """The whole document as it is served, with another description, or with harm done to it."""

    title: str | None
    harm: Harm | None
    repeatable: ClassVar[bool] = True

    def of(self, item: Item) -> Edit:
        changed = copy.deepcopy(item)
        if self.title is not None:
            changed["properties"]["description"] = self.title
        document: Json = strict_json.parse(orjson.dumps(self.harm.done_to(changed) if self.harm else changed))
        return Whole(document)


# --- drawn ---

NODE = st.sampled_from(NODES)
TITLE = st.none() | st.sampled_from(TITLES)
HARM = st.builds(Harm, st.sampled_from(sorted(HARMS)), NODE, st.integers(0, 9))
VALUE = st.sampled_from(HOSTILE)
PLACE = st.sampled_from(PLACES) | st.integers(0, 150)
NAMES: Final = (*patching.OPERATIONS, "add", "replace", "remove", "frob")
OPERATION = st.tuples(st.sampled_from(NAMES), PLACE, VALUE, PLACE)

AS_ESGF = st.builds(Esgf, st.sampled_from(sorted(ESGF)))
REPLICAS = st.builds(
    Replicas, NODE, st.integers(0, 1), st.integers(0, 2), st.sampled_from((False,) * 9 + (True,)),
    st.sampled_from((None,) * 6 + NODES),
) | st.builds(Withdrawn, NODE) | st.builds(ReplicaRemoval, NODE)  # fmt: skip
MERGE = st.builds(AssetMerge, st.sampled_from(sorted(MERGES)), st.integers(0, 5), NODE, st.integers(0, 3)) | st.builds(
    HostileMerge, st.sampled_from(("", "properties")), st.sampled_from((
        "id", "collection", "type", "foo", "assets", "links", "x", "version", "base_id", "latest", "size")), VALUE,
)  # fmt: skip
PATCH = st.builds(Operations, st.lists(OPERATION, min_size=1, max_size=5).map(tuple))
WHOLE = st.builds(Put, TITLE, st.none() | HARM)
EDIT = AS_ESGF | REPLICAS | MERGE | PATCH | WHOLE
