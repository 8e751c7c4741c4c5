"""The routes for people: who they are, what they may do, their groups, and where they are told of what happens."""

from __future__ import annotations

from fedstac.api import parameters
from fedstac.api.capability import Capability
from fedstac.api.people import access, me, notifications, own_groups
from fedstac.api.route import Access, Answer, BodyFormat, Route
from fedstac.domain.errors import Conflict, MissingPermission, NotFound, StacInvalid, TooManyRequests
from fedstac.domain.policy import Action

GROUP, DESTINATION = "/groups/{group}", "/notifications/{destination_id}"
MEMBER, MANAGER = GROUP + "/members/{principal:path}", GROUP + "/managers/{principal:path}"
_GROUP = Answer.of(200, "The group.", "Group")
_DESTINATION = Answer.of(200, "The destination.", "Destination")
_NOTHING_LEFT = Answer(204, "Done, or so already.")

ACCESS = Capability(
    name="access",
    description="Who the caller is, and what the policy allows.",
    routes=(
        Route(
            method="GET", path="/me", handler=me.get_me, access=Access.AUTHENTICATED,
            answers=(Answer.of(200, "The caller.", "Me"),),
        ),
        Route(
            method="GET", path="/access/explain", handler=access.get_explain, access=Access.AUTHENTICATED,
            parameters=parameters.EXPLAIN, answers=(Answer.of(200, "Whether it is allowed, and why.", "Verdict"),),
            problems=(MissingPermission,),
        ),
        Route(
            method="GET", path="/scope", handler=me.get_scope, access=Access.PUBLIC,
            answers=(Answer.of(200, "The scope.", "Scope"),),
        ),
        Route(
            method="GET", path="/.well-known/oauth-protected-resource", handler=me.get_resource,
            access=Access.PUBLIC, answers=(Answer.of(200, "Identity providers and clients.", "Resource"),),
        ),
    ),
)  # fmt: skip

GROUPS = Capability(
    name="groups",
    description="Groups of this node's own, for people whom no identity provider groups.",
    routes=(
        Route(
            method="GET", path="/groups", handler=own_groups.get_groups, access=Access.AUTHENTICATED,
            answers=(Answer.of(200, "Groups.", "Groups"),),
        ),
        Route(
            method="POST", path="/groups", handler=own_groups.post_group, access=Access.RIGHT, right=Action.GROUPS,
            body=BodyFormat.of("NewGroup"),
            answers=(
                Answer.of(201, "The new group.", "Group", headers=("Location",)),
                Answer.of(200, "The group, which was there already.", "Group"),
            ),
            problems=(StacInvalid, Conflict),
        ),
        Route(
            method="GET", path=GROUP, handler=own_groups.get_group, access=Access.AUTHENTICATED, answers=(_GROUP,),
            problems=(NotFound,),
        ),
        Route(
            method="PUT", path=GROUP, handler=own_groups.put_group, access=Access.RIGHT, right=Action.GROUPS,
            body=BodyFormat.of("ChangedGroup"), answers=(_GROUP,),
            problems=(NotFound, StacInvalid),
        ),
        Route(
            method="DELETE", path=GROUP, handler=own_groups.delete_group, access=Access.RIGHT, right=Action.GROUPS,
            answers=(Answer(204, "The group is gone."),), problems=(NotFound,),
        ),
        Route(
            method="PUT", path=MEMBER, handler=own_groups.put_member, access=Access.RIGHT, right=Action.GROUPS,
            answers=(_NOTHING_LEFT,), problems=(NotFound,),
        ),
        Route(
            method="DELETE", path=MEMBER, handler=own_groups.delete_member, access=Access.RIGHT, right=Action.GROUPS,
            answers=(_NOTHING_LEFT,), problems=(NotFound,),
        ),
        Route(
            method="PUT", path=MANAGER, handler=own_groups.put_manager, access=Access.RIGHT, right=Action.GROUPS,
            answers=(_NOTHING_LEFT,), problems=(NotFound,),
        ),
        Route(
            method="DELETE", path=MANAGER, handler=own_groups.delete_manager, access=Access.RIGHT,
            right=Action.GROUPS, answers=(_NOTHING_LEFT,), problems=(NotFound,),
        ),
    ),
)  # fmt: skip

NOTIFICATIONS = Capability(
    name="notifications",
    description="Mailboxes and webhooks that this node tells of the caller's requests and datasets.",
    routes=(
        Route(
            method="GET", path="/notifications", handler=notifications.get_destinations,
            access=Access.AUTHENTICATED, answers=(Answer.of(200, "Destinations.", "Destinations"),),
        ),
        Route(
            method="POST", path="/notifications", handler=notifications.post_destination,
            access=Access.AUTHENTICATED, body=BodyFormat.of("NewDestination"),
            answers=(
                Answer.of(201, "The new destination.", "Destination", headers=("Location",)),
                Answer.of(200, "The destination, which was there already.", "Destination", headers=("Location",)),
            ),
            problems=(TooManyRequests,),
        ),
        Route(
            method="GET", path=DESTINATION, handler=notifications.get_destination, access=Access.AUTHENTICATED,
            answers=(_DESTINATION,), problems=(NotFound,),
        ),
        Route(
            method="DELETE", path=DESTINATION, handler=notifications.delete_destination,
            access=Access.AUTHENTICATED, answers=(Answer(204, "The destination is gone."),), problems=(NotFound,),
        ),
        Route(
            method="POST", path=DESTINATION + "/confirm", handler=notifications.post_confirmation,
            access=Access.AUTHENTICATED, body=BodyFormat.of("Confirmation"),
            answers=(_DESTINATION,), problems=(NotFound,),
        ),
        Route(
            method="POST", path=DESTINATION + "/test", handler=notifications.post_test, access=Access.AUTHENTICATED,
            answers=(Answer.of(202, "The message is queued.", "Queued"),), problems=(NotFound,),
        ),
    ),
)  # fmt: skip
CAPABILITIES = (ACCESS, GROUPS, NOTIFICATIONS)
