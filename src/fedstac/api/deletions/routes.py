"""The routes of the deletion manager."""

from __future__ import annotations

from fedstac.api import parameters
from fedstac.api.capability import Capability
from fedstac.api.deletions import manager, tombstones
from fedstac.api.route import Access, Answer, BodyFormat, Route
from fedstac.api.writing.routes import WRITTEN
from fedstac.domain.errors import (
    CollectionDoesNotExist,
    Conflict,
    DeletionNotReady,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    StacInvalid,
)
from fedstac.domain.policy import Action

_DELETION, _RULES = "/deletions/{deletion}", "/deletions/rules/{project}"
_ONE = Answer.of(200, "The deletion.", "Deletion")


DELETIONS = Capability(
    name="deletions",
    description="The deletion manager: what waits to be deleted and for whom, waivers, reminders, rules.",
    routes=(
        Route(
            method="GET", path="/deletions", handler=manager.get_deletions, access=Access.ACTION,
            parameters=parameters.DELETIONS, answers=(Answer.of(200, "A page of deletions.", "Deletions"),),
        ),
        Route(
            method="GET", path="/deletions/rules", handler=manager.get_all_rules, access=Access.RIGHT,
            right=Action.DELETIONS, answers=(Answer.of(200, "Rules, by project.", "AllDeletionRules"),),
        ),
        Route(
            method="GET", path=_RULES, handler=manager.get_rules, access=Access.RIGHT, right=Action.DELETIONS,
            parameters=(parameters.RULES_VERSION,),
            answers=(Answer.of(200, "The rules.", "DeletionRules", headers=("ETag",)),), problems=(NotFound,),
        ),
        Route(
            method="PUT", path=_RULES, handler=manager.put_rules, access=Access.RIGHT, right=Action.DELETIONS,
            parameters=(parameters.IF_MATCH_VERSION, parameters.TRY, parameters.APPLY_TO_OPEN),
            body=BodyFormat.of("NewDeletionRules"),
            answers=(Answer.of(200, "What the rules touch.", "AffectedDeletions", headers=("ETag",)),),
            problems=(CollectionDoesNotExist, StacInvalid, PreconditionFailed, PreconditionRequired),
        ),
        Route(
            method="POST", path="/deletions/run", handler=manager.post_run, access=Access.ACTION,
            parameters=(parameters.TRY,), body=BodyFormat.of("RunWish", is_required=False),
            answers=(Answer.of(200, "The requests that were made.", "DeletionRun"),),
        ),
        Route(
            method="GET", path=_DELETION, handler=manager.get_deletion, access=Access.AUTHENTICATED, answers=(_ONE,),
            problems=(NotFound,),
        ),
        Route(
            method="POST", path=f"{_DELETION}/waive", handler=manager.post_waive, access=Access.RIGHT,
            right=Action.DELETIONS, body=BodyFormat.of("WaiverWish"), answers=(_ONE,), problems=(NotFound, Conflict),
        ),
        Route(
            method="POST", path=f"{_DELETION}/remind", handler=manager.post_remind, access=Access.RIGHT,
            right=Action.DELETIONS, body=BodyFormat.of("ReminderWish", is_required=False), answers=(_ONE,),
            problems=(NotFound, Conflict),
        ),
        Route(
            method="POST", path=f"{_DELETION}/delete", handler=manager.post_delete, access=Access.ACTION,
            parameters=parameters.CHANGE, answers=WRITTEN,
            problems=(NotFound, Conflict, DeletionNotReady),
        ),
        Route(
            method="GET", path="/admin/tombstones", handler=tombstones.get_tombstones, access=Access.RIGHT,
            right=Action.DELETE, parameters=parameters.TOMBSTONES,
            answers=(Answer.of(200, "A page of tombstones.", "Tombstones"),),
        ),
        Route(
            method="GET", path="/quarantines", handler=manager.get_quarantines, access=Access.RIGHT,
            right=Action.QUARANTINE, parameters=parameters.QUARANTINES,
            answers=(Answer.of(200, "Cases, the newest first.", "Quarantines"),),
        ),
    ),
)  # fmt: skip
CAPABILITIES = (DELETIONS,)
