"""Aggregations: what can be counted of the datasets that a search finds, by the names that clients send.

The form is that of the STAC API's aggregation extension 0.3; the names of facets are those that ESGF's clients send:
`cmip6_source_id_frequency` counts the values of `cmip6:source_id`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from operator import itemgetter
from typing import Any, Final

import orjson

from fedstac.domain.facets import NODES
from fedstac.domain.model import rfc3339
from fedstac.domain.queryables import Schema, Schemas
from fedstac.domain.wording import nearest

SUFFIX: Final = "_frequency"
MOST_BUCKETS: Final = 10_000  # of one aggregation; the others are in its overflow
MOST_BUCKETS_IN_ALL: Final = 50_000  # of an answer
LARGEST_WHOLE: Final = 2.0**53  # from there on a double skips whole numbers
DISTRIBUTION: Final = "frequency_distribution"
# Facets that ESGF's clients ask of every project, whether it has them or not: they fail where one of them is refused.
ESGF_FACETS: Final = frozenset(
    ("activity_id", "cf_standard_name", "conventions", "data_specs_version", "experiment", "experiment_id",
     "experiment_title", "forcing_index", "frequency", "further_info_url", "grid", "grid_label", "initialization_index",
     "institution", "institution_id", "license", "member_id", "mip_era", "nominal_resolution", "physics_index",
     "product", "realization_index", "realm", "source", "source_id", "source_type", "sub_experiment",
     "sub_experiment_id", "table_id", "tracking_id", "variable", "variable_cf_standard_name", "variable_id",
     "variable_long_name", "variable_units", "variant_label", "version")
)  # fmt: skip
NODE_NAMES: Final = ("alternate_name", "data_node")  # behind the name of a project, they are the same as NODES


class Measure(Enum):
    """What an aggregation tells of the datasets."""

    DATASETS = auto()
    FILES = auto()
    BYTES = auto()
    NODES = auto()
    FIRST = auto()
    LAST = auto()
    YEARS = auto()
    COLLECTIONS = auto()
    FACET = auto()


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One aggregation. `property` is that of a FACET; None where no dataset can have it."""

    name: str
    measure: Measure
    property: str | None = None
    data_type: str = DISTRIBUTION
    values: str | None = None  # what the buckets of a distribution are of
    title: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return its entry in the list of GET /aggregations."""
        of = {} if self.values is None else {"frequency_distribution_data_type": self.values}
        own = {} if self.property is None else {"property": self.property}
        return {"name": self.name, "data_type": self.data_type, **of, "title": self.title, **own}


FIXED: Final[Mapping[str, Aggregation]] = {
    each.name: each
    for each in (
        Aggregation("total_count", Measure.DATASETS, data_type="integer", title="Datasets"),
        Aggregation("file_count", Measure.FILES, data_type="integer", title="Files of all datasets"),
        Aggregation("byte_count", Measure.BYTES, data_type="integer", title="Bytes of all files"),
        Aggregation("node_count", Measure.NODES, data_type="integer", title="Nodes with files"),
        Aggregation("datetime_min", Measure.FIRST, data_type="datetime", title="First start"),
        Aggregation("datetime_max", Measure.LAST, data_type="datetime", title="Last end"),
        Aggregation("datetime_frequency", Measure.YEARS, values="datetime", title="Year of the start"),
        Aggregation("collection_frequency", Measure.COLLECTIONS, values="string", title="Collection"),
        Aggregation("alternate_name_frequency", Measure.FACET, NODES, values="string",
                    title="Nodes with files: the dataset's own and those of replicas"),
    )
}  # fmt: skip


class UnknownAggregation(LookupError):
    """No aggregation has that name; the text says so, with the nearest name there is."""


def stem(property: str) -> str:
    """Return a property as the name of its aggregation has it: `cmip6:source_id` is cmip6_source_id."""
    return property.replace(":", "_")


def _values(schema: Schema) -> str:
    """Return what the buckets of a property are of, by its schema among the queryables."""
    match schema.get("type"):
        case "string" | "array" | "boolean" as name:
            return str(name)
        case "integer" | "number":
            return "numeric"
    return "string"


def of_property(property: str, schema: Schema) -> Aggregation:
    """Return the aggregation over the values of a property."""
    return Aggregation(
        stem(property) + SUFFIX, Measure.FACET, property, values=_values(schema), title=str(schema.get("title", ""))
    )


def every(facets: Iterable[str], queryables: Schemas) -> tuple[Aggregation, ...]:
    """Return all aggregations over datasets that have these facets."""
    of_facets = (of_property(name, queryables.get(name, {})) for name in sorted(facets))
    return (*FIXED.values(), *{each.name: each for each in of_facets if each.name not in FIXED}.values())


def find(
    names: Sequence[str], facets: Iterable[str], queryables: Schemas, projects: Iterable[str]
) -> tuple[Aggregation, ...]:
    """Return the aggregations of these names, in their order, each once. UnknownAggregation where there is none.

    facets: the properties whose values are counted. queryables: all properties, by their names.
    projects: the collections, whose names in small letters stand in front of facets.
    """
    by_name = {each.name: each for each in every(facets, queryables)}
    others = {stem(name) + SUFFIX: name for name in sorted(queryables)}
    prefixes = sorted({f"{stem(name).lower()}_" for name in projects})
    aggregations = {}
    for name in names:
        each = by_name.get(name) or _other(name, by_name, others, prefixes)
        if each is None:
            near = _nearest(name, by_name)
            hint = f"; did you mean `{near}`?" if near else ""
            raise UnknownAggregation(
                f"there is no aggregation `{name[:100]}`{hint}" + ("" if near else "; GET /aggregations lists them")
            )
        aggregations[name] = each
    return tuple(aggregations.values())


def _nearest(name: str, by_name: Mapping[str, Aggregation]) -> str | None:
    """Return the aggregation whose name, or whose property without its prefix, is most like a misspelt one."""
    near = nearest(name, list(by_name))
    if near is not None:
        return near
    short = {each.property.rpartition(":")[2]: each.name for each in by_name.values() if each.property}
    own = nearest(name.removesuffix(SUFFIX), list(short))
    return short[own] if own else None


def _other(
    name: str, by_name: Mapping[str, Aggregation], others: Mapping[str, str], prefixes: Sequence[str]
) -> Aggregation | None:
    """Return what a name means that is in no list: a property without counts, or one after the name of a project."""
    if name in others:
        return Aggregation(name, Measure.FACET, values="string")
    if not name.endswith(SUFFIX):
        return None
    for prefix in prefixes:
        if not name.startswith(prefix):
            continue
        rest = name[len(prefix) : -len(SUFFIX)]
        own = by_name.get(rest + SUFFIX)
        if rest in NODE_NAMES:
            return Aggregation(name, Measure.FACET, NODES, values="string")
        if own is not None and own.measure is Measure.FACET:  # of a property without a prefix
            return Aggregation(name, Measure.FACET, own.property, values=own.values)
        if rest in ESGF_FACETS or rest + SUFFIX in others:
            return Aggregation(name, Measure.FACET, values="string")
    return None


@dataclass(frozen=True, slots=True)
class FacetCounts:
    """How many of the matching datasets have each value of a facet.

    A list counts once for each of its members. `matched`: the datasets that were looked at. `in_buckets`: those in at
    least one bucket.
    """

    values: Sequence[tuple[Any, int]] = ()
    matched: int = 0
    in_buckets: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """What is counted of the datasets that a search finds."""

    datasets: int = 0
    files: int = 0
    bytes: int = 0
    first: datetime | None = None
    last: datetime | None = None
    years: Mapping[int, int] = field(default_factory=dict)  # by the year of the start
    collections: Mapping[str, int] = field(default_factory=dict)
    facets: Mapping[str, FacetCounts] = field(default_factory=dict)  # by property


def facet_counts(counts: Iterable[tuple[Any, int]], matched: int) -> FacetCounts:
    """Return the counts of single values, from those of whole values (`counts`), of which some are lists.

    matched: how many datasets there are in all. What is no text, number or boolean is in no bucket.
    """
    by_value: dict[tuple[bool, Any], int] = {}  # 1 and true are equal in Python
    in_buckets = 0
    for value, count in counts:
        if type(value) is str:  # as nearly every one is
            by_value[False, value] = by_value.get((False, value), 0) + count
            in_buckets += count
            continue
        members = value if isinstance(value, list) else [value]
        keys = {(isinstance(each, bool), each) for each in members if isinstance(each, str | int | float)}
        in_buckets += count if keys else 0
        for key in keys:
            by_value[key] = by_value.get(key, 0) + count
    return FacetCounts([(value, count) for (_, value), count in by_value.items()], matched, in_buckets)


def answer(
    aggregations: Sequence[Aggregation], counts: Counts, *, before_each: Callable[[], object]
) -> list[dict[str, Any]]:
    """Return the aggregations as they are answered. Buckets with the most datasets come first.

    before_each: is called before each aggregation; what it raises ends the work.
    """
    free = MOST_BUCKETS_IN_ALL
    answers = []
    for each in aggregations:
        before_each()
        if each.data_type == DISTRIBUTION:
            body = _distribution(each, counts, min(free, MOST_BUCKETS))
            free -= len(body["buckets"])
        else:
            body = {"value": _value(each, counts)}
        answers.append({"name": each.name, "data_type": each.data_type, **body})
    return answers


def _value(aggregation: Aggregation, counts: Counts) -> int | str | None:
    match aggregation.measure:
        case Measure.DATASETS:
            return counts.datasets
        case Measure.FILES:
            return counts.files
        case Measure.BYTES:
            return counts.bytes
        case Measure.NODES:
            return len(counts.facets.get(NODES, FacetCounts()).values)
        case Measure.FIRST:
            return rfc3339(counts.first) if counts.first else None
        case _:
            return rfc3339(counts.last) if counts.last else None


def _distribution(aggregation: Aggregation, counts: Counts, most: int) -> dict[str, Any]:
    """Return buckets and overflow: how many datasets are in none of the buckets, or in those that are left out."""
    match aggregation.measure:
        case Measure.YEARS:
            years = sorted(counts.years.items())[:most]
            buckets = [_bucket(f"{year:04}-01-01T00:00:00Z", "datetime", count) for year, count in years]
            return {"buckets": buckets, "overflow": sum(counts.years.values()) - sum(count for _, count in years)}
        case Measure.COLLECTIONS:
            own = FacetCounts(list(counts.collections.items()), counts.datasets, counts.datasets)
        case _:
            own = counts.facets.get(aggregation.property or "", FacetCounts(matched=counts.datasets))
    by_frequency = sorted([(_key(value), value, count) for value, count in own.values], key=itemgetter(0))
    by_frequency.sort(key=itemgetter(2), reverse=True)  # what is equal keeps its order
    first, rest = by_frequency[:most], by_frequency[most:]
    return {
        "buckets": [_bucket(key, _type(value), count) for key, value, count in first],
        "overflow": own.matched - own.in_buckets + sum(count for _, _, count in rest),
    }


def _bucket(key: str, data_type: str, count: int) -> dict[str, Any]:
    return {"key": key, "data_type": data_type, "frequency": count}


def _key(value: Any) -> str:
    """Return the key of a bucket, which is a text; a number has one spelling, however datasets write it."""
    if isinstance(value, str):
        return value
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_WHOLE
    return orjson.dumps(int(value) if is_whole else value).decode()


def _type(value: Any) -> str:
    return "string" if isinstance(value, str) else "boolean" if isinstance(value, bool) else "numeric"


def members(values: Iterable[Any]) -> list[Any]:
    """Return the texts, numbers and truths that are among values, each once and in order; of a list, its members."""
    every = {
        (type(each) is str, type(each) is bool, each): each
        for value in values for each in (value if isinstance(value, list) else [value])
        if isinstance(each, str | int | float)
    }  # fmt: skip
    return [every[key] for key in sorted(every)]
