"""Decisions explained: somebody and something described by a few words, and a verdict as others read it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fedstac.domain import groups
from fedstac.domain.groups import ANY, Identity, Membership
from fedstac.domain.policy import Action, Principal, Resource, Verdict
from fedstac.domain.vocabulary import Vocabulary

FORMS = "a name, role:<role>, group:<group>, entitlement:<urn>, own:<group>"


class NotDescribed(ValueError):
    """Words that describe nobody; the message says what is taken."""


def principal_of(words: Sequence[str]) -> Principal:
    """Return the principal whom the words describe, each of them one fact (FORMS).

    A group's issuer is any; an own group is for everything. NotDescribed for words that describe nobody.
    """
    names, roles, groups_named, urns, own = [], set(), set(), list[str](), set()
    for text in words:
        form, colon, value = text.partition(":")
        match form if colon else "":
            case "role":
                roles.add(value)
            case "group":
                groups_named.add(value)
            case "entitlement":
                urns.append(value)
            case "own":
                own.add(Membership(value, ANY, ANY))
            case _:
                names.append(text)
    pairs = [(urn, groups.entitlement(urn)) for urn in urns]
    wrong = [urn for urn, entitlement in pairs if entitlement is None]
    if wrong or len(names) > 1 or not all(words):
        reason = f"{wrong[0]!r} is no entitlement of ESGF's" if wrong else "somebody has one name"
        raise NotDescribed(f"{reason}; say {FORMS}")
    entitlements = tuple(entitlement for _, entitlement in pairs if entitlement is not None)
    identity = Identity("", "", "", None, "", frozenset(groups_named), entitlements, frozenset())
    name = names[0] if names else ", ".join(words) or "somebody"
    return Principal(name, frozenset(roles), identity if groups_named or urns else None, frozenset(own))


def project_of(item: str, projects: Iterable[str]) -> str:
    """Return the project that an id begins with, in the spelling of `projects`."""
    first = item.partition(".")[0]
    return next((project for project in projects if project.lower() == first.lower()), first)


def institution_of(item: str, vocabulary: Vocabulary) -> str | None:
    """Return the institution that an id of the project names; None for an id of another form."""
    match = vocabulary.id_pattern.fullmatch(item)
    names = vocabulary.id_template.names
    if match is None or vocabulary.institution not in names:
        return None
    return match[names.index(vocabulary.institution) + 1]


def as_json(verdict: Verdict, principal: Principal, action: Action, resource: Resource) -> dict[str, Any]:
    """Return a verdict as the API shows it."""
    home = {"node": verdict.home.node, "href": verdict.home.url} if verdict.home else None
    return {
        "allowed": verdict.allowed,
        "rule": verdict.rule or None,
        "reason": verdict.reason,
        "home": home,
        "principal": principal.name,
        "action": action.value,
        "item": resource.dataset,
        "project": resource.project,
        "institution": resource.institution,
        "nodes": sorted(resource.nodes),
    }
