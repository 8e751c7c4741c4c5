"""Who somebody is: groups and entitlements by an identity provider's word, and groups of fedstac's own. Pure.

Claims come from outside and may be anything. What is not understood gives no right: a group that is no text, an
entitlement that is not exactly of the form is left out, never half-read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import orjson

from fedstac.domain.errors import InvalidToken

MOST_GROUPS = 1000
LONGEST_NAME = 512
LONGEST_SUBJECT = 255  # OpenID Connect Core 1.0, section 2
ENTITLEMENT_CLAIMS = ("eduperson_entitlement", "entitlements")  # AARC-G002; EGI Check-in uses both
ANY = "*"
_ENTITLEMENT = re.compile(
    r"urn:mace:egi\.eu:group:esgf\.vo\.egi\.eu:(project|node):(\*|[A-Za-z0-9][A-Za-z0-9._-]*)"
    r"(?::institution:([A-Za-z0-9][A-Za-z0-9._-]*))?:role=([A-Z]+)#aai\.egi\.eu",
    re.ASCII,
)


class Scope(StrEnum):
    """Whether an entitlement is for a project or a node."""

    PROJECT = "project"
    NODE = "node"


class Right(StrEnum):
    """What an entitlement allows (esgf-wire, Identity)."""

    CREATE = "CREATE"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    REPLICATE = "REPLICATE"
    REVOKE = "REVOKE"
    RETRACT = "RETRACT"
    CITATION = "CITATION"
    ERRATA = "ERRATA"


@dataclass(frozen=True, slots=True)
class Entitlement:
    """A right on a project or a node, or on all of them (`*`); for one institution where that is named."""

    kind: Scope
    id: str
    institution: str | None
    role: Right

    def covers(self, id: str) -> bool:
        return self.id in (ANY, id)


@dataclass(frozen=True, slots=True)
class Identity:
    """A person or a service, as an issuer vouches for it. (issuer, subject) is unique and never given to another."""

    issuer: str
    subject: str
    name: str
    email: str | None
    client_id: str
    groups: frozenset[str]
    entitlements: tuple[Entitlement, ...]
    scopes: frozenset[str]

    def packed(self) -> str:
        """Return the facts that rights follow from, as JSON text that a request keeps; who it is, is not in it."""
        entitlements = [[each.kind, each.id, each.institution, each.role] for each in self.entitlements]
        return orjson.dumps([self.issuer, sorted(self.groups), entitlements]).decode()

    @classmethod
    def unpacked(cls, text: str) -> Self:
        """Return the groups and entitlements of a packed identity, without a subject."""
        issuer, groups, rows = orjson.loads(text)
        entitlements = tuple(Entitlement(Scope(kind), id, at, Right(right)) for kind, id, at, right in rows)
        return cls(issuer, "", "", None, "", frozenset(groups), entitlements, frozenset())


@dataclass(frozen=True, slots=True)
class GlobusShare:
    """An institution's datasets of a project, which a group of a Globus-style policy file publishes."""

    project: str
    institution: str


@dataclass(frozen=True, slots=True)
class Membership:
    """A membership in one of fedstac's own groups: for a project and an institution, or for all (`*`)."""

    group: str
    project: str
    institution: str

    def covers(self, project: str, institution: str | None) -> bool:
        return self.project in (ANY, project) and self.institution in (ANY, institution)


Shares = Mapping[str, frozenset[GlobusShare]]  # by a group's uuid


class PolicyBroken(Exception):
    """A policy file that is not of the form; each of the faults says where."""

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def entitlement(urn: str) -> Entitlement | None:
    """Read an EGI entitlement; None for anything that is not exactly one of the VO esgf.vo.egi.eu with a known role."""
    match = _ENTITLEMENT.fullmatch(urn)
    if match is None or match[4] not in Right.__members__:
        return None
    return Entitlement(Scope(match[1]), match[2], match[3], Right(match[4]))


def identity(issuer: str, claims: Mapping[str, Any], *, groups_claim: str) -> Identity:
    """Return the identity of verified claims. InvalidToken without a usable subject, or with too many groups."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= LONGEST_SUBJECT or not subject.isprintable():
        raise InvalidToken("the token's claim sub is no text of 1 to 255 printable characters; log in again")
    urns = [urn for name in ENTITLEMENT_CLAIMS for urn in _texts(claims.get(name), name)]
    candidates = (entitlement(urn) for urn in dict.fromkeys(urns))
    return Identity(
        issuer=issuer,
        subject=subject,
        name=_text(claims.get("name")) or _text(claims.get("preferred_username")) or "",
        email=_text(claims.get("email")),
        client_id=_text(claims.get("client_id")) or _text(claims.get("azp")) or "",
        groups=frozenset(_texts(_at(claims, groups_claim), groups_claim)),
        entitlements=tuple(each for each in candidates if each is not None),
        scopes=scopes(claims),
    )


def scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return a token's scopes: text with spaces between (RFC 8693, 4.2; RFC 7662, 2.2), or a list, as some write."""
    value = claims.get("scope", claims.get("scp"))
    return frozenset(value.split(" ") if isinstance(value, str) else _texts(value, "scope")) - {""}


def _at(claims: Mapping[str, Any], path: str) -> object:
    """Return the claim of that name, or the one that a path with dots leads to (`realm_access.roles`)."""
    if path in claims:
        return claims[path]
    value: object = claims
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable() else None


def _texts(value: object, claim: str) -> list[str]:
    """Return the usable texts of a claim that is a list, or one text. InvalidToken for more than anybody has."""
    values = value if isinstance(value, list) else [value]
    if len(values) > MOST_GROUPS:
        raise InvalidToken(f"the token's claim {claim} has over {MOST_GROUPS} entries; ask for a token with fewer")
    return [text for text in map(_text, values) if text is not None]


def shares(document: object) -> Shares:
    """Read a Globus-style policy file: {"project": {P: {"<p>:institution_id": {I: [{"name", "uuid", "url"}, …]}}}}.

    PolicyBroken if any part of it is not of that form: a file that is half understood is not used.
    """
    by_group: dict[str, set[GlobusShare]] = {}
    for project, facets in _members(_member(document, "project", "the file"), "project"):
        for facet, institutions in _members(facets, project):
            if facet.rpartition(":")[2] != "institution_id":
                raise PolicyBroken(f"{project}: {facet!r} is no institution_id; shares are by institution")
            for institution, entries in _members(institutions, f"{project}/{facet}"):
                for uuid in _uuids(entries, f"{project}/{facet}/{institution}"):
                    by_group.setdefault(uuid, set()).add(GlobusShare(project, institution))
    return {uuid: frozenset(shared) for uuid, shared in by_group.items()}


def _member(value: object, name: str, place: str) -> object:
    if not isinstance(value, Mapping) or name not in value:
        raise PolicyBroken(f"{place} has no member {name!r}")
    return value[name]


def _members(value: object, place: str) -> Iterable[tuple[str, object]]:
    if not isinstance(value, Mapping):
        raise PolicyBroken(f"{place} is no JSON object")
    return [(str(name), member) for name, member in value.items()]


def _uuids(value: object, place: str) -> Iterable[str]:
    if not isinstance(value, list):
        raise PolicyBroken(f"{place} is no list of groups")
    for entry in value:
        uuid = _member(entry, "uuid", place)
        if not isinstance(uuid, str) or not uuid:
            raise PolicyBroken(f"{place} has a group whose uuid is no text")
        yield uuid.lower()
