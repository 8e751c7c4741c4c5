"""Policy files: what is understood, what is refused and where, and what stays in force when a file breaks."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from fedstac.domain.errors import Misdirected, MissingPermission
from fedstac.domain.groups import PolicyBroken
from fedstac.domain.policy import BUILTIN, Action, Level, Policy, Principal, Resource
from fedstac.identity import policy_files
from fedstac.identity.policy_files import Policies
from tests.support.places import REPOSITORY

GOOD = """
version: 1
grants:
  - name: ncar
    who: [{group: ncar-data, issuer: https://idp.example}, {name: robot}]
    may: [publish, update]
    projects: [CMIP6]
    institutions: [NCAR]
    nodes: "*"
"""
ROBOT = Principal("robot", frozenset())
HERS = Resource("CMIP6.x", "CMIP6", "NCAR")


def read(text: str) -> Policy:
    return policy_files.read(text.encode(), here="west")


def with_member(line: str, of: str = "may: [publish, update]") -> str:
    return GOOD.replace(of, line)


def test_a_file_says_who_may_do_what() -> None:
    policy = read(GOOD)
    assert policy.require(ROBOT, Action.PUBLISH, HERS).rule == "ncar"
    for action, resource in (
        (Action.RETRACT, HERS), (Action.PUBLISH, Resource("x", "CMIP7", "NCAR")),
        (Action.PUBLISH, Resource("x", "CMIP6", "MPI-M")), (Action.PUBLISH, Resource("x", "CMIP6", None)),
    ):  # fmt: skip
        with pytest.raises(MissingPermission):
            policy.require(ROBOT, action, resource)


def test_nothing_is_built_in_unless_the_file_says_so() -> None:
    admin = Principal("root", frozenset({"admin"}))
    assert not read("version: 1").verdict(admin, Action.PUBLISH, HERS).allowed
    assert read("version: 1\nbuiltin: true").verdict(admin, Action.PUBLISH, HERS).allowed
    assert Policy().rules == read("version: 1\nbuiltin: true").rules == BUILTIN


def test_a_project_asks_for_a_level() -> None:
    policy = read("version: 1\naccess: [{projects: [CMIP6], level: controlled}]")
    assert (policy.level_of("CMIP6"), policy.level_of("CMIP7")) == (Level.CONTROLLED, Level.OPEN)


def test_a_write_away_from_home_is_misdirected_and_says_where_to_go() -> None:
    policy = read("""
version: 1
builtin: true
homes:
  - {projects: [CMIP6], institutions: [NCAR], node: south, url: "https://south.example/"}
  - {projects: [CMIP6], institutions: "*", node: west, url: "https://west.example"}
""")
    admin = Principal("root", frozenset({"admin"}))
    with pytest.raises(Misdirected) as refused:
        policy.require(admin, Action.RETRACT, HERS)
    assert (refused.value.node, refused.value.home) == ("south", "https://south.example")
    assert "https://south.example" in refused.value.detail
    assert policy.require(admin, Action.PUBLISH, Resource("x", "CMIP6", "MPI-M"))
    assert policy.require(admin, Action.PUBLISH, Resource("x", "CMIP7", "NCAR"))
    assert policy.require(admin, Action.COLLECTIONS, HERS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("[]", "line 1: the file is no mapping"),
        ("version: 2", "line 1: version is not 1"),
        ("version: '1'", "version is not 1"),
        ("grants: []", "version is missing"),
        ("version: 1\nbuiltin: yes", "line 2: builtin is neither true nor false"),
        (
            "version: 1\ngrant: []",
            "line 2: the file grant is no member; there are version, builtin, homes, promote_previous, access, grants",
        ),
        ("version: 1\nversion: 1", "line 2: the file version stands there twice"),
        ("version: 1\n---\nversion: 1", "line 2: a second document"),
        ("version: 1\n  x: [", "no YAML"),
        ("version: 1\ngrants: {}", "line 2: grants is no list"),
        ("version: 1\ngrants: [5]", "line 2: grants[0] is no mapping"),
        ("version: 1\ngrants: &a []", "line 2: anchors"),
        ("version: 1\ngrants: *a", "line 2: anchors"),
        ("version: 1\ngrants: !!python/object:os.system []", "line 2: tags"),
        ("version: 1\ngrants: " + "[" * 5000, "nested too deeply"),
        ("version: 1\n#" + "x" * policy_files.MAX_BYTES, "over 262144 bytes"),
        (with_member("may: [publsih]"), "line 6: grants[0].may 'publsih' is no action; there are publish,"),
        (with_member("may: publish"), "grants[0].may is no list"),
        (with_member("may: []"), "names nothing"),
        (with_member("may: ['*', publish]"), 'has "*" beside names'),
        (with_member("projekts: [x]", "projects: [CMIP6]"), "projekts is no member"),
        (with_member("", "institutions: [NCAR]"), "line 4: grants[0] institutions is missing"),
        (with_member("institutions: [NO]", "institutions: [NCAR]"), "put it in quotes"),
        (with_member("institutions: [2020]", "institutions: [NCAR]"), "put it in quotes"),
        (with_member("name: 'builtin: x'", "name: ncar"), "builtin:"),
        (with_member("{name: robot, role: admin}", "{name: robot}"), "exactly one of name, role, group"),
        (with_member("{name: robot, issuer: x}", "{name: robot}"), "exactly one of"),
        (with_member("{entitlement: PUBLISH}", "{name: robot}"), "'PUBLISH' is no right; there are CREATE"),
        (with_member("{globus: true}", "{name: robot}"), "put it in quotes"),
        (with_member("{globus: x}", "{name: robot}"), "is '*'"),
        (with_member("{role: 'x:{project}'}", "{name: robot}"), "no other braces"),
        (GOOD + GOOD.partition("grants:\n")[2], "two have the name 'ncar'"),
        ("version: 1\nhomes: [{projects: '*', institutions: '*', node: a, url: ftp://x}]", "homes[0].url"),
        ("version: 1\naccess: [{projects: [x], level: x}]", "access[0].level 'x' is no level; there are"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(PolicyBroken) as refused:
        read(text)
    assert message in str(refused.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(PolicyBroken) as refused:
        read(GOOD.replace("publish, update", "a, b").replace("[CMIP6]", "[]"))
    assert str(refused.value).count("; line") == 2


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(PolicyBroken, match="UTF-8"):
        policy_files.read(b"\xff")


def test_a_changed_file_is_taken_up_and_a_broken_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_files, "LOOK_SECONDS", 0.0)
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    kept = Policies(str(path), here="west")
    assert kept.current.verdict(ROBOT, Action.PUBLISH, HERS).allowed
    path.write_text("version: 3")
    assert kept.current.verdict(ROBOT, Action.PUBLISH, HERS).allowed
    assert kept.error is not None
    assert "version is not 1" in kept.error
    path.unlink()
    assert kept.current.verdict(ROBOT, Action.PUBLISH, HERS).allowed
    assert "No such file" in kept.error
    path.write_text(GOOD.replace("robot", "other"))
    assert not kept.current.verdict(ROBOT, Action.PUBLISH, HERS).allowed
    assert kept.error is None


def test_files_are_looked_at_once_a_second_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)  # no time passes but by the test's hand
    kept = Policies(str(path), here="west")
    looks: list[str] = []
    stat = os.stat

    def counted(*given: Any, **named: Any) -> os.stat_result:
        looks.append("")
        return stat(*given, **named)

    monkeypatch.setattr(os, "stat", counted)
    for _ in range(1000):
        assert kept.current
    assert len(looks) <= 1
    now += 2
    for _ in range(1000):
        assert kept.current
    assert len(looks) <= 2


def test_a_node_does_not_start_with_a_broken_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("x")
    for policy, globus in ((path, ""), (tmp_path / "none", ""), ("", path)):
        with pytest.raises(PolicyBroken, match=r"FEDSTAC_(GLOBUS_)?POLICY: "):
            Policies(str(policy), str(globus), here="west")


def test_the_example_of_the_documentation_is_one() -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    example = page.partition("```yaml\n")[2].partition("```")[0]
    policy = read(example)
    assert policy.homes
    assert {action for rule in policy.rules for action in rule.actions} == set(Action)
