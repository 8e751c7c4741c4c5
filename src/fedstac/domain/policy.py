"""Who may do what. Pure: a principal and what is touched in, allowed or a MissingPermission out. Deny by default."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from fedstac.domain.errors import MissingPermission

if TYPE_CHECKING:
    from fedstac.domain.groups import Identity

ADMIN = "admin"
PUBLISHER = "publisher:"
NODE = "node:"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a name for the log, and roles (`admin`, `publisher:<institution>`, `node:<node>`).

    Somebody known by an identity provider has that identity beside; their name is a pseudonym (db/people.py).
    """

    name: str
    roles: frozenset[str]
    identity: Identity | None = None

    @property
    def is_admin(self) -> bool:
        return ADMIN in self.roles

    @property
    def node(self) -> str | None:
        """The node that this principal speaks for, where it is one."""
        return next((role.removeprefix(NODE) for role in self.roles if role.startswith(NODE)), None)


class Action(StrEnum):
    """What can be done with a dataset (publication.md, Actions)."""

    PUBLISH = "publish"
    UPDATE = "update"
    REPLACE = "replace"  # other files under the same version: an exemption
    SUPERSEDE = "supersede"
    RETRACT = "retract"
    REINSTATE = "reinstate"
    REPLICATE = "replicate"  # entries of one node
    ANNOTATE = "annotate"  # links
    MARK = "mark"  # for deletion
    UNMARK = "unmark"


BY_PUBLISHERS = frozenset((
    Action.PUBLISH, Action.UPDATE, Action.SUPERSEDE, Action.RETRACT, Action.MARK, Action.UNMARK, Action.ANNOTATE,
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Touched:
    """What an action touches: the dataset's id, its project, its institution, and the nodes whose entries change."""

    dataset: str
    project: str
    institution: str | None
    nodes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may do what with which datasets. Without rules: what the roles of a principal say by themselves."""

    def require(self, principal: Principal, action: Action, touched: Touched) -> None:
        """MissingPermission, with what would be needed, unless the principal may do it."""
        if principal.is_admin:
            return
        if action is Action.REPLICATE:
            missing = sorted(node for node in touched.nodes if NODE + node not in principal.roles)
            if touched.nodes and not missing:
                return
            needed = f"the role {NODE}{missing[0] if missing else '<node>'}"
        elif action in BY_PUBLISHERS and touched.institution is not None:
            if PUBLISHER + touched.institution in principal.roles:
                return
            needed = f"the role {PUBLISHER}{touched.institution}"
        else:
            needed = f"the role {ADMIN}"
        raise MissingPermission(
            f"{principal.name} may not {action} {touched.dataset}: {needed} is needed; "
            f"ask the administrators of this node for it"
        )


ROLES = Policy()  # what roles say, without a policy file


def require_admin(principal: Principal, what: str) -> None:
    if not principal.is_admin:
        raise MissingPermission(f"{principal.name} may not {what}: the role {ADMIN} is needed")


def require_node(principal: Principal) -> str:
    """The node's name; a feed, a snapshot and acknowledgements are for nodes only."""
    if principal.node is None:
        raise MissingPermission(f"{principal.name} is no node: a token with a role {NODE}<name> is needed")
    return principal.node
