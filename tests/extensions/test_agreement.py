"""Our verdicts against those of the published schemas, on thousands of faulty items.

The published schemas (STAC 1.1.0, cmip6 3.0.2, file 2.1.0, alternate-assets 1.2.0) judge an item as it is served. What
they refuse, we refuse. What we refuse beside is in STRICTER, with the reason. The schema that is generated from the
vocabulary says the same as those of our rules that it stands for.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from typing import Any

import jsonschema_rs
import orjson
import pytest

from fedstac.api.http import links
from fedstac.db.search import ServedItem
from fedstac.domain import documents, strict_json
from fedstac.domain.errors import Finding, MalformedJson, errors_in
from fedstac.domain.schemas import schema_of
from fedstac.domain.stac_versions import upgraded
from fedstac.domain.vocabulary import Vocabulary
from fedstac.vocabularies.checker import VocabularyChecker, open_checker
from tests.extensions import corpus, published
from tests.extensions.corpus import Json
from tests.support.places import SHARED

pytestmark = [pytest.mark.shared, pytest.mark.long]

SEED = 20261124
MUTANTS = 24_000
VERSION = "6.2.60.0"  # of the vocabulary, the one that the published schema was made from
BASE = "https://west.example.org"
NOW = datetime(2026, 11, 24, tzinfo=UTC)
CMIP6 = published.EXTENSION.format("cmip6/v3.0.2")

Place = str  # a regular expression for the pointer of a finding


@dataclass(frozen=True)
class Difference:
    """Where we refuse and the published schemas do not: findings of a rule, at some places, for some values."""

    rule: str
    why: str
    at: Place = ""
    where: Callable[[Json, Finding], bool] = field(default=lambda document, finding: True)

    def explains(self, document: Json, finding: Finding) -> bool:
        fits = finding.rule == self.rule and re.search(self.at, finding.pointer) is not None
        return fits and self.where(document, finding)


def at(document: Json, pointer: str) -> Any:
    value: Any = document
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        value = value[int(name)] if isinstance(value, list) else value.get(name)
    return value


def _empty(document: Json, finding: Finding) -> bool:
    return bool(at(document, finding.pointer) == [])


def _beyond(document: Json, finding: Finding) -> bool:
    return isinstance(at(document, finding.pointer), float) and at(document, finding.pointer) >= 2**53


def _odd(document: Json, finding: Finding) -> bool:
    checksum = at(document, finding.pointer)
    return isinstance(checksum, str) and len(checksum) % 2 == 1


def _climbs(document: Json, finding: Finding) -> bool:
    return ".." in str(at(document, finding.pointer)).split("/")


LISTS = "/properties/cmip6:(activity_id|conventions|realm|source_type)"
IN_ALTERNATE = "^/assets/[^/]*/alternate/"
TIMES = "^/(properties/(start_|end_)?datetime|assets/[^/]*/(created|updated))$"
STRICTER = (
    Difference("id-agrees-with-properties", "permission goes by the properties, the lineage by the id"),
    Difference("base-id", "lineage and title are the id without its version, or searches for a lineage miss it"),
    Difference("version", "`version` is what the id says, and versions are ordered as dates"),
    Difference("file-name", "a file under another dataset's name is a file of another dataset to whoever downloads it"),
    Difference("source-institution", "a schema cannot tie values together: models are registered for institutions"),
    Difference("source-activity", "a schema cannot tie values together: models take part in activities"),
    Difference("experiment-activity", "a schema cannot tie values together: experiments belong to activities"),
    Difference("sub-experiment", "a schema cannot tie values together: experiments have their sub-experiments"),
    Difference("model-components", "a schema cannot tie values together: experiments require and allow components"),
    Difference("table-variable", "a schema cannot tie values together: tables have variables with units and so on"),
    Difference("member-id", "the member id is put together from sub-experiment and variant"),
    Difference("checksum", "ESGF's services took `abcd`: a checksum that no function gives proves nothing"),
    Difference("tracking-id", "two files with one tracking id cannot be told apart by a handle server"),
    Difference("alternate-name", "whose replica an entry is decides who may write it"),
    Difference("geometry", "PostGIS has to take it: rings close, degrees are degrees, no collections",
               "^/(geometry|bbox)"),
    Difference("datetime", "year 0, seconds that leap and a start after the end cannot be searched", "^/properties"),
    Difference("type", "year 0 and seconds that leap are no moments that a database keeps", TIMES),
    Difference("href", "browsers run some addresses, downloaders read local files by others", "/href$"),
    Difference("extension", "schemas that nobody here knows would be promised and not checked", "^/stac_extensions/"),
    Difference("type", "an item that lists none is in no facet; the schema has its minItems misplaced", LISTS + "$",
               _empty),
    Difference("type", "a value listed twice is counted twice in facets", LISTS + "/[0-9]+$"),
    Difference("type", "no file has so many bytes, and JSON numbers of that size are not exact", "/size$", _beyond),
    Difference("type", "`project` is the collection's name, where it is said", "^/properties/project$"),
    Difference("pattern", "`project` is the collection's name, where it is said", "^/properties/project$"),
    Difference("pattern", "the schema forgot to anchor the indices: whatever ends in a digit fits", "_index$"),
    Difference("link", "the schema's dots stand for any letter: furtherinfoXes-doc.org is another host",
               "^/links/[0-9]+/href$"),
    Difference("file", "downloaders read sizes and checksums in alternates; the schema does not look there",
               IN_ALTERNATE),
    Difference("file", "a byte has two digits", "/file:checksum$", _odd),
    Difference("file", "a downloader that joins such a path to its root leaves it", "/file:local_path$", _climbs),
    Difference("alternate-assets", "the schema looks among the keys of `assets`, and so checks none",
               "/alternate(:name$|$|/)"),
)  # fmt: skip
GENERATED = frozenset(  # the rules that the generated schema stands for
    ("id", "id-template", "collection", "required", "unknown", "type", "term", "pattern", "protocol", "extension",
     "cite-as", "link")
)  # fmt: skip


@cache
def checker() -> VocabularyChecker:
    return open_checker()


@cache
def vocabulary() -> Vocabulary:
    return checker().vocabularies.at("CMIP6", VERSION)


@cache
def oracle() -> jsonschema_rs.Validator:
    return published.validator(SHARED / "schemas", *published.ITEM)


@cache
def bases() -> list[Json]:
    """Return items that both sides take: real ones, and generated ones that have whatever an item may have."""
    items = [*corpus.read(SHARED / "data/cmip6/west-items.ndjson.gz", 400), *corpus.generated(400)]
    return [item for item in items if not errors_in(checker().findings(item, "CMIP6", vocabulary()))]


def served(document: Json) -> Json:
    """Return the item as the server would serve it, with the spelling of the project's URI that the oracle has."""
    item = dict(document)
    if isinstance(item.get("properties"), dict):
        written = {name: value for name, value in item["properties"].items() if not name.startswith("fedstac:")}
        state = {"latest": True, "retracted": False, "created": "2026-11-24T00:00:00.000000Z"}
        state |= {"updated": "2026-11-24T00:00:00.000000Z", "fedstac:state": "published"}
        item["properties"] = written | state | {"fedstac:cv_version": VERSION}
    if isinstance(item.get("links"), list):
        collection = f"{BASE}/collections/CMIP6"
        own = {"self": f"{collection}/items/x", "root": BASE + "/", "parent": collection, "collection": collection}
        kept = [link for link in item["links"] if not (isinstance(link, dict) and link.get("rel") in _SERVER)]
        item["links"] = [{"rel": rel, "href": href, "type": "application/json"} for rel, href in own.items()] + kept
    if isinstance(item.get("stac_extensions", []), list):
        uris = [CMIP6 if uri in _SPELLINGS else uri for uri in item.get("stac_extensions", [])]
        ours = [uri for uri in uris if isinstance(uri, str) and documents.OUR_EXTENSION in uri]
        item["stac_extensions"] = [uri for uri in uris if uri not in ours] + [BASE + documents.EXTENSION_PATH]
    return item


_SERVER = sorted(documents.SERVER_LINKS)  # lists: what is looked for may be unhashable
_SPELLINGS = ["https://esgf.github.io/stac-transaction-api/cmip6/v3.0.4/schema.json"]


def mutants() -> Iterator[tuple[str, Json]]:
    """Yield what was done, and the document as it comes through the door; what chance makes seldom is made here."""
    first = bases()[0]
    slip = {"rel": "describedby", "href": "https://furtherinfoXes-doc.org/CMIP6"}
    yield "a dot for any letter", {**first, "links": [*first["links"], slip]}
    for name, value in (("cmip6:forcing_index", "x1"), ("project", "CMIP5"), ("project", 6), ("size", 1e300)):
        yield f"{name} = {value}", {**first, "properties": {**first["properties"], name: value}}
    terms = {name: sorted(demand.terms or ()) for name, demand in vocabulary().properties.items() if ":" in name}
    for done, item in corpus.mutants(bases(), SEED, MUTANTS, terms):
        try:
            yield done, strict_json.parse(orjson.dumps(item))  # type: ignore[misc]
        except MalformedJson:
            continue


def test_verdicts_agree() -> None:
    """On every mutant: ours is that of the published schemas, or stricter as the table has it."""
    counts: Counter[str] = Counter()
    used: Counter[Difference] = Counter()
    laxer, unexplained, apart = [], [], []
    generated = jsonschema_rs.validator_for(schema_of(vocabulary()), validate_formats=True)
    for done, document in mutants():
        item = served(upgraded(document)[0])
        theirs = oracle().is_valid(item)
        findings = checker().findings(document, "CMIP6", vocabulary())
        errors = errors_in(findings)
        counts[f"published {'takes' if theirs else 'refuses'}, we {'refuse' if errors else 'take'}"] += 1
        if not theirs and not errors:
            laxer.append((done, [error.message[:200] for error in oracle().iter_errors(item)]))
        if theirs:
            for finding in errors:
                reasons = [one for one in STRICTER if one.explains(document, finding)]
                used.update(reasons)
                if not reasons:
                    unexplained.append((done, finding))
        if not any(finding.rule == "shape" for finding in findings):  # by which all other rules are held back
            listed = any(
                f.rule in GENERATED or (f.rule, f.pointer) == ("stac-core", "/stac_extensions") for f in findings
            )
            if generated.is_valid(item) is listed:
                apart.append((done, findings))
    print(f"seed {SEED}: {dict(counts)}; stricter: {sum(used.values())} findings")
    assert sum(counts.values()) >= 20_000
    assert min(counts.values()) > 1000
    assert not laxer[:5]
    assert not unexplained[:5]
    assert not apart[:5], "the generated schema says something else than the rules"
    never = [one.why for one in STRICTER if not used[one]]
    assert not never, "differences that do not occur"


def test_there_are_hundreds_of_sound_items_to_start_from() -> None:
    assert len(bases()) > 700
    assert [item["id"] for item in bases() if not oracle().is_valid(served(item))] == []


def test_what_is_judged_is_what_is_served() -> None:
    for document in bases()[::20]:
        draft, _ = checker().draft(document, "CMIP6", vocabulary())
        stored: dict[str, Any] = {
            "collection": "CMIP6", "id": document["id"], "state": "published", "latest": True, "created": NOW,
            "updated": NOW, "cv_version": VERSION, "document": draft.text,
        }  # fmt: skip
        required: dict[str, Any] = {
            each.name: stored.get(each.name) for each in fields(ServedItem) if each.default is MISSING
        }
        record = ServedItem(**required)
        item, expected = json.loads(links.item_text(BASE, record)), served(document)
        for link in (*item["links"][:4], *expected["links"][:4]):
            del link["href"], link["type"]
        assert item == expected


def test_the_vocabulary_has_no_term_that_the_published_schema_lacks() -> None:
    schema = json.loads((SHARED / "schemas/stac-extensions.github.io/cmip6/v3.0.2/schema.json").read_text())
    fields = schema["definitions"]["item_fields"]["properties"]
    ours = vocabulary().properties
    assert [name for name in ours if name.startswith("cmip6:") and name not in fields] == []
    assert [name for name in fields if name.startswith("cmip6:") and name not in ours] == []
    missing = {}
    for name, published_field in fields.items():
        terms = published_field.get("enum") or published_field.get("items", {}).get("enum")
        if terms is None:
            continue
        own_terms = ours[name].terms
        assert own_terms is not None, name
        assert set(own_terms) <= set(terms), name
        missing[name] = sorted(set(terms) - set(own_terms))
    assert {name: terms for name, terms in missing.items() if terms} == {
        # in no table of the data request: levels that were put behind a name, and a name in lower case
        "cmip6:variable_id": ["hus19", "hus8", "modelcellareai"]
    }


def test_the_second_spelling_of_the_extension_is_the_same() -> None:
    document = bases()[0]
    uris = [_SPELLINGS[0] if uri == CMIP6 else uri for uri in document["stac_extensions"]]
    assert uris != document["stac_extensions"]
    same = checker().findings({**document, "stac_extensions": uris}, "CMIP6", vocabulary())
    assert same == checker().findings(document, "CMIP6", vocabulary())
