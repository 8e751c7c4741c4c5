"""A dataset, its vocabulary and a world, for tests of changes."""

from __future__ import annotations

from datetime import UTC, datetime

from fedstac.demo import sample
from fedstac.domain.model import World
from fedstac.domain.policy import Principal
from fedstac.vocabularies.checker import open_checker

CHECKER = open_checker()


VOCABULARY = CHECKER.vocabularies.current("CMIP6")
assert VOCABULARY is not None


PARSED = CHECKER.vocabularies.select(["CMIP6"], [("CMIP6", VOCABULARY.version)])


WORLD = World(now=datetime(2026, 3, 1, tzinfo=UTC), origin="west", judge=CHECKER, vocabularies=PARSED)


VERSION = VOCABULARY.version


[ITEM] = sample.items(1)


ROOT = Principal("root", frozenset({"admin"}))
