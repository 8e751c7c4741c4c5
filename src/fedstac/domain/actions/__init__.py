"""The actions: what a request does to datasets. One module per family; each a frozen value with a pure `decide`."""

from __future__ import annotations

from typing import Protocol

from fedstac.domain.actions.publish import Publish
from fedstac.domain.model import Decision, Draft, Lineage, World

ACTIONS = {"publish": Publish}


class Command(Protocol):
    """One action on one dataset."""

    @property
    def draft(self) -> Draft: ...

    def decide(self, lineage: Lineage, world: World) -> Decision: ...
