"""Who may do what. Pure: a principal and what is touched in, a Verdict out. Deny by default.

A policy is a list of rules. A rule says who may do which actions on which projects, institutions and nodes. One rule
that fits is enough, and no rule forbids. What a node allows without a policy file is written as rules too (BUILTIN).
fedstac/identity/policy_files.py reads the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Final

from fedstac.domain.errors import Misdirected, MissingPermission
from fedstac.domain.groups import ANY, GlobusShare, Identity, Membership, Right, Scope, Shares

ADMIN = "admin"
PUBLISHER = "publisher:"
NODE = "node:"
DELETION_MANAGER = "manager:deletions"  # deletes by the schedule; no token may be called so (nodes.is_name)
MONITOR = "monitor"  # reads what a node measures of itself, and nothing else
INSTITUTION_ROLE, NODE_ROLE = "publisher:{institution}", "node:{node}"  # roles of what is touched
SHOWN = 4  # ways to a right that a refusal names


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a name for the log, and roles (`admin`, `publisher:<institution>`, `node:<node>`).

    Somebody known by an identity provider has that identity beside; their name is a pseudonym (db/people.py).
    `memberships`: in fedstac's own groups.
    """

    name: str
    roles: frozenset[str]
    identity: Identity | None = None
    memberships: frozenset[Membership] = frozenset()
    expires: datetime | None = field(default=None, compare=False)  # of the token

    @classmethod
    def of_submitter(
        cls, name: str, roles: Iterable[str], identity: str | None, memberships: Mapping[str, frozenset[Membership]]
    ) -> Principal:
        """Return who asked for work that waited: with the roles and the identity, packed, of when they asked.

        memberships: in own groups, of now, by name.
        """
        unpacked = Identity.unpacked(identity) if identity else None
        return cls(name, frozenset(roles), unpacked, memberships.get(name, frozenset()))

    @property
    def is_admin(self) -> bool:
        return ADMIN in self.roles

    @property
    def node(self) -> str | None:
        """The node that this principal speaks for: by a role, or by REPLICATE on exactly one named node."""
        by_role = next((role.removeprefix(NODE) for role in self.roles if role.startswith(NODE)), None)
        if by_role is not None or self.identity is None:
            return by_role
        nodes = {
            each.id for each in self.identity.entitlements if each.kind is Scope.NODE and each.role is Right.REPLICATE
        }
        return nodes.pop() if len(nodes) == 1 and ANY not in nodes else None


class Action(StrEnum):
    """What the policy permits: actions on datasets, collections and groups."""

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
    QUARANTINE = "quarantine"  # and release
    DELETE = "delete"
    PURGE = "purge"
    DELETIONS = "manage-deletions"  # configure who acknowledges, remind, waive
    OVERRIDE = "override"  # what the rules refuse
    COLLECTIONS = "manage-collections"
    GROUPS = "manage-groups"
    MESSAGING = "manage-messaging"  # sinks, dead letters
    GRANT = "grant"  # give and withdraw grants of controlled datasets
    READ_GRANTS = "read-grants"  # of everybody, and the events about them


BY_PUBLISHERS = frozenset((
    Action.PUBLISH, Action.UPDATE, Action.SUPERSEDE, Action.RETRACT, Action.MARK, Action.UNMARK, Action.ANNOTATE,
))  # fmt: skip
AMENDING = (  # what a PATCH or a PUT of a dataset may come to
    Action.UPDATE, Action.ANNOTATE, Action.SUPERSEDE, Action.RETRACT, Action.REPLICATE, Action.REINSTATE,
    Action.REPLACE,
)  # fmt: skip
READING = (Action.PUBLISH, Action.UPDATE, Action.REPLICATE)  # who may do one of them reads what is not open
ADMINISTRATIVE = frozenset(
    (Action.COLLECTIONS, Action.GROUPS, Action.MESSAGING, Action.DELETIONS, Action.READ_GRANTS)
)  # done at any node, not at the home of a dataset


@dataclass(frozen=True, slots=True)
class Resource:
    """What an action touches: the dataset's id, its project, its institution, and the nodes whose entries change.

    `*` as project or institution: all of them, which only a rule for all covers.
    """

    dataset: str
    project: str
    institution: str | None
    nodes: frozenset[str] = frozenset()

    @classmethod
    def of_collection(cls, name: str) -> Resource:
        """Return what a change of a collection touches."""
        return cls(f"the collection {name[:128]}", name, None)


class Level(StrEnum):
    """Who may have a dataset (domain/access.py); the later, the stricter."""

    OPEN = "open"  # everybody
    CONTROLLED = "controlled"  # everybody its metadata, holders of a grant its files
    PRIVATE = "private"  # nobody without a right to it learns that it is there

    def stricter(self, other: Level) -> Level:
        """Return the stricter of two levels."""
        levels = list(Level)
        return max(self, other, key=levels.index)


def read_level(value: object) -> Level:
    """Return the level of that name: open without one, private where there is no such level."""
    if value is None:
        return Level.OPEN
    return _LEVELS.get(value, Level.PRIVATE) if isinstance(value, str) else Level.PRIVATE


_LEVELS: Final[Mapping[str, Level]] = {level.value: level for level in Level}


class By(StrEnum):
    """How a rule says who somebody is."""

    NAME = "name"  # as in the logs: of a token, or a person's pseudonym
    ROLE = "role"  # or INSTITUTION_ROLE, NODE_ROLE
    GROUP = "group"  # of an identity provider
    ENTITLEMENT = "entitlement"  # of EGI's VO, by ESGF's rule
    GLOBUS = "globus"  # a share of the Globus-style file
    OWN = "own"  # group of fedstac's own; * is any


@dataclass(frozen=True, slots=True)
class Who:
    """The principals of a rule. A right that is for a project, institution or node counts for that one only."""

    by: By
    value: str
    issuer: str | None = None  # of a group

    def includes(self, principal: Principal, resource: Resource, shares: Shares) -> bool:
        """Tell whether a principal is among these, for what is touched."""
        identity = principal.identity
        match self.by:
            case By.NAME:
                return principal.name == self.value
            case By.ROLE:
                roles = self._roles(resource)
                return bool(roles) and principal.roles >= roles
            case By.OWN:
                return any(self.value in (ANY, each.group) and each.covers(resource.project, resource.institution)
                           for each in principal.memberships)  # fmt: skip
            case By.GROUP:
                return identity is not None and self.value in identity.groups and self.issuer in (None, identity.issuer)
            case By.GLOBUS:
                share = GlobusShare(resource.project, resource.institution or "")
                return identity is not None and any(share in shares.get(group.lower(), ()) for group in identity.groups)
            case By.ENTITLEMENT:
                return identity is not None and _entitled(identity, Right(self.value), resource)

    def _roles(self, resource: Resource) -> frozenset[str]:
        """Return the roles that are needed, all of them; without any, nobody is included."""
        if self.value == NODE_ROLE:
            return frozenset(NODE + node for node in resource.nodes)
        if self.value == INSTITUTION_ROLE:
            return frozenset((PUBLISHER + resource.institution,) if resource.institution else ())
        return frozenset((self.value,))

    def requirement(self, resource: Resource) -> str:
        """Describe what somebody would need; "" where nobody can be included, for what is touched."""
        match self.by:
            case By.NAME:
                return f"the name {self.value}"
            case By.ROLE:
                roles = sorted(self._roles(resource))
                return f"the role{'s' if len(roles) > 1 else ''} {', '.join(roles)}" if roles else ""
            case By.OWN:
                which = f"own group {self.value}" if self.value != ANY else f"own group for {_place(resource)}"
                return f"membership in the {which}" if self.value != ANY else f"membership in an {which}"
            case By.GROUP:
                return f"the group {self.value}" + (f" of {self.issuer}" if self.issuer else "")
            case By.GLOBUS:
                return f"a Globus group of {_place(resource)}" if resource.institution else ""
            case By.ENTITLEMENT:
                nodes = "".join(f" and on the node {node}" for node in sorted(resource.nodes))
                return f"the entitlement {self.value} on the project {resource.project}{nodes}"


def _entitled(identity: Identity, right: Right, resource: Resource) -> bool:
    """Apply ESGF's rule: the right on the project and on each node that is touched, for its institution if any."""
    entitlements = [
        each for each in identity.entitlements
        if each.role is right and each.institution in (None, resource.institution)
    ]  # fmt: skip
    if right is Right.REPLICATE and not resource.nodes:
        return False
    on_project = any(each.kind is Scope.PROJECT and each.covers(resource.project) for each in entitlements)
    return on_project and all(
        any(each.kind is Scope.NODE and each.covers(node) for each in entitlements) for node in resource.nodes
    )


def _place(resource: Resource) -> str:
    return f"{resource.project} × {resource.institution or 'no institution'}"


def _is_in(value: str | None, names: frozenset[str]) -> bool:
    return ANY in names or value in names


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """A rule: who may do which actions on which projects × institutions × nodes; `*` is all of them."""

    name: str
    who: tuple[Who, ...]
    actions: frozenset[Action]
    projects: frozenset[str]
    institutions: frozenset[str]
    nodes: frozenset[str]

    def covers(self, action: Action, resource: Resource) -> bool:
        """Tell whether the rule is about this: about each node that is touched, and for replicas about at least one."""
        if action not in self.actions or not _is_in(resource.project, self.projects):
            return False
        on_nodes = ANY in self.nodes or (
            resource.nodes <= self.nodes and (resource.nodes or action is not Action.REPLICATE)
        )
        return bool(on_nodes) and _is_in(resource.institution, self.institutions)


@dataclass(frozen=True, slots=True)
class Home:
    """Where the datasets of some projects × institutions are written: a node and its address."""

    projects: frozenset[str]
    institutions: frozenset[str]
    node: str
    url: str


@dataclass(frozen=True, slots=True)
class ProjectLevel:
    """The level that every dataset of some projects has at least."""

    projects: frozenset[str]
    level: Level


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, the rule that made it ("" where none fits), and why in a sentence. `home`: where to go instead."""

    allowed: bool
    rule: str
    reason: str
    home: Home | None = None


def _everywhere(name: str, who: Who, actions: frozenset[Action]) -> PolicyRule:
    every = frozenset((ANY,))
    return PolicyRule(name, (who,), actions, every, every, every)


ENTITLED: Mapping[Right, frozenset[Action]] = {  # REVOKE is in no document of ESGF's beside its name: it gives nothing
    Right.CREATE: frozenset((Action.PUBLISH,)),
    Right.UPDATE: frozenset((Action.UPDATE, Action.SUPERSEDE)),
    Right.RETRACT: frozenset((Action.RETRACT,)),
    Right.DELETE: frozenset((Action.MARK, Action.UNMARK)),
    Right.REPLICATE: frozenset((Action.REPLICATE,)),
    Right.CITATION: frozenset((Action.ANNOTATE,)),
    Right.ERRATA: frozenset((Action.ANNOTATE,)),
}
BUILTIN: tuple[PolicyRule, ...] = (
    _everywhere("builtin: administrators", Who(By.ROLE, ADMIN), frozenset(Action)),
    _everywhere("builtin: publishers", Who(By.ROLE, INSTITUTION_ROLE), BY_PUBLISHERS),
    _everywhere("builtin: nodes", Who(By.ROLE, NODE_ROLE), frozenset((Action.REPLICATE,))),
    *(_everywhere(f"builtin: ESGF {right}", Who(By.ENTITLEMENT, right), actions)
      for right, actions in ENTITLED.items()),
    _everywhere("builtin: Globus shares", Who(By.GLOBUS, ANY), BY_PUBLISHERS),
    _everywhere("builtin: own groups", Who(By.OWN, ANY), BY_PUBLISHERS),
    _everywhere("builtin: deletion manager", Who(By.NAME, DELETION_MANAGER), frozenset((Action.DELETE,))),
)  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """Who may do what with which datasets, and at which node. Without a file: BUILTIN.

    `here`: this node's name; a write of what has its home elsewhere is Misdirected, whoever asks.
    `promoting`: projects in which the version before is latest again when the latest is retracted or marked.
    `levels`: what projects ask of the access level of every dataset.
    """

    rules: tuple[PolicyRule, ...] = BUILTIN
    homes: tuple[Home, ...] = ()
    shares: Shares = field(default_factory=dict)
    here: str | None = None
    promoting: frozenset[str] = frozenset()
    levels: tuple[ProjectLevel, ...] = ()

    @cached_property
    def without_homes(self) -> Policy:
        """The policy for who may read: a home says where something is written, and everybody reads anywhere."""
        return replace(self, homes=())

    def level_of(self, project: str) -> Level:
        """Return the level that a project asks of every dataset at least (access). The strictest entry counts."""
        level = Level.OPEN
        for entry in self.levels:
            if _is_in(project, entry.projects):
                level = level.stricter(entry.level)
        return level

    def promotes(self, project: str) -> bool:
        """Tell whether a project wants the version before to be latest again (promote_previous)."""
        return _is_in(project, self.promoting)

    def require(self, principal: Principal, action: Action, resource: Resource) -> Verdict:
        """Return the verdict. MissingPermission, with what would be needed, or Misdirected where it is not allowed."""
        verdict = self.verdict(principal, action, resource)
        if verdict.allowed:
            return verdict
        if verdict.home is not None:
            raise Misdirected(verdict.reason, node=verdict.home.node, home=verdict.home.url)
        raise MissingPermission(verdict.reason)

    def verdict(self, principal: Principal, action: Action, resource: Resource) -> Verdict:
        """Decide by the first rule that covers what is touched and includes the principal."""
        home = None if action in ADMINISTRATIVE else self.home_of(resource)
        if home is not None and home.node != self.here:
            reason = f"{_place(resource)} has its home at the node {home.node}: send this to {home.url}"
            return Verdict(False, f"home: {home.node}", reason, home)
        for rule in self._by_action.get(action, ()):
            if not rule.covers(action, resource):
                continue
            for who in rule.who:
                if who.includes(principal, resource, self.shares):
                    reason = f"{principal.name} may {action} {resource.dataset} by {who.requirement(resource)}"
                    return Verdict(True, rule.name, reason)
        return Verdict(False, "", self._denied(principal, action, resource))

    def require_one_of(self, principal: Principal, actions: Sequence[Action], resource: Resource) -> None:
        """Raise MissingPermission or Misdirected, as for the first action, unless the principal may do one of them."""
        if not self.may_one_of(principal, actions, resource):
            self.require(principal, actions[0], resource)

    def may_one_of(self, principal: Principal, actions: Sequence[Action], resource: Resource) -> bool:
        """Tell whether a principal may do one of the actions. A right to replicate counts for whatever node it is."""
        return any(
            self.verdict(principal, action, at).allowed
            for action in actions
            for at in (self._at_nodes(principal, resource) if action is Action.REPLICATE else (resource,))
        )

    def _at_nodes(self, principal: Principal, resource: Resource) -> Iterator[Resource]:
        """Return what is touched, once for each node that the policy or the principal's rights name."""
        nodes = {node for rule in self._by_action.get(Action.REPLICATE, ()) for node in rule.nodes}
        nodes |= {role.removeprefix(NODE) for role in principal.roles if role.startswith(NODE)}
        if principal.identity is not None:
            nodes |= {each.id for each in principal.identity.entitlements if each.kind is Scope.NODE}
        return (replace(resource, nodes=frozenset((node,))) for node in sorted(nodes))

    def home_of(self, resource: Resource) -> Home | None:
        """Return the first home that fits; None where any node will do."""
        for home in self.homes:
            if _is_in(resource.project, home.projects) and _is_in(resource.institution, home.institutions):
                return home
        return None

    def at(self, node: str | None) -> Policy:
        """Return the policy as it is at a node of that name."""
        return replace(self, here=node)

    def rules_of(self, principal: Principal) -> list[PolicyRule]:
        """Return the rules that include a principal, for whatever they touch."""
        return [rule for rule in self.rules if any(_concerns(who, principal, self.shares) for who in rule.who)]

    def may_somewhere(self, principal: Principal, action: Action, project: str) -> bool:
        """Tell whether a principal may do an action with something of a project, at whatever institution."""
        return any(action in rule.actions and _is_in(project, rule.projects) for rule in self.rules_of(principal))

    def may_one_somewhere(self, principal: Principal, actions: Sequence[Action], project: str) -> bool:
        """Tell whether a principal may do one of some actions with something of a project."""
        return any(self.may_somewhere(principal, action, project) for action in actions)

    @cached_property
    def _by_action(self) -> Mapping[Action, tuple[PolicyRule, ...]]:
        return {action: tuple(rule for rule in self.rules if action in rule.actions) for action in Action}

    def _denied(self, principal: Principal, action: Action, resource: Resource) -> str:
        ways = [
            who.requirement(resource) for rule in self._by_action.get(action, ()) if rule.covers(action, resource)
            for who in rule.who if who.value != DELETION_MANAGER  # which nobody else can be
        ]  # fmt: skip
        ways = list(dict.fromkeys(way for way in ways if way))
        admin = f"the role {ADMIN}"
        if len(ways) > 1 and admin in ways:  # the last way that anybody should ask for
            ways = [way for way in ways if way != admin]
        if not ways:
            nodes = f" on the nodes {', '.join(sorted(resource.nodes))}" if resource.nodes else ""
            reason = f"no rule allows it for {_place(resource)}{nodes}"
        else:
            more = " or another right" if len(ways) > SHOWN else ""
            reason = f"{' or '.join(ways[:SHOWN])}{more} is needed"
        denial = f"{principal.name} may not {action} {resource.dataset}: {reason}"
        return f"{denial}; ask the administrators of this node for it"


def _concerns(who: Who, principal: Principal, shares: Shares) -> bool:
    """Tell whether a rule's `who` includes a principal for something at least."""
    identity = principal.identity
    match who.by:
        case By.ROLE if who.value in (INSTITUTION_ROLE, NODE_ROLE):
            return any(role.startswith(who.value.partition("{")[0]) for role in principal.roles)
        case By.OWN:
            return any(who.value in (ANY, each.group) for each in principal.memberships)
        case By.ENTITLEMENT:
            return identity is not None and any(each.role is Right(who.value) for each in identity.entitlements)
        case By.GLOBUS:
            return identity is not None and any(group.lower() in shares for group in identity.groups)
        case _:
            return who.includes(principal, Resource("", "", None), shares)


ROLES = Policy()  # what holds without a policy file


def require_monitor(principal: Principal) -> None:
    """Refuse whoever neither administrates nor watches over the node: MissingPermission."""
    if not principal.is_admin and MONITOR not in principal.roles:
        raise MissingPermission(f"{principal.name} may not read metrics: a token with the role {MONITOR} is needed")


def require_node(principal: Principal) -> str:
    """Return the name of the caller's node. MissingPermission for anybody else: feeds are for nodes."""
    if principal.node is None:
        raise MissingPermission(f"{principal.name} is no node: a token with a role {NODE}<name> is needed")
    return principal.node
