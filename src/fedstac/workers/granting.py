"""What people do with grants, over HTTP and on the command line. Every verb asks the policy about what is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from fedstac.bootstrap import Node
from fedstac.db import collections, grant_lists, grant_rights, grants, people
from fedstac.db.connections import Connection
from fedstac.db.grant_lists import GrantFilter, GrantSight
from fedstac.db.grants import NewGrant
from fedstac.domain.errors import BadRequest, NotFound, Problem
from fedstac.domain.grants import AccessGrant, GrantScope, GrantTarget, TargetState
from fedstac.domain.groups import ANY
from fedstac.domain.model import moment, rfc3339
from fedstac.domain.policy import Action, Resource
from fedstac.workers.deleting import Caller

MOST_AT_ONCE: Final = 2000
LONGEST_SUBJECT: Final = 255
LONGEST_REASON: Final = 500
READING: Final = (Action.READ_GRANTS, Action.GRANT)  # one of these shows the grants of a project
MEMBERS: Final = ("subject", "dataset", "lineage", "project", "valid_from", "valid_until")
EVERYTHING: Final = Resource("all grants", ANY, ANY)


@dataclass(frozen=True, slots=True)
class GrantWish:
    """A grant as somebody asks for it. subject: a name as in the logs, or an identity: issuer and subject."""

    subject: str | tuple[str, str]
    target: GrantTarget
    valid_from: datetime | None
    valid_until: datetime


@dataclass(frozen=True, slots=True)
class GrantOutcome:
    """What became of a wish: a grant, new or there before, or the problem."""

    grant: AccessGrant | None = None
    is_new: bool = False
    problem: Problem | None = None


# --- reading what people write ---


def read_wish(body: Mapping[str, Any]) -> GrantWish:
    """Read a wish in JSON. BadRequest where something of it is wrong."""
    if unknown := sorted(set(body) - set(MEMBERS)):
        raise BadRequest(f"{unknown[0][:80]!r} is no member of a grant; there are {', '.join(MEMBERS)}")
    valid_until = _moment(body, "valid_until")
    if valid_until is None:
        raise BadRequest("valid_until is missing: a grant ends some day; it looks like 2027-01-31T00:00:00Z")
    valid_from = _moment(body, "valid_from")
    if valid_until <= max(valid_from or datetime.now(UTC), datetime.now(UTC)):
        raise BadRequest("valid_until is in the past, or before valid_from")
    scopes = [scope for scope in GrantScope if body.get(scope) is not None]
    if len(scopes) != 1:
        raise BadRequest("say what the grant is for by one of dataset, lineage and project")
    target = read_target(scopes[0], body[scopes[0]])
    return GrantWish(read_subject(body.get("subject")), target, valid_from, valid_until)


def read_subject(value: object) -> str | tuple[str, str]:
    """Read who has a grant: a name as in the logs, or {"iss": …, "sub": …}. BadRequest where it is neither."""
    match value:
        case str() if is_name(value):
            return value
        case {"iss": str(issuer), "sub": str(subject), **rest} if is_name(issuer) and is_name(subject) and not rest:
            return issuer, subject
    raise BadRequest('subject is a name as in the logs, such as person:…, or {"iss": "https://…", "sub": "…"}')


def is_name(text: str) -> bool:
    """Return whether somebody may be called so."""
    return 0 < len(text) <= LONGEST_SUBJECT and text.isprintable()


def read_target(scope: GrantScope, value: object) -> GrantTarget:
    """Read what a grant is for. BadRequest where it is no text, or names nothing."""
    if not isinstance(value, str):
        raise BadRequest(f"{scope} is a text")
    return GrantTarget.parse(scope, value)


def _moment(body: Mapping[str, Any], name: str) -> datetime | None:
    value = body.get(name)
    instant = moment(value)
    if value is not None and instant is None:
        raise BadRequest(f"{name} is a time as in RFC 3339, such as 2027-01-31T00:00:00Z")
    return instant


# --- giving and withdrawing ---


async def give(
    conn: Connection, node: Node, caller: Caller, wishes: Sequence[GrantWish], *, traceparent: str | None = None
) -> list[GrantOutcome]:
    """Give grants in one transaction, and return what became of each. A wish that is refused refuses only itself.

    What is there already is not given again. MissingPermission and Misdirected are problems of a wish, too.
    """
    async with conn.transaction():
        targets = list(dict.fromkeys(wish.target for wish in wishes))
        states = await grants.target_states(conn, targets, _institutions(node, targets), locking=True)
        problems = {target: _refusal(caller, target, states[target], node.settings.node) for target in targets}
        new_wishes = [wish for wish in wishes if problems[wish.target] is None]
        identities = {wish.subject for wish in new_wishes if isinstance(wish.subject, tuple)}
        names = await people.pseudonyms(conn, identities) if identities else {}
        new = [
            NewGrant(
                wish.subject if isinstance(wish.subject, str) else names[wish.subject], wish.target, wish.valid_from,
                wish.valid_until,
            )
            for wish in new_wishes
        ]  # fmt: skip
        answers = iter(await grants.give(
            conn, new, actor=caller.name, correlation=caller.correlation, traceparent=traceparent
        ) if new else ())  # fmt: skip
        outcomes = []
        for wish in wishes:
            problem = problems[wish.target]
            if problem is not None:
                outcomes.append(GrantOutcome(problem=problem))
            else:
                each = next(answers)
                outcomes.append(GrantOutcome(each.grant, each.is_new))
        return outcomes


def _institutions(node: Node, targets: Iterable[GrantTarget]) -> dict[str, str]:
    """Return by collection the property that names whose a dataset is."""
    current = node.checker.vocabularies.current
    vocabularies = {target.collection: current(target.collection) for target in targets}
    return {name: vocabulary.institution for name, vocabulary in vocabularies.items() if vocabulary is not None}


def _refusal(caller: Caller, target: GrantTarget, state: TargetState, here: str) -> Problem | None:
    """Return why a caller may not give a grant of a target. Without the right nothing is said of what is there."""
    try:
        _require_right(caller, target, state)
    except Problem as problem:
        return problem.without_trace()
    return state.refusal(target, here)


def _require_right(caller: Caller, target: GrantTarget, state: TargetState) -> None:
    institution = ANY if target.scope is GrantScope.PROJECT else state.institution
    if not caller.may((Action.GRANT,), Resource(f"{target.scope} {target}", target.collection, institution)):
        caller.require(Action.GRANT, Resource(f"{target.scope} {target}", target.collection, None))


async def withdraw(conn: Connection, node: Node, caller: Caller, id: UUID, reason: str) -> AccessGrant:
    """Withdraw a grant and return it as it is then. Again it changes nothing. NotFound where the caller sees none."""
    async with conn.transaction():
        grant = await find(conn, caller, id)
        states = await grants.target_states(conn, [grant.target], _institutions(node, [grant.target]))
        _require_right(caller, grant.target, states[grant.target])
        await grants.withdraw(conn, [id], actor=caller.name, reason=reason, correlation=caller.correlation)
        after = await grant_lists.read(conn, id)
        assert after is not None
        return after


async def withdraw_matching(
    conn: Connection, node: Node, caller: Caller, *, subject: str | None, target: GrantTarget | None, reason: str
) -> int:
    """Withdraw all open grants of a target, of a subject, or of both, and return how many. Again there are none.

    Of a subject alone: those of the projects of which the caller may give any grant. Those of a subject go in parts,
    each a transaction of its own: killed anywhere, it is done by asking again.
    """
    if target is None and subject is None:
        raise BadRequest("say which grants: by dataset, lineage or project, by subject, or by both")
    count = 0
    while True:
        async with conn.transaction():
            if target is not None:
                states = await grants.target_states(conn, [target], _institutions(node, [target]))
                _require_right(caller, target, states[target])
                if subject is None:
                    return await grants.withdraw_of_target(
                        conn, target, actor=caller.name, reason=reason, correlation=caller.correlation
                    )
                projects = [target.collection]
            else:
                projects = await _projects(conn, caller, (Action.GRANT,))
                if not projects:
                    caller.require(Action.GRANT, EVERYTHING)
            ids = await grant_lists.open_ids(conn, subject or "", target=target, projects=projects, limit=MOST_AT_ONCE)
            count += await grants.withdraw(
                conn, ids, actor=caller.name, reason=reason, correlation=caller.correlation
            )  # fmt: skip
        if len(ids) < MOST_AT_ONCE:
            return count


# --- reading ---


async def _projects(conn: Connection, caller: Caller, actions: Sequence[Action]) -> list[str]:
    """Return the collections of which a caller has one of the rights on all datasets."""
    names = await collections.names(conn)
    return [name for name in names if caller.may(actions, Resource(f"grants of {name}", name, ANY))]


async def sight_of(conn: Connection, caller: Caller) -> GrantSight:
    """Return which grants a caller may see: what they have and gave themselves, and those of projects by a right."""
    if caller.may(READING, EVERYTHING):
        return GrantSight(sees_all=True)
    return GrantSight(projects=tuple(await _projects(conn, caller, READING)), name=caller.name)


async def find(conn: Connection, caller: Caller, id: UUID) -> AccessGrant:
    """Return a grant that a caller may see. NotFound where there is none."""
    grant = await grant_lists.read(conn, id)
    if grant is not None:
        project = Resource(f"grants of {grant.target.collection}", grant.target.collection, ANY)
        may_read = caller.may(READING, project)
        if may_read or caller.name in (grant.subject, grant.given_by):
            return _as_seen(grant, caller, may_read=may_read)
    raise NotFound(f"there is no grant {id}; GET /grants lists those that you may see")


async def list_page(
    conn: Connection, caller: Caller, filter: GrantFilter, *, after: UUID | None, limit: int
) -> list[AccessGrant]:
    """Return some of the grants that a caller may see, in the order in which they were given."""
    sight = await sight_of(conn, caller)
    return [
        _as_seen(grant, caller, may_read=sight.sees_all or grant.target.collection in sight.projects)
        for grant in await grant_lists.page(conn, filter, sight, after=after, limit=limit)
    ]  # fmt: skip


async def suspended(conn: Connection, caller: Caller, ids: Sequence[UUID]) -> set[UUID]:
    """Return those of some grants that are suspended by the state of their dataset, as far as a caller may know it."""
    return await grant_lists.suspended(conn, ids, await sight_of(conn, caller))


def _as_seen(grant: AccessGrant, caller: Caller, *, may_read: bool) -> AccessGrant:
    """Return a grant as a caller may see it: who has it does not learn who retracted or deleted the dataset."""
    return grant if may_read or caller.name == grant.given_by else replace(grant, closed_by=None)


async def check(
    conn: Connection, caller: Caller, subject: str | tuple[str, str], target: GrantTarget
) -> datetime | None:
    """Return until when a subject may have the files of a dataset by a grant; None where they may not.

    For nodes, which serve files, for those who may read the grants of the project, and for the subject.
    """
    name = subject if isinstance(subject, str) else await people.find(conn, *subject)
    if name != caller.name and caller.principal.node is None:
        project = Resource(f"grants of {target.collection}", target.collection, ANY)
        if not caller.may(READING, project):
            caller.require(Action.READ_GRANTS, project)
    return await grant_rights.open_until(conn, name, target.collection, target.name) if name is not None else None


# --- JSON ---


def document_of(grant: AccessGrant, now: datetime | None = None) -> dict[str, Any]:
    """Return a grant in JSON."""
    return {
        "id": str(grant.id),
        "subject": grant.subject,
        grant.target.scope.value: str(grant.target),
        "valid_from": rfc3339(grant.valid_from),
        "valid_until": rfc3339(grant.valid_until),
        "stand": grant.stand(now or datetime.now(UTC)),
        "given_at": rfc3339(grant.given_at),
        "given_by": grant.given_by,
        "closed_at": rfc3339(grant.closed_at) if grant.closed_at else None,
        "closed_by": grant.closed_by,
        "closed_why": grant.closed_why,
        "cause": str(grant.cause) if grant.cause else None,
    }  # fmt: skip


def visa_of(grant: AccessGrant, base_url: str) -> dict[str, Any]:
    """Return a grant as the claims of a visa (GA4GH Passport 1.2, ControlledAccessGrants); it is not signed.

    The value is the address of the dataset or collection; a lineage is that of its name among the collection's items.
    """
    target = grant.target
    value = f"{base_url}/collections/{target.collection}"
    if target.scope is not GrantScope.PROJECT:
        value += f"/items/{target.dataset or target.lineage}"
    return {
        "iss": base_url,
        "sub": grant.subject,
        "jti": str(grant.id),
        "iat": int(grant.given_at.timestamp()),
        "nbf": int(grant.valid_from.timestamp()),
        "exp": int(grant.valid_until.timestamp()),
        "ga4gh_visa_v1": {
            "type": "ControlledAccessGrants", "asserted": int(grant.given_at.timestamp()), "value": value,
            "source": base_url, "by": "dac",
        },
    }  # fmt: skip
