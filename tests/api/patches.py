"""JSON Patches of one operation (RFC 6902), as tests write them."""

from __future__ import annotations

from typing import Any

Json = Any


def op(name: str, path: str, **members: Json) -> Json:
    return {"op": name, "path": path, **members}


def add(path: str, value: Json) -> list[Json]:
    return [op("add", path, value=value)]


def replace(path: str, value: Json) -> list[Json]:
    return [op("replace", path, value=value)]


def remove(path: str) -> list[Json]:
    return [op("remove", path)]


def move(origin: str, path: str) -> list[Json]:
    return [op("move", path, **{"from": origin})]


def copied(origin: str, path: str) -> list[Json]:
    return [op("copy", path, **{"from": origin})]
