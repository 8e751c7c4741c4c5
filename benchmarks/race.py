"""32 clients racing on one lineage: two versions published, given up, retracted, reinstated, marked, unmarked and
replicated, all at once, over HTTP, in a project that promotes the version before.

`make bench BENCH=race ARGS="--trials 10000"`. Each trial has a lineage of its own, and ends when every answer is there;
a few trials are under way at a time. Whatever comes out is right, if no answer is a 5xx, nothing deadlocks, and the
invariants hold at the end.
"""

from __future__ import annotations

import asyncio
import copy
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from benchmarks import report
from fedstac.db import feed, invariants
from fedstac.demo import embedded, sample
from fedstac.demo.federation import Federation, federation

NODES = ("a.example", "b.example")
AT_ONCE = 4  # trials
POLICY = "version: 1\nbuiltin: true\npromote_previous: [CMIP6]\n"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RaceRequest:
    """What one client sends, with the token of a role."""

    role: str
    method: str
    path: str
    body: Json | list[Json] | None


def versions(item: Json) -> tuple[Json, Json]:
    """Return the dataset, and a later version of it with files of its own."""
    later = copy.deepcopy(item)
    later["id"] = f"{item['properties']['base_id']}.v20330101"
    later["properties"]["version"] = "20330101"
    for n, asset in enumerate(later["assets"].values()):
        if "file:checksum" in asset:
            asset["file:checksum"] = f"1220{n:064}"
            asset["file:local_path"] = asset["file:local_path"].replace(item["id"][-9:], later["id"][-9:])
    return item, later


def requests_for(item: Json, clients: int, chance: random.Random) -> list[RaceRequest]:
    """Return what the clients send, in no order."""
    requests: list[RaceRequest] = []
    pair = versions(item)
    for n in range(clients):
        one = pair[n % 2]
        path = f"/collections/CMIP6/items/{one['id']}"
        node = chance.choice(NODES)
        files = [key for key, asset in one["assets"].items() if "file:checksum" in asset]
        requests.append(
            [
                RaceRequest("admin", "POST", "/collections/CMIP6/items", one),
                RaceRequest("admin", "POST", "/collections/CMIP6/items", one),
                RaceRequest("admin", "POST", f"{path}/retract", {"reason": "race"}),
                RaceRequest("admin", "POST", f"{path}/reinstate", None),
                RaceRequest("admin", "PATCH", path, {"properties": {"latest": False}}),
                RaceRequest("admin", "DELETE", path, None),
                RaceRequest("admin", "POST", f"{path}/unmark", None),
                RaceRequest(f"node:{node}", "PUT", f"{path}/replicas/{node}", {
                    key: {"href": f"https://{node}/{key}", "description": "HTTPServer Link", "roles": ["data"]}
                    for key in files
                }),
            ][n // 2 % 8]
        )  # fmt: skip
    chance.shuffle(requests)
    return requests


async def race(running: Federation, trials: int, clients: int, seed: int) -> Counter[str]:
    """Run the trials, and return how often each status came."""
    chance, statuses, finished_trials = random.Random(seed), Counter[str](), 0
    # no connection is used again that the server may just be closing
    limits = httpx.Limits(max_connections=clients * AT_ONCE, keepalive_expiry=1.0)
    places = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(base_url=running.west, timeout=60, trust_env=False, limits=limits) as http:

        async def send(request: RaceRequest) -> None:
            headers = {"Authorization": f"Bearer {running.tokens[request.role]}", "Prefer": "wait=10"}
            answer = await http.request(request.method, request.path, json=request.body, headers=headers)
            statuses[f"{request.method} {answer.status_code}"] += 1

        async def trial(item: Json) -> None:
            nonlocal finished_trials
            async with places:
                await asyncio.gather(*map(send, requests_for(item, clients, chance)))
            finished_trials += 1
            if finished_trials % 500 == 0:
                print(f"{finished_trials} of {trials} trials", file=sys.stderr, flush=True)

        items = sample.items(trials, versions=1, seed=seed)
        while chunk := list(islice(items, 100 * AT_ONCE)):
            await asyncio.gather(*(trial(dict(item)) for item in chunk))
    return statuses


async def verdict(dsn: str) -> list[str]:
    """Return what is wrong afterwards."""
    conn = await asyncpg.connect(dsn)
    try:
        for _ in range(600):
            if not await conn.fetchval("SELECT EXISTS (SELECT 1 FROM fedstac.request_item WHERE status = 'queued')"):
                break
            await asyncio.sleep(0.1)
        while await feed.sequence(conn):
            continue
        wrong = [f"{each.name} {each.statement}: {each.examples}" for each in await invariants.check(conn)]
        deadlocks = await conn.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        failed = await conn.fetchval("SELECT count(*) FROM fedstac.request_item WHERE outcome = 'failed'")
        return [*wrong, *([f"{deadlocks} deadlocks"] if deadlocks else []), *([f"{failed} failed"] if failed else [])]
    finally:
        await conn.close()


def run(*, trials: int, clients: int = 32, seed: int = 7) -> None:
    """Race, print how often each status came, and end the process with what is wrong, if anything is."""
    with tempfile.TemporaryDirectory(prefix="fedstac-race-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with embedded.cluster(folder / "pg") as cluster, federation(cluster, index_nodes=NODES) as running:
            policy = folder / "policy.yaml"
            policy.write_text(POLICY)
            running.start("serve", "serve", FEDSTAC_PORT="0", FEDSTAC_POLICY=str(policy))
            bearer = {"Authorization": f"Bearer {running.tokens['admin']}"}
            address = running.west + "/collections"
            httpx.post(address, json=sample.collection(), headers=bearer, trust_env=False).raise_for_status()
            began = time.perf_counter()
            statuses = asyncio.run(race(running, trials, clients, seed))
            took = time.perf_counter() - began
            wrong = asyncio.run(verdict(running.database_of("west")))
    errors = sum(count for status, count in statuses.items() if status[-3] == "5")
    total = sum(statuses.values())
    report.line(
        "race, 5xx and violations", errors + len(wrong), "of them",
        detail={"trials": trials, "clients": clients, "seed": seed, "requests": total, "seconds": round(took, 1),
                "answers": dict(sorted(statuses.items())), "violations": wrong},
    )  # fmt: skip
    if errors or wrong:
        sys.exit("\n".join(wrong) or f"{errors} answers were a 5xx")
