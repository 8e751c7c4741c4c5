"""Projects: what a collection with a controlled vocabulary demands of its datasets.

A project is a folder in cv/ with a project.json; `project_from` turns its content into a value. The vocabulary's terms
and relations will stand beside it; so far a project knows its id template, its institution facet and its facets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from fedstac.domain.errors import Finding

FACET = re.compile(r"\{([A-Za-z0-9_:]+)\}")


@dataclass(frozen=True)
class Project:
    """A controlled vocabulary's demands on a collection; `name` is the collection's id."""

    name: str
    id_template: str  # e.g. "CMIP6.{cmip6:activity_id}.….v{version}"
    institution: str  # the property that names the publishing institution
    extensions: tuple[str, ...]  # prefixes of the extension URIs that are accepted
    facets: tuple[str, ...]  # properties worth an index, in the project's order
    cv_version: str | None = None
    title: str = ""

    @cached_property
    def id_pattern(self) -> re.Pattern[str]:
        """Facets are letters, digits and hyphens; the version is eight digits (YYYYMMDD)."""
        parts: list[str] = []
        at = 0
        for facet in FACET.finditer(self.id_template):
            parts.append(re.escape(self.id_template[at : facet.start()]))
            parts.append(r"(?P<version>[0-9]{8})" if facet[1] == "version" else r"[A-Za-z0-9-]+")
            at = facet.end()
        parts.append(re.escape(self.id_template[at:]))
        return re.compile("".join(parts))

    @cached_property
    def base_suffix(self) -> int:
        """How many characters the version adds to the base id (`.v20200101`)."""
        return len(self.id_template.rpartition("{version}")[0].rpartition("}")[2]) + 8


@dataclass(frozen=True, slots=True)
class DatasetName:
    """A dataset's id taken apart: which lineage, which version."""

    lineage: str
    version: int | None


def project_from(content: Mapping[str, object]) -> Project:
    """A project from its project.json. KeyError and TypeError mean that the file is broken."""
    return Project(
        name=str(content["name"]),
        title=str(content.get("title", content["name"])),
        id_template=str(content["id_template"]),
        institution=str(content["institution"]),
        extensions=_strings(content["extensions"]),
        facets=_strings(content["facets"]),
        cv_version=str(content["cv_version"]) if "cv_version" in content else None,
    )


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"a list of strings is expected, not {value!r}")
    return tuple(str(entry) for entry in value)


def name_of(collection: str, item_id: str, project: Project | None) -> DatasetName | Finding:
    """The lineage and version that an id stands for, or what is wrong with it.

    Without a project the lineage is the id itself and there is no version (overview.md, Words).
    """
    if project is None:
        return DatasetName(lineage=f"{collection}/{item_id}", version=None)
    match = project.id_pattern.fullmatch(item_id)
    if match is None:
        return Finding("id-template", "/id", f"{item_id!r} is not of the form {project.id_template} of {project.name}")
    return DatasetName(lineage=f"{collection}/{item_id[: -project.base_suffix]}", version=int(match.group("version")))
