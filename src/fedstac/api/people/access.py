"""What somebody may do, explained; and what each route asks of its caller."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from fedstac.api.http import links
from fedstac.api.people import identity
from fedstac.bootstrap import Node
from fedstac.db import nodes, own_groups, people, requests, search
from fedstac.db.connections import Connection
from fedstac.domain import explaining
from fedstac.domain.errors import BadRequest, MissingPermission
from fedstac.domain.explaining import NotDescribed
from fedstac.domain.groups import Identity, Membership
from fedstac.domain.policy import Action, Principal, Touched


class Access(StrEnum):
    """Whom a route is for."""

    PUBLIC = "public"
    AUTHENTICATED = "authenticated"  # who is known; what they see depends on who they are
    NODE = "node"
    ACTION = "action"  # who has the right of the policy for what the request does
    ADMIN = "admin"  # manage-collections, manage-groups and the like


ITEMS, ITEM = "/collections/{collection_id}/items", "/collections/{collection_id}/items/{item_id}"
PERMISSIONS: Mapping[Access, tuple[tuple[str, str], ...]] = {
    Access.PUBLIC: (
        ("GET", "/"), ("GET", "/conformance"), ("GET", "/queryables"), ("GET", "/search"), ("POST", "/search"),
        ("GET", "/collections"), ("GET", "/collections/{collection_id}"),
        ("GET", "/collections/{collection_id}/queryables"), ("GET", ITEMS), ("GET", ITEM),
        ("GET", "/vocabularies"), ("GET", "/vocabularies/{project}"), ("GET", "/vocabularies/{project}/{version}"),
        ("GET", "/vocabularies/{project}/{version}/terms/{facet}"),
        ("GET", "/extensions/{name}/{version}/schema.json"),
        ("GET", "/healthcheck"), ("GET", "/readiness"),
        ("GET", "/scope"), ("GET", "/.well-known/oauth-protected-resource"),
        ("GET", "/problems"), ("GET", "/problems/{name}"),
        ("GET", "/api"), ("GET", "/api.html"), ("GET", "/docs/oauth2-redirect"), ("GET", "/_mgmt/ping"),
        ("GET", "/_mgmt/health"),
    ),
    Access.AUTHENTICATED: (
        ("GET", "/me"), ("GET", "/requests"), ("GET", "/requests/{request_id}"),
        ("GET", "/requests/{request_id}/items"), ("POST", "/requests/{request_id}/cancel"),
        ("POST", "/requests/{request_id}/retry"),
        ("POST", "/validate"), ("GET", "/groups"), ("GET", "/groups/{group}"), ("GET", "/access/explain"),
        ("GET", "/notifications"), ("POST", "/notifications"), ("GET", "/notifications/{destination_id}"),
        ("DELETE", "/notifications/{destination_id}"), ("POST", "/notifications/{destination_id}/confirm"),
        ("POST", "/notifications/{destination_id}/test"),
    ),
    Access.NODE: (
        ("GET", "/events"), ("GET", "/events/head"), ("POST", "/events/status"), ("GET", "/snapshot"),
        ("GET", "/digests"),
    ),
    Access.ACTION: (
        ("POST", ITEMS), ("PUT", ITEM), ("PATCH", ITEM), ("DELETE", ITEM), ("POST", ITEM + "/retract"),
        ("POST", ITEM + "/reinstate"), ("POST", ITEM + "/unmark"), ("PUT", ITEM + "/replicas/{node}"),
        ("DELETE", ITEM + "/replicas/{node}"),
    ),
    Access.ADMIN: (
        ("POST", "/collections"), ("PUT", "/collections/{collection_id}"), ("PATCH", "/collections/{collection_id}"),
        ("DELETE", "/collections/{collection_id}"),
        ("POST", "/groups"), ("PUT", "/groups/{group}"), ("DELETE", "/groups/{group}"),
        ("PUT", "/groups/{group}/members/{principal:path}"), ("DELETE", "/groups/{group}/members/{principal:path}"),
        ("PUT", "/groups/{group}/managers/{principal:path}"), ("DELETE", "/groups/{group}/managers/{principal:path}"),
    ),
}  # fmt: skip


async def get_explain(request: Request) -> Response:
    """GET /access/explain?action=&item=&collection=&institution=&node=&as=: would that be allowed, by which rule, why.

    Without `as` it is about the caller. About somebody else, or somebody described (`role:`, `group:`,
    `entitlement:`, `own:`), only an administrator asks.
    """
    node: Node = request.app.state.node
    caller = await identity.principal(request)
    asked, described = request.query_params, request.query_params.getlist("as")
    try:
        action = Action(asked.get("action", ""))
    except ValueError:
        raise BadRequest(f"action={asked.get('action', '')[:40]!r} is none of {', '.join(Action)}") from None
    if described not in ([], [caller.name]) and not caller.is_admin:
        raise MissingPermission(f"{caller.name} may ask about themselves only; leave `as` out")
    async with node.pool.acquire() as conn:
        principal = await _described(conn, described) if described not in ([], [caller.name]) else caller
        touched = await _touched(conn, request)
    verdict = node.policy.verdict(principal, action, touched)
    body: dict[str, Any] = explaining.as_json(verdict, principal, action, touched)
    return Response(orjson.dumps(body), headers={"Cache-Control": "no-store"}, media_type=links.JSON)


async def _described(conn: Connection, said: list[str]) -> Principal:
    """Somebody as the database knows them, with what is said beside."""
    try:
        principal = explaining.described(said)
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
                        for g in await own_groups.every(conn, named=each.group)}  # fmt: skip
    memberships |= (await own_groups.memberships(conn, (principal.name,))).get(principal.name, frozenset())
    return Principal(principal.name, frozenset(roles), who, frozenset(memberships))


async def _touched(conn: Connection, request: Request) -> Touched:
    """What the parameters say; a stored dataset's institution is that of its document, another's that of its id."""
    node: Node = request.app.state.node
    asked = request.query_params
    item = asked.get("item", "")
    if not item:
        raise BadRequest("say which item: its id, or any text for what is not about one")
    vocabularies = node.checker.vocabularies
    collection = asked.get("collection") or explaining.project_of(item, vocabularies.projects())
    institution = asked.get("institution")
    vocabulary = vocabularies.current(collection)
    if institution is None and vocabulary is not None:
        found = await search.item(conn, collection, item)
        stored = orjson.loads(found[0].document)["properties"].get(vocabulary.institution) if found else None
        institution = stored if isinstance(stored, str) else explaining.institution_of(item, vocabulary)
    return Touched(item, collection, institution, frozenset(asked.getlist("node")))
