"""A search, read from a POST body or GET parameters and checked; and the tokens that hold the end of a page."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import orjson

from fedstac.api.http import numbers
from fedstac.api.search import words
from fedstac.db.search import Anchor
from fedstac.domain import documents, filters, model, strict_json
from fedstac.domain.errors import BadRequest, MalformedJson
from fedstac.domain.visibility import Visibility, of_search
from fedstac.domain.wording import asking, nearest
from fedstac.settings import Settings

MAC_BYTES = 12
DEFAULT_ORDER = (("datetime", True),)
MOST_IDS, MOST_FIELDS, MOST_KEYS = 10_000, 200, 10
CRS84 = "http://www.opengis.net/def/crs/OGC/1.3/CRS84"
NAMES = ("ids", "collections")
KNOWN = frozenset(
    (*NAMES, "bbox", "datetime", "intersects", "filter", "filter-lang", "filter-crs", "query", "sortby", "limit",
     "token", "fields", "q", "retracted", "access")
)  # fmt: skip
OPEN = ("", "..")  # an end of an interval
PROPERTIES = "properties."  # in front of a property's name in the path of a member
NUMBER = re.compile(r" *[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)? *")  # float() takes more: 1_0, other digits
TOP_LEVEL = frozenset(
    ("type", "stac_version", "stac_extensions", "id", "geometry", "bbox", "properties", "links", "assets", "collection")
)


class Tombstones(StrEnum):
    """Whether the tombstone of a dataset is shown."""

    EXCLUDE = "exclude"
    INCLUDE = "include"  # to those who may delete


class Detail(StrEnum):
    """How much is shown of retracted datasets."""

    METADATA = "metadata"
    FULL = "full"  # the files too, to those who may see them


Choice = TypeVar("Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Query:
    """A search, as far as it decides which items, in which order, and how many."""

    conditions: Mapping[str, Any]  # checked; empty: everything; `retracted`: a Visibility other than INCLUDE
    order: tuple[tuple[str, bool], ...]  # (property, descending)
    limit: int
    token: str | None
    include: frozenset[str]
    exclude: frozenset[str]
    retracted: Visibility | None = None  # as asked for; `conditions` has what follows from it and the filter
    shows_files: bool = False  # of retracted datasets, to those who may see them

    @property
    def names(self) -> frozenset[str]:
        """The properties that its filter and its order name."""
        return filters.names_in(self.conditions.get("filter")) | {name for name, _ in self.order}

    @property
    def selected_names(self) -> frozenset[str]:
        """The properties that its fields include or exclude."""
        paths = self.include | self.exclude
        return frozenset(path.removeprefix(PROPERTIES) for path in paths if path.startswith(PROPERTIES)) - {""}

    @property
    def fingerprint(self) -> bytes:
        """What a paging token is bound to."""
        return hashlib.sha256(orjson.dumps([self.conditions, self.order], option=orjson.OPT_SORT_KEYS)).digest()


def from_body(body: object, settings: Settings, *, collection: str | None = None) -> Query:
    """Return a search from the members of a POST body. BadRequest names what is not understood."""
    if not isinstance(body, dict):
        raise BadRequest("the body is no JSON object; a search is one")
    if body.get("fields", {}) is None:
        raise BadRequest('fields is {"include": […], "exclude": […]}; leave it out to have all members')
    body = {name: value for name, value in body.items() if value is not None}
    refuse_unknown(body, sorted(KNOWN), there_are="a search has")
    conditions: dict[str, Any] = {}
    for name in NAMES:
        if name in body:
            names = [body[name]] if isinstance(body[name], str) else body[name]
            conditions[name] = strings(name, names, MOST_IDS)
    # pystac-client sends the collection's name a second time
    if collection is not None and conditions.setdefault("collections", [collection]) != [collection]:
        raise BadRequest(
            f"collections has other names than {collection}, whose items are asked for; leave it out, or use /search"
        )
    if "bbox" in body:
        if "intersects" in body:
            raise BadRequest("bbox and intersects cannot be used together; leave one out")
        conditions["intersects"] = filters.box(body["bbox"])
    if "intersects" in body:
        conditions["intersects"] = filters.searched_geometry(body["intersects"], "intersects")
    if "datetime" in body:
        conditions["datetime"] = _interval(body["datetime"])
    conditions |= _filter(body)
    if "q" in body:
        conditions["q"] = words.read(body["q"])
    retracted = _choice("retracted", body.get("retracted"), Visibility)
    include, exclude = _fields(body.get("fields", {}))
    return Query(
        conditions=visible(conditions, retracted), order=_order(body.get("sortby", [])),
        limit=_limit(body.get("limit"), settings), token=_token(body.get("token")), include=include, exclude=exclude,
        retracted=retracted, shows_files=access_of(body.get("access")),
    )  # fmt: skip


def visible(conditions: Mapping[str, Any], choice: Visibility | None) -> dict[str, Any]:
    """Return conditions with the one on retracted datasets, which the filter takes away if it decides on them."""
    retracted = of_search(choice, filters.names_in(conditions.get("filter")))
    others = {name: condition for name, condition in conditions.items() if name != "retracted"}
    return others if retracted is Visibility.INCLUDE else {**others, "retracted": retracted}


def access_of(value: object) -> bool:
    """Return whether `access` asks for the files of retracted datasets."""
    return _choice("access", value, Detail) is Detail.FULL


def deleted_of(value: object) -> bool:
    """Return whether `deleted` asks for the tombstone of a dataset."""
    return _choice("deleted", value, Tombstones) is Tombstones.INCLUDE


def _choice(name: str, value: object, choices: type[Choice]) -> Choice | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in tuple(choices):
        raise BadRequest(f"{name}={str(value)[:40]!r} is not known; it is one of {', '.join(choices)}")
    return choices(value)


def from_parameters(
    parameters: Sequence[tuple[str, str]], settings: Settings, *, collection: str | None = None
) -> Query:
    """Return a search from GET parameters; an empty one counts as left out."""
    return from_body(body_from(parameters), settings, collection=collection)


def body_from(parameters: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return GET parameters as the members of a POST body."""
    body: dict[str, Any] = {name: value for name, value in parameters if value != ""}
    if len({name for name, _ in parameters}) < len(parameters):
        raise BadRequest("a parameter is given more than once; a list is written with commas")
    if "collections" in body:
        body["collections"] = body["collections"].split(",")
    if "ids" in body:
        body["ids"] = _ids(body["ids"])
    if "bbox" in body:
        body["bbox"] = _numbers(body["bbox"])
    for name in ("intersects", "query"):
        if name in body:
            body[name] = _json(name, body[name])
    if "limit" in body:
        body["limit"] = numbers.value(body["limit"]) if numbers.DIGITS.fullmatch(body["limit"]) else body["limit"]
    if "sortby" in body:
        body["sortby"] = [
            {"field": key.lstrip("+ ").removeprefix("-"), "direction": "desc" if key.startswith("-") else "asc"}
            for key in body["sortby"].split(",")
        ]
    if "fields" in body:
        names = body["fields"].split(",")
        body["fields"] = {
            "include": [name.lstrip("+ ") for name in names if not name.startswith("-")],
            "exclude": [name[1:] for name in names if name.startswith("-")],
        }
    body.setdefault("filter-lang", "cql2-text")
    return body


def _ids(text: str) -> list[str]:
    """Return the ids in a list with commas, and the whole text: older datasets may have an id with a comma in it."""
    ids = text.split(",")
    return [*ids, text] if len(ids) > 1 else ids


def refuse_unknown(names: Iterable[str], choices: Sequence[str], *, there_are: str) -> None:
    """Refuse names that are not known: ignored, a misspelt condition would match too much."""
    unknown = sorted(set(names) - set(choices))
    if unknown:
        sentence = f"{', '.join(unknown)[:200]} is not known here; {there_are} {', '.join(choices)}"
        raise BadRequest(asking(sentence, nearest(unknown[0], choices)))


def _numbers(text: str) -> list[float]:
    numbers = text.split(",")
    if not all(map(NUMBER.fullmatch, numbers)):
        raise BadRequest(f"bbox={text[:80]!r} is not a list of numbers")
    return [float(number) for number in numbers]


def _json(name: str, text: str) -> Any:
    try:
        value = strict_json.parse(text.encode())
    except MalformedJson as error:
        raise BadRequest(f"{name} is not usable JSON: {error.detail}") from None
    if value is None:
        raise BadRequest(f"{name} is null; leave it out")
    return value


def strings(name: str, value: object, most: int) -> list[str]:
    """Return a list of strings. BadRequest where it is none, or longer than `most`."""
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise BadRequest(f"{name} is a list of strings")
    if len(value) > most:
        raise BadRequest(f"{name} has {len(value)} entries; {most} are the most")
    return value


def _limit(value: object, settings: Settings) -> int:
    if value is None:
        return settings.search_limit
    if type(value) is not int or value < 1:
        raise BadRequest(f"limit={str(value)[:20]!r} is not a whole number from 1 on")
    return min(value, settings.max_search_limit)


def _token(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise BadRequest("token is a string, as the link to the next page has it")


def _interval(value: object) -> str:
    """Return a moment or an interval as in RFC 3339, in the spelling that the database keeps exactly."""
    if not isinstance(value, str):
        raise BadRequest("datetime is a string: a moment, or an interval such as 1850-01-01T00:00:00Z/..")
    ends = value.split("/")
    moments = [model.moment(end) for end in ends if end not in OPEN]
    if len(ends) > 2 or not moments or None in moments:
        raise BadRequest(
            f"datetime={value[:100]!r} is neither a moment as in RFC 3339 nor an interval of two such, one maybe `..`;"
            " a year is written 2000-01-01T00:00:00Z/2000-12-31T23:59:59Z"
        )
    if len(moments) == 2 and moments[0] > moments[1]:  # type: ignore[operator]
        raise BadRequest(f"datetime={value[:100]!r} ends before it starts; swap its ends")
    return "/".join(documents.to_microseconds(end) for end in ends)


def _order(value: object) -> tuple[tuple[str, bool], ...]:
    if not isinstance(value, list) or len(value) > MOST_KEYS:
        raise BadRequest(f'sortby is a list of at most {MOST_KEYS} {{"field": …, "direction": "asc" or "desc"}}')
    keys = []
    for entry in value:
        direction = entry.get("direction", "asc") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or direction not in ("asc", "desc"):
            raise BadRequest('sortby is a list of {"field": …, "direction": "asc" or "desc"}')
        name = filters.property_name(entry.get("field"), "sortby")
        if name == "geometry":
            raise BadRequest("sortby: a geometry has no order; name another property")
        keys.append((name, direction == "desc"))
    return tuple(keys) or DEFAULT_ORDER


def _filter(body: Mapping[str, Any]) -> dict[str, Any]:
    language = body.get("filter-lang", "cql2-json")
    if language not in ("cql2-json", "cql2-text"):
        raise BadRequest(f"filter-lang={str(language)[:30]!r} is neither cql2-json nor cql2-text")
    if body.get("filter-crs", CRS84) != CRS84:
        raise BadRequest(f"filter-crs={str(body['filter-crs'])[:80]!r} is not taken; there is {CRS84}")
    if "query" in body:
        if "filter" in body:
            raise BadRequest("query and filter cannot be used together; leave one out")
        from_query = filters.from_query(body["query"])
        return {} if from_query is None else {"filter": filters.check(from_query)}
    if "filter" not in body:
        return {}
    expression = body["filter"]
    if isinstance(expression, str):
        expression = filters.from_text(expression) if language == "cql2-text" else _json("filter", expression)
    return {"filter": filters.check(expression)}


def _fields(value: object) -> tuple[frozenset[str], frozenset[str]]:
    if not isinstance(value, dict) or set(value) - {"include", "exclude"}:
        raise BadRequest('fields is {"include": […], "exclude": […]}')
    include, exclude = (strings("fields", value.get(name) or [], MOST_FIELDS) for name in ("include", "exclude"))
    return frozenset(map(_member, include)) - {""}, frozenset(map(_member, exclude)) - {""}


def _member(name: str) -> str:
    """Return the path of a member of an item. A name that no top-level member has is the name of a property."""
    return name if not name or name.partition(".")[0] in TOP_LEVEL else PROPERTIES + name


@dataclass(frozen=True, slots=True)
class Place:
    """The anchor of a page, and the count that the first page made."""

    anchor: Anchor
    matched: int
    exact: bool


def token_for(place: Place, query: Query, key: bytes) -> str:
    """Return a signed token: it holds the place itself, so it survives the deletion of the item it came from."""
    anchor = place.anchor
    sides = [anchor.is_before, anchor.includes, anchor.in_memory]
    payload = orjson.dumps([anchor.values, *sides, place.matched, place.exact])
    return _text(_mac(payload, query, key) + payload)


def place_of(token: str, query: Query, key: bytes) -> Place:
    """Raise BadRequest if the token is not ours, or belongs to another search."""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        payload = raw[MAC_BYTES:]
        if _text(raw) != token:  # the decoder passes over what is not base64, and over spare bits at the end
            raise ValueError
        if not hmac.compare_digest(raw[:MAC_BYTES], _mac(payload, query, key)):
            raise ValueError
        values, is_before, includes, in_memory, matched, exact = orjson.loads(payload)
    except (ValueError, TypeError):
        raise BadRequest("the paging token does not belong to this search; begin again without it") from None
    return Place(Anchor(tuple(values), is_before, includes, in_memory), matched, exact)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _mac(payload: bytes, query: Query, key: bytes) -> bytes:
    return hmac.digest(key, query.fingerprint + payload, "sha256")[:MAC_BYTES]
