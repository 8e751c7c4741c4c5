"""Vocabularies over HTTP: for other nodes, for people, and to judge documents with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
from starlette.responses import Response

from fedstac import settings as environment
from fedstac.api.call import Call
from fedstac.api.http import links, preconditions
from fedstac.api.writing import intake
from fedstac.bootstrap import Node
from fedstac.domain import schemas
from fedstac.domain.errors import BadRequest, Finding, NotFound, Problem, errors_in
from fedstac.domain.vocabulary import NAME, UnknownVersion, Vocabulary
from fedstac.vocabularies.registry import Snapshot, Vocabularies

CURRENT = "current"  # instead of a version
FOR_EVER = "public, max-age=31536000, immutable"
A_WHILE = "public, max-age=60"
SCHEMA_TYPE = "application/schema+json"


def _vocabularies(call: Call) -> Vocabularies:
    return call.node.checker.vocabularies


async def _vocabulary(call: Call) -> Vocabulary:
    """Return the version that the path names. NotFound where it is not here."""
    node, vocabularies = call.node, _vocabularies(call)
    project, version = call.path_params["project"], call.path_params["version"]
    if version == CURRENT:
        vocabulary = vocabularies.current(project)
    else:
        try:
            vocabulary = await node.vocabulary(project, version) if vocabularies.of(project) else None
        except UnknownVersion as error:
            raise NotFound(str(error)) from None
    if vocabulary is None:
        raise _unknown_project(vocabularies, project)
    return vocabulary


def _unknown_project(vocabularies: Vocabularies, project: str) -> NotFound:
    names = ", ".join(vocabularies.projects()) or "none"
    return NotFound(f"there is no vocabulary of {project[:80]!r} here; there are {names}")


def _entry(base: str, snapshot: Snapshot, current: str) -> dict[str, Any]:
    return {
        "project": snapshot.project,
        "version": snapshot.version,
        "digest": snapshot.digest,
        "current": snapshot.version == current,
        "links": [
            {"rel": "self", "type": links.JSON, "href": f"{base}/vocabularies/{snapshot.project}/{snapshot.version}"},
            {"rel": "describedby", "type": SCHEMA_TYPE,
             "href": f"{base}/extensions/{snapshot.project}/{snapshot.version}/schema.json"},
        ],
    }  # fmt: skip


async def get_vocabularies(call: Call) -> Response:
    """List every version of every project's vocabulary that is here."""
    return _listing(call, _vocabularies(call).projects())


async def get_project(call: Call) -> Response:
    """List the versions of one project's vocabulary, the oldest first, and which one judges now."""
    vocabularies, project = _vocabularies(call), call.path_params["project"]
    if not vocabularies.of(project):
        raise _unknown_project(vocabularies, project)
    return _listing(call, [project])


def _listing(call: Call, projects: list[str]) -> Response:
    vocabularies, base = _vocabularies(call), call.base_url
    entries = []
    for project in projects:
        current = vocabularies.current(project)
        entries += [_entry(base, snapshot, current.version if current else "") for snapshot in vocabularies.of(project)]
    body = {"vocabularies": entries, "links": [{"rel": "root", "type": links.JSON, "href": base + "/"}]}
    return Response(orjson.dumps(body), headers={"Cache-Control": A_WHILE}, media_type=links.JSON)


async def get_snapshot(call: Call) -> Response:
    """Return a snapshot of a vocabulary, byte for byte. Its ETag is its sha-256."""
    vocabulary = await _vocabulary(call)
    etag = f'"{vocabulary.digest}"'
    lasting = A_WHILE if call.path_params["version"] == CURRENT else FOR_EVER
    headers = {"ETag": etag, "Cache-Control": lasting}
    if preconditions.is_unchanged(call.headers, etag):
        return Response(status_code=304, headers=headers)
    snapshot = _vocabularies(call).find(vocabulary.project, vocabulary.version)
    assert snapshot is not None
    return Response(await asyncio.to_thread(snapshot.read), headers=headers, media_type=links.JSON)


async def get_terms(call: Call) -> Response:
    """Return the terms that a property takes, each with its description."""
    vocabulary, facet = await _vocabulary(call), call.path_params["facet"]
    rule = vocabulary.properties.get(facet) or vocabulary.properties.get(f"{vocabulary.prefix}:{facet}")
    name = rule.vocabulary if rule is not None and rule.vocabulary is not None else facet
    terms = vocabulary.terms.get(name)
    pattern = rule.pattern.text if rule is not None and rule.pattern is not None else None
    if terms is None and pattern is None:
        facets = ", ".join(sorted(vocabulary.terms))
        raise NotFound(f"{vocabulary.project} {vocabulary.version} has no terms of {facet[:80]!r}; it has {facets}")
    body = {"project": vocabulary.project, "version": vocabulary.version, "facet": facet, "terms": terms or {}}
    body |= {"pattern": pattern} if pattern else {}
    return Response(orjson.dumps(body), headers={"Cache-Control": A_WHILE}, media_type=links.JSON)


async def post_validate(call: Call) -> Response:
    """Judge an Item, a FeatureCollection or NDJSON, store nothing, and return all findings.

    Each document is judged as one of the collection that it names.
    """
    node = call.node
    raw = await call.body.text()
    media_type, version = call.headers.get("content-type", ""), call.query_params.get("cv_version")
    if version is not None and not NAME.fullmatch(version):
        raise BadRequest(f"cv_version={version[:40]!r} is no version; GET /vocabularies lists them")
    if version is not None:
        async with node.pool.acquire() as conn:
            await node.vocabulary_store.look(conn)

    def judge() -> list[dict[str, Any]]:
        room, items = intake.MOST_FINDINGS, []
        for document in intake.read(raw, media_type, node.settings):
            verdict = _verdict(node, document, version)
            if (count := len(verdict["findings"])) > room:
                verdict["findings"] = verdict["findings"][: intake.FEW]
            room -= min(count, room)
            items.append(verdict)
        return items

    threads = call.services.threads
    items = await threads.run_if(len(raw) > intake.IN_THREAD, judge)
    body = {"valid": all(item["valid"] for item in items), "items": items}
    return Response(orjson.dumps(body), media_type=links.JSON)


def _verdict(node: Node, document: Any, version: str | None) -> dict[str, Any]:
    """Return one line of a report. NotFound where that version is not here."""
    if isinstance(document, Problem):
        findings = document.findings or (Finding(document.name, "", document.detail),)
        return _line(document, findings, None)
    collection = document.get("collection") if isinstance(document, dict) else None
    collection = collection if isinstance(collection, str) else ""
    vocabularies = node.checker.vocabularies
    try:
        if version is not None and vocabularies.of(collection):
            vocabulary: Vocabulary | None = vocabularies.at(collection, version)
        else:
            vocabulary = vocabularies.current(collection)
    except UnknownVersion as error:
        raise NotFound(str(error)) from None
    return _line(document, node.checker.findings(document, collection, vocabulary), vocabulary)


def _line(document: Any, findings: Sequence[Finding], vocabulary: Vocabulary | None) -> dict[str, Any]:
    return {
        "id": intake.claimed_id(document),
        "valid": not errors_in(findings),
        "cv_version": vocabulary.version if vocabulary else None,
        "findings": [finding.as_json() for finding in findings],
    }


async def get_extension(call: Call) -> Response:
    """Return the JSON Schema of a STAC extension.

    It is one of fedstac, or one of a project, by the name of the project and a version of its vocabulary.
    """
    node = call.node
    name, version = call.path_params["name"], call.path_params["version"]
    if not (NAME.fullmatch(name) and NAME.fullmatch(version)):
        raise NotFound(
            f"there is no extension {name[:80]!r} {version[:40]!r} here; GET /vocabularies lists those of projects"
        )
    path = environment.folder("extensions") / name / version / "schema.json"
    if path.is_file():
        text = await asyncio.to_thread(path.read_bytes)
    else:
        project = next((one for one in _vocabularies(call).projects() if one.lower() == name.lower()), "")
        try:
            vocabulary = await node.vocabulary(project, version) if project else None
        except UnknownVersion as error:
            raise NotFound(str(error)) from None
        if vocabulary is None:
            raise NotFound(f"there is no extension {name!r} here; GET /vocabularies lists those of projects")
        text = orjson.dumps(schemas.schema_of(vocabulary))
    return Response(text, media_type=SCHEMA_TYPE, headers={"Cache-Control": A_WHILE})
