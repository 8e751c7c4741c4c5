"""CMIP6_CVs and CORDEX-CMIP6: one JSON file a vocabulary, `<PROJECT>_<name>.json` with the member `<name>`.

Sources: https://github.com/WCRP-CMIP/CMIP6_CVs, https://github.com/WCRP-CORDEX/cordex-cmip6-cv; variables by table
from https://github.com/PCMDI/cmip6-cmor-tables.
"""

from __future__ import annotations

import re
from typing import Any, Final

from fedstac.vocabularies.facts import Attributes, Collection, Facts, strings, title_of
from fedstac.vocabularies.sources import Files, VocabularyRefused, expect

VERSION: Final = ("version_metadata", "CV_collection_version")
NO_TERMS: Final = frozenset(("DRS", "fixed", "license", "required_global_attributes"))
TITLES: Final = ("label_extended", "experiment", "domain")  # members that are a term's title
TABLES: Final = "table_variables.json"
PART: Final = re.compile(r"<\s*([A-Za-z0-9_]+)\s*>")
FILE: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)_([A-Za-z0-9_]+)\.json")


def project_of(files: Files) -> str | None:
    """Return the project whose vocabulary it is, if this is the layout: the file of its DRS says it."""
    projects = sorted(match[1] for path in files.content if (match := FILE.fullmatch(path)) and match[2] == "DRS")
    return projects[0] if len(projects) == 1 else None


def facts(files: Files, tables: Files | None) -> Facts:
    """Return what the files say; `tables` holds table_variables.json. VocabularyRefused if something is odd."""
    project = project_of(files)
    assert project is not None
    collections: dict[str, Collection] = {}
    versions: set[str] = set()
    templates: dict[str, list[str]] = {}
    for path in files.within(""):
        match = FILE.fullmatch(path)
        name = match[2] if match and match[1] == project else path.removesuffix(".json")
        content, place = files.object(path), f"{files.name}: {path}"
        metadata = content.get(VERSION[0], {})
        if type(metadata) is dict and VERSION[1] in metadata:
            versions.add(expect(metadata[VERSION[1]], str, place))
        if name == "DRS":
            templates = _templates(content, place)
        elif name in content and name not in NO_TERMS:
            collections[name] = _collection(content[name], place)
    if len(versions) > 1:
        raise VocabularyRefused(f"{files.name} mixes the versions {', '.join(sorted(versions))}; take all files of one")
    for attributes in collections.get("experiment_id", {}).values():
        required, further = (
            attributes.get(f"{which}_model_components", []) for which in ("required", "additional_allowed")
        )
        attributes["allowed_model_components"] = list(dict.fromkeys([*required, *further]))
    if tables is not None:
        collections |= _tables(tables)
    return Facts(project, next(iter(versions), None), collections, templates=templates)


def _collection(terms: object, place: str) -> Collection:
    """Return a list of terms; or an object of them, each with a title or with members."""
    if type(terms) is list:
        return {expect(term, str, place): {} for term in terms}
    return {term: _attributes(about, f"{place}: {term[:60]!r}") for term, about in expect(terms, dict, place).items()}


def _attributes(about: object, place: str) -> Attributes:
    if type(about) is str:
        return title_of(about)
    attributes: Attributes = {}
    for name, value in expect(about, dict, place).items():
        if type(value) is list:
            attributes[name] = strings(value, f"{place}: {name}")
        elif type(value) is str:
            attributes |= {name: value, **(title_of(value) if name in TITLES else {})}
    return attributes


def _templates(content: dict[str, Any], place: str) -> dict[str, list[str]]:
    """Return the names in the DRS' templates, in their order; how they are joined has changed between versions."""
    templates = expect(content.get("DRS"), dict, place)
    names = {"directory": "directory_path_template", "file_name": "filename_template"}
    return {ours: PART.findall(expect(templates.get(theirs), str, place)) for ours, theirs in names.items()}


def _tables(files: Files) -> dict[str, Collection]:
    """Return `table_variable`, keyed "Amon.tas", and `variable_id` with a long name as the title."""
    path = TABLES if TABLES in files.content or len(files.content) != 1 else next(iter(files.content))
    place = f"{files.name}: {path}"
    if path not in files.content:
        raise VocabularyRefused(f"{files.name} has no {TABLES}; name the file itself")
    pairs: Collection = {}
    variables: Collection = {}
    for table, entries in sorted(expect(files.object(path).get("tables"), dict, place).items()):
        for variable, entry in expect(entries, dict, f"{place}: {table}").items():
            here = f"{place}: {table}.{variable}"
            about = expect(entry, dict, here)
            pairs[f"{table}.{variable}"] = {
                name: strings(about[name], here) if name == "realm" else expect(about[name], str, here)
                for name in ("units", "standard_name", "frequency", "realm")
                if name in about
            }
            variables.setdefault(variable, title_of(about.get("long_name")))
    return {"table_variable": pairs, "variable_id": variables}
