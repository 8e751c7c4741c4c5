"""STAC Items out of a file in stac-geoparquet, a few at a time: the inverse of geoparquet/items.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from fedstac.geoparquet.items import AT_ONCE, SIDES, TOP


class NoItems(ValueError):
    """A file that is no stac-geoparquet; the text says why."""


IS_JSON: Final = {b"fedstac": b"json"}  # metadata of a column that holds JSON as text


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the items of a file. NoItems where it is no Parquet, or a row is no item.

    A member that is null is left out, but for `geometry`, and `datetime` where there are start and end: Parquet does
    not tell whether it was there.
    """
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if missing := [name for name in ("id", "geometry") if name not in schema.names]:
                raise NoItems(f"{path} has no column {missing[0]}; it is no stac-geoparquet")
            texts = {field.name for field in schema if (field.metadata or {}).items() >= IS_JSON.items()}
            for batch in file.iter_batches(batch_size=AT_ONCE):
                for row in batch.to_pylist(maps_as_pydicts="strict"):
                    yield _item(row, texts)
    except (pa.ArrowException, shapely.errors.ShapelyError, orjson.JSONDecodeError) as error:
        raise NoItems(f"{path} cannot be read as stac-geoparquet: {str(error).splitlines()[0][:200]}") from error


def _item(row: Mapping[str, Any], texts: set[str]) -> dict[str, Any]:
    values = {
        name: orjson.loads(value) if name in texts else _plain(value)
        for name, value in row.items() if name not in ("geometry", "bbox") and value is not None
    }  # fmt: skip
    item: dict[str, Any] = {"type": "Feature"}
    item |= {name: values[name] for name in TOP if name in values}
    wkb = row["geometry"]
    item["geometry"] = orjson.loads(shapely.to_geojson(shapely.from_wkb(wkb))) if wkb is not None else None
    if (box := _box(row.get("bbox"))) is not None:
        item["bbox"] = box
    properties = {name: value for name, value in values.items() if name not in TOP}
    if "datetime" not in properties and "start_datetime" in properties:
        properties["datetime"] = None
    item["properties"] = properties
    item.setdefault("links", [])
    item.setdefault("assets", {})
    return item


def _box(value: Mapping[str, float] | None) -> list[float] | None:
    if value is None:
        return None
    sides = SIDES[6 if "zmin" in value else 4]
    return [value[side] for side in sides]


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: members that are null left out, moments as RFC 3339."""
    match value:
        case dict():
            return {name: _plain(each) for name, each in value.items() if each is not None}
        case list():
            return [_plain(each) for each in value]
        case datetime():
            moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
            return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case _:
            return value
