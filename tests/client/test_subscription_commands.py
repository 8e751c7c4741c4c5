"""`fedstac subscription` and `fedstac changes`: what they take, show, refuse, and how they exit."""

from __future__ import annotations

import json

from fedstac.client import AsyncClient
from tests.support.commands import Fedstac, to
from tests.support.nodes import Api
from tests.support.waiting import until


async def test_a_subscription_is_made_followed_sought_and_removed(west: Api, fedstac: Fedstac) -> None:
    async with AsyncClient(west.url) as anybody:

        async def is_sequenced() -> bool:
            page = await anybody.changes_since("start", {"types": "dataset.published"})
            return len(page["changes"]) >= 2

        await until(is_sequenced)
    own = to(west)
    published = ("--type", "dataset.published")
    made = await fedstac("subscription", "put", "maps", *published, "--from", "start", "-o", "json", **own)
    assert made.code == 0, made.stderr
    assert json.loads(made.stdout)["filter"] == {"types": ["dataset.published"]}
    wrong = await fedstac("subscription", "put", "other", "--filter", "a =", **own)
    assert (wrong.code, "CQL2" in wrong.stderr) == (2, True)
    assert (await fedstac("subscription", "put", "other", "--bbox", "1,x", **own)).code == 2

    one = json.loads((await fedstac("subscription", "next", "maps", "--limit", "1", "-o", "json", **own)).stdout)
    [event] = one["events"]
    refused = await fedstac(
        "subscription", "nack", "maps", event["event_id"], "--reason", "full", "--retry-in", "0", **own
    )  # fmt: skip
    assert (refused.code, "full" in refused.stdout) == (0, True)
    acked = await fedstac("subscription", "ack", "maps", one["cursor"], "--lease", one["lease"], **own)
    assert acked.stdout.strip() == one["cursor"]
    assert (await fedstac("subscription", "ack", "maps", "1.999", **own)).code == 1
    rest = await fedstac("subscription", "follow", "maps", "--once", "-o", "ndjson", **own)
    assert rest.code == 0, rest.stderr
    assert rest.lines[0]["event_id"] == event["event_id"]  # it is given again, before what is new
    assert {line["kind"] for line in rest.lines} == {"entered"}

    changes = await fedstac("changes", "--since", "start", *published, "-o", "ndjson", **own)
    assert [line["event_id"] for line in changes.lines] == [line["event_id"] for line in rest.lines]
    assert "go on with: fedstac changes --since" in changes.stderr
    assert (await fedstac("changes", "--since", "yesterday", **own)).code == 2

    sought = await fedstac("subscription", "seek", "maps", "--to", "start", "-o", "json", **own)
    assert json.loads(sought.stdout)["cursor"] == "0.0"
    again = await fedstac("subscription", "follow", "maps", "--once", **own)
    assert len(again.stdout.splitlines()) == 1 + len(rest.lines)
    [row] = (await fedstac("subscription", "list", "-o", "ndjson", **own)).lines
    assert (row["name"], row["waiting"], row["dead_letters"]) == ("maps", 0, 0)
    assert (await fedstac("subscription", "dead-letters", "maps", "-o", "ndjson", **own)).lines == []
    assert (await fedstac("subscription", "redrive", "maps", "7", **own)).code == 3
    assert "maps" in (await fedstac("subscription", "show", "maps", **own)).stdout
    assert (await fedstac("subscription", "remove", "maps", **own)).stdout.strip() == "removed"
    gone = await fedstac("subscription", "show", "maps", **own)
    assert (gone.code, "fedstac subscription list" in gone.stderr) == (3, True)
