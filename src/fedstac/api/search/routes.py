"""The routes that read datasets: landing page, items, search."""

from __future__ import annotations

from fedstac.api import parameters
from fedstac.api.capability import Capability
from fedstac.api.people import options
from fedstac.api.route import GEOJSON, JSON, NOT_MODIFIED, Access, Answer, BodyFormat, Route, Size
from fedstac.api.search import aggregation, collections, history, parquet, private, reading
from fedstac.domain.errors import CollectionDoesNotExist, InvalidToken, ItemDeleted, ItemDoesNotExist, Unauthenticated

ITEMS, ITEM = "/collections/{collection_id}/items", "/collections/{collection_id}/items/{item_id}"
ALLOWED = Answer(204, "`Allow` names the methods.", headers=("Allow",))
BAD_TOKEN = (Unauthenticated, InvalidToken)  # of a public route that looks at a token where one is sent
_PAGE = Answer(200, "A page of datasets. The link `next` leads to the next one.",
               {GEOJSON: "ItemCollection", parquet.MEDIA_TYPE: "DataFile"})  # fmt: skip
_QUERYABLES = (
    Answer.of(200, "The properties as a JSON Schema.", "Queryables", media_type="application/schema+json",
              headers=("ETag",)),
    NOT_MODIFIED,
)  # fmt: skip
_COUNTS = Answer.of(200, "What is counted.", "Counts")
_COUNTABLE = Answer.of(200, "What can be counted.", "Aggregations")

_COLLECTIONS = Answer.of(200, "A page of collections. The links `next` and `prev` lead to other pages.", "Collections")
COLLECTION_SEARCH = Capability(
    name="collection-search",
    description="List collections and search for them: the collection search and the children of STAC API.",
    conformance_classes=(
        "https://api.stacspec.org/v1.0.0/children",
        "https://api.stacspec.org/v1.0.0-rc.1/collection-search",
        "https://api.stacspec.org/v1.0.0-rc.1/collection-search#free-text",
        "https://api.stacspec.org/v1.0.0-rc.1/collection-search#filter",
        "https://api.stacspec.org/v1.0.0-rc.1/collection-search#query",
        "https://api.stacspec.org/v1.0.0-rc.1/collection-search#fields",
        "https://api.stacspec.org/v1.0.0-rc.1/collection-search#sort",
        "https://api.stacspec.org/v1.1.0/collection-search#sort",
        "http://www.opengis.net/spec/ogcapi-common-2/1.0/conf/simple-query",
    ),
    routes=(
        Route(
            method="GET", path="/collections", handler=collections.get_collections, access=Access.PUBLIC,
            parameters=parameters.COLLECTION_SEARCH, answers=(_COLLECTIONS,),
        ),
        Route(
            method="GET", path="/collection-queryables", handler=collections.get_collection_queryables,
            access=Access.PUBLIC,
            answers=(Answer.of(200, "The properties as a JSON Schema.", "Queryables",
                               media_type="application/schema+json"),),
        ),
        Route(
            method="GET", path="/children", handler=collections.get_children, access=Access.PUBLIC,
            parameters=parameters.COLLECTIONS_PAGE,
            answers=(Answer.of(200, "A page of the catalogue's children, which are the collections.", "Children"),),
        ),
    ),
)  # fmt: skip

SEARCH = Capability(
    name="search",
    description="Read datasets and search for them: STAC API, OGC API - Features and CQL2.",
    conformance_classes=(
        "https://api.stacspec.org/v1.0.0/core",
        "https://api.stacspec.org/v1.0.0/collections",
        "https://api.stacspec.org/v1.0.0/ogcapi-features",
        "https://api.stacspec.org/v1.0.0/item-search",
        "https://api.stacspec.org/v1.0.0/item-search#filter",
        "https://api.stacspec.org/v1.0.0/item-search#sort",
        "https://api.stacspec.org/v1.1.0/item-search#sort",
        "https://api.stacspec.org/v1.0.0/item-search#fields",
        "https://api.stacspec.org/v1.0.0/item-search#query",
        "https://api.stacspec.org/v1.0.0-rc.1/item-search#free-text",
        "https://api.stacspec.org/v1.0.0-rc.1/ogcapi-features#free-text",
        "https://api.stacspec.org/v1.0.0/ogcapi-features#sort",
        "https://api.stacspec.org/v1.1.0/ogcapi-features#sort",
        "https://api.stacspec.org/v1.0.0/ogcapi-features#fields",
        "https://api.stacspec.org/v1.0.0/ogcapi-features#query",
        "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core",
        "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/geojson",
        "http://www.opengis.net/spec/ogcapi-features-3/1.0/conf/filter",
        "http://www.opengis.net/spec/ogcapi-features-3/1.0/conf/features-filter",
        "http://www.opengis.net/spec/ogcapi-features-3/1.0/conf/queryables",
        "http://www.opengis.net/spec/cql2/1.0/conf/cql2-text",
        "http://www.opengis.net/spec/cql2/1.0/conf/cql2-json",
        "http://www.opengis.net/spec/cql2/1.0/conf/basic-cql2",
        "http://www.opengis.net/spec/cql2/1.0/conf/advanced-comparison-operators",
        "http://www.opengis.net/spec/cql2/1.0/conf/case-insensitive-comparison",
        "http://www.opengis.net/spec/cql2/1.0/conf/accent-insensitive-comparison",
        "http://www.opengis.net/spec/cql2/1.0/conf/basic-spatial-functions",
        "http://www.opengis.net/spec/cql2/1.0/conf/basic-spatial-functions-plus",
        "http://www.opengis.net/spec/cql2/1.0/conf/spatial-functions",
        "http://www.opengis.net/spec/cql2/1.0/conf/temporal-functions",
        "http://www.opengis.net/spec/cql2/1.0/conf/array-functions",
        "http://www.opengis.net/spec/cql2/1.0/conf/property-property",
    ),
    routes=(
        Route(
            method="GET", path="/", handler=reading.landing_page, access=Access.PUBLIC,
            answers=(Answer.of(200, "The root catalogue.", "LandingPage"),),
        ),
        Route(
            method="GET", path="/conformance", handler=reading.conformance, access=Access.PUBLIC,
            answers=(Answer.of(200, "The conformance classes.", "Conformance"),),
        ),
        Route(
            method="GET", path="/queryables", handler=reading.get_queryables, access=Access.PUBLIC,
            parameters=(parameters.IF_NONE_MATCH,), answers=_QUERYABLES,
        ),
        Route(
            method="GET", path="/collections/{collection_id}/queryables", handler=reading.get_queryables,
            access=Access.PUBLIC, parameters=(parameters.IF_NONE_MATCH,), answers=_QUERYABLES,
            problems=(CollectionDoesNotExist,),
        ),
        Route(
            method="GET", path=ITEM, handler=reading.get_item, access=Access.PUBLIC,
            parameters=(parameters.ACCESS, parameters.DELETED, parameters.IF_NONE_MATCH),
            answers=(
                Answer(
                    200, "The dataset; or its tombstone.", {GEOJSON: "Item", JSON: "Tombstone"},
                    headers=("ETag", "Last-Modified"),
                ),
                NOT_MODIFIED,
            ),
            problems=(ItemDoesNotExist, ItemDeleted, CollectionDoesNotExist, *BAD_TOKEN), is_hot=True,
        ),
        Route(
            method="GET", path=ITEMS, handler=reading.get_items, access=Access.PUBLIC,
            parameters=parameters.SEARCH_ONE, answers=(_PAGE,), problems=(CollectionDoesNotExist, *BAD_TOKEN),
        ),
        Route(
            method="GET", path="/search", handler=reading.get_search, access=Access.PUBLIC,
            parameters=parameters.SEARCH_ALL, answers=(_PAGE,), problems=BAD_TOKEN, is_hot=True,
        ),
        Route(
            method="POST", path="/search", handler=reading.post_search, access=Access.PUBLIC,
            parameters=(parameters.FORMAT,), body=BodyFormat.of("Search"), answers=(_PAGE,),
            problems=BAD_TOKEN, reads=True, is_hot=True,
        ),
        Route(
            method="GET", path=ITEM + "/history", handler=history.get_history, access=Access.PUBLIC,
            parameters=parameters.HISTORY, answers=(Answer.of(200, "Versions and events.", "History"),),
            problems=(ItemDoesNotExist, CollectionDoesNotExist, *BAD_TOKEN),
        ),
        Route(
            method="GET", path="/private", handler=private.get_private, access=Access.AUTHENTICATED,
            parameters=parameters.PRIVATE,
            answers=(Answer.of(200, "A page of private datasets. The link `next` leads to the next one.",
                               "PrivateDatasets"),),
        ),
        Route(
            method="POST", path="/datasets/status", handler=history.post_status, access=Access.PUBLIC,
            body=BodyFormat(Size.SMALL, {JSON: ("DatasetIds",), history.LINES: ("DatasetId",)}), reads=True,
            answers=(Answer(200, "How each dataset stands.", {JSON: "Statuses", history.LINES: "Status"}),),
        ),
        Route(
            method="OPTIONS", path=ITEM, handler=options.options_item, access=Access.PUBLIC, answers=(ALLOWED,),
            problems=(ItemDoesNotExist, *BAD_TOKEN),
        ),
        Route(
            method="OPTIONS", path=ITEMS, handler=options.options_items, access=Access.PUBLIC, answers=(ALLOWED,),
            problems=(CollectionDoesNotExist, *BAD_TOKEN),
        ),
    ),
)  # fmt: skip
AGGREGATION = Capability(
    name="aggregation",
    description="Count what a search finds: by facets, by year, in files and bytes.",
    conformance_classes=(
        "https://api.stacspec.org/v0.3.0/aggregation",
        "https://api.stacspec.org/v0.3.0/aggregation#filter",
        "https://api.stacspec.org/v0.3.0/aggregation#query",
    ),
    routes=(
        Route(
            method="GET", path="/aggregations", handler=aggregation.get_aggregations, access=Access.PUBLIC,
            answers=(_COUNTABLE,),
        ),
        Route(
            method="GET", path="/collections/{collection_id}/aggregations", handler=aggregation.get_aggregations,
            access=Access.PUBLIC, answers=(_COUNTABLE,), problems=(CollectionDoesNotExist,),
        ),
        Route(
            method="GET", path="/aggregate", handler=aggregation.get_aggregate, access=Access.PUBLIC,
            parameters=parameters.AGGREGATE_ALL, answers=(_COUNTS,),
        ),
        Route(
            method="POST", path="/aggregate", handler=aggregation.post_aggregate, access=Access.PUBLIC,
            body=BodyFormat.of("CountsQuestion"), answers=(_COUNTS,), reads=True,
        ),
        Route(
            method="GET", path="/collections/{collection_id}/aggregate", handler=aggregation.get_collection_aggregate,
            access=Access.PUBLIC, parameters=parameters.AGGREGATE_ONE, answers=(_COUNTS,),
            problems=(CollectionDoesNotExist,),
        ),
        Route(
            method="POST", path="/collections/{collection_id}/aggregate", access=Access.PUBLIC,
            handler=aggregation.post_collection_aggregate, body=BodyFormat.of("CountsQuestion"),
            answers=(_COUNTS,), problems=(CollectionDoesNotExist,), reads=True,
        ),
    ),
)  # fmt: skip
CAPABILITIES = (SEARCH, COLLECTION_SEARCH, AGGREGATION)
