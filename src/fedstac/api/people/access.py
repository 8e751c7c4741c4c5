"""What somebody may do, and by which rule of the policy."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.datastructures import QueryParams
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import no_store
from fedstac.bootstrap import Node
from fedstac.db import nodes, own_groups, people, requests, search
from fedstac.db.connections import Connection
from fedstac.domain import explaining
from fedstac.domain.errors import BadRequest, MissingPermission
from fedstac.domain.explaining import NotDescribed
from fedstac.domain.groups import Identity, Membership
from fedstac.domain.policy import Action, Level, Principal, Resource


async def get_explain(call: Call) -> Response:
    """Return whether the policy allows an action, by which rule, and why.

    Without `as` the answer is about the caller. Only administrators may ask about somebody else, or about somebody
    described by `role:`, `group:`, `entitlement:` and `own:`.
    """
    node, caller = call.node, call.caller
    description = call.query_params.getlist("as")
    is_about_caller = description in ([], [caller.name])
    try:
        action = Action(call.query_params.get("action", ""))
    except ValueError:
        name = call.query_params.get("action", "")[:40]
        raise BadRequest(f"action={name!r} is not one of {', '.join(Action)}") from None
    if not is_about_caller and not caller.is_admin:
        raise MissingPermission(f"{caller.name} may ask about themselves only; leave `as` out")
    async with node.pool.acquire() as conn:
        principal = caller if is_about_caller else await _principal_of(conn, description)
        resource = await _touched(conn, node, call.query_params)
    verdict = node.policy.verdict(principal, action, resource)
    body: dict[str, Any] = explaining.as_json(verdict, principal, action, resource)
    return no_store.answer(body)


async def _principal_of(conn: Connection, description: list[str]) -> Principal:
    """Return somebody as the database has them, with the roles and groups of the description added."""
    try:
        principal = explaining.principal_of(description)
    except NotDescribed as error:
        raise BadRequest(str(error)) from None
    roles, who, memberships = set(principal.roles), principal.identity, set[Membership]()
    for token in await nodes.tokens(conn):
        if token.name == principal.name:
            roles |= set(token.roles)
    if who is None and principal.name.startswith(people.PREFIX):
        packed = await requests.last_identity(conn, principal.name)
        who = Identity.unpacked(packed) if packed else None
    for each in principal.memberships:
        memberships |= {Membership(g.name, g.project, g.institution)
                        for g in await own_groups.every(conn, name=each.group)}  # fmt: skip
    memberships |= (await own_groups.memberships(conn, (principal.name,))).get(principal.name, frozenset())
    return Principal(principal.name, frozenset(roles), who, frozenset(memberships))


async def _touched(conn: Connection, node: Node, parameters: QueryParams) -> Resource:
    """Return what the action would touch.

    The institution of a stored dataset is that of its document. That of any other one, and of a private one, is taken
    from its id.
    """
    item = parameters.get("item", "")
    if not item:
        raise BadRequest("say which item: its id, or any text for what is not about one")
    vocabularies = node.checker.vocabularies
    collection = parameters.get("collection") or explaining.project_of(item, vocabularies.projects())
    institution = parameters.get("institution")
    vocabulary = vocabularies.current(collection)
    if institution is None and vocabulary is not None:
        dataset = await search.item(conn, collection, item)
        item_there = dataset[0] if dataset is not None and dataset[0].access is not Level.PRIVATE else None
        value = orjson.loads(item_there.document)["properties"].get(vocabulary.institution) if item_there else None
        institution = value if isinstance(value, str) else explaining.institution_of(item, vocabulary)
    return Resource(item, collection, institution, frozenset(parameters.getlist("node")))
