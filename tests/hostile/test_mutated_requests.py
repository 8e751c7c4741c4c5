"""Mutated requests on every route, by callers of every kind: no answer is a fault of ours, and the node goes on."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter

import pytest

from tests.hostile import corpus
from tests.hostile.corpus import Route
from tests.hostile.mutations import mutated
from tests.hostile.site import SEED, Site, is_fault, keeps_its_promises, names

LINES = 8  # connections at once
# one process, in this order: the node is as it was left
pytestmark = [pytest.mark.xdist_group("hostile"), pytest.mark.long]
log = logging.getLogger(__name__)


REFUSED = {  # what needs a state that no request of the corpus makes
    (409, ("POST", "/requests/{request_id}/retry")),
    (409, ("POST", "/bulk/{bulk_id}/cancel")),
    (409, ("POST", "/loads/{load_id}/apply")),  # as a comparison that there was not
    (404, ("DELETE", "/sinks/{sink}")),
    (404, ("GET", "/snapshot/parts/{part}")),
    (409, ("POST", "/sinks/{sink}/audit")),
    *((404, ("GET", path)) for path in ("/dead-letters/{letter}", "/parked-events/{event}")),
    *((404, ("POST", f"/dead-letters/{verb}")) for verb in ("redrive", "discard")),
    *((404, ("POST", f"/parked-events/{verb}")) for verb in ("requeue", "discard")),
    (404, ("GET", "/notifications/{destination_id}")),
    (404, ("DELETE", "/notifications/{destination_id}")),
    (404, ("POST", "/notifications/{destination_id}/confirm")),
    (404, ("POST", "/notifications/{destination_id}/test")),
    *((404, (verb, "/grants/{grant}")) for verb in ("GET", "DELETE")),
    *((404, ("POST", f"/subscriptions/{{subscription}}/{verb}")) for verb in ("ack", "nack", "seek")),
    *((404, ("GET", f"/subscriptions/{{subscription}}/{verb}")) for verb in ("next", "dead-letters")),
    (404, ("POST", "/subscriptions/{subscription}/dead-letters/{letter}/redrive")),
}


async def test_every_route_has_a_valid_request(node: Site) -> None:
    made_names = await names(node)
    line, wrong = node.line(), []
    for route in corpus.routes():
        for ask in corpus.asks(route, made_names):
            answer = await line.ask(ask.to_bytes(node.host, node.running.tokens))
            if answer.status >= 400 and (answer.status, route) not in REFUSED:
                wrong.append((route, answer.status, answer.body[:300]))
    line.close()
    assert not wrong, "\n".join(map(str, wrong))


async def assault(node: Site, requests: int, seed: int) -> tuple[Counter[int], list[str]]:
    """Send mutated requests over LINES connections; how many answers of each status, and what went wrong."""
    made_names = await names(node)
    every: list[Route] = list(corpus.routes())
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    numbers = iter(range(requests))

    async def send() -> None:
        line = node.line()
        for number in numbers:
            chance = random.Random(f"{seed}/{number}")
            ask = mutated(chance.choice(corpus.asks(chance.choice(every), made_names)), chance)
            data = ask.to_bytes(node.host, node.running.tokens)
            try:
                answer = await line.ask(data)
            except TimeoutError:
                wrong.append(f"{seed}/{number}: no answer: {data[:500]!r}")
                continue
            statuses[answer.status] += 1
            if is_fault(answer):
                wrong.append(f"{seed}/{number}: {answer.status} {answer.body[:300]!r} to {data[:500]!r}")
        line.close()

    await asyncio.gather(*(send() for _ in range(LINES)))
    return statuses, wrong


async def test_no_mutated_request_finds_a_fault(node: Site) -> None:
    statuses, wrong = await assault(node, 8_000, SEED)
    print(f"seed {SEED}: {dict(sorted(statuses.items()))}")
    assert not wrong, "\n".join(wrong[:20])
    await keeps_its_promises(node)


@pytest.mark.soak
async def test_hostile_hundred_thousand_mutated_requests(node: Site) -> None:
    for part in range(20):
        statuses, wrong = await assault(node, 5_000, SEED + 1 + part)
        log.info("part %d of 20: %s", part + 1, dict(sorted(statuses.items())))
        assert not wrong, "\n".join(wrong[:20])
    await keeps_its_promises(node)
