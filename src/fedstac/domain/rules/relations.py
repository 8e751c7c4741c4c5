"""Rules that tie properties together: the relations and compositions of a snapshot, each under its own name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from fedstac.domain.errors import Finding, pointer
from fedstac.domain.rules.properties import are_valid
from fedstac.domain.vocabulary import Composition, Holds, Relation, RelationGroup, Vocabulary
from fedstac.domain.wording import asking, brief, enumerated, nearest

Properties = Mapping[str, Any]


def check(document: Mapping[str, Any], vocabulary: Vocabulary) -> Iterator[Finding]:
    """Yield the relations that do not hold, where the properties of a relation are valid by themselves."""
    properties = document["properties"]
    for group in vocabulary.relation_groups:
        if not _hold(group, properties):
            yield from _check_group(group, properties, vocabulary)


def _hold(group: RelationGroup, properties: Properties) -> bool:
    """Tell whether the relations hold. False also where that has to be looked at closely."""
    values = [properties.get(name) for name in group.names]
    try:
        return _hold_for(group, tuple([tuple(value) if type(value) is list else value for value in values]))
    except TypeError:  # a value is no text
        return False


@lru_cache(maxsize=8192)  # datasets share their models, experiments and variables
def _hold_for(group: RelationGroup, values: tuple[Any, ...]) -> bool:
    """Tell whether the relations hold for the values of the group's properties, lists as tuples."""
    properties = {
        name: list(value) if type(value) is tuple else value for name, value in zip(group.names, values, strict=True)
    }
    term = _term(group.relations[0], properties)
    if term is None:
        return False
    for relation in group.relations:
        if relation.property is not None and relation.attribute is not None:
            attribute, value = term.get(relation.attribute), properties[relation.property]
            if attribute is not None and value is not None and not _holds(relation.holds, attribute, value):
                return False
    return True


def _term(relation: Relation, properties: Properties) -> Mapping[str, Any] | None:
    """Return the term that properties name. TypeError where one of them is no text."""
    names = [properties.get(name) for name in relation.of]
    return relation.terms.get(".".join(names) if len(names) > 1 else names[0])  # type: ignore[arg-type]


def _check_group(group: RelationGroup, properties: Properties, vocabulary: Vocabulary) -> Iterator[Finding]:
    for relation in group.relations:
        names = [properties.get(name) for name in relation.of]
        try:
            term = _term(relation, properties)
        except TypeError:  # one of them is no text, which the rule type says
            continue
        if term is None:
            if are_valid(relation.of, properties, vocabulary):
                yield from _no_such_term(relation, names, vocabulary)  # type: ignore[arg-type]  # they name no term
        elif relation.property is not None and relation.attribute is not None:
            attribute, value = term.get(relation.attribute), properties.get(relation.property)
            if attribute is not None and value is not None and not _holds(relation.holds, attribute, value):
                yield from _disagreement(relation, attribute, value, properties, vocabulary)


def check_compositions(document: Mapping[str, Any], vocabulary: Vocabulary) -> Iterator[Finding]:
    """Yield the properties that are put together from others, such as the member id, and differ from these."""
    properties = document["properties"]
    for composition in vocabulary.compositions:
        value = properties.get(composition.property)
        expected = composition.expected(properties)
        if value is not None and expected is not None and value != expected:
            yield _composed_otherwise(composition, value, expected)


def _no_such_term(relation: Relation, names: Sequence[str], vocabulary: Vocabulary) -> Iterator[Finding]:
    """Yield that the combination is the fault; a single property that names no term has a finding of its own."""
    if len(names) == 1 and relation.holds is not Holds.EXISTS:
        return
    last, front = relation.of[-1].rpartition(":")[2], ".".join(names[:-1]) + "."
    within = [term[len(front) :] for term in relation.terms if term.startswith(front)] if len(names) > 1 else []
    suggestion = nearest(names[-1], within or relation.terms)
    pairs = " and ".join(f"{name.rpartition(':')[2]} `{value}`" for name, value in zip(relation.of, names, strict=True))
    message = asking(f"{vocabulary.project} has no {pairs} together" if len(names) > 1
                     else f"{vocabulary.project} has no {last} `{names[0]}`", suggestion)  # fmt: skip
    yield Finding(relation.rule, pointer("properties", relation.of[-1]), message, suggestion=suggestion)


def _holds(holds: Holds, attribute: Any, value: Any) -> bool:
    if type(attribute) is not list:
        if type(value) is not list:
            return bool(value == attribute)
        attribute = [attribute]
    elif type(value) is str and holds is Holds.ALLOWS:
        return value in attribute
    values = value if type(value) is list else (value,)
    match holds:
        case Holds.ALLOWS:
            return all(value in attribute for value in values)
        case Holds.REQUIRES:
            return all(any(one in values for one in entry.split("|")) for entry in attribute)
        case _:
            return len(attribute) == len(values) and all(value in attribute for value in values)


def _disagreement(
    relation: Relation, attribute: Any, value: Any, properties: Properties, vocabulary: Vocabulary
) -> Iterator[Finding]:
    assert relation.property is not None
    if not are_valid((*relation.of, relation.property), properties, vocabulary):
        return
    options = [str(entry) for entry in attribute] if type(attribute) is list else [str(attribute)]
    whose = ", ".join(f"{name.rpartition(':')[2]} `{properties[name]}`" for name in relation.of)
    short = relation.property.rpartition(":")[2]
    actual = ", ".join(f"`{entry}`" for entry in value) if type(value) is list else f"`{value}`"
    verb = {Holds.ALLOWS: "allows", Holds.REQUIRES: "requires"}.get(relation.holds, "has")
    message = f"{whose} {verb} the {short} {enumerated(options)}, not {actual}"
    yield Finding(relation.rule, pointer("properties", relation.property), message[:600],
                  suggestion=options[0] if len(options) == 1 else None)  # fmt: skip


def _composed_otherwise(composition: Composition, value: object, expected: str) -> Finding:
    message = f"`{composition.property}` is {brief(value)}; from the other properties it is `{expected[:120]}`"
    return Finding(composition.rule, pointer("properties", composition.property), message, suggestion=expected)
