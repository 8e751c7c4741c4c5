"""The routes of grants."""

from __future__ import annotations

from fedstac.api import parameters
from fedstac.api.capability import Capability
from fedstac.api.grants import grants
from fedstac.api.route import JSON, Access, Answer, BodyFormat, Route, Size
from fedstac.domain.errors import (
    ForeignOrigin,
    ItemDeleted,
    ItemDoesNotExist,
    MarkedForDeletion,
    Misdirected,
    NotFound,
)
from fedstac.domain.policy import Action

_GRANT = "/grants/{grant}"
_ONE = Answer.of(200, "The grant.", "Grant")
GRANTS = Capability(
    name="grants",
    description="Who may have the files of controlled datasets, and until when.",
    routes=(
        Route(
            method="GET", path="/grants", handler=grants.get_grants, access=Access.AUTHENTICATED,
            parameters=parameters.GRANTS, answers=(Answer.of(200, "A page of grants, or of visas.", "Grants"),),
        ),
        Route(
            method="POST", path="/grants", handler=grants.post_grant, access=Access.RIGHT, right=Action.GRANT,
            body=BodyFormat.of("NewGrant"),
            answers=(
                Answer.of(201, "The new grant.", "Grant", headers=("Location",)),
                Answer.of(200, "The grant, which was there already.", "Grant", headers=("Location",)),
            ),
            problems=(ItemDoesNotExist, ItemDeleted, MarkedForDeletion, ForeignOrigin, Misdirected),
        ),
        Route(
            method="DELETE", path="/grants", handler=grants.delete_grants, access=Access.RIGHT, right=Action.GRANT,
            parameters=parameters.WITHDRAWN_GRANTS, answers=(Answer.of(200, "How many were open.", "WithdrawnGrants"),),
            problems=(Misdirected,),
        ),
        Route(
            method="POST", path="/grants/import", handler=grants.post_import, access=Access.RIGHT, right=Action.GRANT,
            body=BodyFormat(Size.IDS, {JSON: ("NewGrants",), "application/x-ndjson": ("NewGrant",)}),
            answers=(Answer.of(200, "What became of the lines.", "GrantImport"),),
        ),
        Route(
            method="GET", path="/grants/check", handler=grants.get_check, access=Access.AUTHENTICATED,
            parameters=parameters.GRANT_CHECK, answers=(Answer.of(200, "Until when.", "GrantCheck"),),
        ),
        Route(
            method="GET", path=_GRANT, handler=grants.get_grant, access=Access.AUTHENTICATED, answers=(_ONE,),
            problems=(NotFound,),
        ),
        Route(
            method="DELETE", path=_GRANT, handler=grants.delete_grant, access=Access.RIGHT, right=Action.GRANT,
            parameters=(parameters.WITHDRAWAL_REASON,), answers=(_ONE,), problems=(NotFound, Misdirected),
        ),
    ),
)  # fmt: skip
CAPABILITIES = (GRANTS,)
