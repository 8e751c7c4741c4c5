"""Valid requests that cost as much as can be found: knobs that enlarge a request, and a search that turns them.

A knob enlarges one thing of a request, up to what the documented limits allow. A recipe says how far each knob of a
route is turned, from 0 to 10. The search starts with each knob turned up alone, then turns those of the most expensive
recipes a little, again and again.
"""

from __future__ import annotations

import copy
import gzip
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import orjson

from fedstac.demo import sample
from tests.hostile.corpus import ITEM, ITEMS, Route
from tests.hostile.site import Site
from tests.hostile.wire import Ask

MOST = 10
RECIPES = 40  # of a route, that the search keeps
Json = dict[str, Any]
Recipe = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Draft:
    """A request while knobs are turned: its document is still a value."""

    ask: Ask
    document: Any
    lines: tuple[Any, ...] = ()


Knob = Callable[[Draft, int], Draft]


def part(level: int, most: int) -> int:
    """Return how many of a thing a level stands for: from 1 to `most`, each level as much more as the one before."""
    grown: float = most ** (level / MOST)
    return max(1, round(grown))


# --- any request ---


def many_headers(draft: Draft, level: int) -> Draft:
    headers = {f"X-Header-{n}": "v" * 200 for n in range(part(level, 80))}
    return replace(draft, ask=replace(draft.ask, headers={**draft.ask.headers, **headers}))


def many_tags(draft: Draft, level: int) -> Draft:
    tags = ", ".join(f'"{n:x}"' for n in range(part(level, 2500)))
    return replace(draft, ask=replace(draft.ask, headers={**draft.ask.headers, "If-None-Match": tags}))


def many_encodings(draft: Draft, level: int) -> Draft:
    codings = ", ".join(f"x{n};q=0.{n % 1000:03}" for n in range(part(level, 1500)))
    return replace(draft, ask=replace(draft.ask, headers={**draft.ask.headers, "Accept-Encoding": codings + ", gzip"}))


# --- searches ---


def _search(change: Callable[[Json, int], None]) -> Knob:
    def turn(draft: Draft, level: int) -> Draft:
        document = copy.deepcopy(draft.document)
        change(document, level)
        return replace(draft, document=document)

    turn.__name__ = change.__name__
    return turn


def _also(body: Json, *conditions: Json) -> None:
    before = [body["filter"]] if "filter" in body else []
    body["filter"] = {"op": "and", "args": [*before, *conditions]} if before or len(conditions) > 1 else conditions[0]


def many_ids(body: Json, level: int) -> None:
    body["ids"] = [
        f"CMIP6.CMIP.NCAR.CESM2.historical.r{n}i1p1f1.Amon.tas.gn.v20190101" for n in range(part(level, 10_000))
    ]


def many_collections(body: Json, level: int) -> None:
    body["collections"] = ["CMIP6", *(f"c{n}" for n in range(part(level, 9_000)))]


def many_lists(body: Json, level: int) -> None:
    values = [f"{n:08}" for n in range(1000)]
    terms = [{"op": "in", "args": [{"property": f"cmip6:source_id{n or ''}"}, values]} for n in range(part(level, 150))]
    _also(body, {"op": "or", "args": [*terms, terms[0]]})


def many_patterns(body: Json, level: int) -> None:
    pattern = "%".join("abcdefghij") * 5
    terms = [
        {"op": "like", "args": [{"op": "casei", "args": [{"property": "title"}]}, f"%{n}{pattern}%"]}
        for n in range(part(level, 90))
    ]
    _also(body, {"op": "or", "args": [*terms, terms[0]]})


def many_spans(body: Json, level: int) -> None:
    terms = [
        {"op": op, "args": [{"property": "datetime"}, {"interval": [f"{1850 + n}-01-01", f"{1900 + n}-01-01"]}]}
        for n in range(part(level, 60)) for op in ("t_intersects", "t_during", "t_disjoint")
    ]  # fmt: skip
    _also(body, {"op": "or", "args": terms})


def many_numbers(body: Json, level: int) -> None:
    terms = [{"op": "between", "args": [{"property": "size"}, n, 1e12]} for n in range(part(level, 60))]
    _also(body, {"op": "or", "args": [*terms, terms[0]]})


def deep_nots(body: Json, level: int) -> None:
    term: Json = {"op": "=", "args": [{"property": "latest"}, True]}
    for _ in range(level):
        term = {"op": "not", "args": [term]}
    _also(body, term)


def _ring(corners: int, inner: float = 1.0) -> list[list[float]]:
    """Return a star about the whole world; with `inner` 1 a circle."""
    points = []
    for n in range(corners):
        radius = 1.0 if n % 2 else inner
        turn = 2 * math.pi * n / corners
        points.append([round(170 * radius * math.cos(turn), 6), round(80 * radius * math.sin(turn), 6)])
    return [*points, points[0]]


def wide_coast(body: Json, level: int) -> None:
    body.pop("bbox", None)
    body["intersects"] = {"type": "Polygon", "coordinates": [_ring(part(level, 9_990) + 3, 0.97)]}


def crossing_lines(body: Json, level: int) -> None:
    body.pop("bbox", None)
    chance = random.Random(level)
    zigzag = [
        [round(chance.uniform(-170, 170), 3), round(chance.uniform(-80, 80), 3)] for _ in range(part(level, 250) + 3)
    ]
    body["intersects"] = {"type": "LineString", "coordinates": zigzag}


def many_points(body: Json, level: int) -> None:
    body.pop("bbox", None)
    count = part(level, 10_000)
    body["intersects"] = {
        "type": "MultiPoint", "coordinates": [[n % 360 - 180, n % 180 - 90 + n / count / 2] for n in range(count)]
    }  # fmt: skip


def long_page(body: Json, level: int) -> None:
    body["limit"] = part(level, 10_000)


def many_keys(body: Json, level: int) -> None:
    body["sortby"] = [{"field": f"properties.k{n}", "direction": "desc"} for n in range(min(level, 10))] or []


def many_fields(body: Json, level: int) -> None:
    names = [f"properties.cmip6:f{n}.x" for n in range(part(level, 190))]
    body["fields"] = {"include": ["assets", "properties", *names], "exclude": names}


SEARCHES = tuple(
    map(_search, (
        many_ids, many_collections, many_lists, many_patterns, many_spans, many_numbers, deep_nots, wide_coast,
        crossing_lines, many_points, long_page, many_keys, many_fields,
    ))
)  # fmt: skip


def in_the_url(draft: Draft, level: int) -> Draft:
    """Return the conditions of a search as CQL2 text, as much of them as a URL takes."""
    clauses = [f"cmip6:source_id LIKE '%{n}%'" for n in range(part(level, 199))]
    text = " OR ".join(clauses)
    while len(quote(text)) > 14_000:
        clauses = clauses[: len(clauses) * 9 // 10]
        text = " OR ".join(clauses)
    return replace(draft, ask=replace(draft.ask, query=(*_without(draft.ask.query, "filter"), ("filter", text))))


def deep_text(draft: Draft, level: int) -> Draft:
    text = "(" * level + "size > 5" + ")" * level
    return replace(draft, ask=replace(draft.ask, query=(*_without(draft.ask.query, "filter"), ("filter", text))))


def long_url_page(draft: Draft, level: int) -> Draft:
    pairs = (*_without(draft.ask.query, "limit"), ("limit", str(part(level, 10_000))))
    return replace(draft, ask=replace(draft.ask, query=pairs))


def keys_in_the_url(draft: Draft, level: int) -> Draft:
    keys = ",".join(f"-cmip6:k{n}" for n in range(max(1, level)))
    return replace(draft, ask=replace(draft.ask, query=(*_without(draft.ask.query, "sortby"), ("sortby", keys))))


def _without(pairs: tuple[tuple[str, str], ...], name: str) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in pairs if pair[0] != name)


# --- documents ---


def _documents(change: Callable[[Json, int], None]) -> Knob:
    """Return a knob of datasets: of the one that is sent, or of each of a batch."""

    def turn(draft: Draft, level: int) -> Draft:
        document = copy.deepcopy(draft.document)
        for each in document.get("features", [document]):
            change(each, level)
        return replace(draft, document=document)

    turn.__name__ = change.__name__
    return turn


def many_datasets(draft: Draft, level: int) -> Draft:
    features = list(sample.items(part(level, 2_000), start=100_000))
    return replace(draft, document={"type": "FeatureCollection", "features": features})


def many_tiny_features(draft: Draft, level: int) -> Draft:
    return replace(draft, document={"type": "FeatureCollection", "features": [{}] * part(level, 5_000)})


def as_lines(draft: Draft, level: int) -> Draft:
    headers = {**draft.ask.headers, "Content-Type": "application/x-ndjson"}
    documents = draft.document.get("features", [draft.document]) if isinstance(draft.document, dict) else []
    return replace(draft, ask=replace(draft.ask, headers=headers), lines=tuple(documents)) if documents else draft


def packed(draft: Draft, level: int) -> Draft:
    return replace(draft, ask=replace(draft.ask, headers={**draft.ask.headers, "Content-Encoding": "gzip"}))


def wide_footprint(item: Json, level: int) -> None:
    item["geometry"] = {"type": "Polygon", "coordinates": [_ring(part(level, 2_000) + 3, 0.97)]}


def crossing_footprint(item: Json, level: int) -> None:
    chance = random.Random(level)
    ring = [
        [round(chance.uniform(-170, 170), 3), round(chance.uniform(-80, 80), 3)] for _ in range(part(level, 120) + 3)
    ]
    item["geometry"] = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}


def many_links(item: Json, level: int) -> None:
    item["links"] = [{"rel": "related", "href": f"https://x.example/{n}"} for n in range(part(level, 3_000))]


def many_assets(item: Json, level: int) -> None:
    assets = item.get("assets") or {}
    if assets:
        asset = next(iter(assets.values()))
        item["assets"] = {**assets, **{f"more-{n}.nc": asset for n in range(part(level, 2_000))}}


def many_properties(item: Json, level: int) -> None:
    item["properties"] = {**item.get("properties", {}), **{f"p{n}": n for n in range(part(level, 3_000))}}


def long_texts(item: Json, level: int) -> None:
    item["properties"] = {**item.get("properties", {}), "description": "é" * part(level, 200_000)}


def deep_value(item: Json, level: int) -> None:
    value: Any = "x"
    for _ in range(level * 6):
        value = [value]
    item["properties"] = {**item.get("properties", {}), "deep": value}


def wrong_terms(item: Json, level: int) -> None:
    """Make terms wrong: each is compared with all that are right, for a suggestion."""
    for name in list(item.get("properties", {}))[: 3 * level]:
        if name.startswith("cmip6:") and isinstance(item["properties"][name], str):
            item["properties"][name] += "x" * level * 20


DATASETS = tuple(
    map(_documents, (
        wide_footprint, crossing_footprint, many_links, many_assets, many_properties, long_texts, deep_value,
        wrong_terms,
    ))
)  # fmt: skip


# --- changes, lists, collections ---


def many_operations(draft: Draft, level: int) -> Draft:
    operation = {"op": "add", "path": "/links/-", "value": {"rel": "related", "href": "https://x.example"}}
    return replace(draft, document=[operation] * part(level, 10_000))


def many_moves(draft: Draft, level: int) -> Draft:
    there = [{"op": "copy", "from": "/properties", "path": f"/properties/x{n % 7}"} for n in range(part(level, 2_000))]
    return replace(draft, document=there)


def many_tests(draft: Draft, level: int) -> Draft:
    return replace(draft, document=[{"op": "test", "path": "/assets", "value": {}}] * part(level, 10_000))


def many_members(draft: Draft, level: int) -> Draft:
    return replace(draft, document={"properties": {f"m{n}": None for n in range(part(level, 100_000))}})


def many_replicas(draft: Draft, level: int) -> Draft:
    return replace(draft, document={f"{n}.nc": {"href": f"https://s.example/{n}"} for n in range(part(level, 20_000))})


def many_exceptions(draft: Draft, level: int) -> Draft:
    exceptions = [{"pos": n, "dataset": "CMIP6/x", "reason": "r" * 100} for n in range(part(level, 5_000))]
    return replace(draft, document={**draft.document, "exceptions": exceptions})


def many_reports(draft: Draft, level: int) -> Draft:
    reports = [{"collection": "CMIP6", "dataset": f"x{n}", "outcome": "ok", "comment": "c" * 1000}
               for n in range(part(level, 1_000))]  # fmt: skip
    return replace(draft, document={"reports": reports})


def many_reports_of_a_sidecar(draft: Draft, level: int) -> Draft:
    body = {"time": "2026-01-01T00:00:00Z", "data": many_reports(draft, level).document}
    return replace(draft, document=body)


def many_grants(draft: Draft, level: int) -> Draft:
    [grant, *_] = draft.document["grants"]
    return replace(draft, document={"grants": [{**grant, "subject": f"person:{n}"} for n in range(part(level, 1_000))]})


def large_filter_of_a_subscription(draft: Draft, level: int) -> Draft:
    terms = " OR ".join(f"title = 'x{n}'" for n in range(part(level, 1_000)))
    return replace(draft, document={**draft.document, "filter": {"cql2": terms}})


def many_to_change(draft: Draft, level: int) -> Draft:
    """Return a body that chooses by ids in place of a search."""
    conditions = ("filter", "filter-lang", "collections", "ids", "bbox", "intersects", "datetime", "q")
    document = {name: value for name, value in draft.document.items() if name not in conditions}
    ids = [f"CMIP6.CMIP.NCAR.CESM2.historical.r{n}i1p1f1.Amon.tas.gn.v20190101" for n in range(part(level, 100_000))]
    return replace(draft, document={**document, "ids": ids})


def _long(member: str, most: int) -> Knob:
    def turn(draft: Draft, level: int) -> Draft:
        return replace(draft, document={**draft.document, member: "é" * part(level, most)})

    turn.__name__ = f"long_{member}"
    return turn


def many_addresses(draft: Draft, level: int) -> Draft:
    addresses = [f"https://x.example/{n}/{'a' * 1_950}" for n in range(part(level, 20))]
    return replace(draft, document={**draft.document, "links": addresses})


def many_dependencies(draft: Draft, level: int) -> Draft:
    dependencies = [{"name": f"{'n' * 90}-{n}", "days": 3650, "contact": "c" * 200} for n in range(part(level, 50))]
    return replace(draft, document={**draft.document, "dependencies": dependencies})


def many_reminders(draft: Draft, level: int) -> Draft:
    """Return a body that names the same dependency again and again."""
    return replace(draft, document={"names": ["east"] * part(level, 50)})


def of_long_parts(draft: Draft, level: int) -> Draft:
    """Return a request for the entries that have a long text in them, of characters that a pattern gives a meaning."""
    return replace(draft, ask=replace(draft.ask, query=(*_without(draft.ask.query, "q"), ("q", "%_" * (level * 10)))))


def long_page_of_entries(draft: Draft, level: int) -> Draft:
    return replace(draft, ask=replace(draft.ask, query=(("limit", str(part(level, 10_000))),)))


def large_summaries(draft: Draft, level: int) -> Draft:
    summaries = {f"s{n}": [f"{m}" for m in range(100)] for n in range(part(level, 2_000))}
    return replace(draft, document={**draft.document, "summaries": summaries})


def many_extents(draft: Draft, level: int) -> Draft:
    extent = {
        "spatial": {"bbox": [[-180, -90, 180, 90]] * part(level, 5_000)},
        "temporal": {"interval": [["1850-01-01T00:00:00Z", None]] * part(level, 5_000)},
    }
    return replace(draft, document={**draft.document, "extent": extent})


def long_title(draft: Draft, level: int) -> Draft:
    return replace(draft, document={**draft.document, "title": "t" * part(level, 1_000_000)})


def long_listing(draft: Draft, level: int) -> Draft:
    return replace(draft, ask=replace(draft.ask, query=(("limit", str(part(level, 10_000))), ("after", "1.0"))[: 1 + (
        draft.ask.path == "/events")]))  # fmt: skip


LISTS = (
    "/deletions",
    "/quarantines",
    "/admin/tombstones",
    "/bulk",
    "/bulk/{bulk_id}/datasets",
    "/loads/{load_id}/datasets",
)
GENERIC: tuple[Knob, ...] = (many_headers, many_tags, many_encodings)
BATCHES: tuple[Knob, ...] = (many_datasets, many_tiny_features, *DATASETS, as_lines, packed)
COUNTS = tuple(knob for knob in SEARCHES if knob.__name__ not in ("long_page", "many_keys", "many_fields"))
MANY: tuple[Knob, ...] = (
    *(knob for knob in COUNTS if knob.__name__ != "many_ids"), many_to_change, _long("reason", 2_000),
)  # fmt: skip
KNOBS: Mapping[Route, tuple[Knob, ...]] = {
    ("POST", "/search"): SEARCHES,
    ("POST", "/aggregate"): COUNTS,
    ("POST", "/collections/{collection_id}/aggregate"): COUNTS,
    ("POST", "/datasets/status"): tuple(knob for knob in SEARCHES if knob.__name__ in ("many_ids", "many_collections")),
    ("GET", "/search"): (in_the_url, deep_text, long_url_page, keys_in_the_url),
    ("GET", ITEMS): (in_the_url, deep_text, long_url_page, keys_in_the_url),
    ("POST", ITEMS): BATCHES,
    ("POST", "/validate"): BATCHES,
    ("POST", "/collections/{collection_id}/reconcile"): BATCHES,
    ("PUT", "/loads/{load_id}/parts/{n}"): BATCHES,
    ("PUT", ITEM): (*DATASETS, packed),
    ("PATCH", ITEM): (many_operations, many_moves, many_tests, many_members, packed),
    ("PUT", ITEM + "/replicas/{node}"): (many_replicas, packed),
    ("POST", "/events/status"): (many_exceptions,),
    ("POST", "/deletions/reports"): (many_reports,),
    ("POST", "/dapr/deletion-reports"): (many_reports_of_a_sidecar,),
    ("POST", "/grants"): (_long("reason", 2_000),),
    ("POST", "/grants/import"): (many_grants,),
    ("PUT", "/subscriptions/{subscription}"): (large_filter_of_a_subscription,),
    ("POST", "/collections"): (large_summaries, many_extents, long_title, packed),
    ("PUT", "/collections/{collection_id}"): (large_summaries, many_extents, long_title, packed),
    ("PATCH", "/collections/{collection_id}"): (large_summaries, many_extents, long_title, many_members),
    ("POST", "/groups"): (long_title,),
    ("PUT", "/groups/{group}"): (long_title,),
    ("POST", "/bulk/preview"): MANY,
    ("POST", "/bulk"): MANY,
    ("POST", ITEM + "/quarantine"): (*(_long(name, 2_000) for name in ("reason", "case", "contact")), many_addresses),
    ("POST", ITEM + "/release"): (_long("decision", 2_000),),
    ("PUT", "/deletions/rules/{project}"): (many_dependencies,),
    ("POST", "/deletions/run"): (_long("project", 400_000),),
    ("POST", "/deletions/{deletion}/waive"): (_long("name", 400_000), _long("reason", 2_000)),
    ("POST", "/deletions/{deletion}/remind"): (many_reminders,),
    **{("GET", path): (long_page_of_entries,) for path in LISTS},
    **{("GET", path): (long_page_of_entries, of_long_parts) for path in LISTS[:2]},
    **{("GET", path): (long_listing,) for path in ("/events", "/snapshot", "/requests", "/collections", "/groups")},
}  # fmt: skip


def knobs(route: Route) -> tuple[Knob, ...]:
    """Return what can be turned at requests of a route."""
    return (*KNOBS.get(route, ()), *GENERIC)


def build(ask: Ask, recipe: Recipe, turned: tuple[Knob, ...]) -> Ask:
    """Return the request that a recipe makes of a valid one."""
    draft = Draft(ask, orjson.loads(ask.body) if ask.body else {})
    for knob in turned:
        if level := recipe.get(knob.__name__, 0):
            draft = knob(draft, level)
    body = b"\n".join(map(orjson.dumps, draft.lines)) or (orjson.dumps(draft.document) if ask.body else b"")
    if draft.ask.headers.get("Content-Encoding") == "gzip":
        body = gzip.compress(body, 1, mtime=0)
    return replace(draft.ask, body=body)


def corners(route: Route) -> Iterator[Recipe]:
    """Yield each knob turned up alone, then all of them a little."""
    names = [knob.__name__ for knob in knobs(route)]
    yield from ({name: MOST} for name in names)
    yield dict.fromkeys(names, 4)


@dataclass(frozen=True, slots=True)
class Trial:
    """A recipe and what it cost the node: seconds of processor time, or of waiting where that was longer."""

    cost: float
    status: int
    recipe: Recipe


async def search(node: Site, route: Route, ask: Ask, seconds: float, chance: random.Random) -> list[Trial]:
    """Return the most expensive valid recipes of a route that a search of that many seconds finds, RECIPES at most."""
    turned, line = knobs(route), node.line()
    names = [knob.__name__ for knob in turned]
    trials: dict[tuple[tuple[str, int], ...], Trial] = {}

    async def attempt(recipe: Recipe) -> None:
        key = tuple(sorted((name, level) for name, level in recipe.items() if level))
        if key in trials:
            return
        data = build(ask, recipe, turned).to_bytes(node.host, node.running.tokens)
        before = node.processor_seconds()
        answer = await line.ask(data)
        cost = max(node.processor_seconds() - before, answer.seconds)
        trials[key] = Trial(cost, answer.status, dict(key))

    until = time.monotonic() + seconds
    for recipe in corners(route):
        await attempt(recipe)
    while time.monotonic() < until:
        best = sorted((t for t in trials.values() if _is_valid(t)), key=lambda trial: -trial.cost)[:5]
        start = dict(chance.choice(best).recipe) if best else {}
        for name in chance.sample(names, min(len(names), chance.choice((1, 1, 2)))):
            start[name] = min(MOST, max(0, start.get(name, 0) + chance.choice((-3, -1, 1, 3, MOST))))
        await attempt(start)
        if len(trials) >= 11 ** len(names):
            break
    line.close()
    return sorted(filter(_is_valid, trials.values()), key=lambda trial: -trial.cost)[:RECIPES]


def _is_valid(trial: Trial) -> bool:
    return trial.status < 400 or trial.status == 503
