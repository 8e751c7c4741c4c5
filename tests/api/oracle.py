"""A catalogue of known items, and what searches on it have to find, computed in plain Python."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from fedstac.demo import sample
from tests.support.nodes import Api

Json = dict[str, Any]
Box = tuple[float, float, float, float]
Truth = bool | None  # None: unknown, as SQL and CQL2 have it
Judge = Callable[["Known"], Truth]

SAMPLES = 600
NAMES = ("it's", 'quo"te', "100%", "a_b", "aXb", "naïve", "back\\slash", "Zebra", "zebra", "", "semi;colon", "$1 %s")


@dataclass(frozen=True)
class Known:
    """An item as it was published, with what the oracle needs at hand."""

    document: Json
    boxes: tuple[Box, ...]  # its footprint, in longitudes −180..180
    latest: bool

    @property
    def key(self) -> tuple[str, str]:
        return self.document["collection"], self.document["id"]

    @property
    def start(self) -> datetime:
        return moment(self.document["properties"].get("start_datetime") or self.document["properties"]["datetime"])

    @property
    def end(self) -> datetime:
        return moment(self.document["properties"].get("end_datetime") or self.document["properties"]["datetime"])

    def value(self, name: str) -> Any:
        match name.removeprefix("properties."):
            case "id" | "collection" as member:
                return self.document[member]
            case "datetime" | "start_datetime":
                return self.start
            case "end_datetime":
                return self.end
            case "latest":
                return self.latest
            case "retracted":
                return False
            case other:
                return self.document["properties"].get(other)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text).upper().replace("Z", "+00:00"))


@cache
def catalogue() -> tuple[Known, ...]:
    """Return 600 sample items of CMIP6 and 48 of `places`, which have odd footprints, dates and properties."""
    samples = list(sample.items(SAMPLES))
    newest: dict[str, str] = {}
    for item in samples:
        base, version = item["properties"]["base_id"], item["properties"]["version"]
        newest[base] = max(version, newest.get(base, ""))
    sample_items = [
        Known(item, (tuple(item["bbox"]),), newest[p["base_id"]] == p["version"])
        for item in samples for p in [item["properties"]]
    ]  # fmt: skip
    return (*sample_items, *(Known(document, boxes, True) for document, boxes in _places()))


def _places() -> list[tuple[Json, tuple[Box, ...]]]:
    rng = random.Random(7)
    return [_place(n, rng) for n in range(48)]


def _place(n: int, rng: random.Random) -> tuple[Json, tuple[Box, ...]]:
    geometry, boxes = _footprint(n, rng)
    properties: Json = _dates(n, rng)
    if n % 3:
        properties["level"] = rng.choice([-1.5, 0, 2, 9, 10, 10.25, 99, 100, 1000, 1e12, 1e-7])
    elif n % 2:
        properties["level"] = None
    if n % 5:
        properties["flag"] = bool(n % 2)
    if n % 4:
        properties["name"] = NAMES[n % len(NAMES)]
    document: Json = {
        "type": "Feature", "stac_version": "1.1.0", "id": f"place-{n:02}", "collection": "places",
        "geometry": geometry, "properties": properties, "links": [], "assets": {},
    }  # fmt: skip
    if geometry is not None:
        document["bbox"] = _bbox(geometry)
    return document, boxes


def _dates(n: int, rng: random.Random) -> Json:
    instants = (
        "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.9999999Z", "2000-02-29T12:00:00Z", "1969-12-31T23:59:59.5Z",
        "2000-02-29T12:00:00.000001Z",
    )  # fmt: skip
    if n < len(instants):
        return {"datetime": instants[n]}
    first = datetime(rng.randint(1, 9000), 1, 1, tzinfo=UTC) + timedelta(days=rng.random() * 365)
    last = first + timedelta(days=rng.choice([0, 0.5, 400, 40_000]))
    start, end = (at.isoformat(timespec="seconds").replace("+00:00", "Z") for at in (first, last))
    return {"datetime": None if n % 2 else start, "start_datetime": start, "end_datetime": end}


def _rectangle(west: float, south: float, east: float, north: float, *height: float) -> list[Any]:
    corners = ((west, south), (east, south), (east, north), (west, north), (west, south))
    return [[[*corner, *height] for corner in corners]]


def _footprint(n: int, rng: random.Random) -> tuple[Json | None, tuple[Box, ...]]:
    """Return a geometry, and the boxes that it amounts to."""
    west, south = rng.randint(-179, 130), rng.randint(-89, 60)
    east, north = west + rng.randint(1, 40), south + rng.randint(1, 29)
    match n % 8:
        case 0:
            return None, ()
        case 1:
            return {"type": "Point", "coordinates": [west, south]}, ((west, south, west, south),)
        case 2:  # longitudes 0..360, across 180
            coordinates = _rectangle(160, south, 220, north)
            return {"type": "Polygon", "coordinates": coordinates}, (
                (160, south, 180, north),
                (-180, south, -140, north),
            )
        case 3:  # the same as RFC 7946 has it
            parts = ((170, south, 180, north), (-180, south, -150, north))
            return {"type": "MultiPolygon", "coordinates": [_rectangle(*part) for part in parts]}, parts
        case 4:  # all of it beyond 180
            return (
                {"type": "Polygon", "coordinates": _rectangle(200, south, 250, north)}, ((-160, south, -110, north),)
            )  # fmt: skip
        case 5:  # with heights
            return (
                {"type": "Polygon", "coordinates": _rectangle(west, south, east, north, 12.5)},
                ((west, south, east, north),),
            )
        case 6:
            coordinates = [[west, south], [west, north]]
            return {"type": "LineString", "coordinates": coordinates}, ((west, south, west, north),)
        case _:  # parts that overlap: not valid as it stands
            overlapping: tuple[Box, ...] = ((west, south, east, north), (west + 0.5, south, east + 0.5, north))
            return {"type": "MultiPolygon", "coordinates": [_rectangle(*part) for part in overlapping]}, overlapping


def _bbox(geometry: Json) -> list[float]:
    positions: list[list[float]] = []

    def collect(value: Any) -> None:
        if isinstance(value, list) and value and isinstance(value[0], int | float):
            positions.append(value)
        elif isinstance(value, list):
            for part in value:
                collect(part)

    collect(geometry["coordinates"])
    xs, ys = [p[0] for p in positions], [p[1] for p in positions]
    if geometry["type"] == "MultiPolygon" and min(xs) == -180 and max(xs) == 180:
        return [170, min(ys), -150, max(ys)]
    return [min(xs), min(ys), max(xs), max(ys)]


def touch(boxes: Sequence[Box], others: Sequence[Box]) -> bool:
    """Return whether two footprints share a point; their edges count."""
    return any(
        a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3] for a in boxes for b in others
    )  # fmt: skip


def overlap(item: Known, start: str | None, end: str | None) -> bool:
    """Return whether an item's time touches an interval; None: open."""
    return (end is None or item.start <= moment(end)) and (start is None or item.end >= moment(start))


# --- random filters, with what they mean ---

PROPERTIES: dict[str, str] = {
    "cmip6:source_id": "text", "cmip6:variable_id": "text", "properties.cmip6:institution_id": "text",
    "cmip6:experiment_id": "text", "version": "text", "name": "text", "id": "text", "collection": "text",
    "properties.level": "number", "level": "number", "size": "number", "flag": "truth", "latest": "truth",
    "properties.retracted": "truth", "datetime": "time", "start_datetime": "time", "end_datetime": "time",
    "absent": "text",
}  # fmt: skip
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b, "<>": lambda a, b: a != b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
}  # fmt: skip


def random_filter(rng: random.Random, depth: int = 3) -> tuple[Json, Judge]:
    """Return a filter in CQL2 JSON and what it says of an item."""
    if depth and rng.random() < 0.55:
        op = rng.choice(["and", "or", "not"])
        parts = [random_filter(rng, depth - 1) for _ in range(1 if op == "not" else rng.randint(2, 3))]
        judges = [judge for _, judge in parts]
        meanings: dict[str, Judge] = {
            "and": lambda item: _all([judge(item) for judge in judges]),
            "or": lambda item: _not(_all([_not(judge(item)) for judge in judges])),
            "not": lambda item: _not(judges[0](item)),
        }
        return {"op": op, "args": [expression for expression, _ in parts]}, meanings[op]
    return _term(rng)


def _all(truths: Sequence[Truth]) -> Truth:
    return False if False in truths else None if None in truths else True


def _not(truth: Truth) -> Truth:
    return None if truth is None else not truth


def _term(rng: random.Random) -> tuple[Json, Judge]:
    if rng.random() < 0.15:
        return _spatial(rng)
    name = rng.choice(list(PROPERTIES))
    kind, own = PROPERTIES[name], {"property": name}
    ops = {"text": ["in", "between", "like", "isNull"], "number": ["in", "between", "isNull"],
           "truth": ["in", "isNull"], "time": ["between", "t_intersects"]}[kind]  # fmt: skip
    op = rng.choice([*(["=", "<>"] if kind == "truth" else COMPARE), *ops])
    if op == "isNull":
        return {"op": op, "args": [own]}, lambda item: item.value(name) is None
    if op == "like":
        return _like(rng, name)
    if op == "t_intersects":
        return _t_intersects(rng)
    one, two, three = (_value(rng, name, kind) for _ in range(3))
    if op == "in":
        chosen = [one[1], two[1], three[1]]
        return {"op": op, "args": [own, [one[0], two[0], three[0]]]}, _judge_known_values(
            name, lambda value: value in chosen
        )
    if op == "between":
        low, high = one[1], two[1]
        return {"op": op, "args": [own, one[0], two[0]]}, _judge_known_values(name, lambda value: low <= value <= high)
    return {"op": op, "args": [own, one[0]]}, _judge_known_values(name, lambda value: COMPARE[op](value, one[1]))


def _judge_known_values(name: str, judge: Callable[[Any], bool]) -> Judge:
    return lambda item: None if item.value(name) is None else judge(item.value(name))


def _value(rng: random.Random, name: str, kind: str) -> tuple[Any, Any]:
    """Return a literal, as CQL2 has it and as Python has it: one that is there, mostly."""
    there = [value for item in catalogue() if (value := item.value(name)) is not None] or ["nothing"]
    value = rng.choice(there)
    if kind == "time":
        return {"timestamp": value.isoformat().replace("+00:00", "Z")}, value
    return value, value


def _like(rng: random.Random, name: str) -> tuple[Json, Judge]:
    text = str(_value(rng, name, "text")[0])
    cut = rng.randint(0, len(text))
    literal, pattern = re.escape(text[:cut]), re.sub(r"([\\%_])", r"\\\1", text[:cut])
    wanted, expected = rng.choice([(pattern + "%", literal + ".*"), ("%" + pattern + "%", ".*" + literal + ".*"),
                                   ("_" + pattern + "%", "." + literal + ".*")])  # fmt: skip
    matches = re.compile(expected, re.DOTALL)
    judge = _judge_known_values(name, lambda value: matches.fullmatch(value) is not None)
    return {"op": "like", "args": [{"property": name}, wanted]}, judge


def _t_intersects(rng: random.Random) -> tuple[Json, Judge]:
    first, last = sorted(_value(rng, "start_datetime", "time")[0]["timestamp"] for _ in range(2))
    start, end = rng.choice([(first, last), (first, None), (None, last)])
    interval = {"interval": [start or "..", end or ".."]}
    return (
        {"op": "t_intersects", "args": [{"property": "datetime"}, interval]},
        lambda item: overlap(item, start, end),
    )


def _spatial(rng: random.Random) -> tuple[Json, Judge]:
    west, south = rng.randint(-180, 170), rng.randint(-90, 80)
    box = (west, south, min(180, west + rng.randint(1, 60)), min(90, south + rng.randint(1, 60)))
    polygon = {"type": "Polygon", "coordinates": _rectangle(*box)}
    return {"op": "s_intersects", "args": [{"property": "geometry"}, polygon]}, lambda item: touch(item.boxes, [box])


async def publish_catalogue(api: Api) -> None:
    for name in ("CMIP6", "places"):
        assert (await api.admin.post("/collections", json=sample.collection(name))).status_code == 201
        features = [entry.document for entry in catalogue() if entry.key[0] == name]
        body = {"type": "FeatureCollection", "features": features}
        response = await api.admin.post(f"/collections/{name}/items", json=body)
        assert response.status_code == 200, response.text
        assert response.json()["counts"]["done"] == len(features), response.text


def expected(judge: Any) -> set[tuple[str, str]]:
    return {item.key for item in catalogue() if judge(item)}


def values(keys: Sequence[tuple[str, str]], order: list[tuple[str, bool]]) -> list[tuple[Any, ...]]:
    """Return what items, given as (collection, id), are sorted by."""
    by_key = {item.key: item for item in catalogue()}
    return [tuple(by_key[key].value(name) for name, _ in order) for key in keys]


def in_order(order: list[tuple[str, bool]]) -> list[Known]:
    """Return the catalogue sorted as PostgreSQL has it: null is larger than everything; ties by collection and id."""
    keys = [*order, *((name, order[-1][1]) for name in ("collection", "id") if name not in dict(order))]
    found = list(catalogue())
    for name, descending in reversed(keys):
        present = [item for item in found if item.value(name) is not None]
        missing = [item for item in found if item.value(name) is None]
        present.sort(key=lambda item: item.value(name), reverse=descending)
        found = missing + present if descending else present + missing
    return found
