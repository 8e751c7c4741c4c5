"""The parameters of the routes, described once: those of paths by their names, those of queries, and headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fedstac.api.route import DRY_RUN, Parameter

TEXT: Final = {"type": "string"}
YES_NO: Final = {"type": "boolean"}


def _list(of: Mapping[str, Any] = TEXT) -> Mapping[str, Any]:
    return {"type": "array", "items": of}


def _limit(default: int, most: int) -> Parameter:
    schema = {"type": "integer", "minimum": 1, "default": default}
    return Parameter("limit", f"Entries of a page; more than {most} count as {most}.", schema)


IN_PATH: Final[Mapping[str, str]] = {
    "collection_id": "The id of a project.",
    "item_id": "The id of a dataset.",
    "node": "The name of a node.",
    "bulk_id": "The id of a change of many datasets, as its 202 gave it.",
    "load_id": "The id of a full-state load, as its answer gave it.",
    "n": "The number of a part, from 1.",
    "request_id": "The id of a request, as its 202 gave it.",
    "project": "The name of a project.",
    "version": "A version. Of a vocabulary, `current` is the one that judges now.",
    "format": "The name of a format of messages.",
    "facet": "A property (`cmip6:source_id`), its short name (`source_id`), or a vocabulary of the snapshot.",
    "name": "A name.",
    "group": "The name of a group.",
    "principal": "Somebody's name, as the logs have it.",
    "destination_id": "The id of a destination.",
    "sink": "The name of a sink.",
    "letter": "The id of a dead letter.",
    "subscription": "The name of a subscription.",
    "event": "The id of a parked event, as the list has it.",
    "deletion": "The id of a deletion, as the list of deletions and the problems of marked datasets name it.",
    "grant": "The id of a grant.",
    "part": "The name of a part, as the manifest has it.",
}

# --- reading ---
ACCESS: Final = Parameter(
    "access",
    "With `full`, retracted datasets have their files, for callers who may retract or reinstate them.",
    {"type": "string", "enum": ["metadata", "full"], "default": "metadata"},
)
DELETED: Final = Parameter(
    "deleted",
    "With `include`, what is left of a deleted dataset, for callers who may delete it.",
    {"type": "string", "enum": ["exclude", "include"], "default": "exclude"},
)
Q: Final = Parameter(
    "q", 'Words or "phrases" to search for; a comma is OR. Also AND, OR, NOT, `+`, `-` and parentheses.', TEXT
)
FORMAT: Final = Parameter(
    "f", "The form of the answer: `parquet`, as `Accept: application/vnd.apache.parquet`, is a file in GeoParquet.",
    {"type": "string", "enum": ["json", "parquet"]},
)  # fmt: skip
_CONDITIONS: Final = (
    Parameter("ids", "Ids of datasets.", _list()),
    Parameter("bbox", "A box: west, south, east, north.", _list({"type": "number"})),
    Parameter("intersects", "A GeoJSON geometry, as JSON.", TEXT),
    Parameter("datetime", "A moment, or an interval whose ends may be open: `1850-01-01T00:00:00Z/..`", TEXT),
    Parameter("filter", "A CQL2 expression.", TEXT),
    Parameter("filter-lang", "The language of the filter.", {"type": "string", "enum": ["cql2-text", "cql2-json"]}),
    Parameter("filter-crs", "The coordinates of the filter; only CRS84 is taken.", TEXT),
    Q,
    Parameter("query", "Conditions of the query extension, as JSON. Not together with `filter`.", TEXT),
    Parameter(
        "retracted",
        "Whether retracted datasets are found. Without it they are if the filter names `retracted`.",
        {"type": "string", "enum": ["exclude", "include", "only"]},
    ),
)
SEARCH: Final = (
    *_CONDITIONS,
    Parameter("sortby", "Properties in order; `-` in front of one sorts it from high to low.", _list()),
    Parameter("fields", "Members to include; `-` in front of one excludes it.", _list()),
    Parameter("limit", "Datasets of a page.", {"type": "integer", "minimum": 1}),
    Parameter("token", "The place of a page, as the links `next` and `prev` have it.", TEXT),
    ACCESS,
    FORMAT,
)
_COLLECTIONS: Final = Parameter("collections", "Ids of collections.", _list())
_COLLECTION: Final = Parameter("collections", "The collection of the path, or nothing.", _list())
SEARCH_ALL: Final = (_COLLECTIONS, *SEARCH)
SEARCH_ONE: Final = (_COLLECTION, *SEARCH)
_AGGREGATE: Final = (
    Parameter("aggregations", "Names of aggregations, as GET /aggregations lists them; without it, all.", _list()),
    Parameter("multi_select", "With true, the counts of a facet leave the conditions on it out.",
              {**YES_NO, "default": False}),
    Parameter("datetime_frequency_interval", "What datetime_frequency counts by.", {"const": "year"}),
    *_CONDITIONS,
)  # fmt: skip
AGGREGATE_ALL: Final = (_COLLECTIONS, *_AGGREGATE)
AGGREGATE_ONE: Final = (_COLLECTION, *_AGGREGATE)
COLLECTIONS_PAGE: Final = (
    _limit(10_000, 10_000),
    Parameter("token", "The place of a page, as the links `next` and `prev` have it.", TEXT),
)
COLLECTION_SEARCH: Final = (
    *(each for each in SEARCH
      if each.name in ("q", "bbox", "datetime", "filter", "filter-lang", "filter-crs", "query", "sortby", "fields")),
    *COLLECTIONS_PAGE,
)  # fmt: skip
RANGE: Final = Parameter("Range", "Bytes of the file: `bytes=1000-`.", TEXT, "header")
HISTORY: Final = (
    _limit(100, 1000),
    Parameter("before", "An event: older ones only. The link `next` has it.", {"type": "string", "format": "uuid"}),
)
IF_NONE_MATCH: Final = Parameter("If-None-Match", "An ETag that the caller has: 304 if it is current.", TEXT, "header")

SIDECAR_TOKEN: Final = Parameter(
    "dapr-api-token", "The token of the caller, as a Dapr sidecar sends it (APP_API_TOKEN), in place of Authorization.",
    TEXT, "header",
)  # fmt: skip

# --- writing ---
TRY: Final = Parameter(DRY_RUN, "With true everything is tried and nothing is stored.", {**YES_NO, "default": False})
IF_MATCH: Final = Parameter("If-Match", "The ETag that GET gave: the change is refused if it is old.", TEXT, "header")
ONLY_NEW: Final = Parameter("If-None-Match", "With `*` nothing may be there yet.", {"const": "*"}, "header")
OVERRIDE: Final = Parameter("Fedstac-Override", "The reason for which files may change in place.", TEXT, "header")
REASON: Final = Parameter("reason", "Why the dataset is to be deleted.", TEXT)
CASCADE: Final = (
    Parameter("cascade", "With true, the collection is deleted with its datasets.", {**YES_NO, "default": False}),
    Parameter(DRY_RUN, "Of a cascade: with true, tell what is affected, and change nothing.",
              {**YES_NO, "default": False}),
    Parameter("confirm", "Of a cascade: the number of datasets, as the dry run tells it.",
              {"type": "integer", "minimum": 0}),
    Parameter("reason", "Of a cascade: why the collection is deleted.", {**TEXT, "maxLength": 2000}),
)  # fmt: skip
KEY: Final = Parameter(
    "Idempotency-Key", "A name of this request: sent again under it, it is the same request.",
    {"type": "string", "minLength": 1, "maxLength": 255}, "header",
)  # fmt: skip
PREFER: Final = Parameter("Prefer", "`wait=N` waits up to N seconds for the result.", TEXT, "header")
NOTIFY: Final = Parameter("Fedstac-Notify", "A destination that is told of the result.", TEXT, "header")
WRITE: Final = (TRY, KEY, PREFER, NOTIFY)
CHANGE: Final = (IF_MATCH, *WRITE)

# --- requests ---
REQUESTS_PAGE: Final = (
    _limit(20, 100),
    Parameter("after", "The id of the last request of the page before.", {"type": "string", "format": "uuid"}),
)
RESULTS_PAGE: Final = (
    Parameter("status", "Results of this status only.",
              {"type": "string", "enum": ["queued", "done", "rejected", "failed"]}),
    Parameter("limit", "Entries of a page; more than 5000 count as 5000.", {"type": "integer", "minimum": 0}),
    Parameter("after", "The place of the last result of the page before.", {"type": "integer", "minimum": 0}),
)  # fmt: skip

BULK_PAGE: Final = (
    _limit(20, 100),
    Parameter("after", "The id of the last change of the page before.", {"type": "string", "format": "uuid"}),
)
BULK_RESULTS: Final = (
    Parameter("status", "Results of this status only.",
              {"type": "string", "enum": ["waiting", "done", "rejected", "failed", "cancelled"]}),
    Parameter("limit", "Entries of a page; more than 5000 count as 5000.", {"type": "integer", "minimum": 0}),
    Parameter("after", "The number of the last result of the page before.", {"type": "integer", "minimum": 0}),
)  # fmt: skip

_CONFIRM = Parameter("confirm", "How many datasets go, as the load says in `to_confirm`.",
                     {"type": "integer", "minimum": 0})  # fmt: skip
_COMPARE = Parameter(DRY_RUN, "With true the load is compared with what is here, and nothing changes.",
                     {**YES_NO, "default": False})  # fmt: skip
RECONCILE: Final = (
    Parameter("mode", "`apply` changes what differs; `rebuild` clears every dataset and publishes it again.",
              {"type": "string", "enum": ["apply", "rebuild"], "default": "apply"}),
    _COMPARE, _CONFIRM,
    Parameter("complete", "With false, this is the first part of several.", {**YES_NO, "default": True}),
    OVERRIDE,
)  # fmt: skip
APPLY: Final = (
    _COMPARE, _CONFIRM,
    Parameter("compared", "Which comparison the caller saw, as the load says in `compared`; 409 where another counts.",
              {"type": "string", "format": "date-time"}),
)  # fmt: skip
LOAD_PAGE: Final = (
    _limit(20, 100),
    Parameter("after", "The id of the last load of the page before.", {"type": "string", "format": "uuid"}),
)
LOAD_DATASETS: Final = (
    Parameter("change", "Datasets of which this becomes only.",
              {"type": "string", "enum": ["new", "changed", "unchanged", "removed", "held", "invalid"]}),
    Parameter("limit", "Entries of a page; more than 5000 count as 5000.", {"type": "integer", "minimum": 0}),
    Parameter("after", "The id of the last dataset of the page before.", TEXT),
)  # fmt: skip

# --- vocabularies ---
CV_VERSION: Final = Parameter("cv_version", "Judge with this version of the vocabularies.", TEXT)

# --- people ---
EXPLAIN: Final = (
    Parameter("action", "What somebody would do.", TEXT, required=True, example="publish"),
    Parameter("item", "The dataset, or any text for what is about none.", TEXT, required=True),
    Parameter("collection", "The project; without it, the one that the id of the dataset begins with.", TEXT),
    Parameter("institution", "The institution; without it, that of the dataset.", TEXT),
    Parameter("node", "A node whose entries would change; may be repeated.", TEXT),
    Parameter("as", "Somebody else, or `role:`, `group:`, `entitlement:`, `own:`; may be repeated.", TEXT),
)

# --- nodes ---
_CURSOR = {"type": "string", "pattern": r"^[0-9]+\.[0-9]+$"}
_COUNT = {"type": "integer", "minimum": 0}
_AFTER: Final = Parameter("after", "The cursor to go on from.", {**_CURSOR, "default": "0.0"})
_EVENT_FILTERS: Final = (
    Parameter("collection", "Events of this collection only.", TEXT),
    Parameter("type", "Events of this type only.", TEXT),
    Parameter("shard", "`i/n`: only lineages of this share, i from 0 to n-1.", {"type": "string"}),
)
EVENTS: Final = (
    _AFTER,
    Parameter("limit", "Events of a page; more than 2000 count as 2000.", {**_COUNT, "default": 500}),
    Parameter("wait", "Seconds to wait for an event, at most 60.", {**_COUNT, "default": 0}),
    *_EVENT_FILTERS,
)
STREAM: Final = (
    _AFTER,
    Parameter("Last-Event-ID", "The cursor of the last event that arrived.", {"type": "string"}, "header"),
    Parameter("wait", "Seconds after which the stream ends; without it, it does not.", _COUNT),
    *_EVENT_FILTERS,
)
_WAIT: Final = Parameter("wait", "Seconds to wait for an event, at most 60.", {**_COUNT, "default": 0})
SUBSCRIPTIONS: Final = (
    Parameter("all", "With true, those of everybody, for callers who may manage messaging.",
              {**YES_NO, "default": False}),
    _limit(100, 1000),
    Parameter("after", "The name of the last subscription of the page before.", TEXT),
)  # fmt: skip
NEXT_EVENTS: Final = (
    Parameter("limit", "Events at most; without it, the batch of the subscription.", {**_COUNT}),
    Parameter("lease", "Seconds for which nobody else gets them, at most 3600.", {**_COUNT, "default": 60}),
    _WAIT,
)
MISSED_EVENTS: Final = (
    _limit(100, 1000),
    Parameter("after", "The id of the last dead letter of the page before.", {**_COUNT}),
)
CHANGES: Final = (
    Parameter("since", "A cursor, `start`, `head`, or a moment to begin with.", TEXT, required=True, example="start"),
    Parameter("collections", "Ids of collections.", _list()),
    Parameter("types", "Types of events: `dataset.updated`, `dataset.left`.", _list()),
    Parameter("filter", "A CQL2 expression that datasets fit before or after a change.", TEXT),
    Parameter("filter-lang", "The language of the filter.",
              {"type": "string", "enum": ["cql2-text", "cql2-json"], "default": "cql2-text"}),
    Parameter("bbox", "A box: west, south, east, north.", _list({"type": "number"})),
    Parameter("format", "The format of the events.", {"type": "string", "default": "cloudevents"}),
    _limit(100, 1000),
    _WAIT,
)  # fmt: skip
DEAD_LETTERS: Final = (
    Parameter("sink", "Those of this sink only.", TEXT),
    Parameter("limit", "At most so many; more than 1000 count as 1000.", {**_COUNT, "default": 100}),
)
PARKED_EVENTS: Final = (
    Parameter("after", "Those with a greater id: the id of the last event of the page before.", {**_COUNT}),
    Parameter("limit", "At most so many; more than 1000 count as 1000.", {**_COUNT, "default": 100}),
)
SNAPSHOT: Final = (
    Parameter(
        "format",
        "geoparquet: the manifest of the snapshot in files.",
        {"type": "string", "enum": ["json", "geoparquet"]},
    ),
    Parameter("page", "The place of a page, as `next` of the page before has it.", TEXT),
    Parameter("limit", "Entries of a page; more than 2000 count as 2000.", {**_COUNT, "default": 500}),
    Parameter("collection", "Only entries of this collection with one of the ids, all at once.", TEXT),
    Parameter("id", "The id of a dataset of that collection; may come 100 times.", _list()),
)
DIGESTS: Final = (
    Parameter("collection", "The records of one bucket of this collection.", TEXT),
    Parameter("bucket", "The number of the bucket.", {"type": "integer", "minimum": 0, "maximum": 255}),
)

# --- deletions ---
_AFTER_ID: Final = Parameter(
    "after",
    "The id of the last entry of the page before; the link `next` has it.",
    {"type": "string", "format": "uuid"},
)
TOMBSTONES: Final = (
    Parameter("collection", "Those of this collection only.", TEXT),
    Parameter("since", "Those deleted or purged then or later.", {"type": "string", "format": "date-time"}),
    _limit(100, 1000),
    Parameter("after", "Those behind this place in the list. The link `next` has it.", TEXT),
)
_DELETIONS_PAGE: Final = (_limit(50, 200), _AFTER_ID)
DELETIONS: Final = (
    Parameter("project", "Those of this project only.", TEXT),
    Parameter(
        "state", "Those in this state only.", {"type": "string", "enum": ["open", "unmarked", "deleted", "purged"]}
    ),
    Parameter(
        "standing",
        "Open ones that wait for something, are ready to be deleted, are late, or have a dependency that failed.",
        {"type": "string", "enum": ["waiting", "ready", "late", "failed"]},
    ),
    Parameter("dependency", "Those that have this dependency only.", TEXT),
    Parameter("q", "A part of the dataset's id, of the reason, or of who marked it.", TEXT),
    Parameter(
        "sortby",
        "The order; `-` in front sorts from late to early.",
        {"type": "string", "pattern": "^[-+]?(marked_at|grace_until|dataset)$", "default": "-marked_at"},
    ),
    *_DELETIONS_PAGE,
)
RULES_VERSION: Final = Parameter("version", "This version; without it, the newest.", {"type": "integer", "minimum": 1})
IF_MATCH_VERSION: Final = Parameter(
    "If-Match",
    'The ETag that GET gave: the version. `"0"` where there are no rules yet.',
    TEXT,
    "header",
    required=True,
)
APPLY_TO_OPEN: Final = Parameter(
    "apply_to_open", "With true the deletions that are open get the rules, too.", {**YES_NO, "default": False}
)
QUARANTINES: Final = (
    Parameter("open", "With true the open cases, with false those that are closed.", YES_NO),
    Parameter("q", "A part of the dataset's id.", TEXT),
    *_DELETIONS_PAGE,
)

# --- private datasets ---
PRIVATE: Final = (
    Parameter("collection", "Those of this collection; without it, of all.", TEXT),
    _limit(50, 1000),
    Parameter("token", "The place of a page, as the link `next` has it.", TEXT),
)

# --- grants ---
_GRANTED_TO: Final = (
    Parameter("subject", "Those of somebody, by the name that the logs have.", TEXT),
    Parameter("dataset", "Those of a dataset: `CMIP6/id`.", TEXT),
    Parameter("lineage", "Those of all versions of a dataset: `CMIP6/id without its version`.", TEXT),
    Parameter("project", "Those of a project as a whole: `CMIP6`.", TEXT),
)
GRANTS: Final = (
    *_GRANTED_TO,
    Parameter(
        "state", "Open ones, which may have expired, closed ones, or all.",
        {"type": "string", "enum": ["open", "closed", "all"], "default": "open"},
    ),
    Parameter(
        "format", "With `ga4gh` those that are valid now, as the claims of visas.",
        {"type": "string", "enum": ["json", "ga4gh"], "default": "json"},
    ),
    _limit(50, 1000),
    _AFTER_ID,
)  # fmt: skip
WITHDRAWAL_REASON: Final = Parameter("reason", "Why, for the audit log and the event.", TEXT)
WITHDRAWN_GRANTS: Final = (*_GRANTED_TO, WITHDRAWAL_REASON)
GRANT_CHECK: Final = (
    Parameter("dataset", "The dataset: `CMIP6/id`.", TEXT, required=True),
    Parameter("subject", "Who wants the files, by the name that the logs have.", TEXT),
    Parameter("iss", "The issuer of their token, where the name is not known.", TEXT),
    Parameter("sub", "The subject of their token.", TEXT),
)
