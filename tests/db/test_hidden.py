"""What is marked for deletion costs, for those who may not see it, as much as what never was (I17)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fedstac import publication
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.actions import Command, Work
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.mark import Mark, Unmark
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.retract import Reinstate, Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.errors import Conflict, ItemDoesNotExist
from fedstac.domain.groups import Entitlement, Identity, Right, Scope
from fedstac.domain.patching import MergePatch, WithoutNode
from fedstac.domain.policy import Principal
from fedstac.domain.vocabulary import ParsedVocabularies
from tests.db import writing
from tests.db.writing import ANNA, Connect

STRANGER = Principal("somebody", frozenset({"observer"}))
CHANGES: list[Callable[[Target], Command]] = [
    lambda target: Amend(target, STRANGER, MergePatch({}), "6.2.60.0"),
    lambda target: Amend(target, STRANGER, WithoutNode("east"), "6.2.60.0", node="east"),
    lambda target: Retract(target, STRANGER, {}), lambda target: Reinstate(target, STRANGER),
    lambda target: Mark(target, STRANGER), lambda target: Unmark(target, STRANGER),
]  # fmt: skip


async def work_of(conn: Connection, command: Command) -> list[tuple[str, int]]:
    """Return the statements that the preview of a change runs, and how many rows each of them brings."""
    ran: list[Any] = []
    with conn.query_logger(ran.append), pytest.raises(ItemDoesNotExist, match="a search lists those there are"):
        await publication.preview(conn, writing.RULES, command)
    return [(each.query, len(await conn.fetch(each.query, *each.args))) for each in ran]


async def test_a_refused_publication_says_nothing_of_the_mark_to_whom_it_is_hidden(connect: Connect) -> None:
    conn = await connect()
    [item] = sample.items(1)
    await writing.publish(conn, item)
    draft = writing.draft(item)
    mark = Mark(Target("CMIP6", draft.id, draft.lineage), ANNA)
    await publication.perform(conn, writing.RULES, [Work(mark, "anna", "mark")])
    creates = Entitlement(Scope.PROJECT, "CMIP6", draft.institution, Right.CREATE)
    everywhere = Entitlement(Scope.NODE, "*", None, Right.CREATE)
    who = Identity("", "", "", None, "", frozenset(), (creates, everywhere), frozenset())
    statements = []
    for principal in (Principal("creator", frozenset(), who), ANNA):
        work = writing.work(draft, principal=principal)
        [receipt] = await publication.perform(conn, writing.RULES, work)
        assert isinstance(receipt.problem, Conflict)
        statements.append(receipt.problem.detail)
    assert "marked" not in statements[0]
    assert statements[1].startswith(f"{item['id']} is marked")


class OtherInstitution:
    """The vocabularies of a project whose ids do not hold the institution: a dataset's description names it."""

    def select(self, *names: Any) -> ParsedVocabularies:
        parsed = writing.CHECKER.vocabularies.select(*names)
        return ParsedVocabularies(
            {name: replace(each, institution="description") for name, each in parsed.versions.items()},
            {name: replace(each, institution="description") for name, each in parsed.newest.items()},
        )

    def digest_of(self, *name: Any) -> Any:
        return writing.CHECKER.vocabularies.digest_of(*name)


async def test_where_an_id_does_not_hold_the_institution_the_stored_dataset_says_who_learns_of_its_mark(
    connect: Connect,
) -> None:
    conn = await connect()
    vocabularies: Any = OtherInstitution()
    rules = replace(writing.RULES, vocabularies=vocabularies)
    item = writing.titled(next(iter(sample.items(1))), "A")
    draft = writing.draft(item)
    assert writing.CMIP6 is not None
    publish = Publish(replace(draft, institution="A"), ANNA, writing.CMIP6.version)
    await publication.perform(conn, rules, [Work(publish, "anna", "publish")])
    await publication.perform(conn, rules, [
        Work(Mark(Target("CMIP6", draft.id, draft.lineage), ANNA), "anna", "mark")
    ])  # fmt: skip
    statements = []
    for institution in ("B", "A"):
        publisher = Principal(f"of {institution}", frozenset({f"publisher:{institution}"}))
        [receipt] = await publication.perform(
            conn, rules, [Work(Publish(replace(draft, institution=institution), publisher), publisher.name, "publish")]
        )
        assert isinstance(receipt.problem, Conflict)
        statements.append(receipt.problem.detail)
    assert statements[0].startswith(f"the id {item['id']} was used before")
    assert statements[1].startswith(f"{item['id']} is marked")


@pytest.mark.parametrize("change", CHANGES)
async def test_a_strangers_change_of_a_marked_dataset_does_the_same_work_as_of_one_that_never_was(
    connect: Connect, change: Callable[[Target], Command]
) -> None:
    conn = await connect()
    [item, never] = sample.items(2, versions=1)
    await writing.publish(conn, item)
    marked, absent = (Target("CMIP6", draft.id, draft.lineage) for draft in map(writing.draft, (item, never)))
    await publication.perform(conn, writing.RULES, [Work(Mark(marked, ANNA), "anna", "mark")])
    hidden, nothing = await work_of(conn, change(marked)), await work_of(conn, change(absent))
    assert [query for query, _ in hidden] == [query for query, _ in nothing]
    assert [rows for query, rows in hidden if "fedstac.record" in query] == [0]
    assert [rows for query, rows in nothing if "fedstac.record" in query] == [0]
