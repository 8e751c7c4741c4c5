"""How far this node has taken the messages of topics of acknowledgements."""

from __future__ import annotations

from dataclasses import dataclass

from fedstac.db.connections import Connection


@dataclass(frozen=True, slots=True)
class StatusSource:
    """A topic at a broker. identity: another one where it was made anew and its offsets are other messages."""

    address: str
    identity: str


async def advance(conn: Connection, topic: StatusSource, partition: str, offset: int) -> bool:
    """Take the message at an offset in the caller's transaction. Return False where it was taken before.

    Other processes that take messages of the partition wait for the end of the transaction.
    """
    taken_offset = await conn.fetchval(
        """INSERT INTO fedstac.status_topic AS t (address, partition, identity, taken) VALUES ($1, $2, $3, $4)
           ON CONFLICT (address, partition) DO UPDATE SET identity = EXCLUDED.identity, taken = EXCLUDED.taken
           WHERE t.identity <> EXCLUDED.identity OR t.taken < EXCLUDED.taken RETURNING taken""",
        topic.address, partition, topic.identity, offset,
    )  # fmt: skip
    return taken_offset is not None
