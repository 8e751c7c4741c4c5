"""The names that searches use: full names for short ones, and warnings for misspelt ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from fedstac.api.search.query import PROPERTIES, Query, visible
from fedstac.api.search.words import FacetWords, as_filter, texts_of, with_facets
from fedstac.bootstrap import Node
from fedstac.db import collections, search, words
from fedstac.db.connections import Connection, Reader
from fedstac.domain import filters, queryables
from fedstac.domain.errors import Finding, Severity
from fedstac.domain.queryables import Schemas
from fedstac.domain.vocabulary import Vocabulary
from fedstac.domain.wording import nearest

T = TypeVar("T")

FRESH_SECONDS = 5.0  # how long a sample of a collection's datasets, and the list of collections, count
MOST_SAMPLED = 20  # collections that one search looks at

MOST_WARNINGS = 10  # of a kind, in a page: each costs a search for what is near


@dataclass(frozen=True, slots=True)
class CachedNames:
    """Properties or collections as they were read, and until when they count.

    seen_in: the datasets that properties were seen in. When one of them is hidden, nothing may tell of it any more.
    """

    names: Schemas
    until: float
    seen_in: tuple[str, ...] = ()


class QueryableNames:
    """The properties of each collection: declared by its vocabulary, or seen in a sample of its datasets."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._declared: dict[str, tuple[str, Schemas]] = {}  # by collection: the vocabulary's digest, its properties
        self._facet_words: dict[str, tuple[str, FacetWords]] = {}  # likewise
        self._sampled: dict[str, CachedNames] = {}
        self._collections = CachedNames({}, 0.0)

    def declared(self, collection: str) -> Schemas:
        """Return the properties that the collection's vocabulary declares, as of now."""
        return self._of_vocabulary(collection, self._declared, queryables.declared_by)

    def facet_words(self, collection: str) -> FacetWords:
        """Return the words of the collection's facets, as its vocabulary declares them now."""
        return self._of_vocabulary(collection, self._facet_words, FacetWords.of)

    def _of_vocabulary(
        self, collection: str, cache: dict[str, tuple[str, T]], make: Callable[[Vocabulary | None], T]
    ) -> T:
        """Return what is made of the collection's current vocabulary, once for each."""
        vocabulary = self._node.checker.vocabularies.current(collection)
        digest = vocabulary.digest if vocabulary else ""
        cached = cache.get(collection)
        if cached is None or cached[0] != digest:
            cached = cache[collection] = digest, make(vocabulary)
        return cached[1]

    async def of(self, conn: Reader, collection: str) -> Schemas:
        """Return the properties of one collection."""
        sampled = self._sampled.get(collection)
        is_fresh = sampled is not None and sampled.until >= time.monotonic()
        if sampled is None or not is_fresh or not await search.are_shown(conn, collection, sampled.seen_in):
            sample = await search.sample_of_properties(conn, collection)
            schemas = {
                each.name: {"title": queryables.title(each.name)}
                | dict(queryables.schema_of_sample(each.types, each.member_types, moments=each.moments))
                for each in sample.properties
            }
            sampled = self._sampled[collection] = CachedNames(schemas, time.monotonic() + FRESH_SECONDS, sample.ids)
        return {**sampled.names, **self.declared(collection)}

    async def shared(self, conn: Connection) -> Schemas:
        """Return the properties that may be named in a search over all collections."""
        names = await self._names_of_collections(conn)
        if len(names) == 1:
            return await self.of(conn, next(iter(names)))
        return queryables.common_to([self.declared(name) for name in names])

    async def searched(self, conn: Reader, ids: Sequence[str]) -> list[str]:
        """Return those of these collections that are here; all that are here where none is named."""
        there = await self._names_of_collections(conn, ids)
        return [name for name in dict.fromkeys(ids or there) if name in there]

    async def _names_of_collections(self, conn: Reader, names: Iterable[str] = ()) -> Schemas:
        """Return the collections; read again where one of `names` is not among them."""
        cached = self._collections
        if cached.until < time.monotonic() or any(name not in cached.names for name in names):
            every: Schemas = {name: {} for name in await collections.names(conn)}
            cached = self._collections = CachedNames(every, time.monotonic() + FRESH_SECONDS)
        return cached.names

    async def understand(self, conn: Reader, query: Query) -> tuple[Query, tuple[Finding, ...]]:
        """Return the search with the full names of its properties, and warnings about unknown names.

        A name without its prefix stands for the full name if one collection is searched and it has one such property.
        """
        asked_collections: Sequence[str] = query.conditions.get("collections", ())
        there = await self._names_of_collections(conn, asked_collections)
        if spelt := _spelt_otherwise(asked_collections, there):
            asked_collections = [spelt.get(name, name) for name in asked_collections]
            query = replace(query, conditions={**query.conditions, "collections": asked_collections})
        missing = [name for name in dict.fromkeys(asked_collections) if name not in there]
        warnings = [_unknown_collection(name, there) for name in missing[:MOST_WARNINGS]]
        searched = await self.searched(conn, asked_collections)
        if "q" in query.conditions:
            query = await self._with_words(conn, query, searched)
        in_conditions = self._undeclared(query.names, searched)
        in_fields = self._undeclared(query.selected_names, searched)
        if not (in_conditions or in_fields) or not searched or len(searched) > MOST_SAMPLED:
            return query, tuple(warnings)
        schemas: dict[str, queryables.Schema] = {}
        for collection in searched:
            schemas |= await self.of(conn, collection)
        compared_names, unknown = _full_names(in_conditions, schemas, searched)
        warnings += [_unknown_property(name, schemas, searched, "it counts as missing") for name in unknown]
        schemas |= queryables.ANSWERED_ONLY
        selected_names, unknown = _full_names(in_fields, schemas, searched)
        warnings += [_unknown_property(name, schemas, searched, "`fields` finds nothing by it") for name in unknown]
        if compared_names or selected_names:
            query = with_names(query, compared_names, selected_names)
        return query, tuple(warnings)

    async def _with_words(self, conn: Reader, query: Query, searched: Sequence[str]) -> Query:
        """Return the search with a filter for its free text; many datasets with a text that has it stay for the SQL."""
        expression = with_facets(query.conditions["q"], [self.facet_words(name) for name in searched])
        texts = texts_of(expression)
        keys = await words.keys(conn, texts, searched)
        if keys is None:
            return replace(query, conditions={**query.conditions, "q": expression})
        parts = [as_filter(expression, dict(zip(texts, keys, strict=True)))]
        others = {name: condition for name, condition in query.conditions.items() if name not in ("q", "filter")}
        if "filter" in query.conditions:
            parts.append(query.conditions["filter"])
        return replace(query, conditions={**others, "filter": {"op": "and", "args": parts}})

    def _undeclared(self, names: Iterable[str], searched: Sequence[str]) -> set[str]:
        """Return the names that no vocabulary of the searched collections declares."""
        return {name for name in names if not any(queryables.has(self.declared(each), name) for each in searched)}


def _spelt_otherwise(names: Iterable[str], there: Iterable[str]) -> dict[str, str]:
    """Return the collections that names mean which are right but for their case, where that is one collection only."""
    by_case: dict[str, list[str]] = {}
    for name in there:
        by_case.setdefault(name.casefold(), []).append(name)
    return {
        name: alike[0] for name in names
        if name not in there and len(alike := by_case.get(name.casefold(), [])) == 1
    }  # fmt: skip


def _full_names(
    names: Iterable[str], schemas: Schemas, searched: Sequence[str]
) -> tuple[dict[str, str], Sequence[str]]:
    """Return the names of those that lack their prefix or have one too many, and the first unknown ones."""
    unknown = [name for name in sorted(names) if not queryables.has(schemas, name)]
    if len(searched) != 1:
        return {}, unknown[:MOST_WARNINGS]
    full_names = {
        name: full for name in unknown
        if (full := queryables.with_prefix(schemas, name) or queryables.without_prefix(name))
    }  # fmt: skip
    return full_names, [name for name in unknown if name not in full_names][:MOST_WARNINGS]


def with_names(query: Query, in_conditions: Mapping[str, str], in_fields: Mapping[str, str]) -> Query:
    """Return the search with other names in its filter and order (`in_conditions`) and in its fields (`in_fields`)."""
    conditions = dict(query.conditions)
    if "filter" in conditions:
        conditions["filter"] = filters.with_names(conditions["filter"], in_conditions)
        conditions = visible(conditions, query.retracted)
    order = tuple((in_conditions.get(name, name), descending) for name, descending in query.order)
    paths = {PROPERTIES + name: PROPERTIES + full for name, full in in_fields.items()}
    include, exclude = (frozenset(paths.get(path, path) for path in side) for side in (query.include, query.exclude))
    return replace(query, conditions=conditions, order=order, include=include, exclude=exclude)


def _unknown_property(name: str, schemas: Schemas, searched: Sequence[str], effect: str) -> Finding:
    where = searched[0] if len(searched) == 1 else "any collection that is searched"
    near = queryables.nearest_name(schemas, name)
    hint = f"; did you mean `{near}`?" if near else ""
    message = f"no property `{name[:200]}` is known in {where}, so {effect}{hint}"
    return Finding("unknown-property", "", message, Severity.WARNING, near)


def _unknown_collection(name: str, there: Iterable[str]) -> Finding:
    near = nearest(name, sorted(there))
    hint = f"; did you mean `{near}`?" if near else "; GET /collections lists those there are"
    return Finding("unknown-collection", "", f"there is no collection `{name[:128]}`{hint}", Severity.WARNING, near)
