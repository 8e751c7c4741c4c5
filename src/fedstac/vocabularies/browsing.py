"""What a vocabulary says, for people who look: facets, terms, where a term is used, what a misspelt one meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from rapidfuzz import fuzz, process, utils

from fedstac.domain.vocabulary import Relation, Terms, Vocabulary

LEAST: Final = 50.0  # of 100: how alike a suggestion is at least


@dataclass(frozen=True, slots=True)
class TermEntry:
    """A term of one vocabulary of a project."""

    vocabulary: str
    term: str
    attributes: dict[str, Any]

    @property
    def title(self) -> str:
        return str(self.attributes.get("title", ""))


@dataclass(frozen=True, slots=True)
class Use:
    """Terms that speak of a term, by the attribute in which they do."""

    vocabulary: str
    attribute: str | None  # None: it is a part of their name
    rule: str
    terms: tuple[str, ...]


def properties_of(vocabulary: Vocabulary, name: str) -> list[str]:
    """Return the properties that take their values from a vocabulary."""
    return [each.name for each in vocabulary.properties.values() if each.vocabulary == name]


def facet(vocabulary: Vocabulary, name: str) -> str | None:
    """Return the vocabulary that is meant: by its name, or by a property with its prefix or without."""
    for full in (name, f"{vocabulary.prefix}:{name}"):
        about = vocabulary.properties.get(full) or vocabulary.assets.get(full)
        if about is not None and about.vocabulary is not None:
            return about.vocabulary
    return name if name in vocabulary.terms else None


def facets(vocabulary: Vocabulary) -> dict[str, Terms]:
    """Return the vocabularies, by the names of their properties where they have one."""
    return {(properties_of(vocabulary, name) or [name])[0]: terms for name, terms in vocabulary.terms.items()}


def find(vocabulary: Vocabulary, term: str) -> list[TermEntry]:
    """Return the term in every vocabulary that has it."""
    return [TermEntry(name, term, dict(terms[term])) for name, terms in vocabulary.terms.items() if term in terms]


def uses(vocabulary: Vocabulary, entry: TermEntry) -> list[Use]:
    """Return where relations lead to the term: sources of an institution, tables of a variable."""
    uses_by_place: dict[tuple[str, str | None], Use] = {}
    for relation in vocabulary.relations:
        about = vocabulary.properties.get(relation.property or "")
        if relation.attribute is not None and about is not None and about.vocabulary == entry.vocabulary:
            terms = tuple(
                term
                for term, attributes in relation.terms.items()
                if _says(attributes.get(relation.attribute), entry.term)
            )
            uses_by_place[relation.vocabulary, relation.attribute] = Use(
                relation.vocabulary, relation.attribute, relation.rule, terms
            )
        for place in _places(vocabulary, relation, entry.vocabulary):
            terms = tuple(term for term in relation.terms if _part(term, place, len(relation.of)) == entry.term)
            uses_by_place[relation.vocabulary, None] = Use(relation.vocabulary, None, relation.rule, terms)
    return [use for use in uses_by_place.values() if use.terms]


def _places(vocabulary: Vocabulary, relation: Relation, name: str) -> Iterator[int]:
    """Yield where in a joined name the terms of that vocabulary stand."""
    if len(relation.of) > 1:
        for place, of in enumerate(relation.of):
            about = vocabulary.properties.get(of)
            if about is not None and about.vocabulary == name:
                yield place


def _part(term: str, place: int, count: int) -> str | None:
    parts = term.split(".")
    return parts[place] if len(parts) == count else None


def _says(value: object, term: str) -> bool:
    texts = value if isinstance(value, list) else [value]
    return any(type(entry) is str and term in entry.split("|") for entry in texts)


def suggestions(terms: Terms, text: str, limit: int = 5) -> list[tuple[str, float]]:
    """Return the terms that are most like a text, with how alike they are (0 to 100); titles count a little."""
    if text in terms:
        return [(text, 100.0)]
    names = sorted(terms)
    by_name = process.extract(text, names, scorer=fuzz.WRatio, processor=utils.default_process, limit=None)
    exactness = {name: fuzz.ratio(text, name) for name in names}
    titles = {name: str(terms[name].get("title", "")) for name in names if terms[name].get("title")}
    by_title = process.extract(text, titles, scorer=fuzz.token_set_ratio, processor=utils.default_process, limit=None)
    scores = {name: score for name, score, _ in by_name}
    for _, score, name in by_title:
        scores[name] = max(scores[name], 0.8 * score)
    by_likeness = sorted(scores, key=lambda name: (-round(scores[name], 3), -exactness[name], name))
    return [(name, round(scores[name], 1)) for name in by_likeness[:limit] if scores[name] >= LEAST]
