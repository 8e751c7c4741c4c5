"""The layout of the WCRP: terms as JSON-LD files that refer to the WCRP universe, and specifications in YAML.

A folder is a collection, a file a term; its `000_context.jsonld` says in `@base` which data type of the universe the
terms belong to. A term's value is its `drs_name`; one with `regex` describes values, one with `parts` is put together.
Source: https://github.com/WCRP-CMIP/CMIP7-CVs, https://github.com/WCRP-CMIP/WCRP-universe.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fedstac.domain.vocabulary import Kind
from fedstac.vocabularies.facts import Attributes, Collection, Facts, check_pattern, check_term, either, some, title_of
from fedstac.vocabularies.sources import Files, VocabularyRefused, expect

MANIFEST, PROJECT, CATALOG, DRS = "esgvoc_manifest.yaml", "project_specs.yaml", "catalog_specs.yaml", "drs_specs.yaml"
CONTEXT: Final = "000_context.jsonld"
RESOURCE: Final = re.compile(r"/resource/([^/]+)/([^/]+)/?$")  # universe or a project, and the data type in it
STEP: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # an id or collection: the name of a file or folder
KINDS: Final[Mapping[str, Kind]] = {
    "string": Kind.STRING, "string_array": Kind.STRINGS, "integer": Kind.INTEGER, "int": Kind.INTEGER,
    "number": Kind.NUMBER, "float": Kind.NUMBER, "double": Kind.NUMBER, "boolean": Kind.BOOLEAN,
}  # fmt: skip
UNIVERSE: Final = "universe"


def is_layout(files: Files) -> bool:
    return PROJECT in files.content and DRS in files.content


def facts(files: Files, universe: Files | None) -> Facts:
    """Return what the project says of its terms, and the universe for it. VocabularyRefused if one is odd."""
    if universe is None:
        raise VocabularyRefused(f"{files.name} refers to the WCRP universe; add --universe with its folder or .tar.gz")
    about = _mapping(files, PROJECT)
    prefix = check_term(about.get("project_id", ""), f"{files.name}: {PROJECT}", as_step=True)
    project = check_term(about.get("drs_name") or prefix, f"{files.name}: {PROJECT}", as_step=True)
    terms = _Terms(files, universe)
    collections = {folder: terms.collection(folder) for folder in files.folders()}
    catalog = _mapping(files, CATALOG) if CATALOG in files.content else {}
    properties, property_names = _properties(catalog.get("dataset_properties", []), prefix, collections, terms, files)
    members, _ = _properties(catalog.get("file_properties", []), prefix, collections, terms, files)
    manifest = _mapping(files, MANIFEST) if MANIFEST in files.content else {}
    universe_manifest = _mapping(universe, MANIFEST) if MANIFEST in universe.content else {}
    return Facts(
        project=project, version=_text(manifest.get("cv_version")),
        terms={name: collection for name, collection in collections.items() if collection}, patterns=terms.patterns,
        properties=properties, assets=members,
        links=[_link(link, files) for link in catalog.get("link_properties", [])],
        templates=_templates(_mapping(files, DRS), property_names, files),
        fill={
            "catalog": str(catalog.get("version", "")), "universe": str(universe_manifest.get("cv_version", "unknown"))
        },
        warnings=(*_other_universe(manifest, universe_manifest), *terms.warnings, *terms.taken_off()),
    )  # fmt: skip


def _mapping(files: Files, path: str) -> dict[str, Any]:
    mapping: dict[str, Any] = expect(files.yaml(path), dict, f"{files.name}: {path}")
    return mapping


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _other_universe(manifest: Mapping[str, Any], universe_manifest: Mapping[str, Any]) -> Iterator[str]:
    released_with, here = manifest.get("universe_version"), universe_manifest.get("cv_version")
    if released_with != here:
        yield f"the project was released with universe {released_with}; it is resolved against {here}"


@dataclass
class _Terms:
    """The terms of the project, each with what the universe says of it."""

    files: Files
    universe: Files
    patterns: dict[str, str] = field(default_factory=dict)  # of collections that are described, not listed
    warnings: list[str] = field(default_factory=list)
    trimmed: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # terms with space around an attribute
    _bases: dict[str, tuple[str, Mapping[str, tuple[str, str]]]] = field(default_factory=dict)

    def collection(self, name: str) -> Collection:
        """Return the terms by drs_name, with attributes that refer to others by theirs. Empty for one of patterns."""
        terms: Collection = {}
        patterns: list[str] = []
        for path in self.files.within(name):
            if path.endswith("/" + CONTEXT):
                continue
            term, place = self._term(name, path), f"{self.files.name}: {path}"
            if term is None:
                continue
            if "regex" in term:
                patterns.append(check_pattern(term["regex"], place))
            elif "parts" not in term:
                value = check_term(term.get("drs_name", ""), place) or None
                if value is None:
                    self.warnings.append(f"{name}: {term['id']!r} has no drs_name, and is left out")
                elif value in terms:
                    raise VocabularyRefused(f"{place}: {value!r} is the drs_name of two terms; have it repaired")
                else:
                    terms[value] = self._attributes(name, term)
        if patterns and not terms:
            self.patterns[name] = either(patterns)
        elif patterns:
            self.warnings.append(f"{name}: {len(patterns)} patterns beside terms are left out")
        return terms

    def taken_off(self) -> Iterator[str]:
        for (collection, name), terms in self.trimmed.items():
            yield f"{collection}: {name} has space around it, which is taken off: {some(terms)}"

    def _term(self, collection: str, path: str) -> dict[str, Any] | None:
        """Return a term's members, the project's own over the universe's; None for one that is in neither."""
        own = self.files.object(path)
        place = f"{self.files.name}: {path}"
        identifier = check_term(own.get("id", ""), place, as_step=True)
        data_type, _ = self._context(collection)
        general = f"{data_type}/{identifier}.json"
        if general not in self.universe.content:
            if "drs_name" not in own and "regex" not in own:
                self.warnings.append(f"{collection}: {identifier!r} is not in the universe, and is left out")
                return None
            return own
        return {**self.universe.object(general), **own}

    def _context(self, collection: str) -> tuple[str, Mapping[str, tuple[str, str]]]:
        """Return the data type that a collection's terms are of, and where its attributes refer to."""
        if collection not in self._bases:
            path = f"{collection}/{CONTEXT}"
            if path not in self.files.content:
                raise VocabularyRefused(
                    f"{self.files.name}: {path} is missing, so its terms cannot be resolved; add it"
                )
            place = f"{self.files.name}: {path}"
            context = expect(self.files.object(path).get("@context"), dict, place)
            base = RESOURCE.search(str(context.get("@base", "")))
            if base is None or base[1] != UNIVERSE or not STEP.fullmatch(base[2]):
                raise VocabularyRefused(f"{place}: `@base` names no data type of the universe; have it repaired")
            self._bases[collection] = base[2], self._references(base[2], context)
        return self._bases[collection]

    def _references(self, data_type: str, context: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
        path = f"{data_type}/{CONTEXT}"
        general = self.universe.object(path).get("@context") if path in self.universe.content else {}
        references = {}
        for name, definition in {**(general if isinstance(general, dict) else {}), **context}.items():
            inner = (
                definition.get("@context")
                if isinstance(definition, dict) and definition.get("@type") == "@id"
                else None
            )
            match = RESOURCE.search(str(inner.get("@base", ""))) if isinstance(inner, dict) else None
            if match:
                references[name] = match[1], match[2]
        return references

    def _attributes(self, collection: str, term: Mapping[str, Any]) -> Attributes:
        """Return texts, and lists of them; references by the value of what they refer to."""
        attributes = title_of(term.get("description"))
        references = self._context(collection)[1]
        for name, value in term.items():
            if name in ("@context", "id", "type", "drs_name", "title"):
                continue
            texts = value if type(value) is list else [value]
            if texts and all(type(entry) is str for entry in texts):
                if name != "description" and any(entry != entry.strip() for entry in texts):
                    self.trimmed.setdefault((collection, name), []).append(str(term["id"]))
                texts = [entry.strip() for entry in texts]
                if name in references:
                    texts = [self._value(*references[name], entry) for entry in texts]
                attributes[name] = texts if type(value) is list else texts[0]
        return attributes

    def _value(self, scope: str, data_type: str, identifier: str) -> str:
        """Return the drs_name of the referenced term; the id itself if it is not known, which is reported later."""
        path = f"{data_type}/{identifier}.json"
        own = self.files.object(path) if scope != UNIVERSE and path in self.files.content else {}
        if "drs_name" not in own:
            general = self._context(data_type)[0] if own else data_type
            path = f"{general}/{identifier}.json"
            own = self.universe.object(path) if path in self.universe.content else {}
        return str(own.get("drs_name", identifier))


def _properties(
    entries: object, prefix: str, collections: dict[str, Collection], terms: _Terms, files: Files
) -> tuple[dict[str, Attributes], dict[str, str]]:
    """Return the properties of a list in catalog_specs by full name, and which one holds a collection's own values.

    A property of an attribute of a collection's terms gets a vocabulary of its own: the values of that attribute.
    """
    place = f"{files.name}: {CATALOG}"
    properties: dict[str, Attributes] = {}
    names: dict[str, str] = {}
    folders = files.folders()
    for entry in expect(entries, list, place):
        about = expect(entry, dict, place)
        collection, key = about.get("source_collection"), about.get("source_collection_key")
        name = check_term(about.get("catalog_field_name") or collection or "", place, as_step=True)
        kind = KINDS.get(str(about.get("catalog_field_value_type")))
        if kind is None:
            said_type = about.get("catalog_field_value_type")
            raise VocabularyRefused(f"{place}: {name} has the type {said_type!r}; known are {', '.join(KINDS)}")
        demand: Attributes = {"type": kind.value, **({"required": True} if about.get("is_required") else {})}
        if collection is not None and not collections.get(collection) and collection not in terms.patterns:
            raise VocabularyRefused(f"{place}: {name} takes its terms from {collection!r}, which is empty or not there")
        if collection is not None and key is not None:
            values = (attributes.get(key) for attributes in collections[collection].values())
            vocabulary = f"{collection}.{key}" if name in folders else name
            collections[vocabulary] = {value: {} for value in values if type(value) is str and value}
            demand["terms"] = vocabulary
        elif collection is not None:
            demand["terms"] = collection
            if collection not in names or "required" in demand:  # not that of the parent
                names[collection] = name
        properties[f"{prefix}:{name}"] = demand
    return properties, names


def _link(link: object, files: Files) -> Attributes:
    place = f"{files.name}: {CATALOG}"
    about = expect(link, dict, place)
    texts = {"type": about.get("link_type"), "title": about.get("title"), "pattern": about.get("link_pattern")}
    return {
        "rel": expect(about.get("rel"), str, place),
        **({"required": True} if about.get("is_required") else {}),
        **{name: expect(text, str, place) for name, text in texts.items() if text is not None},
    }


def _templates(
    specification: Mapping[str, Any], property_names: Mapping[str, str], files: Files
) -> dict[str, list[str]]:
    """Return the parts of the ids, folders and file names, by the properties that hold them."""
    ours = {"dataset_id": "id", "directory": "directory", "file_name": "file_name"}
    place = f"{files.name}: {DRS}"
    templates = {}
    for theirs, name in ours.items():
        parts = expect(expect(specification.get(theirs), dict, place).get("parts"), list, place)
        collections = [expect(expect(part, dict, place).get("source_collection"), str, place) for part in parts]
        templates[name] = [property_names.get(collection, collection) for collection in collections]
    return templates
