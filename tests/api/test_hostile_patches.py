"""A hundred and more hostile patches: each is refused for its reason, or says nothing, and leaves every byte as it is.

They are sent by whoever has the most right to: by an administrator what nobody may do, by the publisher or a node's
operator what is another's. (What a patch may do: design/publication.md, Actions; server-owned members: overview.md.)
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import pytest

from fedstac.db import invariants
from fedstac.demo import sample
from fedstac.domain.errors import pointer
from fedstac.vocabularies.checker import open_checker
from tests.api.patches import add, copied, move, op, remove, replace
from tests.api.stored import everything
from tests.support.nodes import Api

Json = Any
ITEMS: Final = "/collections/CMIP6/items"
NCAR = [item for item in sample.items(300) if item["properties"]["cmip6:institution_id"] == "NCAR"]
OLD: Json = NCAR[0]
LATEST: Json = json.loads(json.dumps(OLD).replace(OLD["properties"]["version"], "20991231"))
WITHDRAWN: Json = NCAR[1]  # and another dataset, which is retracted
FILE = next(key for key, asset in LATEST["assets"].items() if "file:checksum" in asset)
GLOBUS = next(key for key, asset in LATEST["assets"].items() if "file:checksum" not in asset)
VOCABULARY = open_checker().vocabularies.current("CMIP6")
FACETS = VOCABULARY.id_template.names if VOCABULARY else ()

ADMIN, NCAR_PUBLISHER, EAST = "admin", "publisher:NCAR", "node:east"

# what it comes to: the problem, or nothing at all
INVALID, MALFORMED, BAD, FORBIDDEN = "stac-validation", "malformed-json", "bad-request", "missing-permission"
CONFLICT, TOO_LARGE, MEDIA, CHANGED = "conflict", "body-too-large", "unsupported-media-type", "precondition-failed"
NOTHING = "nothing changes"

ASSET, CITATION = pointer("assets", FILE), "/links/0"
MINE, THEIRS = f"{ASSET}/alternate/east", f"{ASSET}/alternate/south"
OTHER_SUM, OTHER_ID = "1220" + "0" * 64, "hdl:21.14100/00000000-0000-0000-0000-000000000000"
SCRIPT = "javascript:alert(1)"


@dataclass(frozen=True)
class Hostile:
    """A patch, why it is hostile, and what it comes to."""

    why: str
    body: Json  # bytes are sent as they are
    comes_to: str
    by: str = ADMIN
    at: Json = field(default_factory=lambda: LATEST)
    headers: Mapping[str, str] = field(default_factory=dict)


def entry(node: str, **members: Json) -> Json:
    return {"href": f"https://{node}.example/{FILE}", "description": "HTTPServer Link", "roles": ["data"], **members}


def values(*each: Json) -> tuple[Json, ...]:
    """Return them, of any type."""
    return each


def nested(depth: int) -> Json:
    value: Json = 0
    for _ in range(depth):
        value = [value]
    return value


def without_file(**others: Json) -> Json:
    return {**{key: asset for key, asset in LATEST["assets"].items() if key != FILE}, **others}


def merged_file(**members: Json) -> Json:
    return {"assets": {FILE: members}}


IDENTITY = (
    Hostile("another id", replace("/id", OLD["id"]), INVALID),
    Hostile("another id, added", add("/id", "x"), INVALID),
    Hostile("another id, merged", {"id": "x"}, INVALID),
    Hostile("an id with a zero-width space", replace("/id", LATEST["id"] + "\u200b"), INVALID),
    Hostile("an id in full-width letters", replace("/id", LATEST["id"].replace("CMIP6", "ＣＭＩＰ６")), INVALID),
    Hostile("an id with a Cyrillic letter", replace("/id", LATEST["id"].replace("C", "С", 1)), INVALID),
    Hostile("an id in small letters", replace("/id", LATEST["id"].lower()), INVALID),
    Hostile("no id", remove("/id"), INVALID),
    Hostile("the id moved away", move("/id", "/properties/id"), INVALID),
    Hostile("the id copied over the collection", copied("/id", "/collection"), INVALID),
    Hostile("another collection", replace("/collection", "CMIP7"), INVALID),
    Hostile("another collection, merged", {"collection": "CMIP7"}, INVALID),
    Hostile("no collection", remove("/collection"), INVALID),
    Hostile("another type", replace("/type", "Collection"), INVALID),
    Hostile("another base_id", replace("/properties/base_id", "CMIP6.x"), INVALID),
    Hostile("another base_id, merged, with its id", {"id": "x", "properties": {"base_id": "x"}}, INVALID),
    Hostile("no base_id", {"properties": {"base_id": None}}, INVALID),
    Hostile("a version as a number", replace("/properties/version", 20991231), INVALID),
    Hostile("a version in Arabic digits", replace("/properties/version", "٢٠٩٩١٢٣١"), INVALID),
    *(Hostile(f"another {name}", replace(f"/properties/{name}", "NOPE"), INVALID) for name in FACETS),
    *(Hostile(f"another {name}, merged", {"properties": {name: "NOPE"}}, INVALID) for name in FACETS),
    *(Hostile(f"no {name}", {"properties": {name: None}}, INVALID) for name in FACETS),
    Hostile("another activity, by its place in the list", replace("/properties/cmip6:activity_id/0", "OMIP"), INVALID),
    Hostile("one activity more", add("/properties/cmip6:activity_id/-", "OMIP"), INVALID),
    Hostile("a facet moved over another", move("/properties/cmip6:table_id", "/properties/cmip6:grid_label"), INVALID),
    Hostile("a facet copied over another", copied("/properties/cmip6:table_id", "/properties/cmip6:experiment_id"),
            INVALID),
    Hostile("a facet copied over the version", copied("/properties/cmip6:table_id", "/properties/version"), INVALID),
    Hostile("all facets away and put back as others",
            [op("remove", f"/properties/{name}") for name in FACETS]
            + [op("add", f"/properties/{name}", value="x") for name in FACETS], INVALID),
    Hostile("another dataset as a whole", replace("", WITHDRAWN), INVALID),
    Hostile("another dataset's properties", replace("/properties", WITHDRAWN["properties"]), INVALID),
    Hostile("nearly no properties", replace("/properties", {"datetime": None}), INVALID),
    Hostile("the institution of somebody else",
            {"properties": {"cmip6:institution_id": "MPI-M"}}, INVALID, by=NCAR_PUBLISHER),
)  # fmt: skip

OWNED_BY_THE_SERVER = (
    Hostile("latest again", replace("/properties/latest", True), CONFLICT, at=OLD),
    Hostile("latest again, merged", {"properties": {"latest": True}}, CONFLICT, at=OLD),
    Hostile("latest again, taken away and added",
            [*remove("/properties/latest"), *add("/properties/latest", True)], CONFLICT, at=OLD),
    Hostile("latest again, with its properties", replace("/properties", {**OLD["properties"], "latest": True}),
            CONFLICT, at=OLD),
    Hostile("latest although it is retracted", {"properties": {"latest": True}}, CONFLICT, at=WITHDRAWN),
    *(Hostile(f"latest as {value!r}", replace("/properties/latest", value), INVALID)
      for value in values("false", 0, [], {})),
    *(Hostile(f"retracted as {value!r}", {"properties": {"retracted": value}}, INVALID)
      for value in values("true", 1, [])),
    Hostile("published in the past", replace("/properties/created", "1999-01-01T00:00:00Z"), NOTHING),
    Hostile("changed in the future", {"properties": {"updated": "2099-01-01T00:00:00Z"}}, NOTHING),
    Hostile("deleted by its state", replace("/properties/fedstac:state", "deleted"), NOTHING),
    Hostile("published by its state", {"properties": {"fedstac:state": "published"}}, NOTHING, at=WITHDRAWN),
    Hostile("another reason for the retraction", {"properties": {"fedstac:retraction": {"reason": "x"}}}, NOTHING,
            at=WITHDRAWN),
    Hostile("judged by another vocabulary", add("/properties/fedstac:cv_version", "0"), NOTHING),
    Hostile("replicas that are none", add("/properties/fedstac:replicas", {"west": {"complete": True}}), NOTHING),
    Hostile("a member that the server might own some day", add("/properties/fedstac:x", 1), NOTHING),
    Hostile("the server's members taken away", [op("remove", f"/properties/{name}") for name in
            ("latest", "retracted", "created", "updated", "fedstac:state")], NOTHING),
    Hostile("null for the server's members", {"properties": {"latest": None, "retracted": None, "created": None,
            "updated": None, "fedstac:state": None, "fedstac:replicas": None}}, NOTHING),
    *(Hostile(f"the link {rel} of the server", add("/links/-", {"rel": rel, "href": "https://evil.example/"}), NOTHING)
      for rel in ("self", "root", "parent", "collection", "predecessor-version", "successor-version",
                  "latest-version", "SELF", "Latest-Version")),
    Hostile("an extension of the server", add("/stac_extensions/-", "https://evil.example/extensions/fedstac/x.json"),
            NOTHING),
)  # fmt: skip

FILES = (
    Hostile("another checksum", replace(f"{ASSET}/file:checksum", OTHER_SUM), CONFLICT),
    Hostile("another checksum, merged", merged_file(**{"file:checksum": OTHER_SUM}), CONFLICT),
    Hostile("the checksum in capitals", merged_file(**{
        "file:checksum": LATEST["assets"][FILE]["file:checksum"].upper()}), CONFLICT),
    Hostile("no checksum", remove(f"{ASSET}/file:checksum"), CONFLICT),
    Hostile("no checksum, merged", merged_file(**{"file:checksum": None}), CONFLICT),
    Hostile("a checksum that is a list", replace(f"{ASSET}/file:checksum", [OTHER_SUM]), CONFLICT),
    Hostile("another size", replace(f"{ASSET}/file:size", 1), CONFLICT),
    Hostile("the size as text", merged_file(**{"file:size": str(LATEST["assets"][FILE]["file:size"])}), CONFLICT),
    Hostile("another tracking id", replace(f"{ASSET}/cmip6:tracking_id", OTHER_ID), CONFLICT),
    Hostile("no tracking id", remove(f"{ASSET}/cmip6:tracking_id"), CONFLICT),
    Hostile("a tracking id before the one that is there", replace(ASSET, {
        "x:tracking_id": OTHER_ID, **LATEST["assets"][FILE]}), CONFLICT),
    Hostile("the checksum moved to another asset",
            move(f"{ASSET}/file:checksum", pointer("assets", GLOBUS, "file:checksum")), CONFLICT),
    Hostile("no files, and not retracted", replace("/assets", {}), CONFLICT),
    Hostile("no files, by adding none", add("/assets", {}), CONFLICT),
    Hostile("no files, and superseded only", [*replace("/properties/latest", False), *replace("/assets", {})],
            CONFLICT),
    Hostile("one file less", remove(ASSET), CONFLICT),
    Hostile("one file less, merged", {"assets": {FILE: None}}, CONFLICT),
    Hostile("one file less, as a whole", replace("/assets", without_file()), CONFLICT),
    Hostile("a file under another name", move(ASSET, "/assets/other.nc"), CONFLICT),
    Hostile("a file twice", copied(ASSET, "/assets/other.nc"), CONFLICT),
    Hostile("one file more", add("/assets/more.nc", {**LATEST["assets"][FILE], "cmip6:tracking_id": OTHER_ID}),
            CONFLICT),
    Hostile("a file that is called an aggregation", merged_file(protocol="kerchunk"), CONFLICT),
    Hostile("another file under its old name", replace("/assets", without_file(**{
        FILE: {**LATEST["assets"][FILE], "file:checksum": OTHER_SUM, "file:size": 1}})), CONFLICT),
    Hostile("other files by a publisher, who gives a reason", replace(f"{ASSET}/file:checksum", OTHER_SUM), FORBIDDEN,
            by=NCAR_PUBLISHER, headers={"Fedstac-Override": "because I say so"}),
    Hostile("a sum of sizes below nothing", replace("/properties/size", -1), INVALID),
    Hostile("a sum of sizes in words", replace("/properties/size", "much"), INVALID),
)  # fmt: skip

HONEST = replace(f"{MINE}/href", "https://east.example/moved")
OTHERS = (
    Hostile("another node's replica replaced", replace(THEIRS, entry("south", title="x")), FORBIDDEN, by=EAST),
    Hostile("another node's replica added once more", add(THEIRS, entry("east")), FORBIDDEN, by=EAST),
    Hostile("another node's replica removed", remove(THEIRS), FORBIDDEN, by=EAST),
    Hostile("another node's address", replace(f"{THEIRS}/href", "https://evil.example/"), FORBIDDEN, by=EAST),
    Hostile("another node's address, merged", merged_file(alternate={"south": {"href": "https://evil.example/"}}),
            FORBIDDEN, by=EAST),
    Hostile("another node's replica, null", merged_file(alternate={"south": None}), FORBIDDEN, by=EAST),
    Hostile("all replicas, null", merged_file(alternate=None), FORBIDDEN, by=EAST),
    Hostile("all replicas removed", remove(f"{ASSET}/alternate"), FORBIDDEN, by=EAST),
    Hostile("all replicas replaced by the own one", replace(f"{ASSET}/alternate", {"east": entry("east")}), FORBIDDEN,
            by=EAST),
    Hostile("another node's replica moved to the own name", move(THEIRS, MINE), FORBIDDEN, by=EAST),
    Hostile("another node's replica copied to the own name", copied(THEIRS, MINE), INVALID, by=EAST),
    Hostile("another node's replica overwritten by the own one", copied(MINE, THEIRS), FORBIDDEN, by=EAST),
    Hostile("the own replica first, then another node's",
            [*HONEST, *remove(THEIRS)], FORBIDDEN, by=EAST),
    Hostile("another node's replica first, then the own one",
            [*remove(THEIRS), *HONEST], FORBIDDEN, by=EAST),
    Hostile("another node's replica, after a test that holds",
            [op("test", "/id", value=LATEST["id"]), *remove(THEIRS)], FORBIDDEN, by=EAST),
    Hostile("the own replica and a description",
            [*HONEST, *add("/properties/description", "x")], FORBIDDEN, by=EAST),
    Hostile("the own replica and an errata link", [*HONEST, *add("/links/-",
            {"rel": "related", "href": "https://errata.esgf.io/1", "title": "Errata issue", "type": "text/html"})],
            FORBIDDEN, by=EAST),
    Hostile("the own replica and a retraction",
            [*HONEST, *replace("/properties/retracted", True)], FORBIDDEN, by=EAST),
    Hostile("the own replica in the name of another", replace(f"{MINE}/alternate:name", "south"), INVALID, by=EAST),
    Hostile("the own replica with another checksum", replace(MINE, entry("east", **{"file:checksum": OTHER_SUM})),
            INVALID, by=EAST),
    Hostile("the own replica with another size", merged_file(alternate={"east": {"file:size": 1}}), INVALID, by=EAST),
    Hostile("the own replica at a script", replace(f"{MINE}/href", SCRIPT), INVALID, by=EAST),
    Hostile("the own replica at a script with a tab in it", replace(f"{MINE}/href", "java\tscript:alert(1)"), INVALID,
            by=EAST),
    Hostile("the own replica without an address", remove(f"{MINE}/href"), INVALID, by=EAST),
    Hostile("the own replica as text", replace(MINE, "https://east.example/"), INVALID, by=EAST),
    Hostile("the own replica of a file that is not there", add("/assets/none.nc/alternate/east", entry("east")),
            INVALID, by=EAST),
    *(Hostile(f"a node that looks like one's own: {name!r}", add(f"{ASSET}/alternate/{name}", entry("east")),
              FORBIDDEN, by=EAST)
      for name in ("East", "east ", "east\u200b", "еast", "ｅast", "e\u0301ast", "east.", "", "*", "east~1..~1south")),
    Hostile("the original's address by a node", replace(f"{ASSET}/href", "https://evil.example/"), FORBIDDEN, by=EAST),
    Hostile("the original's node by a node", replace(f"{ASSET}/alternate:name", "east"), FORBIDDEN, by=EAST),
    Hostile("a whole file by a node", replace(ASSET, LATEST["assets"][FILE]), FORBIDDEN, by=EAST),
    Hostile("a file removed by a node", remove(ASSET), FORBIDDEN, by=EAST),
    Hostile("all files replaced by a node", replace("/assets", {}), FORBIDDEN, by=EAST),
    Hostile("the whole by a node", replace("", LATEST), FORBIDDEN, by=EAST),
    Hostile("a retraction by a node", {"properties": {"retracted": True}}, FORBIDDEN, by=EAST),
    Hostile("superseded by a node", replace("/properties/latest", False), FORBIDDEN, by=EAST),
    Hostile("reinstated by a publisher", {"properties": {"retracted": False}}, FORBIDDEN, by=NCAR_PUBLISHER,
            at=WITHDRAWN),
    Hostile("replicas of two nodes by the publisher", remove(f"{ASSET}/alternate"), FORBIDDEN, by=NCAR_PUBLISHER),
    Hostile("a replica in the name of a node by the publisher", add(f"{ASSET}/alternate/north", entry("north")),
            FORBIDDEN, by=NCAR_PUBLISHER),
    Hostile("a retracted dataset described", add("/properties/description", "x"), CONFLICT, at=WITHDRAWN),
    Hostile("a dataset that was changed since it was read", add("/properties/description", "x"), CHANGED,
            headers={"If-Match": f'"{"0" * 32}-1"'}),
)  # fmt: skip

PLACES = (
    Hostile("the last of a list, by -1", replace("/links/-1", {}), INVALID),
    Hostile("the last of the files, by -1", remove("/assets/-1"), INVALID),
    Hostile("a place with a leading zero", replace("/links/00", {}), INVALID),
    Hostile("a place with a sign", remove("/links/+0"), INVALID),
    Hostile("a place as a power of ten", remove("/links/0e0"), INVALID),
    Hostile("a place in Arabic digits", remove("/links/٠"), INVALID),
    Hostile("a place beyond the list", add("/links/99", {"rel": "about", "href": "https://x.example/"}), INVALID),
    Hostile("a place beyond all numbers", remove("/links/99999999999999999999999999"), INVALID),
    Hostile("what comes after the last", remove("/links/-"), INVALID),
    Hostile("a fifth number of the bbox", add("/bbox/-", 1), INVALID),
    Hostile("a member below a text", add("/id/x", 1), INVALID),
    Hostile("a member below nothing", add("/nowhere/x", 1), INVALID),
    Hostile("a property that is not there, removed", remove("/properties/nothing"), INVALID),
    Hostile("a parent's path with an empty step", remove("//properties"), INVALID),
    Hostile("a path with dots", remove("/properties/../links"), INVALID),
    Hostile("a path of a prototype", add("/properties/__proto__/latest", True), INVALID),
    Hostile("a path of a constructor", add("/constructor/prototype/x", 1), INVALID),
    Hostile("~ with neither 0 nor 1 behind it", add("/properties/a~2b", 1), INVALID),
    Hostile("~ at the end", add("/properties/a~", 1), INVALID),
    Hostile("~01, which is ~1 and not /", remove("/assets~01" + ASSET.removeprefix("/assets/")), INVALID),
    Hostile("percent signs instead of ~", remove("/properties%2Flatest"), INVALID),
    Hostile("a path as a URL fragment", remove("#/properties/description"), INVALID),
    Hostile("a path without its first slash", add("id", 1), INVALID),
    Hostile("a path of over 2 000 characters", add("/properties/" + "x" * 2000, 1), INVALID),
    Hostile("a path that is a number", replace(1, "x"), INVALID),  # type: ignore[arg-type]
    Hostile("a path that is a list", replace(["id"], "x"), INVALID),  # type: ignore[arg-type]
    Hostile("the whole into itself", move("", "/properties/x"), INVALID),
    Hostile("the properties into themselves", move("/properties", "/properties/x"), INVALID),
    Hostile("the whole taken away", remove(""), INVALID),
    Hostile("links that take the place of the properties", move("/links", "/properties"), INVALID),
    Hostile("a test that fails, last", [*add("/properties/description", "x"), op("test", "/id", value="x")], INVALID),
    Hostile("a test of 1 for true", [op("test", "/properties/latest", value=1), *remove("/properties/title")], INVALID),
)  # fmt: skip

SHAPES = (
    *(Hostile(f"{name} as {value!r}", replace(f"/{name}", value), INVALID)
      for name in ("type", "stac_version", "id", "collection", "geometry", "bbox", "properties", "links", "assets",
                   "stac_extensions")
      for value in (7, "x", [None])),
    *(Hostile(f"the whole as {value!r}", replace("", value), INVALID) for value in values(None, [], "x", {})),
    *(Hostile(f"the patch as {body!r}", body, BAD) for body in (None, True, 7, "x")),
    *(Hostile(f"an operation as {one!r}", [one], INVALID) for one in values(None, 7, "add", [], {})),
    *(Hostile(f"an operation called {name!r}", [op(name, "/id", value="x")], INVALID)  # type: ignore[arg-type]
      for name in ("explode", "ADD", "add ", "", None, ["add"])),
    Hostile("an operation without its value", [op("add", "/properties/x")], INVALID),
    Hostile("an operation without its origin", [op("copy", "/properties/x")], INVALID),
    Hostile("an operation without its path", [{"op": "remove"}], INVALID),
    Hostile("a good operation, then one that is none", [*add("/properties/description", "x"), {}], INVALID),
    Hostile("links of a wrong shape", replace("/links", [{"rel": ["self"], "href": 1}]), INVALID),
    Hostile("no links", replace("/links", []), INVALID),
    Hostile("the citation at a script", replace(f"{CITATION}/href", SCRIPT), INVALID),
    Hostile("a link to a script", add("/links/-", {"rel": "about", "href": SCRIPT}), INVALID),
    Hostile("an asset as a list", replace(ASSET, []), INVALID),
    Hostile("a property of the project that it does not know", add("/properties/cmip6:x", 1), INVALID),
    Hostile("a term that looks like one", replace("/properties/cmip6:frequency", "ｍon"), INVALID),
    Hostile("a term with a zero-width joiner", replace("/properties/cmip6:frequency", "mon\u200d"), INVALID),
    Hostile("an extension of somebody else", add("/stac_extensions/-", "https://evil.example/schema.json"), INVALID),
    Hostile("no extensions", replace("/stac_extensions", []), INVALID),
    Hostile("a point nowhere", replace("/geometry", {"type": "Point", "coordinates": [500, 0]}), INVALID),
    Hostile("a date that is none", replace("/properties/start_datetime", "2020-02-30T00:00:00Z"), INVALID),
    Hostile("an end before its start", replace("/properties/end_datetime", "0001-01-01T00:00:00Z"), INVALID),
    Hostile("no time at all", [op("remove", "/properties/datetime")], INVALID),
)  # fmt: skip

NULLS = (
    Hostile("an empty patch", [], NOTHING),
    Hostile("an empty merge", {}, NOTHING),
    Hostile("null for all that an item has", dict.fromkeys((
        "type", "stac_version", "id", "collection", "geometry", "bbox", "properties", "links", "assets",
        "stac_extensions")), NOTHING),
    Hostile("null for a date that is null", {"properties": {"datetime": None}}, NOTHING),
    Hostile("null for what is not there", {"properties": {"nothing": None}, "nothing": None}, NOTHING),
    Hostile("null for a file's address", merged_file(href=None), INVALID),
    Hostile("null as a value of an operation", replace("/id", None), INVALID),
    Hostile("null for the files by an operation", replace("/assets", None), INVALID),
)  # fmt: skip

BODIES = (
    Hostile("10 001 operations", [op("test", "/id", value=LATEST["id"])] * 10_001, BAD),
    Hostile("a value of 5 MB", add("/properties/description", "x" * 5_000_000), TOO_LARGE),
    Hostile("a value that makes the item over 4 MiB", add("/properties/x", "x" * (4 * 2**20 - 100)), TOO_LARGE),
    Hostile("the item in itself, and that in itself, 40 times", copied("", "/properties/x") * 40, MALFORMED),
    Hostile("the files copied until they are over 4 MiB",
            [one for n in range(3000) for one in copied("/assets", f"/properties/{n}")], TOO_LARGE),
    Hostile("a value nested 70 deep", add("/properties/x", nested(70)), MALFORMED),
    Hostile("a value of 60 in one of 60",
            [*add("/properties/x", nested(50)), *copied("/properties/x", "/properties/x" + "/0" * 50)], MALFORMED),
    Hostile("a key twice", b'{"properties": {"title": "a", "title": "b"}}', MALFORMED),
    Hostile("a key twice, once in escapes", b'{"properties": {}, "propertie\\u0073": {"title": "b"}}', MALFORMED),
    Hostile("two paths in one operation", b'[{"op": "remove", "path": "/properties/x", "path": "/id"}]', MALFORMED),
    Hostile("no number", b'[{"op": "add", "path": "/properties/x", "value": NaN}]', MALFORMED),
    Hostile("an endless number", b'{"properties": {"x": -Infinity}}', MALFORMED),
    Hostile("a number beyond doubles", b'{"properties": {"x": 1e400}}', MALFORMED),
    Hostile("a number that no double is", b'{"properties": {"x": 9007199254740993}}', MALFORMED),
    Hostile("a character that PostgreSQL cannot hold", b'{"properties": {"x": "\\u0000"}}', MALFORMED),
    Hostile("half a character", b'{"properties": {"x": "\\ud800"}}', MALFORMED),
    Hostile("bytes that are no UTF-8", b'{"properties": {"x": "\xff"}}', MALFORMED),
    Hostile("a mark of the byte order", b'\xef\xbb\xbf{"id": "x"}', MALFORMED),
    Hostile("a patch in UTF-16", '{"id": "x"}'.encode("utf-16"), MALFORMED,
            headers={"Content-Type": "application/json; charset=utf-16"}),
    Hostile("a comment", b'{"id": "x" /* y */}', MALFORMED),
    Hostile("two patches", b'{} {"id": "x"}', MALFORMED),
    Hostile("half a patch", b'[{"op": "remove"', MALFORMED),
    Hostile("no body", b"", MALFORMED),
    Hostile("a body that is not gzip", b'{"id": "x"}', BAD, headers={"Content-Encoding": "gzip"}),
    Hostile("a bomb of gzip", gzip.compress(b" " * 2**22, mtime=0), TOO_LARGE, headers={"Content-Encoding": "gzip"}),
    Hostile("another encoding", b'{"id": "x"}', MEDIA, headers={"Content-Encoding": "br"}),
    Hostile("a merge patch that is called a JSON patch", {"properties": {"description": "x"}}, BAD,
            headers={"Content-Type": "application/json-patch+json"}),
    Hostile("and in capitals", {"properties": {"description": "x"}}, BAD,
            headers={"Content-Type": "Application/JSON-Patch+JSON; charset=utf-8"}),
    Hostile("operations that are called a merge patch", replace("/id", "x"), INVALID,
            headers={"Content-Type": "application/merge-patch+json"}),
    Hostile("the wrapper, with what may not be", {"operations": replace("/id", "x")}, INVALID),
    Hostile("the wrapper, with another member", {"operations": [], "properties": {"description": "x"}}, BAD),
    Hostile("the wrapper, with no list in it", {"operations": op("remove", "/properties/title")}, BAD),
    Hostile("the wrapper in itself", {"operations": [{"operations": remove("/properties/description")}]}, INVALID),
    Hostile("a prototype, merged by a node", {"__proto__": {"latest": True}}, FORBIDDEN, by=EAST),
)  # fmt: skip

HOSTILE: Final = (*IDENTITY, *OWNED_BY_THE_SERVER, *FILES, *OTHERS, *PLACES, *SHAPES, *NULLS, *BODIES)


@pytest.fixture
async def west(api: Api) -> Api:
    """With a dataset in two versions, replicas of two nodes at the latest, and another dataset, which is retracted."""
    for item in (OLD, LATEST, WITHDRAWN):
        assert (await api.admin.post(ITEMS, json=item)).status_code == 201
    for node in ("east", "south"):
        answer = await api.admin.put(f"{ITEMS}/{LATEST['id']}/replicas/{node}", json={FILE: entry(node)})
        assert answer.status_code == 200, answer.text
    answer = await api.admin.post(f"{ITEMS}/{WITHDRAWN['id']}/retract", json={"reason": "wrong forcing"})
    assert answer.status_code == 200, answer.text
    return api


async def send(api: Api, hostile: Hostile) -> str:
    """Return what it comes to: the name of the problem, or NOTHING where it is taken."""
    body = hostile.body if isinstance(hostile.body, bytes) else json.dumps(hostile.body).encode()
    bearer = {"Authorization": f"Bearer {api.tokens[hostile.by]}", "Content-Type": "application/json"}
    path = f"{ITEMS}/{hostile.at['id']}"
    answer = await api.anyone.patch(path, content=body, headers={**bearer, **hostile.headers})
    if answer.status_code == 200:
        return NOTHING
    assert answer.json()["status"] == answer.status_code < 500, (hostile.why, answer.text)
    assert answer.json()["detail"], hostile.why
    return str(answer.json()["code"])


def test_there_are_a_hundred_and_each_is_another_one() -> None:
    assert len(HOSTILE) >= 100
    assert len({hostile.why for hostile in HOSTILE}) == len(HOSTILE)


async def test_hostile_patches_change_nothing(west: Api) -> None:
    conn = await asyncpg.connect(west.settings.dsn)
    before, wrong = await everything(conn), []
    for hostile in HOSTILE:
        came_to, after = await send(west, hostile), await everything(conn)
        if came_to != hostile.comes_to:
            wrong.append(f"{hostile.why}: {came_to} instead of {hostile.comes_to}")
        if after != before:
            wrong.append(f"{hostile.why}: something changed")
            before = after
    assert await invariants.check(conn) == []
    await conn.close()
    assert not wrong, "\n".join(wrong)
