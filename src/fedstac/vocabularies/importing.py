"""From a published source to a snapshot: which layout it is, its facts, and the project's project.json."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fedstac.vocabularies import cmip6, esgvoc, snapshots, sources
from fedstac.vocabularies.facts import Facts
from fedstac.vocabularies.snapshots import Built
from fedstac.vocabularies.sources import Files, VocabularyRefused

RECIPE: Final = "project.json"
LAYOUTS: Final = (
    "one JSON file a vocabulary beside <PROJECT>_DRS.json (CMIP6_CVs, CORDEX-CMIP6), or "
    "esgvoc's with project_specs.yaml and drs_specs.yaml (CMIP7)"
)


def facts(source: Path, *, tables: Path | None = None, universe: Path | None = None) -> Facts:
    """Return what the source says. VocabularyRefused if its layout is not known, or it is not to be trusted."""
    files = sources.read(source)
    if esgvoc.is_layout(files):
        return esgvoc.facts(files, _other(universe))
    if cmip6.project_of(files) is not None:
        return cmip6.facts(files, _other(tables))
    raise VocabularyRefused(f"{source} has none of the layouts that are known here: {LAYOUTS}; name the folder of one")


def build(
    source: Path,
    folder: Path,
    *,
    project: str | None = None,
    version: str | None = None,
    tables: Path | None = None,
    universe: Path | None = None,
) -> Built:
    """Return the snapshot of a source, by <folder>/<project>/project.json. VocabularyRefused with a remedy."""
    facts_of_source = facts(source, tables=tables, universe=universe)
    name = project or facts_of_source.project
    if name != facts_of_source.project and project is not None:
        raise VocabularyRefused(
            f"{source} is the vocabulary of {facts_of_source.project}, not of {project}; name the other source"
        )
    number = version or facts_of_source.version
    if number is None:
        raise VocabularyRefused(
            f"{source} does not say which version it is; say it with --version, the day for instance"
        )
    return snapshots.build(snapshots.recipe(folder / name / RECIPE), facts_of_source, number)


def _other(path: Path | None) -> Files | None:
    return sources.read(path) if path is not None else None
