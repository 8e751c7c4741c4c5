"""Grants against a model: given, withdrawn, expired, suspended, restored, and closed with their datasets.

After each step the database opens to everybody what the model says, for every dataset and everybody at once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import grant_rights, invariants
from fedstac.db.connections import Connection
from fedstac.domain.actions import Command, Work
from fedstac.domain.actions.clear import Clear
from fedstac.domain.actions.delete import Delete
from fedstac.domain.actions.mark import Mark, Unmark
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.quarantine import Quarantine, Release
from fedstac.domain.actions.retract import Reinstate, Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.grants import GrantScope, GrantTarget
from fedstac.workers import granting
from fedstac.workers.deleting import Caller
from tests.db import writing
from tests.db.writing import ANNA

DATASETS, STEPS = 4, 60
SUBJECTS: Final = ("bert", "carla")
COMMANDS: Final = (
    "retract", "reinstate", "quarantine", "release", "mark", "unmark", "delete", "clear", "publish",
)  # fmt: skip
CALLER: Final = Caller(ANNA, writing.RULES.policy)
UNTIL: Final = datetime(2999, 1, 1, tzinfo=UTC)
NAMES: Final = tuple(("plain", f"thing-{n}") for n in range(DATASETS))


@dataclass
class ModelDataset:
    """What the model knows of a dataset."""

    is_retracted: bool = False
    is_quarantined: bool = False
    is_marked: bool = False
    is_deleted: bool = False
    is_cleared: bool = False

    @property
    def is_published(self) -> bool:
        return not (self.is_retracted or self.is_quarantined or self.is_marked or self.is_deleted or self.is_cleared)


@dataclass
class Model:
    """The datasets, and the open grants: subject, target, whether they hold now."""

    datasets: list[ModelDataset] = field(default_factory=lambda: [ModelDataset() for _ in range(DATASETS)])
    grants: dict[tuple[str, GrantTarget], bool] = field(default_factory=dict)  # False: it has expired

    def open_to(self, subject: str) -> set[tuple[str, str]]:
        return {
            ("plain", f"thing-{n}") for n, dataset in enumerate(self.datasets)
            if dataset.is_published and any(
                is_valid and who == subject and covers(target, n)
                for (who, target), is_valid in self.grants.items()
            )
        }  # fmt: skip


def covers(target: GrantTarget, n: int) -> bool:
    """Tell whether a dataset is of the target of a grant."""
    names = {GrantScope.DATASET: f"thing-{n}", GrantScope.LINEAGE: f"plain/thing-{n}", GrantScope.PROJECT: ""}
    return target.collection == "plain" and target.name == names[target.scope]


def target_of(n: int) -> Target:
    return Target("plain", f"thing-{n}", f"plain/thing-{n}")


def command_of(name: str, n: int) -> Command:
    """Return a command of somebody who may do everything."""
    target = target_of(n)
    match name:
        case "retract":
            return Retract(target, ANNA, {"reason": "wrong"})
        case "reinstate":
            return Reinstate(target, ANNA)
        case "quarantine":
            return Quarantine(target, ANNA, {"reason": "odd"})
        case "release":
            return Release(target, ANNA, "harmless")
        case "mark":
            return Mark(target, ANNA)
        case "unmark":
            return Unmark(target, ANNA)
        case "clear":
            return Clear(target, ANNA)
        case "publish":
            return Publish(writing.draft(writing.plain(n)), ANNA)
    return Delete(target, ANNA)


def follow(dataset: ModelDataset, name: str) -> None:
    """Change a dataset of the model as the command does where it is not refused."""
    match name:
        case "retract" | "reinstate":
            dataset.is_retracted = name == "retract"
        case "quarantine" | "release":
            dataset.is_quarantined = name == "quarantine"
        case "mark" | "unmark":
            dataset.is_marked = name == "mark"
        case "delete":
            dataset.is_deleted = True
        case "clear":
            dataset.is_cleared, dataset.is_retracted = True, False
        case "publish":
            dataset.is_cleared = False


class Run:
    """One run of random steps against the model."""

    def __init__(self, conn: Connection, node: Node, draw: random.Random) -> None:
        self.conn, self.node, self.draw = conn, node, draw
        self.model = Model()

    def target(self) -> GrantTarget:
        n = self.draw.randrange(DATASETS)
        return self.draw.choice((
            GrantTarget("plain", GrantScope.DATASET, f"thing-{n}"),
            GrantTarget("plain", GrantScope.LINEAGE, f"plain/thing-{n}"),
            GrantTarget("plain", GrantScope.PROJECT),
        ))  # fmt: skip

    async def step(self) -> str:
        kind = self.draw.choice(("give", "give", "change", "change", "change", "change", "withdraw", "expire"))
        match kind:
            case "give":
                return await self.give(self.draw.choice(SUBJECTS), self.target())
            case "withdraw":
                return await self.withdraw()
            case "expire":
                return await self.expire()
        return await self.change(
            self.draw.choice(COMMANDS), self.draw.sample(range(DATASETS), self.draw.choice((1, 2)))
        )

    async def give(self, subject: str, target: GrantTarget) -> str:
        if self.model.grants.get((subject, target)) is False:
            return "an expired one is there"  # a new one beside it would be another key of the model
        [outcome] = await granting.give(
            self.conn, self.node, CALLER, [granting.GrantWish(subject, target, None, UNTIL)]
        )  # fmt: skip
        if target.scope is GrantScope.PROJECT:
            is_there = True
        else:
            dataset = self.model.datasets[int(target.name.rpartition("-")[2])]
            is_there = not (dataset.is_marked or dataset.is_deleted or dataset.is_cleared)
        assert (outcome.problem is None) is is_there, outcome
        if is_there:
            assert outcome.is_new is ((subject, target) not in self.model.grants)
            self.model.grants[subject, target] = True
        return f"give {subject} {target}"

    async def withdraw(self) -> str:
        target, subject = self.target(), self.draw.choice((None, *SUBJECTS))
        count = await granting.withdraw_matching(
            self.conn, self.node, CALLER, subject=subject, target=target, reason="over"
        )  # fmt: skip
        gone = [key for key in self.model.grants if key[1] == target and subject in (None, key[0])]
        assert count == len(gone)
        for key in gone:
            del self.model.grants[key]
        return f"withdraw {subject} {target}"

    async def expire(self) -> str:
        """Let a grant have ended: the time that it had is over."""
        keys = [key for key, is_valid in self.model.grants.items() if is_valid]
        if not keys:
            return "nothing expires"
        subject, target = self.draw.choice(keys)
        await self.conn.execute(
            """UPDATE fedstac.access_grant SET valid_from = $4, valid_until = $5
               WHERE subject = $1 AND scope = $2 AND target = $3 AND closed_at IS NULL""",
            subject, target.scope, target.name, datetime.now(UTC) - timedelta(2), datetime.now(UTC) - timedelta(1),
        )  # fmt: skip
        self.model.grants[subject, target] = False
        return f"{subject} {target} expires"

    async def change(self, name: str, numbers: Sequence[int]) -> str:
        if name == "delete":
            await self.conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
        work = [Work(command_of(name, n), ANNA.name, name) for n in numbers]
        receipts = await publication.perform(self.conn, writing.RULES, work)
        for n, receipt in zip(numbers, receipts, strict=True):
            if receipt.problem is None:
                follow(self.model.datasets[n], name)
                if name in ("delete", "clear"):
                    gone = GrantTarget("plain", GrantScope.DATASET, f"thing-{n}")
                    self.model.grants = {key: value for key, value in self.model.grants.items() if key[1] != gone}
        return f"{name} {numbers}: {[receipt.outcome.value for receipt in receipts]}"

    async def compare(self) -> None:
        for subject in SUBJECTS:
            assert await grant_rights.open_to(self.conn, subject, NAMES) == self.model.open_to(subject)
            for collection, dataset in NAMES:
                until = await grant_rights.open_until(self.conn, subject, collection, dataset)
                assert (until is not None) is ((collection, dataset) in self.model.open_to(subject))


@pytest.mark.parametrize("seed", range(3))
async def test_grants_open_what_the_model_says(west: Node, connect: writing.Connect, seed: int) -> None:
    print(f"seed {seed}")
    conn = await connect()
    await publication.perform(conn, writing.RULES, writing.work(*map(writing.plain, range(DATASETS))))
    run = Run(conn, west, random.Random(seed))
    for _ in range(STEPS):
        print(await run.step())
        await run.compare()
    open_count = await conn.fetchval("SELECT count(*) FROM fedstac.access_grant WHERE closed_at IS NULL")
    assert open_count == len(run.model.grants)
    await writing.sequence_all(conn)
    assert await invariants.check(conn) == []
