"""Random changes of datasets, filters in CQL2, and what each subscriber has to get of the changes, by brute force.

The truth of a filter is a Python function beside its text here; nothing of the product decides it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedstac import publication
from fedstac.db.connections import Connection
from fedstac.domain import events
from fedstac.domain.actions import Command, Work
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.mark import Mark, Unmark
from fedstac.domain.actions.retract import Reinstate, Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.patching import MergePatch
from tests.db import writing

COLLECTION = "plain"
SIZES = 1000
TITLES = 40
KINDS = ("ice", "sea", "land", "air")


@dataclass(frozen=True)
class Thing:
    """A dataset as the model has it."""

    number: int
    title: str
    kind: str | None
    size: int
    longitude: int
    retracted: bool = False
    marked: bool = False

    @property
    def id(self) -> str:
        return f"thing-{self.number}"

    @property
    def place(self) -> dict[str, Any]:
        return {
            "geometry": {"type": "Point", "coordinates": [self.longitude, 10]},
            "bbox": [self.longitude, 10, self.longitude, 10],
        }

    @property
    def document(self) -> dict[str, Any]:
        properties = {"datetime": "2020-01-01T00:00:00Z", "title": self.title, "size": self.size}
        properties |= {"kind": self.kind} if self.kind is not None else {}
        return {
            "type": "Feature", "stac_version": "1.1.0", "id": self.id, "collection": COLLECTION, "links": [],
            "assets": {}, "properties": properties, **self.place,
        }  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One change: an event of the log. seq: among those of the dataset."""

    seq: int
    type: str
    before: Thing | None
    after: Thing


Fits = Callable[[Thing], bool]


@dataclass(frozen=True)
class Wish:
    """A subscription's filter as it is sent, and whether a dataset fits. types: None for all."""

    filter: Mapping[str, Any]
    fits: Fits
    types: frozenset[str] | None = None

    def expected(self, steps: Iterable[Step]) -> dict[tuple[str, int], str]:
        """Return the type of each event that who may see everything gets, by dataset and number."""
        types = {}
        for step in steps:
            fitted = step.before is not None and self.fits(step.before)
            event_type = step.type if self.fits(step.after) else events.LEFT if fitted else None
            if event_type is not None and (self.types is None or event_type in self.types):
                types[step.after.id, step.seq] = event_type
        return types

    def members(self, things: Iterable[Thing]) -> set[str]:
        """Return the datasets that fit, and that everybody may see."""
        return {thing.id for thing in things if self.fits(thing) and not thing.marked}


def wishes(count: int, seed: int) -> Iterator[Wish]:
    """Yield different filters, each of which a few datasets in a hundred fit."""
    chance = random.Random(f"wishes {seed}")
    for n in range(count):
        least = chance.randrange(SIZES - 60) + 20
        most = least + 12 + n % 9
        title, other, kind = f"t{chance.randrange(TITLES)}", f"t{chance.randrange(TITLES)}", KINDS[n % len(KINDS)]
        west = chance.randrange(-170, 160)
        match n % 8:
            case 0:
                yield Wish({"cql2": f"size >= {960 + n // 8}"}, _size(960 + n // 8, SIZES))
            case 1:
                cql2 = f"title = '{title}' AND size < {least}"
                yield Wish({"cql2": cql2, "collections": [COLLECTION]}, _both(_title(title), _size(0, least - 1)))
            case 2:
                cql2 = f"kind IN ('{kind}', 'fog') AND NOT title = '{title}' AND size BETWEEN {least} AND {most}"
                yield Wish({"cql2": cql2}, _both(_kind(kind), _not(_title(title)), _size(least, most)))
            case 3:
                yield Wish({"bbox": [west, 0, west + 8 + n % 3, 20]}, _longitude(west, west + 8 + n % 3))
            case 4:
                cql2 = f"title LIKE '{title}%' AND size > {least}"
                fits = _both(_begins(title), _size(least + 1, SIZES), _longitude(-180, west))
                yield Wish({"cql2": cql2, "bbox": [-180, -90, west, 90]}, fits)
            case 5:
                cql2 = f"kind IS NULL AND size BETWEEN {least} AND {most + 40}"
                yield Wish({"cql2": cql2}, _both(_kind(None), _size(least, most + 40)))
            case 6:
                cql2 = f"(title = '{title}' OR title = '{other}') AND kind = '{kind}'"
                yield Wish(
                    {"cql2": cql2, "types": ["dataset.left", "dataset.retracted", "dataset.updated"]},
                    _both(_title(title, other), _kind(kind)),
                    frozenset({events.LEFT, events.RETRACTED, events.UPDATED}),
                )
            case _:
                cql2 = f"retracted = TRUE AND size < {least} AND title = '{title}'"
                yield Wish({"cql2": cql2}, _both(_retracted, _size(0, least - 1), _title(title)))


def _both(*conditions: Fits) -> Fits:
    return lambda thing: all(condition(thing) for condition in conditions)


def _not(condition: Fits) -> Fits:
    return lambda thing: not condition(thing)


def _size(least: int, most: int) -> Fits:
    return lambda thing: least <= thing.size <= most


def _title(*titles: str) -> Fits:
    return lambda thing: thing.title in titles


def _begins(begin: str) -> Fits:
    return lambda thing: thing.title.startswith(begin)


def _kind(kind: str | None) -> Fits:
    return lambda thing: thing.kind == kind


def _longitude(west: int, east: int) -> Fits:
    return lambda thing: west <= thing.longitude <= east


def _retracted(thing: Thing) -> bool:
    return thing.retracted


@dataclass
class RandomChanges:
    """Changes datasets at random, and remembers each change."""

    seed: int
    most_things: int
    things: list[Thing] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(f"changes {self.seed}")
        self._seqs: dict[int, int] = {}

    async def make(self, conn: Connection, count: int) -> None:
        """Make so many changes in one transaction of the write path, and sequence them."""
        commands = [self._next() for _ in range(count)]
        receipts = await publication.perform(
            conn, writing.RULES, [Work(command, "anna", "change") for command in commands]
        )
        problems = [receipt.problem for receipt in receipts if receipt.problem is not None]
        assert not problems, problems[:3]
        await writing.sequence_all(conn)

    def _next(self) -> Command:
        chance = self._chance
        if (len(self.things) < self.most_things and chance.random() < 0.3) or not self.things:
            thing = self._fresh(len(self.things))
            self.things.append(thing)
            self._log(events.PUBLISHED, None, thing)
            return writing.work(writing.draft(thing.document))[0].command
        thing = chance.choice(self.things)
        draft = writing.draft(thing.document)
        target = Target(COLLECTION, draft.id, draft.lineage)
        if thing.marked:
            self._change(events.UNMARKED, thing, marked=False)
            return Unmark(target, writing.ANNA)
        match chance.randrange(10):
            case 0:
                self._change(events.MARKED, thing, marked=True)
                return Mark(target, writing.ANNA)
            case _ if thing.retracted:
                self._change(events.REINSTATED, thing, retracted=False)
                return Reinstate(target, writing.ANNA)
            case 1:
                self._change(events.RETRACTED, thing, retracted=True)
                return Retract(target, writing.ANNA, {"reason": "wrong"})
            case 2:
                moved = self._change(events.UPDATED, thing, longitude=self._other(-180, 180, thing.longitude))
                return Amend(target, writing.ANNA, MergePatch(moved.place), None)
            case _:
                fresh = self._fresh(thing.number)
                size = self._other(0, SIZES, thing.size)
                self._change(events.UPDATED, thing, title=fresh.title, kind=fresh.kind, size=size)
                properties = {"title": fresh.title, "kind": fresh.kind, "size": size}
                return Amend(target, writing.ANNA, MergePatch({"properties": properties}), None)

    def _fresh(self, number: int) -> Thing:
        chance = self._chance
        return Thing(
            number, f"t{chance.randrange(TITLES)}", chance.choice((*KINDS, None)), chance.randrange(SIZES),
            chance.randrange(-180, 180),
        )  # fmt: skip

    def _other(self, least: int, end: int, value: int) -> int:
        drawn = self._chance.randrange(least, end - 1)
        return drawn + (drawn >= value)

    def _change(self, event_type: str, thing: Thing, **values: Any) -> Thing:
        changed = replace(thing, **values)
        self.things[thing.number] = changed
        self._log(event_type, thing, changed)
        return changed

    def _log(self, event_type: str, before: Thing | None, after: Thing) -> None:
        seq = self._seqs[after.number] = self._seqs.get(after.number, 0) + 1
        self.steps.append(Step(seq, event_type, before, after))
