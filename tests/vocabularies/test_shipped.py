"""The snapshots that ship: what they hold, that they are small and quick, and that the importers make just these."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedstac.domain.vocabulary import Vocabulary
from fedstac.vocabularies import importing, sources
from fedstac.vocabularies.checker import shipped
from fedstac.vocabularies.registry import Vocabularies
from tests.support.places import REPOSITORY, SHARED

CV, DATA = REPOSITORY / "cv", SHARED / "data" / "cv"
TABLES, UNIVERSE = DATA / "CMIP6-tables" / "table_variables.json", DATA / "WCRP-universe.tar.gz"
MOST_BYTES = 1_000_000
SHIPPED: dict[tuple[str, str], dict[str, Any]] = {
    ("CMIP6", "6.2.58.60"): {"source": DATA / "CMIP6_CVs" / "6.2.58.60", "tables": TABLES},
    ("CMIP6", "6.2.60.0"): {"source": DATA / "CMIP6_CVs" / "6.2.60.0", "tables": TABLES},
    ("CMIP7", "1.2.6"): {"source": DATA / "CMIP7-CVs" / "1.2.6.tar.gz", "universe": UNIVERSE},
    ("CMIP7", "1.2.16"): {"source": DATA / "CMIP7-CVs" / "1.2.16.tar.gz", "universe": UNIVERSE},
    ("CORDEX-CMIP6", "2026.11.24+1"): {"source": DATA / "CORDEX-CMIP6", "version": "2026.11.24+1"},
}
AT_HAND = Vocabularies(shipped(CV))
SCHEMA = SHARED / "schemas" / "stac-extensions.github.io" / "cmip6" / "v3.0.2" / "schema.json"


def vocabulary(project: str, version: str) -> Vocabulary:
    return AT_HAND.at(project, version)


def test_all_that_ships_is_known_here() -> None:
    assert {(snapshot.project, snapshot.version) for snapshot in AT_HAND} == set(SHIPPED)


@pytest.mark.shared
@pytest.mark.parametrize(("project", "version"), SHIPPED)
def test_the_importers_make_it_byte_for_byte(project: str, version: str) -> None:
    counts = dict(SHIPPED[project, version])
    built = importing.build(counts.pop("source"), CV, **counts)
    assert built.raw == (CV / project / f"{version}.json").read_bytes()


@pytest.mark.shared
def test_an_archive_gives_the_same_as_what_is_unpacked_from_it(tmp_path: Path) -> None:
    folders = {}
    for path in (UNIVERSE, SHIPPED["CMIP7", "1.2.16"]["source"]):
        folders[path] = tmp_path / path.name.removesuffix(".tar.gz")
        for name, raw in sources.read(path).content.items():
            (folders[path] / name).parent.mkdir(parents=True, exist_ok=True)
            (folders[path] / name).write_bytes(raw)
    universe, source = folders.values()
    built = importing.build(source, CV, universe=universe)
    assert built.raw == (CV / "CMIP7" / "1.2.16.json").read_bytes()


@pytest.mark.parametrize(("project", "version"), SHIPPED)
def test_each_is_small_says_where_it_is_from_and_stands_alone(project: str, version: str) -> None:
    path, made = CV / project / f"{version}.json", vocabulary(project, version)
    assert path.stat().st_size < MOST_BYTES
    assert all(source.licence in ("CC-BY-4.0", "BSD-3-Clause") and source.version for source in made.sources)
    about = (CV / project / "SOURCE.md").read_text()
    assert all(source.name in about for source in made.sources)
    assert version in about
    assert made.institution in made.properties
    assert set(made.facets) <= set(made.properties)
    assert set(made.id_template.names) - {"version"} <= set(made.properties)
    assert {relation.rule for relation in made.relations} != set()
    assert all(terms for terms in made.terms.values())


@pytest.mark.parametrize(("project", "version"), SHIPPED)
def test_every_relation_leads_to_terms_that_are_there(project: str, version: str) -> None:
    made = vocabulary(project, version)
    for relation in made.relations:
        about = made.properties.get(relation.property or "")
        if about is None or about.terms is None or relation.attribute is None:
            continue
        values = [term[relation.attribute] for term in relation.terms.values() if relation.attribute in term]
        assert values, relation
        assert {one for value in values for one in (value if isinstance(value, list) else [value])} <= set(about.terms)


def test_the_real_difference_between_two_versions_of_cmip6() -> None:
    """A model in DAMIP since 6.2.60.0, whose datasets are in the archive; and two that were taken back."""
    old, new = vocabulary("CMIP6", "6.2.58.60").terms["source_id"], vocabulary("CMIP6", "6.2.60.0").terms["source_id"]
    assert set(new) - set(old) == {"AWI-ESM-1-REcoM", "E3SM-2-1", "EC-Earth3-ESM-1"}
    assert set(old) - set(new) == {"AWI-ESM-2-1-LR", "EC-Earth3-GrIS"}
    taking_part = {
        name: sorted({*new[name]["activity_participation"]} - {*old[name]["activity_participation"]})
        for name in set(old) & set(new)
        if old[name] != new[name]
    }
    assert taking_part == {
        "CMCC-CM2-SR5": ["AerChemMIP", "DAMIP"], "EC-Earth3-Veg": ["PMIP"], "GISS-E2-1-H": ["AerChemMIP"],
        "IPSL-CM6A-LR": ["AerChemMIP"], "TaiESM1": ["RFMIP"],
    }  # fmt: skip


def test_a_domain_of_cordex_has_one_name() -> None:
    made = vocabulary("CORDEX-CMIP6", "2026.11.24+1")
    [relation] = [one for one in made.relations if one.rule == "domain"]
    assert set(relation.terms) == set(made.terms["domain_id"])
    assert {term["domain"] for term in relation.terms.values()} == set(made.terms["domain"])
    assert relation.terms["EUR-12"]["domain"] == "Europe"
    assert made.sources[0].version == "2026.11.24"


def test_cmip7_puts_its_names_together() -> None:
    made = vocabulary("CMIP7", "1.2.16")
    [branded] = [one for one in made.compositions if one.property == "cmip7:variable_branded_name"]
    [suffix] = [one for one in made.compositions if one.property == "cmip7:variable_branding_suffix"]
    for name in made.terms["branded_variable"]:
        variable, _, rest = name.partition("_")
        labels = dict(zip(suffix.template.names, rest.split("-"), strict=True))
        assert suffix.expected(labels) == rest
        assert branded.expected({"cmip7:variable_id": variable, "cmip7:variable_branding_suffix": rest}) == name
        assert all(made.properties[label].takes(value) for label, value in labels.items())
    assert made.id_template.text.startswith("MIP-DRS7.CMIP7.")
    assert len(made.id_template.names) == 11


@pytest.mark.shared
def test_cmip6_has_the_terms_of_the_published_schema() -> None:
    """6.2.60.0 is what that schema was made from; what is laxer there is in SOURCE.md."""
    published = json.loads(SCHEMA.read_text())["definitions"]["item_fields"]["properties"]
    made = vocabulary("CMIP6", "6.2.60.0")
    ours = {name for name in made.properties if name.startswith("cmip6:")}
    assert ours == {name for name in published if name.startswith("cmip6:")}
    for name in ours:
        definition = published[name]
        enumeration = definition.get("enum") or definition.get("items", {}).get("enum")
        terms = made.properties[name].terms
        assert (enumeration is None) == (terms is None), name
        if name == "cmip6:variable_id":
            assert terms is not None
            assert set(enumeration) - set(terms) == {"hus19", "hus8", "modelcellareai"}  # in no table
            assert set(terms) <= set(enumeration)
        elif terms is not None:
            assert set(terms) == set(enumeration), name


MEASURED = """
import json, sys
from pathlib import Path
from fedstac.vocabularies.registry import Snapshot, Vocabularies
paths = [Path(path) for path in sys.argv[1:]]
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024
import hashlib
before = resident()
made = Vocabularies([Snapshot(p.parent.name, p.stem, hashlib.sha256(p.read_bytes()).hexdigest(), p.read_bytes)
                     for p in paths])
for path in paths:
    made.at(path.parent.name, path.stem)
print(json.dumps({"megabytes": resident() - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_three_projects_take_less_than_50_megabytes() -> None:
    newest = [CV / project / f"{version}.json" for project, version in SHIPPED if version not in ("6.2.58.60", "1.2.6")]
    ran = subprocess.run([sys.executable, "-c", MEASURED, *map(str, newest)], capture_output=True, check=True)
    figures = json.loads(ran.stdout)
    assert figures["megabytes"] < 50, figures
