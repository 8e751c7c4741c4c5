"""Replicas: the entries `assets[*].alternate[<node>]`, and what becomes of them when a document changes.

An alternate is a node's location of the very file that the asset names: same size, same checksum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fedstac.domain.errors import Finding, StacInvalid, pointer

Json = Mapping[str, Any]
FILE: Final = ("file:checksum", "file:size")
COPIED: Final = ("file:size", "file:checksum", "file:local_path", "type")  # into alternates: a downloader reads one
MOST_FINDINGS: Final = 100


def alternates_of(asset: Json | None) -> Json:
    """Return an asset's alternates by node; an empty mapping where it has none."""
    alternates = asset.get("alternate") if asset else None
    return alternates if isinstance(alternates, dict) else {}


def less_alternates(asset: Json | None) -> Json | None:
    """Return the asset without its alternates."""
    return {name: value for name, value in asset.items() if name != "alternate"} if asset is not None else None


def without_alternates(document: Json) -> dict[str, Any]:
    """Return the document with no replica of any node."""
    return {**document, "assets": {key: less_alternates(asset) for key, asset in document["assets"].items()}}


def with_alternates(before: Json, document: Json) -> dict[str, Any]:
    """Return the document with the alternates that the stored one has and the new one does not name.

    A whole document says nothing about other nodes' entries: they stay.
    """
    assets = dict(document["assets"])
    for key, asset in before["assets"].items():
        alternates, now = alternates_of(asset), assets.get(key)
        if alternates and isinstance(now, dict):
            assets[key] = {**now, "alternate": {**alternates, **alternates_of(now)}}
    return {**document, "assets": assets}


def completed(before: Json, document: Json) -> dict[str, Any]:
    """Return the document with size, checksum, local path and type copied into its new alternates.

    StacInvalid where an alternate has another size or checksum than its asset: that is no replica.
    """
    assets, findings = dict(document["assets"]), []
    for key, asset in document["assets"].items():
        alternates, old = alternates_of(asset), alternates_of(before["assets"].get(key))
        new_entries = {node: entry for node, entry in alternates.items() if entry != old.get(node)}
        if not new_entries and not ("alternate" in asset and not alternates):
            continue
        filled = dict(alternates)
        for node, entry in new_entries.items():
            if not isinstance(entry, dict):
                continue  # the schema refuses it
            copies = {name: asset[name] for name in COPIED if name in asset}
            filled[node] = {**copies, "alternate:name": node, **entry}
            findings += [
                Finding("replica", pointer("assets", key, "alternate", node, name),
                        f"`{name}` is {str(entry[name])[:80]!r}, and {str(asset.get(name))[:80]!r} in the original")
                for name in FILE if name in entry and entry[name] != asset.get(name)
            ]  # fmt: skip
        assets[key] = {**asset, "alternate": filled}
        if not filled:
            del assets[key]["alternate"]
    if findings:
        raise StacInvalid(
            f"a replica has the original's files: {findings[0].message}", findings=findings[:MOST_FINDINGS]
        )
    return {**document, "assets": assets}


def without_contradictions(document: Json) -> dict[str, Any]:
    """Return the document without alternates whose size or checksum is another than the asset's.

    Somebody who sends other files may still send the replicas of the old ones beside them. That is no fault.
    """
    assets = {}
    for key, asset in document["assets"].items():
        alternates = alternates_of(asset)
        fitting = {node: entry for node, entry in alternates.items() if not _contradicts(entry, asset)}
        assets[key] = {**asset, "alternate": fitting} if len(fitting) < len(alternates) else asset
    return {**document, "assets": assets}


def without_stale(document: Json) -> dict[str, Any]:
    """Return the document with only those alternates that have the size and checksum of their asset."""
    assets = {}
    for key, asset in document["assets"].items():
        fresh = {node: entry for node, entry in alternates_of(asset).items()
                 if isinstance(entry, dict) and all(entry.get(name) == asset.get(name) for name in FILE)}  # fmt: skip
        assets[key] = {**(less_alternates(asset) or {}), **({"alternate": fresh} if fresh else {})}
    return {**document, "assets": assets}


def replica_edit(entries: Mapping[str, Json], node: str) -> Sequence[Json]:
    """Return the JSON Patch operations that set one node's entries, given by asset."""
    return [
        {"op": "add", "path": pointer("assets", key, "alternate", node), "value": {**entry, "alternate:name": node}}
        for key, entry in entries.items()
    ]


def _contradicts(entry: object, asset: Json) -> bool:
    return isinstance(entry, dict) and any(name in entry and entry[name] != asset.get(name) for name in FILE)
