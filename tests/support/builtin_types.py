"""What asyncpg asks each connection about the types of its statements, asked once a process.

The first statement of a connection with an `int[]`, a `bool[]` or a `uuid[]` makes asyncpg read their description from
the catalogue, in 20 ms of processor time. Those of PostgreSQL's own types are the same in all databases.
"""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

from asyncpg import connection

FIRST_OTHER = 10_000  # the lowest OID that the source of PostgreSQL gives no type of its own


def ask_once() -> None:
    """Let all connections of this process share what one of them was told about PostgreSQL's own types."""
    kind: Any = connection.Connection  # its stubs leave out what is not for everybody
    introspect = kind._introspect_types
    answers: dict[frozenset[int], Any] = {}
    nothing_prepared = SimpleNamespace(name="none")  # stands for a statement that leaves others as they are

    async def introspect_once(
        self: connection.Connection[Any], oids: Collection[int], timeout: float | None
    ) -> tuple[Any, Any]:
        key = frozenset(oids)
        if max(key) >= FIRST_OTHER:
            answer: tuple[Any, Any] = await introspect(self, oids, timeout)
            return answer
        if key in answers:
            return answers[key], nothing_prepared
        answers[key], statement = await introspect(self, oids, timeout)
        return answers[key], statement

    kind._introspect_types = introspect_once
