"""Which footprints a box touches: memory tells it of rectangles as PostGIS does, and asks PostGIS about the others."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

import orjson
import pytest
import shapely

from fedstac.columns import dictionaries as module
from fedstac.columns.dictionaries import Dictionaries, Leaf
from fedstac.db import columns as stored
from fedstac.db import connections
from fedstac.db.columns import FOOTPRINT
from fedstac.db.connections import Connection
from fedstac.domain import filters
from fedstac.domain.geometry import EMPTY

Json: TypeAlias = dict[str, Any]
PLACE = FOOTPRINT, ""


class Questions:
    """Notes which entries PostGIS is asked about."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.codes: list[int] = []
        truths = stored.truths

        async def ask(conn: Any, place: Any, predicates: Sequence[Any], codes: Sequence[int]) -> Any:
            self.codes += codes
            return await truths(conn, place, predicates, codes)

        monkeypatch.setattr(stored, "truths", ask)


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Connection]:
    conn = await connections.connect(dsn)
    yield conn
    await conn.close()


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> Questions:
    return Questions(monkeypatch)


def touches(shape: Json) -> Leaf:
    return Leaf(PLACE, orjson.dumps({"op": "s_intersects", "args": [{"property": "geometry"}, shape]}))


def drawn_box(rng: random.Random) -> list[float]:
    """Return a box on a coarse grid, for edges and corners to meet; some have no width or height, some cross 180."""
    west, south = rng.randint(-18, 17) * 10, rng.randint(-9, 8) * 10
    return [west, south, west + rng.randint(0, 6) * 10, min(90, south + rng.randint(0, 4) * 10)]


def drawn_footprint(rng: random.Random) -> Json:
    west, south, east, north = drawn_box(rng)
    match rng.randrange(8):
        case 0:
            return {"type": "LineString", "coordinates": [[west, south], [east + 10, north + 10]]}
        case 1:
            return {
                "type": "Polygon",
                "coordinates": [[[west, south], [east + 10, south], [west, north + 10], [west, south]]],
            }
        case 2:
            return {"type": "MultiPoint", "coordinates": [[west, south], [east, north]]}
        case 3:
            empty: Json = orjson.loads(EMPTY)
            return empty
        case 4:
            shape: Json = orjson.loads(
                shapely.to_geojson(shapely.reverse(shapely.box(west, south, east + 10, north + 10)))
            )
            return shape
    return filters.box([west, south, east, north])


async def add(conn: Connection, shapes: Sequence[Json]) -> list[int]:
    """Add footprints to the database; return the codes of all that it has."""
    await conn.executemany(
        """INSERT INTO fedstac.footprint (geometry) SELECT g FROM st_geomfromgeojson($1) g
           WHERE NOT EXISTS (SELECT FROM fedstac.footprint f WHERE md5(st_asewkb(f.geometry)) = md5(st_asewkb(g)))""",
        [(orjson.dumps(shape).decode(),) for shape in shapes],
    )
    return [row["code"] for row in await conn.fetch("SELECT code FROM fedstac.footprint ORDER BY code")]


async def states_of(dictionaries: Dictionaries, conn: Connection, leaf: Leaf) -> dict[int, int]:
    verdicts = (await dictionaries.verdicts(conn, [leaf]))[leaf]
    return {code: int(verdicts.table[code]) for code in dictionaries.of(PLACE).codes}


async def test_memory_tells_of_every_footprint_what_postgis_tells(conn: Connection, questions: Questions) -> None:
    rng = random.Random(20)
    codes = await add(conn, [drawn_footprint(rng) for _ in range(300)])
    rectangles = await stored.rectangles(conn)
    with_rectangles, without = Dictionaries(), Dictionaries()
    with_rectangles.add_footprints(codes, rectangles)
    without.add_footprints(codes, {})
    others = set(codes) - rectangles.keys()
    assert others
    assert len(rectangles) > len(codes) // 2
    assert any(len(parts) == 2 for parts in rectangles.values())
    for _ in range(100):
        box = filters.box(drawn_box(rng))
        questions.codes.clear()
        own = await states_of(with_rectangles, conn, touches(box))
        if "Polygon" in box["type"]:
            assert set(questions.codes) <= others
        assert own == await states_of(without, conn, touches(box)), box


async def test_of_other_shapes_and_operators_postgis_tells_all(
    conn: Connection, questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    dictionaries = Dictionaries()
    codes = await add(conn, [filters.box([0, 0, 10, 10]), filters.box([20, 20, 30, 30])])
    dictionaries.add_footprints(codes, await stored.rectangles(conn))
    many = {
        "type": "MultiPolygon",
        "coordinates": [filters.box([2 * n, 0, 2 * n + 1, 1])["coordinates"] for n in range(40)],
    }
    monkeypatch.setattr(module, "MOST_COMPARISONS", 79)
    triangle = {"type": "Polygon", "coordinates": [[[0, 0], [25, 0], [0, 25], [0, 0]]]}
    for op, shape in (("s_intersects", triangle), ("s_intersects", many), ("s_disjoint", filters.box([0, 0, 1, 1]))):
        questions.codes.clear()
        leaf = Leaf(PLACE, orjson.dumps({"op": op, "args": [{"property": "geometry"}, shape]}))
        await states_of(dictionaries, conn, leaf)
        assert questions.codes == [0, *codes]


async def test_an_answer_is_completed_with_footprints_that_came_later(conn: Connection, questions: Questions) -> None:
    dictionaries = Dictionaries()
    shapes = [filters.box([0, 0, 10, 10]), {"type": "LineString", "coordinates": [[5, 5], [40, 50]]}]
    first = await add(conn, shapes)
    dictionaries.add_footprints(first, await stored.rectangles(conn))
    box = touches(filters.box([4, 4, 8, 8]))
    await states_of(dictionaries, conn, box)
    later = (await add(conn, [filters.box([7, 7, 9, 9]), {"type": "LineString", "coordinates": [[6, 6], [90, 9]]}]))[
        len(first) :
    ]
    questions.codes.clear()
    assert dictionaries.missing_footprints([0, *first, *later]) == later
    dictionaries.add_footprints(later, await stored.rectangles(conn, later))
    own = await states_of(dictionaries, conn, box)
    assert questions.codes == later[1:]
    everything = Dictionaries()
    everything.add_footprints([*first, *later], {})
    assert own == await states_of(everything, conn, box)
