"""Parts of a snapshot: datasets in GeoParquet, each with its exact document and all that its origin knows of it.

A node that loads them judges no document: what follows from it is there beside it, but for its row of codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from fedstac.domain import documents, facets, geometry
from fedstac.domain.model import Draft, Record, SearchCopy, State
from fedstac.domain.policy import read_level
from fedstac.domain.vocabulary import Vocabulary
from fedstac.geoparquet.manifest import SnapshotBroken, SnapshotPart

LARGEST_GROUP: Final = 256 << 20  # bytes of one group of rows, out of which a node makes one transaction
MOMENT: Final = pa.timestamp("us", tz="UTC")
PROPERTIES: Final = ',"properties":'
_GEO: Final = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {"geometry": {"encoding": "WKB", "geometry_types": []}},
}
SCHEMA: Final = pa.schema(
    [
        pa.field("collection", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("lineage", pa.string(), nullable=False),
        pa.field("version", pa.int64()),
        pa.field("state", pa.string(), nullable=False),
        pa.field("latest", pa.bool_(), nullable=False),  # by its last event
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("created", MOMENT, nullable=False),
        pa.field("updated", MOMENT, nullable=False),
        pa.field("publisher", pa.string(), nullable=False),
        pa.field("cv_version", pa.string()),
        pa.field("cv_excused", pa.string()),  # JSON
        pa.field("replicas", pa.string()),  # JSON
        pa.field("retraction", pa.string()),  # JSON
        pa.field("superseded", pa.bool_(), nullable=False),
        pa.field("quarantine", pa.string()),  # JSON
        pa.field("access", pa.string(), nullable=False),  # open, controlled or private
        pa.field("digest", pa.binary(), nullable=False),  # sha-256 of the state
        pa.field("document_digest", pa.binary(), nullable=False),
        pa.field("files_digest", pa.binary(), nullable=False),
        pa.field("starts", pa.string()),  # RFC 3339, as the document is searched
        pa.field("ends", pa.string()),
        pa.field("footprint", pa.string()),  # GeoJSON, as the document is searched
        pa.field("facets", pa.string()),  # JSON: values that may be coded, bytes and number of the files
        pa.field("properties_at", pa.int32()),  # where its properties begin in the document's text
        pa.field("document", pa.string()),  # the STAC Item as it was published, JSON; null: deleted
        pa.field("geometry", pa.binary()),  # the footprint as WKB
    ],
    metadata={"geo": orjson.dumps(_GEO), "fedstac_snapshot": b"2"},
)


Vocabularies = Callable[[str], Vocabulary | None]  # that judge now, by collection


class PartWriter:
    """Writes datasets into one file, a group of rows at a time."""

    def __init__(self, path: Path, vocabularies: Vocabularies) -> None:
        self._vocabularies = vocabularies
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self.rows = 0
        self.groups = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def write(self, records: Sequence[Record]) -> None:
        """Write datasets as one group of rows."""
        rows = [_row(record, self._vocabularies(record.collection)) for record in records]
        self._writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
        self.rows += len(records)
        self.groups += 1


def _row(record: Record, vocabulary: Vocabulary | None) -> dict[str, Any]:
    row = {
        "collection": record.collection, "id": record.id, "lineage": record.lineage, "version": record.version,
        "state": record.state.value, "latest": record.claims_latest, "seq": record.seq, "created": record.created,
        "updated": record.updated, "publisher": record.publisher, "cv_version": record.cv_version,
        "cv_excused": record.cv_excused, "replicas": record.replicas, "retraction": record.retraction,
        "superseded": record.superseded, "quarantine": record.quarantine,
        "access": record.access.value, "digest": record.digest,
        "document_digest": record.document_digest, "files_digest": record.files_digest,
    }  # fmt: skip
    if record.document is None:
        return row
    document = orjson.loads(record.document)
    start, end = documents.span(document["properties"])
    footprint = geometry.footprint(document["geometry"])
    at = len(record.document) - 1 - len(orjson.dumps(document["properties"]).decode())
    if record.document[at - len(PROPERTIES) : at] != PROPERTIES:
        raise ValueError(f"{record.collection}/{record.id} is not stored as fedstac stores documents")
    assets = document["assets"]
    values = documents.facet_values(document["properties"], documents.own_nodes(assets), record.replicas, vocabulary)
    return row | {
        "facets": orjson.dumps([values, *facets.size_of(assets)]).decode(),
        "document": record.document, "starts": start, "ends": end, "footprint": footprint, "properties_at": at,
        "geometry": _wkb(footprint),
    }  # fmt: skip


@lru_cache(maxsize=4096)  # a model's datasets share a handful of footprints
def _wkb(geojson: str) -> bytes:
    wkb: bytes = shapely.to_wkb(shapely.from_geojson(geojson))
    return wkb


class PartReader:
    """Reads a part, whose sha-256 was checked, a group of rows at a time."""

    def __init__(self, path: Path, part: SnapshotPart) -> None:
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise SnapshotBroken(f"the part {part.name} is no Parquet file") from error
        self._name = part.name
        if not self._file.schema_arrow.equals(SCHEMA) or self._file.num_row_groups != part.groups:
            self._file.close()
            raise SnapshotBroken(f"the part {part.name} has other columns than this version of fedstac reads")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, group: int, origin: str, epoch: int) -> list[LoadedDataset]:
        """Return the datasets of one group, as of an epoch of their origin's feed."""
        if self._file.metadata.row_group(group).total_byte_size > LARGEST_GROUP:
            raise SnapshotBroken(f"the part {self._name} has a group of rows of more than {LARGEST_GROUP} bytes")
        try:
            table = self._file.read_row_group(group)
            columns = [_values(table.column(name)) for name in SCHEMA.names[:-1]]  # the footprint is there as text
            return [_dataset(row, origin, epoch) for row in zip(*columns, strict=True)]
        except (pa.ArrowException, AttributeError, LookupError, TypeError, ValueError) as error:
            raise SnapshotBroken(f"the part {self._name} has a row that is no dataset: {error!r}"[:300]) from error


LoadedDataset = tuple[Record, Draft | None]


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Return the values of a column; moments quickly: pyarrow looks up the time zone of each."""
    if column.type == MOMENT:
        return [moment.replace(tzinfo=UTC) for moment in column.to_numpy().tolist()]
    values: list[Any] = column.to_pylist()
    return values


def _dataset(row: Sequence[Any], origin: str, epoch: int) -> LoadedDataset:
    (
        collection, id, lineage, version, state, latest, seq, created, updated, publisher, cv_version, cv_excused,
        replicas, retraction, superseded, quarantine, access, digest, document_digest, files_digest, starts, ends,
        footprint, coded, at, document,
    ) = row  # fmt: skip
    record = Record(
        collection, id, lineage, origin, version, _STATES[state], latest, latest, epoch, seq, created, updated,
        document, document_digest, files_digest, publisher, cv_version, cv_excused, replicas, retraction, superseded,
        quarantine, read_level(access),
    )  # fmt: skip
    record.__dict__["digest"] = digest  # what the record would compute: the sha-256 of the part vouches for it
    if document is None:
        return record, None
    search = SearchCopy(footprint, starts, ends, document[at:-1], *orjson.loads(coded))
    return record, Draft(
        collection, id, lineage, version, None, document, document_digest, files_digest, search, replicas
    )


_STATES: Final = {state.value: state for state in State}
