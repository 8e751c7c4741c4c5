"""What a search asks for, from a POST body or GET parameters, checked; and the tokens that carry a page's end."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cql2
import orjson

from fedstac.domain.errors import BadRequest
from fedstac.settings import Settings

MAC_BYTES = 12
DEEPEST_FILTER, MOST_NODES, LONGEST_LIST = 16, 200, 1000
DEFAULT_ORDER = (("datetime", True),)
KNOWN = frozenset(
    ("ids", "collections", "bbox", "datetime", "intersects", "filter", "filter-lang", "filter-crs", "query", "sortby",
     "limit", "token", "fields", "conf")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Query:
    """A search, as far as it decides which items, in which order, and how many."""

    conditions: Mapping[str, Any]  # in pgstac's terms; empty: everything
    order: tuple[tuple[str, bool], ...]  # (property, descending)
    limit: int
    token: str | None
    include: frozenset[str]
    exclude: frozenset[str]

    @property
    def fingerprint(self) -> bytes:
        """What a paging token is bound to."""
        return hashlib.sha256(orjson.dumps([self.conditions, self.order], option=orjson.OPT_SORT_KEYS)).digest()


def from_body(body: object, settings: Settings, *, collection: str | None = None) -> Query:
    """A search from the members of a POST body. BadRequest names what is not understood."""
    if not isinstance(body, dict):
        raise BadRequest("a search is a JSON object")
    body = {name: value for name, value in body.items() if value is not None}
    unknown = sorted(set(body) - KNOWN)
    if unknown:
        raise BadRequest(f"the search has members that are not known here: {', '.join(unknown)[:200]}")
    conditions: dict[str, Any] = {}
    if collection is not None:
        conditions["collections"] = [collection]
    for name in ("ids", "collections"):
        if body.get(name):
            conditions[name] = _strings(name, body[name])
    if "bbox" in body:
        if "intersects" in body:
            raise BadRequest("bbox and intersects cannot be used together")
        conditions["intersects"] = _box(body["bbox"])
    if "intersects" in body:
        conditions["intersects"] = _geometry(body["intersects"])
    if "datetime" in body:
        conditions["datetime"] = _interval(body["datetime"])
    conditions |= _filter(body)
    include, exclude = _fields(body.get("fields"))
    return Query(
        conditions=conditions, order=_order(body.get("sortby")), limit=_limit(body.get("limit"), settings),
        token=body.get("token"), include=include, exclude=exclude,
    )  # fmt: skip


def from_parameters(parameters: Mapping[str, str], settings: Settings, *, collection: str | None = None) -> Query:
    """A search from GET parameters."""
    body: dict[str, Any] = {name: value for name, value in parameters.items() if name in KNOWN and value != ""}
    for name in ("ids", "collections"):
        if name in body:
            body[name] = body[name].split(",")
    if "bbox" in body:
        body["bbox"] = _numbers(body["bbox"])
    for name in ("intersects", "query"):
        if name in body:
            body[name] = _json(name, body[name])
    if "sortby" in body:
        body["sortby"] = [
            {"field": key.lstrip("+- "), "direction": "desc" if key.startswith("-") else "asc"}
            for key in body["sortby"].split(",")
        ]
    if "fields" in body:
        names = body["fields"].split(",")
        body["fields"] = {
            "include": [name.lstrip("+ ") for name in names if not name.startswith("-")],
            "exclude": [name[1:] for name in names if name.startswith("-")],
        }
    body.setdefault("filter-lang", "cql2-text")
    return from_body(body, settings, collection=collection)


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise BadRequest(f"bbox={text[:80]!r} is not a list of numbers") from None


def _json(name: str, text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"{name} is not JSON: {error}") from None


def _strings(name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(entry, str) and "\x00" not in entry for entry in value):
        raise BadRequest(f"{name} is a list of strings")
    return value


def _limit(value: object, settings: Settings) -> int:
    try:
        limit = settings.search_limit if value is None else int(str(value))
    except ValueError:
        raise BadRequest(f"limit={str(value)[:20]!r} is not a whole number") from None
    if limit < 1:
        raise BadRequest("limit has to be at least 1")
    return min(limit, settings.max_search_limit)


def _interval(value: object) -> str:
    if not isinstance(value, str) or len(value) > 100:
        raise BadRequest("datetime is a string: a moment, or an interval such as 1850-01-01T00:00:00Z/..")
    return value


def _box(value: object) -> dict[str, Any]:
    """A box as a geometry: two where it crosses the antimeridian; heights do not matter."""
    if not isinstance(value, list) or len(value) not in (4, 6) or not all(type(n) in (int, float) for n in value):
        raise BadRequest("bbox is four numbers (west, south, east, north), or six with heights")
    west, south, east, north = value if len(value) == 4 else (value[0], value[1], value[3], value[4])
    if not (-90 <= south <= north <= 90 and -360 <= west <= 360 and -360 <= east <= 360):
        raise BadRequest(f"bbox {value} does not run from south-west to north-east in degrees")
    if abs(east - west) >= 360:
        spans = [(-180.0, 180.0)]
    else:
        west, east = (west + 180) % 360 - 180, (east + 180) % 360 - 180 or -180.0
        if east == -180.0 and value[-2 if len(value) == 4 else 3] != -180:
            east = 180.0
        spans = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    rings = [[[[w, south], [e, south], [e, north], [w, north], [w, south]]] for w, e in spans]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}


def _geometry(value: object) -> dict[str, Any]:
    from fedstac.domain import geometry

    if not isinstance(value, dict):
        raise BadRequest("intersects is a GeoJSON geometry")
    finding = next(geometry.check(value), None)
    if finding:
        raise BadRequest(f"intersects: {finding.message}")
    return value


def _order(value: object) -> tuple[tuple[str, bool], ...]:
    if not value:
        return DEFAULT_ORDER
    if not isinstance(value, list) or len(value) > 10:
        raise BadRequest('sortby is a list of at most ten {"field": …, "direction": "asc" or "desc"}')
    keys = []
    for entry in value:
        field = entry.get("field") if isinstance(entry, dict) else None
        direction = entry.get("direction", "asc") if isinstance(entry, dict) else None
        if not isinstance(field, str) or not field or direction not in ("asc", "desc"):
            raise BadRequest('sortby is a list of {"field": …, "direction": "asc" or "desc"}')
        keys.append((field.removeprefix("properties."), direction == "desc"))
    return tuple(keys)


def _filter(body: Mapping[str, Any]) -> dict[str, Any]:
    if "query" in body:
        if "filter" in body:
            raise BadRequest("query and filter cannot be used together")
        return {"query": body["query"]}
    if "filter" not in body:
        return {}
    language = body.get("filter-lang", "cql2-json")
    expression = body["filter"]
    if language not in ("cql2-json", "cql2-text"):
        raise BadRequest(f"filter-lang={str(language)[:30]!r} is neither cql2-json nor cql2-text")
    if language == "cql2-text" and isinstance(expression, str):
        try:
            expression = cql2.parse_text(expression).to_json()
        except Exception as error:  # cql2 raises its own kinds and bare ones
            raise BadRequest(f"the filter is not CQL2: {str(error)[:200]}") from None
    elif isinstance(expression, str):
        expression = _json("filter", expression)
    if not isinstance(expression, dict):
        raise BadRequest("the filter is not CQL2 in JSON, an object with `op` and `args`")
    _check_filter(expression)
    return {"filter": expression, "filter-lang": "cql2-json"}


def _check_filter(expression: object) -> None:
    """Limits of size and depth, so that no filter keeps the database busy for long."""
    nodes, level = 0, [expression]
    for _ in range(DEEPEST_FILTER * 2):  # an operator and its list of arguments are two levels of JSON
        level = [child for entry in level for child in _children(entry)]
        nodes += len(level)
        if not level:
            return
        if nodes > MOST_NODES + LONGEST_LIST:
            raise BadRequest(
                f"the filter is too large: {MOST_NODES} terms and {LONGEST_LIST} list entries are the most"
            )
    raise BadRequest(f"the filter is nested deeper than {DEEPEST_FILTER}")


def _children(entry: object) -> Sequence[object]:
    if isinstance(entry, dict):
        return [] if "coordinates" in entry else list(entry.values())
    return entry if isinstance(entry, list) else []


def _fields(value: object) -> tuple[frozenset[str], frozenset[str]]:
    if value is None:
        return frozenset(), frozenset()
    if not isinstance(value, dict):
        raise BadRequest('fields is {"include": […], "exclude": […]}')
    include, exclude = (_strings("fields", value.get(name) or []) for name in ("include", "exclude"))
    return frozenset(include), frozenset(exclude)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ended, and the count that its first page made."""

    values: tuple[str | None, ...]
    matched: int
    exact: bool


def token_for(place: Place, query: Query, key: bytes) -> str:
    """A signed token: it holds the place itself, so it survives the deletion of the item it came from."""
    payload = orjson.dumps([place.values, place.matched, place.exact])
    return base64.urlsafe_b64encode(_mac(payload, query, key) + payload).rstrip(b"=").decode()


def place_of(token: str, query: Query, key: bytes) -> Place:
    """BadRequest where the token is not ours, or belongs to another search."""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        payload = raw[MAC_BYTES:]
        if not hmac.compare_digest(raw[:MAC_BYTES], _mac(payload, query, key)):
            raise ValueError
        values, matched, exact = orjson.loads(payload)
    except (ValueError, TypeError):
        raise BadRequest("the paging token does not belong to this search; begin again without it") from None
    return Place(tuple(values), matched, exact)


def _mac(payload: bytes, query: Query, key: bytes) -> bytes:
    return hmac.digest(key, query.fingerprint + payload, "sha256")[:MAC_BYTES]
