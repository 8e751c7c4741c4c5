"""Groups of fedstac's own over HTTP: made by those who may manage groups, filled by the managers that those name."""

from __future__ import annotations

import re
from typing import Any

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response

from fedstac.api.http import links
from fedstac.api.people import identity
from fedstac.bootstrap import Node
from fedstac.db import audit, own_groups
from fedstac.db.connections import Connection
from fedstac.db.own_groups import OwnGroup, Part
from fedstac.domain import strict_json
from fedstac.domain.errors import BadRequest, Conflict, Finding, NotFound, StacInvalid
from fedstac.domain.groups import ANY, LONGEST_NAME
from fedstac.domain.model import rfc3339
from fedstac.domain.policy import Action, Principal, Touched

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
MEMBERS = ("name", "project", "institution", "title")
log = structlog.get_logger()


def _touched(name: str, project: str, institution: str) -> Touched:
    return Touched(f"the group {name}", project, institution)


def _of(group: OwnGroup) -> Touched:
    return _touched(group.name, group.project, group.institution)


def _shown(base: str, group: OwnGroup) -> dict[str, Any]:
    return {
        "name": group.name, "project": group.project, "institution": group.institution, "title": group.title,
        "created": rfc3339(group.created), "created_by": group.created_by,
        "members": group.members, "managers": group.managers,
        "links": [{"rel": "self", "type": links.JSON, "href": f"{base}/groups/{group.name}"}],
    }  # fmt: skip


def _answer(request: Request, group: OwnGroup, status: int = 200) -> Response:
    base: str = request.app.state.base_url
    headers = {"Cache-Control": "no-store"} | ({"Location": f"{base}/groups/{group.name}"} if status == 201 else {})
    return Response(orjson.dumps(_shown(base, group)), status, headers, media_type=links.JSON)


# --- reading ---


def _sees(node: Node, principal: Principal, group: OwnGroup) -> bool:
    """Members, managers, and whoever may manage it."""
    if principal.name in (*group.members, *group.managers):
        return True
    return node.policy.verdict(principal, Action.GROUPS, _of(group)).allowed


async def get_groups(request: Request) -> Response:
    """GET /groups: the groups that the caller belongs to, looks after or may manage."""
    node: Node = request.app.state.node
    principal = await identity.principal(request)
    async with node.pool.acquire() as conn:
        found = await own_groups.every(conn)
    base = request.app.state.base_url
    shown = [_shown(base, group) for group in found if _sees(node, principal, group)]
    body = {"groups": shown, "links": [{"rel": "self", "type": links.JSON, "href": f"{base}/groups"}]}
    return Response(orjson.dumps(body), headers={"Cache-Control": "no-store"}, media_type=links.JSON)


async def get_group(request: Request) -> Response:
    """GET /groups/{group}. NotFound for whom it is none of their business."""
    node: Node = request.app.state.node
    principal, name = await identity.principal(request), request.path_params["group"]
    async with node.pool.acquire() as conn:
        found = await own_groups.every(conn, named=name)
    if not found or not _sees(node, principal, found[0]):
        raise NotFound(f"there is no group {name[:80]!r} of yours; GET /groups lists those you have")
    return _answer(request, found[0])


# --- the groups themselves ---


async def post_group(request: Request) -> Response:
    """POST /groups {name, project, institution, title}: a new group; the same again is answered with 200."""
    principal = await identity.principal(request)
    said = _read(await request.body(), needed=("name", "project", "institution"))
    node: Node = request.app.state.node
    name, project, institution, title = said["name"], said["project"], said["institution"], said.get("title", "")
    node.policy.require(principal, Action.GROUPS, _touched(name, project, institution))
    async with node.pool.acquire() as conn, conn.transaction():
        made = await own_groups.create(conn, name, project, institution, title, principal.name)
        group = await own_groups.lock(conn, name)
        if group is None or (group.project, group.institution, group.title) != (project, institution, title):
            raise Conflict(f"there is a group {name} already, for something else; change it with PUT /groups/{name}")
        if made:
            await _note(request, conn, principal, "create-group", group)
    return _answer(request, group, 201 if made else 200)


async def put_group(request: Request) -> Response:
    """PUT /groups/{group} {project, institution, title}: for something else; who is in it stays."""
    principal = await identity.principal(request)
    node: Node = request.app.state.node
    async with node.pool.acquire() as conn, conn.transaction():
        group = await _managed(request, conn, principal, by_managers=False)
        said = _read(await request.body(), needed=("project", "institution"))
        if said.get("name", group.name) != group.name:
            raise BadRequest(f"a group keeps its name, {group.name}; make another one")
        after = (said["project"], said["institution"], said.get("title", group.title))
        node.policy.require(principal, Action.GROUPS, _touched(group.name, after[0], after[1]))
        if after != (group.project, group.institution, group.title):
            await own_groups.change(conn, group.name, *after)
            await _note(request, conn, principal, "change-group", group)
        [group] = await own_groups.every(conn, named=group.name)
    request.app.state.principals.forget()
    return _answer(request, group)


async def delete_group(request: Request) -> Response:
    """DELETE /groups/{group}: its members lose what they had by it."""
    principal = await identity.principal(request)
    node: Node = request.app.state.node
    async with node.pool.acquire() as conn, conn.transaction():
        group = await _managed(request, conn, principal, by_managers=False)
        await own_groups.delete(conn, group.name)
        await _note(request, conn, principal, "delete-group", group)
    request.app.state.principals.forget()
    return Response(status_code=204)


# --- who is in them ---


async def put_member(request: Request) -> Response:
    """PUT /groups/{group}/members/{principal}: by a manager of the group, or who may manage groups."""
    return await _change(request, Part.MEMBER, add=True)


async def delete_member(request: Request) -> Response:
    """DELETE /groups/{group}/members/{principal}."""
    return await _change(request, Part.MEMBER, add=False)


async def put_manager(request: Request) -> Response:
    """PUT /groups/{group}/managers/{principal}: by who may manage groups; managers name no others."""
    return await _change(request, Part.MANAGER, add=True)


async def delete_manager(request: Request) -> Response:
    """DELETE /groups/{group}/managers/{principal}."""
    return await _change(request, Part.MANAGER, add=False)


async def _change(request: Request, part: Part, *, add: bool) -> Response:
    """Adds somebody or takes them out; what is so already succeeds and changes nothing."""
    principal, whom = await identity.principal(request), request.path_params["principal"]
    if not whom.isprintable() or len(whom) > LONGEST_NAME:
        raise BadRequest(f"a member is named as in the logs, by at most {LONGEST_NAME} printable characters")
    node: Node = request.app.state.node
    async with node.pool.acquire() as conn, conn.transaction():
        group = await _managed(request, conn, principal, by_managers=part is Part.MEMBER)
        if add:
            changed = await own_groups.add(conn, group.name, whom, part, principal.name)
        else:
            changed = await own_groups.remove(conn, group.name, whom, part)
        if changed:
            await _note(request, conn, principal, f"{'add' if add else 'remove'}-{part}", group, whom)
    request.app.state.principals.forget()
    return Response(status_code=204)


async def _managed(request: Request, conn: Connection, principal: Principal, *, by_managers: bool) -> OwnGroup:
    """The group, locked, that the caller may change. MissingPermission does not tell strangers whether there is one."""
    node: Node = request.app.state.node
    name = request.path_params["group"]
    group = await own_groups.lock(conn, name)
    if group is not None and by_managers and principal.name in group.managers:
        return group
    known = group is not None and _sees(node, principal, group)
    touched = _of(group) if group is not None and known else _touched(name[:80], ANY, ANY)
    node.policy.require(principal, Action.GROUPS, touched)
    if group is None:
        raise NotFound(f"there is no group {name[:80]!r}; GET /groups lists those there are")
    return group


async def _note(
    request: Request, conn: Connection, principal: Principal, action: str, group: OwnGroup, whom: str = ""
) -> None:
    """One row in the audit log and one line in the log."""
    subject = f"group/{group.name}" + (f"/{whom}" if whom else "")
    await audit.append(conn, [audit.NewRow(
        actor=principal.name, action=action, collection=group.project, dataset=subject, request=None, outcome="done",
        before=None, after=None, correlation=request.state.request_id,
    )])  # fmt: skip
    log.info("group changed", action=action, group=group.name, whom=whom or None, actor=principal.name)


def _read(raw: bytes, needed: tuple[str, ...]) -> dict[str, str]:
    said = strict_json.parse(raw)
    if not isinstance(said, dict):
        raise BadRequest(f"the body is no JSON object; send {{{', '.join(MEMBERS)}}}")
    findings = [Finding("group", f"/{name}", f"`{name}` is none of {', '.join(MEMBERS)}") for name in said
                if name not in MEMBERS]  # fmt: skip
    findings += [Finding("group", f"/{name}", f"`{name}` is missing") for name in needed if name not in said]
    for name, value in said.items():
        if not isinstance(value, str) or not value.isprintable() or len(value) > LONGEST_NAME or (
            not value and name != "title"
        ):  # fmt: skip
            findings.append(Finding("group", f"/{name}", f"`{name}` is a text of at most {LONGEST_NAME} characters"))
        elif name == "name" and not NAME.fullmatch(value):
            findings.append(Finding("group", "/name", "a name is letters, digits, . _ and -, at most 63 of them"))
    if findings:
        raise StacInvalid(f"the group is not valid: {findings[0].message}", findings=findings)
    return said
