"""Random actions by random principals keep the invariants, and repeat, restore, refuse as promised.

Hypothesis draws the actions, and shrinks a failure to the few that it takes. Each goes through the queue and the worker
of a node on PostgreSQL; an index node follows. Where each invariant is checked:

| | after | by |
|---|---|---|
| I1 accepted is final | a batch | `Catalogue.perform`: each step has its result, also after workers that died |
| I2 one final state; done ⇔ events or unchanged | a batch | `Model._check_result` |
| I3 one key, one effect | `say_again` | `Catalogue.send_again` |
| I4 record, event, audit row together | a batch | `Catalogue.perform`, `_check_audit`; `check` |
| I5 nothing new below a position read | `follow` | `Catalogue.follow`; `check` |
| I6 seq without gaps, as pos | an event | `Model._check`; `check` |
| I7 logs are append-only | a run | `Catalogue.compare`, `compare_all` (the audit chain); `check` |
| I8 search = fold of the feed | a run | `Catalogue.compare`, `compare_all`; `check` |
| I9 replay = same digests | a run | `Catalogue.compare` (a fold from the run's first event), `compare_all`; `check` |
| I10 duplicates, reordering, splits | `follow` | `Catalogue.follow`: pages overlap and are in any order |
| I11 at most one latest | an event, a page | `Model._check_latest`; `Catalogue.follow` (the index node); `check` |
| I12 only reinstate undoes a retraction | an event | `Model._check_state` |
| I13 files never change without an exemption | an event | `Model._check_state` |
| I14 ids are never used again | a batch | `Catalogue.perform`: no record goes (nothing is deleted yet, only marked) |
| I15 another node's entries | an event | `Model._check_rights`; tests/db/test_other_nodes.py |
| I16 a permission for old and new values | an event | `Model._check_rights` |

`check` is `fedstac admin check` after each run, of everything that is there. The same is drawn each time;
FEDSTAC_TEST_SEED draws something else. `make test` takes 6 000 steps; `make soak` takes 60 000.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar
from uuid import uuid4

import orjson
import pytest
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from fedstac.db import requests
from fedstac.demo import sample
from fedstac.domain import documents, patching
from fedstac.domain.actions import command_of
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.target import QueuedAction
from fedstac.domain.documents import ItemTexts
from fedstac.domain.errors import Problem, errors_in
from fedstac.domain.model import Outcome, Record, State
from fedstac.domain.policy import Principal
from fedstac.domain.vocabulary import DatasetName
from tests.db import edits
from tests.db.catalogue import Ground
from tests.db.edits import NODES, Harm, SentEdit
from tests.db.model import Model, Step
from tests.db.writing import CHECKER, Item, plain, titled, version

SEED = int(os.environ.get("FEDSTAC_TEST_SEED") or 1)
STEPS, SOAK_STEPS = 6_000, 60_000
A_RUN = 150  # steps, about
MOST_DEATHS = 4  # of workers, after which what waits is still worked on: not yet given up as failed
DRAWING = settings(
    stateful_step_count=200, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False,
)  # fmt: skip
DAYS = (2020, 2021, 2022, 2023)
SMALL = [item for item in sample.items(600, versions=1, seed=5) if len(item["assets"]) < 4]
NAMES = [str(item["properties"]["cmip6:institution_id"]) for item in SMALL]
FIRST, SECOND = sorted(set(NAMES))[:2]  # institutions
OF = {"A": SMALL[NAMES.index(FIRST)], "B": SMALL[NAMES.index(SECOND)], "C": SMALL[NAMES.index(FIRST, 99)]}


def universe(run: int) -> dict[str, Item]:
    """Return what can be published in a run: three datasets in four versions, two without. No two runs share any."""
    items = {f"{name} {day}": of_day(item, day, run) for name, item in OF.items() for day in DAYS}
    return items | {f"thing {n}": thing(2 * run + n) for n in (0, 1)}


def of_day(item: Mapping[str, Any], day: int, run: int) -> Item:
    member = item["properties"]["cmip6:variant_label"]
    made = version(orjson.loads(orjson.dumps(item).decode().replace(member, f"r{run}i1p1f1")), day * 10_000 + 101)
    made["properties"]["version"] = f"{day}0101"
    return made


def thing(number: int) -> Item:
    file = {"href": "https://a.example/data", "type": "text/plain", "file:size": 12}
    file["file:checksum"] = f"1220{number:064}"
    return plain(number) | {"bbox": [number % 90] * 4, "assets": {"data": file}}


PEOPLE = {
    name: Principal(name, frozenset(roles))
    for name, roles in {
        "root": ["admin"], "ada": [f"publisher:{FIRST}"], "bob": [f"publisher:{SECOND}"],
        "both": [f"publisher:{FIRST}", f"publisher:{SECOND}"], "node-a": [f"node:{NODES[0]}"],
        "node-b": [f"node:{NODES[1]}"], "node-ac": [f"node:{NODES[0]}", f"node:{NODES[2]}"],
        "ada-a": [f"publisher:{FIRST}", f"node:{NODES[0]}"], "nobody": [],
    }.items()
}  # fmt: skip
WHO = st.just("root") | st.sampled_from(sorted(PEOPLE))
ITEM = st.sampled_from(sorted(universe(1)))
NTH = st.integers(0, 30)  # of the datasets that there are
SIZE = st.integers(1, 100)  # of a batch
REASON = st.sampled_from(
    ({}, {"data": "purge"}, {"reason": "wrong units"}, {"reason": "wrong forcing", "data": "keep"})
)


ELSEWHERE = (
    Outcome.QUARANTINED, Outcome.RELEASED, Outcome.DELETED, Outcome.PURGED,  # test_deletion_stateful.py
    Outcome.CLEARED, Outcome.REBUILT,  # test_clearing.py, and tests/workers/test_load_kills.py
)  # fmt: skip


class Actions(RuleBasedStateMachine):
    """Actions by people, batch by batch; and what happens to a node meanwhile."""

    ground: ClassVar[Ground]
    steps: ClassVar[int] = 0
    outcomes: ClassVar[Counter[str]] = Counter()

    @initialize(promoting=st.booleans(), size=SIZE)
    def begin(self, promoting: bool, size: int) -> None:
        """Begin with two versions of a dataset, one of another, and one of the collection without versions."""
        self.catalogue, self.model = self.ground.begin(promoting=promoting), Model(promoting)
        self.items = universe(self.ground.runs)
        self.waiting: list[Step] = []
        self.accepted, self.deaths = 0, 0  # of these; of workers that had claimed them
        self.size = size
        for name in ("A 2020", "A 2021", "B 2020", "thing 0"):
            self._publish("root", self.items[name])
        self._perform()

    # --- what people do ---

    @rule(who=WHO, item=ITEM, title=edits.TITLE)
    def publish(self, who: str, item: str, title: str | None) -> None:
        self._publish(who, titled(self.items[item], title) if title else self.items[item])

    @rule(who=WHO, item=ITEM, harm=edits.HARM)
    def publish_with_harm(self, who: str, item: str, harm: Harm) -> None:
        self._publish(who, harm.done_to(self.items[item]))

    @rule(who=WHO, nth=NTH, edit=REASON)
    def retract(self, who: str, nth: int, edit: Item) -> None:
        self._change(self._nth(nth), who, "retract", {"retraction": edit})

    @rule(who=WHO, nth=NTH)
    def supersede(self, who: str, nth: int) -> None:
        """Give up the latest version of one of the datasets."""
        self._edit(self._nth(nth, lambda record: record.latest), who, edits.Esgf("supersede"))

    @rule(who=WHO, nth=NTH, mark=st.sampled_from((False, False, True)))
    def mark_or_undo(self, who: str, nth: int, mark: bool) -> None:
        """Mark a dataset; or unmark one, else reinstate one."""
        for state, undo in ((State.MARKED, "unmark"), (State.RETRACTED, "reinstate")):
            record = self._nth(nth, lambda one, state=state: one.state is state)  # type: ignore[misc]
            if record.state is state and not mark:
                return self._change(record, who, undo, {})
        return self._change(self._nth(nth), who, "mark", {"reason": None})

    @rule(who=WHO, nth=NTH, edit=edits.AS_ESGF)
    def patch_as_esgf(self, who: str, nth: int, edit: SentEdit) -> None:
        self._edit(self._open(nth), who, edit)

    @rule(who=WHO, nth=NTH, edit=edits.REPLICAS)
    def replicate(self, who: str, nth: int, edit: SentEdit) -> None:
        self._edit(self._open(nth), who, edit)

    @rule(who=WHO, nth=NTH, edit=edits.MERGE)
    def merge(self, who: str, nth: int, edit: SentEdit) -> None:
        self._edit(self._open(nth), who, edit)

    @rule(who=WHO, nth=NTH, edit=edits.PATCH)
    def patch(self, who: str, nth: int, edit: SentEdit) -> None:
        self._edit(self._open(nth), who, edit)

    @rule(who=WHO, nth=NTH, edit=edits.WHOLE)
    def put(self, who: str, nth: int, edit: SentEdit) -> None:
        self._edit(self._open(nth), who, edit)

    @rule(who=WHO, nth=NTH, edit=edits.WHOLE | edits.MERGE)
    def replace_files(self, who: str, nth: int, edit: SentEdit) -> None:
        """Replace files, or make whatever else the edit comes to, with a reason (`Fedstac-Override`)."""
        self._edit(self._open(nth), who, edit, override="a better file")

    @precondition(lambda self: self.waiting)
    @rule(how=st.sampled_from(("", "", "if it is as it was", "if it is another", "under its key")))
    def say_again(self, how: str) -> None:
        """Repeat the last step; maybe on a condition (`If-Match`), or under the same Idempotency-Key."""
        last = self.waiting[-1]
        record = self.model.records.get(last.command.target.id)
        match how:
            case "under its key":
                self._accept()
                self.ground.run(self.catalogue.send_again(last))
            case "if it is as it was" if record and last.accepted.action != "publish":
                self._say_again_if(record.digest[:16].hex())
            case "if it is another" if last.accepted.action != "publish":
                self._say_again_if("0" * 32)
            case _:
                self._ask(replace(last, accepted=under_another_key(last.accepted)))

    # --- what happens meanwhile ---

    @rule(what=st.sampled_from(("rehearse", "die", "follow", "batches")), n=NTH, size=SIZE)
    def meanwhile(self, what: str, n: int, size: int) -> None:
        """Rehearse; let a worker die; let the index node follow; let the worker do what waits."""
        match what:
            case "rehearse":
                self.ground.run(self.catalogue.rehearse(self.waiting, self.model))
            case "die" if self.deaths < MOST_DEATHS:
                self.deaths += 1
                self._accept()
                self.ground.run(self.catalogue.die_working())
            case "follow":
                self.ground.run(self.catalogue.follow(random.Random(n)))
            case "batches":
                self.size = size
                self._perform()

    def teardown(self) -> None:
        if error := sys.exc_info()[1]:  # the run failed, or was broken off
            return self.ground.break_off(error)
        try:
            self._perform()
            self.ground.run(self.catalogue.follow(random.Random(0)))
            self.ground.end(self.catalogue, self.model)
        except BaseException as error:
            self.ground.break_off(error)
            raise
        type(self).outcomes += self.model.outcomes

    # --- the queue ---

    def _ask(self, step: Step) -> None:
        type(self).steps += 1
        self.waiting.append(step)
        if len(self.waiting) >= self.size:
            self._perform()

    def _accept(self) -> None:
        new = self.waiting[self.accepted :]
        self.accepted = len(self.waiting)
        self.ground.run(self.catalogue.accept(new))

    def _perform(self) -> None:
        """Let the worker do what waits."""
        self._accept()
        steps, self.waiting, self.accepted, self.deaths = self.waiting, [], 0, 0
        for step in steps:
            note(str(step))
        self.ground.run(self.catalogue.perform(steps, self.model))

    # --- how it is asked for ---

    def _publish(self, who: str, item: Item) -> None:
        """Submit an item as the API does; what the API refuses at once is left out."""
        collection, principal = item["collection"], PEOPLE[who]
        vocabulary = CHECKER.vocabularies.current(collection)
        try:
            draft, findings = CHECKER.draft(item, collection, vocabulary)
        except Problem:
            return
        errors, cv_version = errors_in(findings), vocabulary.version if vocabulary else None
        command = Publish(draft, principal, cv_version, errors)
        new = requests.NewItem(draft.lineage, draft.id, ItemTexts(draft.text, documents.packed(draft, errors)))
        accepted = request("publish", who, collection, new, cv_version)
        self._ask(Step(accepted, command, principal, repeatable=True))

    def _nth(self, nth: int, wanted: Callable[[Record], bool] = lambda _: True) -> Record:
        """Return one of the datasets: of those that `wanted` picks, if there are any."""
        records = [self.model.records[name] for name in sorted(self.model.records)]
        records = [record for record in records if wanted(record)] or records
        return records[nth % len(records)]

    def _open(self, nth: int) -> Record:
        """Return a dataset that can be edited, mostly."""
        return self._nth(nth, (lambda record: record.state is State.PUBLISHED) if nth < 25 else lambda _: True)

    def _edit(self, record: Record, who: str, sent_edit: SentEdit, *, override: str | None = None) -> None:
        try:
            edit = sent_edit.of(self.model.served(record.id))
        except Problem:
            return
        body = {"edit": patching.as_json(edit), "override": override}
        self._change(record, who, "amend", body, repeatable=sent_edit.repeatable)

    def _change(self, record: Record, who: str, action: str, body: Item, *, repeatable: bool = True) -> None:
        principal = PEOPLE[who]
        vocabulary = CHECKER.vocabularies.current(record.collection)
        cv_version = vocabulary.version if vocabulary else None
        new = requests.NewItem(record.lineage, record.id, ItemTexts(orjson.dumps(body).decode()))
        name = DatasetName(record.lineage, record.version)
        queued = QueuedAction(
            record.collection, record.id, name, principal, new.texts.read().document or "{}", vocabulary=vocabulary
        )
        command = command_of(action, queued)
        accepted = request(action, who, record.collection, new, cv_version)
        self._ask(Step(accepted, command, principal, repeatable))

    def _say_again_if(self, tag: str) -> None:
        """Repeat the last change on a condition, which may not hold any more the second time."""
        last = self.waiting[-1]
        [item] = last.accepted.items
        body = orjson.loads(item.texts.read().document or "{}") | {"expected": [tag]}
        record = self.model.records[last.command.target.id]
        self._change(record, last.principal.name, last.accepted.action, body, repeatable=False)


def request(
    action: str, who: str, collection: str, item: requests.NewItem, cv_version: str | None
) -> requests.NewRequest:
    roles = tuple(sorted(PEOPLE[who].roles))
    return under_another_key(
        requests.NewRequest(uuid4(), collection, action, who, roles, None, "test", cv_version, [item])
    )


def under_another_key(accepted: requests.NewRequest) -> requests.NewRequest:
    number = uuid4()
    return replace(accepted, id=number, key=requests.Key(accepted.submitter, "a route", str(number), number.bytes))


@pytest.mark.long
@pytest.mark.parametrize("steps", [STEPS, pytest.param(SOAK_STEPS, marks=pytest.mark.soak)])
def test_random_actions_by_random_principals(ground: Ground, steps: int) -> None:
    class Here(Actions):
        pass

    Here.ground = ground
    for number in count(SEED):
        print(f"FEDSTAC_TEST_SEED={number}")
        runs = max(5, (steps - Here.steps) // A_RUN)
        run_state_machine_as_test(seed(number)(Here), settings=settings(DRAWING, max_examples=runs))
        if Here.steps >= steps:
            break
    ground.leave()
    print(Here.steps, dict(Here.outcomes))
    if SEED == 1:
        assert set(Here.outcomes) == set(Outcome) - {Outcome.FAILED, *ELSEWHERE}
