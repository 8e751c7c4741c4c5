"""The policy file of a replica node: what it says of a dataset, and what is said of a file that is broken."""

from __future__ import annotations

from typing import Any

import pytest

from fedstac.domain.groups import PolicyBroken
from fedstac.domain.model import State
from fedstac.domain.replication.policy import OnRetracted, OnSuperseded, ReplicaAction, ReplicaPolicy

HEAD = "version: 1\nsources: []\nrules:\n"
FILE = """\
version: 1
budget: 40 TB
tiers:
  archive: /data/archive
rules:
  - name: drafts
    where: {op: like, args: [{property: title}, "Draft %"]}
    action: ignore
  - name: our models
    where: collection = 'CMIP7' AND "cmip7:source_id" IN ('A-1', 'B-2')
    action: replicate
    priority: 10
    budget: 1.5 TB
    check: [/usr/bin/ncdump, -h]
    on_superseded: tier
    superseded_tier: archive
    on_retracted: purge
  - name: the rest of CMIP7
    where: collection = 'CMIP7' AND latest = true
    action: restrict
sources:
  - name: dkrz
    hosts: ["*.dkrz.de"]
    bandwidth: 100 MB/s
    connections: 8
    calendar: {zone: Europe/Berlin, closed: [{every: day, from: 22:00, to: 06:00}]}
"""


def dataset(**properties: Any) -> dict[str, Any]:
    return {"id": "one", "properties": {"datetime": "2020-01-01T00:00:00Z", **properties}}


def test_the_first_rule_that_fits_decides() -> None:
    policy = ReplicaPolicy.parse(FILE)
    ours = policy.decide(dataset(**{"cmip7:source_id": "A-1"}), "CMIP7")
    assert (ours.rule, ours.action, ours.priority, ours.tier) == ("our models", ReplicaAction.REPLICATE, 10, "")
    assert (ours.on_superseded, ours.superseded_tier, ours.on_retracted) == (
        OnSuperseded.TIER, "archive", OnRetracted.PURGE
    )  # fmt: skip
    assert ours.check == ("/usr/bin/ncdump", "-h")
    draft = dataset(title="Draft 7", **{"cmip7:source_id": "A-1"})
    assert policy.decide(draft, "CMIP7").rule == "drafts"
    assert policy.decide(dataset(), "CMIP7").action is ReplicaAction.RESTRICT
    none = policy.decide(dataset(), "CMIP7", State.RETRACTED, latest=False)
    assert (none.action, none.rule) == (ReplicaAction.IGNORE, None)


def test_sizes_and_the_properties_that_rules_ask_for_are_read() -> None:
    policy = ReplicaPolicy.parse(FILE)
    assert policy.budget_bytes == 40 * 10**12
    assert policy.budgets.by_rule == {"our models": 15 * 10**11}
    assert policy.names == {"title", "collection", "cmip7:source_id", "latest"}
    assert policy.tiers == {"archive": "/data/archive"}
    assert policy.digest == ReplicaPolicy.parse(FILE.encode()).digest != ReplicaPolicy.parse(FILE + "\n").digest


@pytest.mark.parametrize(
    ("rule", "line", "key", "remedy"),
    [
        ("- {name: a, action: copy}", 4, "rules[0] (a).action", "not one of replicate, restrict, ignore"),
        ("- {action: ignore}", 4, "rules[0]", "name is missing"),
        ("- {name: a, action: ignore, wher: x}", 4, "rules[0]", "there are name, action, where"),
        ("- name: a\n    action: ignore\n    where: x = 'y", 6, "rules[0] (a).where", "is not CQL2 text"),
        ("- {name: a, action: ignore, where: x == 1}", 4, "rules[0] (a).where", "write ="),
        ("- {name: a, action: ignore, where: created > DATE('2020-01-01')}", 4, "where", "differs from node to node"),
        ("- {name: a, action: replicate, tier: tape}", 4, "rules[0] (a).tier", "there are default; add it to `tiers`"),
        ("- {name: a, action: replicate, budget: 5}", 4, "rules[0] (a).budget", "such as 500 GB"),
        ("- {name: a, action: replicate, check: [ncdump]}", 4, "rules[0] (a).check", "absolute path"),
        ("- {name: a, action: replicate, on_superseded: tier}", 4, "rules[0] (a)", "write both or neither"),
        ("- {name: a, action: ignore, priority: 1}", 4, "rules[0] (a).priority", "take it out"),
        ("- {name: a, action: replicate, priority: 9999}", 4, "rules[0] (a).priority", "from -1000 to 1000"),
        ("- {name: a, action: ignore}\n  - {name: a, action: ignore}", 4, "rules", "give each its own"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_named_by_line_key_and_remedy(rule: str, line: int, key: str, remedy: str) -> None:
    with pytest.raises(PolicyBroken) as broken:
        ReplicaPolicy.parse(HEAD + "  " + rule)
    [fault] = broken.value.faults
    assert fault.startswith(f"line {line}: ")
    assert key in fault
    assert remedy in fault


@pytest.mark.parametrize(
    ("source", "key", "remedy"),
    [
        ("hosts: ['*']", "hosts[0]", "is no host; write data.example.org"),
        ("hosts: ['*.org']", "hosts[0]", "is no host"),
        ("hosts: ['https://user@example.org']", "hosts[0]", "is no host"),
        ("hosts: ['file:///data/../etc']", "hosts[0]", "is no host"),
        ("hosts: []", "hosts", "names no host"),
        ("hosts: ['*.example.org'], private: true", "private", "name each private host"),
        ("hosts: [a.org], bandwidth: 100 MB", "bandwidth", "such as 100 MB/s"),
        ("hosts: [a.org], connections: 0", "connections", "from 1 to 1000"),
        ("hosts: [a.org], nodes: []", "nodes", "take `nodes` out"),
        ("hosts: [a.org], calendar: {zone: Mars/Olympus, closed: []}", "zone", "Europe/Berlin"),
        ("hosts: [a.org], calendar: {zone: UTC, closed: [{every: day, from: 00:00, to: 24:00}]}", "calendar",
         "take the source out"),
        ("hosts: [a.org], calendar: {zone: UTC, closed: [{every: someday, from: 00:00, to: 02:00}]}", "every",
         "no weekday"),
        ("hosts: [a.org], calendar: {zone: UTC, closed: [{every: day, from: 25:00, to: 02:00}]}", "from",
         "no time of day"),
        ("hosts: [a.org], calendar: {zone: UTC, closed: [{from: 2026-01-02, to: 2026-01-01}]}", "to", "swap them"),
        ("hosts: [a.org], calendar: {zone: UTC, closed: [{from: 2026-02-30, to: 2026-03-01}]}", "from", "no date"),
    ],
)  # fmt: skip
def test_a_broken_source_is_named_by_line_key_and_remedy(source: str, key: str, remedy: str) -> None:
    with pytest.raises(PolicyBroken) as broken:
        ReplicaPolicy.parse("version: 1\nrules: []\nsources:\n- {name: s, " + source + "}")
    assert all(fault.startswith("line 4: sources[0] (s)") for fault in broken.value.faults)
    assert any(key in fault and remedy in fault for fault in broken.value.faults)


def test_all_faults_of_a_file_are_named_at_once() -> None:
    text = FILE.replace("version: 1", "version: 2").replace("40 TB", "plenty").replace("purge", "burn")
    with pytest.raises(PolicyBroken) as broken:
        ReplicaPolicy.parse(text)
    assert [fault.partition(":")[0] for fault in broken.value.faults] == ["line 1", "line 17", "line 2"]
