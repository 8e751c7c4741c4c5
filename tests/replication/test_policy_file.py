"""The policy file while a node runs: read again when it changes, the last good one kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedstac.domain.groups import PolicyBroken
from fedstac.replication.policy_file import PolicyFile

GOOD = "version: 1\nrules: []\nsources: []\n"


def write(path: Path, text: str) -> None:
    """Write a file as a deployment does, by a rename: another inode, so that the change is seen at once."""
    other = path.with_suffix(".new")
    other.write_text(text)
    os.replace(other, path)


def test_a_change_is_read_and_the_last_good_policy_stays_while_the_file_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    file = PolicyFile(path)
    first = file.current
    assert not file.look()
    write(path, GOOD.replace("rules: []", "rules: [{name: all, action: replicate}]"))
    assert file.look()
    second = file.current
    assert [rule.name for rule in second.rules] == ["all"]
    assert first.digest != second.digest
    write(path, "version: 1\nrules: 7\n")
    assert not file.look()
    assert file.current is second
    assert file.alert is not None
    assert "line 2: rules is no list" in file.alert
    assert "fedstac replica policy check" in file.alert
    path.unlink()
    assert not file.look()
    assert file.alert is not None
    assert f"{path} cannot be read: no such file; name the policy file, or set FEDSTAC_REPLICA_POLICY" in file.alert
    write(path, GOOD)
    assert file.look()
    assert file.alert is None


def test_a_comment_more_is_another_file_with_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    file = PolicyFile(path)
    write(path, GOOD + "# a comment\n")
    assert file.look()


def test_a_node_does_not_start_with_a_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD.replace("1", "2"))
    with pytest.raises(PolicyBroken, match=r"policy\.yaml: line 1: version is not 1"):
        PolicyFile(path)
