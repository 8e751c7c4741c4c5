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
    """A project.json. VocabularyRefused where there is none, or it is none."""
    try:
        said = strict_json.parse(path.read_bytes())
    except FileNotFoundError:
        raise VocabularyRefused(
            f"{path} is not there: what the project asks beyond its vocabulary is written in it"
        ) from None
    except (MalformedJson, OSError) as error:
        raise VocabularyRefused(f"{path}: {error}") from error
    if type(said) is not dict or not set(said) <= BY_HAND:
        unknown = ", ".join(sorted(set(said) - BY_HAND)) if type(said) is dict else "no object"
        raise VocabularyRefused(f"{path}: not known here: {unknown}; docs/vocabularies.md says what can be in it")
    return said


def build(said: Mapping[str, Any], facts: Facts, version: str) -> Built:
    """The snapshot of a version. VocabularyRefused with the reason, and what to do, where it cannot be trusted."""
    if not NAME.fullmatch(version) or not version[0].isdigit():
        raise VocabularyRefused(
            f"{version!r} is no version: it begins with a digit and has letters, digits, . _ + - only"
        )
    of_source = version.partition("+")[0]  # what is behind it counts the snapshots of one source
    said = _filled(said, {"version": of_source, **facts.fill})
    making = _Making(said, facts)
    try:
        content = making.content(version)
    except (LookupError, TypeError, AttributeError) as error:
        raise VocabularyRefused(f"cv/{facts.project}/project.json: {type(error).__name__}: {error}") from error
    raw = serialised(content)
    try:
        made = vocabulary.parse(raw)
    except VocabularyBroken as error:
        raise VocabularyRefused(
            f"what was read makes no snapshot: {error}; compare the source with project.json"
        ) from error
    warnings = (*facts.warnings, *making.warnings, *_dangling(content))
    return Built(content, raw, made, warnings)


def serialised(content: Mapping[str, Any]) -> bytes:
    """The one form that a content has (docs/vocabularies.md): a line for each term, no spaces between tokens."""
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


def _filled(value: Any, fill: Mapping[str, str]) -> Any:
    """The value with every `[name]` of `fill` replaced in its texts."""
    match value:
        case str():
            for name, text in fill.items():
                value = value.replace(f"[{name}]", text)
            return value
        case dict():
            return {name: _filled(entry, fill) for name, entry in value.items()}
        case list():
            return [_filled(entry, fill) for entry in value]
        case _:
            return value


@dataclass
class _Making:
    """The parts of one snapshot as they are put together."""

    said: Mapping[str, Any]
    facts: Facts
    warnings: list[str] = field(default_factory=list)

    def content(self, version: str) -> dict[str, Any]:
        said, facts = self.said, self.facts
        self._compare_templates()
        properties = {**facts.properties, **said["properties"]}
        assets = {**facts.assets, **said.get("assets", {})}
        relations = said.get("relations", [])
        links = {link["rel"]: link for link in (*facts.links, *said.get("links", []))}
        return {
            "format": FORMAT, "project": said["project"], "version": version, "title": said["title"],
            "sources": said["sources"], "prefix": said["prefix"],
            **{name: said.get(name) for name in TEMPLATES},
            "institution": said["institution"], "facets": said["facets"], "extensions": said["extensions"],
            "properties": {name: self._demand(name, about) for name, about in properties.items()},
            "assets": {name: self._demand(name, about) for name, about in assets.items()},
            "links": [self._demand(f"the link {rel}", about) for rel, about in links.items()],
            "terms": self._terms({**properties, **assets}, relations),
            "relations": relations, "compositions": said.get("compositions", []), "rules": said.get("rules", {}),
        }  # fmt: skip

    def _demand(self, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked of a property; its pattern checked, or that of the collection that is one."""
        made = dict(about)
        collection = made.get("terms")
        if collection in self.facts.patterns and collection not in self.facts.terms:
            made["pattern"] = self.facts.patterns[made.pop("terms")]
        if "pattern" in made:
            made["pattern"] = check_pattern(made["pattern"], name)
        return made

    def _terms(self, demands: Mapping[str, Any], relations: Sequence[Any]) -> dict[str, Collection]:
        """The vocabularies that something refers to, each term with the attributes that a relation asks for."""
        known: dict[str, Collection] = {name: dict(terms) for name, terms in self.facts.terms.items()}
        for name, terms in self.said.get("terms", {}).items():
            known[name] = {term: {} for term in terms} if type(terms) is list else dict(terms)
        for name, source in self.said.get("values_of", {}).items():
            known[name] = _values_of(known, source)
        for name, change in self.said.get("changes", {}).items():
            self._change(known, name, change)
        asked: dict[str, list[str]] = {about["terms"]: [] for about in demands.values() if "terms" in about}
        for relation in relations:
            asked.setdefault(relation["terms"], []).extend([relation["attribute"]] if "attribute" in relation else [])
        steps = self._steps(demands)
        made = {}
        for name, attributes in asked.items():
            if name not in known and name in self.facts.patterns:
                continue
            if not known.get(name):
                raise VocabularyRefused(
                    f"{self.facts.project}: the vocabulary {name!r} is empty or not there; is the source whole?"
                )
            made[name] = self._vocabulary(name, known[name], ("title", *attributes), as_step=name in steps)
        return made

    def _vocabulary(self, name: str, terms: Collection, attributes: Sequence[str], *, as_step: bool) -> Collection:
        if len(terms) > MOST_TERMS:
            raise VocabularyRefused(f"{self.facts.project}: {name} has {len(terms)} terms; {MOST_TERMS} are the most")
        place = f"{self.facts.project}: {name}"
        for term in terms:
            check_term(term, place, as_step=as_step)
        unfit = [term for term in terms if as_step and not IN_ID.fullmatch(term)]
        if unfit:
            self.warnings.append(f"{name}: {some(unfit)} cannot stand in an id, which has letters, digits and hyphens")
        kept = {
            term: {each: about[each] for each in dict.fromkeys(attributes) if about.get(each) not in (None, [], "")}
            for term, about in sorted(terms.items())
        }
        for attributes_of in kept.values():
            if len(attributes_of.get("title", "")) > MOST_TITLE:
                attributes_of["title"] = attributes_of["title"][:MOST_TITLE].rpartition(" ")[0] + " …"
        return kept

    def _steps(self, demands: Mapping[str, Any]) -> set[str]:
        """The vocabularies whose terms stand in ids, folders and file names."""
        names = {name for text in TEMPLATES if self.said.get(text) for name in _names(self.said[text])}
        return {about["terms"] for name, about in demands.items() if name in names and "terms" in about}

    def _change(self, known: dict[str, Collection], name: str, change: Mapping[str, Any]) -> None:
        """Terms added and left out by hand; what relations say of those left out goes with them."""
        if not str(change.get("why", "")):
            raise VocabularyRefused(
                f"cv/{self.facts.project}/project.json: `changes` of {name} lack their reason, `why`"
            )
        gone = set(change.get("leave_out", ()))
        kept = {term: about for term, about in known[name].items() if term not in gone}
        known[name] = {**kept, **{term: {} for term in change.get("add", ()) if term not in kept}}
        collection, _, attribute = self.said.get("values_of", {}).get(name, "").partition(".")
        if attribute:
            known[collection] = {
                term: {each: value for each, value in about.items() if each != attribute or value not in gone}
                for term, about in known[collection].items()
            }

    def _compare_templates(self) -> None:
        """The templates are written by hand; the source's names have to be the same, in the same order."""
        for name, stated in self.facts.templates.items():
            ours = self.said.get(f"{name}_template")
            if not stated or ours is None:
                continue
            parts = self.said.get("parts", {})
            texts = [parts.get(part, f"{{{self.said['prefix']}:{part}}}") for part in stated if part != "time_range"]
            wanted = [token for text in texts for token in _tokens(text)]
            if wanted != _tokens(ours.partition("[")[0]):
                raise VocabularyRefused(
                    f"{self.facts.project}: the source's {name} template is {' '.join(wanted)}, and project.json's "
                    f"{' '.join(_tokens(ours))}; bring project.json in line"
                )


def _names(template: str) -> tuple[str, ...]:
    return vocabulary.template(template).names


def _tokens(template: str) -> list[str]:
    """A template's properties and words, without what is between them."""
    text = vocabulary.template(template)
    words = [re.split(r"[./_]", literal) for literal in text.literals]
    return [
        token for between, name in zip(words, (*text.names, ""), strict=True) for token in (*between, name) if token
    ]


def _values_of(known: Mapping[str, Collection], source: str) -> Collection:
    """The distinct values of an attribute, `collection.attribute`; of a table's key, `table_variable.1`."""
    collection, _, attribute = source.partition(".")
    values = (about.get(attribute) for about in known.get(collection, {}).values())
    return {value: {} for value in sorted({value for value in values if type(value) is str})}


def _dangling(content: Mapping[str, Any]) -> Iterator[str]:
    """Relations that say nothing, or name terms that are not there: tolerated, since real sources have them."""
    for relation in content["relations"]:
        if relation["holds"] == "exists":
            continue
        attribute, terms = relation["attribute"], content["terms"][relation["terms"]]
        about = content["properties"].get(relation["property"], {})
        known = content["terms"].get(about.get("terms"))
        said = {term: entry[attribute] for term, entry in terms.items() if attribute in entry}
        if not said:
            yield f"{relation['rule']}: no term of {relation['terms']} has {attribute!r}; the relation says nothing"
        if known is None or "pattern" in about:
            continue
        unknown = [
            f"{term} → {value}"
            for term, values in said.items()
            for entry in (values if type(values) is list else [values])
            for value in entry.split("|")
            if value not in known
        ]
        if unknown:
            yield f"{relation['rule']}: {len(unknown)} times a term that is not there: {some(unknown)}"


# --- the folder of snapshots ---


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a snapshot; `losses` are why it is held."""

    path: Path
    state: str  # written, unchanged, held
    against: str | None = None  # the version that it was compared with
    difference: compare.Difference | None = None
    losses: tuple[str, ...] = ()


def versions(folder: Path, project: str) -> list[str]:
    """The versions in a folder of snapshots, the oldest first."""
    return sorted((path.stem for path in (folder / project).glob("*.json") if path.stem[:1].isdigit()), key=order_of)


def keep(folder: Path, built: Built, *, accept_losses: bool = False, dry_run: bool = False) -> Kept:
    """Writes the snapshot into <folder>/<project>/<version>.json, unless it lost too much (held) or is there already.

    VocabularyRefused where the version is there with other content: versions never change.
    """
    project, version = built.vocabulary.project, built.vocabulary.version
    path = folder / project / f"{version}.json"
    if path.exists():
        if path.read_bytes() == built.raw:
            return Kept(path, "unchanged")
        raise VocabularyRefused(
            f"{path} is there with other content; a version never changes: use --version {version}+1"
        )
    known = versions(folder, project)
    against = known[-1] if known else None
    difference: compare.Difference | None = None
    losses: tuple[str, ...] = ()
    if against is not None:
        before = orjson.loads((folder / project / f"{against}.json").read_bytes())
        difference = compare.between(before, built.content)
        losses = tuple(lost_between(before, built.content, difference))
    if losses and not accept_losses:
        return Kept(path, "held", against, difference, losses)
    if not dry_run:
        _write(path, built.raw)
    return Kept(path, "written", against, difference, losses)


def _write(path: Path, raw: bytes) -> None:
    """In one piece, and never over what somebody else wrote meanwhile."""
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
    """What half or more of is gone: terms, or what a relation goes by."""
    for name, terms in before["terms"].items():
        lost = len(terms) if name not in after["terms"] else len(difference.removed.get(name, ()))
        if len(terms) >= FEW and lost * 2 >= len(terms):
            yield f"{name}: {lost} of {len(terms)} terms are gone"
    for relation in before["relations"]:
        name, attribute = relation["terms"], relation.get("attribute")
        had, has = (sum(attribute in about for about in one["terms"].get(name, {}).values()) for one in (before, after))
        if attribute is not None and had >= FEW and has * 2 <= had and name in after["terms"]:
            yield f"{name}: {had - has} of {had} terms lost {attribute!r}, which the rule {relation['rule']} goes by"
