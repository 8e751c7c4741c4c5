"""Entitlements, shares and what is kept of an identity, as tables."""

from __future__ import annotations

from typing import Any

import pytest

from fedstac.domain import groups
from fedstac.domain.addresses import is_safe
from fedstac.domain.errors import InvalidToken
from fedstac.domain.groups import Entitlement, GlobusShare, Identity, PolicyBroken, Right, Scope
from fedstac.domain.policy import Principal

VO = "urn:mace:egi.eu:group:esgf.vo.egi.eu"
END = "#aai.egi.eu"


@pytest.mark.parametrize(
    ("urn", "expected"),
    [
        (f"{VO}:project:CMIP6:role=CREATE{END}", Entitlement(Scope.PROJECT, "CMIP6", None, Right.CREATE)),
        (f"{VO}:project:*:role=RETRACT{END}", Entitlement(Scope.PROJECT, "*", None, Right.RETRACT)),
        (
            f"{VO}:project:CMIP6:institution:MPI-M:role=UPDATE{END}",
            Entitlement(Scope.PROJECT, "CMIP6", "MPI-M", Right.UPDATE),
        ),
        (f"{VO}:project:*:institution:IPSL:role=ERRATA{END}", Entitlement(Scope.PROJECT, "*", "IPSL", Right.ERRATA)),
        (f"{VO}:node:esgf-data1.llnl.gov:role=REPLICATE{END}",
         Entitlement(Scope.NODE, "esgf-data1.llnl.gov", None, Right.REPLICATE)),
        *((f"{VO}:node:*:role={right}{END}", Entitlement(Scope.NODE, "*", None, right)) for right in Right),
    ],
)  # fmt: skip
def test_an_entitlement_is_understood(urn: str, expected: Entitlement) -> None:
    assert groups.entitlement(urn) == expected


@pytest.mark.parametrize(
    "urn",
    [
        "",
        f"{VO}:project:CMIP6:role=CREATE",
        f"{VO}:project:CMIP6:role=CREATE#aai.egi.eu.evil.example",
        f"{VO}:project:CMIP6:role=CREATE{END}\n",
        f" {VO}:project:CMIP6:role=CREATE{END}",
        f"{VO}:project:CMIP6:role=create{END}",
        f"{VO}:project:CMIP6:role=ADMIN{END}",
        f"{VO}:project:CMIP6:role={END}",
        f"{VO}:project:CMIP6:role=CREATE:role=DELETE{END}",
        f"{VO}:project:CMIP6{END}",
        f"{VO}:project::role=CREATE{END}",
        f"{VO}:project:CMIP*:role=CREATE{END}",
        f"{VO}:project:**:role=CREATE{END}",
        f"{VO}:project:CMIP6:institution:*:role=CREATE{END}",
        f"{VO}:project:CMIP6:institution::role=CREATE{END}",
        f"{VO}:project:CMIP6:institution:role=CREATE{END}",
        f"{VO}:project:CMIP6:centre:IPSL:role=CREATE{END}",
        f"{VO}:project:CMIP6:institution:IPSL:institution:MPI-M:role=CREATE{END}",
        f"{VO}:project:CMIP６:role=CREATE{END}",
        f"{VO}:PROJECT:CMIP6:role=CREATE{END}",
        f"{VO}:group:CMIP6:role=CREATE{END}",
        "urn:mace:egi.eu:group:other.vo.egi.eu:project:CMIP6:role=CREATE#aai.egi.eu",
        "urn:mace:egi.eu:group:esgfXvo.egi.eu:project:CMIP6:role=CREATE#aai.egi.eu",
        f"urn:mace:evil:{VO}:project:CMIP6:role=CREATE{END}",
        f"{VO}:project:CMIP6:role=CREATE#AAI.EGI.EU",
    ],
)
def test_what_is_not_exactly_of_the_form_is_no_entitlement(urn: str) -> None:
    assert groups.entitlement(urn) is None


def test_a_star_covers_everything_and_a_name_itself() -> None:
    everywhere = Entitlement(Scope.PROJECT, "*", None, Right.CREATE)
    here = Entitlement(Scope.PROJECT, "CMIP6", None, Right.CREATE)
    assert everywhere.covers("CMIP6")
    assert here.covers("CMIP6")
    assert not here.covers("CMIP7")


def identity(**claims: Any) -> groups.Identity:
    return groups.identity("https://idp", {"sub": "alice", **claims}, groups_claim="groups")


@pytest.mark.parametrize("value", [None, 5, True, {"a": 1}, [["a"]], [None], ["\x00"], ["\ud800"], ["x" * 513], ""])
def test_strange_values_are_no_groups(value: object) -> None:
    found = identity(groups=value, eduperson_entitlement=value, name=value, email=value, scope=value, client_id=value)
    assert (found.groups, found.entitlements, found.email, found.client_id) == (frozenset(), (), None, "")


def test_groups_may_be_one_text_and_scopes_a_list() -> None:
    found = identity(groups="cmip", scp=["a", "b"])
    assert (set(found.groups), set(found.scopes)) == ({"cmip"}, {"a", "b"})
    assert identity(scope="a  b").scopes == {"a", "b"}


def test_more_groups_than_anybody_has_are_refused() -> None:
    with pytest.raises(InvalidToken, match="over 1000"):
        identity(groups=["g"] * 100_000)
    with pytest.raises(InvalidToken):
        identity(eduperson_entitlement=["g"] * 100_000)


@pytest.mark.parametrize("sub", [None, 5, "", ["alice"], "a" * 256, "a\nb", "\ud800"])
def test_without_a_usable_subject_there_is_no_identity(sub: object) -> None:
    with pytest.raises(InvalidToken, match="sub"):
        identity(sub=sub)


def test_a_policy_file_names_shares_of_groups() -> None:
    document = {"project": {
        "CMIP6": {"cmip6:institution_id": {
            "IPSL": [{"name": "i", "uuid": "AAAA-1", "url": "u"}, {"name": "j", "uuid": "bbbb-2", "url": "u"}],
            "NCAR": [{"uuid": "aaaa-1"}],
        }},
        "obs4MIPs": {"obs4mips:institution_id": {"JPL": []}},
    }}  # fmt: skip
    assert groups.shares(document) == {
        "aaaa-1": {GlobusShare("CMIP6", "IPSL"), GlobusShare("CMIP6", "NCAR")},
        "bbbb-2": {GlobusShare("CMIP6", "IPSL")},
    }


@pytest.mark.parametrize(
    "document",
    [
        None, [], {}, {"project": []}, {"project": {"CMIP6": []}}, {"project": {"CMIP6": {"cmip6:source_id": {}}}},
        {"project": {"CMIP6": {"cmip6:institution_id": []}}},
        {"project": {"CMIP6": {"cmip6:institution_id": {"IPSL": {"uuid": "a"}}}}},
        {"project": {"CMIP6": {"cmip6:institution_id": {"IPSL": [{"name": "a"}]}}}},
        {"project": {"CMIP6": {"cmip6:institution_id": {"IPSL": [{"uuid": 5}]}}}},
        {"project": {"CMIP6": {"cmip6:institution_id": {"IPSL": [{"uuid": ""}]}}}},
    ],
    ids=str,
)  # fmt: skip
def test_a_policy_file_is_understood_as_a_whole_or_not_at_all(document: object) -> None:
    with pytest.raises(PolicyBroken):
        groups.shares(document)


@pytest.mark.parametrize(
    ("urns", "expected"),
    [
        ([], None),
        ([f"{VO}:node:east:role=REPLICATE{END}"], "east"),
        ([f"{VO}:node:east:role=CREATE{END}"], None),
        ([f"{VO}:node:*:role=REPLICATE{END}"], None),
        ([f"{VO}:project:east:role=REPLICATE{END}"], None),
        ([f"{VO}:node:{name}:role=REPLICATE{END}" for name in ("east", "south")], None),
    ],
)
def test_who_replicates_on_one_node_speaks_for_it(urns: list[str], expected: str | None) -> None:
    assert Principal("x", frozenset(), identity(entitlements=urns)).node == expected


def test_an_identity_that_was_packed_has_the_same_rights() -> None:
    whole = identity(groups=["b", "a"], entitlements=[f"{VO}:project:*:institution:NCAR:role=CREATE{END}"])
    again = Identity.unpacked(whole.packed())
    assert (again.issuer, again.groups, again.entitlements) == (whole.issuer, whole.groups, whole.entitlements)
    assert whole.subject not in whole.packed()


@pytest.mark.parametrize(
    ("url", "issuer", "expected"),
    [
        ("https://keys.example/jwks", "https://idp.example", True),
        ("http://idp.example/jwks", "https://idp.example", False),
        ("http://127.0.0.1:9/jwks", "https://idp.example", False),
        ("http://127.0.0.1:9/jwks", "http://localhost:9", True),
        ("http://[::1]:9/jwks", "http://127.0.0.1:9", True),
        ("http://127.0.0.1.evil.example/", "http://127.0.0.1", False),
        ("http://localhost.evil.example/", "http://127.0.0.1", False),
        ("https://user:word@idp.example/", "https://idp.example", False),
        ("http://127.0.0.1@evil.example/", "http://127.0.0.1", False),
        ("ftp://127.0.0.1/", "http://127.0.0.1", False),
        ("file:///etc/passwd", "http://127.0.0.1", False),
        ("https://", "https://idp.example", False),
        ("https://[", "https://idp.example", False),
        ("https://idp.example:port/", "https://idp.example", False),
        ("", "https://idp.example", False),
    ],
)
def test_only_safe_addresses_are_used(url: str, issuer: str, expected: bool) -> None:
    assert is_safe(url, of=issuer) is expected
