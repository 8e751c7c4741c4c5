"""`fedstac vocab …`, as people and programs call it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fedstac import settings
from fedstac.cli import app
from fedstac.demo import sample
from tests.vocabularies.publishers import CMIP6_FILES, CMIP7_FILES, TABLES, UNIVERSE_FILES, pack, recipes, write

VERSIONS = {"CMIP6": {"6.2.58.60", "6.2.60.0"}, "CMIP7": {"1.2.6", "1.2.16"}, "CORDEX-CMIP6": {"2026.11.24+1"}}


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["vocab", *map(str, words)])


def answer(*words: object, code: int = 0) -> Any:
    result = run(*words, "-o", "json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture
def cv(tmp_path: Path) -> Path:
    return recipes(tmp_path / "cv")


def test_list() -> None:
    rows = answer("list")["snapshots"]
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["project"], set()).add(row["version"])
    assert found == VERSIONS
    assert {row["version"] for row in rows if row["current"]} == {"6.2.60.0", "1.2.16", "2026.11.24+1"}
    assert all(len(row["digest"]) == 64 and row["terms"] > 400 and row["sources"] for row in rows)


def test_tables_fit_80_columns() -> None:
    for words in (["list"], ["show", "CMIP6", "institution_id"], ["diff", "CMIP6", "6.2.58.60", "6.2.60.0"],
                  ["suggest", "CMIP6", "source_id", "noresm"]):  # fmt: skip
        assert max(map(len, run(*words).stdout.splitlines())) <= 80, words


def test_import_of_both_layouts(tmp_path: Path, cv: Path) -> None:
    tables = write(tmp_path / "tables", {"table_variables.json": TABLES})
    made = answer("import", write(tmp_path / "CVs", CMIP6_FILES), "--tables", tables, "--out", cv)["imported"]
    assert [(row["state"], row["project"], row["version"]) for row in made] == [("written", "CMIP6", "6.2.1.0")]
    archives = [pack(tmp_path / f"{name}.tar.gz", files) for name, files in (("7", CMIP7_FILES), ("u", UNIVERSE_FILES))]
    made = answer("import", archives[0], "--universe", archives[1], "--out", cv)["imported"]
    assert [(row["state"], row["version"]) for row in made] == [("written", "1.2.3")]
    assert made[0]["warnings"]
    assert {row["project"] for row in answer("list", "--cv-folder", cv)["snapshots"]} == {"CMIP6", "CMIP7"}
    again = answer("import", archives[0], "--universe", archives[1], "--out", cv)["imported"]
    assert [row["state"] for row in again] == ["unchanged"]


def test_a_source_that_is_refused_does_not_stop_the_others(tmp_path: Path, cv: Path) -> None:
    tables = write(tmp_path / "tables", {"table_variables.json": TABLES})
    good, bad = write(tmp_path / "CVs", CMIP6_FILES), write(tmp_path / "bad", {"x.json": {}})
    rows = answer("import", bad, good, "--tables", tables, "--out", cv, code=1)["imported"]
    assert [row["state"] for row in rows] == ["refused", "written"]
    assert "none of the layouts" in rows[0]["reason"]


def test_losses_are_shown_and_held(tmp_path: Path, cv: Path) -> None:
    tables = write(tmp_path / "tables", {"table_variables.json": TABLES})
    models = {f"M{n}": {"institution_id": ["AWI"]} for n in range(10)}
    for version, kept in (("1.0", 10), ("1.1", 4)):
        terms = {"source_id": dict(list(models.items())[:kept])}
        source = write(tmp_path / version, {**CMIP6_FILES, "CMIP6_source_id.json": terms})
        result = run("import", source, "--tables", tables, "--out", cv, "--version", version)
    assert result.exit_code == 1
    assert "6 of 10 terms are gone" in result.output
    assert "--accept-losses" in result.output
    accepted = answer("import", source, "--tables", tables, "--out", cv, "--version", "1.1", "--accept-losses")
    assert accepted["imported"][0]["losses"]


def test_diff_shows_real_changes_and_exits_1() -> None:
    found = answer("diff", "CMIP6", "6.2.58.60", "6.2.60.0", code=1)
    assert found["terms"]["source_id"]["removed"] == ["AWI-ESM-2-1-LR", "EC-Earth3-GrIS"]
    assert set(found["terms"]["source_id"]["changed"]) >= {"CMCC-CM2-SR5", "TaiESM1"}
    assert (found["properties"], found["other"]) == ({}, {})
    table = run("diff", "CMIP6", "6.2.58.60", "6.2.60.0")
    assert "CMCC-CM2-SR5 activity_participation: +AerChemMIP +DAMIP" in table.stdout
    assert run("diff", "CMIP6", "6.2.60.0", "6.2.60.0").exit_code == 0


def test_show() -> None:
    project = answer("show", "CMIP6")
    assert project["facets"]["cmip6:source_id"] == 132
    assert "source-institution" in project["rules"]
    assert answer("show", "CMIP6", "activity_id")["terms"]["DAMIP"]["title"]
    [found] = answer("show", "CMIP6", "NCC")["found"]
    assert found["used"][0]["terms"] == ["NorCPM1", "NorESM1-F", "NorESM2-LM", "NorESM2-MM"]
    assert answer("show", "CMIP6", "EC-Earth3-GrIS", "--version", "6.2.58.60")["found"]


def test_what_is_not_there_exits_3_with_a_hint() -> None:
    missing = run("show", "CMIP6", "historcal")
    assert missing.exit_code == 3
    assert "did you mean 'historical'" in missing.output
    for words in (["show", "CMIP9"], ["show", "CMIP6", "--version", "1.0"], ["suggest", "CMIP6", "nothing", "x"],
                  ["suggest", "CMIP6", "source_id", "zzzzqqqq"], ["diff", "CMIP6", "1", "2"]):  # fmt: skip
        assert run(*words).exit_code == 3, words


def test_suggest() -> None:
    found = answer("suggest", "CMIP6", "cmip6:experiment_id", "historcal")["suggestions"]
    assert found[0]["term"] == "historical"
    assert found[0]["title"]


def test_check_counts_by_rule(tmp_path: Path) -> None:
    good, bad = sample.items(2)
    bad["properties"]["cmip6:grid_label"] = "nowhere"
    path = tmp_path / "items.ndjson.gz"
    path.write_bytes(gzip.compress(b"".join(json.dumps(item).encode() + b"\n" for item in (good, bad))))
    found = answer("check", "CMIP6", "6.2.60.0", path, code=1)
    assert (found["checked"], found["failing"], found["rules"]["term"]) == (2, 1, 1)
    assert found["examples"][0]["id"] == bad["id"]
    path.write_bytes(gzip.compress(json.dumps(good).encode()))
    assert run("check", "CMIP6", "6.2.60.0", path).exit_code == 0
    assert run("check", "CMIP6", "6.2.60.0").exit_code == 2


def test_a_damaged_snapshot_is_named_and_the_others_are_listed(tmp_path: Path) -> None:
    (tmp_path / "CMIP6").mkdir()
    sound = settings.folder("cv") / "CMIP6" / "6.2.60.0.json"
    (tmp_path / "CMIP6" / sound.name).write_bytes(sound.read_bytes())
    (tmp_path / "CMIP6" / "6.2.61.0.json").write_bytes(sound.read_bytes()[:1000])
    found = run("list", "--cv-folder", tmp_path)
    assert found.exit_code == 1
    assert "CMIP6 6.2.61.0 cannot be used" in found.output
    assert "6.2.60.0 cannot" not in found.output
    assert "6.2.60.0" in found.output


def test_what_is_no_snapshot_is_refused_before_the_database_is_asked(tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("{}")
    found = run("install", tmp_path / "no.json", "--dsn", "postgresql://127.0.0.1:1/nowhere")
    assert found.exit_code == 1
    assert "refused: this is no vocabulary snapshot" in found.output
