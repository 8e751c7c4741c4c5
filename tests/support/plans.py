"""The plans that PostgreSQL executes for the product's own statements, as its module auto_explain tells them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson
import psycopg
from psycopg import sql

from fedstac.db.connections import Connection

Node = Mapping[str, Any]  # of a plan as EXPLAIN (FORMAT JSON) writes it
SETTINGS = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_nested_statements": "on",  # those in functions of the database
    "auto_explain.log_format": "json",
    "auto_explain.log_level": "notice",  # sent to the client
}


@dataclass(frozen=True)
class Plan:
    """One executed statement."""

    statement: str
    root: Node

    @property
    def blocks(self) -> int:
        """Pages that it read or changed, in the cache or not."""
        return int(self.root["Shared Hit Blocks"] + self.root["Shared Read Blocks"])

    def nodes(self) -> Iterator[Node]:
        """Yield the nodes of the plan, from the root on."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.get("Plans", [])

    @property
    def wasted(self) -> dict[str, float]:
        """Rows that were read for nothing, by table: those that a filter removed, and all that were read in line."""
        rows: dict[str, float] = {}
        for node in self.nodes():
            if "Relation Name" in node:
                removed = node.get("Rows Removed by Filter", 0)
                read = removed + (node["Actual Rows"] if node["Node Type"] == "Seq Scan" else 0)
                rows[node["Relation Name"]] = rows.get(node["Relation Name"], 0) + node["Actual Loops"] * read
        return rows

    def __str__(self) -> str:
        return f"{self.statement}\n{orjson.dumps(_brief(self.root), option=orjson.OPT_INDENT_2).decode()}"


def _brief(node: Node) -> Node:
    """Return what tells plans apart."""
    keys = ("Node Type", "Relation Name", "Index Name", "Index Cond", "Filter", "Actual Rows", "Actual Loops",
            "Rows Removed by Filter", "Rows Removed by Index Recheck", "Shared Hit Blocks")  # fmt: skip
    brief = {name: node[name] for name in keys if name in node}
    return brief | ({"Plans": [_brief(child) for child in node["Plans"]]} if "Plans" in node else {})


def tell_plans(superuser: str, database: str) -> None:
    """Make every session of a database from now on tell the plans of what it executes."""
    with psycopg.connect(superuser, autocommit=True) as conn:
        conn.execute("LOAD 'auto_explain'")  # its settings are known from here on
        for name, value in SETTINGS.items():
            statement = sql.SQL("ALTER DATABASE {} SET {} = {}")
            place = sql.SQL(".").join(sql.Identifier(part) for part in name.split("."))
            conn.execute(statement.format(sql.Identifier(database), place, sql.Literal(value)))


async def plans_of(conn: Connection, work: Callable[[Connection], Awaitable[object]]) -> list[Plan]:
    """Return the plans of the statements on our tables that some work executes."""
    plans: list[Plan] = []

    def hear(_: object, message: asyncpg.PostgresLogMessage) -> None:
        before, found, plan = str(message.message).partition(" plan:\n")
        if found and before.startswith("duration:"):
            explained = orjson.loads(plan)
            statement = explained["Query Text"]
            if ("fedstac." in statement or "pgstac." in statement) and not statement.startswith("EXPLAIN"):
                plans.append(Plan(statement, explained["Plan"]))

    conn.add_log_listener(hear)
    try:
        await work(conn)
        await conn.execute("SELECT 1")  # in a transaction a statement ends, and is told, when the next one begins
        await asyncio.sleep(0)  # listeners are called by the event loop
    finally:
        conn.remove_log_listener(hear)
    return plans
