"""Checks of grants over HTTP among many: what a node asks that serves files.

Half of the checks find a grant: of the dataset, of its lineage or of its project. Beside them stands the limit: as many
requests of the same kind that ask no database.
"""

from __future__ import annotations

import os
import random
from contextlib import ExitStack
from typing import Final
from urllib.parse import quote

import orjson
import psycopg

from benchmarks import load, report, servers
from benchmarks.servers import COLLECTION, Server, say
from fedstac.demo import sample

DATASETS: Final = 2_000
SEED: Final = 20261129
LIMIT_MS: Final = 5.0
FILL: Final = """
    INSERT INTO fedstac.access_grant (id, subject, collection, scope, target, valid_from, valid_until, given_at,
                                      given_by)
    SELECT gen_random_uuid(), 'subject-' || g.n / %(share)s, d.collection,
           CASE WHEN g.n %% 10 = 0 THEN 'lineage' ELSE 'dataset' END,
           CASE WHEN g.n %% 10 = 0 THEN d.lineage ELSE d.id END, now() - interval '1 day',
           now() + interval '1 year' + g.n * interval '1 second', now(), 'admin'
    FROM generate_series(0, %(count)s - 1) g (n)
    JOIN (SELECT collection, id, lineage, row_number() OVER (ORDER BY id) - 1 AS n FROM fedstac.record) d
         ON d.n = (g.n * 7) %% %(datasets)s
    ON CONFLICT DO NOTHING"""


def run(*, count: int, checks: int) -> None:
    """Measure with so many grants, by so many checks: one at a time, and eight at once."""
    with ExitStack() as stack:
        running, folder = stack.enter_context(servers.cluster())
        server = stack.enter_context(servers.fedstac(running, folder, workers="inside"))
        names = _fill(server, count)
        server.settle(analyze=True)
        requests = _requests(server, names, count, checks)
        pings = [load.request(server.address, "GET", "/_mgmt/ping", headers=server.headers)] * checks
        load.replay(server.address, requests[:500], connections=4)
        for connections in (1, 8):
            limit = load.replay(server.address, pings, connections=connections)
            before = server.cpu()
            result = load.replay(server.address, requests, connections=connections)
            detail = {
                "grants": count, "checks": checks, "connections": connections, "p50_ms": result.milliseconds(50),
                "limit_p99_ms": limit.milliseconds(99), "rate": result.rate, "seed": SEED,
                "processor_ms_each": 1000 * (server.cpu() - before) / checks, "allowed_ms": LIMIT_MS,
                "cores": os.cpu_count(), "load": os.getloadavg()[0],
            }  # fmt: skip
            report.line(f"p99 of a check, {connections} at once", result.milliseconds(99), "ms", detail=detail)


def _fill(server: Server, count: int) -> list[str]:
    """Publish datasets and give grants of them; return the ids of the datasets."""
    items = list(sample.items(DATASETS, versions=1))
    path = f"/collections/{COLLECTION}/items"
    headers = {**server.headers, "content-type": "application/x-ndjson", "prefer": "wait=0"}
    for start in range(0, len(items), 1000):
        body = b"\n".join(map(orjson.dumps, items[start : start + 1000]))
        load.replay(server.address, [load.request(server.address, "POST", path, body, headers)], connections=1)
        servers.drain(server, patience=600.0)
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(FILL, {"count": count, "share": 500, "datasets": len(items)})
        row = conn.execute("SELECT count(*) FROM fedstac.access_grant").fetchone()
    say(f"{row[0] if row else 0} grants are given")
    return [item["id"] for item in items]


def _requests(server: Server, names: list[str], count: int, checks: int) -> list[bytes]:
    """Return checks of random subjects: in turn of a dataset that they have a grant of, and of any."""
    draw, in_order, result = random.Random(SEED), sorted(names), []
    for n in range(checks):
        grant = draw.randrange(count)
        dataset = in_order[grant * 7 % len(in_order)] if n % 2 else draw.choice(in_order)
        path = f"/grants/check?subject=subject-{grant // 500}&dataset={quote(f'{COLLECTION}/{dataset}', safe='')}"
        result.append(load.request(server.address, "GET", path, headers=server.headers))
    return result
