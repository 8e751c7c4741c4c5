"""Hidden is the same as never there (I17): every question brings the same bytes in a world that hides datasets.

The first world has marked, quarantined, deleted and purged datasets, the second never had them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from fedstac.api.search import queryables
from fedstac.db import nodes
from fedstac.demo import embedded, sample
from fedstac.settings import Settings
from tests.api import worlds
from tests.api.worlds import Answer, AskedQuestion, HiddenDataset, Question
from tests.support.databases import databases, name_in
from tests.support.identity import AUDIENCE, Provider
from tests.support.nodes import Api, running
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = Any
Answers = dict[tuple[str, Question], Answer]
WAIT = {"Prefer": "wait=60"}
CREATE: dict[str, Any] = {"eduperson_entitlement": [
    f"urn:mace:egi.eu:group:esgf.vo.egi.eu:project:CMIP6:institution:{worlds.INSTITUTION}:role=CREATE#aai.egi.eu",
    "urn:mace:egi.eu:group:esgf.vo.egi.eu:node:*:role=CREATE#aai.egi.eu",
]}  # fmt: skip


@dataclass(frozen=True)
class Nodes:
    """What each world answers; the first one with what it read before it hid the datasets, and newly started."""

    never: Answers
    warm: Answers
    cold: Answers


@asynccontextmanager
async def world(dsn: str, provider: Provider) -> AsyncIterator[Api]:
    issuers = json.dumps([{"issuer": provider.url, "login_client_id": "x"}])
    settings = Settings(
        dsn=dsn, node="west", default_wait_seconds=60, public_url=worlds.BASE_URL, issuers=issuers, audience=AUDIENCE,
        _env_file=None,
    )  # fmt: skip
    async with running(settings) as api:
        await until(lambda: has_columns(api))
        yield api


async def has_columns(api: Api) -> bool:
    return bool((await api.admin.get("/healthcheck")).json()["columns"] == "ready")


async def publish(api: Api, items: Sequence[Json]) -> None:
    body = {"type": "FeatureCollection", "features": items}
    answer = await api.admin.post(worlds.ITEMS, json=body, headers=WAIT)
    assert answer.json()["counts"]["done"] == len(items), answer.text


async def hide(api: Api, hidden: Sequence[HiddenDataset]) -> None:
    """Bring each dataset into its state."""
    for each in hidden:
        if each.state == worlds.QUARANTINED:
            answer = await api.admin.post(f"{each.path}/quarantine", json={"reason": worlds.REASON}, headers=WAIT)
        elif each.state == worlds.PRIVATE:
            change = {"properties": {"fedstac:access": "private"}}
            answer = await api.admin.patch(each.path, json=change, headers=WAIT)
        else:
            answer = await api.admin.delete(f"{each.path}?reason={worlds.REASON}", headers=WAIT)
        assert answer.status_code == 200, answer.text
    conn = await asyncpg.connect(api.settings.dsn)
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")
    await conn.close()
    for each in hidden:
        steps = {worlds.DELETED: ("delete",), worlds.PURGED: ("delete", "purge")}.get(each.state, ())
        for step in steps:
            answer = await api.admin.post(f"{each.path}/{step}", json={}, headers=WAIT)
            assert answer.status_code == 200, answer.text


async def ask(api: Api, tokens: dict[str, str], table: Sequence[AskedQuestion]) -> Answers:
    """Return the answers to all callers."""
    answers: Answers = {}
    for asking in table:
        question = asking.question
        for caller in asking.callers:
            headers = dict(question.headers)
            if caller in tokens:
                headers["Authorization"] = f"Bearer {tokens[caller]}"
            content = {"json": question.body} if question.body is not None else {}
            response = await api.anyone.request(question.method, question.path, headers=headers, **content)
            answers[caller, question] = Answer.of(response)
    return answers


async def issue_tokens(dsn: str, provider: Provider) -> dict[str, str]:
    roles = {worlds.STRANGER: "observer", worlds.PUBLISHER: "publisher:CAS", worlds.NODE: "node:east",
             worlds.MONITOR: "monitor"}  # fmt: skip
    conn = await asyncpg.connect(dsn)
    tokens = {who: await nodes.issue_token(conn, who, [role]) for who, role in roles.items()}
    await conn.close()
    return {**tokens, worlds.CREATOR: provider.token(sub="creator", exp=4102444800, **CREATE)}


@asynccontextmanager
async def two_worlds(
    cluster: embedded.Cluster, template: str, provider: Provider, *, whole: bool
) -> AsyncIterator[Nodes]:
    """Ask both worlds the whole table, or the part of it that every run has the time for."""
    provider.begin_anew()
    table = worlds.table(whole=whole)
    with databases(cluster, template) as make:
        base = make()
        async with world(base, provider) as api:
            tokens = await issue_tokens(base, provider)
            await publish_what_both_have(api)
            who = {"Authorization": f"Bearer {tokens[worlds.CREATOR]}"}
            assert (await api.anyone.get("/me", headers=who)).status_code == 200  # gives the pseudonym
        with databases(cluster, name_in(base)) as copy:
            first, second = copy(), copy()
            async with world(first, provider) as api:
                await publish(api, [each.document for each in worlds.HIDDEN])
                earlier = [*table, *map(by_anyone, await given_out(api))]
                await ask(api, {}, [by_anyone(each.question) for each in table if each.question.method == "GET"])
                await hide(api, worlds.HIDDEN)
                warm = await ask(api, tokens, earlier)
            async with world(first, provider) as api:
                cold = await ask(api, tokens, earlier)
            async with world(second, provider) as api:
                never = await ask(api, tokens, earlier)
            yield Nodes(never, warm, cold)


async def publish_what_both_have(api: Api) -> None:
    """Publish the datasets of both worlds. One is retracted; versions that a hidden one follows are given up before."""
    assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
    beside = [each.neighbour for each in worlds.HIDDEN if each.neighbour is not None]
    await publish(api, [*worlds.SHOWN, *beside, worlds.member(99)])
    why = {"reason": "wrong forcing", "replaced_by": worlds.REPLACEMENT}
    answers = [await api.admin.post(f"{worlds.ITEMS}/{worlds.RETRACTED}/retract", json=why, headers=WAIT)]
    for each in worlds.HIDDEN:
        if each.neighbour is not None and each.place == worlds.NEWEST:
            path, change = f"{worlds.ITEMS}/{each.neighbour['id']}", {"properties": {"latest": False}}
            answers.append(await api.admin.patch(path, json=change, headers=WAIT))
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]


async def given_out(api: Api) -> list[Question]:
    """Return questions with what a world gives out while the datasets are shown: entity tags, and links to pages."""
    questions = []
    for path in (
        worlds.HIDDEN[0].path,
        worlds.COLLECTION,
        "/queryables",
        "/collections",
        f"{worlds.COLLECTION}/queryables",
    ):
        answer = await api.anyone.get(path)
        if "etag" in answer.headers:
            questions.append(worlds.get(path, "with a tag from before", If_None_Match=answer.headers["etag"]))
    for sort in ("", "&sortby=-updated", "&sortby=description", "&sortby=-id"):
        href: str | None = f"/search?limit=4{sort}"
        while href is not None:
            page = (await api.anyone.get(href)).json()
            links = {link["rel"]: link["href"].removeprefix(worlds.BASE_URL) for link in page["links"]}
            questions += [worlds.get(links[rel], "a page from before") for rel in ("next", "prev") if rel in links]
            href = links.get("next")
    return questions


def by_anyone(question: Question) -> AskedQuestion:
    return AskedQuestion(question, (worlds.ANYONE,))


def differences(nodes: Nodes) -> list[str]:
    """Return what an outsider can tell the worlds by."""
    found = []
    for name, answers in (("warm", nodes.warm), ("cold", nodes.cold)):
        for (caller, question), answer in answers.items():
            never = nodes.never[caller, question]
            if answer != never and not worlds.is_allowed(caller, question, answer):
                found.append(f"{name}: {caller} asks {question} and gets\n  {answer}, instead of\n  {never}")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(cluster: embedded.Cluster, template: str, provider_process: Provider) -> AsyncIterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queryables, "FRESH_SECONDS", 3600.0)  # what is remembered for a moment stays as long as the test
        async with two_worlds(cluster, template, provider_process, whole=False) as nodes:
            yield nodes


async def test_every_question_brings_the_same_bytes_in_both_worlds(both: Nodes) -> None:
    found = differences(both)
    assert not found, "\n".join(found[:20])


async def test_a_quarantined_dataset_shows_a_notice_and_no_files_and_its_reason_to_nobody(both: Nodes) -> None:
    about = {
        key: answer for key, answer in both.cold.items() if key[1].about and key[1].about.state == worlds.QUARANTINED
    }
    items = [
        json.loads(answer.body) for (_, question), answer in about.items()
        if question.method == "GET" and question.about and question.path == question.about.path and answer.status == 200
    ]  # fmt: skip
    assert items
    for item in items:
        assert item["assets"] == {}
        assert item["properties"]["fedstac:quarantine"] == {}
    texts = b"".join(answer.body for (_, question), answer in both.cold.items() if question.path not in worlds.LOG)
    assert worlds.REASON.encode() not in texts


async def test_the_addresses_of_controlled_files_are_in_no_answer_but_to_who_has_a_right(both: Nodes) -> None:
    secret, receivers = worlds.SECRET.encode(), set()
    for answers in (both.warm, both.cold, both.never):
        for (caller, question), answer in answers.items():
            if secret in answer.body and question.name != "shares its files":  # which sends them itself
                receivers.add((caller, question.path.partition("?")[0]))
    assert {caller for caller, _ in receivers} <= {worlds.NODE}, receivers
    paths = {question.path for _, question in both.cold if question.name == "controlled"}
    assert len(paths) > 10


async def test_changes_tell_nothing_of_what_is_hidden_but_the_names_of_what_left(both: Nodes) -> None:
    answers = {key: answer for key, answer in both.cold.items() if key[1].path.startswith("/changes")}
    assert len(answers) > 1
    for (caller, _), answer in answers.items():
        assert answer.status == 200
        for n, hidden in enumerate(worlds.HIDDEN, 1):
            may_read = caller == worlds.NODE or (caller == worlds.CREATOR and hidden.state == worlds.PRIVATE)
            if hidden.state != worlds.QUARANTINED and not may_read:
                assert f'"Unheardof{n}"'.encode() not in answer.body, (caller, hidden)


async def test_what_is_deleted_says_its_id_and_its_date_and_no_more(both: Nodes) -> None:
    gone = {key: answer for key, answer in both.cold.items() if answer.status == 410 and answer.body}
    assert {question.about.state for _, question in gone if question.about} == {worlds.DELETED, worlds.PURGED}
    for (_, question), answer in gone.items():
        problem = json.loads(answer.body)
        assert question.about is not None
        assert problem["detail"].startswith(f"{question.about.id} was deleted at 20")
        assert set(problem) == {
            "type",
            "title",
            "status",
            "status_code",
            "code",
            "description",
            "detail",
            "instance",
            "errors",
        }


@pytest.mark.soak
async def test_every_caller_asks_everything_and_gets_the_same_bytes_in_both_worlds(
    cluster: embedded.Cluster, template: str, provider_process: Provider
) -> None:
    async with two_worlds(cluster, template, provider_process, whole=True) as nodes:
        found = differences(nodes)
        print(len(nodes.cold), "answers,", len(found), "of them differ")
    assert not found, "\n".join(found[:20])
