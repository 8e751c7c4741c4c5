"""Random actions by random principals over a few lineages of two collections, and what has to hold of each.

A `Walk` makes commands, mends nothing, and follows what became of them in a model of its own: the records as the
receipts say. Everything that it asserts is a promise of publication.md or of the invariants.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from fedstac import sample
from fedstac.domain import documents, events, patching, strict_json
from fedstac.domain.actions import Command
from fedstac.domain.actions.amend import Amend, replica_edit
from fedstac.domain.actions.flags import Mark, Reinstate, Retract, Unmark
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.target import Target
from fedstac.domain.errors import Problem
from fedstac.domain.model import Change, Outcome, Receipt, Record, State
from fedstac.domain.patching import Edit, Whole, WithoutNode
from fedstac.domain.policy import Principal
from fedstac.domain.rules import pointer
from fedstac.domain.vocabulary import DatasetName, name_of
from fedstac.publication import Work
from tests.db.writing import CHECKER, CMIP6, plain, titled, version

Json = Any
Item = dict[str, Any]
NODES: Final = ("a.example", "b.example", "c~d/e.example")
DAYS: Final = (20200101, 20210101, 20220101, 20230101)
TURN: Final = 400  # steps, after which one lineage goes and another comes
AT_ONCE: Final = 5  # lineages
LIKELY: Final = {  # amend, retract, reinstate, mark, unmark
    State.PUBLISHED: (85, 6, 1, 4, 1), State.RETRACTED: (30, 10, 50, 4, 1), State.MARKED: (10, 2, 2, 5, 70),
}  # fmt: skip
VERSION = CMIP6.version if CMIP6 else None
ALTERNATE: Final = b'"alternate":'

HOSTILE: Final[tuple[Json, ...]] = (
    None, True, False, 0, -1, 1e308, 2**53, "", "x", "NOPE", "a/b", "~0~1", "é\u202e", "javascript:alert(1)", [], {},
    [[]], [None], {"": {}}, [{"rel": "self"}], {"href": 1}, {"alternate": []}, {"alternate": {"a.example": None}},
    {"alternate": {"b.example": {"href": "https://evil.example/x", "file:checksum": "1220" + "0" * 64}}},
    {"alternate": "x"}, {"alternate": {"a.example": "x"}}, {"file:checksum": "1220" + "f" * 64, "file:size": 1},
    {"href": "https://x.example/y", "file:checksum": ["1220"], "file:size": {}, "cmip6:tracking_id": [1]},
    "1220" + "f" * 64, "2020-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", [0] * 50, {"__proto__": {"a": 1}},
    {"rel": "related", "href": "https://errata.esgf.io/1"}, {"rel": "related"}, {"rel": None, "href": "x"},
    {"protocol": "kerchunk", "file:size": 3}, {"fedstac:state": "deleted", "latest": True, "retracted": False},
)  # fmt: skip
PLACES: Final = (
    "", "/", "/assets", "/assets/", "/properties", "/properties/", "/properties/~1", "/properties/retracted",
    "/properties/latest", "/properties/created", "/properties/fedstac:state", "/properties/fedstac:replicas", "/links",
    "/links/-", "/links/0", "/links/00", "/links/99", "/links/\u0663", "/links/-1", "/assets/x~1y",
    "/assets/x/alternate/b.example",
    "/id", "/collection", "/type", "/geometry", "/geometry/coordinates/0/0/0", "/bbox", "/bbox/-", "/stac_version",
    "/stac_extensions", "/stac_extensions/-", "/properties/version", "/properties/base_id", "/properties/datetime",
    "/properties/cmip6:source_id", "/properties/cmip6:institution_id", "/properties/cmip6:realm/-", "/a/b/c",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and whether saying it again has to succeed and to change nothing."""

    work: Work
    principal: Principal
    repeatable: bool
    override: bool = False

    @property
    def command(self) -> Command:
        return self.work.command


@dataclass
class Walk:
    """Makes steps from one seed, and holds what is known of the catalogue after them."""

    chance: random.Random
    records: dict[str, Record] = field(default_factory=dict)
    seqs: dict[str, int] = field(default_factory=dict)
    before_retraction: dict[str, Record] = field(default_factory=dict)
    before_mark: dict[str, Record] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        by_institution: dict[str, Item] = {}
        for item in sample.items(400, versions=1, seed=4):
            by_institution.setdefault(item["properties"]["cmip6:institution_id"], item)  # type: ignore[index]
        self.institutions = sorted(by_institution)[:4]
        others = [item for item in sample.items(600, versions=1, seed=5) if len(item["assets"]) < 4]  # type: ignore[arg-type]
        mine = [one for one in others if one["properties"]["cmip6:institution_id"] in self.institutions]  # type: ignore[index]
        self.lineages = [[_version(item, day) for day in DAYS] for item in mine[:40]]
        self.things = [_thing(n) for n in range(3)]
        self.items = {one["id"]: one for one in [*self.things, *(one for some in self.lineages for one in some)]}
        self.made = 0
        first, second, *_ = self.institutions
        self.principals = [
            Principal(name, frozenset(roles))
            for name, roles in {
                "root": ["admin"], "ada": [f"publisher:{first}"], "bob": [f"publisher:{second}"],
                "both": [f"publisher:{i}" for i in self.institutions], "node-a": [f"node:{NODES[0]}"],
                "node-b": [f"node:{NODES[1]}"], "node-ac": [f"node:{NODES[0]}", f"node:{NODES[2]}"],
                "ada-a": [f"publisher:{first}", f"node:{NODES[0]}"], "nobody": [],
            }.items()
        ]  # fmt: skip
        self.drafts: dict[bytes, Publish] = {}

    # --- what is asked ---

    def batch(self, size: int) -> list[Step]:
        """Steps in their order; some of them twice in a row."""
        steps: list[Step] = []
        while len(steps) < size:
            step = self.step()
            if step is None:
                continue
            steps.append(step)
            if self.chance.random() < 0.25:
                steps.append(step)
        return steps

    def step(self) -> Step | None:
        """A random action; None where it is refused before anything is looked up, as the API would."""
        self.made += 1
        first = self.made // TURN
        around = [self.lineages[n % len(self.lineages)] for n in range(first, first + AT_ONCE)]
        item_id = self.chance.choice([one for some in [*around, self.things] for one in some])["id"]
        principal = self.chance.choice(self.principals)
        if self.chance.random() < 0.6:
            principal = self.principals[0]
        try:
            if self.chance.random() < 0.18 or item_id not in self.records:
                return self._publish(item_id, principal)
            return self._change(item_id, principal)
        except Problem as problem:
            self.refusals[f"at once: {problem.name}"] += 1
            return None

    def _publish(self, item_id: str, principal: Principal) -> Step:
        item, chance = self.items[item_id], self.chance
        if chance.random() < 0.5:
            item = titled(item, f"title {chance.randrange(3)}")
        if chance.random() < 0.25:
            item = self._disturbed(item)
        key = orjson.dumps(item)
        if key not in self.drafts:
            collection = item["collection"]
            vocabulary = CHECKER.vocabularies.current(collection)
            draft, findings = CHECKER.draft(item, collection, vocabulary)
            held = tuple(finding for finding in findings if finding.severity == "error")
            cv_version = vocabulary.version if vocabulary else None
            self.drafts[key] = Publish(draft, self.principals[0], cv_version, held)
        command = replace(self.drafts[key], principal=principal)
        return Step(Work(command, principal.name, "publish"), principal, repeatable=True)

    def _change(self, item_id: str, principal: Principal) -> Step:
        chance, collection = self.chance, self.items[item_id]["collection"]
        vocabulary = CHECKER.vocabularies.current(collection)
        name = name_of(collection, item_id, vocabulary)
        assert isinstance(name, DatasetName)
        target = Target(collection, item_id, name.lineage)
        expected: tuple[str, ...] | None = None
        if chance.random() < 0.05:
            expected = chance.choice([("*",), ("0" * 32,), (self.records[item_id].digest[:16].hex(),)])
        weights = LIKELY[self.records[item_id].state]
        kind = chance.choices(("amend", "retract", "reinstate", "mark", "unmark"), weights)[0]
        repeatable, override = expected in (None, ("*",)), False
        command: Command
        match kind:
            case "retract":
                reason = {"reason": f"because {chance.randrange(2)}", "data": "keep"} if chance.random() < 0.7 else {}
                command = Retract(target, principal, reason, expected)
            case "reinstate":
                command = Reinstate(target, principal, expected)
            case "mark":
                command = Mark(target, principal, chance.choice([None, "old"]), expected)
            case "unmark":
                command = Unmark(target, principal, expected)
            case _:
                edit, harmless = self._edit(item_id)
                override = chance.random() < 0.15
                cv_version = vocabulary.version if vocabulary else None
                said = "a better file" if override else None
                command = Amend(target, principal, edit, cv_version, said, expected)
                repeatable = repeatable and harmless
        return Step(Work(command, principal.name, kind), principal, repeatable, override)

    # --- edits ---

    def _edit(self, item_id: str) -> tuple[Edit, bool]:
        """An edit, read as the API reads it, and whether it says the same when it is said twice."""
        known = self._served(item_id)
        makers = (
            (self._esgf, 30), (self._replicas, 25), (self._merge, 15), (self._random_patch, 20), (self._whole, 15),
        )  # fmt: skip
        make = self.chance.choices([maker for maker, _ in makers], [weight for _, weight in makers])[0]
        body, repeatable = make(known)
        if isinstance(body, WithoutNode):
            return body, repeatable
        parsed = strict_json.parse(orjson.dumps(body))
        return (Whole(parsed) if make == self._whole else patching.read(parsed)), repeatable

    def _served(self, item_id: str) -> Item:
        record = self.records[item_id]
        document: Item = orjson.loads(record.document or "{}")
        document["properties"] |= documents.state_of(record)
        return document

    def _esgf(self, known: Item) -> tuple[Json, bool]:
        """What ESGF's publisher sends (reference/esgf-wire.md)."""
        latest = {"op": "replace", "path": "/properties/latest", "value": False}
        retracted = {"op": "replace", "path": "/properties/retracted", "value": True}
        aggregation = {"href": "https://a.example/agg.json", "type": "application/json", "roles": ["reference"],
                       "protocol": "kerchunk", "alternate:name": "a.example", "description": "Kerchunk",
                       "created": "2024-01-01T00:00:00Z", "updated": "2024-01-01T00:00:00Z"}  # fmt: skip
        errata = {"rel": "related", "href": "https://errata.esgf.io/1", "title": "Errata issue", "type": "text/html"}
        described = f"changed {self.chance.randrange(4)}"
        return self.chance.choice([
            ([latest], True),
            ([latest, retracted, {"op": "replace", "path": "/assets", "value": {}}], True),
            ([{"op": "add", "path": "/assets/reference_file", "value": aggregation}], True),
            ([{"op": "remove", "path": "/assets/reference_file"}], False),
            ([{"op": "add", "path": "/links/-", "value": errata}], True),
            ([{"op": "add", "path": "/properties/description", "value": described}], True),
            ({"operations": [{"op": "add", "path": "/properties/note", "value": described}]}, True),
            ([retracted], True),
            ([{**retracted, "value": False}], True),
        ])  # fmt: skip

    def _replicas(self, known: Item) -> tuple[Json, bool]:
        chance, node = self.chance, self.chance.choice(NODES)
        files = [key for key, asset in known["assets"].items() if "file:checksum" in asset]
        if chance.random() < 0.25:
            return WithoutNode(node), True
        if chance.random() < 0.2:
            removed = [pointer("assets", key, "alternate", node) for key in files]
            return [{"op": "remove", "path": path} for path in removed], False
        chosen = files if chance.random() < 0.6 else [key for key in files if chance.random() < 0.5]
        entries: dict[str, Item] = {key: self._entry(node, key) for key in chosen}
        if entries and chance.random() < 0.1:
            entries[chosen[0]]["file:checksum"] = "1220" + "e" * 64
        operations = list(replica_edit(entries, node))
        if chance.random() < 0.15:  # and another node's entry in the same patch
            other = chance.choice(NODES)
            operations += replica_edit({key: self._entry(other, key) for key in chosen}, other)
            chance.shuffle(operations)
        return operations, True

    def _entry(self, node: str, key: str) -> Item:
        host = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in node)
        href = f"https://{host}/{self.chance.randrange(2)}/file.nc"
        return {"href": href, "description": "HTTPServer Link", "roles": ["data"]}

    def _merge(self, known: Item) -> tuple[Json, bool]:
        chance, node = self.chance, self.chance.choice(NODES)
        key = chance.choice([*known["assets"], "nothing"])
        made: list[Json] = [
            {"properties": {"description": f"merged {chance.randrange(4)}"}},
            {"properties": {"description": None, "note": None, "version": None, "datetime": None}},
            {"properties": {"retracted": True, "latest": None}},
            {"properties": {"retracted": False, "latest": True}},
            {"properties": None, "assets": None, "links": None, "geometry": None, "id": None, "collection": None},
            {"assets": {key: {"alternate": {node: self._entry(node, key)}}}},
            {"assets": {key: {"alternate": {node: None}}}},
            {"assets": {key: {"alternate": None}}},
            {"assets": {key: None}},
            {"assets": {key: {"file:checksum": "1220" + f"{chance.randrange(3)}" * 64}}},
            {"assets": {key: {"alternate": {node: {"href": None}}}}},
            {"links": [{"rel": "related", "href": f"https://errata.esgf.io/{chance.randrange(3)}"}]},
            {chance.choice(["id", "collection", "type", "foo", "assets", "links"]): chance.choice(HOSTILE)},
            {"properties": {chance.choice(["x", "version", "base_id", "latest", "size"]): chance.choice(HOSTILE)}},
        ]
        return chance.choice(made), True

    def _random_patch(self, known: Item) -> tuple[Json, bool]:
        places = [*PLACES, *_pointers(known)]
        operations = []
        for _ in range(self.chance.choice([1, 1, 1, 2, 3, 6])):
            op = self.chance.choice([*patching.OPERATIONS, "add", "replace", "remove", "frob"])
            operation: Item = {"op": op, "path": self.chance.choice(places)}
            operation["value"] = self.chance.choice(HOSTILE)
            operation["from"] = self.chance.choice(places)
            operations.append(operation)
        return operations, False

    def _whole(self, known: Item) -> tuple[Json, bool]:
        changed = copy.deepcopy(known)
        if self.chance.random() < 0.3:
            changed = copy.deepcopy(self.items[known["id"]])
        if self.chance.random() < 0.5:
            changed["properties"]["description"] = f"put {self.chance.randrange(4)}"
        return (self._disturbed(changed) if self.chance.random() < 0.6 else changed), True

    def _disturbed(self, item: Item) -> Item:
        """A document as one may send it who means harm, or knows no better."""
        chance, changed = self.chance, copy.deepcopy(item)
        assets, node = changed["assets"], chance.choice(NODES)
        files = [key for key, asset in assets.items() if "file:checksum" in asset]
        key = chance.choice(files) if files else None
        match chance.randrange(9) if key is not None else 8:
            case 0:
                assets[key]["alternate"] = {node: {**self._entry(node, key), "alternate:name": node}}
            case 1:
                assets[f"renamed {chance.randrange(2)}"] = assets.pop(key)
            case 2:
                assets[key]["file:checksum"] = "1220" + f"{chance.randrange(3)}" * 64
            case 3:
                assets.pop(key)
            case 4:
                changed["assets"] = {}
            case 5:
                assets["copy.nc"] = copy.deepcopy(assets[key])
            case 6:
                assets[key]["alternate"] = {}
            case 7:
                assets[key]["href"] = "https://moved.example/file.nc"
            case _:
                changed[chance.choice(["links", "foo", "properties"])] = chance.choice(HOSTILE)
        return changed

    # --- what has to hold ---

    def follow(self, steps: Sequence[Step], receipts: Sequence[Receipt]) -> list[tuple[Step, Change]]:
        """Takes what became of the steps into the model, and checks each; returns the changes in their order."""
        assert len(steps) == len(receipts)
        changes: list[tuple[Step, Change]] = []
        previous: tuple[Step, Receipt] | None = None
        for step, receipt in zip(steps, receipts, strict=True):
            self.outcomes[receipt.outcome] += 1
            if receipt.problem is not None:
                self.refusals[receipt.problem.name] += 1
                assert receipt.outcome is Outcome.REJECTED
                assert receipt.problem.detail
            if receipt.outcome in (Outcome.REJECTED, Outcome.IDENTICAL):
                assert receipt.changes == ()
            else:
                assert receipt.changes
            if previous is not None and previous[0] is step and step.repeatable:
                self._check_repeat(step, previous[1], receipt)
            for change in receipt.changes:
                self._check_change(step, change)
                self._take(change)
                changes.append((step, change))
            previous = (step, receipt)
        return changes

    def _check_repeat(self, step: Step, first: Receipt, second: Receipt) -> None:
        assert second.changes == (), f"said twice, {step.command} changed something again: {second}"
        if first.outcome is Outcome.REJECTED:
            assert second.outcome is Outcome.REJECTED
        else:
            assert second.outcome is Outcome.IDENTICAL, f"said twice, {step.command}: {second}"

    def _check_change(self, step: Step, change: Change) -> None:
        before, after = change.before, change.after
        known = self.records.get(after.id)
        assert (before is None) == (known is None)
        if before is not None and known is not None:
            assert replace(before, document=known.document) == known
            assert _bare(before) != _bare(after), f"{step.command} announces what changed nothing"
            assert (before.created, before.lineage, before.version) == (after.created, after.lineage, after.version)
        assert after.seq == self.seqs.get(after.lineage, 0) + 1
        own = after.id == step.command.target.id
        assert own or change.event_type == events.SUPERSEDED
        self._check_right(step, change)
        self._check_state(step, change)

    def _check_right(self, step: Step, change: Change) -> None:
        """I15, I16: nobody writes what is another's."""
        before, after, roles = change.before, change.after, step.principal.roles
        if "admin" in roles:
            return
        institution = self._institution(after)
        publishes = f"publisher:{institution}" in roles
        old, new = _entries(before), _entries(after)
        touched = {node for key, node in old.keys() | new.keys() if old.get((key, node)) != new.get((key, node))}
        assert touched <= {role.removeprefix("node:") for role in roles}, f"{step}: {touched}"
        if change.event_type not in (events.REPLICATED,):
            assert publishes, f"{step.principal} did {change.event_type}"
        assert change.event_type not in (events.REPLACED, events.REINSTATED)

    def _institution(self, record: Record) -> str | None:
        found = orjson.loads(record.document or "{}")["properties"].get("cmip6:institution_id")
        return found if isinstance(found, str) else None

    def _check_state(self, step: Step, change: Change) -> None:
        before, after = change.before, change.after
        if before is None:
            assert after.state is State.PUBLISHED
            return
        moves = {
            events.RETRACTED: State.RETRACTED, events.REINSTATED: State.PUBLISHED, events.MARKED: State.MARKED,
        }  # fmt: skip
        if change.event_type in moves:
            assert after.state is moves[change.event_type]
        elif change.event_type != events.UNMARKED:
            assert after.state is before.state  # I12
        if before.files_digest != after.files_digest:  # I13
            assert change.event_type in (events.REPLACED, events.UPDATED)
            assert change.event_type == events.REPLACED, f"{before.document}\n{after.document}"
            assert step.override
            assert change.reason
        if change.event_type in (
            events.RETRACTED,
            events.REINSTATED,
            events.MARKED,
            events.UNMARKED,
            events.SUPERSEDED,
        ):
            assert after.files_digest == before.files_digest
        if change.event_type in (events.MARKED, events.UNMARKED, events.SUPERSEDED):
            assert (after.document_digest, after.replicas) == (before.document_digest, before.replicas)
        if after.latest:
            newest = max(r.version or 0 for r in self.records.values() if r.lineage == after.lineage)
            assert (after.version or 0) >= newest
        self._check_restored(change)

    def _check_restored(self, change: Change) -> None:
        """Reinstated and unmarked: every byte as it was."""
        after = change.after
        if change.event_type == events.REINSTATED and (was := self.before_retraction.get(after.id)):
            assert (after.document, after.replicas) == (was.document, was.replicas)
            assert after.retraction is None
        if change.event_type == events.UNMARKED:
            was = self.before_mark.pop(after.id)
            assert _bare(replace(after, latest=False, claims_latest=False)) == _bare(
                replace(was, latest=False, claims_latest=False)
            )
            assert (after.document or was.document) == was.document
            siblings = [r for r in self.records.values() if r.lineage == after.lineage]
            newest = all((after.version or 0) >= (r.version or 0) for r in siblings)
            assert after.latest is (newest and after.state is State.PUBLISHED and not was.superseded)

    def _take(self, change: Change) -> None:
        before, after = change.before, change.after
        if after.document is None and before is not None:
            after = replace(after, document=self.records[after.id].document)
        known = self.records.get(after.id)
        if change.event_type == events.RETRACTED and known is not None and known.state is State.PUBLISHED:
            self.before_retraction[after.id] = known
        elif after.state is State.PUBLISHED or change.event_type == events.ANNOTATED:
            self.before_retraction.pop(after.id, None)
        if change.event_type == events.MARKED and known is not None:
            self.before_mark[after.id] = known
        self.records[after.id] = after
        self.seqs[after.lineage] = after.seq

    def check_event(self, row: Mapping[str, Any], step: Step, change: Change) -> None:
        """The text of an event against docs/events.md: the full new state, and nothing of the inside."""
        after, text = change.after, row["event"]
        assert (row["key"], row["collection"], row["dataset"]) == (after.lineage, after.collection, after.id)
        assert (row["seq"], row["type"], row["digest"]) == (after.seq, change.event_type, after.digest)
        known = after.document
        assert known is not None
        assert text.endswith(f'"document":{known}}}}}')
        event = orjson.loads(events.positioned(text, events.Cursor(1, 7)))
        data = event["data"]
        assert (event["specversion"], event["source"], event["type"]) == ("1.0", "west", change.event_type)
        assert (event["id"], event["sequence"]) == (str(row["event_id"]), str(after.seq))
        assert (event["subject"], event["partitionkey"]) == (f"{after.collection}/{after.id}", after.lineage)
        assert data["previous_state"] == (change.before.state if change.before else None)
        assert data["actor"] == step.principal.name
        assert data.get("actions", []) == list(change.actions)
        assert data.get("reason") == change.reason
        read = events.read(event, CHECKER.vocabularies.at(after.collection, VERSION or "") if data["cv"] else None)
        assert isinstance(read, events.DatasetEvent)
        assert read.record == replace(after, latest=after.claims_latest)
        assert read.record.digest == after.digest


def _version(item: Mapping[str, Any], day: int) -> Item:
    made = version(dict(item), day)
    made["properties"]["version"] = str(day)
    return made


def _thing(number: int) -> Item:
    item = plain(number) | {"bbox": [number, number, number, number]}
    item["assets"] = {
        "data": {"href": "https://a.example/data", "type": "text/plain", "file:checksum": f"1220{number:064}",
                 "file:size": 12}
    }  # fmt: skip
    return item


def _bare(record: Record) -> Record:
    """A record less what says only that something changed; without its text, which has a digest."""
    return replace(record, document=None, seq=0, epoch=0, updated=record.created)


def _entries(record: Record | None) -> dict[tuple[str, str], bytes]:
    """Each node's entry under each asset, byte by byte."""
    if record is None or record.document is None or ALTERNATE.decode() not in record.document:
        return {}
    assets = orjson.loads(record.document)["assets"]
    return {
        (key, node): orjson.dumps(entry)
        for key, asset in assets.items() if isinstance(asset.get("alternate"), dict)
        for node, entry in asset["alternate"].items()
    }  # fmt: skip


def _pointers(document: Json, at: str = "") -> Iterator[str]:
    members: Iterator[tuple[str, Json]] = iter(())
    if isinstance(document, dict):
        members = iter(document.items())
    elif isinstance(document, list):
        members = ((str(n), value) for n, value in enumerate(document[:3]))
    for name, value in members:
        place = at + pointer(name)
        yield place
        yield from _pointers(value, place)
