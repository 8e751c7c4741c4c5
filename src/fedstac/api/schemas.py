"""The JSON Schemas of what the routes take and answer, by the names that OpenAPI gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fedstac.domain.events import EventFormat
from fedstac.domain.grants import GrantStand
from fedstac.domain.model import Outcome
from fedstac.domain.policy import Action
from fedstac.domain.reconcile import LoadChange, LoadMode

Schema = Mapping[str, Any]

TEXT: Final[Schema] = {"type": "string"}
MAYBE_TEXT: Final[Schema] = {"type": ["string", "null"]}
WHOLE: Final[Schema] = {"type": "integer"}
NUMBER: Final[Schema] = {"type": "number"}
MAYBE_NUMBER: Final[Schema] = {"type": ["number", "null"]}
YES_NO: Final[Schema] = {"type": "boolean"}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
MAYBE_TIME: Final[Schema] = {"type": ["string", "null"], "format": "date-time"}
ADDRESS: Final[Schema] = {"type": "string", "format": "uri"}
ID: Final[Schema] = {"type": "string", "format": "uuid"}
OBJECT: Final[Schema] = {"type": "object"}


def ref(name: str) -> Schema:
    """Return a reference to a component."""
    if name not in COMPONENTS:
        raise KeyError(name)
    return {"$ref": f"#/components/schemas/{name}"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _object(members: Mapping[str, Schema], *, maybe: Sequence[str] = (), description: str = "") -> Schema:
    """Return the schema of an object whose members are all there, but those in `maybe`."""
    schema: dict[str, Any] = {"type": "object", "properties": dict(members)}
    if required := [name for name in members if name not in maybe]:
        schema["required"] = required
    return schema | ({"description": description} if description else {})


def _enum(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


_LINKS = _list(_ref("Link"))
_COUNTS = _object({"queued": WHOLE, "done": WHOLE, "rejected": WHOLE, "failed": WHOLE})
_STATUS = _enum("queued", "done", "rejected", "failed")
_OUTCOME = {"type": ["string", "null"], "enum": [*(str(outcome) for outcome in Outcome), None]}
_NUMBERS_MATCHED = {
    "numberMatched": WHOLE, "numMatched": WHOLE, "numberReturned": WHOLE, "numReturned": WHOLE,
    "fedstac:number_matched_estimated": YES_NO, "fedstac:warnings": _list(_ref("Finding")),
}  # fmt: skip
_CONDITIONS = {
    "collections": _list(TEXT), "ids": _list(TEXT), "bbox": _list({"type": "number"}), "intersects": OBJECT,
    "datetime": TEXT, "q": {"oneOf": [TEXT, _list(TEXT)]}, "filter": {"type": ["object", "string"]},
    "filter-lang": _enum("cql2-json", "cql2-text"), "filter-crs": TEXT, "query": OBJECT,
    "retracted": _enum("exclude", "include", "only"),
}  # fmt: skip
_BULK_ACTION = _enum("mark", "unmark", "quarantine", "release")
_TALLY: Final[Schema] = {"type": "object", "additionalProperties": {"type": "integer"}}
_BULK_COUNTS = _object({"waiting": WHOLE, "done": WHOLE, "rejected": WHOLE, "failed": WHOLE, "cancelled": WHOLE})
_LOAD_MODE = _enum(*LoadMode)
_MAYBE_WHOLE = {"type": ["integer", "null"]}
_BULK_WISH: Final[Mapping[str, Schema]] = {
    "action": _BULK_ACTION, "reason": {**TEXT, "description": "Of a mark."},
    "quarantine": {**OBJECT, "description": "As for one dataset: reason, case, contact, links."},
    "decision": {**TEXT, "description": "Of a release."}, **_CONDITIONS,
}  # fmt: skip
_LOAD: Final[Mapping[str, Schema]] = {
    "id": ID, "collection": TEXT, "mode": _LOAD_MODE,
    "status": _enum("collecting", "comparing", "compared", "waiting", "running", "done", "partly", "rejected", "failed",
                    "cancelled"),
    "submitter": TEXT, "created": TIME, "stated": WHOLE,
    "progress": {**_object({"stated": WHOLE, "here": WHOLE}), "type": ["object", "null"],
                 "description": "While it is compared: datasets so far of those that are stated, and that are here."},
    "compared": MAYBE_TIME,
    "current": {**_MAYBE_WHOLE, "description": "Datasets that were here when it was compared."},
    "changes": {**_object({change.value: WHOLE for change in LoadChange}), "type": ["object", "null"]},
    "cleared": {**_MAYBE_WHOLE, "description": "Datasets that go, or are built again: their grants close."},
    "to_confirm": {**_MAYBE_WHOLE, "description": "What `confirm` has to say; null where it need not be said."},
    "bulk": {"type": ["string", "null"], "format": "uuid", "description": "The change of many that applies it."},
    "counts": {**_BULK_COUNTS, "type": ["object", "null"]}, "links": _LINKS,
}  # fmt: skip
_GRANT_TARGET: Final[Mapping[str, Schema]] = {
    "dataset": {**TEXT, "description": "`CMIP6/id`."},
    "lineage": {**TEXT, "description": "`CMIP6/id without its version`: all versions of a dataset."},
    "project": {**TEXT, "description": "`CMIP6`: all its datasets."},
}  # fmt: skip
_GEOMETRY = {"type": ["object", "null"], "description": "A GeoJSON geometry."}

COMPONENTS: Final[Mapping[str, Schema]] = {
    "Link": _object(
        {"rel": TEXT, "href": TEXT, "type": TEXT, "title": TEXT, "method": TEXT, "body": OBJECT},
        maybe=("type", "title", "method", "body"),
    ),
    "Finding": _object(
        {"rule": TEXT, "pointer": {**TEXT, "description": "A JSON pointer into what was sent."}, "message": TEXT,
         "severity": _enum("error", "warning"), "suggestion": TEXT, "detail": TEXT},
        maybe=("suggestion", "detail"), description="One thing that is wrong or doubtful.",
    ),
    "Problem": _object(
        {"type": ADDRESS, "title": TEXT, "status": WHOLE, "detail": TEXT, "instance": TEXT,
         "errors": _list(_ref("Finding")), "code": TEXT, "description": TEXT, "status_code": WHOLE,
         "home": _object({"node": MAYBE_TEXT, "href": ADDRESS}), "earliest": TEXT, "snapshot": ADDRESS,
         "cascade": ADDRESS},
        maybe=("cascade", "home", "earliest", "snapshot"), description="Why a request is refused (RFC 9457).",
    ),
    "ProblemType": _object({"type": ADDRESS, "name": TEXT, "status": WHOLE, "title": TEXT, "description": TEXT}),
    "ProblemTypes": _object({"problems": _list(_ref("ProblemType"))}),
    "LandingPage": _object(
        {"type": {"const": "Catalog"}, "stac_version": TEXT, "id": TEXT, "title": TEXT, "description": TEXT,
         "conformsTo": _list(TEXT), "links": _LINKS},
    ),
    "Conformance": _object({"conformsTo": _list(TEXT)}),
    "Queryables": _object(
        {"$id": TEXT, "$schema": TEXT, "type": TEXT, "title": TEXT, "properties": OBJECT,
         "additionalProperties": YES_NO},
        description="A JSON Schema whose properties can be named in a filter.",
    ),
    "Item": _object(
        {"type": {"const": "Feature"}, "stac_version": TEXT, "stac_extensions": _list(TEXT), "id": TEXT,
         "collection": MAYBE_TEXT, "geometry": _GEOMETRY, "bbox": _list({"type": "number"}), "properties": OBJECT,
         "links": _list(OBJECT), "assets": {"type": "object", "additionalProperties": OBJECT}},
        maybe=("stac_extensions", "collection", "geometry", "bbox", "links", "assets", "stac_version", "id",
               "properties"),
        description="A dataset: a STAC Item.",
    ),
    "ItemCollection": _object(
        {"type": {"const": "FeatureCollection"}, "features": _list(OBJECT), "links": _LINKS, **_NUMBERS_MATCHED},
        maybe=("fedstac:number_matched_estimated", "fedstac:warnings"),
    ),
    "Items": _object(
        {"type": {"const": "FeatureCollection"}, "features": _list(_ref("Item"))}, description="Datasets to publish."
    ),
    "History": _object(
        {"collection": TEXT, "id": TEXT, "versions": _list(_object(
            {"id": TEXT, "version": MAYBE_TEXT, "state": TEXT, "latest": YES_NO, "created": TIME, "updated": TIME,
             "origin": TEXT, "retraction": OBJECT, "href": ADDRESS}, maybe=("retraction",))),
         "events": _list(_object(
            {"event": TEXT, "time": TIME, "id": TEXT, "type": TEXT, "state": TEXT, "previous_state": MAYBE_TEXT,
             "latest": YES_NO, "retraction": OBJECT, "reason": MAYBE_TEXT, "actor": MAYBE_TEXT},
            maybe=("retraction", "reason", "actor"))),
         "links": _LINKS},
        description="The versions of a dataset and the events that they had, the newest first.",
    ),
    "DatasetIds": {
        "oneOf": [_list(TEXT), _object({"ids": _list(TEXT), "collections": _list(TEXT)}, maybe=("collections",))],
        "description": "Ids of at most 10 000 datasets.",
    },
    "DatasetId": {**TEXT, "description": "The id of a dataset, as JSON, on each line."},
    "Statuses": _object({"datasets": _list(_ref("Status"))}),
    "Status": _object(
        {"id": TEXT, "state": _enum("published", "retracted", "quarantined", "unknown"), "collection": TEXT,
         "latest": YES_NO, "latest_version": TEXT, "updated": TIME, "href": ADDRESS, "reason": TEXT, "errata": ADDRESS,
         "replaced_by": TEXT, "data": TEXT},
        maybe=("collection", "latest", "latest_version", "updated", "href", "reason", "errata", "replaced_by", "data"),
        description="How a dataset stands. Of an unknown one there is no more than its id.",
    ),
    "Search": _object(
        {**_CONDITIONS,
         "sortby": _list(_object({"field": TEXT, "direction": _enum("asc", "desc")}, maybe=("direction",))),
         "fields": _object({"include": _list(TEXT), "exclude": _list(TEXT)}, maybe=("include", "exclude")),
         "limit": {"type": "integer", "minimum": 1}, "token": TEXT, "access": _enum("metadata", "full")},
        maybe=(*_CONDITIONS, "sortby", "fields", "limit", "token", "access"),
    ),
    "CountsQuestion": _object(
        {**_CONDITIONS, "aggregations": _list(TEXT),
         "multi_select": {**YES_NO, "description": "The counts of a facet leave the conditions on it out."},
         "datetime_frequency_interval": {"const": "year"}},
        maybe=(*_CONDITIONS, "aggregations", "multi_select", "datetime_frequency_interval"),
    ),
    "Counts": _object(
        {"type": {"const": "AggregationCollection"}, "links": _LINKS, "fedstac:warnings": _list(_ref("Finding")),
         "aggregations": _list(_object(
             {"name": TEXT, "data_type": _enum("integer", "datetime", "frequency_distribution"),
              "value": {"type": ["integer", "string", "null"]},
              "buckets": _list(_object({"key": TEXT, "data_type": TEXT, "frequency": WHOLE})),
              "overflow": {**WHOLE, "description": "Datasets in no bucket, or in one that is left out."}},
             maybe=("value", "buckets", "overflow")))},
        maybe=("fedstac:warnings",), description="What is counted: a value each, or buckets.",
    ),
    "Aggregations": _object(
        {"type": {"const": "AggregationCollection"}, "links": _LINKS,
         "aggregations": _list(_object(
             {"name": TEXT, "data_type": TEXT, "frequency_distribution_data_type": TEXT, "title": TEXT,
              "property": TEXT}, maybe=("frequency_distribution_data_type", "property")))},
        description="The names of what can be counted.",
    ),
    "Collection": _object(
        {"type": {"const": "Collection"}, "stac_version": TEXT, "id": TEXT, "title": TEXT, "description": TEXT,
         "license": TEXT, "extent": OBJECT, "links": _list(OBJECT)},
        maybe=("title",), description="A project: a STAC Collection.",
    ),
    "Collections": _object(
        {"collections": _list(OBJECT), "numberMatched": WHOLE, "numberReturned": WHOLE, "links": _LINKS}
    ),
    "Children": _object(
        {"children": _list(_ref("Collection")), "numberMatched": WHOLE, "numberReturned": WHOLE, "links": _LINKS}
    ),
    "MergePatch": {"type": "object", "description": "Members to replace; null removes one (RFC 7396)."},
    "JsonPatch": {
        **_list(_object({"op": _enum("add", "remove", "replace", "move", "copy", "test"), "path": TEXT, "from": TEXT,
                         "value": {}}, maybe=("from", "value"))),
        "description": "Operations that are applied in their order, or not at all (RFC 6902).",
    },
    "Retraction": _object(
        {"reason": TEXT, "errata": ADDRESS, "replaced_by": TEXT, "data": _enum("keep", "restrict", "purge")},
        maybe=("reason", "errata", "replaced_by", "data"),
        description="Why a dataset must not be used. The reason is needed once; a repeat changes what it names.",
    ),
    "Quarantine": _object(
        {"reason": TEXT, "case": TEXT, "contact": TEXT, "links": _list(ADDRESS)}, maybe=("case", "contact", "links"),
        description="Why nobody should use a dataset for now, the number of the case, whom to ask, the correspondence.",
    ),
    "Deletion": _object(
        {"id": ID, "collection": TEXT, "dataset": TEXT, "event_id": ID,
         "state": _enum("open", "unmarked", "deleted", "purged"), "ready": YES_NO, "late": YES_NO,
         "reason": MAYBE_TEXT, "actor": MAYBE_TEXT, "marked_at": TIME, "grace_until": TIME, "automatic": YES_NO,
         "rules": {**WHOLE, "description": "The version of the project's rules; 0: it had none."},
         "identifiers": _list(TEXT), "ended_at": MAYBE_TIME, "ended_by": MAYBE_TEXT,
         "dependencies": _list(_object(
             {"name": TEXT, "required": YES_NO, "owns_identifier": YES_NO,
              "state": _enum("pending", "ok", "failed", "nothing to do", "waived"), "comment": MAYBE_TEXT,
              "contact": MAYBE_TEXT, "due": TIME, "late": YES_NO, "reported_at": MAYBE_TIME,
              "reminded_at": MAYBE_TIME, "reminders": WHOLE,
              "waivers": _list(_object({"actor": TEXT, "reason": TEXT, "at": TIME}))})),
         "missing": _list(_ref("Finding")),
         "history": _list(_object(
             {"at": TIME, "actor": TEXT, "action": TEXT, "outcome": TEXT, "detail": OBJECT}))},
        description="A mark for deletion, who has done their part, and what is missing before the dataset is deleted. "
                    "The list leaves the history empty. A node sees what it has to do itself.",
    ),
    "Deletions": _object(
        {"deletions": _list(_ref("Deletion")),
         "counts": _object({"open": WHOLE, "waiting": WHOLE, "ready": WHOLE, "late": WHOLE, "failed": WHOLE,
                            "unmarked": WHOLE, "deleted": WHOLE, "purged": WHOLE}),
         "links": _LINKS}
    ),
    "RunWish": _object({"project": TEXT}, maybe=("project",)),
    "DeletionRun": _object(
        {"ready": _list(_object({"project": TEXT, "count": WHOLE})),
         "requests": _list(_object({"id": ID, "project": TEXT, "total": WHOLE})), "more": YES_NO, "dry_run": YES_NO},
        description="What was ready, and the requests that delete it.",
    ),
    "WaiverWish": _object({"name": TEXT, "reason": TEXT}),
    "ReminderWish": _object({"names": _list(TEXT)}, maybe=("names",)),
    "NewDeletionRules": _object(
        {"dependencies": _list(_object(
             {"name": TEXT, "required": YES_NO, "days": NUMBER, "contact": MAYBE_TEXT, "owns_identifier": YES_NO},
             maybe=("required", "days", "contact", "owns_identifier"))),
         "grace_days": NUMBER, "automatic": YES_NO,
         "schedule": {**TEXT, "description": "HH:MM in UTC; empty: as soon as a dataset is ready."}},
        maybe=("dependencies", "grace_days", "automatic", "schedule"),
        description="Who does something when a dataset is deleted, and when it is deleted. `days`: then it is late.",
    ),
    "DeletionRules": _object(
        {"project": TEXT, "version": WHOLE, "actor": TEXT, "at": TIME, "rules": _ref("NewDeletionRules"),
         "versions": _list(_object({"project": TEXT, "version": WHOLE, "actor": TEXT, "at": TIME}))},
        maybe=("versions",),
    ),
    "AllDeletionRules": _object({"rules": _list(_ref("DeletionRules"))}),
    "AffectedDeletions": _object(
        {"project": TEXT, "version": WHOLE, "rules": _ref("NewDeletionRules"), "dry_run": YES_NO,
         "changes": _list(_object({"what": TEXT, "name": TEXT, "was": {}, "will": {}})),
         "open": {**WHOLE, "description": "Deletions of the project that are open."}, "applies_to_open": YES_NO,
         "first": _list(_object({"id": ID, "dataset": TEXT}))},
        description="What differs from the rules before, and the deletions of the project that are open.",
    ),
    "Tombstone": _object(
        {"collection": TEXT, "id": TEXT, "state": _enum("deleted", "purged"), "origin": TEXT, "deleted_at": TIME,
         "deleted_by": MAYBE_TEXT, "updated": TIME, "deletion": MAYBE_TEXT},
        description="What is left of a deleted dataset. `deleted_by` and `deletion`: at the node that deleted it.",
    ),
    "Tombstones": _object({"tombstones": _list(_ref("Tombstone")), "links": _LINKS}),
    "Quarantines": _object(
        {"quarantines": _list(_object(
             {"id": ID, "collection": TEXT, "dataset": TEXT, "reason": TEXT, "case": MAYBE_TEXT, "contact": MAYBE_TEXT,
              "links": _list(ADDRESS), "opened_at": TIME, "opened_by": TEXT, "decision": MAYBE_TEXT,
              "closed_at": MAYBE_TIME, "closed_by": MAYBE_TEXT})),
         "links": _LINKS}
    ),
    "Release": _object({"decision": MAYBE_TEXT}, maybe=("decision",), description="Why a quarantine ends."),
    "Replica": {
        "type": "object", "minProperties": 1, "additionalProperties": OBJECT,
        "description": "The node's entry for each asset: where the file is.",
    },
    "Accepted": _object(
        {"id": ID, "status": {"const": "queued"}, "total": WHOLE, "rejected": WHOLE, "links": _LINKS},
        description="A request that can be followed.",
    ),
    "Request": _object(
        {"id": ID, "status": _STATUS, "action": TEXT, "collection": TEXT, "total": WHOLE, "counts": _COUNTS,
         "outcomes": {"type": "object", "additionalProperties": WHOLE}, "warned": WHOLE, "unchanged": YES_NO,
         "created": TIME, "finished": MAYBE_TIME, "submitter": TEXT, "user_agent": MAYBE_TEXT,
         "correlation": MAYBE_TEXT, "cv_version": MAYBE_TEXT, "retry_of": ID, "position": {"type": ["integer", "null"]},
         "visible": _list(_object({"node": TEXT, "since": MAYBE_TIME})), "problems": _list(_ref("RequestItem")),
         "links": _LINKS, "cancelled": WHOLE},
        maybe=("retry_of", "cancelled"),
    ),
    "RequestItem": _object(
        {"n": WHOLE, "id": TEXT, "status": _STATUS, "outcome": _OUTCOME, "type": TEXT, "detail": MAYBE_TEXT,
         "deletion": ADDRESS, "findings": _list(_ref("Finding"))},
        maybe=("type", "detail", "deletion", "findings"),
    ),
    "RequestItems": _object({"items": _list(_ref("RequestItem")), "links": _LINKS}),
    "Requests": _object(
        {"requests": _list(_object({"id": ID, "status": _STATUS, "action": TEXT, "collection": TEXT, "total": WHOLE,
                                    "counts": _COUNTS, "cancelled": WHOLE, "created": TIME})),
         "links": _LINKS}
    ),
    "DryRun": _object(
        {"dry_run": {"const": True}, "valid": YES_NO, "cv_version": MAYBE_TEXT, "items": _list(OBJECT),
         "outcome": _OUTCOME, "findings": _list(_ref("Finding"))},
        maybe=("valid", "cv_version", "items", "outcome", "findings"),
        description="What would become of it.",
    ),
    "Unchanged": _object({"id": TEXT, "outcome": _OUTCOME}),
    "Done": {"anyOf": [_ref("Request"), _ref("DryRun"), _ref("Unchanged")]},
    "Vocabularies": _object(
        {"vocabularies": _list(_object({"project": TEXT, "version": TEXT, "digest": TEXT, "current": YES_NO,
                                        "links": _LINKS})), "links": _LINKS}
    ),
    "Vocabulary": {"type": "object", "description": "A snapshot of a project's terms and rules."},
    "Terms": _object(
        {"project": TEXT, "version": TEXT, "facet": TEXT, "terms": OBJECT, "pattern": TEXT}, maybe=("pattern",)
    ),
    "Validation": _object(
        {"valid": YES_NO,
         "items": _list(_object({"id": TEXT, "valid": YES_NO, "cv_version": MAYBE_TEXT,
                                 "findings": _list(_ref("Finding"))}))}
    ),
    "JsonSchema": {"type": "object", "description": "A JSON Schema."},
    "Me": _object(
        {"name": TEXT, "roles": _list(TEXT), "issuer": MAYBE_TEXT, "subject": MAYBE_TEXT, "expires": MAYBE_TIME,
         "full_name": MAYBE_TEXT, "email": MAYBE_TEXT, "client_id": MAYBE_TEXT, "scopes": _list(TEXT),
         "groups": _list(TEXT), "policy_error": MAYBE_TEXT, "own_groups": _list(TEXT), "rights": _list(OBJECT),
         "entitlements": _list(OBJECT)},
        maybe=("full_name", "email", "client_id", "scopes", "policy_error"),
    ),
    "Verdict": _object(
        {"allowed": YES_NO, "rule": MAYBE_TEXT, "reason": TEXT,
         "home": {"type": ["object", "null"]}, "principal": TEXT, "action": _enum(*Action), "item": TEXT,
         "project": TEXT, "institution": MAYBE_TEXT, "nodes": _list(TEXT)}
    ),
    "Resource": _object(
        {"resource": ADDRESS, "resource_name": TEXT, "bearer_methods_supported": _list(TEXT),
         "authorization_servers": _list(ADDRESS), "scopes_supported": _list(TEXT), "fedstac_logins": _list(OBJECT)},
        maybe=("authorization_servers", "scopes_supported"),
    ),
    "Scope": _object({"scope": TEXT}),
    "Group": _object(
        {"name": TEXT, "project": TEXT, "institution": TEXT, "title": TEXT, "created": TIME, "created_by": TEXT,
         "members": _list(TEXT), "managers": _list(TEXT), "links": _LINKS}
    ),
    "Groups": _object({"groups": _list(_ref("Group")), "links": _LINKS}),
    "NewGroup": _object({"name": TEXT, "project": TEXT, "institution": TEXT, "title": TEXT}, maybe=("title",)),
    "ChangedGroup": _object(
        {"name": TEXT, "project": TEXT, "institution": TEXT, "title": TEXT}, maybe=("name", "title")
    ),
    "Destination": _object(
        {"id": ID, "address": TEXT, "kind": TEXT, "on": _list(_enum("request", "dataset", "subscription")),
         "confirmed": MAYBE_TIME, "created": TIME, "owner": TEXT, "secret": TEXT},
        maybe=("secret",),
    ),
    "Destinations": _object({"destinations": _list(_ref("Destination"))}),
    "NewDestination": _object(
        {"address": {**TEXT, "description": "mailto:…, https://… or slack+https://…"},
         "on": _list(_enum("request", "dataset", "subscription"))},
        maybe=("on",),
    ),
    "CascadePreview": _object(
        {"dry_run": YES_NO, "collection": TEXT, "confirm": WHOLE, "lineages": WHOLE,
         "datasets": _object({"total": WHOLE, "by_state": {"type": "object", "additionalProperties": WHOLE}}),
         "files": _object({"count": WHOLE, "bytes": WHOLE}),
         "replicas": _list(_object({"node": TEXT, "datasets": WHOLE, "files": WHOLE})),
         "own_groups": _object({"groups": WHOLE, "memberships": WHOLE}),
         "requests": _object({"waiting_items": WHOLE}),
         "notifications": _object({"destinations": WHOLE, "awaited": WHOLE})},
        description="What the deletion of a collection with its datasets affects. `confirm` is the number to send.",
    ),
    "Cascade": _object(
        {"id": ID, "collection": TEXT, "state": _enum("marking", "waiting", "done", "cancelled"), "reason": TEXT,
         "actor": TEXT, "begun_at": TIME, "ended_at": MAYBE_TIME, "ended_by": MAYBE_TEXT, "datasets": WHOLE,
         "to_mark": WHOLE, "marked": WHOLE, "deleted": WHOLE, "refused": WHOLE, "refusal": MAYBE_TEXT},
        description="The deletion of a collection with its datasets. The id is that of the event that announced it.",
    ),
    "Confirmation": _object({"code": TEXT}),
    "Queued": _object({"status": {"const": "queued"}}),
    "Sink": _object(
        {"name": TEXT, "address": TEXT, "format": _enum(*EventFormat), "key": TEXT,
         "required": YES_NO, "stand": _enum("sending", "failing", "paused", "lapsed"), "through": TEXT, "sent": WHOLE,
         "sent_at": MAYBE_TIME, "paused": MAYBE_TEXT, "errors": WHOLE, "failing_since": MAYBE_TIME,
         "last_error": MAYBE_TEXT, "created": TIME, "secret": TEXT},
        maybe=("secret",),
    ),
    "NewGrant": _object(
        {"subject": {"oneOf": [TEXT, _object({"iss": TEXT, "sub": TEXT})]}, **_GRANT_TARGET,
         "valid_from": MAYBE_TIME, "valid_until": TIME},
        maybe=("dataset", "lineage", "project", "valid_from"),
        description="A grant for one of dataset, lineage and project. Without `valid_from` it holds at once.",
    ),
    "NewGrants": _object({"grants": _list(_ref("NewGrant"))}),
    "Grant": _object(
        {"id": ID, "subject": TEXT, **_GRANT_TARGET, "valid_from": TIME, "valid_until": TIME,
         "stand": _enum(*GrantStand), "given_at": TIME, "given_by": TEXT, "closed_at": MAYBE_TIME,
         "closed_by": MAYBE_TEXT, "closed_why": MAYBE_TEXT,
         "cause": {"type": ["string", "null"], "format": "uuid", "description": "The event that closed it."}},
        maybe=("dataset", "lineage", "project"),
    ),
    "Grants": _object(
        {"grants": _list(_ref("Grant")), "visas": _list(_ref("Visa")), "links": _LINKS}, maybe=("grants", "visas")
    ),
    "Visa": _object(
        {"iss": TEXT, "sub": TEXT, "jti": TEXT, "iat": WHOLE, "nbf": WHOLE, "exp": WHOLE,
         "ga4gh_visa_v1": _object(
             {"type": _enum("ControlledAccessGrants"), "asserted": WHOLE, "value": ADDRESS, "source": ADDRESS,
              "by": _enum("dac")})},
        description="The claims of a visa as in GA4GH Passport 1.2; they are not signed.",
    ),
    "GrantImport": _object(
        {"given": WHOLE, "present": WHOLE,
         "refused": _list(_object({"line": WHOLE, "problem": TEXT, "detail": TEXT}))},
        description="How many were given and were there already, and the lines that were refused, numbered from 1.",
    ),
    "PrivateDatasets": _object(
        {"datasets": _list(_object({
            "collection": TEXT, "id": TEXT, "state": _enum("published", "retracted", "quarantined"), "updated": TIME,
            "href": ADDRESS,
        })), "links": _LINKS},
        description="Private datasets that the caller has a right to.",
    ),
    "GrantCheck": _object({"dataset": TEXT, "valid_until": MAYBE_TIME}),
    "WithdrawnGrants": _object({"withdrawn": WHOLE}),
    "Sinks": _object({"sinks": _list(_ref("Sink"))}),
    "NewSink": _object(
        {"name": TEXT, "address": TEXT, "format": _enum(*EventFormat), "key": TEXT,
         "required": YES_NO, "from": TEXT},
        maybe=("format", "key", "required", "from"),
    ),
    "Pause": _object({"reason": TEXT}, maybe=("reason",)),
    "Seek": _object({"to": {"type": ["string", "integer"]}}),
    "SinkAuditWish": _object({"full": YES_NO, "list": YES_NO}, maybe=("full", "list")),
    "SinkAudit": _object(
        {"sink": TEXT, "through": WHOLE, "proof": _enum("counters", "messages"),
         "messages": {"type": ["integer", "null"]}, "missing": WHOLE, "holes": _list(_list(WHOLE)),
         "lost": _list(_list(WHOLE)), "repeats": WHOLE, "foreign": WHOLE}
    ),
    "DeadLetter": _object(
        {"id": WHOLE, "sink": TEXT, "place": TEXT, "event_id": TEXT, "type": TEXT, "collection": TEXT,
         "dataset": MAYBE_TEXT, "reason": TEXT, "attempts": WHOLE, "redrive_at": MAYBE_TIME, "at": TIME,
         "event": _ref("Event")},
        maybe=("event",),
    ),
    "DeadLetters": _object({"dead_letters": _list(_ref("DeadLetter"))}),
    "EventFilter": _object(
        {"collections": _list(TEXT), "types": _list(TEXT), "cql2": {"type": ["string", "object", "boolean"]},
         "bbox": _list(NUMBER)},
        maybe=("collections", "types", "cql2", "bbox"),
        description="Which events somebody wants. Of a dataset, cql2 and bbox are asked before and after a change.",
    ),
    "NewSubscription": _object(
        {"delivery": _enum("pull", "webhook"), "url": MAYBE_TEXT, "format": _enum(*EventFormat), "key": TEXT,
         "filter": _ref("EventFilter"), "batch": WHOLE, "from": TEXT},
        maybe=("delivery", "url", "format", "key", "filter", "batch", "from"),
    ),
    "Subscription": _object(
        {"name": TEXT, "owner": TEXT, "delivery": _enum("pull", "webhook"), "url": MAYBE_TEXT,
         "format": _enum(*EventFormat), "key": TEXT, "filter": _ref("EventFilter"), "batch": WHOLE, "cursor": TEXT,
         "stand": _enum("active", "failing", "paused", "ended"), "leased_until": MAYBE_TIME, "waiting": WHOLE,
         "dead_letters": WHOLE, "delivered": WHOLE, "delivered_at": MAYBE_TIME, "errors": WHOLE,
         "failing_since": MAYBE_TIME, "last_error": MAYBE_TEXT, "reason": MAYBE_TEXT, "created": TIME,
         "updated": TIME,
         "rights_until": {**MAYBE_TIME, "description": "Put it again by then: so long count groups of its owner."},
         "secret": TEXT},
        maybe=("secret",),
    ),
    "Subscriptions": _object({"subscriptions": _list(_ref("Subscription")), "links": _LINKS}),
    "SubscriberEvent": _object(
        {"cursor": TEXT, "event_id": ID, "kind": _enum("entered", "changed", "left"), "type": TEXT, "key": TEXT,
         "headers": {"type": "object", "additionalProperties": TEXT},
         "value": {"description": "As the format has it: AsyncAPI says more."}}
    ),
    "NextEvents": _object(
        {"cursor": TEXT, "lease": ID, "leased_until": TIME, "events": _list(_ref("SubscriberEvent"))},
        maybe=("lease", "leased_until"),
    ),
    "Ack": _object({"cursor": TEXT, "lease": ID}, maybe=("lease",)),
    "AckedPlace": _object({"cursor": TEXT, "leased_until": MAYBE_TIME}),
    "Nack": _object({"event_id": TEXT, "reason": TEXT, "retry_in": NUMBER}, maybe=("reason", "retry_in")),
    "MissedEvent": _object(
        {"id": WHOLE, "place": TEXT, "event_id": TEXT, "type": TEXT, "collection": TEXT, "dataset": MAYBE_TEXT,
         "reason": TEXT, "attempts": WHOLE, "retry_at": MAYBE_TIME, "dead_at": MAYBE_TIME}
    ),
    "MissedEvents": _object({"dead_letters": _list(_ref("MissedEvent")), "links": _LINKS}),
    "SubscriptionSeek": _object({"cursor": TEXT, "time": TIME}, maybe=("cursor", "time")),
    "Changes": _object(
        {"cursor": TEXT, "links": _LINKS, "changes": _list(_ref("SubscriberEvent")),
         "unwritable": _list(_object(
             {"cursor": TEXT, "event_id": ID, "collection": TEXT, "dataset": MAYBE_TEXT, "reason": TEXT},
             description="A change that the format cannot write, and why.",
         ))}
    ),
    "ParkedEvent": _object(
        {"id": WHOLE, "consumer": TEXT, "origin": TEXT, "subject": TEXT, "event_id": TEXT, "epoch": WHOLE,
         "seq": WHOLE, "pos": WHOLE, "outcome": _enum("parked", "rejected"), "detail": TEXT, "attempts": WHOLE,
         "requeued_at": MAYBE_TIME, "at": TIME, "event": {"type": "object"}},
        maybe=("event",),
    ),
    "ParkedEvents": _object({"parked_events": _list(_ref("ParkedEvent"))}),
    "LetterIds": _object({"ids": _list(WHOLE)}),
    "BulkWish": _object(_BULK_WISH, maybe=[name for name in _BULK_WISH if name != "action"]),
    "NewBulk": _object(
        {**_BULK_WISH, "digest": {**TEXT, "description": "What the preview answered with."}},
        maybe=[name for name in _BULK_WISH if name != "action"],
    ),
    "BulkPreview": _object(
        {"action": _BULK_ACTION, "total": WHOLE, "collections": _TALLY, "institutions": _TALLY, "publishers": _TALLY,
         "states": _TALLY, "marked": WHOLE, "unchanged": WHOLE, "refused": WHOLE, "with_replicas": WHOLE,
         "with_newer_version": WHOLE, "with_identifier": WHOLE,
         "missing": {**WHOLE, "description": "Ids that name no dataset here."}, "ids": _list(TEXT), "digest": TEXT,
         "warnings": _list(_ref("Finding"))},
        maybe=("missing",),
    ),
    "Bulk": _object(
        {"id": ID, "action": _enum("mark", "unmark", "quarantine", "release", "reconcile"),
         "status": _enum("waiting", "running", "done", "partly", "rejected", "failed", "cancelled"),
         "reason": TEXT, "quarantine": OBJECT, "decision": TEXT,
         "mode": {**_LOAD_MODE, "description": "Of a full-state load."}, "override": TEXT,
         "selection": OBJECT, "total": WHOLE,
         "counts": _BULK_COUNTS,
         "rate": {**MAYBE_NUMBER, "description": "Datasets a second."}, "seconds_left": MAYBE_NUMBER,
         "submitter": TEXT, "created": TIME, "finished": MAYBE_TIME, "cancelled_by": MAYBE_TEXT, "links": _LINKS},
        maybe=("reason", "quarantine", "decision", "mode", "override"),
    ),
    "Bulks": _object({"bulks": _list(_ref("Bulk")), "links": _LINKS}),
    "BulkDatasets": _object(
        {"datasets": _list(_object(
            {"n": WHOLE, "collection": TEXT, "id": TEXT,
             "status": _enum("waiting", "done", "rejected", "failed", "cancelled"), "outcome": MAYBE_TEXT,
             "type": TEXT, "detail": TEXT},
            maybe=("type", "detail"),
         )), "links": _LINKS}
    ),
    "Load": _object(
        {**_LOAD,
         "parts": _list(_object({"n": WHOLE, "digest": {**TEXT, "description": "SHA-256 of the body, hexadecimal."},
                                 "datasets": WHOLE})),
         "examples": {**OBJECT, "description": "The first ids, by change."}},
    ),
    "Loads": _object({"loads": _list(_object(_LOAD)), "links": _LINKS}),
    "LoadDatasets": _object(
        {"datasets": _list(_object(
            {"id": TEXT, "change": {"type": ["string", "null"], "enum": [*LoadChange, None]}, "type": TEXT,
             "detail": TEXT},
            maybe=("type", "detail"),
         )), "links": _LINKS}
    ),
    "Event": {"type": "object", "description": "A CloudEvent: one change of one dataset, with its whole new state."},
    "Events": _list(_ref("Event")),
    "Lines": {"type": "string", "description": "A JSON document on each line."},
    "Stream": {"type": "string", "description": "Server-Sent Events: `id` is the cursor, `data` the event."},
    "File": {"type": "string", "description": "A file of a page."},
    "Page": {"type": "string", "description": "A page for people."},
    "Head": _object(
        {"origin": TEXT, "cursor": TEXT, "nodes": _list(_object({"node": TEXT, "through": TEXT}))}
    ),
    "Acknowledgement": _object(
        {"node": TEXT, "consumer": TEXT, "epoch": WHOLE, "through": WHOLE,
         "exceptions": _list(_object({"event_id": TEXT,
                                      "outcome": _enum("applied", "ignored", "rejected", "parked"), "detail": TEXT},
                                     maybe=("detail",))),
         "reports": _list(_ref("DeletionReport"))},
        maybe=("node", "consumer", "exceptions", "reports"),
    ),
    "DeletionReports": _object({"reports": _list(_ref("DeletionReport"))}),
    "DeletionReport": _object(
        {"event_id": ID, "collection": TEXT, "dataset": TEXT, "name": TEXT,
         "outcome": _enum("ok", "failed", "nothing to do"), "comment": TEXT},
        maybe=("event_id", "collection", "dataset", "name", "comment"),
        description="How far a node or service is with its part of a deletion. It names the event that announced the "
        "mark, or the collection and the dataset. `name` is the caller's node, or <node>/<consumer>.",
    ),
    "DeletionReportAnswers": _object({"reports": _list(_ref("DeletionReportAnswer"))}),
    "DeletionReportAnswer": _object(
        {"event_id": ID, "collection": TEXT, "dataset": TEXT, "name": TEXT,
         "outcome": _enum("ok", "failed", "nothing to do"),
         "result": _enum("stored", "unchanged", "too late", "not asked"), "state": MAYBE_TEXT, "detail": MAYBE_TEXT},
        maybe=("event_id", "collection", "dataset"),
    ),
    "AsyncApi": _object({"asyncapi": TEXT, "info": OBJECT, "channels": OBJECT, "operations": OBJECT}),
    "DaprSubscriptions": _list(_object({"pubsubname": TEXT, "topic": TEXT, "route": TEXT})),
    "DaprReports": _object(
        {"specversion": TEXT, "id": TEXT, "source": TEXT, "type": TEXT, "time": TEXT,
         "data": {"anyOf": [_ref("DeletionReports"), _ref("CrudOperation")]}},
        maybe=("specversion", "id", "source", "type", "time"),
        description="A CloudEvent as a Dapr sidecar posts it; other attributes of it are passed over.",
    ),
    "CrudOperation": _object(
        {"operation": _enum("CREATE", "UPDATE", "DELETE"), "id": TEXT, "ids": _list(TEXT), "collection": TEXT,
         "event_id": ID, "name": TEXT, "comment": TEXT},
        maybe=("id", "ids", "collection", "event_id", "name", "comment"),
        description="What the caller did with datasets of a collection, as the format `crud` says it. DELETE is a "
        "report on their deletions: the caller's part is done. `event_id` names the event that marked one of them.",
    ),
    "DaprAnswer": _object(
        {"status": _enum("SUCCESS", "DROP"), "detail": TEXT, "reports": _list(_ref("DeletionReportAnswer"))},
        maybe=("detail", "reports"),
    ),
    "Snapshot": _object({"origin": TEXT, "cursor": TEXT, "next": MAYBE_TEXT, "entries": _list(OBJECT)}),
    "SnapshotOrManifest": {"anyOf": [_ref("Snapshot"), _ref("SnapshotManifest")]},
    "SnapshotManifest": _object(
        {"fedstac_snapshot": WHOLE, "origin": TEXT, "cursor": TEXT, "created": TEXT, "bytes": WHOLE,
         "rows": {"type": "object", "additionalProperties": WHOLE},
         "parts": _list(_object({"name": TEXT, "kind": _enum("vocabulary", "collections", "records", "changes"),
                                 "sha256": TEXT, "bytes": WHOLE, "rows": WHOLE, "groups": WHOLE}))}
    ),
    "DataFile": {"type": "string", "format": "binary", "description": "A file."},
    "Digests": _object({"origin": TEXT, "cursor": TEXT, "entries": _list(OBJECT)}),
    "Ready": _object(
        {"status": _enum("ready", "not ready"), "node": TEXT, "roles": _list(TEXT),
         "checks": {"type": "object", "additionalProperties": _object({"ok": YES_NO, "detail": TEXT})}},
    ),
    "Health": _object(
        {"status": _enum("ok", "degraded"), "node": TEXT, "version": TEXT, "database": TEXT, "reasons": _list(TEXT),
         "columns": _enum("ready", "loading", "off"),
         "parts": {"type": "object",
                   "additionalProperties": _object({"running": WHOLE, "wanted": WHOLE, "restarts": WHOLE})}}
    ),
    "Federation": _object(
        {"status": _enum("ok", "degraded"), "node": TEXT, "version": TEXT, "reasons": _list(TEXT),
         "roles": _list(TEXT), "queue": _object({"items": WHOLE, "oldest_seconds": NUMBER}),
         "feed": _object({"cursor": TEXT, "earliest": WHOLE, "waiting": WHOLE, "waiting_seconds": NUMBER,
                          "partitions_ahead": WHOLE}),
         "sinks": _list(_object({"name": TEXT, "address": TEXT, "through": TEXT, "lag_events": WHOLE,
                                 "lag_seconds": NUMBER, "clear_seconds": MAYBE_NUMBER, "dead_letters": WHOLE,
                                 "paused": MAYBE_TEXT})),
         "consumers": _list(_object({"name": TEXT, "through": TEXT, "lag_events": WHOLE, "lag_seconds": NUMBER,
                                     "clear_seconds": MAYBE_NUMBER, "silent_seconds": NUMBER})),
         "follows": _list(_object({"consumer": TEXT, "origin": TEXT, "through": TEXT, "parked": WHOLE,
                                   "idle_seconds": NUMBER}))}
    ),
    "Metrics": TEXT,
    "Pong": _object({"message": {"const": "PONG"}}),
    "Up": _object({"status": {"const": "UP"}}),
    "OpenApi": {"type": "object", "description": "This document."},
}  # fmt: skip
