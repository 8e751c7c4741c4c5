"""The background parts of a node's processes, as each process reports them while it lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedstac.db.connections import Connection
from fedstac.runtime.supervision import PartState

ALIVE_SECONDS = 60  # a process that has not reported for so long is taken for dead
KEPT_HOURS = 24


@dataclass(frozen=True, slots=True)
class PartReport:
    """How the parts of one name stand in all processes that are alive."""

    running: int
    wanted: int
    restarts: int
    troubles: tuple[str, ...] = ()


async def report(conn: Connection, process: str, states: Mapping[str, PartState]) -> None:
    """Say how the parts of this process stand; old reports of processes that are gone are forgotten."""
    items = list(states.items())
    await conn.execute(
        """INSERT INTO fedstac.part (process, name, wanted, running, restarts, trouble)
           SELECT $1, * FROM unnest($2::text[], $3::int[], $4::int[], $5::int[], $6::text[])
           ON CONFLICT (process, name) DO UPDATE SET wanted = EXCLUDED.wanted, running = EXCLUDED.running,
                  restarts = EXCLUDED.restarts, trouble = EXCLUDED.trouble, seen = clock_timestamp()""",
        process, [name for name, _ in items], [state.wanted for _, state in items],
        [state.running for _, state in items], [state.restarts for _, state in items],
        [state.trouble for _, state in items],
    )  # fmt: skip
    await conn.execute(
        "DELETE FROM fedstac.part WHERE seen < clock_timestamp() - make_interval(hours => $1)", KEPT_HOURS
    )


async def forget(conn: Connection, process: str) -> None:
    """Forget a process that ends in order."""
    await conn.execute("DELETE FROM fedstac.part WHERE process = $1", process)


async def elsewhere(conn: Connection, process: str) -> dict[str, PartReport]:
    """Return how the parts stand in all other processes."""
    rows = await conn.fetch(
        """SELECT name, sum(running)::int AS running, sum(wanted)::int AS wanted, sum(restarts)::int AS restarts,
                  array_remove(array_agg(DISTINCT trouble), NULL) AS troubles
           FROM fedstac.part WHERE process <> $1 AND seen > clock_timestamp() - make_interval(secs => $2)
           GROUP BY name ORDER BY name""",
        process, ALIVE_SECONDS,
    )  # fmt: skip
    return {
        row["name"]: PartReport(row["running"], row["wanted"], row["restarts"], tuple(row["troubles"])) for row in rows
    }


def everywhere(states: Mapping[str, PartState], elsewhere: Mapping[str, PartReport]) -> dict[str, PartReport]:
    """Return how the parts stand in this process and the others together."""
    standings = dict(elsewhere)
    for name, state in states.items():
        other = standings.get(name, PartReport(0, 0, 0))
        troubles = (state.trouble, *other.troubles) if state.trouble else other.troubles
        standings[name] = PartReport(
            other.running + state.running, other.wanted + state.wanted, other.restarts + state.restarts,
            tuple(dict.fromkeys(troubles)),
        )  # fmt: skip
    return dict(sorted(standings.items()))
