"""Aggregation: counts of what a search finds, for clients that show facets (STAC API, aggregation extension 0.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote

import orjson
from starlette.responses import Response

from fedstac.api.call import Call, Services
from fedstac.api.http import links
from fedstac.api.search import query as queries
from fedstac.api.search.query import Query
from fedstac.api.search.queryables import MOST_SAMPLED
from fedstac.api.search.reading import columns_at
from fedstac.api.writing.collections import existing
from fedstac.columns import counts as counting
from fedstac.columns.counts import Wish
from fedstac.columns.memory import PageQuestion
from fedstac.db import aggregation
from fedstac.db.aggregation import FacetSlot
from fedstac.db.connections import Connection
from fedstac.domain import aggregating, filters, queryables, strict_json
from fedstac.domain.aggregating import Aggregation, Counts, Measure, UnknownAggregation
from fedstac.domain.errors import BadRequest
from fedstac.domain.facets import NODES
from fedstac.domain.queryables import Schemas
from fedstac.runtime import budget
from fedstac.settings import Settings

Json = dict[str, Any]

MOST_AGGREGATIONS: Final = 200  # that one request may name
OF_PAGES: Final = frozenset(("limit", "sortby", "fields", "token", "access"))  # of a search: they mean nothing here
OTHER_FILTER: Final = "filter_exp"  # as ESGF's tests name the filter
EVERY_YEAR: Final = "year"
LARGE: Final = 8 << 10  # bytes of a question that is read beside the event loop
MANY_VALUES: Final = 2_000  # of all facets of an answer that is put together there

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be counted: aggregations by name (none: all), of what a search finds.

    multi_select: the counts of a facet leave the conditions on that facet out.
    """

    query: Query
    names: tuple[str, ...] | None
    multi_select: bool


def from_body(body: object, settings: Settings, *, collection: str | None = None) -> Question:
    """Return a question from the members of a POST body. BadRequest names what is not understood."""
    if not isinstance(body, dict):
        raise BadRequest("the body is no JSON object; a question for counts is one")
    body = {name: value for name, value in body.items() if value is not None and name not in OF_PAGES}
    if OTHER_FILTER in body:
        if "filter" in body:
            raise BadRequest(f"filter and {OTHER_FILTER} are the same; leave one out")
        body["filter"] = body.pop(OTHER_FILTER)
    names, multi_select = body.pop("aggregations", None), body.pop("multi_select", False)
    if type(multi_select) is not bool:
        raise BadRequest("multi_select is true or false")
    if body.pop("datetime_frequency_interval", EVERY_YEAR) != EVERY_YEAR:
        raise BadRequest(f"datetime_frequency_interval is {EVERY_YEAR}: datasets are counted by year")
    if names is not None:
        names = tuple(dict.fromkeys(queries.strings("aggregations", names, MOST_AGGREGATIONS)))
    return Question(queries.from_body(body, settings, collection=collection), names, multi_select)


def from_parameters(
    parameters: Sequence[tuple[str, str]], settings: Settings, *, collection: str | None = None
) -> Question:
    """Return a question from GET parameters; an empty one counts as left out."""
    body = queries.body_from([(name, value) for name, value in parameters if name not in OF_PAGES])
    if "aggregations" in body:
        body["aggregations"] = body["aggregations"].split(",")
    if "multi_select" in body:
        body["multi_select"] = {"true": True, "false": False}.get(body["multi_select"].lower())
        if body["multi_select"] is None:
            raise BadRequest("multi_select is true or false")
    return from_body(body, settings, collection=collection)


async def get_aggregate(call: Call) -> Response:
    """Count datasets, with the conditions in the query."""
    return await _answer(call, await _question_of_query(call))


async def post_aggregate(call: Call) -> Response:
    """Count datasets, with the conditions in the body."""
    return await _answer(call, await _question_of_body(call))


async def get_collection_aggregate(call: Call) -> Response:
    """Count datasets of one collection, with the conditions in the query."""
    name = call.path_params["collection_id"]
    return await _answer(call, await _question_of_query(call, collection=name), collection=name)


async def post_collection_aggregate(call: Call) -> Response:
    """Count datasets of one collection, with the conditions in the body."""
    name = call.path_params["collection_id"]
    return await _answer(call, await _question_of_body(call, collection=name), collection=name)


async def _question_of_query(call: Call, *, collection: str | None = None) -> Question:
    parameters, settings = call.query_params.multi_items(), call.node.settings
    read = partial(from_parameters, parameters, settings, collection=collection)
    return await call.services.threads.run_if(len(call.query_string) > LARGE, read)


async def _question_of_body(call: Call, *, collection: str | None = None) -> Question:
    raw, settings = await call.body.read(), call.node.settings

    def read() -> Question:
        return from_body(strict_json.parse(raw), settings, collection=collection)

    return await call.services.threads.run_if(len(raw) > LARGE, read)


async def get_aggregations(call: Call) -> Response:
    """List what can be counted: names, and the types of what is counted. It is of one collection, or of all."""
    name = call.path_params.get("collection_id")
    async with call.node.search_pool.acquire() as conn:
        if name is not None:
            await existing(conn, name)
        facets = await Facets.of(conn, call.services, [] if name is None else [name], with_sample=True)
    entries = [each.as_json() for each in aggregating.every(facets.names, facets.queryables)]
    body = {"type": "AggregationCollection", "aggregations": entries, "links": _links(call, "aggregations", name)}
    return Response(orjson.dumps(body), media_type=links.JSON)


@dataclass(frozen=True, slots=True)
class Facets:
    """What is known of the collections that are searched: their facets, and all of their properties by name."""

    collections: Sequence[str]
    slots: Sequence[FacetSlot]
    names: frozenset[str]  # of facets: those with a slot that a shown dataset has, and those with terms of a vocabulary
    queryables: Schemas

    @classmethod
    async def of(
        cls, conn: Connection, services: Services, searched_ids: Sequence[str], *, with_sample: bool
    ) -> Facets:
        """Return what is known of these collections; without any, of all.

        with_sample: also properties that nobody declared, from a sample of the datasets.
        """
        names = services.queryables
        collections = await names.searched(conn, searched_ids)
        declared = {(each, name) for each in collections for name in _with_terms(names.declared(each))}
        slots = await aggregation.slots(conn, collections)
        if not {(slot.collection, slot.property) for slot in slots} <= declared:  # datasets gave these names
            pairs = declared | await _properties_shown(services, conn, collections, slots)
            slots = [slot for slot in slots if (slot.collection, slot.property) in pairs]
        schemas: dict[str, queryables.Schema] = {}
        for name in reversed(collections):
            is_sampled = with_sample and len(collections) <= MOST_SAMPLED
            schemas |= await names.of(conn, name) if is_sampled else names.declared(name)
        of_facets = frozenset(slot.property for slot in slots) | {name for _, name in declared}
        return cls(collections, slots, of_facets, schemas)

    def find(self, names: Sequence[str] | None) -> tuple[Aggregation, ...]:
        """Return the aggregations of these names; of None, all. BadRequest where there is no such."""
        if names is None:
            return aggregating.every(self.names, self.queryables)
        try:
            return aggregating.find(names, self.names, self.queryables, self.collections)
        except UnknownAggregation as error:
            raise BadRequest(f"aggregations: {error}") from None


async def _properties_shown(
    services: Services, conn: Connection, collections: Sequence[str], slots: Sequence[FacetSlot]
) -> frozenset[tuple[str, str]]:
    """Return the facets of which a dataset that searches may find has a value: others may be a secret of hidden ones.

    It is told in memory, or where that cannot tell, in PostgreSQL.
    """
    if (columns := columns_at(services, conn)) is not None:
        pairs = await columns.count(
            conn, services.threads, PageQuestion({}), counting.properties_shown, key="properties that are shown",
            properties={slot.property for slot in slots},
        )  # fmt: skip
        if pairs is not None:
            return pairs
    return await aggregation.properties_shown(conn, collections)


def _with_terms(schemas: Schemas) -> list[str]:
    """Return the properties whose values are terms of the vocabulary."""
    return [
        name for name, schema in schemas.items()
        if name not in queryables.OF_EVERY_DATASET and ("enum" in schema or "enum" in schema.get("items", ()))
    ]  # fmt: skip


async def _answer(call: Call, question: Question, *, collection: str | None = None) -> Response:
    services = call.services
    async with call.node.search_pool.acquire() as conn:
        if collection is not None:
            await existing(conn, collection)
        query, warnings = await services.queryables.understand(conn, question.query)
        searched_ids = query.conditions.get("collections", ())
        facets = await Facets.of(conn, services, searched_ids, with_sample=False)
        try:
            aggregations = facets.find(question.names)
        except BadRequest:  # unless datasets have what the vocabulary does not know
            facets = await Facets.of(conn, services, searched_ids, with_sample=True)
            aggregations = facets.find(question.names)
        wish = _wish(facets, aggregations, question.multi_select)
        counts = await _count_in_memory(services, conn, query, aggregations, wish)
    if counts is None:
        common, own = split(query.conditions, wish.properties) if wish.multi_select else (query.conditions, {})
        slots = [slot for slot in facets.slots if slot.property in wish.properties]
        async with services.shares.place(), call.node.search_pool.acquire() as conn:
            counts = await aggregation.count(conn, services.threads, common, own, slots)
    rest = {"links": _links(call, "aggregate", collection)}
    if warnings:
        rest["fedstac:warnings"] = [finding.as_json() for finding in warnings]

    def text() -> bytes:
        answers = aggregating.answer(aggregations, counts, before_each=budget.checkpoint)
        return orjson.dumps({"type": "AggregationCollection", "aggregations": answers, **rest})

    is_large = sum(len(each.values) for each in counts.facets.values()) > MANY_VALUES
    return Response(await services.threads.run_if(is_large, text), media_type=links.JSON)


def _wish(facets: Facets, aggregations: Sequence[Aggregation], multi_select: bool) -> Wish:
    measures = {each.measure for each in aggregations}
    names = {each.property for each in aggregations} | ({NODES} if Measure.NODES in measures else set())
    return Wish(measures, {slot.property for slot in facets.slots if slot.property in names}, multi_select)


async def _count_in_memory(
    services: Services, conn: Connection, query: Query, aggregations: Sequence[Aggregation], wish: Wish
) -> Counts | None:
    """Count what a search finds; None where memory cannot tell."""
    if (columns := columns_at(services, conn)) is None:
        return None
    names = sorted(each.name for each in aggregations)
    key = [query.conditions, names, sorted(wish.properties), wish.multi_select]
    digest = hashlib.sha256(orjson.dumps(key, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return await columns.count(
        conn, services.threads, PageQuestion(query.conditions), partial(counting.count, wish), key=digest,
        properties=wish.properties,
    )  # fmt: skip


def split(conditions: Mapping[str, Any], properties: Collection[str]) -> tuple[Json, dict[str, Any]]:
    """Return conditions without those parts of the filter that are about one of the properties alone; and these parts.

    A filter has parts where it is an `and`. Several about one property are joined.
    """
    parts: dict[str, list[Any]] = {}
    rest: list[Any] = []
    for part in _conjuncts(conditions.get("filter", True)):
        names = filters.names_in(part)
        (parts.setdefault(min(names), []) if len(names) == 1 and names <= set(properties) else rest).append(part)
    own = {name: _conjunction(each) for name, each in parts.items()}
    others = {name: value for name, value in conditions.items() if name != "filter"}
    return others | ({"filter": _conjunction(rest)} if rest else {}), own


def _conjuncts(expression: Any) -> list[Any]:
    if isinstance(expression, dict) and expression["op"] == "and":
        return [part for arg in expression["args"] for part in _conjuncts(arg)]
    return [expression]


def _conjunction(parts: Sequence[Any]) -> Any:
    return parts[0] if len(parts) == 1 else {"op": "and", "args": list(parts)}


def _links(call: Call, what: str, collection: str | None) -> list[Json]:
    own = call.base_url if collection is None else f"{call.base_url}/collections/{quote(collection)}"
    page_links = [
        {"rel": "self", "type": links.JSON, "href": f"{own}/{what}"},
        {"rel": "root", "type": links.JSON, "href": call.base_url + "/"},
    ]
    return page_links + ([{"rel": "collection", "type": links.JSON, "href": own}] if collection is not None else [])
