"""Vocabularies: what a project demands of its datasets, one immutable snapshot a version (docs/vocabularies.md).

`parse` makes a `Vocabulary` of a snapshot's bytes, and refuses what is hostile. Pure: bytes come from the caller.
vocabularies/registry.py has many versions side by side, and reads them when they are first needed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import groupby
from typing import Any, Final

import jsonschema_rs
import orjson

from fedstac.domain.errors import Finding, Severity

FORMAT: Final = 1
ANY_RELATION: Final = "*"  # of a link
MOST_BYTES: Final = 32 << 20  # of a snapshot
MOST_TERMS: Final = 100_000  # of one vocabulary; CMIP7 has 1 500 variables
MOST_DEMANDS: Final = 1000  # properties, members of assets, links, relations or compositions; CMIP7 has 50
MOST_PATTERN: Final = 1000  # characters
MOST_CHECKED: Final = 4096  # characters of a value that a pattern is tried on
PLACEHOLDER: Final = re.compile(r"\{([A-Za-z0-9_:-]+)\}")
STEP: Final = re.compile(r"[A-Za-z0-9-]*")  # what a facet in an id is made of
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,62}")  # of a project, and of a version: a part of a path
RULE: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
TIME_RANGE: Final = re.compile(r"[0-9]{4,14}-[0-9]{4,14}(-clim)?")

Terms = Mapping[str, Mapping[str, Any]]  # a vocabulary: each term with its attributes


class VocabularyBroken(ValueError):
    """The bytes are no snapshot, or one that would harm: the text says what is wrong and where."""


class UnknownVersion(LookupError):
    """That version of the project's vocabulary is not here."""


class Kind(StrEnum):
    """What a property's value is."""

    STRING = "string"
    STRINGS = "strings"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DATETIME = "datetime"


class Holds(StrEnum):
    """How a property and the attribute of a term belong together."""

    ALLOWS = "allows"
    REQUIRES = "requires"
    EQUALS = "equals"
    EXISTS = "exists"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that takes linear time whatever it is tried on (RE2 syntax)."""

    text: str
    compiled: jsonschema_rs.Validator

    def fits(self, value: str) -> bool:
        """Tell whether a value matches."""
        return len(value) <= MOST_CHECKED and self.compiled.is_valid(value)


def pattern(text: str) -> Pattern:
    """Compile an expression. VocabularyBroken where it needs back-tracking, is too large, or is not anchored."""
    if len(text) > MOST_PATTERN or not (text.startswith("^") and text.endswith("$")):
        raise VocabularyBroken(f"the pattern {text[:80]!r} has to be anchored (^…$), {MOST_PATTERN} characters at most")
    try:
        schema = {"type": "string", "pattern": text}
        return Pattern(text, jsonschema_rs.validator_for(schema, pattern_options=jsonschema_rs.RegexOptions()))
    except (jsonschema_rs.ValidationError, ValueError) as error:
        raise VocabularyBroken(f"the pattern {text[:80]!r} is no regular expression in RE2 syntax") from error


@dataclass(frozen=True, slots=True)
class Property:
    """What is asked of one property of the dataset, or of one member of an asset."""

    name: str
    kind: Kind
    required: bool
    vocabulary: str | None  # the name of `terms`
    terms: Terms | None
    pattern: Pattern | None
    minimum: float | None
    # Tells whether a value is of the kind and one that the property takes. Rules say what is wrong with others. A
    # function made once: it is asked for each member of each file.
    is_met_by: Callable[[object], bool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_met_by", _test_of(self))

    def takes(self, value: str) -> bool:
        """Tell whether one value is a term, or fits the pattern; anything goes where there is neither."""
        if self.terms is not None and value in self.terms:
            return True
        if self.pattern is not None:
            return self.pattern.fits(value)
        return self.terms is None


def _test_of(demand: Property) -> Callable[[object], bool]:
    """Return what tells whether a value is right. It may say no to a right one, which is then looked at closely."""
    terms, takes, minimum = demand.terms, demand.takes, demand.minimum
    match demand.kind:
        case Kind.STRING if terms is not None and demand.pattern is None:
            return lambda value: type(value) is str and value in terms
        case Kind.STRING if terms is None and demand.pattern is None:
            return lambda value: type(value) is str
        case Kind.STRING if terms is None and demand.pattern is not None:
            fits = demand.pattern.compiled.is_valid
            return lambda value: type(value) is str and len(value) <= MOST_CHECKED and fits(value)
        case Kind.STRING:
            return lambda value: type(value) is str and takes(value)
        case Kind.STRINGS:

            def are_right(values: object) -> bool:
                if type(values) is not list or not values:
                    return False
                if len(values) == 1:
                    return type(values[0]) is str and takes(values[0])
                return all(type(entry) is str and takes(entry) for entry in values) and len(set(values)) == len(values)

            return are_right
        case Kind.INTEGER:
            return lambda value: type(value) is int and (minimum is None or value >= minimum)
        case _:
            return lambda value: False  # rare enough to be looked at closely


@dataclass(frozen=True, slots=True)
class Relation:
    """Ties a property to an attribute of the term that other properties name."""

    rule: str
    of: tuple[str, ...]
    vocabulary: str
    terms: Terms
    attribute: str | None
    property: str | None
    holds: Holds


@dataclass(frozen=True, eq=False, slots=True)
class RelationGroup:
    """Relations that follow each other and are of the same terms of the same properties. Equal to itself alone."""

    relations: tuple[Relation, ...]
    names: tuple[str, ...]  # of all properties by whose values they hold; first those that name the term


@dataclass(frozen=True, slots=True)
class Template:
    """Text with properties in braces."""

    text: str
    literals: tuple[str, ...]
    names: tuple[str, ...]

    def fill(self, properties: Mapping[str, Any]) -> str | None:
        """Return the text with the values filled in; None where one of them is no text. Of a list it is the first."""
        parts = [self.literals[0]]
        for name, literal in zip(self.names, self.literals[1:], strict=True):
            value = properties.get(name)
            if type(value) is list and value:
                value = value[0]
            if type(value) is not str:
                return None
            parts += (value, literal)
        return "".join(parts)


def template(text: str) -> Template:
    """Read a template."""
    parts = PLACEHOLDER.split(text)
    return Template(text, tuple(parts[0::2]), tuple(parts[1::2]))


@dataclass(frozen=True, slots=True)
class FileName:
    """A template of file names with one part that may be missing, the time range."""

    text: str
    head: Template
    joint: str  # between the head and the time range; empty where there is none
    tail: str

    def fits(self, name: str, head: str) -> bool:
        """Tell whether `name` is one of the names that begin with the filled `head`."""
        if not (name.startswith(head) and name.endswith(self.tail) and len(name) >= len(head) + len(self.tail)):
            return False
        middle = name[len(head) : len(name) - len(self.tail)]
        if not middle:
            return True
        return (
            bool(self.joint) and middle.startswith(self.joint) and bool(TIME_RANGE.fullmatch(middle, len(self.joint)))
        )


def file_name(text: str) -> FileName:
    """Read a template of file names; its optional part stands in brackets."""
    head, bracket, rest = text.partition("[")
    optional, _, tail = rest.partition("]") if bracket else ("", "", "")
    if bracket:
        return FileName(text, template(head), optional.replace("{time_range}", ""), tail)
    stem, dot, ending = head.rpartition(".")
    return FileName(text, template(stem), "", dot + ending)


@dataclass(frozen=True, slots=True)
class Composition:
    """A property that is put together from others."""

    rule: str
    property: str
    template: Template
    unless: Mapping[str, str]
    otherwise: Template | None

    def expected(self, properties: Mapping[str, Any]) -> str | None:
        """Return what the property has to be; None where that cannot be told."""
        if self.unless and all(properties.get(name) == value for name, value in self.unless.items()):
            return self.otherwise.fill(properties) if self.otherwise else None
        return self.template.fill(properties)


@dataclass(frozen=True, slots=True)
class Extension:
    """A STAC extension that the project takes; its URIs are spellings of the same."""

    name: str
    uris: tuple[str, ...]
    required: bool


@dataclass(frozen=True, slots=True)
class LinkRule:
    """What is asked of links with a relation."""

    rel: str
    required: bool
    type: str | None
    title: str | None
    pattern: Pattern | None  # of the href


@dataclass(frozen=True, slots=True)
class FactSource:
    """Where facts come from."""

    name: str
    version: str
    licence: str
    url: str


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A project's demands at one version. Equal to itself alone; `digest` is its identity."""

    project: str  # and the id of the collection
    version: str
    digest: str  # sha-256 of the snapshot's bytes, hexadecimal
    title: str
    sources: tuple[FactSource, ...]
    prefix: str
    id_template: Template
    file_name: FileName | None
    directory: Template | None
    institution: str
    facets: tuple[str, ...]
    extensions: tuple[Extension, ...]
    properties: Mapping[str, Property]
    assets: Mapping[str, Property]
    links: tuple[LinkRule, ...]
    terms: Mapping[str, Terms]
    relations: tuple[Relation, ...]
    compositions: tuple[Composition, ...]
    rules: Mapping[str, Severity | None] = field(default_factory=dict)  # None: switched off

    @cached_property
    def id_pattern(self) -> re.Pattern[str]:
        """Facets are letters, digits and hyphens; the version is eight digits (YYYYMMDD)."""
        parts = [re.escape(self.id_template.literals[0])]
        for name, literal in zip(self.id_template.names, self.id_template.literals[1:], strict=True):
            parts.append("([0-9]{8})" if name == "version" else "([A-Za-z0-9-]+)")
            parts.append(re.escape(literal))
        return re.compile("".join(parts))

    @cached_property
    def base_suffix(self) -> int:
        """How many characters the version adds to the base id (`.v20200101`)."""
        return len(self.id_template.literals[-2]) + 8

    @cached_property
    def relation_groups(self) -> tuple[RelationGroup, ...]:
        """The relations in their order."""
        groups = []
        for (of, _), group in groupby(self.relations, key=lambda relation: (relation.of, relation.vocabulary)):
            relations = tuple(group)
            others = (relation.property for relation in relations if relation.property is not None)
            groups.append(RelationGroup(relations, (*of, *others)))
        return tuple(groups)

    @cached_property
    def uris(self) -> Mapping[str, Extension]:
        """The accepted extensions by URI."""
        return {uri: extension for extension in self.extensions for uri in extension.uris}


@dataclass(frozen=True, slots=True)
class DatasetName:
    """A dataset's id taken apart: which lineage, which version."""

    lineage: str
    version: int | None


def name_of(collection: str, item_id: str, vocabulary: Vocabulary | None) -> DatasetName | Finding:
    """Return the lineage and version that an id stands for, or what is wrong with it.

    Without a vocabulary the lineage is the id itself and there is no version.
    """
    if vocabulary is None:
        return DatasetName(lineage=f"{collection}/{item_id}", version=None)
    if vocabulary.id_pattern.fullmatch(item_id) is None:
        form = f"{vocabulary.id_template.text} of {vocabulary.project}"
        return Finding("id-template", "/id", f"{item_id!r} is not of the form {form}")
    base = item_id[: -vocabulary.base_suffix]
    return DatasetName(lineage=f"{collection}/{base}", version=int(item_id[-8:]))


def parse(raw: bytes) -> Vocabulary:
    """Read a snapshot. VocabularyBroken where the bytes are none, or more than a snapshot may be."""
    if len(raw) > MOST_BYTES:
        raise VocabularyBroken(f"the snapshot has {len(raw)} bytes; {MOST_BYTES} are the most")
    try:
        content = orjson.loads(raw)
        if content["format"] != FORMAT:
            raise VocabularyBroken(f"the snapshot has format {content['format']!r}; this fedstac reads {FORMAT}")
        return _vocabulary(content, hashlib.sha256(raw).hexdigest())
    except VocabularyBroken:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise VocabularyBroken(f"this is no vocabulary snapshot: {type(error).__name__}: {error}"[:300]) from error


def _vocabulary(content: Mapping[str, Any], digest: str) -> Vocabulary:
    terms = {name: _terms(name, entries) for name, entries in content["terms"].items()}
    ids = template(_text(content["id_template"]))
    if ids.names[-1:] != ("version",) or ids.literals[-1] or ids.names.count("version") != 1:
        raise VocabularyBroken(f"the id template {ids.text!r} has to end in {{version}}")
    if any(
        STEP.fullmatch(literal) for literal in ids.literals[1:-1]
    ):  # where facets meet, ids can be read in many ways
        raise VocabularyBroken(f"the id template {ids.text[:200]!r} needs a dot or the like between its parts")
    for member in ("properties", "assets", "links", "relations", "compositions"):
        if len(content[member]) > MOST_DEMANDS:
            raise VocabularyBroken(f"there are {len(content[member])} {member}; {MOST_DEMANDS} are the most")
    files, folders = content["file_name_template"], content["directory_template"]
    return Vocabulary(
        project=_match(NAME, content["project"]),
        version=_match(NAME, content["version"]),
        digest=digest,
        title=_text(content["title"]),
        sources=tuple(
            FactSource(_text(s["name"]), _text(s["version"]), _text(s["licence"]), _text(s["url"]))
            for s in content["sources"]
        ),
        prefix=_text(content["prefix"]),
        id_template=ids,
        file_name=file_name(_text(files)) if files is not None else None,
        directory=template(_text(folders)) if folders is not None else None,
        institution=_text(content["institution"]),
        facets=_texts(content["facets"]),
        extensions=tuple(
            Extension(_text(e["name"]), _texts(e["uris"]), bool(e.get("required"))) for e in content["extensions"]
        ),
        properties={name: _property(name, member, terms) for name, member in content["properties"].items()},
        assets={name: _property(name, member, terms) for name, member in content["assets"].items()},
        links=tuple(_link(member) for member in content["links"]),
        terms=terms,
        relations=tuple(_relation(member, terms) for member in content["relations"]),
        compositions=tuple(_composition(member) for member in content["compositions"]),
        rules={
            _match(RULE, name): None if member == "off" else Severity(member)
            for name, member in content["rules"].items()
        },
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a string is expected, not {str(value)[:80]!r}")
    return value


def _texts(value: object, place: str = "") -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{place}: a list of strings is expected, not {str(value)[:80]!r}".lstrip(": "))
    return tuple(_text(entry) for entry in value)


def _match(form: re.Pattern[str], value: object) -> str:
    if not form.fullmatch(_text(value)):
        raise VocabularyBroken(f"{str(value)[:80]!r} is no name: {form.pattern}")
    return str(value)


def _terms(name: str, entries: object) -> Terms:
    if not isinstance(entries, dict) or len(entries) > MOST_TERMS:
        raise VocabularyBroken(f"the vocabulary {name!r} has to be an object of {MOST_TERMS} terms at most")
    for term, attributes in entries.items():
        if not isinstance(attributes, dict):
            raise VocabularyBroken(f"the term {term[:80]!r} of {name!r} has to be an object")
    return entries


def _property(name: str, member: Mapping[str, Any], terms: Mapping[str, Terms]) -> Property:
    vocabulary, expression, minimum = member.get("terms"), member.get("pattern"), member.get("minimum")
    return Property(
        name=name,
        kind=Kind(member["type"]),
        required=bool(member.get("required")),
        vocabulary=vocabulary,
        terms=terms[vocabulary] if vocabulary is not None else None,
        pattern=pattern(_text(expression)) if expression is not None else None,
        minimum=float(minimum) if minimum is not None else None,
    )


def _link(member: Mapping[str, Any]) -> LinkRule:
    expression = member.get("pattern")
    compiled = pattern(_text(expression)) if expression is not None else None
    media_type, title = (_text(member[name]) if member.get(name) is not None else None for name in ("type", "title"))
    return LinkRule(_text(member["rel"]), bool(member.get("required")), media_type, title, compiled)


def _relation(member: Mapping[str, Any], terms: Mapping[str, Terms]) -> Relation:
    holds, of = Holds(member["holds"]), _texts(member["of"])
    compares = holds is not Holds.EXISTS
    vocabulary = _text(member["terms"])
    attribute = _text(member["attribute"]) if compares else None
    if not of:
        raise VocabularyBroken(f"the relation {member['rule']!r} is of no property")
    if attribute is not None:
        for term, about in terms[vocabulary].items():
            if type(value := about.get(attribute, "")) is not str:
                _texts(value, f"{attribute} of {term[:80]!r} in {vocabulary!r}")
    return Relation(
        _match(RULE, member["rule"]),
        of,
        vocabulary,
        terms[vocabulary],
        attribute,
        _text(member["property"]) if compares else None,
        holds,
    )


def _composition(member: Mapping[str, Any]) -> Composition:
    otherwise = member.get("otherwise")
    unless = {_text(name): _text(value) for name, value in member.get("unless", {}).items()}
    return Composition(
        _match(RULE, member["rule"]), _text(member["property"]), template(_text(member["template"])), unless,
        template(_text(otherwise)) if otherwise is not None else None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ParsedVocabularies:
    """The vocabularies that a decision may ask for, parsed before it is taken: a rule reads no file."""

    versions: Mapping[tuple[str, str], Vocabulary] = field(default_factory=dict)  # by project and version
    newest: Mapping[str, Vocabulary] = field(default_factory=dict)  # by project: those that judge now

    def current(self, project: str) -> Vocabulary | None:
        """Return the version that judges now; None for a collection without a vocabulary."""
        return self.newest.get(project)

    def at(self, project: str, version: str) -> Vocabulary:
        """Return one version. UnknownVersion where it is not among these."""
        vocabulary = self.versions.get((project, version))
        if vocabulary is None:
            raise UnknownVersion(f"the vocabulary {project} {version!r} was not loaded for this decision")
        return vocabulary
