"""The routes that write: collections, datasets, and the requests that become of it."""

from __future__ import annotations

from fedstac.api import parameters
from fedstac.api.capability import Capability
from fedstac.api.people import options
from fedstac.api.route import JSON, Access, BodyFormat, Route, Size
from fedstac.api.search.routes import ITEM, ITEMS
from fedstac.api.writing import changes, collections, items, requests, retries
from fedstac.domain.policy import Action

COLLECTIONS_PATH, COLLECTION = "/collections", "/collections/{collection_id}"
_COLLECTION = BodyFormat(Size.SMALL, {JSON: ("Collection",)})
_ITEM = BodyFormat(Size.ITEM, {JSON: ("Item",)})
_REASON = BodyFormat(Size.ITEM, {JSON: ("Retraction",)}, is_required=False)
_BATCH = BodyFormat(Size.BATCH, {JSON: ("Item", "Items")})
_DRY_RUN = (parameters.TRY,)

COLLECTIONS = Capability(
    name="collections",
    description="Projects, which STAC calls collections.",
    conformance_classes=["https://api.stacspec.org/v1.0.0/collections/extensions/transaction"],
    routes=(
        Route(method="GET", path=COLLECTIONS_PATH, handler=collections.get_collections, access=Access.PUBLIC),
        Route(
            method="POST", path=COLLECTIONS_PATH, handler=collections.post_collection, access=Access.ADMIN,
            right=Action.COLLECTIONS, body=_COLLECTION, log_name="create",
        ),
        Route(method="GET", path=COLLECTION, handler=collections.get_collection, access=Access.PUBLIC),
        Route(
            method="PUT", path=COLLECTION, handler=collections.put_collection, access=Access.ADMIN,
            right=Action.COLLECTIONS, body=_COLLECTION, log_name="update",
        ),
        Route(
            method="PATCH", path=COLLECTION, handler=collections.patch_collection, access=Access.ADMIN,
            right=Action.COLLECTIONS, body=_COLLECTION, log_name="update",
        ),
        Route(
            method="DELETE", path=COLLECTION, handler=collections.delete_collection, access=Access.ADMIN,
            right=Action.COLLECTIONS, log_name="delete",
        ),
        Route(method="OPTIONS", path=COLLECTIONS_PATH, handler=options.options_collections, access=Access.PUBLIC),
        Route(method="OPTIONS", path=COLLECTION, handler=options.options_collection, access=Access.PUBLIC),
    ),
)  # fmt: skip

TRANSACTIONS = Capability(
    name="transactions",
    description="Publish and change datasets: the transaction extension of STAC API.",
    conformance_classes=[
        "https://api.stacspec.org/v1.0.0/ogcapi-features/extensions/transaction",
        "http://www.opengis.net/spec/ogcapi-features-4/1.0/conf/simpletx",
    ],
    routes=(
        Route(
            method="POST", path=ITEMS, handler=items.post_items, access=Access.ACTION, parameters=_DRY_RUN,
            body=_BATCH, log_name="publish", is_hot=True,
        ),
        Route(
            method="PUT", path=ITEM, handler=changes.put_item, access=Access.ACTION, parameters=_DRY_RUN, body=_ITEM,
            log_name="amend",
        ),
        Route(
            method="PATCH", path=ITEM, handler=changes.patch_item, access=Access.ACTION, parameters=_DRY_RUN,
            body=_ITEM, log_name="amend",
        ),
        Route(
            method="DELETE", path=ITEM, handler=changes.delete_item, access=Access.ACTION, parameters=_DRY_RUN,
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
            parameters=_DRY_RUN, body=_REASON, log_name="retract",
        ),
        Route(
            method="POST", path=ITEM + "/reinstate", handler=changes.post_reinstate, access=Access.ACTION,
            parameters=_DRY_RUN, log_name="reinstate",
        ),
        Route(
            method="POST", path=ITEM + "/unmark", handler=changes.post_unmark, access=Access.ACTION,
            parameters=_DRY_RUN, log_name="unmark",
        ),
        Route(
            method="PUT", path=ITEM + "/replicas/{node}", handler=changes.put_replica, access=Access.ACTION,
            parameters=_DRY_RUN, body=_ITEM, log_name="amend",
        ),
        Route(
            method="DELETE", path=ITEM + "/replicas/{node}", handler=changes.delete_replica, access=Access.ACTION,
            parameters=_DRY_RUN, log_name="amend",
        ),
    ),
)  # fmt: skip

REQUESTS = Capability(
    name="requests",
    description="Follow accepted requests, take them back, try what was refused again.",
    routes=(
        Route(method="GET", path="/requests", handler=requests.get_requests, access=Access.AUTHENTICATED),
        Route(method="GET", path="/requests/{request_id}", handler=requests.get_request, access=Access.AUTHENTICATED),
        Route(
            method="GET", path="/requests/{request_id}/items", handler=requests.get_request_items,
            access=Access.AUTHENTICATED,
        ),
        Route(
            method="POST", path="/requests/{request_id}/cancel", handler=retries.post_cancel,
            access=Access.AUTHENTICATED,
        ),
        Route(
            method="POST", path="/requests/{request_id}/retry", handler=retries.post_retry,
            access=Access.AUTHENTICATED,
        ),
    ),
)  # fmt: skip
CAPABILITIES = (COLLECTIONS, TRANSACTIONS, ACTIONS, REQUESTS)
