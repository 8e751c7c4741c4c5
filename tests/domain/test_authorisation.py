"""The policy's matrix: principal × action × project × institution × nodes, each cell with its outcome from one table.

That of the routes and of the states that records are in is tests/api/matrix.py.

The table is written as sentences about people, without the engine's words: it says what must come out, not how.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from fedstac.domain import groups
from fedstac.domain.errors import MissingPermission
from fedstac.domain.groups import GlobusShare, Identity, Membership
from fedstac.domain.policy import ROLES, Action, Policy, Principal, Resource
from fedstac.identity import policy_files

NCAR, MPI = "NCAR", "MPI-M"
PROJECTS = ("CMIP6", "CMIP7")
INSTITUTIONS = (NCAR, MPI, None)
NODES = ((), ("east",), ("south",), ("east", "south"))
ISSUER = "https://idp.example"
DATA = ("publish", "update", "supersede", "retract", "mark", "unmark", "annotate")
EVERYTHING = tuple(action.value for action in Action)


def urn(kind: str, name: str, right: str, institution: str = "") -> str:
    at = f":institution:{institution}" if institution else ""
    return f"urn:mace:egi.eu:group:esgf.vo.egi.eu:{kind}:{name}{at}:role={right}#aai.egi.eu"


def person(*urns: str, groups_: tuple[str, ...] = ()) -> Identity:
    claims = {"sub": "x", "groups": list(groups_), "entitlements": list(urns)}
    return groups.identity(ISSUER, claims, groups_claim="groups")


def by_role(*roles: str) -> Principal:
    return Principal("+".join(roles) or "nobody", frozenset(roles))


def by_identity(name: str, *urns: str, groups_: tuple[str, ...] = ()) -> Principal:
    return Principal(name, frozenset(), person(*urns, groups_=groups_))


def member(group: str, project: str, institution: str) -> Principal:
    return Principal(f"member of {group}", frozenset(), None, frozenset({Membership(group, project, institution)}))


WHO = {
    "nobody": by_role(),
    "admin": by_role("admin"),
    "ncar": by_role("publisher:NCAR"),
    "east": by_role("node:east"),
    "both nodes": by_role("node:east", "node:south"),
    "looks like admin": by_role("Admin", "administrator", "publisher:", "node:", "publisher:*", "node:*"),
    "creator of NCAR": by_identity("creator", urn("project", "CMIP6", "CREATE", NCAR), urn("node", "*", "CREATE")),
    "creator of CMIP6": by_identity("wide", urn("project", "CMIP6", "CREATE"), urn("node", "east", "CREATE")),
    "updater": by_identity("updater", urn("project", "*", "UPDATE", MPI), urn("node", "*", "UPDATE")),
    "retractor": by_identity("retractor", urn("project", "CMIP6", "RETRACT"), urn("node", "*", "RETRACT")),
    "replicator": by_identity("replicator", urn("project", "CMIP6", "REPLICATE"), urn("node", "east", "REPLICATE")),
    "node alone": by_identity("half", urn("node", "east", "REPLICATE")),
    "errata": by_identity("errata", urn("project", "CMIP7", "ERRATA"), urn("node", "*", "ERRATA")),
    "revoker": by_identity("revoker", urn("project", "*", "REVOKE"), urn("node", "*", "REVOKE")),
    "globus": by_identity("globus", groups_=("AAAA-1",)),
    "own": member("ncar", "CMIP6", NCAR),
    "own wide": member("all", "*", "*"),
    "curator": by_identity("curator", groups_=("curators",)),
    "impostor": Principal("impostor", frozenset(), Identity(
        "https://other.example", "x", "", None, "", frozenset({"curators"}), (), frozenset())),
    "robot": by_role("robot"),
}  # fmt: skip

# (who, actions, projects, institutions, nodes that may be among those touched); no line: no.
ALL_INSTITUTIONS, ALL_NODES = INSTITUTIONS, ("east", "south")
TABLE: tuple[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str | None, ...], tuple[str, ...]], ...] = (
    ("admin", EVERYTHING, PROJECTS, ALL_INSTITUTIONS, ALL_NODES),
    ("ncar", DATA, PROJECTS, (NCAR,), ALL_NODES),
    ("east", ("replicate",), PROJECTS, ALL_INSTITUTIONS, ("east",)),
    ("both nodes", ("replicate",), PROJECTS, ALL_INSTITUTIONS, ALL_NODES),
    ("creator of NCAR", ("publish",), ("CMIP6",), (NCAR,), ALL_NODES),
    ("creator of CMIP6", ("publish",), ("CMIP6",), ALL_INSTITUTIONS, ("east",)),
    ("updater", ("update", "supersede"), PROJECTS, (MPI,), ALL_NODES),
    ("retractor", ("retract",), ("CMIP6",), ALL_INSTITUTIONS, ALL_NODES),
    ("replicator", ("replicate",), ("CMIP6",), ALL_INSTITUTIONS, ("east",)),
    ("errata", ("annotate",), ("CMIP7",), ALL_INSTITUTIONS, ALL_NODES),
    ("globus", DATA, ("CMIP7",), (MPI,), ALL_NODES),
    ("own", DATA, ("CMIP6",), (NCAR,), ALL_NODES),
    ("own wide", DATA, PROJECTS, ALL_INSTITUTIONS, ALL_NODES),
)
FILE = b"""
version: 1
builtin: true
grants:
  - name: curators
    who: [{group: curators, issuer: "https://idp.example"}]
    may: [reinstate, override, delete, manage-groups]
    projects: [CMIP6]
    institutions: [NCAR, MPI-M]
    nodes: "*"
  - name: robot
    who: [{name: robot}]
    may: [update, replicate]
    projects: "*"
    institutions: [NCAR]
    nodes: [south]
"""
WITH_FILE = (
    *TABLE,
    ("curator", ("reinstate", "override", "delete", "manage-groups"), ("CMIP6",), (NCAR, MPI), ALL_NODES),
    ("robot", ("update", "replicate"), PROJECTS, (NCAR,), ("south",)),
)
SHARES = {"aaaa-1": frozenset({GlobusShare("CMIP7", MPI)})}


def allowed(table: tuple[tuple[Any, ...], ...], who: str, action: str, resource: Resource) -> bool:
    """Return what the table says. Replicas of no node at all are nobody's but an administrator's."""
    if action == "replicate" and not resource.nodes and who != "admin":
        return False
    return any(
        who == line[0] and action in line[1] and resource.project in line[2] and resource.institution in line[3]
        and resource.nodes <= set(line[4])
        for line in table
    )  # fmt: skip


def cells() -> Iterator[tuple[str, Action, Resource]]:
    for who, action, project, at, nodes in itertools.product(WHO, Action, PROJECTS, INSTITUTIONS, NODES):
        yield who, action, Resource(f"{project}.x", project, at, frozenset(nodes))


@pytest.mark.parametrize(
    ("policy", "table"),
    [
        (Policy(shares=SHARES), TABLE),
        (policy_files.read(FILE, here="west", shares=SHARES), WITH_FILE),
        (policy_files.read(FILE.replace(b"builtin: true", b"builtin: false")), WITH_FILE[-2:]),
        (policy_files.read(b"version: 1"), ()),
    ],
    ids=["no file", "file beside what is built in", "file alone", "empty file"],
)
def test_every_cell_is_as_the_table_says(policy: Policy, table: tuple[tuple[object, ...], ...]) -> None:
    wrong = [
        (who, action.value, resource) for who, action, resource in cells()
        if policy.verdict(WHO[who], action, resource).allowed != allowed(table, who, action, resource)
    ]  # fmt: skip
    assert not wrong, f"{len(wrong)} cells; the first: {wrong[:5]}"
    assert sum(1 for _ in cells()) >= 1000


def test_every_line_of_the_table_decides_something() -> None:
    for line in WITH_FILE:
        granted = [1 for who, action, resource in cells() if who == line[0] and allowed((line,), who, action, resource)]
        assert granted, line


def test_a_decision_names_its_rule_and_a_refusal_what_would_help() -> None:
    for who, action, resource in cells():
        verdict = ROLES.verdict(WHO[who], action, resource)
        assert verdict.rule.startswith("builtin: ") is verdict.allowed
        assert resource.dataset in verdict.reason
        assert WHO[who].name in verdict.reason
        if not verdict.allowed:
            assert "is needed; ask" in verdict.reason
            with pytest.raises(MissingPermission):
                ROLES.require(WHO[who], action, resource)


def test_a_refusal_names_the_roles_of_what_is_touched() -> None:
    reason = ROLES.verdict(WHO["nobody"], Action.PUBLISH, Resource("d", "CMIP6", NCAR)).reason
    assert reason.startswith(
        "nobody may not publish d: the role publisher:NCAR or the entitlement CREATE on the project"
    )
    reason = ROLES.verdict(WHO["east"], Action.REPLICATE, Resource("d", "CMIP6", NCAR, frozenset(NODES[-1]))).reason
    assert "the roles node:east, node:south" in reason
    reason = ROLES.verdict(WHO["ncar"], Action.DELETE, Resource("d", "CMIP6", NCAR)).reason
    assert "the role admin is needed" in reason


def test_all_of_a_project_is_more_than_each_institution_of_it() -> None:
    everything = Resource("d", "*", "*")
    assert not ROLES.verdict(WHO["ncar"], Action.PUBLISH, everything).allowed
    assert not ROLES.verdict(WHO["own"], Action.PUBLISH, everything).allowed
    assert ROLES.verdict(WHO["own wide"], Action.PUBLISH, everything).allowed
    assert ROLES.verdict(WHO["admin"], Action.GROUPS, everything).allowed
