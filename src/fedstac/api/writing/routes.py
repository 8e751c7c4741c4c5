"""The routes that write: collections, datasets, and the requests that become of it."""

from __future__ import annotations

from fedstac.api import parameters
from fedstac.api.capability import Capability
from fedstac.api.people import options
from fedstac.api.route import GEOJSON, JSON, NOT_MODIFIED, Access, Answer, BodyFormat, Route, Size
from fedstac.api.search.routes import ALLOWED, BAD_TOKEN, ITEM, ITEMS
from fedstac.api.writing import bulk, changes, collections, items, loads, requests, retries
from fedstac.domain.errors import (
    BadRequest,
    BulkChanged,
    BulkDoesNotExist,
    CollectionAlreadyExists,
    CollectionClosing,
    CollectionDoesNotExist,
    CollectionNotEmpty,
    Conflict,
    DeletionNotReady,
    ForeignOrigin,
    IdempotencyKeyReused,
    ItemAlreadyExists,
    ItemDoesNotExist,
    LoadDoesNotExist,
    LoadNotConfirmed,
    MarkedForDeletion,
    Misdirected,
    MissingPermission,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    RequestDoesNotExist,
    StacInvalid,
    UnderQuarantine,
)
from fedstac.domain.policy import Action

COLLECTIONS_PATH, COLLECTION = "/collections", "/collections/{collection_id}"
LINES = "application/x-ndjson"
_PATCH = {
    JSON: ("MergePatch", "JsonPatch"),
    "application/merge-patch+json": ("MergePatch",),
    "application/json-patch+json": ("JsonPatch",),
}
_COLLECTION = BodyFormat.of("Collection")
_DATASET = BodyFormat(Size.ITEM, {JSON: ("Item",), GEOJSON: ("Item",)})
_DATASETS = BodyFormat(Size.BATCH, {JSON: ("Item", "Items"), GEOJSON: ("Item", "Items"), LINES: ("Lines",)})
_RETRACTION = BodyFormat.of("Retraction", size=Size.ITEM, is_required=False)
_CREATED = Answer.of(201, "The new collection.", "Collection", headers=("ETag", "Last-Modified", "Location"))
_CHANGED = Answer.of(200, "The collection as it is now.", "Collection", headers=("ETag", "Last-Modified", "Location"))
_ACCEPTED = Answer(
    202, "Accepted: a request that can be followed. ESGF's publisher gets this status for what changes nothing, too.",
    {JSON: "Accepted", GEOJSON: "Item"}, headers=("Location", "Retry-After"),
)  # fmt: skip
_NEW = Answer.of(201, "With `Prefer: wait`: the new dataset.", "Item", media_type=GEOJSON,
                 headers=("Location", "Link", "Preference-Applied"))  # fmt: skip
_DONE = Answer(
    200, "With `Prefer: wait`: the dataset, or the final request of a batch. Else a dry run, or what changed nothing.",
    {GEOJSON: "Item", JSON: "Done"}, headers=("Location", "Link", "Preference-Applied"),
)  # fmt: skip
WRITTEN = (_DONE, _NEW, _ACCEPTED)
_OF_COLLECTION = (CollectionDoesNotExist, ForeignOrigin, Conflict, PreconditionFailed, StacInvalid)
_OF_PUBLISHING = (
    StacInvalid, CollectionDoesNotExist, CollectionClosing, ForeignOrigin, ItemAlreadyExists, Conflict, Misdirected,
    PreconditionFailed, IdempotencyKeyReused,
)  # fmt: skip
_OF_CHANGE = (ItemDoesNotExist, *_OF_PUBLISHING, PreconditionRequired, MarkedForDeletion, UnderQuarantine)

COLLECTIONS = Capability(
    name="collections",
    description="Projects, which STAC calls collections.",
    conformance_classes=("https://api.stacspec.org/v1.0.0/collections/extensions/transaction",),
    routes=(
        Route(
            method="POST", path=COLLECTIONS_PATH, handler=collections.post_collection, access=Access.RIGHT,
            right=Action.COLLECTIONS, body=_COLLECTION, answers=(_CREATED,),
            problems=(CollectionAlreadyExists, StacInvalid, Conflict), log_name="create",
        ),
        Route(
            method="GET", path=COLLECTION, handler=collections.get_collection, access=Access.PUBLIC,
            parameters=(parameters.IF_NONE_MATCH,),
            answers=(
                Answer.of(200, "The collection.", "Collection", headers=("ETag", "Last-Modified")), NOT_MODIFIED,
            ),
            problems=(CollectionDoesNotExist,),
        ),
        Route(
            method="PUT", path=COLLECTION, handler=collections.put_collection, access=Access.RIGHT,
            right=Action.COLLECTIONS, parameters=(parameters.IF_MATCH,), body=_COLLECTION, answers=(_CHANGED,),
            problems=_OF_COLLECTION, log_name="update",
        ),
        Route(
            method="PATCH", path=COLLECTION, handler=collections.patch_collection, access=Access.RIGHT,
            right=Action.COLLECTIONS, parameters=(parameters.IF_MATCH,), body=BodyFormat(Size.SMALL, _PATCH),
            answers=(_CHANGED,), problems=_OF_COLLECTION, log_name="update",
        ),
        Route(
            method="DELETE", path=COLLECTION, handler=collections.delete_collection, access=Access.RIGHT,
            right=Action.COLLECTIONS, parameters=(parameters.IF_MATCH, *parameters.CASCADE),
            answers=(
                Answer.of(200, "Dry run of a cascade: what is affected.", "CascadePreview"),
                Answer.of(202, "The cascade has begun.", "Cascade", headers=("Location",)),
                Answer(204, "The collection is gone."),
            ),
            problems=(
                BadRequest, CollectionDoesNotExist, CollectionNotEmpty, CollectionClosing, Conflict, ForeignOrigin,
                Misdirected, PreconditionFailed,
            ),
            log_name="delete",
        ),
        Route(
            method="GET", path=COLLECTION + "/cascade", handler=collections.get_cascade, access=Access.RIGHT,
            right=Action.COLLECTIONS, answers=(Answer.of(200, "How far it is.", "Cascade"),), problems=(NotFound,),
        ),
        Route(
            method="DELETE", path=COLLECTION + "/cascade", handler=collections.delete_cascade, access=Access.RIGHT,
            right=Action.COLLECTIONS, answers=(Answer.of(200, "It is cancelled.", "Cascade"),),
            problems=(NotFound, CollectionDoesNotExist, ForeignOrigin), log_name="cancel-cascade",
        ),
        Route(
            method="OPTIONS", path=COLLECTIONS_PATH, handler=options.options_collections, access=Access.PUBLIC,
            answers=(ALLOWED,), problems=BAD_TOKEN,
        ),
        Route(
            method="OPTIONS", path=COLLECTION, handler=options.options_collection, access=Access.PUBLIC,
            answers=(ALLOWED,), problems=(CollectionDoesNotExist, *BAD_TOKEN),
        ),
    ),
)  # fmt: skip

TRANSACTIONS = Capability(
    name="transactions",
    description="Publish and change datasets: the transaction extension of STAC API.",
    conformance_classes=(
        "https://api.stacspec.org/v1.0.0/ogcapi-features/extensions/transaction",
        "http://www.opengis.net/spec/ogcapi-features-4/1.0/conf/simpletx",
    ),
    routes=(
        Route(
            method="POST", path=ITEMS, handler=items.post_items, access=Access.ACTION,
            parameters=(parameters.ONLY_NEW, *parameters.WRITE), body=_DATASETS, answers=WRITTEN,
            problems=_OF_PUBLISHING, log_name="publish", is_hot=True,
        ),
        Route(
            method="PUT", path=ITEM, handler=changes.put_item, access=Access.ACTION,
            parameters=(parameters.OVERRIDE, *parameters.CHANGE), body=_DATASET, answers=WRITTEN,
            problems=_OF_CHANGE, log_name="amend",
        ),
        Route(
            method="PATCH", path=ITEM, handler=changes.patch_item, access=Access.ACTION,
            parameters=(parameters.OVERRIDE, *parameters.CHANGE), body=BodyFormat(Size.ITEM, _PATCH),
            answers=WRITTEN, problems=_OF_CHANGE, log_name="amend",
        ),
        Route(
            method="DELETE", path=ITEM, handler=changes.delete_item, access=Access.ACTION,
            parameters=(parameters.REASON, *parameters.CHANGE), answers=WRITTEN, problems=_OF_CHANGE,
            log_name="mark",
        ),
    ),
)  # fmt: skip

ACTIONS = Capability(
    name="actions",
    description="What can be done to a dataset beside publishing and changing it.",
    routes=(
        Route(
            method="POST", path=ITEM + "/retract", handler=changes.post_retract, access=Access.ACTION,
            parameters=parameters.CHANGE, body=_RETRACTION, answers=WRITTEN, problems=_OF_CHANGE, log_name="retract",
        ),
        Route(
            method="POST", path=ITEM + "/reinstate", handler=changes.post_reinstate, access=Access.ACTION,
            parameters=parameters.CHANGE, answers=WRITTEN, problems=_OF_CHANGE, log_name="reinstate",
        ),
        Route(
            method="POST", path=ITEM + "/unmark", handler=changes.post_unmark, access=Access.ACTION,
            parameters=parameters.CHANGE, answers=WRITTEN, problems=_OF_CHANGE, log_name="unmark",
        ),
        Route(
            method="POST", path=ITEM + "/quarantine", handler=changes.post_quarantine, access=Access.ACTION,
            parameters=parameters.CHANGE, body=BodyFormat.of("Quarantine", size=Size.ITEM), answers=WRITTEN,
            problems=_OF_CHANGE, log_name="quarantine",
        ),
        Route(
            method="POST", path=ITEM + "/release", handler=changes.post_release, access=Access.ACTION,
            parameters=parameters.CHANGE, body=BodyFormat.of("Release", size=Size.ITEM, is_required=False),
            answers=WRITTEN, problems=_OF_CHANGE, log_name="release",
        ),
        Route(
            method="POST", path=ITEM + "/delete", handler=changes.post_delete, access=Access.ACTION,
            parameters=parameters.CHANGE, answers=WRITTEN, problems=(*_OF_CHANGE, DeletionNotReady),
            log_name="delete",
        ),
        Route(
            method="POST", path=ITEM + "/purge", handler=changes.post_purge, access=Access.ACTION,
            parameters=parameters.CHANGE, answers=WRITTEN, problems=_OF_CHANGE, log_name="purge",
        ),
        Route(
            method="PUT", path=ITEM + "/replicas/{node}", handler=changes.put_replica, access=Access.ACTION,
            parameters=parameters.CHANGE, body=BodyFormat.of("Replica", size=Size.ITEM), answers=WRITTEN,
            problems=_OF_CHANGE, log_name="amend",
        ),
        Route(
            method="DELETE", path=ITEM + "/replicas/{node}", handler=changes.delete_replica, access=Access.ACTION,
            parameters=parameters.CHANGE, answers=WRITTEN, problems=_OF_CHANGE, log_name="amend",
        ),
    ),
)  # fmt: skip

REQUESTS = Capability(
    name="requests",
    description="Follow accepted requests, take them back, try what was refused again.",
    routes=(
        Route(
            method="GET", path="/requests", handler=requests.get_requests, access=Access.AUTHENTICATED,
            parameters=parameters.REQUESTS_PAGE,
            answers=(Answer.of(200, "A page of the caller's requests, the newest first.", "Requests"),),
        ),
        Route(
            method="GET", path="/requests/{request_id}", handler=requests.get_request, access=Access.AUTHENTICATED,
            answers=(Answer.of(200, "The request.", "Request"),), problems=(RequestDoesNotExist,),
        ),
        Route(
            method="GET", path="/requests/{request_id}/items", handler=requests.get_request_items,
            access=Access.AUTHENTICATED, parameters=parameters.RESULTS_PAGE,
            answers=(Answer.of(200, "A page of results, in the order of the batch.", "RequestItems"),),
            problems=(RequestDoesNotExist,),
        ),
        Route(
            method="POST", path="/requests/{request_id}/cancel", handler=retries.post_cancel,
            access=Access.AUTHENTICATED,
            answers=(Answer.of(200, "The request as it is now, and how many items were cancelled.", "Request"),),
            problems=(RequestDoesNotExist,),
        ),
        Route(
            method="POST", path="/requests/{request_id}/retry", handler=retries.post_retry,
            access=Access.AUTHENTICATED,
            parameters=(parameters.ONLY_NEW, parameters.KEY, parameters.PREFER, parameters.NOTIFY),
            answers=WRITTEN, problems=(RequestDoesNotExist, *_OF_CHANGE),
        ),
    ),
)  # fmt: skip
_BULK = "/bulk/{bulk_id}"
_ONE_BULK = Answer.of(200, "The change, as it stands.", "Bulk")

BULK = Capability(
    name="bulk",
    description="Mark, unmark, quarantine or release many datasets at once, after a look at what that comes to.",
    routes=(
        Route(
            method="POST", path="/bulk/preview", handler=bulk.post_preview, access=Access.AUTHENTICATED, reads=True,
            body=BodyFormat.of("BulkWish", size=Size.IDS),
            answers=(Answer.of(200, "What the change would do.", "BulkPreview"),),
            problems=(StacInvalid, MissingPermission, Misdirected, UnderQuarantine),
        ),
        Route(
            method="POST", path="/bulk", handler=bulk.post_bulk, access=Access.AUTHENTICATED,
            body=BodyFormat.of("NewBulk", size=Size.IDS), log_name="bulk",
            answers=(
                Answer.of(202, "The change begins.", "Bulk", headers=("Location",)),
                Answer.of(200, "The change, which was asked for already.", "Bulk", headers=("Location",)),
            ),
            problems=(StacInvalid, MissingPermission, Misdirected, UnderQuarantine, Conflict, BulkChanged),
        ),
        Route(
            method="GET", path="/bulk", handler=bulk.get_bulks, access=Access.AUTHENTICATED,
            parameters=parameters.BULK_PAGE,
            answers=(Answer.of(200, "A page of changes, the newest first.", "Bulks"),),
            problems=(BulkDoesNotExist,),
        ),
        Route(
            method="GET", path=_BULK, handler=bulk.get_bulk, access=Access.AUTHENTICATED, answers=(_ONE_BULK,),
            problems=(BulkDoesNotExist,),
        ),
        Route(
            method="GET", path=_BULK + "/datasets", handler=bulk.get_bulk_datasets, access=Access.AUTHENTICATED,
            parameters=parameters.BULK_RESULTS,
            answers=(Answer.of(200, "A page of results, in the order of the work.", "BulkDatasets"),),
            problems=(BulkDoesNotExist,),
        ),
        Route(
            method="POST", path=_BULK + "/cancel", handler=bulk.post_cancel, access=Access.AUTHENTICATED,
            answers=(_ONE_BULK,), problems=(BulkDoesNotExist, Conflict),
        ),
    ),
)  # fmt: skip
_LOAD = "/loads/{load_id}"
_FULL_STATE = BodyFormat(
    Size.BATCH, {JSON: ("Item", "Items"), GEOJSON: ("Item", "Items"), LINES: ("Lines",)}, is_required=False
)
_ONE_LOAD = Answer.of(200, "The load, as it stands.", "Load", headers=("Location",))
_APPLIED = Answer.of(202, "The load is being compared, or applied.", "Load", headers=("Location",))

LOADS = Capability(
    name="loads",
    description="State everything that shall exist in a collection, look at what that changes, and have it done.",
    routes=(
        Route(
            method="POST", path=COLLECTION + "/reconcile", handler=loads.post_reconcile, access=Access.RIGHT,
            right=Action.DELETE, parameters=parameters.RECONCILE, body=_FULL_STATE, log_name="reconcile",
            answers=(
                Answer.of(201, "With `complete=false`: the load, which waits for its other parts.", "Load",
                          headers=("Location",)),
                _APPLIED,
                Answer.of(200, "With `dry_run=true`: what the load would change. Else one that changes nothing.",
                          "Load", headers=("Location",)),
            ),
            problems=(CollectionDoesNotExist, StacInvalid, MissingPermission, Misdirected, Conflict, LoadNotConfirmed),
        ),
        Route(
            method="PUT", path=_LOAD + "/parts/{n}", handler=loads.put_part, access=Access.AUTHENTICATED,
            body=_FULL_STATE, log_name="reconcile", answers=(_ONE_LOAD,),
            problems=(LoadDoesNotExist, StacInvalid, MissingPermission, Misdirected, Conflict),
        ),
        Route(
            method="GET", path="/loads", handler=loads.get_loads, access=Access.AUTHENTICATED,
            parameters=parameters.LOAD_PAGE, answers=(Answer.of(200, "A page of loads, the newest first.", "Loads"),),
            problems=(LoadDoesNotExist,),
        ),
        Route(
            method="GET", path=_LOAD, handler=loads.get_load, access=Access.AUTHENTICATED, answers=(_ONE_LOAD,),
            problems=(LoadDoesNotExist,),
        ),
        Route(
            method="GET", path=_LOAD + "/datasets", handler=loads.get_load_datasets, access=Access.AUTHENTICATED,
            parameters=parameters.LOAD_DATASETS,
            answers=(Answer.of(200, "A page of datasets, by their ids.", "LoadDatasets"),),
            problems=(LoadDoesNotExist,),
        ),
        Route(
            method="POST", path=_LOAD + "/apply", handler=loads.post_apply, access=Access.AUTHENTICATED,
            parameters=parameters.APPLY, log_name="reconcile", answers=(_APPLIED, _ONE_LOAD),
            problems=(LoadDoesNotExist, MissingPermission, Misdirected, Conflict, LoadNotConfirmed),
        ),
        Route(
            method="POST", path=_LOAD + "/cancel", handler=loads.post_cancel, access=Access.AUTHENTICATED,
            answers=(_ONE_LOAD,), problems=(LoadDoesNotExist, Conflict),
        ),
    ),
)  # fmt: skip
CAPABILITIES = (COLLECTIONS, TRANSACTIONS, ACTIONS, REQUESTS, BULK, LOADS)
