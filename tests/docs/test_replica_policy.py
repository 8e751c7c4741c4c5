"""The policy file in docs/replication.md is complete and can be used, and the JSON Schema agrees with what reads it."""

from __future__ import annotations

import copy
import re
from typing import Any, Final

import jsonschema_rs
import pytest
import yaml

from fedstac.domain.groups import PolicyBroken
from fedstac.domain.replication.policy import ReplicaPolicy
from fedstac.domain.replication.policy_schema import SCHEMA
from tests.docs.shell import REPOSITORY

PAGE: Final = (REPOSITORY / "docs/replication.md").read_text()
BLOCKS: Final = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)
[EXAMPLE] = re.findall(r"<!-- policy example: .*? -->\n```yaml\n(.*?)^```", PAGE, re.M | re.S)
BAD: Final[list[tuple[list[str | int], Any]]] = [
    (["version"], 2), (["budget"], "40"), (["budget"], "40 XB"), (["rules"], {}), (["rules", 0, "action"], "copy"),
    (["rules", 0, "name"], ""), (["rules", 1, "priority"], 5000), (["rules", 1, "check"], []),
    (["rules", 1, "on_retracted"], "burn"), (["rules", 1, "budget"], 5), (["rules", 0, "more"], 1),
    (["tiers", "default"], "/x"), (["tiers", "archive"], "relative"), (["sources", 0, "hosts"], []),
    (["sources", 0, "bandwidth"], "100 MB"), (["sources", 0, "connections"], 0), (["sources", 1, "private"], "yes"),
    (["sources", 0, "calendar", "closed", 0, "from"], "25:00"), (["sources", 0, "calendar", "closed", 1, "every"], "x"),
    (["sources", 0, "calendar", "closed", 0, "until"], "1"),
]  # fmt: skip


def test_the_example_can_be_used_and_has_every_member() -> None:
    policy = ReplicaPolicy.parse(EXAMPLE)
    assert [rule.name for rule in policy.rules] == ["drafts", "our models", "monthly means"]
    assert policy.names == {"title", "collection", "cmip7:source_id", "cmip7:frequency"}
    assert policy.source_of("https://x.dkrz.de/f") == policy.sources[0]
    assert policy.source_of("http://x.dkrz.de/f") is None
    assert policy.source_of("file:///mnt/import/a/b.nc") == policy.sources[2]
    for of in (SCHEMA, SCHEMA["properties"]["rules"]["items"], SCHEMA["properties"]["sources"]["items"]):
        for member in of["properties"]:
            assert re.search(rf"\b{member}:", EXAMPLE), member


@pytest.mark.parametrize("text", BLOCKS)
def test_every_policy_of_the_page_is_one_by_the_reader_and_by_the_schema(text: str) -> None:
    ReplicaPolicy.parse(text)
    jsonschema_rs.validate(SCHEMA, typed(text))


def typed(text: str) -> Any:
    """Return YAML with its numbers and truths, and with moments as they are written."""
    loader = type("Plain", (yaml.SafeLoader,), {})
    loader.yaml_implicit_resolvers = {  # type: ignore[attr-defined]
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return yaml.load(text, loader)


@pytest.mark.parametrize(("path", "value"), BAD, ids=[f"{'.'.join(map(str, path))}={value}" for path, value in BAD])
def test_what_the_schema_refuses_the_reader_refuses(path: list[str | int], value: object) -> None:
    document = copy.deepcopy(typed(EXAMPLE))
    at = document
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    assert not jsonschema_rs.is_valid(SCHEMA, document)
    with pytest.raises(PolicyBroken):
        ReplicaPolicy.parse(yaml.safe_dump(document))
