"""JSON Patch (RFC 6902) and merge patch (RFC 7396), applied to a document that is not changed by it.

As ESGF's clients need it: an array is a JSON Patch whatever its media type, so is `{"operations": […]}`; `add` below a
missing `alternate` makes it; `add` of an object at `/links` appends it, and a link that is there is not added again; a
merge patch's null for what the server owns, or what has to be there, says nothing.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from fedstac.domain.errors import BadRequest, Finding, StacInvalid, pointer

MOST_OPERATIONS: Final = 10_000
MOST_WORK: Final = 8 << 20  # bytes that the operations of one patch may copy and compare in all
LINK_BYTES: Final = 64  # that it takes to compare a link with another one
OPERATIONS: Final = {"add": ("value",), "remove": (), "replace": ("value",), "move": ("from",), "copy": ("from",),
                     "test": ("value",)}  # fmt: skip
KEPT_BY_NULL: Final = frozenset((
    ("type",), ("stac_version",), ("id",), ("collection",), ("geometry",), ("bbox",), ("properties",), ("links",),
    ("assets",), ("stac_extensions",), ("properties", "datetime"),
))  # fmt: skip
BAD_ESCAPE: Final = re.compile(r"~(?![01])")

Json = Any


@dataclass(frozen=True, slots=True)
class JsonPatch:
    """Operations, applied in their order or not at all."""

    operations: Sequence[Mapping[str, Json]]

    def apply(self, document: Mapping[str, Json]) -> Json:
        """Return the document after the operations. StacInvalid, naming the operation, where one does not fit."""
        result: Json = copy.deepcopy(document)
        work = 0
        for n, operation in enumerate(self.operations):
            try:
                work += _work(result, operation)
                if work > MOST_WORK:
                    raise _Misfit("the copies and comparisons of this patch grow beyond all bounds; send several")
                result = _apply(result, operation)
            except _Misfit as misfit:
                place = f"{operation['op']} {str(operation['path'])[:200]}"
                finding = Finding("patch", f"/{n}", f"{place}: {misfit}")
                raise StacInvalid(f"operation {n} of the patch cannot be applied: {finding.message}",
                                  findings=(finding,)) from None  # fmt: skip
        return result


@dataclass(frozen=True, slots=True)
class MergePatch:
    """Members to replace. Null removes a member, unless it is one of `kept_by_null`: there it is ignored."""

    patch: Mapping[str, Json]
    kept_by_null: frozenset[tuple[str, ...]] = KEPT_BY_NULL

    def apply(self, document: Mapping[str, Json]) -> Json:
        """Return the merged document."""
        return _merge(document, self.patch, (), self.kept_by_null)


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole document instead of the stored one."""

    document: Mapping[str, Json]

    def apply(self, document: Mapping[str, Json]) -> Json:
        """Return the whole document, whatever the stored one is."""
        return self.document


@dataclass(frozen=True, slots=True)
class WithoutNode:
    """The document without one node's alternates."""

    node: str

    def apply(self, document: Mapping[str, Json]) -> Json:
        """Return the document without the node's alternates."""
        assets = {}
        for key, asset in document["assets"].items():
            alternates = asset.get("alternate")
            if isinstance(alternates, dict) and self.node in alternates:
                others = {name: entry for name, entry in alternates.items() if name != self.node}
                asset = {name: value for name, value in asset.items() if name != "alternate"}
                assets[key] = {**asset, "alternate": others} if others else asset
            else:
                assets[key] = asset
        return {**document, "assets": assets}


Edit = JsonPatch | MergePatch | Whole | WithoutNode


def names(edit: Edit, section: str, member: str) -> bool:
    """Tell whether an edit says something about a member of a section of the document, such as of `properties`.

    What an edit leaves out of a section that it replaces, it says nothing about.
    """
    match edit:
        case JsonPatch(operations):
            return any(_operation_names(operation, section, member) for operation in operations)
        case MergePatch(patch):
            return _has(patch.get(section), member)
        case Whole(document):
            return _has(document.get(section), member)
        case WithoutNode():
            return False


def _operation_names(operation: Mapping[str, Json], section: str, member: str) -> bool:
    kind, value = operation["op"], operation.get("value")
    if kind == "test":
        return False
    place = pointer(section, member)
    if operation["path"] == place or (kind == "move" and operation.get("from") == place):
        return True
    if operation["path"] == "":
        return isinstance(value, dict) and _has(value.get(section), member)
    return operation["path"] == pointer(section) and _has(value, member)


def _has(section: Json, member: str) -> bool:
    return isinstance(section, dict) and member in section


def as_json(edit: Edit) -> dict[str, Json]:
    """Return an edit as it waits in the queue."""
    match edit:
        case JsonPatch(operations):
            return {"operations": operations}
        case MergePatch(patch):
            return {"merge": patch}
        case Whole(document):
            return {"whole": document}
        case WithoutNode(name):
            return {"without": name}


def from_json(value_by_form: Mapping[str, Json]) -> Edit:
    """Return the edit that waited in the queue."""
    [(form, value)] = value_by_form.items()
    match form:
        case "operations":
            return JsonPatch(value)
        case "merge":
            return MergePatch(value)
        case "whole":
            return Whole(value)
    return WithoutNode(value)


class _Misfit(Exception):
    """An operation that does not fit the document; the text says why."""


def read(body: Json, media_type: str = "") -> JsonPatch | MergePatch:
    """Read a patch from a parsed body, by its shape. BadRequest or StacInvalid where it is none."""
    operations = body
    if isinstance(body, dict) and "operations" in body:  # no member of an Item; the wrapper has nothing beside it
        operations = body["operations"] if len(body) == 1 else None
    if isinstance(operations, list):
        return JsonPatch(_check(operations))
    is_json_patch_type = media_type.partition(";")[0].strip().lower() == "application/json-patch+json"
    if operations is not body or not isinstance(body, dict) or is_json_patch_type:
        raise BadRequest("the body is no patch; send a list of operations (RFC 6902) or an object to merge (RFC 7396)")
    return MergePatch(body)


def _check(operations: Sequence[Json]) -> Sequence[Mapping[str, Json]]:
    if len(operations) > MOST_OPERATIONS:
        raise BadRequest(f"the patch has {len(operations)} operations; {MOST_OPERATIONS} are the most: send several")
    findings = []
    for n, operation in enumerate(operations):
        name = operation.get("op") if isinstance(operation, dict) else None
        if not isinstance(name, str) or name not in OPERATIONS:
            findings.append(Finding("patch", f"/{n}/op", f"an operation is one of {', '.join(OPERATIONS)}"))
            continue
        for member in ("path", *OPERATIONS[name]):
            if member not in operation:
                findings.append(Finding("patch", f"/{n}", f"{name} needs `{member}`"))
            elif member != "value" and not _is_pointer(operation[member]):
                findings.append(Finding("patch", f"/{n}/{member}", f"`{member}` has to be a JSON pointer (RFC 6901)"))
    if findings:
        raise StacInvalid(f"the patch is not valid: {findings[0].message}", findings=findings[:100])
    return operations


def _is_pointer(value: object) -> bool:
    return (
        isinstance(value, str) and (value == "" or value.startswith("/")) and len(value) <= 2000
        and not BAD_ESCAPE.search(value)
    )  # fmt: skip


def _steps(pointer: str) -> list[str]:
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def _apply(document: Json, operation: Mapping[str, Json]) -> Json:
    name, steps = operation["op"], _steps(operation["path"])
    match name:
        case "add":
            return _add(document, steps, copy.deepcopy(operation["value"]))
        case "replace":
            _find(document, steps)
            return _set(document, steps, copy.deepcopy(operation["value"]))
        case "remove":
            return _without(document, steps)
        case "test":
            if orjson.dumps(_find(document, steps), option=orjson.OPT_SORT_KEYS) != orjson.dumps(
                operation["value"], option=orjson.OPT_SORT_KEYS
            ):
                raise _Misfit("the value is another one")
            return document
    origin = _steps(operation["from"])
    value = copy.deepcopy(_find(document, origin))
    if name == "copy":
        return _add(document, steps, value)
    if steps[: len(origin)] == origin and len(steps) > len(origin):
        raise _Misfit("nothing can be moved into itself")
    return _add(_without(document, origin), steps, value)


def _work(document: Json, operation: Mapping[str, Json]) -> int:
    """Return the bytes of the document that an operation copies or compares."""
    match operation["op"]:
        case "copy" | "move":
            return len(orjson.dumps(_find(document, _steps(operation["from"]))))
        case "test":
            return len(orjson.dumps(_find(document, _steps(operation["path"]))))
        case "add" if operation["path"] in ("/links", "/links/-"):
            links = document.get("links") if isinstance(document, dict) else None
            return LINK_BYTES * len(links) if isinstance(links, list) else 0
    return 0


def _find(document: Json, steps: Sequence[str]) -> Json:
    for step in steps:
        if isinstance(document, dict) and step in document:
            document = document[step]
        elif isinstance(document, list):
            document = document[_index(step, len(document) - 1)]
        else:
            raise _Misfit("there is no such member")
    return document


def _index(step: str, most: int) -> int:
    if not (step.isdecimal() and step.isascii() and (step == "0" or step[0] != "0")) or int(step[:9]) > most:
        raise _Misfit(f"{step[:40]!r} is no place of the list")
    return int(step)


def _add(document: Json, steps: Sequence[str], value: Json) -> Json:
    if not steps:
        return value
    *parents, last = steps
    if len(steps) == 4 and steps[0] == "assets" and steps[2] == "alternate":  # what ESGF's publisher takes for granted
        asset = _find(document, steps[:2])
        if isinstance(asset, dict):
            asset.setdefault("alternate", {})
    if steps == ["links"] and isinstance(value, dict):  # and this is how it adds a link
        parents, last = steps, "-"
    parent = _find(document, parents)
    if parents == ["links"] and last == "-" and isinstance(parent, list) and value in parent:
        return document  # a repeat changes nothing
    if isinstance(parent, dict):
        parent[last] = value
    elif isinstance(parent, list):
        parent.insert(len(parent) if last == "-" else _index(last, len(parent)), value)
    else:
        raise _Misfit("its parent is neither an object nor a list")
    return document


def _set(document: Json, steps: Sequence[str], value: Json) -> Json:
    if not steps:
        return value
    parent = _find(document, steps[:-1])
    if isinstance(parent, list):
        parent[_index(steps[-1], len(parent) - 1)] = value
    else:
        parent[steps[-1]] = value
    return document


def _without(document: Json, steps: Sequence[str]) -> Json:
    if not steps:
        raise _Misfit("the whole document cannot be taken away")
    _find(document, steps)
    parent = _find(document, steps[:-1])
    if isinstance(parent, list):
        del parent[_index(steps[-1], len(parent) - 1)]
    else:
        del parent[steps[-1]]
    return document


def _merge(target: Json, patch: Json, at: tuple[str, ...], kept_by_null: frozenset[tuple[str, ...]]) -> Json:
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            if (*at, name) not in kept_by_null:
                result.pop(name, None)
        else:
            result[name] = _merge(result.get(name), value, (*at, name), kept_by_null)
    return result
