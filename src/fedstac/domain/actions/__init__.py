"""The actions: what a request does to datasets. One module per family; each a frozen value with a pure `decide`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fedstac.domain import patching
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.flags import Mark, Reinstate, Retract, Unmark
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.target import Target
from fedstac.domain.model import Decision, Lineage, World
from fedstac.domain.policy import AMENDING, Action, Principal

# The rights of which one at least is needed to ask for a change at all; what it comes to may need others.
NEEDED: Mapping[str, tuple[Action, ...]] = {
    "amend": AMENDING, "retract": (Action.RETRACT,), "reinstate": (Action.REINSTATE,), "mark": (Action.MARK,),
    "unmark": (Action.UNMARK,),
}  # fmt: skip
ACTIONS = {
    "publish": Publish, "amend": Amend, "retract": Retract, "reinstate": Reinstate, "mark": Mark, "unmark": Unmark,
}  # fmt: skip


def command_of(
    action: str, target: Target, principal: Principal, body: Mapping[str, Any], cv_version: str | None
) -> Command:
    """The command that was accepted as `action` with this body; never a publish."""
    expected = tuple(body["expected"]) if body.get("expected") is not None else None
    match action:
        case "retract":
            return Retract(target, principal, body["retraction"], expected)
        case "reinstate":
            return Reinstate(target, principal, expected)
        case "mark":
            return Mark(target, principal, body.get("reason"), expected)
        case "unmark":
            return Unmark(target, principal, expected)
        case "amend":
            edit = patching.from_json(body["edit"])
            return Amend(target, principal, edit, cv_version, body.get("override"), expected, body.get("node"))
    raise LookupError(f"there is no action {action!r}")


class Command(Protocol):
    """One action on one dataset."""

    @property
    def target(self) -> Target: ...

    @property
    def principal(self) -> Principal: ...

    def decide(self, lineage: Lineage, world: World) -> Decision: ...
