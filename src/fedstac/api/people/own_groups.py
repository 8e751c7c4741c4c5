"""Groups of fedstac's own over HTTP. Who may manage groups makes them; the managers of a group fill it."""

from __future__ import annotations

import re
from typing import Any

import structlog
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, no_store
from fedstac.bootstrap import Node
from fedstac.db import audit, own_groups
from fedstac.db.connections import Connection
from fedstac.db.own_groups import GroupRole, OwnGroup
from fedstac.domain import strict_json
from fedstac.domain.errors import BadRequest, Conflict, Finding, NotFound, StacInvalid
from fedstac.domain.groups import ANY, LONGEST_NAME
from fedstac.domain.model import rfc3339
from fedstac.domain.policy import Action, Principal, Resource

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
MEMBERS = ("name", "project", "institution", "title")
log = structlog.get_logger()


def _touched(name: str, project: str, institution: str) -> Resource:
    return Resource(f"the group {name}", project, institution)


def _of(group: OwnGroup) -> Resource:
    return _touched(group.name, group.project, group.institution)


def _document(base: str, group: OwnGroup) -> dict[str, Any]:
    return {
        "name": group.name, "project": group.project, "institution": group.institution, "title": group.title,
        "created": rfc3339(group.created), "created_by": group.created_by,
        "members": group.members, "managers": group.managers,
        "links": [{"rel": "self", "type": links.JSON, "href": f"{base}/groups/{group.name}"}],
    }  # fmt: skip


def _answer(base: str, group: OwnGroup, status: int = 200) -> Response:
    headers = {"Location": f"{base}/groups/{group.name}"} if status == 201 else {}
    return no_store.answer(_document(base, group), status, **headers)


# --- reading ---


def _sees(node: Node, principal: Principal, group: OwnGroup) -> bool:
    """Return whether somebody may see a group: its members, its managers, and those who may manage groups."""
    if principal.name in (*group.members, *group.managers):
        return True
    return node.policy.verdict(principal, Action.GROUPS, _of(group)).allowed


async def get_groups(call: Call) -> Response:
    """List the groups that the caller belongs to, looks after or may manage."""
    node, base = call.node, call.base_url
    async with node.pool.acquire() as conn:
        groups = await own_groups.every(conn)
    documents = [_document(base, group) for group in groups if _sees(node, call.caller, group)]
    body = {"groups": documents, "links": [{"rel": "self", "type": links.JSON, "href": f"{base}/groups"}]}
    return no_store.answer(body)


async def get_group(call: Call) -> Response:
    """Return one group, with its members and managers. To strangers it is as if there were none."""
    node, name = call.node, call.path_params["group"]
    async with node.pool.acquire() as conn:
        groups = await own_groups.every(conn, name=name)
    if not groups or not _sees(node, call.caller, groups[0]):
        raise NotFound(f"there is no group {name[:80]!r} of yours; GET /groups lists those you have")
    return _answer(call.base_url, groups[0])


# --- the groups themselves ---


async def post_group(call: Call) -> Response:
    """Make a group. The same group again is answered with 200."""
    node, caller = call.node, call.caller
    wish = _read(await call.body.read(), members=("name", "project", "institution"))
    name, project, institution, title = wish["name"], wish["project"], wish["institution"], wish.get("title", "")
    node.policy.require(caller, Action.GROUPS, _touched(name, project, institution))
    async with node.pool.acquire() as conn, conn.transaction():
        is_new = await own_groups.create(conn, name, project, institution, title, caller.name)
        group = await own_groups.lock(conn, name)
        if group is None or (group.project, group.institution, group.title) != (project, institution, title):
            raise Conflict(f"there is a group {name} already, for something else; change it with PUT /groups/{name}")
        if is_new:
            await _note(call, conn, "create-group", group)
    return _answer(call.base_url, group, 201 if is_new else 200)


async def put_group(call: Call) -> Response:
    """Change the project, the institution or the title of a group. Its members and managers stay."""
    node = call.node
    async with node.pool.acquire() as conn, conn.transaction():
        group = await _managed(call, conn, by_managers=False)
        wish = _read(await call.body.read(), members=("project", "institution"))
        if wish.get("name", group.name) != group.name:
            raise BadRequest(f"a group keeps its name, {group.name}; make another one")
        after = (wish["project"], wish["institution"], wish.get("title", group.title))
        node.policy.require(call.caller, Action.GROUPS, _touched(group.name, after[0], after[1]))
        if after != (group.project, group.institution, group.title):
            await own_groups.change(conn, group.name, *after)
            await _note(call, conn, "change-group", group)
        [group] = await own_groups.every(conn, name=group.name)
    call.services.principals.forget()
    return _answer(call.base_url, group)


async def delete_group(call: Call) -> Response:
    """Delete a group. Its members lose the rights that they had by it."""
    async with call.node.pool.acquire() as conn, conn.transaction():
        group = await _managed(call, conn, by_managers=False)
        await own_groups.delete(conn, group.name)
        await _note(call, conn, "delete-group", group)
    call.services.principals.forget()
    return Response(status_code=204)


# --- who is in them ---


async def put_member(call: Call) -> Response:
    """Add a member to a group. The managers of the group may do it, and those who may manage groups."""
    return await _change(call, GroupRole.MEMBER, add=True)


async def delete_member(call: Call) -> Response:
    """Remove a member from a group. The managers of the group may do it, and those who may manage groups."""
    return await _change(call, GroupRole.MEMBER, add=False)


async def put_manager(call: Call) -> Response:
    """Make somebody a manager of a group. Only those who may manage groups do it, no managers."""
    return await _change(call, GroupRole.MANAGER, add=True)


async def delete_manager(call: Call) -> Response:
    """Take the management of a group from somebody. Only those who may manage groups do it, no managers."""
    return await _change(call, GroupRole.MANAGER, add=False)


async def _change(call: Call, part: GroupRole, *, add: bool) -> Response:
    """Add somebody to a group or remove them. A repeat succeeds and changes nothing."""
    whom = call.path_params["principal"]
    if not whom.isprintable() or len(whom) > LONGEST_NAME:
        raise BadRequest(f"a member is named as in the logs, by at most {LONGEST_NAME} printable characters")
    async with call.node.pool.acquire() as conn, conn.transaction():
        group = await _managed(call, conn, by_managers=part is GroupRole.MEMBER)
        if add:
            has_changed = await own_groups.add(conn, group.name, whom, part, call.caller.name)
        else:
            has_changed = await own_groups.remove(conn, group.name, whom, part)
        if has_changed:
            await _note(call, conn, f"{'add' if add else 'remove'}-{part}", group, whom)
    call.services.principals.forget()
    return Response(status_code=204)


async def _managed(call: Call, conn: Connection, *, by_managers: bool) -> OwnGroup:
    """Lock and return the group that the caller may change.

    MissingPermission does not tell strangers whether there is such a group.
    """
    node, caller, name = call.node, call.caller, call.path_params["group"]
    group = await own_groups.lock(conn, name)
    if group is not None and by_managers and caller.name in group.managers:
        return group
    is_visible = group is not None and _sees(node, caller, group)
    resource = _of(group) if group is not None and is_visible else _touched(name[:80], ANY, ANY)
    node.policy.require(caller, Action.GROUPS, resource)
    if group is None:
        raise NotFound(f"there is no group {name[:80]!r}; GET /groups lists those there are")
    return group


async def _note(call: Call, conn: Connection, action: str, group: OwnGroup, whom: str = "") -> None:
    """Write one row of the audit log and one line of the log."""
    subject = f"group/{group.name}" + (f"/{whom}" if whom else "")
    await audit.append(conn, [audit.NewRow(
        actor=call.caller.name, action=action, collection=group.project, dataset=subject, request=None, outcome="done",
        before=None, after=None, correlation=call.request_id,
    )])  # fmt: skip
    log.info("group changed", action=action, group=group.name, whom=whom or None, actor=call.caller.name)


def _read(raw: bytes, members: tuple[str, ...]) -> dict[str, str]:
    """Return the members of a group from a body. StacInvalid with all findings where it is none."""
    group = strict_json.parse(raw)
    if not isinstance(group, dict):
        raise BadRequest(f"the body is no JSON object; send {{{', '.join(MEMBERS)}}}")
    findings = [Finding("group", f"/{name}", f"`{name}` is not one of {', '.join(MEMBERS)}") for name in group
                if name not in MEMBERS]  # fmt: skip
    findings += [Finding("group", f"/{name}", f"`{name}` is missing") for name in members if name not in group]
    for name, value in group.items():
        if not isinstance(value, str) or not value.isprintable() or len(value) > LONGEST_NAME or (
            not value and name != "title"
        ):  # fmt: skip
            findings.append(Finding("group", f"/{name}", f"`{name}` is a text of at most {LONGEST_NAME} characters"))
        elif name == "name" and not NAME.fullmatch(value):
            findings.append(Finding("group", "/name", "a name is letters, digits, . _ and -, at most 63 of them"))
    if findings:
        raise StacInvalid(f"the group is not valid: {findings[0].message}", findings=findings)
    return group
