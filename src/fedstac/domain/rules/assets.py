"""Rules for files: every asset's members, name and checksum, and the tracking ids and sizes of all of them together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fedstac.domain.errors import Finding, Severity, pointer
from fedstac.domain.multihashes import Multihash
from fedstac.domain.rules.identity import properties_by_id
from fedstac.domain.rules.properties import check_value, is_date
from fedstac.domain.vocabulary import Vocabulary
from fedstac.domain.wording import brief

Document = Mapping[str, Any]
SHA2_256: Final = re.compile(r"1220[0-9a-f]{64}")


def check(document: Document, vocabulary: Vocabulary) -> Iterator[Finding]:
    """Yield the faults of every asset, then those of all together: tracking ids that repeat, a wrong total size."""
    properties = document["properties"]
    head = vocabulary.file_name.head.fill(properties) if vocabulary.file_name else None
    folder = vocabulary.directory.fill(properties) if vocabulary.directory else None
    tracking = vocabulary.prefix + ":tracking_id"
    tail = vocabulary.file_name.tail if vocabulary.file_name else ""
    keys_by_id: dict[object, str] = {}
    for key, asset in document["assets"].items():
        yield from _check_members(key, asset, vocabulary)
        if "alternate" in asset or not asset.get("alternate:name"):
            yield from _check_nodes(key, asset)
        if "file:checksum" in asset and not _is_sha2_256(asset["file:checksum"]):
            yield from _check_checksum(asset["file:checksum"], pointer("assets", key, "file:checksum"))
        if head is not None:
            # ESGF's publisher gives its link to the folder at Globus a tracking id: the dataset's
            is_file = tracking in asset and asset.get("protocol") != "globus"
            if is_file or key.endswith(tail):
                yield from _check_file_name(key, document, head, folder, vocabulary)
        identifier = asset.get(tracking)
        if identifier is not None and keys_by_id.setdefault(str(identifier), key) != key:
            message = f"{brief(identifier)} is the tracking id of {keys_by_id[str(identifier)]!r} too"
            yield Finding("tracking-id", pointer("assets", key, tracking), message)
    yield from _check_size(properties, document["assets"])


def _check_members(key: str, asset: Mapping[str, Any], vocabulary: Vocabulary) -> Iterator[Finding]:
    for name, demand in vocabulary.assets.items():
        value = asset.get(name)
        if demand.is_met_by(value) or is_date(demand, value):
            continue
        if value is None and name not in asset:
            if demand.required:
                yield Finding("protocol" if name == "protocol" else "required", pointer("assets", key),
                              f"{vocabulary.project} needs `{name}` in every asset")  # fmt: skip
            continue
        yield from check_value(demand, value, pointer("assets", key, name), vocabulary)


def _check_nodes(key: str, asset: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield where the asset or an alternate does not name its node, and the alternates' wrong checksums."""
    if not asset.get("alternate:name"):
        message = "`alternate:name` is missing: the node that holds this file"
        yield Finding("alternate-name", pointer("assets", key), message)
    alternates = asset.get("alternate")
    if type(alternates) is not dict:  # the schema says it
        return
    for node, alternate in alternates.items():
        if type(alternate) is not dict:
            continue
        place = pointer("assets", key, "alternate", node)
        if alternate.get("alternate:name") != node:
            message = f"`alternate:name` is {brief(alternate.get('alternate:name'))}; an alternate's key is its node"
            yield Finding("alternate-name", place, message, suggestion=node)
        if "file:checksum" in alternate:
            yield from _check_checksum(alternate["file:checksum"], place + "/file:checksum")


def _check_checksum(value: object, place: str) -> Iterator[Finding]:
    """Yield why a value is no multihash in lower-case hexadecimal (STAC file extension; https://multiformats.io)."""
    if type(value) is not str or _is_sha2_256(value):
        return
    try:
        Multihash.parse(value)
    except ValueError as error:
        yield Finding("checksum", place, f"{brief(value)} {error}")


def _is_sha2_256(value: object) -> bool:
    return type(value) is str and SHA2_256.fullmatch(value) is not None


def _check_file_name(
    key: str, document: Document, head: str, folder: str | None, vocabulary: Vocabulary
) -> Iterator[Finding]:
    """Yield where a file's name or folder fits neither the properties nor the id. `folder`: by the properties.

    That properties and id differ is a finding of its own, once and not for each file.
    """
    asset, template = document["assets"][key], vocabulary.file_name
    assert template is not None
    if not template.fits(key, head):
        head = template.head.fill(properties_by_id(document, vocabulary)) or head
        if not template.fits(key, head):
            example = f"{head}{template.joint + '<time range>' if template.joint else ''}{template.tail}"
            yield Finding("file-name", pointer("assets", key), f"the name {brief(key)} is not of the form {example}")
    path = asset.get("file:local_path")
    if type(path) is not str:
        return
    parent, _, name = path.rpartition("/")
    if name != key:
        message = f"`file:local_path` names the file {brief(name)}; the asset is {key!r}"
        yield Finding("file-name", pointer("assets", key, "file:local_path"), message)
    elif vocabulary.directory is not None and folder is not None and not _ends_with(parent, folder):
        folder = vocabulary.directory.fill(properties_by_id(document, vocabulary)) or folder
        if not _ends_with(parent, folder):
            message = f"the folder is {brief(parent)}; by the id it is {folder!r}"
            yield Finding("directory", pointer("assets", key, "file:local_path"), message, Severity.WARNING, folder)


def _ends_with(parent: str, folder: str) -> bool:
    return parent == folder or parent.endswith("/" + folder)


def _check_size(properties: Mapping[str, Any], assets: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield where `size` is not the sum of the files. Nothing can be said where a file has no size.

    The same file may be listed for several protocols: it counts once.
    """
    sizes: dict[object, int] = {}
    for key, asset in assets.items():
        if "file:checksum" not in asset or asset.get("protocol") == "kerchunk":
            continue
        size = asset.get("file:size")
        if type(size) is not int:
            return
        sizes.setdefault(asset["file:checksum"] if type(asset["file:checksum"]) is str else key, size)
    value, total = properties.get("size"), sum(sizes.values())
    if sizes and type(value) is int and value != total:
        message = f"`size` is {value}; the sizes of the {len(sizes)} files sum up to {total}"
        yield Finding("size-sum", "/properties/size", message, suggestion=str(total))
