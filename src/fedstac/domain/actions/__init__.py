"""The table of actions: what a request does to datasets. One module per family; sibling modules do not know each other.

Adding an action: a class in a module here, a row in ACTIONS, its event in domain/events.py if it has a new one, and a
route that asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.clear import Clear
from fedstac.domain.actions.delete import Delete, Purge
from fedstac.domain.actions.mark import Mark, Unmark
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.quarantine import Quarantine, Release
from fedstac.domain.actions.retract import Reinstate, Retract
from fedstac.domain.actions.target import QueuedAction, Target
from fedstac.domain.model import Decision, Lineage, World
from fedstac.domain.policy import AMENDING, Action, Principal


class Command(Protocol):
    """One action on one dataset: a frozen value whose decision is a pure function."""

    @property
    def target(self) -> Target: ...

    @property
    def principal(self) -> Principal: ...

    def decide(self, lineage: Lineage, world: World) -> Decision: ...


@dataclass(frozen=True, slots=True)
class Work:
    """A command and where it comes from: its actor, its place in the queue, its request, its cause."""

    command: Command
    actor: str
    action: str
    item: int | None = None
    request: UUID | None = None
    traceparent: str | None = None
    causation: UUID | None = None  # the event that this follows from


@dataclass(frozen=True, slots=True)
class ActionType:
    """A row of the table: the commands' class, its parser from the stored body, and the rights to ask for it.

    A caller needs at least one of `rights` to ask at all. What a change comes to may need others.
    """

    command: type[Command]
    read: Callable[[QueuedAction], Command]
    rights: tuple[Action, ...]


ACTIONS: Final[Mapping[str, ActionType]] = {
    "publish": ActionType(Publish, Publish.read, (Action.PUBLISH,)),
    "amend": ActionType(Amend, Amend.read, AMENDING),
    "retract": ActionType(Retract, Retract.read, (Action.RETRACT,)),
    "reinstate": ActionType(Reinstate, Reinstate.read, (Action.REINSTATE,)),
    "mark": ActionType(Mark, Mark.read, (Action.MARK,)),
    "unmark": ActionType(Unmark, Unmark.read, (Action.UNMARK,)),
    "quarantine": ActionType(Quarantine, Quarantine.read, (Action.QUARANTINE,)),
    "release": ActionType(Release, Release.read, (Action.QUARANTINE,)),
    "delete": ActionType(Delete, Delete.read, (Action.DELETE,)),
    "clear": ActionType(Clear, Clear.read, (Action.DELETE,)),
    "purge": ActionType(Purge, Purge.read, (Action.PURGE,)),
}


def command_of(action: str, item: QueuedAction) -> Command:
    """Return the command that was accepted as `action`. LookupError for a name that is not in the table."""
    return ACTIONS[action].read(item)
