"""Changes at random places of a JSON document."""

from __future__ import annotations

import copy
import random
from typing import Any

Json = dict[str, Any]

ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, 1e308, 5e-324, 2**53, "", "x", "\u0001", "🌍\u202e", [], {}, [None],
    {"a": None}, [[[]]], "x" * 5000, ["a"] * 500, {"type": "Point", "coordinates": [1, 2]}, "'; DROP TABLE x; --",
    "2000-01-01T00:00:00Z",
    "%s %d $1", {"href": "x", "rel": "self"}, {"": {"": ""}}, "9999-12-31T23:59:59.9999999Z", "../../etc/passwd", -0.0,
]  # fmt: skip


def mutate(document: Json, rng: random.Random) -> None:
    """Return one change at a random place: a member replaced, removed, added or renamed."""
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, member in members:
            places.append((value, key))
            collect(member)

    collect(document)
    if not places:
        return
    parent, key = rng.choice(places)
    match rng.choice(["replace", "replace", "remove", "add", "rename"]):
        case "replace":
            parent[key] = copy.deepcopy(rng.choice(ODD))
        case "remove":
            del parent[key]
        case "add" if isinstance(parent, list):
            parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(rng.choice(ODD)))
        case _ if isinstance(parent, dict):
            name = rng.choice(
                ["", "a/b~c", "latest", "fedstac:x", "self", "__proto__", str(key) + "x", "日本", "a" * 300]
            )
            parent[name] = parent.pop(key) if rng.random() < 0.5 else copy.deepcopy(rng.choice(ODD))
        case _:
            parent[key] = None
