"""Overviews of datasets for services that hand out their files: GHGA's MetadataDatasetOverview and its kind.

The members of those models come first. `url`, `size`, `checksum` and the dataset's state are added: the models take
more members than they name.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from fedstac.domain.events import LoggedEvent
from fedstac.messaging.dialects import Delivery, Json, WireMessage, parse_event, served_assets
from fedstac.messaging.dialects.ghga import message

UPSERTED, DELETED = "dataset_upserted", "dataset_deleted"
STAGE: Final = "download"  # of a dataset that was published; the other one is upload
EXTENSION: Final = re.compile(r"(?:\.[A-Za-z0-9]{1,8})?\.[A-Za-z0-9]{1,8}\Z")
PACKED: Final = frozenset((".gz", ".bz2", ".xz", ".zst", ".zip"))


def write(event: LoggedEvent, delivery: Delivery) -> WireMessage:
    """Return an event as a service reads it that hands out files."""
    change = parse_event(event, delivery)
    if change.is_gone:
        return message(change, DELETED, {"accession": change.id}, delivery)
    data, properties = change.data, change.data["document"]["properties"]
    title, description = properties.get("title"), properties.get("description")
    overview = {
        "accession": change.id,
        "title": title if isinstance(title, str) else change.id,
        "stage": STAGE,
        "description": description if isinstance(description, str) else None,
        "files": [_file(change.id, key, asset) for key, asset in served_assets(data).items()],
        "collection": change.collection,
        "version": data["version"],
        "state": data["state"],
        "latest": data["latest"],
        "digest": data["digest"],
    }
    return message(change, UPSERTED, overview, delivery)


def _file(dataset: str, key: str, asset: Json) -> Json:
    description = asset.get("description", asset.get("title"))
    values = {"url": asset.get("href"), "size": asset.get("file:size"), "checksum": asset.get("file:checksum")}
    return {
        "accession": f"{dataset}/{key}",
        "description": description if isinstance(description, str) else None,
        "file_extension": extension_of(str(asset.get("href", key))),
        "name": key,
        **{name: value for name, value in values.items() if value is not None},
    }


def extension_of(address: str) -> str:
    """Return how the name of a file ends, with its dot: .nc, .tar.gz. Empty where it has no ending."""
    try:
        name = urlsplit(address).path.rpartition("/")[2]
    except ValueError:
        name = address.rpartition("/")[2]
    ending = EXTENSION.search(name)
    if ending is None or ending.start() == 0:
        return ""
    last = f".{ending[0].rpartition('.')[2]}"
    return ending[0] if last.lower() in PACKED else last
