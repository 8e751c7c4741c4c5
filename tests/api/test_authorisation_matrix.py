"""The authorisation matrix over HTTP: every cell comes to what the table (tests/api/matrix.py) says, and to no more.

What is refused changes no byte and has one row in the audit log; what is allowed is done to the one dataset, with one
row too. The application is the real one, so is the database.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest

from fedstac import applying, publication
from fedstac.api.app import TABLE
from fedstac.api.writing import refusals
from fedstac.db import audit, nodes, own_groups, people, requests
from fedstac.db.audit import RowFilter
from fedstac.db.connections import Connection
from fedstac.db.own_groups import GroupRole
from fedstac.domain import events
from fedstac.domain.actions import Command, Work
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.mark import Mark
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.retract import Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.audit import Row
from fedstac.domain.documents import ItemTexts
from fedstac.domain.events import Cursor
from fedstac.domain.model import Lineage, World
from fedstac.domain.patching import JsonPatch
from tests.api import matrix
from tests.api.matrix import Cell, Dataset
from tests.api.stored import everything
from tests.db import writing
from tests.db.writing import ANNA, CHECKER, CMIP6
from tests.support.identity import Provider, StartNode
from tests.support.nodes import Api

VERSION = CMIP6.version if CMIP6 else None


def test_there_are_a_thousand_cells_each_with_one_line_at_most() -> None:
    cells = list(matrix.cells())
    assert len(cells) >= 1000
    assert [str(cell) for cell in cells if len(cell.lines) > 1] == []


def test_every_line_decides_something() -> None:
    used = {line for cell in matrix.cells() for line in cell.lines}
    assert [line for line in matrix.TABLE if line not in used] == []


def test_every_route_is_asked() -> None:
    """A new route has to be asked about here."""
    requests = [deed(Dataset(1)) for deed in matrix.DEEDS.values()]
    declared = {(route.method, route.path) for route in TABLE if route.method != "OPTIONS"}
    assert declared - {(each.method, each.route) for each in requests} == set()


def came_to(answer: httpx.Response, rows: Sequence[Row]) -> str:
    """Return the outcome in the table's words; that of an accepted write is in its row of the audit log."""
    if answer.status_code >= 400:
        return str(answer.json()["code"]) if answer.content else matrix.GONE  # of HEAD there is only the status
    if rows:
        return rows[0].outcome
    if answer.request.method == "OPTIONS":
        allowed = answer.headers["allow"].split(", ")
        return ", ".join(method for method in allowed if method in ("PATCH", "PUT", "DELETE")) or "nothing"
    if "dry_run" in str(answer.request.url):
        body = answer.json()
        items = body.get("items", [body])
        if len(items) == 1 and "outcome" in items[0]:  # of datasets; other dry runs say what is affected
            return str(items[0].get("problem") or items[0]["outcome"])
    changes_a_dataset = answer.request.method not in ("GET", "HEAD") and "/items/" in answer.request.url.path
    return matrix.IDENTICAL if changes_a_dataset else matrix.ANSWERED  # what changes nothing has no row


@pytest.fixture
async def api(start_node: StartNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Api:
    """A node that takes tokens of a provider's, with a Globus policy, which writes every refusal down at once."""
    monkeypatch.setattr(refusals, "PER_SECOND", 1e9)
    globus = tmp_path / "globus.json"
    groups = {"cmip6:institution_id": {"NCAR": [{"name": "ncar", "uuid": "aaaa-1", "url": "https://globus.example"}]}}
    globus.write_text(json.dumps({"project": {"CMIP6": groups}}))
    return await start_node(globus_policy=str(globus))


async def tokens(conn: Connection, provider: Provider) -> dict[str, dict[str, str]]:
    """Return the headers that each caller sends."""
    tokens = {who: await nodes.issue_token(conn, who, roles) for who, roles in matrix.ROLES.items()}
    tokens |= {who: provider.token(sub=who, **claims) for who, claims in matrix.CLAIMS.items()}
    tokens[matrix.MADE_UP] = "fst_made-up"
    return {who: {"Authorization": f"Bearer {tokens[who]}"} if who in tokens else {} for who in matrix.WHO}


def made_so(dataset: Dataset, state: str) -> list[Command]:
    """Return what brings a dataset into a state."""
    item, target = draft(dataset.document), target_of(dataset)
    steps: list[Command] = [Publish(item, ANNA, VERSION)]
    match state:
        case matrix.ABSENT | matrix.FOREIGN:
            return []
        case matrix.SUPERSEDED:
            steps.append(Publish(draft(dataset.version("20500101")), ANNA, VERSION))
        case matrix.RETRACTED:
            steps.append(Retract(target, ANNA, matrix.REASON))
        case matrix.MARKED:
            steps.append(Mark(target, ANNA))
        case matrix.REPLICATED:
            both = JsonPatch([*dataset.replica("east"), *dataset.replica("south")])
            steps.append(Amend(target, ANNA, both, VERSION))
    return steps


def draft(document: Any) -> Any:
    return CHECKER.draft(document, "CMIP6", CMIP6)[0]


def target_of(dataset: Dataset) -> Target:
    made = draft(dataset.document)
    return Target("CMIP6", made.id, made.lineage)


async def make_datasets(conn: Connection, about: Mapping[Cell, Dataset]) -> None:
    """Return the datasets that the cells are about, each in its state."""
    wanted = {dataset: cell.state for cell, dataset in about.items()}
    commands = [step for dataset, state in wanted.items() for step in made_so(dataset, state)]
    receipts = await publication.perform(
        conn, writing.RULES, [Work(command, "anna", "publish") for command in commands]
    )
    assert [receipt.problem for receipt in receipts if receipt.problem] == []
    async with conn.transaction():
        foreign = [announced(dataset) for dataset, state in wanted.items() if state == matrix.FOREIGN]
        await applying.apply(conn, foreign)
        await nodes.move(conn, nodes.INDEX, "north", Cursor(1, 1))


async def make_the_rest(conn: Connection, about: Mapping[Cell, Dataset]) -> None:
    """Group with members to be put out, and a request and a destination that are of none of those who ask."""
    for name in ("ncar", "spare"):
        await own_groups.create(conn, name, "CMIP6", "NCAR", "", "anna")
        await own_groups.add(conn, name, matrix.MANAGER, GroupRole.MANAGER, "anna")
    await own_groups.create(conn, "elsewhere", "CMIP6", "MPI-M", "", "anna")
    await own_groups.add(conn, "elsewhere", matrix.OUTSIDER, GroupRole.MEMBER, "anna")
    await own_groups.add(conn, "ncar", "old", GroupRole.MANAGER, "anna")
    for member in (matrix.MEMBER, *(f"old {dataset.n}" for dataset in about.values())):
        await own_groups.add(conn, "ncar", member, GroupRole.MEMBER, "anna")
    refused = requests.NewItem("x", "x", ItemTexts("{}"), problem="stac-validation", detail="it is none")
    await requests.create(conn, [requests.NewRequest(
        UUID(matrix.SOMEBODY_ELSES), "CMIP6", "publish", "somebody else", (), None, "x", None, [refused])])  # fmt: skip
    await conn.execute(
        """INSERT INTO fedstac.destination (id, owner, address, topics, secret, confirmed)
           VALUES ($1, 'somebody else', 'https://hooks.example/y', '{}', '\\x00', now())""",
        UUID(matrix.SOMEBODY_ELSES),
    )


def announced(dataset: Dataset) -> events.Event:
    """Return a dataset of the node north's, as its feed has it."""
    made = draft(dataset.document)
    parsed = CHECKER.vocabularies.select(["CMIP6"], [("CMIP6", VERSION)] if VERSION else [])
    north = World(datetime(2026, 3, 1, tzinfo=UTC), "north", CHECKER, vocabularies=parsed)
    [change] = Publish(made, ANNA, VERSION).decide(Lineage(made.lineage, "north", 0, {}), north).changes
    text = events.dataset_event(change, uuid4(), events.Context("north", "anna", None), CHECKER.vocabularies.digest_of)
    return events.read(orjson.loads(events.positioned(text, Cursor(1, 1))), CMIP6)


def one_each(cells: Sequence[Cell]) -> dict[Cell, Dataset]:
    """Return what each cell is about: a dataset of its own where it changes one, else the one of its state."""
    own = count(100)
    shared = {state: Dataset(n + 1) for n, state in enumerate((*matrix.STATES, matrix.NO_DATASET))}
    return {cell: Dataset(next(own)) if cell.changes else shared[cell.state] for cell in cells}


class CellRequests:
    """Sends cells' requests and gathers what they came to."""

    def __init__(self, api: Api, conn: Connection, about: Mapping[Cell, Dataset], headers: Mapping[str, Any]) -> None:
        self._api, self._conn, self._about, self._headers = api, conn, about, headers
        self._numbers = {cell: f"cell-{n}" for n, cell in enumerate(about)}
        self.wrong: list[str] = []

    async def ask(self, cells: Sequence[Cell]) -> None:
        """Send the cells one after the other; then compare each with the table and with the audit log."""
        answers = {cell: await self._send(cell) for cell in cells}
        rows = await self._audited()
        for cell, answer in answers.items():
            self._compare(cell, answer, rows.get(self._numbers[cell], []))

    async def _send(self, cell: Cell) -> httpx.Response:
        request = matrix.DEEDS[cell.deed](self._about[cell])
        headers = {**self._headers[cell.who], **request.headers, "X-Request-Id": self._numbers[cell]}
        return await self._api.anyone.request(
            request.method, request.path, json=request.body, params=request.query, headers=headers
        )

    async def text(self, cell: Cell) -> str:
        """Return the answer, with neither the id that was asked for nor the request's own."""
        answer = await self._send(cell)
        text = f"{answer.status_code} {answer.headers.get('allow')} {answer.text}"
        return text.replace(self._about[cell].id, "ID").replace(self._numbers[cell], "N")

    async def _audited(self) -> dict[str | None, list[Row]]:
        found: dict[str | None, list[Row]] = {}
        async for row in audit.rows(self._conn, RowFilter()):
            found.setdefault(row.correlation, []).append(row)
        return found

    def _compare(self, cell: Cell, answer: httpx.Response, rows: Sequence[Row]) -> None:
        came = came_to(answer, rows)
        if came != cell.comes_to:
            self.wrong.append(f"{cell}: {came} instead of {cell.comes_to}: {answer.text[:200]}")
        elif answer.status_code >= 500:
            self.wrong.append(f"{cell}: {answer.text}")
        writes = matrix.DEEDS[cell.deed](self._about[cell]).writes
        if answer.status_code >= 400 and [row.rule for row in rows] != ([came] if writes else []):
            self.wrong.append(f"{cell}: refused as {came}, and the audit log has {[row.rule for row in rows]}")
        datasets = [row.dataset for row in rows]  # a newer version demotes another one
        if cell.changes and (not rows or len(set(datasets)) < len(datasets)):
            self.wrong.append(f"{cell}: done, and the audit log has {datasets}")
        self.wrong += [f"{cell}: the audit log says {row.actor}" for row in rows if not is_by(cell.who, row.actor)]


def is_by(who: str, actor: str) -> bool:
    """Return whether the log names the caller: tokens by their names, people by pseudonyms, strangers not at all."""
    if who in matrix.CLAIMS:
        return actor.startswith(people.PREFIX)
    return actor == ("anonymous" if who in matrix.STRANGERS else who)


@pytest.mark.long
async def test_every_cell_comes_to_what_the_table_says(api: Api, provider: Provider, conn: Connection) -> None:
    cells = list(matrix.cells())
    about = one_each(cells)
    await make_datasets(conn, about)
    await make_the_rest(conn, about)
    assert (await api.admin.post("/collections", json=matrix.collection("spare"))).status_code == 201
    asking = CellRequests(api, conn, about, await tokens(conn, provider))

    before, last = await everything(conn), await conn.fetchval("SELECT max(id) FROM fedstac.outbox")
    await asking.ask([cell for cell in cells if not cell.changes])
    after = await everything(conn)
    asking.wrong += [f"{table}: something changed" for table in before if after[table] != before[table]]

    await asking.ask([cell for cell in cells if cell.changes])
    assert not asking.wrong, "\n".join([f"{len(asking.wrong)} of {len(cells)} cells:", *asking.wrong[:50]])
    events = await conn.fetch("SELECT DISTINCT key FROM fedstac.outbox WHERE id > $1 AND dataset IS NOT NULL", last)
    changed = {about[cell] for cell in cells if cell.changes and cell.state != matrix.NO_DATASET}
    assert {row["key"] for row in events} == {target_of(dataset).lineage for dataset in changed}


async def test_what_is_marked_is_for_outsiders_as_if_it_never_was(
    api: Api, provider: Provider, conn: Connection
) -> None:
    """The answers are equal byte by byte, but for the id that was asked for."""
    outsiders = (matrix.NOBODY, matrix.KNOWN, matrix.MPI, matrix.EAST, matrix.UPDATER, matrix.ANNOTATOR)
    pairs = [
        (Cell(who, deed, matrix.ABSENT), Cell(who, deed, matrix.MARKED))
        for who in outsiders for deed in (*matrix.CHANGES, *matrix.READING)
    ]  # fmt: skip
    about = one_each([cell for pair in pairs for cell in pair])
    await make_datasets(conn, about)
    asking = CellRequests(api, conn, about, await tokens(conn, provider))
    for never, hidden in pairs:
        texts = [await asking.text(cell) for cell in (never, hidden)]
        assert texts[0] == texts[1], never
