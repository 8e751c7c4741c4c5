"""Who may do what. Pure: a principal and what is touched in, allowed or a MissingPermission out. Deny by default."""

from __future__ import annotations

from dataclasses import dataclass
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


def require_publisher(principal: Principal, institution: str | None, item_id: str) -> None:
    """May publish for this institution; a document without one needs an administrator."""
    if principal.is_admin or (institution is not None and PUBLISHER + institution in principal.roles):
        return
    if institution is None:
        raise MissingPermission(f"{item_id} names no institution; only an administrator may publish it")
    raise MissingPermission(
        f"{principal.name} may not publish {item_id}: the role {PUBLISHER}{institution} is needed; "
        f"ask the administrators of this node for it"
    )


def require_admin(principal: Principal, what: str) -> None:
    if not principal.is_admin:
        raise MissingPermission(f"{principal.name} may not {what}: the role {ADMIN} is needed")


def require_node(principal: Principal) -> str:
    """The node's name; a feed, a snapshot and acknowledgements are for nodes only."""
    if principal.node is None:
        raise MissingPermission(f"{principal.name} is no node: a token with a role {NODE}<name> is needed")
    return principal.node
