"""From what projects publish to snapshots: each layout, what is taken from it, and what comes of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import orjson
import pytest

from fedstac.domain import vocabulary
from fedstac.vocabularies import importing
from fedstac.vocabularies.sources import VocabularyRefused
from tests.vocabularies.publishers import (
    CMIP6_FILES,
    CMIP6_RECIPE,
    CMIP7_FILES,
    CMIP7_RECIPE,
    TABLES,
    UNIVERSE_FILES,
    Json,
    pack,
    property_of,
    recipes,
    write,
)


@pytest.fixture
def cv(tmp_path: Path) -> Path:
    return recipes(tmp_path / "cv")


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    return write(tmp_path / "tables", {"table_variables.json": TABLES}) / "table_variables.json"


@pytest.fixture
def universe(tmp_path: Path) -> Path:
    return pack(tmp_path / "universe.tar.gz", UNIVERSE_FILES, top="WCRP-universe/")


def changed(files: dict[str, Any], name: str, content: Json | str) -> dict[str, Any]:
    return {**copy.deepcopy(files), name: content}


def test_cmip6_cvs(tmp_path: Path, cv: Path, tables: Path) -> None:
    built = importing.build(write(tmp_path / "CVs", CMIP6_FILES), cv, tables=tables)
    made = built.vocabulary
    assert (made.project, made.version) == ("CMIP6", "6.2.1.0")
    assert made.terms["source_id"]["ModelA"] == {"title": "Model A", "institution_id": ["AWI"]}
    assert made.terms["experiment_id"]["historical"] == {
        "title": "the recent past", "allowed_model_components": ["AOGCM", "AER"],
    }  # fmt: skip
    assert made.terms["table_variable"] == {"Amon.tas": {"units": "K"}}
    assert made.terms["variable_id"] == {"tas": {"title": "Air Temperature"}}
    assert made.terms["variable_units"] == {"K": {}}
    assert made.sources[0].version == "6.2.1.0"
    assert built.warnings == ()


def test_a_pattern_is_written_so_that_every_engine_reads_it_alike(tmp_path: Path, cv: Path, tables: Path) -> None:
    made = importing.build(write(tmp_path / "CVs", CMIP6_FILES), cv, tables=tables).vocabulary
    pattern = made.properties["cmip6:variant_label"].pattern
    assert pattern is not None
    assert pattern.text == "^r[0-9]+$"


def test_what_no_rule_goes_by_is_left_out(tmp_path: Path, cv: Path, tables: Path) -> None:
    built = importing.build(write(tmp_path / "CVs", CMIP6_FILES), cv, tables=tables)
    assert b"CC BY" not in built.raw.partition(b'"terms"')[2]
    assert "mip_era" not in built.vocabulary.terms
    assert "required_model_components" not in built.vocabulary.terms["experiment_id"]["historical"]


def test_the_same_source_gives_the_same_bytes(tmp_path: Path, cv: Path, tables: Path) -> None:
    one = importing.build(write(tmp_path / "one", CMIP6_FILES), cv, tables=tables)
    backwards = dict(reversed(CMIP6_FILES.items()))
    two = importing.build(pack(tmp_path / "two.tar.gz", backwards), cv, tables=tables)
    assert one.raw == two.raw
    assert one.vocabulary.digest == two.vocabulary.digest


def test_the_form_of_a_snapshot(tmp_path: Path, cv: Path, tables: Path) -> None:
    """One line for each term, no spaces between tokens (docs/vocabularies.md)."""
    built = importing.build(write(tmp_path / "CVs", CMIP6_FILES), cv, tables=tables)
    lines = built.raw.decode().splitlines()
    assert '"AWI":{"title":"Bremerhaven"},' in lines
    assert b"".join(built.raw.split(b"\n")) == orjson.dumps({**built.content, "terms": _sorted(built.content["terms"])})
    assert vocabulary.parse(built.raw).digest == built.vocabulary.digest


def _sorted(terms: dict[str, Any]) -> dict[str, Any]:
    return {name: dict(sorted(entries.items())) for name, entries in sorted(terms.items())}


def test_cmip7_in_the_layout_of_esgvoc(tmp_path: Path, cv: Path, universe: Path) -> None:
    built = importing.build(write(tmp_path / "CVs", CMIP7_FILES), cv, universe=universe)
    made = built.vocabulary
    assert (made.project, made.version) == ("CMIP7", "1.2.3")
    assert made.terms["activity"] == {"CMIP": {"title": "The DECK"}}
    assert made.terms["experiment"] == {"piControl": {"activity": "CMIP"}}
    assert made.terms["branded_variable"] == {"tas_tavg": {"cf_units": "K"}}
    assert made.terms["variable_units"] == {"K": {}}
    assert made.properties["cmip7:realm"].kind is vocabulary.Kind.STRINGS
    assert made.properties["cmip7:branch_time"].kind is vocabulary.Kind.NUMBER
    assert not made.properties["cmip7:parent_experiment_id"].required
    label = made.properties["cmip7:variant_label"]
    assert label.takes("r12")
    assert not label.takes("r1i1")
    assert made.assets["cmip7:tracking_id"].takes("hdl:0123abcd")
    assert [(link.rel, link.title) for link in made.links] == [("related", "Errata issue")]
    assert list(made.uris) == ["https://example.org/cmip7/v9.0.0/schema.json"]
    assert made.sources[0].version == "1.0.6"


def test_what_is_odd_about_a_source_is_told(tmp_path: Path, cv: Path, universe: Path) -> None:
    warnings = importing.build(write(tmp_path / "CVs", CMIP7_FILES), cv, universe=universe).warnings
    assert any("universe 1.0.5; it is resolved against 1.0.6" in warning for warning in warnings)
    assert any("'gone' is not in the universe" in warning for warning in warnings)
    assert any("cf_units has space around it" in warning for warning in warnings)


def test_an_archive_gives_what_its_folder_gives(tmp_path: Path, cv: Path, universe: Path) -> None:
    folder = importing.build(write(tmp_path / "CVs", CMIP7_FILES), cv, universe=universe)
    archive = importing.build(pack(tmp_path / "CVs.tar.gz", CMIP7_FILES), cv, universe=universe)
    assert folder.raw == archive.raw


def test_a_source_without_a_number_needs_one(tmp_path: Path, cv: Path, tables: Path) -> None:
    unnumbered = {name: {key: value for key, value in content.items() if key != "version_metadata"}
                  for name, content in CMIP6_FILES.items()}  # fmt: skip
    source = write(tmp_path / "CVs", unnumbered)
    with pytest.raises(VocabularyRefused, match="--version"):
        importing.build(source, cv, tables=tables)
    assert importing.build(source, cv, tables=tables, version="2026.11.24").vocabulary.version == "2026.11.24"


def test_a_second_snapshot_of_one_source_names_that_source(tmp_path: Path, cv: Path, tables: Path) -> None:
    made = importing.build(write(tmp_path / "CVs", CMIP6_FILES), cv, tables=tables, version="6.2.1.0+1").vocabulary
    assert (made.version, made.sources[0].version) == ("6.2.1.0+1", "6.2.1.0")


def test_what_a_term_is_called_can_be_compared_with(tmp_path: Path, tables: Path) -> None:
    """As in CORDEX-CMIP6, where a domain's name is a property."""
    relation = {**CMIP6_RECIPE["relations"][0], "rule": "domain", "of": ["cmip6:domain_id"], "terms": "domain_id",
                "attribute": "domain", "property": "cmip6:domain", "holds": "equals"}  # fmt: skip
    recipe = copy.deepcopy(CMIP6_RECIPE)
    recipe["properties"] |= property_of("domain_id") | property_of("domain")
    recipe["values_of"]["domain"] = "domain_id.domain"
    recipe["relations"].append(relation)
    domains = {"domain_id": {"EUR-12": {"domain": "Europe", "domain_id": "EUR-12"}}}
    built = importing.build(
        write(tmp_path / "CVs", changed(CMIP6_FILES, "CMIP6_domain_id.json", domains)),
        write(tmp_path / "cv", {"CMIP6/project.json": recipe}), tables=tables,
    )  # fmt: skip
    assert built.vocabulary.terms["domain_id"] == {"EUR-12": {"title": "Europe", "domain": "Europe"}}
    assert built.vocabulary.terms["domain"] == {"Europe": {}}
    assert built.warnings == ()


def test_a_relation_to_a_term_that_is_not_there_is_told_and_tolerated(tmp_path: Path, cv: Path, tables: Path) -> None:
    sources = copy.deepcopy(CMIP6_FILES["CMIP6_source_id.json"])
    sources["source_id"]["ModelA"]["institution_id"] = ["AWI", "NOBODY"]
    built = importing.build(
        write(tmp_path / "CVs", changed(CMIP6_FILES, "CMIP6_source_id.json", sources)), cv, tables=tables
    )
    assert built.warnings == ("source-institution: 1 times a term that is not there: 'ModelA → NOBODY'",)


def test_changes_by_hand_go_through_to_what_relations_compare(tmp_path: Path, tables: Path) -> None:
    recipe = {**CMIP6_RECIPE, "changes": {"variable_units": {"why": "the schema", "leave_out": ["K"], "add": ["degC"]}}}
    cv = write(tmp_path / "cv", {"CMIP6/project.json": recipe})
    made = importing.build(write(tmp_path / "CVs", CMIP6_FILES), cv, tables=tables).vocabulary
    assert made.terms["variable_units"] == {"degC": {}}
    assert made.terms["table_variable"] == {"Amon.tas": {}}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no layout": ({"a.json": {"b": 1}}, "none of the layouts"),
    "mixed versions": (
        changed(CMIP6_FILES, "CMIP6_realm.json",
                {"realm": {"atmos": ""}, "version_metadata": {"CV_collection_version": "6.2.2.0"}}),
        "mixes the versions 6.2.1.0, 6.2.2.0",
    ),
    "an empty vocabulary": (changed(CMIP6_FILES, "CMIP6_source_id.json", {"source_id": {}}), "'source_id' is empty"),
    "no such vocabulary": ({k: v for k, v in CMIP6_FILES.items() if "realm" not in k}, "'realm' is empty"),
    "terms of a wrong type": (changed(CMIP6_FILES, "CMIP6_realm.json", {"realm": {"atmos": 3}}), "has to be an object"),
    "terms that are no text": (changed(CMIP6_FILES, "CMIP6_table_id.json", {"table_id": ["Amon", 3]}), "a string"),
    "a vocabulary of a wrong type": (
        changed(CMIP6_FILES, "CMIP6_realm.json", {"realm": "atmos"}), "has to be an object",
    ),
    "no object": (changed(CMIP6_FILES, "CMIP6_realm.json", "[]"), "has to be an object"),
    "an attribute of a wrong type": (
        changed(CMIP6_FILES, "CMIP6_source_id.json", {"source_id": {"A": {"institution_id": [1]}}}), "list of strings",
    ),
    "a path in a term": (changed(CMIP6_FILES, "CMIP6_source_id.json", {"source_id": {"../A": {}}}), "ids and paths"),
    "a term with a control character": (
        changed(CMIP6_FILES, "CMIP6_realm.json", {"realm": {"at\x1b[2Jmos": ""}}), "is no term",
    ),
    "a term that runs backwards": (changed(CMIP6_FILES, "CMIP6_realm.json", {"realm": {"at\u202emos": ""}}), "no term"),
    "an over-long term": (changed(CMIP6_FILES, "CMIP6_realm.json", {"realm": {"a" * 5000: ""}}), "is no term"),
    "other templates": (
        changed(CMIP6_FILES, "CMIP6_DRS.json",
                {"DRS": {"directory_path_template": "<activity_id>", "filename_template": "<variable_id><source_id>"}}),
        "bring project.json in line",
    ),
    "a million terms": (
        changed(CMIP6_FILES, "CMIP6_table_id.json", {"table_id": [f"t{n}" for n in range(1_000_000)]}), "are the most",
    ),
    "keys that are there twice": (
        changed(CMIP6_FILES, "CMIP6_realm.json", '{"realm": {"atmos": "", "atmos": "x"}}'), "more than once",
    ),
    "deep JSON": (changed(CMIP6_FILES, "CMIP6_realm.json", '{"realm":' + "[" * 5000 + "]" * 5000 + "}"), "deep"),
    "no JSON": (changed(CMIP6_FILES, "CMIP6_realm.json", '{"realm": {'), "CMIP6_realm.json"),
    "NaN": (changed(CMIP6_FILES, "CMIP6_realm.json", '{"realm": {"atmos": NaN}}'), "CMIP6_realm.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_source_that_cannot_be_trusted_is_refused(case: str, tmp_path: Path, cv: Path, tables: Path) -> None:
    files, reason = REFUSED[case]
    with pytest.raises(VocabularyRefused, match=reason):
        importing.build(write(tmp_path / "CVs", files), cv, tables=tables)


REFUSED_ESGVOC: dict[str, tuple[dict[str, Any], str]] = {
    "no context": ({k: v for k, v in CMIP7_FILES.items() if k != "activity/000_context.jsonld"}, "is missing"),
    "a context that names no universe": (
        changed(CMIP7_FILES, "activity/000_context.jsonld", {"@context": {"@base": "https://evil.example/../x/"}}),
        "names no data type",
    ),
    "an id that is a path": (
        changed(CMIP7_FILES, "activity/cmip.json", {"id": "../../etc/passwd", "type": "activity"}), "ids and paths",
    ),
    "a pattern that runs away": (
        changed(CMIP7_FILES, "tracking_id/uuid.json", {"id": "uuid", "type": "tracking_id", "regex": "^(a+)+$"}),
        "repeats a repetition",
    ),
    "a pattern that is none": (
        changed(CMIP7_FILES, "tracking_id/uuid.json", {"id": "uuid", "type": "tracking_id", "regex": "^[a$"}),
        "no regular expression",
    ),
    "an unknown type": (changed(CMIP7_FILES, "catalog_specs.yaml", str(CMIP7_FILES["catalog_specs.yaml"]).replace(
        "string_array", "matrix")), "has the type 'matrix'"),
    "terms from nowhere": (changed(CMIP7_FILES, "catalog_specs.yaml", str(CMIP7_FILES["catalog_specs.yaml"]).replace(
        "source_collection: realm", "source_collection: nowhere")), "takes its terms from 'nowhere'"),
    "one value of two terms": (
        changed(CMIP7_FILES, "realm/other.json", {"id": "other", "type": "realm", "drs_name": "atmos"}), "of two terms",
    ),
    "yaml that multiplies": (
        changed(CMIP7_FILES, "project_specs.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nproject_id: cmip7\n"), "anchor",
    ),
    "yaml that makes objects": (
        changed(CMIP7_FILES, "project_specs.yaml", "project_id: !!python/object/apply:os.system [id]\n"), "tag",
    ),
    "yaml with a key twice": (
        changed(CMIP7_FILES, "project_specs.yaml", "project_id: cmip7\nproject_id: cmip8\n"), "twice",
    ),
    "deep yaml": (changed(CMIP7_FILES, "project_specs.yaml", "a: " + "[" * 900 + "]" * 900), "nested deeper"),
    "no yaml": (changed(CMIP7_FILES, "project_specs.yaml", "a: [b"), "is no YAML"),
    "yaml of a wrong type": (changed(CMIP7_FILES, "project_specs.yaml", "- a\n"), "has to be an object"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_ESGVOC)
def test_esgvoc_s_layout_is_refused_where_it_cannot_be_trusted(
    case: str, tmp_path: Path, cv: Path, universe: Path
) -> None:
    files, reason = REFUSED_ESGVOC[case]
    with pytest.raises(VocabularyRefused, match=reason):
        importing.build(write(tmp_path / "CVs", files), cv, universe=universe)


def test_esgvoc_s_layout_needs_the_universe(tmp_path: Path, cv: Path) -> None:
    with pytest.raises(VocabularyRefused, match="--universe"):
        importing.build(write(tmp_path / "CVs", CMIP7_FILES), cv)


def test_a_source_of_another_project_is_refused(tmp_path: Path, cv: Path, tables: Path) -> None:
    with pytest.raises(VocabularyRefused, match="of CMIP6, not of CMIP7"):
        importing.build(write(tmp_path / "CVs", CMIP6_FILES), cv, tables=tables, project="CMIP7")


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (None, "is not there"),
        ({**CMIP7_RECIPE, "surprise": 1}, "not known here: surprise"),
        ({k: v for k, v in CMIP7_RECIPE.items() if k != "institution"}, "institution"),
        ({**CMIP7_RECIPE, "changes": {"realm": {"leave_out": ["atmos"]}}}, "why"),
        ({**CMIP7_RECIPE, "relations": [{"rule": "x", "of": [], "terms": "realm", "holds": "maybe"}]}, "snapshot"),
    ],
)
def test_what_is_written_by_hand_is_checked_too(
    tmp_path: Path, universe: Path, recipe: Json | None, reason: str
) -> None:
    cv = write(tmp_path / "cv", {"CMIP7/project.json": recipe} if recipe is not None else {})
    with pytest.raises(VocabularyRefused, match=reason):
        importing.build(write(tmp_path / "CVs", CMIP7_FILES), cv, universe=universe)


@pytest.mark.parametrize("version", ["../1", "v1", "1 2", "1/2", "", "1" * 80])
def test_a_version_is_a_name_that_begins_with_a_digit(tmp_path: Path, cv: Path, tables: Path, version: str) -> None:
    source = write(tmp_path / "CVs", CMIP6_FILES)
    if version:
        with pytest.raises(VocabularyRefused, match="is no version"):
            importing.build(source, cv, tables=tables, version=version)
    else:
        assert importing.build(source, cv, tables=tables, version=version).vocabulary.version == "6.2.1.0"
