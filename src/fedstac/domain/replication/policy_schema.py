"""The JSON Schema of a replica policy file, for editors and other tools.

`ReplicaPolicy.parse` refuses what this refuses, and more: it reads filters, compares names, and names the line.
"""

from __future__ import annotations

from typing import Any, Final

from fedstac.domain.replication.budgets import UNITS
from fedstac.domain.replication.calendar import DAYS
from fedstac.domain.replication.choosing import LONGEST_HREF
from fedstac.domain.replication.policy import (
    HIGHEST_PRIORITY,
    MOST_CONNECTIONS,
    MOST_RULES,
    MOST_SOURCES,
    MOST_WINDOWS,
    NAME,
    OnRetracted,
    OnSuperseded,
    ReplicaAction,
)

UNIT: Final = "|".join(UNITS)
SIZE: Final = {
    "type": "string", "pattern": rf"^\d{{1,15}}(\.\d{{1,6}})?\s*({UNIT})$", "description": "such as 500 GB or 1.5 TiB"
}  # fmt: skip
RATE: Final = {
    "type": "string", "pattern": rf"^\d{{1,15}}(\.\d{{1,6}})?\s*({UNIT})/s$", "description": "such as 100 MB/s"
}  # fmt: skip
NAMED: Final = {"type": "string", "pattern": f"^{NAME.pattern}$"}
TEXT: Final = {"type": "string", "minLength": 1, "maxLength": 512}
RANK: Final = {"type": "integer", "minimum": -HIGHEST_PRIORITY, "maximum": HIGHEST_PRIORITY}
CLOCK: Final = {"type": "string", "pattern": r"^(([01]?\d|2[0-3]):[0-5]\d|24:00)$"}
DAY: Final = {"enum": ["day", *DAYS]}


def _object(description: str, required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object", "description": description, "required": required, "properties": properties,
        "additionalProperties": False,
    }  # fmt: skip


WINDOW: Final = {
    "oneOf": [
        _object("closed on days of the week; over midnight where `to` is not after `from`", ["every", "from", "to"], {
            "every": {"oneOf": [DAY, {"type": "array", "items": {"enum": list(DAYS)}, "minItems": 1}]},
            "from": CLOCK, "to": CLOCK, "reason": TEXT,
        }),
        _object("closed from one moment to another", ["from", "to"], {
            "from": {"type": "string", "description": "such as 2026-12-24T18:00, in the time of `zone`"},
            "to": {"type": "string"}, "reason": TEXT,
        }),
    ]
}  # fmt: skip
SCHEMA: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Replica policy of fedstac",
    **_object("what a replica node copies, from where, and how much", ["version", "rules", "sources"], {
        "version": {"const": 1},
        "budget": {**SIZE, "description": "the most bytes that may be here"},
        "tiers": {
            "type": "object", "description": "folders by name, beside the served tree (`default`)",
            "propertyNames": {**NAMED, "not": {"enum": ["default", "restricted"]}},
            "additionalProperties": {"type": "string", "pattern": "^/"},
        },
        "rules": {"type": "array", "maxItems": MOST_RULES, "items": _object(
            "the first rule that fits a dataset decides", ["name", "action"], {
                "name": NAMED,
                "where": {"type": ["string", "object", "boolean"], "description": "CQL2; all without it"},
                "action": {"enum": list(ReplicaAction)},
                "priority": {**RANK, "description": "higher comes first"},
                "tier": {**TEXT, "description": "where its files belong"},
                "budget": SIZE,
                "check": {"type": "array", "items": TEXT, "minItems": 1,
                          "description": "a command that looks at the files before they are announced"},
                "on_superseded": {"enum": list(OnSuperseded)},
                "superseded_tier": {**TEXT, "description": "with `on_superseded: tier`"},
                "on_retracted": {"enum": list(OnRetracted)},
            })},
        "sources": {"type": "array", "maxItems": MOST_SOURCES, "items": _object(
            "hosts that files may be fetched from; no others are", ["name", "hosts"], {
                "name": NAMED,
                "hosts": {"type": "array", "minItems": 1, "items": {"type": "string", "maxLength": LONGEST_HREF}},
                "nodes": {"type": "array", "minItems": 1, "items": TEXT, "description": "files of these nodes only"},
                "preference": {**RANK, "description": "higher comes first"},
                "bandwidth": RATE,
                "connections": {"type": "integer", "minimum": 1, "maximum": MOST_CONNECTIONS},
                "private": {"type": "boolean", "description": "its hosts may have private addresses"},
                "calendar": _object("when it is closed", ["zone", "closed"], {
                    "zone": {**TEXT, "description": "such as Europe/Berlin"},
                    "closed": {"type": "array", "maxItems": MOST_WINDOWS, "items": WINDOW},
                }),
            })},
    }),
}  # fmt: skip
