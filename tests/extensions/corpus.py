"""Items, real and generated, and what may be wrong with one: mutations at every depth, the same for the same seed."""

from __future__ import annotations

import copy
import gzip
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from fedstac.demo import sample

Json = dict[str, Any]
Mutator = Callable[[Json, random.Random], str]

WRONG: Sequence[Any] = (
    None, True, False, 0, -1, 1.5, 1, 2**53 - 1, -(2**53) + 1, 1e308, 5e-324, "", " ", "x", "none", [], {}, [None],
    [""],
    ["x", "x"], {"a": None}, [[]], "x" * 5000, "🌍", "é", "e\u0301", "\u202e", "\u0661\u0662", "2000-01-01T00:00:00Z",
    {"href": "https://a.org/x", "rel": "related"}, "https://a.org/",
)  # fmt: skip
URIS: Sequence[str] = (
    "", "https://a.org/x", "http://a.org/x", "HTTPS://A.ORG/x", "a", "../a", "/a", "//a.org/x", "?q", "#f",
    "https://a.org/x y",
    "https://a.org/%zz", "https://[::1]/x", "https://[::1/x", "https://a.org/é", "https://é.org/",
    "https://a.org/<x>", ":x",
    "https://a.org:99999999/", "s3://bucket/key", "urn:a:b", "hdl:21.14100/1", "mailto:a@a.org",
    "javascript:alert(1)", "1x:y",
    "data:text/html,x", "https://", "https:///x", "file:///etc/passwd", "https://a.org/\u0661",
    "gsiftp://a.org:2811//x",
    "https://errata.esgf.io/static/view.html?uid=1", "https://errata-esgf.io/x", "http://errataxesgf.io/x",
    "https://cera-www.dkrz.de/WDCC/meta/CMIP6/", "https://cera-www.dkrz.de/WDCC/meta/CMIP6/x",
    "https://cera-www.dkrz.de/WDCC/meta/CMIP5/x", "ftp://cera-www.dkrz.de/WDCC/meta/CMIP6/x",
    "https://furtherinfo.es-doc.org/CMIP6.x", "https://furtherinfoXes-doc.org/CMIP6",
    "http://furtherinfo.es-doc.org/CMIP5",
)  # fmt: skip
MOMENTS: Sequence[Any] = (
    "2000-01-01T00:00:00Z", "2000-01-01T00:00:00+00:00", "2000-01-01T00:00:00+01:00", "2000-01-01T00:00:00-00:00",
    "2000-01-01",
    "2000-01-01T00:00:00", "2000-01-01 00:00:00Z", "2000-01-01t00:00:00z", "2000-02-30T00:00:00Z",
    "2000-01-01T24:00:00Z",
    "2000-01-01T23:59:60Z", "1999-12-31T23:59:60Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z",
    "99999-01-01T00:00:00Z",
    "-0001-01-01T00:00:00Z", "2000-01-01T00:00Z", "2000-1-1T00:00:00Z", "\u0662000-01-01T00:00:00Z", 946684800, None,
    "",
)  # fmt: skip
PATHS: Sequence[Any] = (
    "a", "a/b", "a/b/", "/a", "a//b", "a\\b", "a:b", "a'b",
    'a"b', "a\tb", "a\nb", "", "/", "..", "../a", "a/../b", "a/..", "a/...",
    "./a", "a b", "é/\u0661", 1, None,
)  # fmt: skip
CHECKSUMS: Sequence[Any] = (
    "abcd", "abc", "", "1220" + "a" * 64, "1220" + "A" * 64, "1220" + "a" * 63, "1220" + "g" * 64,
    "d50110" + "a" * 32, "1114" + "0" * 40,
    "0x1220", 1220, None, "\uff11220" + "a" * 63,
)  # fmt: skip
NUMBERS: Sequence[Any] = (
    -1,
    0,
    1,
    1.0,
    0.5,
    -0.0,
    2**31,
    2**53,
    -(2**53),
    1e15,
    1e308,
    "0",
    "1",
    True,
    None,
    [1],
    5e-324,
)
EXTENSIONS: Sequence[Any] = (
    "https://stac-extensions.github.io/version/v1.2.0/schema.json", "https://a.org/x.json", "x", "", 1, None,
    "https://stac-extensions.github.io/file/v2.0.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json#",
    "https://stac-extensions.github.io/cmip6/v3.0.1/schema.json",
    "http://stac-extensions.github.io/cmip6/v3.0.2/schema.json",
    "https://a.org/extensions/fedstac/v1.0.0/schema.json",
)  # fmt: skip
GEOMETRIES: Sequence[Any] = (
    None, {"type": "Point", "coordinates": [1, 2]}, {"type": "Point", "coordinates": [1]}, {"type": "Point",
    "coordinates": [1, 2, 3]},
    {"type": "Point", "coordinates": []}, {"type": "point", "coordinates": [1, 2]}, {"type": "Point"},
    {"coordinates": [1, 2]},
    {"type": "Point", "coordinates": ["1", "2"]}, {"type": "Point", "coordinates": [359, 0]}, {"type": "Point",
    "coordinates": [1000, 0]},
    {"type": "LineString", "coordinates": [[1, 2], [3, 4]]}, {"type": "LineString", "coordinates": [[1, 2]]},
    {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}, {"type": "Polygon", "coordinates": []},
    {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [0, 0]]]}, {"type": "Polygon", "coordinates": [[[0, 0], [1,
    0], [1, 1], [0, 1]]]},
    {"type": "MultiPoint", "coordinates": [[1, 2]]}, {"type": "MultiPolygon", "coordinates": [[[[0, 0], [1, 0], [1,
    1], [0, 0]]]]},
    {"type": "GeometryCollection", "geometries": []}, {"type": "GeometryCollection", "geometries": [{"type": "Point",
    "coordinates": [1, 2]}]},
    {"type": "Circle", "coordinates": [1, 2]}, {}, [], "POINT(1 2)",
)  # fmt: skip
BOXES: Sequence[Any] = (
    None, [], [0, 0, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 1], [0, 0, 1, 1, 1], [0, 1, 1, 0], ["0", 0, 1, 1], [0, -91, 1,
    1], [0, 0, 999, 1],
    [170, 0, -170, 1], [None, 0, 1, 1], {},
)  # fmt: skip
COMMON: Mapping[str, Sequence[Any]] = {  # STAC's common metadata: whatever has it, its members have these types
    "license": ("CC-BY-4.0", "CC BY 4.0", "", 1, "é"),
    "keywords": ([], ["a"], "a", [1], None),
    "title": ("", 1, None),
    "description": ("", "x", 1),
    "roles": ([], "data", ["data", 1]),
    "providers": ([{"name": "x"}], [{"name": ""}], [{}], {}, [{"name": "x", "roles": ["host"]}], [{"name": "x",
    "roles": ["owner"]}],
                  [{"name": "x", "url": "https://a.org"}], [{"name": "x", "url": "a"}]),
    "platform": ("x", 1), "instruments": (["x"], "x"), "constellation": (1, "x"), "mission": (None, "x"),
    "gsd": (1, 0, -1, "1", 5e-324),
    "bands": ([{}], [{"name": "x"}], [{"name": 1}], {}, []),
    "data_type": ("int8", "int7", 8), "nodata": (0, "nan", "NaN", None, []), "unit": ("K", 1),
    "statistics": ({}, {"mean": 1}, {"mean": "1"}, {"valid_percent": 101}, {"count": -1}, {"count": 1.5}),
    "created": MOMENTS, "updated": MOMENTS, "datetime": MOMENTS, "start_datetime": MOMENTS, "end_datetime": MOMENTS,
}  # fmt: skip
RELATIONS: Sequence[str] = (
    "item",
    "license",
    "via",
    "about",
    "related",
    "describedby",
    "cite-as",
    "parent",
    "next",
    "Related",
)
LINK_MEMBERS: Mapping[str, Sequence[Any]] = {
    "rel": ("related", "describedby", "cite-as", "self", "collection", "item", "", 1, None, "Cite-As"),
    "type": ("application/json", "text/html", "", 1, None),
    "title": ("Citation URL", "Errata issue", "ES-DOC", "citation url", "", 1, None),
    "href": URIS,
    "method": ("GET", "get", "", 1), "headers": ({}, {"a": "b"}, {"a": ["b"]}, {"a": 1}, []), "body": (None, {}, "x"),
    "file:size": NUMBERS, "file:checksum": CHECKSUMS, "file:unknown": (1,),
}  # fmt: skip
ASSET_MEMBERS: Mapping[str, Sequence[Any]] = {
    "href": (*URIS, 1, None), "type": ("", 1, None), "roles": ([], ["data"], "data", [1], None), "title": ("x", 1),
    "protocol": ("http", "https", "HTTP", "globus", "ftp", "", 1, None, ["http"]),
    "alternate:name": ("x", "", 1, None), "created": MOMENTS, "updated": MOMENTS,
    "cmip6:tracking_id": ("hdl:21.14100/", "hdl:21.14100/72b735c3-e374-30b1-00d6-16064121f3c0", "HDL:21.14100/x",
                          "hdl:21.14100/72B735C3-E374-30B1-00D6-16064121F3C0",
                          "hdl:21x14100/72b735c3-e374-30b1-00d6-16064121f3c0", 1, None),
    "cmip6:unknown": (1,), "file:size": NUMBERS, "file:header_size": NUMBERS, "file:checksum": CHECKSUMS,
    "file:local_path": PATHS,
    "file:byte_order": ("big-endian", "little-endian", "Big-Endian", "", 1, None),
    "file:values": ([], [{}], [{"values": [1], "summary": "x"}], [{"values": [], "summary": "x"}], [{"values": [1],
    "summary": ""}],
                    [{"values": [None], "summary": "x", "more": 1}], {}, [1], [{"values": 1, "summary": "x"}]),
    "file:unknown": (1, None), "file:": (1,), "File:size": ("x",), "xfile:size": ("x",),
    "alternate": ({}, [], "x", None, {"x": {}}, {"x": {"href": "https://a.org/x", "alternate:name": "x"}},
    {"x": None}, {"x": {"href": 1}},
                  {"x": {"href": "", "alternate:name": "x"}}, {"x": {"href": "https://a.org/x"}},
                  {"x": {"href": "https://a.org/x", "alternate:name": "x", "file:size": -1}},
                  {"x": {"href": "https://a.org/x", "alternate:name": "x", "file:checksum": "x"}},
                  {"x": {"href": "https://a.org/x", "alternate:name": "x", "title": 1}},
                  {"x": {"href": "https://a.org/x", "alternate:name": "y"}}),
}  # fmt: skip


def read(path: Path, count: int) -> list[Json]:
    """Return the first items of a gzipped NDJSON file."""
    with gzip.open(path) as lines:
        return [orjson.loads(line) for line in itertools.islice(lines, count)]


def generated(count: int) -> list[Json]:
    """Sample items,
    with all that an item may have: replicas, more links, other shapes, moments, STAC's common members."""
    items: list[Json] = [dict(item) for item in sample.items(count, seed=7)]
    for n, item in enumerate(items):
        if n % 2 == 0:
            for asset in item["assets"].values():
                asset["alternate"] = {
                    node: {**asset, "alternate:name": node, "href": f"https://{node}/{n}", "roles": ["data"]}
                    for node in ("esgf.example.org", "dkrz.example.org")[: 1 + n % 4]
                }
        if n % 3 == 0:
            href = f"https://errata.esgf.io/static/view.html?uid={n}"
            item["links"] += [{"rel": "related", "href": href, "title": "Errata issue", "type": "text/html"}]
        if n % 5 == 0:
            item["geometry"] = {"type": "Point", "coordinates": [n % 180, n % 90]}
            item["bbox"] = [n % 180, n % 90, n % 180, n % 90]
        if n % 7 == 0:
            item["properties"] |= {"license": "CC-BY-4.0", "keywords": ["a"], "platform": "x"}
        if n % 11 == 0:
            item["geometry"] = None
            del item["bbox"]
    return items


def mutants(
    bases: Sequence[Json], seed: int, count: int, terms: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Json]]:
    """Yield so many items with one to three faults each, and what was done. `terms`: by property, what it may be."""
    rng = random.Random(seed)
    names = sorted(terms)

    def facet(item: Json, rng: random.Random) -> str:
        return _facet(item, rng, names, terms)

    mutators: list[Mutator] = (
        [anywhere] * 5 + [facet] * 5 + [_asset, _asset, _link, _common, _moment, _shape, _number, _collective]
    )
    for _ in range(count):
        item = copy.deepcopy(rng.choice(bases))
        done = [rng.choice(mutators)(item, rng) for _ in range(rng.choice((1, 1, 1, 1, 2, 3)))]
        yield "; ".join(done), item


def anywhere(item: Json, rng: random.Random) -> str:
    """Return one member at any depth dropped, replaced, renamed, doubled or put into a list."""
    places: list[tuple[str, Any, Any]] = []

    def collect(value: Any, at: str) -> None:
        for key, member in value.items() if type(value) is dict else enumerate(value) if type(value) is list else ():
            places.append((f"{at}/{key}", value, key))
            collect(member, f"{at}/{key}")

    collect(item, "")
    if not places:
        return "nothing is left"
    at, holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del holder[key]
            return f"drop {at}"
        case 1 | 2:
            holder[key] = rng.choice(WRONG)
            return f"{at} = {str(holder[key])[:60]!r}"
        case 3 if type(holder) is dict:
            name = _near(key, rng)
            holder[name] = holder.pop(key)
            return f"rename {at} to {name[:60]!r}"
        case 3 | 4 if type(holder) is list:
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
            return f"double {at}"
        case 4:
            name = _near(key, rng)
            holder[name] = copy.deepcopy(holder[key])
            return f"copy {at} to {name[:60]!r}"
        case _:
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"x": holder[key]}
            return f"wrap {at}"


def _near(text: str, rng: random.Random) -> str:
    """Return a text that looks like the one given."""
    at = rng.randrange(len(text) + 1)
    match rng.randrange(9):
        case 0:
            return text[:at] + text[at + 1 :]
        case 1:
            return text[:at] + rng.choice("xX0-_. /:") + text[at:]
        case 2:
            return text.swapcase()
        case 3:
            return text + rng.choice((" ", "\n", "\u00a0", "x", "\u0661"))
        case 4:
            return text.replace("-", "_") if "-" in text else text.replace("_", "-")
        case 5:
            return text.replace("1", "\u0661", 1) if "1" in text else "\ufeff" + text
        case 6:
            return text.partition(":")[2] if ":" in text else f"cmip6:{text}"
        case 7:
            return text.replace("r1i1", rng.choice(("r01i1", "r1i200001", "r1i200001a", "ri1", "r-1i1", "R1I1")))
        case _:
            return text[::-1]


def _facet(item: Json, rng: random.Random, names: Sequence[str], terms: Mapping[str, Sequence[str]]) -> str:
    """Return a property of the project with another value: of its terms, nearly one of them, or of another type."""
    name = rng.choice(names)
    given = _object(item, "properties")
    value = given.get(name)
    allowed_terms = terms[name]
    pick = rng.choice(allowed_terms) if allowed_terms else value if type(value) is str else "x"
    match rng.randrange(7):
        case 0:
            given.pop(name, None)
        case 1:
            given[name] = rng.choice(WRONG)
        case 2 | 3:
            given[name] = [pick] if type(value) is list else pick
        case 4:
            given[name] = [_near(pick, rng)] if type(value) is list else _near(pick, rng)
        case 5:
            given[name] = [pick, *value] if type(value) is list else [pick]
        case _:
            given[name] = rng.choice(([], [pick, pick], [pick, None], [_near(pick, rng), pick], pick))
    return f"{name} = {str(given.get(name, '(dropped)'))[:80]!r}"


def _object(item: Json, name: str) -> Json:
    value = item.get(name)
    if type(value) is not dict:
        value = item[name] = {}
    return value


def _one_of(values: Mapping[str, Any], rng: random.Random) -> Json | None:
    objects = [value for value in values.values() if type(value) is dict]
    return rng.choice(objects) if objects else None


def _asset(item: Json, rng: random.Random) -> str:
    asset = _one_of(_object(item, "assets"), rng)
    if asset is not None and rng.random() < 0.3 and type(asset.get("alternate")) is dict:
        asset = _one_of(asset["alternate"], rng)
    if asset is None:
        return "no asset"
    name = rng.choice(sorted(ASSET_MEMBERS))
    asset[name] = rng.choice(ASSET_MEMBERS[name])
    return f"asset {name} = {str(asset[name])[:80]!r}"


def _link(item: Json, rng: random.Random) -> str:
    links = item.get("links")
    if type(links) is list and rng.random() < 0.4:
        links.append({"rel": rng.choice(RELATIONS), "href": rng.choice(URIS)})
        return f"link {links[-1]}"
    if type(links) is not list or not links or type(links[0]) is not dict:
        return "no link"
    link = rng.choice([link for link in links if type(link) is dict])
    if rng.random() < 0.4:
        link = copy.deepcopy(link)
        links.append(link)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(sorted(LINK_MEMBERS))
        link[name] = rng.choice(LINK_MEMBERS[name])
    return f"link {str(link)[:120]}"


def _common(item: Json, rng: random.Random) -> str:
    where = rng.choice(("properties", "assets", "links"))
    name = rng.choice(sorted(COMMON))
    value = rng.choice(COMMON[name])
    links = item.get("links")
    first = links[0] if type(links) is list and links and type(links[0]) is dict else {}
    holder = _object(item, "properties") if where == "properties" else _one_of(_object(item, "assets"), rng) or {}
    (first if where == "links" else holder)[name] = value
    return f"{where} {name} = {str(value)[:80]!r}"


def _moment(item: Json, rng: random.Random) -> str:
    given = _object(item, "properties")
    name = rng.choice(("datetime", "start_datetime", "end_datetime", "created", "updated"))
    given[name] = rng.choice(MOMENTS)
    if rng.random() < 0.3:
        given.pop(rng.choice(("start_datetime", "end_datetime", "datetime")), None)
    return f"{name} = {given.get(name)!r}"


def _shape(item: Json, rng: random.Random) -> str:
    if rng.random() < 0.5:
        item["geometry"] = rng.choice(GEOMETRIES)
    if rng.random() < 0.5:
        item["bbox"] = rng.choice(BOXES)
    if item.get("geometry") is None and rng.random() < 0.5:
        item.pop("bbox", None)
    return f"geometry = {str(item.get('geometry'))[:60]}, bbox = {item.get('bbox')}"


def _number(item: Json, rng: random.Random) -> str:
    value = rng.choice(NUMBERS)
    asset = _one_of(_object(item, "assets"), rng)
    if rng.random() < 0.5 or asset is None:
        _object(item, "properties")["size"] = value
    else:
        asset["file:size"] = value
    return f"size = {value!r}"


def _collective(item: Json, rng: random.Random) -> str:
    """Return what concerns the item as a whole: its id, version, collection, extensions, the keys of its assets."""
    match rng.randrange(7):
        case 0:
            extensions = item.setdefault("stac_extensions", [])
            if type(extensions) is list:
                extensions.append(rng.choice(EXTENSIONS))
        case 1:
            extensions = item.get("stac_extensions")
            if type(extensions) is list and extensions:
                extensions[rng.randrange(len(extensions))] = rng.choice(EXTENSIONS)
        case 2:
            item["id"] = _near(str(item.get("id")), rng)
        case 3:
            item[rng.choice(("stac_version", "collection", "type"))] = rng.choice(
                ("1.0.0", "1.1.0", "CMIP6", "CMIP7", "Feature", "", None)
            )
        case 4:
            assets = _object(item, "assets")
            assets[rng.choice(("alternate", "alternate:name", "x", "", "é"))] = copy.deepcopy(
                _one_of(assets, rng) or {}
            )
        case 5:
            name = rng.choice(("base_id", "version", "bbox", "title", "x", "cmip6:source_id"))
            item[name] = rng.choice((_object(item, "properties").get(name), *WRONG))
        case _:
            item[rng.choice(("assets", "links", "stac_extensions"))] = rng.choice(({}, [], None))
    return f"id = {str(item.get('id'))[-40:]!r}, extensions = {str(item.get('stac_extensions'))[:60]}"
