"""Events are judged beside this process as in it; a process that ends is noticed, and another one takes its place."""

from __future__ import annotations

import asyncio
import copy
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from fedstac.demo import sample
from fedstac.domain import documents, events
from fedstac.domain.events import CURRENT, DatasetEvent, VocabularyName
from fedstac.domain.model import Record, State
from fedstac.domain.vocabulary import name_of
from fedstac.settings import folder
from fedstac.vocabularies import judging
from fedstac.vocabularies.checker import open_checker
from fedstac.vocabularies.judging import EventBatch, JudgeLost, JudgeProcess, Objection
from tests.support import processes
from tests.support.waiting import PATIENCE, until

Json = dict[str, Any]
CHECKER = open_checker()
VOCABULARY = CHECKER.vocabularies.select(["CMIP6"], []).newest["CMIP6"]
SNAPSHOT = CHECKER.vocabularies.of("CMIP6")[-1]
NOW = datetime(2026, 11, 29, tzinfo=UTC)
ODD: list[Any] = [None, True, 1, 1.5, "", "x", [], {}, ["a", "a"], {"a": [1]}, "AMIP", "2000-01-01T00:00:00Z", [[[]]]]


def event_of(item: Json, *, excused: str | None = None) -> Json:
    """Return an entry of a snapshot with a document, whatever is wrong with that."""
    name = name_of("CMIP6", item["id"], None)
    draft = documents.prepare(item, name, VOCABULARY)  # type: ignore[arg-type]
    record = Record(
        draft.collection, draft.id, draft.lineage, "west", draft.version, State.PUBLISHED, True, True, 1, 1, NOW, NOW,
        draft.text, draft.document_digest, draft.files_digest, "somebody", VOCABULARY.version, cv_excused=excused,
    )  # fmt: skip
    text = events.current(record, 1, CHECKER.vocabularies.digest_of)
    event: Json = orjson.loads(text)
    assert event["type"] == CURRENT
    return event


def damaged(item: Json, rng: random.Random) -> Json:
    """Return an item with another value at a random place of its properties, a link or a file."""
    item = copy.deepcopy(item)
    places = [item["properties"], item["properties"], *item["assets"].values(), *item["links"]]
    holder = rng.choice(places)
    holder[rng.choice(list(holder))] = copy.deepcopy(rng.choice(ODD))
    return item


def many_events(count: int, seed: int) -> list[Json]:
    """Return events that are right, that contradict rules, and that are broken."""
    rng = random.Random(seed)
    result = []
    for item in sample.items(count):
        event = event_of(item, excused='[["term","/properties/cmip6:grid_label"]]' if rng.random() < 0.2 else None)
        match rng.randrange(4):
            case 0:
                event["data"]["document"] = damaged(event["data"]["document"], rng)
            case 1:
                try:
                    event = event_of(damaged(item, rng))
                except (TypeError, AttributeError, ValueError, LookupError):
                    event["data"]["digest"] = "0" * 64
            case 2:
                place = rng.choice([event, event["data"]])
                place[rng.choice(list(place))] = rng.choice(ODD)
        result.append(event)
    return result


@pytest.fixture
def beside() -> Iterator[JudgeProcess]:
    judge = JudgeProcess()
    try:
        yield judge
    finally:
        judge.close()


async def test_what_is_judged_beside_is_judged_as_here(beside: JudgeProcess) -> None:
    batch = EventBatch("west", many_events(300, 7), {VocabularyName("CMIP6", "0", None): "it is not here"})
    here = judging.judge(CHECKER, batch)
    await _ready(beside)
    for _ in range(2):  # the second time it has the vocabulary already
        there = beside.judge(batch, [SNAPSHOT])
        assert [_without_trace(each) for each in there] == [_without_trace(each) for each in here]
    right = [each for each in here if isinstance(each, DatasetEvent)]
    assert len(right) > 100
    assert len(here) - len(right) > 50
    assert [each.record.digest for each in there if isinstance(each, DatasetEvent)] == [
        each.record.digest for each in right
    ]


def _without_trace(judgement: object) -> object:
    return (judgement.reason, judgement.trace is None) if isinstance(judgement, Objection) else judgement


async def test_a_process_that_is_killed_is_noticed_and_replaced(beside: JudgeProcess) -> None:
    await _ready(beside)
    [first] = _children()
    os.kill(first, signal.SIGKILL)
    batch = EventBatch("west", many_events(3, 1), {})
    with pytest.raises(JudgeLost):
        beside.judge(batch, [SNAPSHOT])
    assert first not in _children()
    await _ready(beside)
    assert len(beside.judge(batch, [SNAPSHOT])) == 3
    [second] = _children()
    os.kill(second, signal.SIGKILL)
    await asyncio.to_thread(os.waitid, os.P_PID, second, os.WEXITED | os.WNOWAIT)
    assert not beside.is_ready()  # it is seen before a page is sent, too
    beside.close()
    assert _children() == []
    assert not beside.is_ready()


async def test_what_cannot_be_sent_is_not_judged_beside(beside: JudgeProcess) -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    await _ready(beside)
    with pytest.raises(JudgeLost):
        beside.judge(EventBatch("west", [{"data": deep}], {}), [])
    assert beside.is_ready()


async def test_a_process_that_has_not_begun_gets_no_page(beside: JudgeProcess) -> None:
    """That it is ready would be taken for the judgement of the page, and that for the one of the next page."""
    batch, others = EventBatch("west", many_events(3, 1), {}), EventBatch("west", many_events(3, 2), {})
    assert not beside.is_ready(), "it is started"
    with pytest.raises(JudgeLost):
        beside.judge(batch, [SNAPSHOT])
    await _ready(beside)
    for each in (batch, others):
        there = beside.judge(each, [SNAPSHOT])
        assert [_without_trace(one) for one in there] == [_without_trace(one) for one in judging.judge(CHECKER, each)]


@pytest.mark.parametrize("answer", [TypeError("of another release"), MemoryError(), []])
async def test_a_process_whose_answer_is_none_is_replaced(
    beside: JudgeProcess, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    """What it says next would be taken for the answer to another page."""
    await _ready(beside)

    def receive(stream: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(judging, "_receive", receive)
        with pytest.raises(JudgeLost):
            beside.judge(EventBatch("west", many_events(3, 1), {}), [SNAPSHOT])
    assert _children() == []


async def test_a_vocabulary_whose_file_has_gone_is_no_fault_of_the_page(beside: JudgeProcess) -> None:
    def read() -> bytes:
        raise FileNotFoundError(2, "gone")

    await _ready(beside)
    with pytest.raises(JudgeLost):
        beside.judge(EventBatch("west", many_events(3, 1), {}), [replace(SNAPSHOT, read=read)])
    assert beside.is_ready()


async def test_nobody_waits_for_the_judgement_of_another_page(beside: JudgeProcess) -> None:
    await _ready(beside)
    with beside._lock:  # as while a batch is judged
        async with asyncio.timeout(PATIENCE):
            assert not await asyncio.to_thread(beside.is_ready)
    assert beside.is_ready()


def test_the_process_ends_when_its_parent_has_gone() -> None:
    with subprocess.Popen(judging.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert judging._receive(child.stdout) is None  # it is ready
        child.stdin.close()
        assert child.wait(30) == 0


JUDGES = """
import sys
from pathlib import Path
from fedstac.vocabularies import judging
from fedstac.vocabularies.checker import bare_checker
from fedstac.vocabularies.registry import snapshot_of
import orjson
checker = bare_checker(Path(sys.argv[1]))
checker.vocabularies.install(snapshot_of(Path(sys.argv[2]).read_bytes()))
judgements = judging.judge(checker, judging.EventBatch("west", orjson.loads(sys.stdin.buffer.read()), {}))
slow = sorted({"pydantic", "pystac", "numpy", "shapely"} & set(sys.modules))
print([type(each).__name__ for each in judgements], slow)
"""


def test_what_judges_a_rectangle_starts_without_what_takes_long_to_import() -> None:
    folders = str(folder("extensions")), str(folder("cv") / "CMIP6" / f"{VOCABULARY.version}.json")
    events_text = orjson.dumps([event_of(item) for item in sample.items(2)])
    result = subprocess.run(
        [sys.executable, "-P", "-c", JUDGES, *folders], input=events_text, capture_output=True, check=False
    )
    assert result.stdout.decode() == "['DatasetEvent', 'DatasetEvent'] []\n", result.stderr


async def _ready(beside: JudgeProcess) -> None:
    await until(lambda: asyncio.to_thread(beside.is_ready))


def _children() -> list[int]:
    """Return the processes that judge for this one."""
    return [
        pid for pid in processes.children(os.getpid())
        if b"fedstac.vocabularies.judging" in (processes.PROC / str(pid) / "cmdline").read_bytes()
    ]  # fmt: skip
