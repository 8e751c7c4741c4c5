"""From facts to a snapshot: put together with the project's project.json, checked, written, kept beside the others.

project.json has the members of a snapshot (docs/vocabularies.md) except `format`, `version` and what the source says,
and: `parts` (what a part of the source's templates stands for here), `values_of` (a vocabulary made of an attribute's
values), `changes` (terms added or left out by hand, each with the reason). A name in square brackets, `[version]`, is
filled in from the source.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from fedstac.domain import strict_json, vocabulary
from fedstac.domain.errors import MalformedJson
from fedstac.domain.vocabulary import FORMAT, MOST_TERMS, NAME, VocabularyBroken
from fedstac.vocabularies import compare
from fedstac.vocabularies.facts import Collection, Facts, check_pattern, check_term, some
from fedstac.vocabularies.registry import order_of
from fedstac.vocabularies.sources import VocabularyRefused

MEMBERS: Final = (
    "format", "project", "version", "title", "sources", "prefix", "id_template", "file_name_template",
    "directory_template", "institution", "facets", "extensions", "properties", "assets", "links", "terms", "relations",
    "compositions", "rules",
)  # fmt: skip
BY_HAND: Final = frozenset(MEMBERS) - {"format", "version"} | {"parts", "values_of", "changes"}
TEMPLATES: Final = ("id_template", "file_name_template", "directory_template")
IN_ID: Final = re.compile(r"[A-Za-z0-9-]+")  # what a facet in an id is made of
MOST_TITLE: Final = 300  # characters of what is for people
FEW: Final = 8  # terms: a smaller vocabulary may change altogether


@dataclass(frozen=True, slots=True)
class Built:
    """A snapshot that is ready, and what a person should know about how it was made."""

    content: Mapping[str, Any]
    raw: bytes
    vocabulary: vocabulary.Vocabulary
    warnings: tuple[str, ...]


def recipe(path: Path) -> dict[str, Any]:
    """Return the content of a project.json. VocabularyRefused if it is missing or not valid."""
    try:
        content = strict_json.parse(path.read_bytes())
    except FileNotFoundError:
        raise VocabularyRefused(
            f"{path} is not there: what the project asks beyond its vocabulary is written in it"
        ) from None
    except (MalformedJson, OSError) as error:
        raise VocabularyRefused(f"{path}: {error}") from error
    if type(content) is not dict or not set(content) <= BY_HAND:
        unknown = ", ".join(sorted(set(content) - BY_HAND)) if type(content) is dict else "no object"
        raise VocabularyRefused(f"{path}: not known here: {unknown}; docs/vocabularies.md says what can be in it")
    return content


def build(recipe: Mapping[str, Any], facts: Facts, version: str) -> Built:
    """Return the snapshot of a version. VocabularyRefused, with the remedy, if it cannot be trusted."""
    if not NAME.fullmatch(version) or not version[0].isdigit():
        raise VocabularyRefused(
            f"{version!r} is no version: it begins with a digit and has letters, digits, . _ + - only"
        )
    of_source = version.partition("+")[0]  # what is behind it counts the snapshots of one source
    recipe = _fill(recipe, {"version": of_source, **facts.fill})
    parts = _SnapshotParts(recipe, facts)
    try:
        content = parts.content(version)
    except (LookupError, TypeError, AttributeError) as error:
        raise VocabularyRefused(f"cv/{facts.project}/project.json: {type(error).__name__}: {error}") from error
    raw = serialised(content)
    try:
        parsed_vocabulary = vocabulary.parse(raw)
    except VocabularyBroken as error:
        raise VocabularyRefused(
            f"what was read makes no snapshot: {error}; compare the source with project.json"
        ) from error
    warnings = (*facts.warnings, *parts.warnings, *_loose_relations(content))
    return Built(content, raw, parsed_vocabulary, warnings)


def serialised(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a snapshot (docs/vocabularies.md): a line for each term, no spaces between tokens."""
    members = []
    for name in MEMBERS:
        value = content[name]
        if name == "terms":
            inner = ",\n".join(f"{_json(each)}:{_lines(terms)}" for each, terms in sorted(value.items()))
            members.append(f'"terms":{{\n{inner}\n}}')
        elif name in ("properties", "assets", "sources", "extensions", "links", "relations", "compositions"):
            members.append(f"{_json(name)}:{_lines(value)}")
        else:
            members.append(f"{_json(name)}:{_json(value)}")
    return ("{" + ",\n".join(members) + "}\n").encode()


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _lines(value: Mapping[str, Any] | Sequence[Any]) -> str:
    if not value:
        return _json(value)
    if isinstance(value, Mapping):
        return "{\n" + ",\n".join(f"{_json(name)}:{_json(entry)}" for name, entry in value.items()) + "\n}"
    return "[\n" + ",\n".join(_json(entry) for entry in value) + "\n]"


def _fill(value: Any, fill: Mapping[str, str]) -> Any:
    """Return a value with every `[name]` in its texts replaced by that of `fill`."""
    match value:
        case str():
            for name, text in fill.items():
                value = value.replace(f"[{name}]", text)
            return value
        case dict():
            return {name: _fill(entry, fill) for name, entry in value.items()}
        case list():
            return [_fill(entry, fill) for entry in value]
        case _:
            return value


@dataclass
class _SnapshotParts:
    """The parts of one snapshot as they are put together."""

    recipe: Mapping[str, Any]  # project.json
    facts: Facts
    warnings: list[str] = field(default_factory=list)

    def content(self, version: str) -> dict[str, Any]:
        recipe, facts = self.recipe, self.facts
        self._compare_templates()
        properties = {**facts.properties, **recipe["properties"]}
        assets = {**facts.assets, **recipe.get("assets", {})}
        relations = recipe.get("relations", [])
        links = {link["rel"]: link for link in (*facts.links, *recipe.get("links", []))}
        return {
            "format": FORMAT, "project": recipe["project"], "version": version, "title": recipe["title"],
            "sources": recipe["sources"], "prefix": recipe["prefix"],
            **{name: recipe.get(name) for name in TEMPLATES},
            "institution": recipe["institution"], "facets": recipe["facets"], "extensions": recipe["extensions"],
            "properties": {name: self._demand(name, about) for name, about in properties.items()},
            "assets": {name: self._demand(name, about) for name, about in assets.items()},
            "links": [self._demand(f"the link {rel}", about) for rel, about in links.items()],
            "terms": self._terms({**properties, **assets}, relations),
            "relations": relations, "compositions": recipe.get("compositions", []), "rules": recipe.get("rules", {}),
        }  # fmt: skip

    def _demand(self, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a property demands, with its pattern checked, or with that of its collection."""
        demand = dict(about)
        collection = demand.get("terms")
        if collection in self.facts.patterns and collection not in self.facts.terms:
            demand["pattern"] = self.facts.patterns[demand.pop("terms")]
        if "pattern" in demand:
            demand["pattern"] = check_pattern(demand["pattern"], name)
        return demand

    def _terms(self, demands: Mapping[str, Any], relations: Sequence[Any]) -> dict[str, Collection]:
        """Return the vocabularies that something refers to, each term with the attributes that relations name."""
        collections: dict[str, Collection] = {name: dict(terms) for name, terms in self.facts.terms.items()}
        for name, terms in self.recipe.get("terms", {}).items():
            collections[name] = {term: {} for term in terms} if type(terms) is list else dict(terms)
        for name, source in self.recipe.get("values_of", {}).items():
            collections[name] = _values_of(collections, source)
        for name, change in self.recipe.get("changes", {}).items():
            self._change(collections, name, change)
        attributes_by_terms: dict[str, list[str]] = {
            about["terms"]: [] for about in demands.values() if "terms" in about
        }
        for relation in relations:
            attributes_by_terms.setdefault(relation["terms"], []).extend(
                [relation["attribute"]] if "attribute" in relation else []
            )
        steps = self._steps(demands)
        terms_by_name = {}
        for name, attributes in attributes_by_terms.items():
            if name not in collections and name in self.facts.patterns:
                continue
            if not collections.get(name):
                raise VocabularyRefused(
                    f"{self.facts.project}: the vocabulary {name!r} is empty or not there; is the source whole?"
                )
            terms_by_name[name] = self._vocabulary(
                name, collections[name], ("title", *attributes), as_step=name in steps
            )
        return terms_by_name

    def _vocabulary(self, name: str, terms: Collection, attributes: Sequence[str], *, as_step: bool) -> Collection:
        if len(terms) > MOST_TERMS:
            raise VocabularyRefused(f"{self.facts.project}: {name} has {len(terms)} terms; {MOST_TERMS} are the most")
        place = f"{self.facts.project}: {name}"
        for term in terms:
            check_term(term, place, as_step=as_step)
        unfit = [term for term in terms if as_step and not IN_ID.fullmatch(term)]
        if unfit:
            self.warnings.append(f"{name}: {some(unfit)} cannot stand in an id, which has letters, digits and hyphens")
        snapshot_terms = {
            term: {each: about[each] for each in dict.fromkeys(attributes) if about.get(each) not in (None, [], "")}
            for term, about in sorted(terms.items())
        }
        for attributes_of in snapshot_terms.values():
            if len(attributes_of.get("title", "")) > MOST_TITLE:
                attributes_of["title"] = attributes_of["title"][:MOST_TITLE].rpartition(" ")[0] + " …"
        return snapshot_terms

    def _steps(self, demands: Mapping[str, Any]) -> set[str]:
        """Return the vocabularies whose terms are parts of ids, folders and file names."""
        names = {name for text in TEMPLATES if self.recipe.get(text) for name in _names(self.recipe[text])}
        return {about["terms"] for name, about in demands.items() if name in names and "terms" in about}

    def _change(self, collections: dict[str, Collection], name: str, change: Mapping[str, Any]) -> None:
        """Add and leave out terms as project.json says. What relations say of those left out goes with them."""
        if not str(change.get("why", "")):
            raise VocabularyRefused(
                f"cv/{self.facts.project}/project.json: `changes` of {name} lack their reason, `why`"
            )
        removed_terms = set(change.get("leave_out", ()))
        remaining_terms = {term: about for term, about in collections[name].items() if term not in removed_terms}
        collections[name] = {
            **remaining_terms,
            **{term: {} for term in change.get("add", ()) if term not in remaining_terms},
        }
        collection, _, attribute = self.recipe.get("values_of", {}).get(name, "").partition(".")
        if attribute:
            collections[collection] = {
                term: {each: value for each, value in about.items() if each != attribute or value not in removed_terms}
                for term, about in collections[collection].items()
            }

    def _compare_templates(self) -> None:
        """Refuse templates of project.json that lack names of the source's, or have them in another order."""
        for name, source_parts in self.facts.templates.items():
            ours = self.recipe.get(f"{name}_template")
            if not source_parts or ours is None:
                continue
            parts = self.recipe.get("parts", {})
            texts = [
                parts.get(part, f"{{{self.recipe['prefix']}:{part}}}") for part in source_parts if part != "time_range"
            ]
            source_tokens = [token for text in texts for token in _tokens(text)]
            if source_tokens != _tokens(ours.partition("[")[0]):
                raise VocabularyRefused(
                    f"{self.facts.project}: the source's {name} template is {' '.join(source_tokens)}, project.json's"
                    f" {' '.join(_tokens(ours))}; bring project.json in line"
                )


def _names(template: str) -> tuple[str, ...]:
    return vocabulary.template(template).names


def _tokens(template: str) -> list[str]:
    """Return the properties and words of a template, without the separators."""
    text = vocabulary.template(template)
    words = [re.split(r"[./_]", literal) for literal in text.literals]
    return [
        token for between, name in zip(words, (*text.names, ""), strict=True) for token in (*between, name) if token
    ]


def _values_of(collections: Mapping[str, Collection], source: str) -> Collection:
    """Return the distinct values of an attribute, `collection.attribute`; of a table's key, `table_variable.1`."""
    collection, _, attribute = source.partition(".")
    values = (about.get(attribute) for about in collections.get(collection, {}).values())
    return {value: {} for value in sorted({value for value in values if type(value) is str})}


def _loose_relations(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield warnings about relations without values or with unknown terms. Real sources have them."""
    for relation in content["relations"]:
        if relation["holds"] == "exists":
            continue
        attribute, terms = relation["attribute"], content["terms"][relation["terms"]]
        about = content["properties"].get(relation["property"], {})
        vocabulary_terms = content["terms"].get(about.get("terms"))
        values_by_term = {term: entry[attribute] for term, entry in terms.items() if attribute in entry}
        if not values_by_term:
            yield f"{relation['rule']}: no term of {relation['terms']} has {attribute!r}; the relation says nothing"
        if vocabulary_terms is None or "pattern" in about:
            continue
        unknown = [
            f"{term} → {value}"
            for term, values in values_by_term.items()
            for entry in (values if type(values) is list else [values])
            for value in entry.split("|")
            if value not in vocabulary_terms
        ]
        if unknown:
            yield f"{relation['rule']}: {len(unknown)} times a term that is not there: {some(unknown)}"


# --- the folder of snapshots ---


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a snapshot. `losses`: why it is held."""

    path: Path
    state: str  # written, unchanged, held
    against: str | None = None  # the version that it was compared with
    difference: compare.Difference | None = None
    losses: tuple[str, ...] = ()


def versions(folder: Path, project: str) -> list[str]:
    """Return the versions in a folder of snapshots, the oldest first."""
    return sorted((path.stem for path in (folder / project).glob("*.json") if path.stem[:1].isdigit()), key=order_of)


def keep(folder: Path, snapshot: Built, *, accept_losses: bool = False, dry_run: bool = False) -> Kept:
    """Write the snapshot into <folder>/<project>/<version>.json, unless it lost too much (held) or is there already.

    VocabularyRefused if the version is there with other content: versions never change.
    """
    project, version = snapshot.vocabulary.project, snapshot.vocabulary.version
    path = folder / project / f"{version}.json"
    if path.exists():
        if path.read_bytes() == snapshot.raw:
            return Kept(path, "unchanged")
        raise VocabularyRefused(
            f"{path} is there with other content; a version never changes: use --version {version}+1"
        )
    existing_versions = versions(folder, project)
    against = existing_versions[-1] if existing_versions else None
    difference: compare.Difference | None = None
    losses: tuple[str, ...] = ()
    if against is not None:
        before = orjson.loads((folder / project / f"{against}.json").read_bytes())
        difference = compare.between(before, snapshot.content)
        losses = tuple(lost_between(before, snapshot.content, difference))
    if losses and not accept_losses:
        return Kept(path, "held", against, difference, losses)
    if not dry_run:
        _write(path, snapshot.raw)
    return Kept(path, "written", against, difference, losses)


def _write(path: Path, raw: bytes) -> None:
    """Write a file in one piece, and never over one that somebody else wrote meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).chmod(0o644)
        os.link(unfinished, path)
    except FileExistsError:
        raise VocabularyRefused(f"{path} was written by somebody else meanwhile; start again") from None
    finally:
        Path(unfinished).unlink()


def lost_between(before: Mapping[str, Any], after: Mapping[str, Any], difference: compare.Difference) -> Iterator[str]:
    """Yield what lost a half or more: the terms of a vocabulary, or what a relation compares."""
    for name, terms in before["terms"].items():
        lost = len(terms) if name not in after["terms"] else len(difference.removed.get(name, ()))
        if len(terms) >= FEW and lost * 2 >= len(terms):
            yield f"{name}: {lost} of {len(terms)} terms are gone"
    for relation in before["relations"]:
        name, attribute = relation["terms"], relation.get("attribute")
        had, has = (sum(attribute in about for about in one["terms"].get(name, {}).values()) for one in (before, after))
        if attribute is not None and had >= FEW and has * 2 <= had and name in after["terms"]:
            yield f"{name}: {had - has} of {had} terms lost {attribute!r}, which the rule {relation['rule']} goes by"
