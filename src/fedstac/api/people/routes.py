"""The routes for people: who they are, what they may do, their groups, and where they are told of what happens."""

from __future__ import annotations

from fedstac.api.capability import Capability
from fedstac.api.people import access, me, notifications, own_groups
from fedstac.api.route import JSON, Access, BodyFormat, Route, Size
from fedstac.domain.policy import Action

_OBJECT = BodyFormat(Size.SMALL, {JSON: ("NewGroup",)})
GROUP, DESTINATION = "/groups/{group}", "/notifications/{destination_id}"
MEMBER, MANAGER = GROUP + "/members/{principal:path}", GROUP + "/managers/{principal:path}"

ACCESS = Capability(
    name="access",
    description="Who the caller is, and what the policy allows.",
    routes=(
        Route(method="GET", path="/me", handler=me.get_me, access=Access.AUTHENTICATED),
        Route(method="GET", path="/access/explain", handler=access.get_explain, access=Access.AUTHENTICATED),
        Route(method="GET", path="/scope", handler=me.get_scope, access=Access.PUBLIC),
        Route(
            method="GET", path="/.well-known/oauth-protected-resource", handler=me.get_resource, access=Access.PUBLIC
        ),
    ),
)

GROUPS = Capability(
    name="groups",
    description="Groups of this node's own, for people whom no identity provider groups.",
    routes=(
        Route(method="GET", path="/groups", handler=own_groups.get_groups, access=Access.AUTHENTICATED),
        Route(
            method="POST", path="/groups", handler=own_groups.post_group, access=Access.ADMIN, right=Action.GROUPS,
            body=_OBJECT,
        ),
        Route(method="GET", path=GROUP, handler=own_groups.get_group, access=Access.AUTHENTICATED),
        Route(
            method="PUT", path=GROUP, handler=own_groups.put_group, access=Access.ADMIN, right=Action.GROUPS,
            body=_OBJECT,
        ),
        Route(
            method="DELETE", path=GROUP, handler=own_groups.delete_group, access=Access.ADMIN, right=Action.GROUPS
        ),
        Route(method="PUT", path=MEMBER, handler=own_groups.put_member, access=Access.ADMIN, right=Action.GROUPS),
        Route(
            method="DELETE", path=MEMBER, handler=own_groups.delete_member, access=Access.ADMIN, right=Action.GROUPS
        ),
        Route(method="PUT", path=MANAGER, handler=own_groups.put_manager, access=Access.ADMIN, right=Action.GROUPS),
        Route(
            method="DELETE", path=MANAGER, handler=own_groups.delete_manager, access=Access.ADMIN, right=Action.GROUPS
        ),
    ),
)  # fmt: skip

NOTIFICATIONS = Capability(
    name="notifications",
    description="Mailboxes and webhooks that this node tells of the caller's requests and datasets.",
    routes=(
        Route(
            method="GET", path="/notifications", handler=notifications.get_destinations, access=Access.AUTHENTICATED
        ),
        Route(
            method="POST", path="/notifications", handler=notifications.post_destination,
            access=Access.AUTHENTICATED, body=_OBJECT,
        ),
        Route(method="GET", path=DESTINATION, handler=notifications.get_destination, access=Access.AUTHENTICATED),
        Route(
            method="DELETE", path=DESTINATION, handler=notifications.delete_destination, access=Access.AUTHENTICATED
        ),
        Route(
            method="POST", path=DESTINATION + "/confirm", handler=notifications.post_confirmation,
            access=Access.AUTHENTICATED, body=_OBJECT,
        ),
        Route(
            method="POST", path=DESTINATION + "/test", handler=notifications.post_test, access=Access.AUTHENTICATED
        ),
    ),
)  # fmt: skip
CAPABILITIES = (ACCESS, GROUPS, NOTIFICATIONS)
