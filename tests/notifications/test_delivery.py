"""The queue of notifications on PostgreSQL, and webhooks by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

import asyncpg
import pytest

from fedstac.db import notifications, people, troubles
from fedstac.demo import embedded
from fedstac.domain import destinations
from fedstac.domain.errors import BadRequest
from fedstac.domain.groups import Identity
from fedstac.messaging.webhooks import Forbidden, Undelivered, Webhooks
from fedstac.workers import notifier
from tests.support.receivers import Receiver
from tests.support.waiting import PATIENCE, until

Conn: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
KEY = b"k" * 32


async def a_destination(conn: Conn, owner: str = "anna") -> notifications.Destination:
    found, _ = await notifications.register(conn, owner, "https://x.example/", ["request"], confirmed=True)
    return found


async def test_beyond_its_share_of_an_hour_a_destination_gets_one_digest_of_the_rest(conn: Conn) -> None:
    to = (await a_destination(conn)).id
    for n in range(5):
        await notifications.tell(conn, to, "request", [str(n)])
        for message in await notifications.take(conn, 10, lease=30, per_hour=2):
            await notifications.finish(conn, message.id, "delivered")
    assert await conn.fetchval("SELECT count(*) FROM fedstac.notification WHERE outcome = 'delivered'") == 2
    assert await notifications.take(conn, 10, lease=30, per_hour=2) == []
    await conn.execute("UPDATE fedstac.notification SET taken = taken - interval '1 hour' WHERE taken IS NOT NULL")
    [message] = await notifications.take(conn, 10, lease=30, per_hour=2)
    assert message.about == ("2", "3", "4")


async def test_what_is_taken_is_fixed_and_comes_again_only_after_its_lease(conn: Conn) -> None:
    to = (await a_destination(conn)).id
    await notifications.tell(conn, to, "request", ["a"])
    [first] = await notifications.take(conn, 10, lease=30, per_hour=9)
    await notifications.tell(conn, to, "request", ["b"])
    [second] = await notifications.take(conn, 10, lease=30, per_hour=9)
    assert (first.about, second.about) == (("a",), ("b",))
    assert await notifications.take(conn, 10, lease=30, per_hour=9) == []
    await conn.execute("UPDATE fedstac.notification SET due = now() WHERE id = $1", first.id)
    [again] = await notifications.take(conn, 10, lease=30, per_hour=9)
    assert (again.id, again.about, again.attempts, again.taken) == (first.id, ("a",), 2, first.taken)


async def test_several_notifiers_share_the_work(conn: Conn, dsn: str) -> None:
    for n in range(40):
        found = await a_destination(conn, f"anna{n}")
        await notifications.tell(conn, found.id, "request", [str(n)])
    async with asyncpg.create_pool(dsn, min_size=4, max_size=4) as pool:

        async def take() -> list[str]:
            async with pool.acquire() as own:
                found: list[str] = []
                while taken := await notifications.take(own, 3, lease=30, per_hour=9):
                    found += [message.about[0] for message in taken]
                return found

        shares = await asyncio.gather(*(take() for _ in range(4)))
    assert sorted(int(n) for share in shares for n in share) == list(range(40))


async def test_who_gathers_and_who_tells_lock_digests_in_the_same_order(conn: Conn, dsn: str) -> None:
    """Both wait for each other otherwise, and PostgreSQL ends one of them."""
    addresses = [f"https://x{n}.example/" for n in range(40)]
    await notifications.operate(conn, addresses)
    owned = sorted(each.id for each in await notifications.destinations(conn, notifications.OPERATORS))
    await conn.executemany(
        "INSERT INTO fedstac.notification (destination, topic, about, due) VALUES ($1, 'alert', '{}', now())",
        [(id,) for id in owned],
    )
    await troubles.report(conn, "test", place="here", what="it", detail="why")
    other = await asyncpg.connect(dsn)
    try:
        transaction = conn.transaction()
        await transaction.start()
        await notifications.tell(conn, owned[0], "alert", ["one"])
        gathering = asyncio.create_task(notifications.gather(other, 0))
        blocks, pid = "SELECT pg_backend_pid() = ANY (pg_blocking_pids($1))", other.get_server_pid()
        await until(lambda: conn.fetchval(blocks, pid))
        for id in owned[1:]:
            await notifications.tell(conn, id, "alert", ["one"])
        await transaction.commit()
        await gathering
    finally:
        other.terminate()
    assert await conn.fetchval("SELECT count(*) FROM fedstac.notification WHERE cardinality(about) = 2") == len(owned)


async def test_a_request_is_told_once_when_several_gather(conn: Conn, dsn: str) -> None:
    to = (await a_destination(conn)).id
    await conn.execute(
        """WITH made AS (
               INSERT INTO fedstac.request (id, collection, action, total, submitter, roles, correlation)
               SELECT gen_random_uuid(), 'CMIP6', 'publish', 1, 'anna', '{}', 'x' FROM generate_series(1, 300)
               RETURNING id)
           INSERT INTO fedstac.request_item (request, n, shard, dataset, status, outcome, finished)
           SELECT id, 0, 0, 'x', 'done', 'new', now() FROM made"""
    )
    assert await conn.fetchval("SELECT count(*) FROM fedstac.awaited WHERE destination = $1", to) == 300
    async with asyncpg.create_pool(dsn, min_size=4, max_size=4) as pool:

        async def gather() -> None:
            async with pool.acquire() as own:
                await notifications.gather(own, 0)

        await asyncio.gather(*(gather() for _ in range(4)))
        await gather()
    about = await conn.fetch("SELECT unnest(about) AS each FROM fedstac.notification")
    assert len(about) == len({row["each"] for row in about}) == 300
    assert await conn.fetchval("SELECT count(*) FROM fedstac.awaited") == 0


async def test_a_request_under_way_is_waited_for(conn: Conn) -> None:
    await a_destination(conn)
    await conn.execute(
        """WITH made AS (
               INSERT INTO fedstac.request (id, collection, action, total, submitter, roles, correlation)
               VALUES (gen_random_uuid(), 'CMIP6', 'publish', 2, 'anna', '{}', 'x') RETURNING id)
           INSERT INTO fedstac.request_item (request, n, shard, dataset, status, outcome, finished)
           SELECT id, n, 0, 'x', CASE n WHEN 0 THEN 'done' ELSE 'queued' END, 'new', CASE n WHEN 0 THEN now() END
           FROM made, generate_series(0, 1) n"""
    )
    await notifications.gather(conn, 0)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.notification") == 0
    await conn.execute("UPDATE fedstac.request_item SET status = 'done', finished = now() WHERE status = 'queued'")
    await notifications.gather(conn, 0)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.notification") == 1


async def test_old_rows_are_swept_out(conn: Conn) -> None:
    to = (await a_destination(conn)).id
    await notifications.tell(conn, to, "request", ["a"])
    [message] = await notifications.take(conn, 1, lease=30, per_hour=9)
    await notifications.finish(conn, message.id, "delivered")
    assert await notifications.sweep(conn) == 0
    await conn.execute("UPDATE fedstac.notification SET finished = now() - interval '8 days'")
    assert await notifications.sweep(conn) == 1


def test_pauses_grow_to_an_hour_and_differ() -> None:
    assert 2.5 <= notifier.retry_seconds(1) <= 7.5
    assert all(1800 <= notifier.retry_seconds(n) <= 5400 for n in (12, 30, 10_000))
    assert len({notifier.retry_seconds(3) for _ in range(10)}) > 1


@pytest.mark.parametrize(("address", "public"), [
    ("8.8.8.8", True), ("2606:4700:4700::1111", True), ("127.0.0.1", False), ("10.0.0.1", False), ("172.16.0.1", False),
    ("192.168.1.1", False), ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False),
    ("255.255.255.255", False), ("240.0.0.1", False), ("192.0.0.8", False), ("198.18.0.1", False), ("::1", False),
    ("::", False), ("fe80::1", False), ("fe80::1%eth0", False), ("fc00::1", False), ("ff02::1", False),
    ("::127.0.0.1", False),
    ("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", True), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
    ("2001:0:7f00:1::", False), ("nonsense", False),
])  # fmt: skip
def test_which_addresses_are_of_the_internet(address: str, public: bool) -> None:
    assert destinations.is_public(address) is public


@pytest.mark.parametrize("address", [
    "http://169.254.169.254/latest/meta-data", "https://169.254.169.254/", "https://localhost/", "https://127.0.0.1/",
    "https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://10.1.2.3/x", "https://0.0.0.0/", "file:///etc/passwd",
    "gopher://x.example/", "https://user:secret@x.example/", "https://x.example/#part", "https://", "https://x_y/",
    "mailto:anna@x.example\r\nBcc: eve@x.example", "mailto:anna@x.example,eve@x.example", "mailto:anna",
    "mailto:a b@x.example",
    'mailto:"anna"@x.example', "mailto:anna@x.example?cc=eve@x.example", "ftp://x.example/", "https://x.example/ä", "",
])  # fmt: skip
def test_an_address_that_must_not_be_used_is_refused(address: str) -> None:
    with pytest.raises(BadRequest):
        destinations.parse(address)


@pytest.mark.parametrize(("address", "is_taken"), [
    ("http://10.20.3.4/x", True), ("https://10.20.3.4/x", True), ("http://receiver.example/x", True),
    ("https://8.8.8.8/x", True), ("http://8.8.8.8/x", False), ("http://[2606:4700:4700::1111]/x", False),
    ("http://10.21.0.1/x", False), ("https://10.21.0.1/x", False), ("ftp://10.20.3.4/x", False),
])  # fmt: skip
def test_which_addresses_go_with_listed_networks(address: str, *, is_taken: bool) -> None:
    networks = destinations.networks_of(("10.20.0.0/16",))
    if is_taken:
        assert str(destinations.parse(address, networks=networks)) == address
    else:
        with pytest.raises(BadRequest):
            destinations.parse(address, networks=networks)


@pytest.mark.parametrize(("address", "kind", "host"), [
    ("mailto:Anna.Lee+x@X.example", "mail", "x.example"), ("https://X.example:8443/a?b", "webhook", "x.example"),
    ("slack+https://hooks.slack.com/services/T/B/x", "slack", "hooks.slack.com"),
    ("https://8.8.8.8/", "webhook", "8.8.8.8"),
])  # fmt: skip
def test_an_address_is_read_and_written_the_same(address: str, kind: str, host: str) -> None:
    read = destinations.parse(address)
    assert (read.kind, read.host, str(read)) == (kind, host, address)


@pytest.mark.parametrize(("patterns", "host", "allowed"), [
    ((), "x.example", False), (("x.example",), "x.example", True), (("x.example",), "y.x.example", False),
    (("*.x.example",), "y.x.example", True), (("*.x.example",), "x.example", False),
    (("*.x.example",), "ax.example", False),
    (("X.Example",), "x.example", True), (("*",), "anything", True),
])  # fmt: skip
def test_which_hosts_a_pattern_allows(patterns: Sequence[str], host: str, allowed: bool) -> None:
    assert destinations.allows(patterns, host) is allowed


class Names:
    """A resolver that answers one thing after the other, and counts."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers, self.count = list(answers), 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.count += 1
        return self.answers.pop(0)


@pytest.mark.parametrize(
    "addresses", [("127.0.0.1",), ("169.254.169.254",), ("8.8.8.8", "10.0.0.1"), ("::ffff:7f00:1",)]
)
async def test_a_name_of_a_private_address_is_not_connected_to(receiver: Receiver, addresses: Sequence[str]) -> None:
    async with Webhooks(private=False, find=Names(addresses)) as hooks:
        with pytest.raises(Forbidden):
            await hooks.send(f"http://hooks.example:{receiver.port}/", id="1", secret=KEY, body=b"{}", seconds=PATIENCE)
    assert receiver.calls.empty()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0"])
async def test_no_spelling_of_loopback_is_connected_to(receiver: Receiver, host: str) -> None:
    async with Webhooks(private=False) as hooks:
        with pytest.raises((Forbidden, Undelivered)):
            await hooks.send(f"http://{host}:{receiver.port}/", id="1", secret=KEY, body=b"{}", seconds=PATIENCE)
    assert receiver.calls.empty()


async def test_the_address_that_was_judged_is_the_one_that_is_used(receiver: Receiver) -> None:
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    async with Webhooks(private=True, find=names) as hooks:
        await hooks.send(f"http://hooks.example:{receiver.port}/x?y", id="1", secret=KEY, body=b"{}", seconds=PATIENCE)
    call = await receiver.next()
    assert (call.path, call.headers["host"]) == ("/x?y", f"hooks.example:{receiver.port}")
    assert names.count == 1


async def test_a_receiver_that_never_answers_takes_no_longer_than_allowed() -> None:
    connections: list[bool] = []  # whether each has ended

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(False)
        n = len(connections) - 1
        await reader.read()
        writer.close()
        await writer.wait_closed()
        connections[n] = True

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    async with server, Webhooks(private=True) as hooks:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Undelivered):
            await hooks.send(f"http://127.0.0.1:{port}/", id="1", secret=KEY, body=b"{}", seconds=0.3)
    async with asyncio.timeout(PATIENCE):
        while not all(connections):  # noqa: ASYNC110 (there may have been none in that time)
            await asyncio.sleep(0.01)


async def test_who_is_erased_is_told_nothing_more(conn: Conn, dsn: str, cluster: embedded.Cluster) -> None:
    name = await people.pseudonym(
        conn, Identity("https://aai.example", "anna", "Anna", None, "", frozenset(), (), frozenset())
    )
    to = (await a_destination(conn, name)).id
    other = (await a_destination(conn, "bob")).id
    await notifications.tell(conn, to, "request", ["a"])
    owner = await asyncpg.connect(cluster.dsn(str(await conn.fetchval("SELECT current_database()"))))
    try:
        await owner.execute("DELETE FROM fedstac.person WHERE sub = 'anna'")
    finally:
        await owner.close()
    assert [row["id"] for row in await conn.fetch("SELECT id FROM fedstac.destination")] == [other]
    assert await conn.fetchval("SELECT count(*) FROM fedstac.notification") == 0
