"""STAC Items as stac-geoparquet: a row an item, a column a property, the geometry as WKB (ADR 33).

Items are read twice from a file of lines, a few at a time: first for their kinds, then to be written. So memory does
not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from fedstac.geoparquet.kinds import Kind, Scalar, arrow_type, columns_of, fit, infer, is_plain, merge

MEDIA_TYPE: Final = "application/vnd.apache.parquet"
AT_ONCE: Final = 100  # items that are converted in one go: what holds the interpreter is short
BATCH_BYTES: Final = 2 << 20  # of their texts
ROW_GROUP: Final = 2_000
GROUP_BYTES: Final = 16 << 20
MOST_COLUMNS: Final = 4_000
MOMENTS: Final = frozenset(
    ("datetime", "start_datetime", "end_datetime", "created", "updated", "published", "unpublished", "expires")
)
TOP: Final = ("type", "stac_version", "stac_extensions", "id", "collection", "links", "assets")
SPECIAL: Final = ("geometry", "bbox", "properties")
SIDES: Final = {4: ("xmin", "ymin", "xmax", "ymax"), 6: ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax")}
MOMENT_TYPE: Final = pa.timestamp("us", tz="UTC")


@dataclass(slots=True)
class Columns:
    """The columns of a file, and their kinds, found item by item."""

    kinds: dict[str, Kind] = field(default_factory=dict)
    moments: dict[str, bool] = field(default_factory=dict)  # by name: whether every value is a moment
    has_heights: bool = False
    geometry_types: set[str] = field(default_factory=set)

    def add(self, item: Mapping[str, Any]) -> None:
        """Look at one item."""
        for name, value in _cells(item):
            if name in MOMENTS:
                self.moments[name] = self.moments.get(name, True) and (value is None or _moment(value) is not None)
            self.kinds[name] = merge(self.kinds.get(name, Scalar.NULL), infer(value))
        self.has_heights |= len(item.get("bbox") or ()) == 6
        if isinstance(geometry := item.get("geometry"), dict):
            self.geometry_types.add(str(geometry.get("type")))

    def narrow(self) -> None:
        """Make JSON text of the widest columns until there are no more than MOST_COLUMNS."""
        while sum(map(columns_of, self.kinds.values())) > MOST_COLUMNS:
            widest = max(self.kinds, key=lambda name: columns_of(self.kinds[name]))
            if columns_of(self.kinds[widest]) == 1:
                break
            self.kinds[widest] = Scalar.JSON
        if len(self.kinds) > MOST_COLUMNS:
            raise TooWide(f"the items have {len(self.kinds)} different properties; a file takes {MOST_COLUMNS}")

    @property
    def schema(self) -> pa.Schema:
        """The schema of the file, with the metadata of GeoParquet and stac-geoparquet."""
        sides = SIDES[6 if self.has_heights else 4]
        fields = [
            pa.field(name, MOMENT_TYPE if self.moments.get(name) else arrow_type(kind),
                     metadata={"fedstac": "json"} if kind is Scalar.JSON else None)
            for name, kind in self.kinds.items()
        ]  # fmt: skip
        box = pa.field("bbox", pa.struct([pa.field(side, pa.float64()) for side in sides]))
        geo = {
            "version": "1.1.0",
            "primary_column": "geometry",
            "columns": {
                "geometry": {
                    "encoding": "WKB",
                    "geometry_types": sorted(self.geometry_types),
                    "covering": {"bbox": {side: ["bbox", side] for side in SIDES[4]}},
                }
            },
        }
        metadata = {"geo": orjson.dumps(geo), "stac-geoparquet": orjson.dumps({"version": "1.0.0"})}
        return pa.schema([*fields, box, pa.field("geometry", pa.binary())], metadata=metadata)


class TooWide(ValueError):
    """Items that have more properties than a file has columns; the text says how many."""


def write(lines: Path, target: Path, *, on_items: Callable[[int], object] = lambda count: None) -> int:
    """Write the items of a file of lines, one JSON text each, as stac-geoparquet; return how many they are.

    `on_items` is called again and again with the number of items that are written; what it raises ends it. TooWide
    where they have too many properties.
    """
    columns = Columns()
    for batch, _ in _batches(lines):
        for item in batch:
            columns.add(item)
        on_items(0)
    columns.narrow()
    schema, count, size = columns.schema, 0, 0
    tables: list[pa.Table] = []
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch, batch_bytes in _batches(lines):
            tables.append(_table(batch, columns, schema))
            count, size = count + len(batch), size + batch_bytes
            if sum(table.num_rows for table in tables) >= ROW_GROUP or size >= GROUP_BYTES:
                writer.write_table(pa.concat_tables(tables))
                tables, size = [], 0
            on_items(count)
        if tables or not count:
            writer.write_table(pa.concat_tables(tables) if tables else schema.empty_table())
    return count


def _batches(lines: Path) -> Iterator[tuple[Sequence[Mapping[str, Any]], int]]:
    """Yield a few items at a time, with the bytes of their texts: memory follows from both."""
    batch: list[Mapping[str, Any]] = []
    size = 0
    with lines.open("rb") as file:
        for line in file:
            batch.append(orjson.loads(line))
            size += len(line)
            if len(batch) == AT_ONCE or size >= BATCH_BYTES:
                yield batch, size
                batch, size = [], 0
    if batch:
        yield batch, size


def _cells(item: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the columns of an item. A property with the name of a member keeps its place in its name.

    So does one whose own name begins like such a place: no two properties have one column.
    """
    for name in item:
        if name not in SPECIAL:
            yield name, item[name]
    for name, value in (item.get("properties") or {}).items():
        is_placed = name in item or name in SPECIAL or name in TOP or name.startswith("properties.")
        yield f"properties.{name}" if is_placed else name, value


def _table(batch: Sequence[Mapping[str, Any]], columns: Columns, schema: pa.Schema) -> pa.Table:
    rows = [dict(_cells(item)) for item in batch]
    arrays = []
    for name, kind in columns.kinds.items():
        values = [row.get(name) for row in rows]
        if columns.moments.get(name):
            values = [_moment(value) for value in values]
        elif not is_plain(kind):
            values = [fit(value, kind) for value in values]
        arrays.append(pa.array(values, type=schema.field(name).type))
    sides = schema.field("bbox").type
    arrays.append(pa.array([_box(item.get("bbox")) for item in batch], type=sides))
    arrays.append(pa.array([_wkb(item.get("geometry")) for item in batch], type=pa.binary()))
    return pa.Table.from_arrays(arrays, schema=schema)


def _moment(value: object) -> datetime | None:
    """Return a date and time; None where it is none that a column of moments gives back as it was."""
    try:
        moment = datetime.fromisoformat(value.upper()) if isinstance(value, str) else None
        return moment.astimezone(UTC) if moment is not None and moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _box(box: Any) -> dict[str, float] | None:
    sides = SIDES.get(len(box or ()))
    return dict(zip(sides, map(float, box), strict=True)) if sides else None


def _wkb(geometry: Any) -> bytes | None:
    """Return a GeoJSON geometry as WKB; None without one."""
    if geometry is None:
        return None
    wkb: bytes = shapely.to_wkb(shapely.from_geojson(orjson.dumps(geometry)), flavor="iso")
    return wkb
