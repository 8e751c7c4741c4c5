"""What callers ask about themselves and about logging in."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, no_store
from fedstac.domain.model import rfc3339
from fedstac.domain.policy import PolicyRule


async def get_me(call: Call) -> Response:
    """Return whom this node takes the caller for: name, roles, groups and rights. The logs use the same `name`."""
    caller, node = call.caller, call.node
    body: dict[str, Any] = {"name": caller.name, "roles": sorted(caller.roles), "issuer": None, "subject": None}
    body["expires"] = rfc3339(caller.expires) if caller.expires else None
    if who := caller.identity:
        body |= {
            "issuer": who.issuer, "subject": who.subject, "full_name": who.name or None, "email": who.email,
            "client_id": who.client_id or None, "scopes": sorted(who.scopes),
        }  # fmt: skip
    body["groups"] = sorted(who.groups) if who else []
    if caller.is_admin:
        body["policy_error"] = node.policies.error  # of a policy file that is there and not used
    body["own_groups"] = sorted(each.group for each in caller.memberships)
    body["rights"] = [_right(rule) for rule in node.policy.rules_of(caller)]
    body["entitlements"] = [
        {"kind": each.kind, "id": each.id, "institution": each.institution, "role": each.role}
        for each in (who.entitlements if who else ())
    ]
    return no_store.answer(body)


def _right(rule: PolicyRule) -> dict[str, Any]:
    """Return a rule of the policy that concerns the caller. What the caller holds may narrow it down further."""
    return {"rule": rule.name, "actions": sorted(rule.actions), "projects": sorted(rule.projects),
            "institutions": sorted(rule.institutions), "nodes": sorted(rule.nodes)}  # fmt: skip


async def get_resource(call: Call) -> Response:
    """Return where tokens for this node come from (RFC 9728, section 2).

    `fedstac_logins` is an addition, as section 2 allows: the public client that `fedstac login` uses at each issuer.
    """
    settings, issuers = call.node.settings, call.services.principals.issuers
    body: dict[str, Any] = {
        "resource": call.base_url,
        "resource_name": f"fedstac {settings.node}",
        "bearer_methods_supported": ["header"],
    }
    if issuers:
        body["authorization_servers"] = [each.issuer for each in issuers]
    if settings.scope:
        body["scopes_supported"] = settings.scope.split()
    body["fedstac_logins"] = [
        {"issuer": each.issuer, "client_id": each.login_client_id, "scope": each.login_scope}
        for each in issuers if each.login_client_id
    ]  # fmt: skip
    return Response(orjson.dumps(body), media_type=links.JSON, headers={"Cache-Control": "public, max-age=300"})


async def get_scope(call: Call) -> Response:
    """Return the scope that ESGF's publisher asks for when it logs in."""
    return Response(orjson.dumps({"scope": call.node.settings.scope}), media_type=links.JSON)
