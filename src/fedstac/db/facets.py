"""Rows of codes: one narrow row of fixed length a dataset, written in the record's own transaction.

Processes answer searches from them (docs/search.md, "Coded columns"). A code stands for a value of a property
(fedstac.term) or a footprint (fedstac.footprint), and never changes. New ones are committed before the transaction that
uses them (`prepare`), so that writers do not wait for each other; what is not prepared is made within the transaction.

A property has the same place in all rows of a collection, or none for good: with PLACES others before it, a value
that is longer than MOST_BYTES, or more than MOST_TERMS values that a collection brought.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

import asyncpg
import orjson

from fedstac.db import binary_copy
from fedstac.db.connections import Connection
from fedstac.domain.facets import MOST_BYTES, MOST_TERMS, PLACES
from fedstac.domain.model import Change, Draft, Record, State
from fedstac.runtime.causes import is_refusal

NOWHERE: Final = -1  # instead of a place
PUBLISHED, RETRACTED, LATEST = 1, 2, 4  # bits of `shown`
MOST_CODES: Final = 200_000  # that a process remembers, of terms; a tenth of it of footprints
MOST_KEY: Final = 1000  # characters of a footprint that is remembered by its text
MOST_LOST: Final = 100  # properties of a collection that are noted when no place is free
NUMBERS_AT_ONCE: Final = 1000  # drawn from the sequence
MOST_DATABASES: Final = 8  # that a process remembers codes of

COLUMNS = ("n", "collection", "shown", "starts", "ends", "updated", "footprint", "size", "files", "codes")
# PostgreSQL's binary COPY: the number of fields; before each its length; an array's dimensions, flags, type, size, base
ROW = struct.Struct(">hiqiiihiqiqiqiiiqiiiiiiii")
ARRAY = (20 + 8 * PLACES, 1, 0, 23, PLACES, 1)  # of integers, without nulls
CODE = struct.Struct(">ii")
ABSENT = CODE.pack(4, 0)

Key = str | bytes  # of a value: a text as it is, any other value as JSON


class DraftCodes(NamedTuple):
    """The codes of a draft; those of its properties as PostgreSQL's COPY has them."""

    draft: Draft
    footprint: int
    pieces: bytes


@dataclass(frozen=True, slots=True)
class PreparedCodes:
    """The codes of the drafts that a connection writes next, by the identity of the draft, and of which version."""

    version: int | None
    by_draft: Mapping[int, DraftCodes]


NOTHING_PREPARED = PreparedCodes(None, {})


@dataclass(slots=True)
class Codes:
    """What this process knows of a database's codes. All of it is committed, and true while `version` stays."""

    places: dict[str, dict[str, int]] = field(default_factory=dict)  # by collection and property
    terms: dict[str, dict[Key, bytes]] = field(default_factory=dict)  # codes as a row has them, by property and value
    footprints: dict[Key, int] = field(default_factory=dict)
    numbers: deque[int] = field(default_factory=deque)  # drawn and committed, and not given to a record yet
    count: int = 0  # of terms
    version: int | None = None  # of the database's terms: some were removed where it is another; None: not asked yet

    def forget(self, version: int) -> None:
        """Forget the codes of terms: this version of them lacks some."""
        for codes in self.terms.values():
            codes.clear()
        self.count, self.version = 0, version

    def learn(self, other: Codes) -> None:
        """Take over what another one knows."""
        self.count += sum(len(codes) for codes in other.terms.values())
        if self.count > MOST_CODES:
            self.terms.clear()
            self.places.clear()
            self.count = sum(len(codes) for codes in other.terms.values())
        if len(self.footprints) > MOST_CODES // 10:
            self.footprints.clear()
        for collection, places in other.places.items():
            self.places.setdefault(collection, {}).update(places)
            for name in places:
                self.terms.setdefault(name, {})
        for name, codes in other.terms.items():
            self.terms.setdefault(name, {}).update(codes)
        self.footprints.update(other.footprints)

    def of(self, draft: Draft) -> DraftCodes | None:
        """Return the codes of a draft; None where one of them is not known."""
        pieces, all_terms = [ABSENT] * PLACES, self.terms
        try:
            places = self.places[draft.collection]
            for name, value in draft.search.facets.items():
                place = places[name]
                if place >= 0:
                    pieces[place] = all_terms[name][value if type(value) is str else orjson.dumps(value)]
            footprint = self.footprints[_key_of_footprint(draft.search.geometry)]
        except KeyError:
            return None
        return DraftCodes(draft, footprint, b"".join(pieces))


_by_database: dict[tuple[str, str, str, int], Codes] = {}
_by_connection: WeakKeyDictionary[object, Codes] = WeakKeyDictionary()
_prepared: WeakKeyDictionary[object, PreparedCodes] = WeakKeyDictionary()  # by the connection


def _session_of(conn: Connection) -> object:
    return getattr(conn, "_con", conn)  # of a pool's proxy, which is made anew each time


async def _codes_of(conn: Connection) -> Codes:
    """Return what is known of the database of a connection.

    A promoted one is another: it may have lost codes. So is a copy of its files, which has the same names.
    """
    session = _session_of(conn)
    codes = _by_connection.get(session)
    if codes is None:
        row = await conn.fetchrow(
            """SELECT system_identifier::text AS system, left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline,
                      pg_postmaster_start_time()::text AS started,
                      (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database
               FROM pg_control_system()"""
        )
        assert row is not None
        while len(_by_database) >= MOST_DATABASES:
            _by_database.pop(next(iter(_by_database)))
        codes = _by_database.setdefault((row["system"], row["timeline"], row["started"], row["database"]), Codes())
        _by_connection[session] = codes
    return codes


async def prepare(conn: Connection, drafts: Sequence[Draft]) -> None:
    """Make the codes that documents need, in a transaction of its own, and remember them; draw numbers for records.

    What the database refuses is left to the transaction of the records, which finds whose fault it is.
    """
    if conn.is_in_transaction():
        return
    codes = await _codes_of(conn)
    await _draw_ahead(conn, codes, len(drafts))
    if codes.version is None:
        codes.version = await conn.fetchval("SELECT version FROM fedstac.term_state")
    version = codes.version
    prepared = {id(draft): codes.of(draft) for draft in drafts}
    unknown = [draft for draft in drafts if prepared[id(draft)] is None]
    if unknown:
        try:
            async with conn.transaction():
                new = await _resolve(conn, unknown, codes)
        except asyncpg.PostgresError as error:
            if not is_refusal(error):
                raise
        else:
            if codes.version != version:  # forgotten meanwhile, and what was made may be among it
                return
            codes.learn(new)
            prepared |= {id(draft): codes.of(draft) for draft in unknown}
    _prepared[_session_of(conn)] = PreparedCodes(
        codes.version, {key: each for key, each in prepared.items() if each is not None}
    )


async def _draw_ahead(conn: Connection, codes: Codes, count: int) -> None:
    """Draw numbers that this process keeps for its next records.

    A crash of PostgreSQL takes back what no committed transaction has drawn of a sequence, and others get it again. So
    this is no part of the transaction of the records.
    """
    if len(codes.numbers) < count:
        codes.numbers.extend(await _next_numbers(conn, max(count, NUMBERS_AT_ONCE)))


async def draw(conn: Connection, count: int) -> list[int]:
    """Return numbers for new records: those drawn ahead, or such as belong to this transaction."""
    numbers = (await _codes_of(conn)).numbers
    if len(numbers) < count:
        return await _next_numbers(conn, count)
    return [numbers.popleft() for _ in range(count)]


async def _next_numbers(conn: Connection, count: int) -> list[int]:
    rows = await conn.fetch("SELECT nextval('fedstac.record_n') AS n FROM generate_series(1, $1)", count)
    return [row["n"] for row in rows]


def shown(record: Record) -> int:
    """Return how searches see a record; 0: not at all."""
    if not record.is_found:
        return 0
    match record.state:
        case State.PUBLISHED:
            return PUBLISHED + LATEST * record.latest
        case State.RETRACTED:
            return RETRACTED + LATEST * record.latest
        case _:
            return 0


async def write(
    conn: Connection, changes: Sequence[Change], numbers: Mapping[tuple[str, str], int], leaves: Mapping[str, str]
) -> None:
    """Write the rows of documents that are new here, or come into search again. Their records are written.

    `numbers` are those of new records, by collection and id; `leaves` the partitions of the collections.
    """
    drafts = [
        (change.draft, change.after) for change in changes
        if change.draft is not None and shown(change.after) and change.after.collection in leaves
    ]  # fmt: skip
    if not drafts:
        return
    coded = await _coded(conn, [draft for draft, _ in drafts])
    keys = {collection: int(leaf.rpartition("_")[2]) for collection, leaf in leaves.items()}
    new = [
        _row(numbers[record.collection, record.id], keys[record.collection], record, codes)
        for codes, (_, record) in zip(coded, drafts, strict=True) if (record.collection, record.id) in numbers
    ]  # fmt: skip
    if new:
        await binary_copy.write(conn, "fedstac", "facet", COLUMNS, new)
    old = [
        (codes, record) for codes, (_, record) in zip(coded, drafts, strict=True)
        if (record.collection, record.id) not in numbers
    ]  # fmt: skip
    if old:
        await _put(conn, old, keys)


async def _coded(conn: Connection, drafts: Sequence[Draft]) -> list[DraftCodes]:
    """Return the codes of drafts. What was not prepared is made in this transaction, and not remembered."""
    codes = await _codes_of(conn)
    version = await conn.fetchval("SELECT fedstac.hold_terms()")
    if version != codes.version:
        codes.forget(version)
    prepared = _prepared.pop(_session_of(conn), NOTHING_PREPARED)
    by_draft = prepared.by_draft if prepared.version == version else {}
    coded: list[DraftCodes | None] = []
    for draft in drafts:
        ready = by_draft.get(id(draft))
        coded.append(ready if ready is not None and ready.draft is draft else codes.of(draft))
    if None in coded:
        codes = await _resolve(conn, drafts, Codes())
        coded = [codes.of(draft) for draft in drafts]
    return [each for each in coded if each is not None]


def _row(n: int, key: int, record: Record, codes: DraftCodes) -> bytes:
    search = codes.draft.search
    starts, ends = binary_copy.microseconds(search.start), binary_copy.microseconds(search.end)
    return ROW.pack(
        10, 8, n, 4, key, 2, shown(record), 8, starts, 8, ends,
        8, binary_copy.microseconds_of(record.updated), 4, codes.footprint, 8, search.size, 4, search.files, *ARRAY,
    ) + codes.pieces  # fmt: skip


async def _put(conn: Connection, old: Sequence[tuple[DraftCodes, Record]], keys: Mapping[str, int]) -> None:
    """Write rows of records that were here before; some had none, because searches did not find them."""
    all_codes = [code for codes, _ in old for _, code in CODE.iter_unpack(codes.pieces)]
    await conn.execute(
        f"""INSERT INTO fedstac.facet (n, collection, shown, starts, ends, updated, footprint, size, files, codes)
            SELECT r.n, c.key, c.shown, c.starts::timestamptz, c.ends::timestamptz, c.updated, c.footprint, c.size,
                   c.files, ($10::int4[])[c.place * {PLACES} - {PLACES - 1} : c.place * {PLACES}]
            FROM unnest($1::text[], $2::text[], $3::int4[], $4::int2[], $5::text[], $6::text[], $7::timestamptz[],
                        $8::int4[], $9::int8[], $11::int4[])
                 WITH ORDINALITY c (collection, id, key, shown, starts, ends, updated, footprint, size, files, place)
            JOIN fedstac.record r ON r.collection = c.collection AND r.id = c.id
            ON CONFLICT (n) DO UPDATE SET changed = pg_current_xact_id(), collection = EXCLUDED.collection,
                shown = EXCLUDED.shown, starts = EXCLUDED.starts, ends = EXCLUDED.ends, updated = EXCLUDED.updated,
                footprint = EXCLUDED.footprint, size = EXCLUDED.size, files = EXCLUDED.files, codes = EXCLUDED.codes""",
        [r.collection for _, r in old], [r.id for _, r in old], [keys[r.collection] for _, r in old],
        [shown(r) for _, r in old], [c.draft.search.start for c, _ in old], [c.draft.search.end for c, _ in old],
        [r.updated for _, r in old], [c.footprint for c, _ in old], [c.draft.search.size for c, _ in old],
        all_codes, [c.draft.search.files for c, _ in old],
    )  # fmt: skip


def _key_of_footprint(geojson: str) -> Key:
    return geojson if len(geojson) <= MOST_KEY else hashlib.sha256(geojson.encode()).digest()


@lru_cache(maxsize=4096)  # a model's datasets share a handful of footprints
def ewkb(geojson: str) -> bytes:
    """Return EWKB with its SRID: PostgreSQL takes it many times faster than GeoJSON."""
    import shapely  # with numpy half of a process's start, and not every process publishes

    geometry = shapely.set_srid(shapely.from_geojson(geojson), 4326)
    return shapely.to_wkb(geometry, include_srid=True)


async def remove_unused(conn: Connection) -> int:
    """Remove the terms that no dataset has any more, after a purge; return how many.

    Not while a long transaction writes codes: the next time, then. Call it outside of a transaction.
    """
    try:
        return int(await conn.fetchval("SELECT fedstac.remove_terms()"))
    except asyncpg.LockNotAvailableError:
        return 0


async def remove_forgotten(conn: Connection) -> int:
    """Remove rows whose datasets were forgotten at least an hour ago; return how many. It looks once an hour.

    Whoever has not looked for changes since then loads everything again: `through` says so.
    """
    removed = await conn.fetchval(
        """WITH turn AS (
               SELECT next FROM fedstac.facet_removed WHERE looked < now() - interval '1 hour' FOR UPDATE),
           gone AS (
               DELETE FROM fedstac.facet f USING turn
               WHERE f.shown = 0 AND f.changed < turn.next AND NOT EXISTS (SELECT FROM fedstac.record r WHERE r.n = f.n)
               RETURNING f.changed),
           marked AS (
               UPDATE fedstac.facet_removed w SET looked = now(), next = pg_snapshot_xmin(pg_current_snapshot()),
                      through = coalesce((SELECT changed FROM gone ORDER BY changed DESC LIMIT 1), through)
               FROM turn)
           SELECT count(*) FROM gone"""
    )
    return int(removed)


# --- codes ---


async def _resolve(conn: Connection, drafts: Sequence[Draft], cache: Codes) -> Codes:
    """Return what the rows of drafts need beside the cache; what is missing is made. Join a transaction."""
    codes = Codes()
    names: dict[
        str, dict[str, None]
    ] = {}  # properties without a known place by collection, in the order of their claim
    long: set[tuple[str, str]] = set()
    texts: dict[tuple[str, str, Key], str] = {}  # values as JSON
    for collection in dict.fromkeys(draft.collection for draft in drafts):
        if collection not in cache.places:
            names[collection] = {}
    for draft in drafts:  # of each value once, and quickly: of a first batch all are unknown
        collection = draft.collection
        places = cache.places.get(collection, {})
        for name, value in draft.search.facets.items():
            key: Key = value if type(value) is str else orjson.dumps(value)
            place = places.get(name)
            if place is not None and (place < 0 or key in cache.terms[name]):
                continue
            if (collection, name, key) in texts:
                continue
            text = orjson.dumps(value)
            is_long = len(text) > MOST_BYTES
            if is_long:
                long.add((collection, name))
            elif b"\\u0000" in text:  # the database will refuse the document
                codes.terms.setdefault(name, {})[key] = ABSENT
            else:
                texts[collection, name, key] = text.decode()
            if is_long or name not in places:
                names.setdefault(collection, {})[name] = None
            else:
                codes.places.setdefault(collection, {})[name] = places[name]
    if names:
        for collection, places in (await _places(conn, names, long)).items():
            codes.places.setdefault(collection, {}).update(places)
    texts = {key: text for key, text in texts.items() if codes.places[key[0]][key[1]] >= 0}
    for places in codes.places.values():
        for name in places:
            codes.terms.setdefault(name, {})
    for (_, name, key), code in (await _terms(conn, texts)).items():
        codes.terms[name][key] = CODE.pack(4, code)
    footprints = {draft.search.geometry for draft in drafts}
    codes.footprints = await _footprints(
        conn, [one for one in footprints if _key_of_footprint(one) not in cache.footprints]
    )
    return codes


async def _places(
    conn: Connection, names: Mapping[str, Iterable[str]], long: set[tuple[str, str]]
) -> dict[str, dict[str, int]]:
    """Return the places of properties by collection; NOWHERE for one without. New ones take what is free."""
    places = await _read_places(conn, list(names))
    new = [(collection, name) for collection, ones in names.items() for name in ones if name not in places[collection]]
    lost = [pair for pair in long if places[pair[0]].get(pair[1]) != NOWHERE]
    if new or lost:
        await conn.execute("SELECT pg_advisory_xact_lock(hashtext('fedstac.facet_slot'))")
        if lost:
            await _lose(conn, lost)
        await conn.execute(
            f"""WITH candidate AS (
                    SELECT c.collection, c.property, row_number() OVER (PARTITION BY c.collection ORDER BY c.place)
                           AS rank
                    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY c (collection, property, place)
                    WHERE NOT EXISTS (SELECT FROM fedstac.facet_slot s
                                      WHERE s.collection = c.collection AND s.property = c.property)
                      AND NOT EXISTS (SELECT FROM fedstac.facet_lost l
                                      WHERE l.collection = c.collection AND l.property = c.property)),
                free AS (
                    SELECT c.collection, p.slot, row_number() OVER (PARTITION BY c.collection ORDER BY p.slot) AS rank
                    FROM (SELECT DISTINCT collection FROM candidate) c
                    CROSS JOIN generate_series(0, {PLACES - 1}) p (slot)
                    WHERE NOT EXISTS (SELECT FROM fedstac.facet_slot s
                                      WHERE s.collection = c.collection AND s.slot = p.slot)
                      AND NOT EXISTS (SELECT FROM fedstac.facet_lost l
                                      WHERE l.collection = c.collection AND l.slot = p.slot))
                INSERT INTO fedstac.facet_slot (collection, property, slot)
                SELECT collection, property, slot FROM candidate JOIN free USING (collection, rank)""",
            [collection for collection, _ in new], [name for _, name in new],
        )  # fmt: skip
        places = await _read_places(conn, list(names))
        without = [(collection, name) for collection, name in new if name not in places[collection]]
        if without:
            await _note_lack(conn, without)
    return {
        collection: {name: places[collection].get(name, NOWHERE) for name in {*ones, *places[collection]}}
        for collection, ones in names.items()
    }


async def _note_lack(conn: Connection, properties: Sequence[tuple[str, str]]) -> None:
    """Note the properties for which no place was free, so that operators see them; of each collection the first ones.

    Whoever names properties may make up as many as they like.
    """
    await conn.execute(
        f"""INSERT INTO fedstac.facet_lost (collection, property)
            SELECT collection, property FROM (
                SELECT c.*, row_number() OVER (PARTITION BY collection ORDER BY place)
                       + (SELECT count(*) FROM fedstac.facet_lost l WHERE l.collection = c.collection) AS rank
                FROM unnest($1::text[], $2::text[]) WITH ORDINALITY c (collection, property, place)) ranked
            WHERE rank <= {MOST_LOST} ON CONFLICT DO NOTHING""",
        [collection for collection, _ in properties], [name for _, name in properties],
    )  # fmt: skip


async def _read_places(conn: Connection, collections: Sequence[str]) -> dict[str, dict[str, int]]:
    rows = await conn.fetch(
        """SELECT collection, property, slot FROM fedstac.facet_slot WHERE collection = ANY($1::text[])
           UNION ALL SELECT collection, property, -1 FROM fedstac.facet_lost WHERE collection = ANY($1::text[])""",
        collections,
    )
    places: dict[str, dict[str, int]] = {collection: {} for collection in collections}
    for row in rows:
        places[row["collection"]][row["property"]] = row["slot"]
    return places


async def _lose(conn: Connection, properties: Sequence[tuple[str, str]]) -> None:
    """Take properties their places, for good."""
    await conn.execute(
        """WITH lost AS (
               DELETE FROM fedstac.facet_slot s USING unnest($1::text[], $2::text[]) p (collection, property)
               WHERE s.collection = p.collection AND s.property = p.property
               RETURNING s.collection, s.property, s.slot)
           INSERT INTO fedstac.facet_lost (collection, property, slot)
           SELECT p.collection, p.property, lost.slot FROM unnest($1::text[], $2::text[]) p (collection, property)
           LEFT JOIN lost USING (collection, property) ON CONFLICT DO NOTHING""",
        [collection for collection, _ in properties], [name for _, name in properties],
    )  # fmt: skip


READ_TERMS = """
    SELECT w.place, t.code FROM unnest($1::text[], $2::text[]) WITH ORDINALITY w (facet, content, place)
    JOIN fedstac.term t ON t.facet = w.facet AND md5(t.content::text) = md5(w.content::jsonb::text)"""


async def _terms(
    conn: Connection, values_by_key: Mapping[tuple[str, str, Key], str]
) -> dict[tuple[str, str, Key], int]:
    """Return the codes of values, given by collection, property and key."""
    keys = list(values_by_key)
    codes: dict[tuple[str, str, Key], int] = {}
    for attempt in range(2):  # the second time those that somebody else made meanwhile
        missing = [key for key in keys if key not in codes]
        if not missing:
            return codes
        arguments = (
            [name for _, name, _ in missing],
            [f'{{"properties":{{{orjson.dumps(key[1]).decode()}:{values_by_key[key]}}}}}' for key in missing],
        )
        codes |= {missing[row["place"] - 1]: row["code"] for row in await conn.fetch(READ_TERMS, *arguments)}
        absent = [n for n, key in enumerate(missing) if key not in codes] if not attempt else []
        if absent:
            new_codes = await _make_terms(
                conn, [missing[n][0] for n in absent], *([each[n] for n in absent] for each in arguments)
            )
            codes |= {missing[absent[place]]: code for place, code in new_codes.items()}
    return codes


async def _make_terms(
    conn: Connection, collections: Sequence[str], names: Sequence[str], contents: Sequence[str]
) -> dict[int, int]:
    """Make codes in the order of their values, so that two who make some cannot wait for each other in a circle.

    Return the codes that were made, by the places of the values in what was given.
    """
    rows = await conn.fetch(
        """WITH wanted AS MATERIALIZED (
               SELECT collection, facet, content::jsonb AS content, place - 1 AS place
               FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY w (collection, facet, content, place)),
           made AS (
               INSERT INTO fedstac.term (facet, content)
               SELECT DISTINCT facet, content FROM wanted ORDER BY 1, 2 ON CONFLICT DO NOTHING
               RETURNING facet, content, code),
           placed AS (SELECT w.*, m.code FROM wanted w JOIN made m USING (facet, content)),
           counted AS (
               UPDATE fedstac.facet_slot s SET terms = s.terms + c.terms
               FROM (SELECT collection, facet, count(*) AS terms FROM placed GROUP BY 1, 2) c
               WHERE s.collection = c.collection AND s.property = c.facet
               RETURNING s.collection, s.property, s.terms)
           SELECT p.collection, p.facet, p.place, p.code, c.terms
           FROM placed p LEFT JOIN counted c ON c.collection = p.collection AND c.property = p.facet""",
        collections, names, contents,
    )  # fmt: skip
    many = sorted({(row["collection"], row["facet"]) for row in rows if (row["terms"] or 0) > MOST_TERMS})
    if many:
        await _lose(conn, many)
    return {row["place"]: row["code"] for row in rows}


async def _footprints(conn: Connection, geojsons: Iterable[str]) -> dict[Key, int]:
    shapes = {geojson: ewkb(geojson) for geojson in geojsons}
    if not shapes:
        return {}
    texts, binaries = list(shapes), list(shapes.values())
    codes: dict[Key, int] = {}
    for attempt in range(2):
        if attempt:
            await conn.execute(
                """INSERT INTO fedstac.footprint (geometry)
                   SELECT DISTINCT ON (md5(ST_AsEWKB(ST_GeomFromEWKB(w)))) ST_GeomFromEWKB(w)
                   FROM unnest($1::bytea[]) w ORDER BY md5(ST_AsEWKB(ST_GeomFromEWKB(w))) ON CONFLICT DO NOTHING""",
                binaries,
            )
        rows = await conn.fetch(
            """SELECT w.place, f.code FROM unnest($1::bytea[]) WITH ORDINALITY w (geometry, place)
               JOIN fedstac.footprint f ON md5(ST_AsEWKB(f.geometry)) = md5(ST_AsEWKB(ST_GeomFromEWKB(w.geometry)))""",
            binaries,
        )
        codes = {_key_of_footprint(texts[row["place"] - 1]): row["code"] for row in rows}
        if len(codes) == len(texts):
            break
    return codes
