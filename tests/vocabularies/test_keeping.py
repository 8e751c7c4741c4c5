"""The folder of snapshots: versions never change, losses wait for a person."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from fedstac.vocabularies import compare, importing, snapshots
from fedstac.vocabularies.snapshots import Built
from fedstac.vocabularies.sources import VocabularyRefused
from tests.vocabularies.publishers import CMIP6_FILES, TABLES, recipes, write

MANY = {f"Model{n}": {"institution_id": ["AWI"], "activity_participation": ["CMIP"]} for n in range(20)}


@pytest.fixture
def cv(tmp_path: Path) -> Path:
    return recipes(tmp_path / "cv")


def built(tmp_path: Path, cv: Path, version: str, models: dict[str, dict[str, list[str]]]) -> Built:
    files = copy.deepcopy(CMIP6_FILES)
    files["CMIP6_source_id.json"]["source_id"] = models
    tables = write(tmp_path / "tables", {"table_variables.json": TABLES})
    return importing.build(write(tmp_path / version, files), cv, tables=tables, version=version)


def test_a_snapshot_is_written_once(tmp_path: Path, cv: Path) -> None:
    made = built(tmp_path, cv, "1.0", MANY)
    assert snapshots.keep(cv, made).state == "written"
    assert (cv / "CMIP6" / "1.0.json").read_bytes() == made.raw
    assert snapshots.keep(cv, made).state == "unchanged"
    assert sorted(path.name for path in (cv / "CMIP6").iterdir()) == ["1.0.json", "project.json"]


def test_a_version_never_changes(tmp_path: Path, cv: Path) -> None:
    snapshots.keep(cv, built(tmp_path, cv, "1.0", MANY))
    other = built(tmp_path, cv, "1.0", {**MANY, "New": {}})
    with pytest.raises(VocabularyRefused, match=r"never changes: use --version 1\.0\+1"):
        snapshots.keep(cv, other, accept_losses=True)


def test_a_dry_run_writes_nothing(tmp_path: Path, cv: Path) -> None:
    assert snapshots.keep(cv, built(tmp_path, cv, "1.0", MANY), dry_run=True).state == "written"
    assert not (cv / "CMIP6" / "1.0.json").exists()


def test_half_of_the_terms_gone_waits_for_a_person(tmp_path: Path, cv: Path) -> None:
    snapshots.keep(cv, built(tmp_path, cv, "1.0", MANY))
    fewer = built(tmp_path, cv, "1.1", dict(list(MANY.items())[:10]))
    result = snapshots.keep(cv, fewer)
    assert (result.state, result.against, result.losses) == ("held", "1.0", (
        "source_id: 10 of 20 terms are gone",
        "source_id: 10 of 20 terms lost 'institution_id', which the rule source-institution goes by",
    ))  # fmt: skip
    assert result.difference is not None
    assert len(result.difference.removed["source_id"]) == 10
    assert not (cv / "CMIP6" / "1.1.json").exists()
    assert snapshots.keep(cv, fewer, accept_losses=True).state == "written"


def test_relations_that_went_silent_wait_for_a_person(tmp_path: Path, cv: Path) -> None:
    snapshots.keep(cv, built(tmp_path, cv, "1.0", MANY))
    silent = built(tmp_path, cv, "1.1", {name: {} for name in MANY})
    assert "no term of source_id has 'institution_id'" in " ".join(silent.warnings)
    assert snapshots.keep(cv, silent).losses == (
        "source_id: 20 of 20 terms lost 'institution_id', which the rule source-institution goes by",
    )


def test_what_comes_and_goes_from_day_to_day_is_not_held(tmp_path: Path, cv: Path) -> None:
    snapshots.keep(cv, built(tmp_path, cv, "1.0", MANY))
    kept = snapshots.keep(cv, built(tmp_path, cv, "1.1", {**dict(list(MANY.items())[:11]), "New": {}}))
    assert (kept.state, kept.losses) == ("written", ())


def test_it_is_compared_with_the_newest_by_number(tmp_path: Path, cv: Path) -> None:
    for version in ("1.9", "1.10"):
        snapshots.keep(cv, built(tmp_path, cv, version, MANY))
    assert snapshots.versions(cv, "CMIP6") == ["1.9", "1.10"]
    assert snapshots.keep(cv, built(tmp_path, cv, "1.11", MANY)).against == "1.10"


def test_the_difference_of_two_snapshots(tmp_path: Path, cv: Path) -> None:
    one = built(tmp_path, cv, "1.0", {"A": {"institution_id": ["AWI"]}, "B": {}})
    two = built(tmp_path, cv, "1.1", {"A": {"institution_id": ["AWI", "NCC"]}, "C": {}})
    found = compare.between(one.content, two.content)
    assert (found.added, found.removed) == ({"source_id": ["C"]}, {"source_id": ["B"]})
    assert found.changed == {"source_id": {"A": {"institution_id": (["AWI"], ["AWI", "NCC"])}}}
    assert not found.properties
    assert not found.other
    assert not compare.between(one.content, one.content)
