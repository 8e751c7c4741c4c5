"""What is different between two snapshots of a project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

OTHER: Final = (
    "title", "prefix", "id_template", "file_name_template", "directory_template", "institution", "facets", "extensions",
    "assets", "links", "relations", "compositions", "rules",
)  # fmt: skip

Change = tuple[Any, Any]  # before and after; None where it is not there


@dataclass(frozen=True, slots=True)
class Difference:
    """By vocabulary: the terms that came, went, or say something else; and what else is different."""

    added: Mapping[str, Sequence[str]]
    removed: Mapping[str, Sequence[str]]
    changed: Mapping[str, Mapping[str, Mapping[str, Change]]]  # vocabulary, term, attribute
    properties: Mapping[str, Change]
    other: Mapping[str, Change]

    def __bool__(self) -> bool:
        return any((self.added, self.removed, self.changed, self.properties, self.other))

    def as_json(self) -> dict[str, Any]:
        def pair(change: Change) -> dict[str, Any]:
            return {"before": change[0], "after": change[1]}

        names = sorted({*self.added, *self.removed, *self.changed})
        return {
            "terms": {
                name: {
                    "added": list(self.added.get(name, ())), "removed": list(self.removed.get(name, ())),
                    "changed": {
                        term: {attribute: pair(change) for attribute, change in changes.items()}
                        for term, changes in self.changed.get(name, {}).items()
                    },
                }
                for name in names
            },
            "properties": {name: pair(change) for name, change in self.properties.items()},
            "other": {name: pair(change) for name, change in self.other.items()},
        }  # fmt: skip


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> Difference:
    """Return the difference between the contents of two snapshots, by sorted names, without sources and versions."""
    names = sorted({*before["terms"], *after["terms"]})
    pairs = {name: (before["terms"].get(name, {}), after["terms"].get(name, {})) for name in names}
    new_terms = {name: sorted(new.keys() - old.keys()) for name, (old, new) in pairs.items()}
    removed = {name: sorted(old.keys() - new.keys()) for name, (old, new) in pairs.items()}
    changes = {
        name: {
            term: _changes(old[term], new[term]) for term in sorted(old.keys() & new.keys()) if old[term] != new[term]
        }
        for name, (old, new) in pairs.items()
    }
    return Difference(
        _full(new_terms), _full(removed), _full(changes), _changes(before["properties"], after["properties"]),
        {name: (before.get(name), after.get(name)) for name in OTHER if before.get(name) != after.get(name)},
    )  # fmt: skip


def _full(group: dict[str, Any]) -> dict[str, Any]:
    return {name: entries for name, entries in group.items() if entries}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Change]:
    names = sorted({*old, *new})
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}
